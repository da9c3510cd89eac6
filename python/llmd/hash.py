"""Tokens to block keys, for each engine and router.

Engines hash a prompt in blocks of a fixed number of tokens; a block's hash stands for the whole prompt up to its end.
A router that computes the same hashes knows which blocks an engine holds. Digests are ``bytes``, 64-bit keys NumPy
``uint64`` arrays.

Token ids may be given as NumPy arrays or other contiguous buffers of int32 or uint32 (read in place), of int64 or
uint64 (converted in one pass), or as lists. An array must not be written to by another thread during a call. Errors name
the argument: ``TypeError`` for what is no array of integers, ``ValueError`` for a value out of range.

Examples
--------
>>> import numpy as np
>>> hasher = VllmHasher("sha256_cbor", block_size=4, seed="0")
>>> digests = hasher.hash_blocks(np.arange(10))
>>> [digest.hex()[:8] for digest in digests]
['8d4c7c82', 'ed6fa5d3']
>>> [hex(low64(digest)) for digest in digests] == [hex(key) for key in hasher.block_keys(np.arange(10))]
True
"""

from __future__ import annotations

from llmd._core import Tag
from llmd._engine_hash import (
    DYNAMO_SEED,
    dynamo_local_hashes,
    dynamo_local_seed,
    dynamo_sequence_hashes,
    lmcache_chunk_hashes,
    lmcache_hasher,
    sglang_page_hashes,
    trtllm_salt_id,
    trtllm_v1_keys,
    trtllm_v2_digests,
)
from llmd._probe import ProbeMatch, ProbeReport, probe
from llmd._router_hash import (
    RequestKeyHasher,
    approx_prefix_keys,
    content_keys,
    estimate_tokens,
    extra_strings,
    gaie_prefix_keys,
)
from llmd._vllm_hash import (
    ExtraKey,
    ExtraKeys,
    ExtraKeyStyle,
    MultimodalItem,
    RequestExtras,
    VllmChain,
    VllmHasher,
    first64,
    group_digests,
    low64,
    parse_pool_key,
    pool_key,
    request_extra_keys,
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
