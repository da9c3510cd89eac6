"""Block hashes of Dynamo, SGLang, LMCache and TensorRT-LLM; public through `llmd.hash`."""

from __future__ import annotations

from llmd import _core
from llmd._types import KeysLike, TokensLike, UInt64Array, core_of
from llmd._vllm_hash import VllmHasher

DYNAMO_SEED = 1337
"""Seed of Dynamo's hashes without an adapter and a cache namespace."""


def dynamo_local_seed(lora_name: str = "", cache_namespace: str = "") -> int:
    """Seed of Dynamo's local hashes under a LoRA adapter and a cache namespace.

    Examples
    --------
    >>> dynamo_local_seed() == DYNAMO_SEED, dynamo_local_seed("sql") == DYNAMO_SEED
    (True, False)
    """
    return _core.dynamo_local_seed(lora_name, cache_namespace)


def dynamo_local_hashes(
    tokens: TokensLike, *, block_size: int = 16, seed: int = DYNAMO_SEED, eagle: bool = False
) -> UInt64Array:
    """Dynamo's local hash of each full block.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
        Token ids.
    block_size : int
        Tokens per block.
    seed : int
        See `dynamo_local_seed`.
    eagle : bool
        Each block covers ``block_size + 1`` tokens, at a stride of `block_size`.

    Returns
    -------
    ndarray of uint64, shape (n // block_size,)

    Examples
    --------
    >>> first, second = dynamo_local_hashes([7, 8, 7, 8], block_size=2)  # local: where the block is does not matter
    >>> bool(first == second)
    True
    """
    return _core.dynamo_local_hashes(tokens, block_size, seed, eagle)


def dynamo_sequence_hashes(local: KeysLike, parent: int | None = None, *, seed: int = DYNAMO_SEED) -> UInt64Array:
    """Dynamo's sequence hash of each block, from its local hash and the blocks before.

    Parameters
    ----------
    local : array of uint64, shape (blocks,), or list of int
        See `dynamo_local_hashes`.
    parent : int, optional
        Sequence hash of the block before; None at the start of a prompt.
    seed : int
        `DYNAMO_SEED`, whatever the local hashes' is.

    Returns
    -------
    ndarray of uint64, shape (blocks,)

    Examples
    --------
    >>> local = dynamo_local_hashes(list(range(8)), block_size=2)
    >>> whole, begin = dynamo_sequence_hashes(local), dynamo_sequence_hashes(local[:2])
    >>> rest = dynamo_sequence_hashes(local[2:], int(begin[-1]))
    >>> whole.tolist() == begin.tolist() + rest.tolist()
    True
    """
    return _core.dynamo_sequence_hashes(local, parent, seed)


def sglang_page_hashes(
    tokens: TokensLike, *, page_size: int, parent: bytes | None = None, bigram: bool = False
) -> list[bytes]:
    """SGLang's page digests. Events carry `first64` of each, as a signed integer.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
        Token ids.
    page_size : int
        Tokens per page.
    parent : bytes, optional
        Digest of the page before.
    bigram : bool
        EAGLE: position i stands for tokens (i, i + 1).

    Returns
    -------
    list of bytes
        One digest per full page.

    Examples
    --------
    >>> first, second = sglang_page_hashes([1, 2, 3, 4], page_size=2)
    >>> sglang_page_hashes([3, 4], page_size=2, parent=first) == [second]
    True
    """
    return _core.sglang_page_hashes(tokens, page_size, parent, bigram)


def lmcache_hasher(algorithm: str = "sha256_cbor", *, chunk_size: int = 256, seed: str | None = None) -> VllmHasher:
    """The hasher of LMCache's chunks.

    Parameters
    ----------
    algorithm : str
        LMCache's ``pre_caching_hash_algorithm``.
    chunk_size : int
        Tokens per chunk.
    seed : str, optional
        ``PYTHONHASHSEED`` where LMCache runs inside vLLM; without it the first parent is the integer 0.

    Raises
    ------
    ValueError
        For an unknown algorithm, and for LMCache's default, ``builtin``, which cannot be reproduced.

    Examples
    --------
    >>> lmcache_hasher(chunk_size=4).block_size
    4
    """
    name = _core.parse_lmcache_algorithm(algorithm)
    return VllmHasher(name, block_size=chunk_size, seed=seed, none_hash=0 if seed is None else None)


def lmcache_chunk_hashes(hasher: VllmHasher, tokens: TokensLike, *, save_unfull_chunk: bool = True) -> list[bytes]:
    """Digest of each chunk of ``hasher.block_size`` tokens; the last, shorter one only with `save_unfull_chunk`.

    Examples
    --------
    >>> hasher = lmcache_hasher(chunk_size=4)
    >>> tokens = list(range(10))
    >>> len(lmcache_chunk_hashes(hasher, tokens)), len(lmcache_chunk_hashes(hasher, tokens, save_unfull_chunk=False))
    (3, 2)
    """
    return _core.lmcache_chunk_hashes(core_of(hasher, "hasher", VllmHasher), tokens, save_unfull_chunk)


def trtllm_salt_id(cache_salt: str) -> int:
    """The 64 bits that stand for a cache salt in TensorRT-LLM.

    Examples
    --------
    >>> trtllm_salt_id("tenant-a") == trtllm_salt_id("tenant-b")
    False
    """
    return _core.trtllm_salt_id(cache_salt)


def trtllm_v1_keys(
    tokens: TokensLike,
    *,
    tokens_per_block: int,
    parent: int = 0,
    lora_task_id: int | None = None,
    salt_id: int | None = None,
) -> UInt64Array:
    """TensorRT-LLM's ``v1_block_key`` of each block; the last one may be partial.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
        Token ids.
    tokens_per_block : int
        As the engine is built.
    parent : int
        Key of the block before; 0 at the start of a prompt.
    lora_task_id : int, optional
        Of the adapter.
    salt_id : int, optional
        See `trtllm_salt_id`.

    Returns
    -------
    ndarray of uint64, shape (blocks,)

    Examples
    --------
    >>> len(trtllm_v1_keys(list(range(10)), tokens_per_block=4))
    3
    """
    return _core.trtllm_v1_keys(tokens, tokens_per_block, parent, lora_task_id, salt_id)


def trtllm_v2_digests(
    tokens: TokensLike,
    *,
    tokens_per_block: int,
    parent: bytes | None = None,
    lora_task_id: int | None = None,
    salt_id: int | None = None,
) -> list[bytes]:
    """TensorRT-LLM's ``v2_sha256`` of each block; the last one may be partial.

    Parameters are those of `trtllm_v1_keys`, but for `parent`: the digest of the block before, None at the start.

    Returns
    -------
    list of bytes
        A digest for each block.

    Examples
    --------
    >>> [len(digest) for digest in trtllm_v2_digests([1, 2, 3], tokens_per_block=2)]
    [32, 32]
    """
    return _core.trtllm_v2_digests(tokens, tokens_per_block, parent, lora_task_id, salt_id)


__all__ = [
    "DYNAMO_SEED",
    "dynamo_local_hashes",
    "dynamo_local_seed",
    "dynamo_sequence_hashes",
    "lmcache_chunk_hashes",
    "lmcache_hasher",
    "sglang_page_hashes",
    "trtllm_salt_id",
    "trtllm_v1_keys",
    "trtllm_v2_digests",
]
