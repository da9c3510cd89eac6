"""Keys that routers compute; public through `llmd.hash`."""

from __future__ import annotations

from collections.abc import Sequence

from llmd import _core
from llmd._types import BytesLike, TokensLike, UInt32Array, UInt64Array, listed
from llmd._vllm_hash import MultimodalItem, RequestExtras


class RequestKeyHasher:
    """llm-d request keys: chained 64-bit keys that a router computes from tokens on both sides.

    Immutable; any number of threads may use it at once.

    Parameters
    ----------
    algorithm : {"cbor-fnv", "cbor-fnv-no-model", "xxh64"}
        As the router is configured.
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

    __slots__ = ("_core", "_repr")

    def __init__(self, algorithm: str = "cbor-fnv", *, seed: str = "", block_size: int = 16) -> None:
        self._core = _core.RequestKeyHasher(algorithm, seed, block_size)
        self._repr = f"RequestKeyHasher({algorithm!r}, seed={seed!r}, block_size={block_size})"

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

    def __repr__(self) -> str:
        return self._repr


def extra_strings(extras: RequestExtras, *, block_size: int, count: int) -> list[tuple[str, ...]]:
    """Extra strings of the first `count` blocks of a request, for `RequestKeyHasher`.

    Parameters
    ----------
    extras : RequestExtras
        Of the request.
    block_size : int
        Tokens per block.
    count : int
        Number of blocks.

    Returns
    -------
    list of tuples of str
        One for each block.

    Examples
    --------
    >>> extra_strings(RequestExtras(cache_salt="tenant-a"), block_size=16, count=2)
    [('tenant-a',), ()]
    """
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
        Images and the like, in the order of their offsets.

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
        Token ids.
    model, cache_salt : str
        Hashed into the first block.
    block_size : int
        Tokens per block; raised to 64.
    max_prefix_tokens, max_prefix_blocks : int
        The first wins where both are set; 0: not set.

    Returns
    -------
    ndarray of uint64, shape (blocks,)

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
        The text that is sent to the model.
    model, cache_salt : str
        Hashed into the first block.
    block_bytes, max_blocks : int
        Bytes per block; blocks at most.

    Returns
    -------
    ndarray of uint64, shape (blocks,)

    Examples
    --------
    >>> len(gaie_prefix_keys("x" * 200, "m"))
    3
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
    ndarray of uint32, shape (pseudo tokens,)

    Examples
    --------
    >>> [int(token) for token in estimate_tokens(["abc", "de"])]
    [1684234849, 101]
    """
    return _core.estimate_tokens(listed(parts, "parts"))


__all__ = [
    "RequestKeyHasher",
    "approx_prefix_keys",
    "content_keys",
    "estimate_tokens",
    "extra_strings",
    "gaie_prefix_keys",
]
