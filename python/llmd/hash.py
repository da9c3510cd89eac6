"""Tokens to block keys, for each engine and router.

Engines hash a prompt in blocks of a fixed number of tokens; a block's hash stands for the whole prompt up to its end.
A router that computes the same hashes knows which blocks an engine holds. Digests are ``bytes``, 64-bit keys NumPy
``uint64`` arrays.

Token ids may be given as NumPy arrays or other contiguous buffers of int32 or uint32 (read in place), of int64 or
uint64 (converted in one pass), or as lists. An array must not be written to by another thread during a call. Errors name
the argument: ``TypeError`` for what is no array of integers, ``ValueError`` for a value out of range.

>>> import numpy as np
>>> hasher = VllmHasher("sha256_cbor", block_size=4, seed="0")
>>> digests = hasher.hash_blocks(np.arange(10))
>>> [digest.hex()[:8] for digest in digests]
['8d4c7c82', 'ed6fa5d3']
>>> [hex(low64(digest)) for digest in digests] == [hex(key) for key in hasher.block_keys(np.arange(10))]
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, Union

from llmd import _core
from llmd._core import Tag
from llmd._types import BytesLike, KeysLike, TokensLike, UInt32Array, UInt64Array, core_of, listed

ExtraKey: TypeAlias = Union[None, int, str, bytes, tuple["ExtraKey", ...]]
ExtraKeys: TypeAlias = Union[None, tuple[ExtraKey, ...], list[ExtraKey]]
ExtraKeyStyle: TypeAlias = Literal["int-lora", "bare", "offset", "tagged"]


class MultimodalItem(NamedTuple):
    """An image, video or audio of a prompt; its placeholder covers tokens ``[offset, offset + length)``."""

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
    cache_salt : str
        Empty for none.
    embeds_digests : tuple of bytes
        Per block, SHA-256 of the prompt-embedding rows; empty for a prompt of tokens.
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
        parent : bytes, optional
            Digest of the block before; None at the start of a prompt.
        extra_keys : list of (tuple or None), optional
            One entry per block, or fewer: the rest are None. See `request_extra_keys`.

        Returns
        -------
        list of bytes
            ``n // block_size`` digests.
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
        parent : bytes, optional
        extra_keys : tuple, optional
            Of this block.

        Returns
        -------
        bytes
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
    extras : RequestExtras, optional
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
    """The last eight bytes, big-endian: what vLLM publishes.

    >>> low64(bytes(30) + b"\\x01\\x02")
    258
    """
    return _core.low64(digest)


def first64(digest: BytesLike) -> int:
    """The first eight bytes, big-endian: what SGLang publishes, as a signed integer.

    >>> first64(b"\\x01" + bytes(31)) == 1 << 56
    True
    """
    return _core.first64(digest)


def pool_key(digest: bytes, group_id: int) -> bytes:
    """Key of the engine's block pool and of offload stores: the digest and a big-endian 32-bit group id."""
    return _core.pool_key(digest, group_id)


def parse_pool_key(key: BytesLike) -> tuple[bytes, int]:
    """Digest and group id of a `pool_key`. ValueError for a wrong length."""
    return _core.parse_pool_key(key)


def group_digests(digests: Sequence[bytes], factor: int) -> list[bytes]:
    """Block digests of a group of layers whose blocks are `factor` hash blocks long."""
    return _core.group_digests(listed(digests, "digests"), factor)


class RequestKeyHasher:
    """llm-d request keys: chained 64-bit keys that a router computes from tokens on both sides.

    Immutable; any number of threads may use it at once.

    Parameters
    ----------
    algorithm : {"cbor-fnv", "cbor-fnv-no-model", "xxh64"}
    seed : str
        The router's hash seed.
    block_size : int
        Tokens per block.

    Examples
    --------
    >>> hasher = RequestKeyHasher(block_size=2)
    >>> keys = hasher.hash_blocks([1, 2, 3, 4], hasher.root("m"))
    >>> int(hasher.hash_blocks([3, 4], int(keys[0]))[0]) == int(keys[1])
    True
    """

    __slots__ = ("_core",)

    def __init__(self, algorithm: str = "cbor-fnv", *, seed: str = "", block_size: int = 16) -> None:
        self._core = _core.RequestKeyHasher(algorithm, seed, block_size)

    def root(self, model_or_lora: str) -> int:
        """Parent of a first block. A LoRA adapter's name replaces the model's."""
        return self._core.root(model_or_lora)

    def hash_blocks(
        self, tokens: TokensLike, parent: int, extra: Sequence[Sequence[str] | None] | None = None
    ) -> UInt64Array:
        """Keys of the full blocks of `tokens`, which follow `parent`.

        Parameters
        ----------
        tokens : array of int32, uint32 or int64, shape (n,), or list of int
        parent : int
            `root` or the key of an earlier block.
        extra : list of lists of str, optional
            Per block, or fewer. See `extra_strings`.

        Returns
        -------
        ndarray of uint64, shape (n // block_size,)
        """
        return self._core.hash_blocks(tokens, parent, None if extra is None else listed(extra, "extra"))


def extra_strings(extras: RequestExtras, *, block_size: int, count: int) -> list[tuple[str, ...]]:
    """Extra strings of the first `count` blocks of a request, for `RequestKeyHasher`."""
    return _core.extra_strings_of_request(extras, block_size, count)


def content_keys(
    tokens: TokensLike, *, block_size: int = 16, cache_salt: str = "", items: Sequence[MultimodalItem] = ()
) -> UInt64Array:
    """Keys by which `llmd.index.PrefixIndex` matches a prompt that `llmd.index.KvEventIngestor` fills from events.

    Each key is local to its block, so neither seed nor hash algorithm of the engine matters.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
    block_size : int
        Tokens per block, the engine's.
    cache_salt : str
        Part of the first block.
    items : list of MultimodalItem

    Returns
    -------
    ndarray of uint64, shape (n // block_size,)

    Examples
    --------
    >>> a, b = content_keys([7, 8, 7, 8], block_size=2)
    >>> bool(a == b)
    True
    """
    return _core.content_keys(tokens, block_size, cache_salt, listed(items, "items"))


def approx_prefix_keys(
    tokens: TokensLike,
    model: str,
    *,
    cache_salt: str = "",
    block_size: int = 16,
    max_prefix_tokens: int = 131072,
    max_prefix_blocks: int = 2048,
) -> UInt64Array:
    """llm-d-router's approximate-prefix chain; the last block may be partial.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
    model, cache_salt : str
    block_size : int
        Tokens per block; raised to 64.
    max_prefix_tokens, max_prefix_blocks : int
        The first wins where both are set; 0: not set.

    Returns
    -------
    ndarray of uint64

    Examples
    --------
    >>> len(approx_prefix_keys(list(range(130)), "m"))
    3
    """
    return _core.approx_prefix_keys(tokens, model, cache_salt, block_size, max_prefix_tokens, max_prefix_blocks)


def gaie_prefix_keys(
    prompt: str | BytesLike, model: str, *, cache_salt: str = "", block_bytes: int = 64, max_blocks: int = 256
) -> UInt64Array:
    """Prefix chain of the inference extension's picker (1.1 to 1.5) over prompt bytes.

    Parameters
    ----------
    prompt : str (as UTF-8) or bytes
    model, cache_salt : str
    block_bytes, max_blocks : int

    Returns
    -------
    ndarray of uint64
    """
    return _core.gaie_prefix_keys(prompt, model, cache_salt, block_bytes, max_blocks)


def estimate_tokens(parts: Sequence[str | tuple[str, int]]) -> UInt32Array:
    """The router's stand-in for a tokenizer: request bytes as little-endian 32-bit pseudo tokens.

    Parameters
    ----------
    parts : list
        Texts, and assets as (URL or data, number of pseudo tokens), in the request's order.

    Returns
    -------
    ndarray of uint32

    Examples
    --------
    >>> [int(token) for token in estimate_tokens(["abc", "de"])]
    [1684234849, 101]
    """
    return _core.estimate_tokens(listed(parts, "parts"))


DYNAMO_SEED = 1337


def dynamo_local_seed(lora_name: str = "", cache_namespace: str = "") -> int:
    """Seed of Dynamo's local hashes under a LoRA adapter and a cache namespace."""
    return _core.dynamo_local_seed(lora_name, cache_namespace)


def dynamo_local_hashes(
    tokens: TokensLike, *, block_size: int = 16, seed: int = DYNAMO_SEED, eagle: bool = False
) -> UInt64Array:
    """Dynamo's local hash of each full block.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
    block_size : int
    seed : int
        See `dynamo_local_seed`.
    eagle : bool
        Each block covers ``block_size + 1`` tokens, at a stride of `block_size`.

    Returns
    -------
    ndarray of uint64
    """
    return _core.dynamo_local_hashes(tokens, block_size, seed, eagle)


def dynamo_sequence_hashes(local: KeysLike, parent: int | None = None, *, seed: int = DYNAMO_SEED) -> UInt64Array:
    """Dynamo's sequence hash of each local hash; `parent` is the one of the block before."""
    return _core.dynamo_sequence_hashes(local, parent, seed)


def sglang_page_hashes(
    tokens: TokensLike, *, page_size: int, parent: bytes | None = None, bigram: bool = False
) -> list[bytes]:
    """SGLang's page digests. Events carry `first64` of each, as a signed integer.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
    page_size : int
        Tokens per page.
    parent : bytes, optional
        Digest of the page before.
    bigram : bool
        EAGLE: position i stands for tokens (i, i + 1).

    Returns
    -------
    list of bytes
    """
    return _core.sglang_page_hashes(tokens, page_size, parent, bigram)


def lmcache_hasher(algorithm: str = "sha256_cbor", *, chunk_size: int = 256, seed: str | None = None) -> VllmHasher:
    """The hasher of LMCache's chunks.

    Parameters
    ----------
    algorithm : str
        LMCache's ``pre_caching_hash_algorithm``. Its default, ``builtin``, cannot be reproduced: ValueError.
    chunk_size : int
        Tokens per chunk.
    seed : str, optional
        ``PYTHONHASHSEED`` where LMCache runs inside vLLM; without it the first parent is the integer 0.
    """
    name = _core.parse_lmcache_algorithm(algorithm)
    return VllmHasher(name, block_size=chunk_size, seed=seed, none_hash=0 if seed is None else None)


def lmcache_chunk_hashes(hasher: VllmHasher, tokens: TokensLike, *, save_unfull_chunk: bool = True) -> list[bytes]:
    """Digest of each chunk of ``hasher.block_size`` tokens; the last, shorter one only with `save_unfull_chunk`."""
    return _core.lmcache_chunk_hashes(core_of(hasher, "hasher", VllmHasher), tokens, save_unfull_chunk)


def trtllm_salt_id(cache_salt: str) -> int:
    """The 64 bits that stand for a cache salt in TensorRT-LLM."""
    return _core.trtllm_salt_id(cache_salt)


def trtllm_v1_keys(
    tokens: TokensLike,
    *,
    tokens_per_block: int,
    parent: int = 0,
    lora_task_id: int | None = None,
    salt_id: int | None = None,
) -> UInt64Array:
    """TensorRT-LLM's ``v1_block_key`` of each block; the last one may be partial."""
    return _core.trtllm_v1_keys(tokens, tokens_per_block, parent, lora_task_id, salt_id)


def trtllm_v2_digests(
    tokens: TokensLike,
    *,
    tokens_per_block: int,
    parent: bytes | None = None,
    lora_task_id: int | None = None,
    salt_id: int | None = None,
) -> list[bytes]:
    """TensorRT-LLM's ``v2_sha256`` of each block; the last one may be partial."""
    return _core.trtllm_v2_digests(tokens, tokens_per_block, parent, lora_task_id, salt_id)


class ProbeMatch(NamedTuple):
    """A way to compute published hashes."""

    engine: str
    algorithm: str
    seed: str
    extra_keys: str
    form: str
    blocks: int  # hashes reproduced
    native: bool  # the engine itself publishes this form, and every hash was reproduced


class ProbeReport(NamedTuple):
    """What `probe` found: the match if there is one, else what comes closest, and a summary for a log."""

    match: ProbeMatch | None
    near: tuple[ProbeMatch, ...]
    combinations: int
    summary: str


def probe(
    tokens: TokensLike,
    hashes: Sequence[int | bytes],
    *,
    block_size: int,
    parent: int | bytes | None = None,
    extras: RequestExtras | None = None,
    event_extra_keys: Sequence[ExtraKeys] = (),
    first_block: int = 0,
    seeds: Sequence[str] = (),
    none_hashes: Sequence[bytes] = (),
    models: Sequence[str] = (),
) -> ProbeReport:
    """Which hash function made this event? Tries every algorithm, seed and extra-key shape. Slow by design.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (len(hashes) * block_size,), or list of int
    hashes : list of int or bytes
        As the event carries them.
    block_size : int
    parent : int or bytes, optional
        None: the event starts a prompt.
    extras, event_extra_keys
        What is known of the request, and what the event says.
    first_block : int
        Index in its prompt of the event's first block.
    seeds, none_hashes, models
        More to try, besides the usual.

    Returns
    -------
    ProbeReport

    Examples
    --------
    >>> hasher = VllmHasher("sha256_cbor", block_size=4, seed="42")
    >>> report = probe([1, 2, 3, 4], [int(hasher.block_keys([1, 2, 3, 4])[0])], block_size=4, seeds=["42"])
    >>> report.match.engine, report.match.algorithm
    ('vllm', 'sha256_cbor')
    """
    match, near, combinations, summary = _core.probe(
        tokens,
        block_size,
        listed(hashes, "hashes"),
        parent,
        extras,
        listed(event_extra_keys, "event_extra_keys"),
        first_block,
        listed(seeds, "seeds"),
        listed(none_hashes, "none_hashes"),
        listed(models, "models"),
    )
    return ProbeReport(
        None if match is None else ProbeMatch(*match), tuple(ProbeMatch(*m) for m in near), combinations, summary
    )


__all__ = [
    "DYNAMO_SEED",
    "ExtraKey",
    "ExtraKeyStyle",
    "ExtraKeys",
    "MultimodalItem",
    "ProbeMatch",
    "ProbeReport",
    "RequestExtras",
    "RequestKeyHasher",
    "Tag",
    "VllmChain",
    "VllmHasher",
    "approx_prefix_keys",
    "content_keys",
    "dynamo_local_hashes",
    "dynamo_local_seed",
    "dynamo_sequence_hashes",
    "estimate_tokens",
    "extra_strings",
    "first64",
    "gaie_prefix_keys",
    "group_digests",
    "lmcache_chunk_hashes",
    "lmcache_hasher",
    "low64",
    "parse_pool_key",
    "pool_key",
    "probe",
    "request_extra_keys",
    "sglang_page_hashes",
    "trtllm_salt_id",
    "trtllm_v1_keys",
    "trtllm_v2_digests",
]
