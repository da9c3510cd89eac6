"""vLLM's block hashes; public through `llmd.hash`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, Union

from llmd import _core
from llmd._types import BytesLike, TokensLike, UInt64Array, core_of, listed

ExtraKey: TypeAlias = Union[None, int, str, bytes, tuple["ExtraKey", ...]]
"""What is hashed into a block besides its tokens: an adapter, an image, a salt."""
ExtraKeys: TypeAlias = Union[None, tuple[ExtraKey, ...], list[ExtraKey]]
"""All extra keys of one block; None for none."""
ExtraKeyStyle: TypeAlias = Literal["int-lora", "bare", "offset", "tagged"]
"""The shape of extra keys that a vLLM release uses; see `request_extra_keys`."""


class MultimodalItem(NamedTuple):
    """An image, video or audio of a prompt; its placeholder covers tokens ``[offset, offset + length)``.

    Attributes
    ----------
    identifier : str
        Hash of the content, as the engine names it.
    offset : int
        First placeholder token.
    length : int
        Placeholder tokens.
    """

    identifier: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RequestExtras:
    """What besides its tokens makes a request's KV cache its own.

    Attributes
    ----------
    lora_name : str
        LoRA adapter; empty for the base model.
    lora_int_id : int
        The adapter's number; read by the style ``"int-lora"`` only.
    lora_path : str
        Read by the style ``"tagged"`` only.
    multimodal : tuple of MultimodalItem
        In the order of their offsets.
    cache_salt : str
        Empty for none.
    embeds_digests : tuple of bytes
        Per block, SHA-256 of the prompt-embedding rows; empty for a prompt of tokens.

    Examples
    --------
    >>> image = MultimodalItem("sha256-of-the-image", offset=4, length=20)
    >>> RequestExtras(multimodal=(image,)).multimodal[0].length
    20
    """

    lora_name: str = ""
    lora_int_id: int = 0
    lora_path: str = ""
    multimodal: tuple[MultimodalItem, ...] = ()
    cache_salt: str = ""
    embeds_digests: tuple[bytes, ...] = ()


def request_extra_keys(
    extras: RequestExtras, *, block_size: int, count: int, style: ExtraKeyStyle = "offset"
) -> list[tuple[ExtraKey, ...] | None]:
    """Extra keys of the first `count` blocks of a request, as vLLM builds them.

    Parameters
    ----------
    extras : RequestExtras
        Of the request.
    block_size : int
        Tokens per block.
    count : int
        Number of blocks.
    style : {"int-lora", "bare", "offset", "tagged"}
        The shape that a vLLM release uses: up to 0.11.0; 0.11.1 to 0.18; 0.19 to 0.29; 0.32 and later.

    Returns
    -------
    list of (tuple or None)
        One entry per block; ``None`` for a block without extra keys.

    Examples
    --------
    >>> request_extra_keys(RequestExtras(lora_name="sql", cache_salt="tenant-a"), block_size=16, count=2)
    [('sql', 'tenant-a'), ('sql',)]
    """
    return _core.extra_keys_of_request(extras, style, block_size, count)


def _blocks(extra_keys: Sequence[ExtraKeys] | None) -> list[ExtraKeys] | None:
    return None if extra_keys is None else listed(extra_keys, "extra_keys")


class VllmHasher:
    """vLLM's prefix-cache block hashes.

    Immutable; any number of threads may use it at once. The GIL is released while long inputs are hashed.

    Parameters
    ----------
    algorithm : str
        As vLLM's ``--prefix-caching-hash-algo``: ``"sha256"``, ``"sha256_cbor"``, ``"xxhash"``, ``"xxhash_cbor"``;
        ``"sha256_int"`` and ``"sha256_cbor_64bit"`` are forms of releases up to 0.10.1.
    block_size : int
        Tokens per block.
    seed : str, optional
        The engine's ``PYTHONHASHSEED``, an empty one included.
    none_hash : bytes or 0, optional
        The parent of first blocks itself, or the integer 0 as LMCache uses it without vLLM. Without `seed` and
        `none_hash`: what vLLM 0.29 and later use when ``PYTHONHASHSEED`` is not set (``sha256`` and ``sha256_cbor``).

    Raises
    ------
    ValueError
        For an unknown algorithm, or one whose first parent is random unless a seed is set.

    Examples
    --------
    >>> hasher = VllmHasher("sha256", block_size=2, seed="0")
    >>> hasher.none_hash.hex()[:8]
    '1973e238'
    >>> first, second = hasher.hash_blocks([1, 2, 3, 4, 5])
    >>> hasher.hash_blocks([3, 4], parent=first) == [second]
    True
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        algorithm: str = "sha256",
        *,
        block_size: int = 16,
        seed: str | None = None,
        none_hash: bytes | Literal[0] | None = None,
    ) -> None:
        self._core = _core.VllmHasher(algorithm, block_size, seed, none_hash)

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self._core.algorithm

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._core.block_size

    @property
    def none_hash(self) -> bytes:
        """The parent of first blocks; empty for the integer 0."""
        return self._core.none_hash

    def hash_blocks(
        self, tokens: TokensLike, parent: bytes | None = None, extra_keys: Sequence[ExtraKeys] | None = None
    ) -> list[bytes]:
        """Digests of the full blocks of `tokens`.

        Parameters
        ----------
        tokens : array of int32, uint32 or int64, shape (n,), or list of int
            Token ids, 0 to 2**32 - 1.
        parent : bytes, optional
            Digest of the block before; None at the start of a prompt.
        extra_keys : list of (tuple or None), optional
            One entry per block, or fewer: the rest are None. See `request_extra_keys`.

        Returns
        -------
        list of bytes
            ``n // block_size`` digests.

        Raises
        ------
        TypeError
            `tokens` is no contiguous array of integers.
        ValueError
            For a token id that is out of range, or a `parent` of a wrong length.
        """
        return self._core.hash_blocks(tokens, parent, _blocks(extra_keys))

    def block_keys(
        self, tokens: TokensLike, parent: bytes | None = None, extra_keys: Sequence[ExtraKeys] | None = None
    ) -> UInt64Array:
        """The 64-bit keys, as vLLM's events carry them, of the full blocks of `tokens`.

        Parameters are those of `hash_blocks`.

        Returns
        -------
        ndarray of uint64, shape (n // block_size,)
        """
        return self._core.block_keys(tokens, parent, _blocks(extra_keys))

    def hash_block(self, tokens: TokensLike, parent: bytes | None = None, extra_keys: ExtraKeys = None) -> bytes:
        """Digest of one block of any length.

        Parameters
        ----------
        tokens : array of int32, uint32 or int64, shape (n,), or list of int
            Token ids, 0 to 2**32 - 1.
        parent : bytes, optional
            Digest of the block before; None at the start of a prompt.
        extra_keys : tuple, optional
            Of this block.

        Returns
        -------
        bytes
            The digest.
        """
        return self._core.hash_block(tokens, parent, extra_keys)

    def preimage(self, tokens: TokensLike, parent: bytes | None = None, extra_keys: ExtraKeys = None) -> bytes:
        """The bytes that `hash_block` hashes, to compare with another implementation."""
        return self._core.preimage(tokens, parent, extra_keys)

    def __repr__(self) -> str:
        return (
            f"VllmHasher({self.algorithm!r}, block_size={self.block_size}, "
            f"none_hash=bytes.fromhex({self.none_hash.hex()!r}))"
        )


class VllmChain:
    """The blocks of one request, extended as its tokens become known.

    Several threads may use one chain; each call is atomic.

    Parameters
    ----------
    hasher : VllmHasher
        Makes the hashes.
    extras : RequestExtras, optional
        What besides tokens is hashed.
    style : str
        See `request_extra_keys`.

    Examples
    --------
    >>> chain = VllmChain(VllmHasher(block_size=4))
    >>> len(chain.extend([1, 2, 3])), len(chain.extend([4, 5])), chain.token_count
    (0, 1, 5)
    """

    __slots__ = ("_core",)

    def __init__(
        self, hasher: VllmHasher, extras: RequestExtras | None = None, *, style: ExtraKeyStyle = "offset"
    ) -> None:
        self._core = _core.VllmChain(core_of(hasher, "hasher", VllmHasher), extras, style)

    def extend(self, tokens: TokensLike) -> list[bytes]:
        """Takes the next tokens; returns the digests of the blocks that they completed."""
        return self._core.extend(tokens)

    def clear(self) -> None:
        """Forgets all tokens."""
        self._core.clear()

    @property
    def digests(self) -> list[bytes]:
        """Digests of all blocks so far."""
        return self._core.digests

    @property
    def keys(self) -> UInt64Array:
        """The 64-bit keys of all blocks so far, as events carry them."""
        return self._core.keys

    @property
    def token_count(self) -> int:
        """Tokens so far, those of an incomplete block included."""
        return self._core.token_count

    def __repr__(self) -> str:
        return f"VllmChain(token_count={self.token_count}, blocks={len(self.keys)})"


def low64(digest: BytesLike) -> int:
    """The last eight bytes of a digest, big-endian: what vLLM publishes.

    Examples
    --------
    >>> low64(bytes(30) + b"\\x01\\x02")
    258
    """
    return _core.low64(digest)


def first64(digest: BytesLike) -> int:
    """The first eight bytes of a digest, big-endian: what SGLang publishes, as a signed integer.

    Examples
    --------
    >>> first64(b"\\x01" + bytes(31)) == 1 << 56
    True
    """
    return _core.first64(digest)


def pool_key(digest: bytes, group_id: int) -> bytes:
    """Key of the engine's block pool and of offload stores: the digest and a big-endian 32-bit group id.

    Examples
    --------
    >>> pool_key(b"digest", 1)
    b'digest\\x00\\x00\\x00\\x01'
    """
    return _core.pool_key(digest, group_id)


def parse_pool_key(key: BytesLike) -> tuple[bytes, int]:
    """Digest and group id of a `pool_key`.

    Raises
    ------
    ValueError
        For a wrong length.

    Examples
    --------
    >>> parse_pool_key(pool_key(bytes(32), 7)) == (bytes(32), 7)
    True
    """
    return _core.parse_pool_key(key)


def group_digests(digests: Sequence[bytes], factor: int) -> list[bytes]:
    """Block digests of a group of layers whose blocks are `factor` hash blocks long.

    Parameters
    ----------
    digests : list of bytes
        Of hash blocks, in order.
    factor : int
        Hash blocks per block of the group, at least 1.

    Returns
    -------
    list of bytes
        ``len(digests) // factor`` digests.

    Examples
    --------
    >>> hasher = VllmHasher(block_size=2)
    >>> len(group_digests(hasher.hash_blocks(list(range(12))), 3))
    2
    """
    return _core.group_digests(listed(digests, "digests"), factor)


__all__ = [
    "ExtraKey",
    "ExtraKeyStyle",
    "ExtraKeys",
    "MultimodalItem",
    "RequestExtras",
    "VllmChain",
    "VllmHasher",
    "first64",
    "group_digests",
    "low64",
    "parse_pool_key",
    "pool_key",
    "request_extra_keys",
]
