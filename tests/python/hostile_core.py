"""Every callable of `llmd.hash`, `events`, `index` and `worker` that takes arguments: what each of them wants."""

import llmd.events as le
import llmd.hash as lh
import llmd.index as li
import llmd.worker as lw
from hostile import (
    BLOCK, BYTES, BYTES_OR_TEXT, COUNT, FLAG, I64, KEY, KEYS, LIST, NUMBER, OBJECT, OPTIONAL_BYTES, OPTIONAL_LIST,
    OPTIONAL_NUMBER, OPTIONAL_OBJECT, OPTIONAL_TEXT, TEXT, TEXTS, TOKENS, U16, U32, U64, case, integer, of, optional,
)  # fmt: skip

HASHER = lh.VllmHasher(block_size=2, none_hash=b"\1" * 32)
EXTRAS = lh.RequestExtras(lora_name="a")
DIGEST = bytes(32)


def of_holder(method, make=li.PrefixIndex):
    """A method of an index that has a holder, which is the argument unless another one is given."""

    def call(**arguments):
        index = make()
        return getattr(index, method)(**{"holder": index.add_holder("a:1"), **arguments})

    return call


def of_publisher(method):
    def call(**arguments):
        feed = li.KvEventIngestor(li.PrefixIndex())
        return getattr(feed, method)(**{"publisher": feed.add_publisher("a:1", model="m"), **arguments})

    return call


def manager():
    return lw.KvCacheManager(num_blocks=10, block_size=2)


def block_pool():
    return lw.BlockPool(num_blocks=10, block_size=2)


def event_with(**fields):
    event = le.block_stored([1], block_size=2, tokens=[1, 2])
    for name, value in fields.items():
        setattr(event, name, value)
    le.encode([event], timestamp=0.0)


def extras_with(**fields):
    return lh.request_extra_keys(lh.RequestExtras(**fields), block_size=2, count=2)


def request():
    return lw.Request(1, [1, 2, 3], hasher=HASHER)


# fmt: off
CASES = [
    case("VllmHasher", lh.VllmHasher, algorithm=("sha256", TEXT), block_size=(2, BLOCK),
         seed=("0", OPTIONAL_TEXT)),
    case("VllmHasher", lh.VllmHasher, none_hash=(DIGEST, OPTIONAL_BYTES)),
    case("hash_blocks", HASHER.hash_blocks, tokens=([1, 2], TOKENS),
         parent=(DIGEST, OPTIONAL_BYTES), extra_keys=([None], OPTIONAL_LIST)),
    case("block_keys", HASHER.block_keys, tokens=([1, 2], TOKENS), parent=(DIGEST, OPTIONAL_BYTES),
         extra_keys=([None], OPTIONAL_LIST)),
    case("hash_block", HASHER.hash_block, tokens=([1, 2], TOKENS), parent=(DIGEST, OPTIONAL_BYTES),
         extra_keys=(None, OPTIONAL_LIST)),
    case("preimage", HASHER.preimage, tokens=([1, 2], TOKENS), parent=(DIGEST, OPTIONAL_BYTES)),
    case("VllmChain", lh.VllmChain, hasher=(HASHER, OBJECT), style=("bare", TEXT)),
    case("VllmChain.extend", of(lambda: lh.VllmChain(HASHER), "extend"), tokens=([1, 2], TOKENS)),
    case("RequestExtras", extras_with, lora_name=("a", TEXT), lora_path=("a", TEXT),
         cache_salt=("a", TEXT), lora_int_id=(1, I64)),
    case("request_extra_keys", lh.request_extra_keys, extras=(EXTRAS, OPTIONAL_OBJECT),
         block_size=(2, BLOCK), count=(2, COUNT), style=("bare", TEXT)),
    case("extra_strings", lh.extra_strings, extras=(EXTRAS, OPTIONAL_OBJECT), block_size=(2, BLOCK),
         count=(2, COUNT)),
    case("low64", lh.low64, digest=(DIGEST, BYTES)),
    case("first64", lh.first64, digest=(DIGEST, BYTES)),
    case("pool_key", lh.pool_key, digest=(DIGEST, BYTES), group_id=(1, U32)),
    case("parse_pool_key", lh.parse_pool_key, key=(DIGEST + bytes(4), BYTES)),
    case("group_digests", lh.group_digests, digests=([DIGEST], LIST), factor=(1, BLOCK)),
    case("RequestKeyHasher", lh.RequestKeyHasher, algorithm=("xxh64", TEXT), seed=("", TEXT),
         block_size=(2, BLOCK)),
    case("RequestKeyHasher.root", of(lh.RequestKeyHasher, "root"), model_or_lora=("m", TEXT)),
    case("RequestKeyHasher.hash_blocks", of(lh.RequestKeyHasher, "hash_blocks"),
         tokens=([1], TOKENS), parent=(1, KEY), extra=([["a"]], OPTIONAL_LIST)),
    case("content_keys", lh.content_keys, tokens=([1], TOKENS), block_size=(2, BLOCK),
         cache_salt=("", TEXT), items=([], LIST)),
    case("approx_prefix_keys", lh.approx_prefix_keys, tokens=([1], TOKENS), model=("m", TEXT),
         cache_salt=("", TEXT), block_size=(2, BLOCK), max_prefix_tokens=(9, integer(0, 2**40)),
         max_prefix_blocks=(9, integer(0, 2**40))),
    case("gaie_prefix_keys", lh.gaie_prefix_keys, prompt=(b"a", BYTES_OR_TEXT), model=("m", TEXT),
         cache_salt=("", TEXT), block_bytes=(64, BLOCK), max_blocks=(2, integer(0, 2**40))),
    case("estimate_tokens", lh.estimate_tokens, parts=(["a"], TEXTS)),
    case("dynamo_local_seed", lh.dynamo_local_seed, lora_name=("", TEXT),
         cache_namespace=("", TEXT)),
    case("dynamo_local_hashes", lh.dynamo_local_hashes, tokens=([1], TOKENS), block_size=(2, BLOCK),
         seed=(1, KEY), eagle=(False, FLAG)),
    case("dynamo_sequence_hashes", lh.dynamo_sequence_hashes, local=([1], KEYS),
         parent=(1, optional(KEY)), seed=(1, KEY)),
    case("sglang_page_hashes", lh.sglang_page_hashes, tokens=([1], TOKENS), page_size=(1, BLOCK),
         parent=(DIGEST, OPTIONAL_BYTES), bigram=(False, FLAG)),
    case("lmcache_hasher", lh.lmcache_hasher, algorithm=("sha256_cbor", TEXT),
         seed=("0", OPTIONAL_TEXT)),
    case("lmcache_chunk_hashes", lh.lmcache_chunk_hashes, hasher=(HASHER, OBJECT),
         tokens=([1], TOKENS), save_unfull_chunk=(True, FLAG)),
    case("trtllm_salt_id", lh.trtllm_salt_id, cache_salt=("a", TEXT)),
    case("trtllm_v1_keys", lh.trtllm_v1_keys, tokens=([1], TOKENS), tokens_per_block=(1, BLOCK),
         parent=(0, KEY), lora_task_id=(1, optional(KEY)), salt_id=(1, optional(KEY))),
    case("trtllm_v2_digests", lh.trtllm_v2_digests, tokens=([1], TOKENS),
         tokens_per_block=(1, BLOCK), parent=(DIGEST, OPTIONAL_BYTES)),
    case("probe", lh.probe, tokens=([1, 2], TOKENS), hashes=([1], LIST), block_size=(2, BLOCK),
         extras=(None, OPTIONAL_OBJECT), event_extra_keys=((), LIST), first_block=(0, COUNT),
         seeds=((), TEXTS), none_hashes=((), LIST), models=((), TEXTS)),
    case("block_stored", lambda **a: le.block_stored(block_size=2, **a), hashes=([1], LIST),
         tokens=([1, 2], LIST)),
    case("encode", le.encode, events=([], LIST), timestamp=(0.0, NUMBER), schema=("map", TEXT),
         data_parallel_rank=(0, optional(U32))),
    case("Event", event_with, parent=(1, optional(KEY)),
         lora_id=(1, optional(I64)), group_idx=(1, optional(U32)),
         sliding_window=(1, optional(U32)), first_block=(1, optional(integer(0, 2**63-1))),
         parent_bytes=(b"", BYTES), extra_keys=((), LIST)),
    case("Event", event_with, hashes=([1], KEYS), tokens=([1, 2], TOKENS),
         bigram_tokens=([], TOKENS), block_size=(2, U32)),
    case("decode", le.decode, payload=(le.encode([], timestamp=0), BYTES),
         zero_parent_is_root=(True, FLAG), max_payload_bytes=(100, integer(1, 2**32))),
    case("parse_live_message", le.parse_live_message, frames=([b"t", bytes(8), b""], LIST)),
    case("parse_replay_message", le.parse_replay_message,
         frames=([b"", b"t", bytes(8), b""], LIST)),
    case("encode_seq", le.encode_seq, seq=(1, U64)),
    case("parse_topic", le.parse_topic, topic=("a", TEXT)),
    case("make_topic", le.make_topic, pod=("a", TEXT), model=("a", TEXT)),
    case("is_pseudo_pod", le.is_pseudo_pod, pod=("a", TEXT)),
    case("PublisherStream", le.PublisherStream, mode=("strict", TEXT), replay=(True, FLAG),
         replay_deadline=(1.0, NUMBER), idle_timeout=(1.0, NUMBER), retry_backoff=(1.0, NUMBER),
         cooldown=(1.0, NUMBER), max_attempts_without_progress=(1, integer(1, 2**30)),
         max_held_bytes=(1, integer(0, 2**46))),
    case("on_live", of(le.PublisherStream, "on_live"), now=(0.0, NUMBER), seq=(1, U64),
         payload=(b"", BYTES)),
    case("on_replay_batch", of(le.PublisherStream, "on_replay_batch"), now=(0.0, NUMBER),
         request=(1, U64), seq=(1, U64), payload=(b"", BYTES)),
    case("on_replay_failed", of(le.PublisherStream, "on_replay_failed"), now=(0.0, NUMBER),
         request=(1, U64), malformed=(True, FLAG)),
    case("on_replay_end", of(le.PublisherStream, "on_replay_end"), now=(0.0, NUMBER),
         request=(1, U64)),
    case("tick", of(le.PublisherStream, "tick"), now=(0.0, NUMBER)),
    case("on_connected", of(le.PublisherStream, "on_connected"), now=(0.0, NUMBER)),
    case("make_namespace", li.make_namespace, model=("m", TEXT), lora=("", TEXT),
         cache_salt=("", TEXT), block_size=(2, BLOCK)),
    case("request_namespace", li.request_namespace, model=("m", TEXT), lora=("", TEXT),
         block_size=(2, BLOCK)),
    case("PrefixIndex", li.PrefixIndex, max_bytes=(1 << 20, integer(2**20, 2**46)),
         max_holders=(1, integer(1, 65535))),
    case("add_holder", of(li.PrefixIndex, "add_holder"), endpoint=("a", TEXT),
         dp_rank=(0, optional(U32)), tier=("gpu", TEXT), removal=("set", TEXT), key_space=(0, U32)),
    case("find_holder", of(li.PrefixIndex, "find_holder"), endpoint=("a", TEXT),
         dp_rank=(0, optional(U32)), tier=("gpu", TEXT)),
    case("store", of_holder("store"), holder=(li.HolderId(0, 0), OBJECT),
         ns=(li.make_namespace("m"), OBJECT), engine_keys=([1], KEYS), content_keys=([1], KEYS),
         parent=(None, optional(KEY)), peers=((), LIST)),
    case("store_known", of_holder("store_known"),
         holder=(li.HolderId(0, 0), OBJECT), engine_keys=([1], KEYS), peers=((), LIST)),
    case("remove", of_holder("remove"), holder=(li.HolderId(0, 0), OBJECT),
         engine_keys=([1], KEYS)),
    case("clear", of_holder("clear"), holder=(li.HolderId(0, 0), OBJECT)),
    case("retire", of_holder("retire"), holder=(li.HolderId(0, 0), OBJECT)),
    case("match", of(li.PrefixIndex, "match"), ns=(li.make_namespace("m"), OBJECT),
         chain=([1], KEYS)),
    case("by_endpoint", of(li.PrefixIndex, "by_endpoint"),
         match=(li.PrefixIndex().match(li.make_namespace("m"), []), OBJECT),
         tier=(None, OPTIONAL_TEXT)),
    case("restore", li.PrefixIndex.restore, snapshot=(li.PrefixIndex().snapshot(), BYTES),
         max_bytes=(1 << 20, integer(2**20, 2**46))),
    case("NamespaceId", lambda hi, lo: li.NamespaceId(hi, lo), hi=(1, KEY), lo=(1, KEY)),
    case("HolderId", lambda slot, generation: li.HolderId(slot, generation), slot=(1, U16),
         generation=(1, U32)),
    case("ApproxIndex", li.ApproxIndex, capacity_blocks=(1, integer(1, 2**46)),
         ttl=(1.0, OPTIONAL_NUMBER), max_bytes=(1 << 20, integer(2**20, 2**46)),
         max_holders=(1, integer(1, 65535))),
    case("ApproxIndex.add_holder", of(li.ApproxIndex, "add_holder"), endpoint=("a", TEXT),
         capacity_blocks=(0, integer(0, 2**46))),
    case("predict", of_holder("predict", li.ApproxIndex), holder=(li.HolderId(0, 0), OBJECT),
         ns=(li.make_namespace("m"), OBJECT), chain=([1], KEYS), now=(0.0, NUMBER)),
    case("expire", of(li.ApproxIndex, "expire"), now=(0.0, NUMBER)),
    case("ApproxIndex.match", of(li.ApproxIndex, "match"), ns=(li.make_namespace("m"), OBJECT),
         chain=([1], KEYS)),
    case("ApproxIndex.size", of(li.ApproxIndex, "size"), holder=(li.HolderId(0, 0), OBJECT)),
    case("KvEventIngestor", li.KvEventIngestor, index=(li.PrefixIndex(), OBJECT),
         max_orphan_blocks=(0, COUNT), max_publishers=(1, integer(1, 2**24))),
    case("add_publisher", of(lambda: li.KvEventIngestor(li.PrefixIndex()), "add_publisher"),
         endpoint=("a", TEXT), model=("m", TEXT)),
    case("apply", of_publisher("apply"), publisher=(1, U64),
         payload=(le.encode([], timestamp=0), BYTES)),
    case("KvEventIngestor.clear", of_publisher("clear"), publisher=(1, U64)),
    case("remove_publisher", of_publisher("remove_publisher"), publisher=(1, U64)),
    case("worker.Request", lw.Request, id=(1, U64), tokens=([1], TOKENS),
         hasher=(HASHER, OPTIONAL_OBJECT), extras=(EXTRAS, OPTIONAL_OBJECT), style=("bare", TEXT),
         lora_id=(1, optional(I64)), skip_reading_prefix_cache=(False, FLAG)),
    case("append", of(request, "append"), tokens=([1], TOKENS)),
    case("num_computed_tokens",
         lambda num_computed_tokens: setattr(request(), "num_computed_tokens", num_computed_tokens),
         num_computed_tokens=(1, U32)),
    case("status", lambda status: setattr(request(), "status", status), status=("running", TEXT)),
    case("BlockPool", lw.BlockPool, num_blocks=(2, integer(2, 2**28)), block_size=(2, BLOCK),
         enable_caching=(True, FLAG), enable_events=(True, FLAG),
         max_event_bytes=(0, integer(0, 2**46))),
    case("get_new_blocks", of(block_pool, "get_new_blocks"), n=(1, integer(0, 2**32-1))),
    case("find", of(block_pool, "find"), digest=(DIGEST, BYTES), group_id=(0, U32)),
    case("touch", of(block_pool, "touch"), blocks=([], TOKENS)),
    case("free_blocks", of(block_pool, "free_blocks"), blocks=([], TOKENS)),
    case("evict_blocks", of(block_pool, "evict_blocks"), blocks=([], TOKENS)),
    case("block_state", of(block_pool, "block_state"), block=(1, integer(0, 9))),
    case("cache_full_blocks", of(block_pool, "cache_full_blocks"), request=(request(), OBJECT),
         table=([], TOKENS), num_cached=(0, U32), num_full=(0, U32), group_id=(0, U32)),
    case("take_events", of(block_pool, "take_events"), full_digests=(False, FLAG),
         medium=("GPU", TEXT)),
    case("take_event_batch", of(block_pool, "take_event_batch"), timestamp=(0.0, NUMBER),
         schema=("map", TEXT), full_digests=(False, FLAG), data_parallel_rank=(0, optional(U32)),
         medium=("GPU", TEXT)),
    case("KvCacheManager", lw.KvCacheManager, num_blocks=(2, integer(2, 2**28)),
         block_size=(2, BLOCK), enable_caching=(True, FLAG), enable_events=(True, FLAG),
         group_id=(0, U32), max_model_len=(1, optional(integer(1, 2**32-1))),
         watermark=(0.0, NUMBER)),
    case("allocate_slots", of(manager, "allocate_slots"), request=(request(), OBJECT),
         num_new_tokens=(1, integer(1, 2**32-1)), hit=(None, OPTIONAL_OBJECT),
         num_external_computed_tokens=(0, U32), num_lookahead_tokens=(0, U32),
         reserved_blocks=(0, U32), delay_cache_blocks=(False, FLAG),
         full_sequence_must_fit=(False, FLAG), has_scheduled_requests=(False, FLAG)),
    case("get_computed_blocks", of(manager, "get_computed_blocks"), request=(request(), OBJECT)),
    case("commit_remote_load", of(manager, "commit_remote_load"), request=(request(), OBJECT),
         num_loaded_tokens=(0, U32)),
    case("free", of(manager, "free"), request=(1, U64)),
    case("block_table", of(manager, "block_table"), request=(1, U64)),
    case("preempt", of(manager, "preempt"), request=(request(), OBJECT)),
]
