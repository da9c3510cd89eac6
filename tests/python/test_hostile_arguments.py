"""Bad arguments of every public callable: an exception that names the argument, never anything else."""

import array
import ctypes
import gc
import threading

import llmd
import llmd.events as le
import llmd.gateway as lg
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import llmd.worker as lw
import numpy as np
import pytest
from hostile import bad_values

U16, U32, U64 = "integer 0 .. 2**16-1", "integer 0 .. 2**32-1", "integer 0 .. 2**64-1"
KEY = "integer -2**63 .. 2**64-1"
BLOCK, COUNT = "integer 1 .. 2**20", "integer 0 .. 2**24"

HASHER = lh.VllmHasher(block_size=2, none_hash=b"\1" * 32)
EXTRAS = lh.RequestExtras(lora_name="a")
DIGEST = bytes(32)


def index():
    made = li.PrefixIndex()
    return made, made.add_holder("a:1"), li.make_namespace("m")


def prefix_index(method):
    def call(**arguments):
        made, holder, ns = index()
        return getattr(made, method)(**{"holder": holder, "ns": ns, **arguments})

    return call


def approx_index(method):
    def call(**arguments):
        made = li.ApproxIndex()
        holder = made.add_holder("a:1")
        return getattr(made, method)(**{"holder": holder, "ns": li.make_namespace("m"), **arguments})

    return call


def of(make, method):
    return lambda **arguments: getattr(make(), method)(**arguments)


def pool():
    made = ls.EndpointPool()
    return made, made.add("a", "10.0.0.1", 8000)


def of_pool(method):
    def call(**arguments):
        made, handle = pool()
        return getattr(made, method)(**{"endpoint": handle, **arguments})

    return call


def schedule(**arguments):
    made, _ = pool()
    scheduler = ls.Scheduler(ls.make_config(["queue-scorer"]))
    return scheduler.schedule(**{"request": ls.Request("m"), "pool": made, **arguments})


def flight():
    made, _ = pool()
    return ls.Scheduler(ls.make_config(["queue-scorer"])).schedule(ls.Request("m"), made).dispatch()


def publisher(method):
    def call(**arguments):
        feed = li.KvEventIngestor(li.PrefixIndex())
        return getattr(feed, method)(**{"publisher": feed.add_publisher("a:1", model="m"), **arguments})

    return call


def manager():
    return lw.KvCacheManager(num_blocks=10, block_size=2)


def block_pool():
    return lw.BlockPool(num_blocks=10, block_size=2)


def event_with(**fields):
    le.encode([le.block_stored([1], block_size=2, tokens=[1, 2], **fields)], timestamp=0.0)


def event_set(**fields):
    event = le.block_stored([1], block_size=2, tokens=[1, 2])
    for name, value in fields.items():
        setattr(event, name, value)
    le.encode([event], timestamp=0.0)


def extras_with(**fields):
    return lh.request_extra_keys(lh.RequestExtras(**fields), block_size=2, count=2)


def request():
    return lw.Request(1, [1, 2, 3], hasher=HASHER)


RING = lg.RingHash(["a", "b"])
STREAM = lambda: lg.ExtProcStream()  # noqa: E731: a constructor

# Name, callable, and for each argument a good value and what it wants.
CALLS = [
    ("VllmHasher", lh.VllmHasher, {"algorithm": ("sha256", "text"), "block_size": (2, BLOCK), "seed": ("0", "optional text")}),
    ("VllmHasher", lh.VllmHasher, {"none_hash": (DIGEST, "optional bytes")}),
    ("hash_blocks", HASHER.hash_blocks, {"tokens": ([1, 2], "tokens"), "parent": (DIGEST, "optional bytes"), "extra_keys": ([None], "optional list")}),
    ("block_keys", HASHER.block_keys, {"tokens": ([1, 2], "tokens"), "parent": (DIGEST, "optional bytes"), "extra_keys": ([None], "optional list")}),
    ("hash_block", HASHER.hash_block, {"tokens": ([1, 2], "tokens"), "parent": (DIGEST, "optional bytes"), "extra_keys": (None, "optional list")}),
    ("preimage", HASHER.preimage, {"tokens": ([1, 2], "tokens"), "parent": (DIGEST, "optional bytes")}),
    ("VllmChain", lh.VllmChain, {"hasher": (HASHER, "object"), "style": ("bare", "text")}),
    ("VllmChain.extend", of(lambda: lh.VllmChain(HASHER), "extend"), {"tokens": ([1, 2], "tokens")}),
    ("RequestExtras", extras_with, {"lora_name": ("a", "text"), "lora_path": ("a", "text"), "cache_salt": ("a", "text"), "lora_int_id": (1, "integer -2**63 .. 2**63-1")}),
    ("request_extra_keys", lh.request_extra_keys, {"extras": (EXTRAS, "optional object"), "block_size": (2, BLOCK), "count": (2, COUNT), "style": ("bare", "text")}),
    ("extra_strings", lh.extra_strings, {"extras": (EXTRAS, "optional object"), "block_size": (2, BLOCK), "count": (2, COUNT)}),
    ("low64", lh.low64, {"digest": (DIGEST, "bytes")}),
    ("first64", lh.first64, {"digest": (DIGEST, "bytes")}),
    ("pool_key", lh.pool_key, {"digest": (DIGEST, "bytes"), "group_id": (1, U32)}),
    ("parse_pool_key", lh.parse_pool_key, {"key": (DIGEST + bytes(4), "bytes")}),
    ("group_digests", lh.group_digests, {"digests": ([DIGEST], "list"), "factor": (1, BLOCK)}),
    ("RequestKeyHasher", lh.RequestKeyHasher, {"algorithm": ("xxh64", "text"), "seed": ("", "text"), "block_size": (2, BLOCK)}),
    ("RequestKeyHasher.root", of(lh.RequestKeyHasher, "root"), {"model_or_lora": ("m", "text")}),
    ("RequestKeyHasher.hash_blocks", of(lh.RequestKeyHasher, "hash_blocks"), {"tokens": ([1], "tokens"), "parent": (1, KEY), "extra": ([["a"]], "optional list")}),
    ("content_keys", lh.content_keys, {"tokens": ([1], "tokens"), "block_size": (2, BLOCK), "cache_salt": ("", "text"), "items": ([], "list")}),
    ("approx_prefix_keys", lh.approx_prefix_keys, {"tokens": ([1], "tokens"), "model": ("m", "text"), "cache_salt": ("", "text"), "block_size": (2, BLOCK), "max_prefix_tokens": (9, "integer 0 .. 2**40"), "max_prefix_blocks": (9, "integer 0 .. 2**40")}),
    ("gaie_prefix_keys", lh.gaie_prefix_keys, {"prompt": (b"a", "bytes or text"), "model": ("m", "text"), "cache_salt": ("", "text"), "block_bytes": (64, BLOCK), "max_blocks": (2, "integer 0 .. 2**40")}),
    ("estimate_tokens", lh.estimate_tokens, {"parts": (["a"], "texts")}),
    ("dynamo_local_seed", lh.dynamo_local_seed, {"lora_name": ("", "text"), "cache_namespace": ("", "text")}),
    ("dynamo_local_hashes", lh.dynamo_local_hashes, {"tokens": ([1], "tokens"), "block_size": (2, BLOCK), "seed": (1, KEY), "eagle": (False, "bool")}),
    ("dynamo_sequence_hashes", lh.dynamo_sequence_hashes, {"local": ([1], "keys"), "parent": (1, "optional " + KEY), "seed": (1, KEY)}),
    ("sglang_page_hashes", lh.sglang_page_hashes, {"tokens": ([1], "tokens"), "page_size": (1, BLOCK), "parent": (DIGEST, "optional bytes"), "bigram": (False, "bool")}),
    ("lmcache_hasher", lh.lmcache_hasher, {"algorithm": ("sha256_cbor", "text"), "seed": ("0", "optional text")}),
    ("lmcache_chunk_hashes", lh.lmcache_chunk_hashes, {"hasher": (HASHER, "object"), "tokens": ([1], "tokens"), "save_unfull_chunk": (True, "bool")}),
    ("trtllm_salt_id", lh.trtllm_salt_id, {"cache_salt": ("a", "text")}),
    ("trtllm_v1_keys", lh.trtllm_v1_keys, {"tokens": ([1], "tokens"), "tokens_per_block": (1, BLOCK), "parent": (0, KEY), "lora_task_id": (1, "optional " + KEY), "salt_id": (1, "optional " + KEY)}),
    ("trtllm_v2_digests", lh.trtllm_v2_digests, {"tokens": ([1], "tokens"), "tokens_per_block": (1, BLOCK), "parent": (DIGEST, "optional bytes")}),
    ("probe", lh.probe, {"tokens": ([1, 2], "tokens"), "hashes": ([1], "list"), "block_size": (2, BLOCK), "extras": (None, "optional object"), "event_extra_keys": ((), "list"), "first_block": (0, COUNT), "seeds": ((), "texts"), "none_hashes": ((), "list"), "models": ((), "texts")}),
    ("block_stored", lambda **a: le.block_stored(block_size=2, **a), {"hashes": ([1], "list"), "tokens": ([1, 2], "list")}),
    ("encode", le.encode, {"events": ([], "list"), "timestamp": (0.0, "number"), "schema": ("map", "text"), "data_parallel_rank": (0, "optional " + U32)}),
    ("Event", event_with, {"parent": (1, "optional " + KEY), "lora_id": (1, "optional integer -2**63 .. 2**63-1"), "group_idx": (1, "optional " + U32), "sliding_window": (1, "optional " + U32), "first_block": (1, "optional integer 0 .. 2**63-1"), "parent_bytes": (b"", "bytes"), "extra_keys": ((), "list")}),
    ("Event", event_set, {"hashes": ([1], "keys"), "tokens": ([1, 2], "tokens"), "bigram_tokens": ([], "tokens"), "block_size": (2, U32)}),
    ("decode", le.decode, {"payload": (le.encode([], timestamp=0), "bytes"), "zero_parent_is_root": (True, "bool"), "max_payload_bytes": (100, "integer 1 .. 2**32")}),
    ("parse_live_message", le.parse_live_message, {"frames": ([b"t", bytes(8), b""], "list")}),
    ("parse_replay_message", le.parse_replay_message, {"frames": ([b"", b"t", bytes(8), b""], "list")}),
    ("encode_seq", le.encode_seq, {"seq": (1, U64)}),
    ("parse_topic", le.parse_topic, {"topic": ("a", "text")}),
    ("make_topic", le.make_topic, {"pod": ("a", "text"), "model": ("a", "text")}),
    ("is_pseudo_pod", le.is_pseudo_pod, {"pod": ("a", "text")}),
    ("PublisherStream", le.PublisherStream, {"mode": ("strict", "text"), "replay": (True, "bool"), "replay_deadline": (1.0, "number"), "idle_timeout": (1.0, "number"), "retry_backoff": (1.0, "number"), "cooldown": (1.0, "number"), "max_attempts_without_progress": (1, "integer 1 .. 2**30"), "max_held_bytes": (1, "integer 0 .. 2**46")}),
    ("on_live", of(le.PublisherStream, "on_live"), {"now": (0.0, "number"), "seq": (1, U64), "payload": (b"", "bytes")}),
    ("on_replay_batch", of(le.PublisherStream, "on_replay_batch"), {"now": (0.0, "number"), "request": (1, U64), "seq": (1, U64), "payload": (b"", "bytes")}),
    ("on_replay_failed", of(le.PublisherStream, "on_replay_failed"), {"now": (0.0, "number"), "request": (1, U64), "malformed": (True, "bool")}),
    ("on_replay_end", of(le.PublisherStream, "on_replay_end"), {"now": (0.0, "number"), "request": (1, U64)}),
    ("tick", of(le.PublisherStream, "tick"), {"now": (0.0, "number")}),
    ("on_connected", of(le.PublisherStream, "on_connected"), {"now": (0.0, "number")}),
    ("make_namespace", li.make_namespace, {"model": ("m", "text"), "lora": ("", "text"), "cache_salt": ("", "text"), "block_size": (2, BLOCK)}),
    ("request_namespace", li.request_namespace, {"model": ("m", "text"), "lora": ("", "text"), "block_size": (2, BLOCK)}),
    ("PrefixIndex", li.PrefixIndex, {"max_bytes": (1 << 20, "integer 2**20 .. 2**46"), "max_holders": (1, "integer 1 .. 65535")}),
    ("add_holder", of(li.PrefixIndex, "add_holder"), {"endpoint": ("a", "text"), "dp_rank": (0, "optional " + U32), "tier": ("gpu", "text"), "removal": ("set", "text"), "key_space": (0, U32)}),
    ("find_holder", of(li.PrefixIndex, "find_holder"), {"endpoint": ("a", "text"), "dp_rank": (0, "optional " + U32), "tier": ("gpu", "text")}),
    ("store", prefix_index("store"), {"holder": (li.HolderId(0, 0), "object"), "ns": (li.make_namespace("m"), "object"), "engine_keys": ([1], "keys"), "content_keys": ([1], "keys"), "parent": (None, "optional " + KEY), "peers": ((), "list")}),
    ("store_known", lambda **a: call_without_ns("store_known", a), {"holder": (li.HolderId(0, 0), "object"), "engine_keys": ([1], "keys"), "peers": ((), "list")}),
    ("remove", lambda **a: call_without_ns("remove", a), {"holder": (li.HolderId(0, 0), "object"), "engine_keys": ([1], "keys")}),
    ("clear", lambda **a: call_without_ns("clear", a), {"holder": (li.HolderId(0, 0), "object")}),
    ("retire", lambda **a: call_without_ns("retire", a), {"holder": (li.HolderId(0, 0), "object")}),
    ("match", of(li.PrefixIndex, "match"), {"ns": (li.make_namespace("m"), "object"), "chain": ([1], "keys")}),
    ("by_endpoint", of(li.PrefixIndex, "by_endpoint"), {"match": (li.PrefixIndex().match(li.make_namespace("m"), []), "object"), "tier": (None, "optional text")}),
    ("restore", li.PrefixIndex.restore, {"snapshot": (li.PrefixIndex().snapshot(), "bytes"), "max_bytes": (1 << 20, "integer 2**20 .. 2**46")}),
    ("NamespaceId", lambda hi, lo: li.NamespaceId(hi, lo), {"hi": (1, KEY), "lo": (1, KEY)}),
    ("HolderId", lambda slot, generation: li.HolderId(slot, generation), {"slot": (1, U16), "generation": (1, U32)}),
    ("ApproxIndex", li.ApproxIndex, {"capacity_blocks": (1, "integer 1 .. 2**46"), "ttl": (1.0, "optional number"), "max_bytes": (1 << 20, "integer 2**20 .. 2**46"), "max_holders": (1, "integer 1 .. 65535")}),
    ("ApproxIndex.add_holder", of(li.ApproxIndex, "add_holder"), {"endpoint": ("a", "text"), "capacity_blocks": (0, "integer 0 .. 2**46")}),
    ("predict", approx_index("predict"), {"holder": (li.HolderId(0, 0), "object"), "ns": (li.make_namespace("m"), "object"), "chain": ([1], "keys"), "now": (0.0, "number")}),
    ("expire", of(li.ApproxIndex, "expire"), {"now": (0.0, "number")}),
    ("ApproxIndex.match", of(li.ApproxIndex, "match"), {"ns": (li.make_namespace("m"), "object"), "chain": ([1], "keys")}),
    ("ApproxIndex.size", of(li.ApproxIndex, "size"), {"holder": (li.HolderId(0, 0), "object")}),
    ("KvEventIngestor", li.KvEventIngestor, {"index": (li.PrefixIndex(), "object"), "max_orphan_blocks": (0, COUNT), "max_publishers": (1, "integer 1 .. 2**24")}),
    ("add_publisher", of(lambda: li.KvEventIngestor(li.PrefixIndex()), "add_publisher"), {"endpoint": ("a", "text"), "model": ("m", "text")}),
    ("apply", publisher("apply"), {"publisher": (1, U64), "payload": (le.encode([], timestamp=0), "bytes")}),
    ("KvEventIngestor.clear", publisher("clear"), {"publisher": (1, U64)}),
    ("remove_publisher", publisher("remove_publisher"), {"publisher": (1, U64)}),
    ("worker.Request", lw.Request, {"id": (1, U64), "tokens": ([1], "tokens"), "hasher": (HASHER, "optional object"), "extras": (EXTRAS, "optional object"), "style": ("bare", "text"), "lora_id": (1, "optional integer -2**63 .. 2**63-1"), "skip_reading_prefix_cache": (False, "bool")}),
    ("append", of(request, "append"), {"tokens": ([1], "tokens")}),
    ("num_computed_tokens", lambda num_computed_tokens: setattr(request(), "num_computed_tokens", num_computed_tokens), {"num_computed_tokens": (1, U32)}),
    ("status", lambda status: setattr(request(), "status", status), {"status": ("running", "text")}),
    ("BlockPool", lw.BlockPool, {"num_blocks": (2, "integer 2 .. 2**28"), "block_size": (2, BLOCK), "enable_caching": (True, "bool"), "enable_events": (True, "bool"), "max_event_bytes": (0, "integer 0 .. 2**46")}),
    ("get_new_blocks", of(block_pool, "get_new_blocks"), {"n": (1, "integer 0 .. 2**32-1")}),
    ("find", of(block_pool, "find"), {"digest": (DIGEST, "bytes"), "group_id": (0, U32)}),
    ("touch", of(block_pool, "touch"), {"blocks": ([], "tokens")}),
    ("free_blocks", of(block_pool, "free_blocks"), {"blocks": ([], "tokens")}),
    ("evict_blocks", of(block_pool, "evict_blocks"), {"blocks": ([], "tokens")}),
    ("block_state", of(block_pool, "block_state"), {"block": (1, "integer 0 .. 9")}),
    ("cache_full_blocks", of(block_pool, "cache_full_blocks"), {"request": (request(), "object"), "table": ([], "tokens"), "num_cached": (0, U32), "num_full": (0, U32), "group_id": (0, U32)}),
    ("take_events", of(block_pool, "take_events"), {"full_digests": (False, "bool"), "medium": ("GPU", "text")}),
    ("take_event_batch", of(block_pool, "take_event_batch"), {"timestamp": (0.0, "number"), "schema": ("map", "text"), "full_digests": (False, "bool"), "data_parallel_rank": (0, "optional " + U32), "medium": ("GPU", "text")}),
    ("KvCacheManager", lw.KvCacheManager, {"num_blocks": (2, "integer 2 .. 2**28"), "block_size": (2, BLOCK), "enable_caching": (True, "bool"), "enable_events": (True, "bool"), "group_id": (0, U32), "max_model_len": (1, "optional integer 1 .. 2**32-1"), "watermark": (0.0, "number")}),
    ("allocate_slots", of(manager, "allocate_slots"), {"request": (request(), "object"), "num_new_tokens": (1, "integer 1 .. 2**32-1"), "hit": (None, "optional object"), "num_external_computed_tokens": (0, U32), "num_lookahead_tokens": (0, U32), "reserved_blocks": (0, U32), "delay_cache_blocks": (False, "bool"), "full_sequence_must_fit": (False, "bool"), "has_scheduled_requests": (False, "bool")}),
    ("get_computed_blocks", of(manager, "get_computed_blocks"), {"request": (request(), "object")}),
    ("commit_remote_load", of(manager, "commit_remote_load"), {"request": (request(), "object"), "num_loaded_tokens": (0, U32)}),
    ("free", of(manager, "free"), {"request": (1, U64)}),
    ("block_table", of(manager, "block_table"), {"request": (1, U64)}),
    ("preempt", of(manager, "preempt"), {"request": (request(), "object")}),
    ("EndpointPool.add", of(ls.EndpointPool, "add"), {"name": ("a", "text"), "address": ("h", "text"), "port": (1, "integer 1 .. 65535"), "namespace": ("n", "text"), "labels": ({"a": "b"}, "mapping"), "node_address": ("", "text"), "rank": (0, U32)}),
    ("EndpointPool.remove", of(ls.EndpointPool, "remove"), {"endpoint": (ls.EndpointHandle(0, 1), "object")}),
    ("set_metrics", of_pool("set_metrics"), {"endpoint": (ls.EndpointHandle(0, 1), "object"), "waiting": (1, "optional integer 0 .. 2**63-1"), "running": (1, "optional integer 0 .. 2**63-1"), "kv_usage": (0.5, "optional number"), "max_adapters": (1, "optional integer -2**63 .. 2**63-1"), "active_adapters": ((), "texts"), "waiting_adapters": ((), "texts"), "cache_block_size": (1, "optional " + U32), "cache_num_blocks": (1, "optional " + U64), "at": (0.0, "optional number")}),
    ("set_attribute", of_pool("set_attribute"), {"endpoint": (ls.EndpointHandle(0, 1), "object"), "name": ("a", "text"), "value": (1.0, "number"), "at": (0.0, "optional number")}),
    ("bind_holder", of_pool("bind_holder"), {"holder": ((0, 1), "object"), "endpoint": (ls.EndpointHandle(0, 1), "object"), "source": (0, "integer 0 .. 7"), "tier": ("gpu", "text")}),
    ("unbind_holder", of(ls.EndpointPool, "unbind_holder"), {"holder": ((0, 1), "object"), "source": (0, "integer 0 .. 7")}),
    ("bind_index", of(ls.EndpointPool, "bind_index"), {"index": (li.PrefixIndex(), "object"), "source": (0, "integer 0 .. 7")}),
    ("EndpointHandle", ls.EndpointHandle, {"slot": (0, U32), "generation": (1, U32)}),
    ("Prompt", ls.Prompt, {"tokens": ([1], "optional tokens"), "token_count": (0, U64), "chains": ((), "list"), "items": ((), "list")}),
    ("KeyChain", lambda namespace, block_size, keys: ls.Prompt(chains=[ls.KeyChain(namespace, block_size, keys)]), {"namespace": (li.NamespaceId(1, 1), "object"), "block_size": (1, "integer 1 .. 2**32-1"), "keys": ([1], "keys")}),
    ("sched.Request", ls.Request, {"model": ("m", "text"), "prompts": ((), "list"), "id": ("", "text"), "headers": ((), "list"), "priority": (0, "integer -2**31 .. 2**31-1"), "fairness_id": ("f", "text"), "size_bytes": (0, U64), "max_output_tokens": (1, "optional " + U32)}),
    ("Scheduler", ls.Scheduler, {"config": (ls.make_config(["queue-scorer"]), "text"), "source": ("s", "text"), "allow_experimental": (True, "bool"), "exact": (None, "optional object"), "approximate": (None, "optional object"), "replaces": (None, "optional object"), "registry": (None, "optional object")}),
    ("parse_config", ls.parse_config, {"text": (ls.make_config(["queue-scorer"]), "text"), "source": ("s", "text"), "allow_experimental": (True, "bool")}),
    ("schedule", schedule, {"request": (ls.Request("m"), "object"), "pool": (pool()[0], "object"), "candidates": ([0], "optional list"), "now": (0.0, "optional number"), "seed": (1, "optional " + U64)}),
    ("Scheduler.request", of(lambda: ls.Scheduler(ls.make_config(["queue-scorer"])), "request"), {"tokens": ([1], "tokens"), "model": ("m", "text"), "lora": ("", "text"), "cache_salt": ("", "text"), "items": ((), "list"), "engine_block_size": (0, U32)}),
    ("fairness_id", of(lambda: ls.Scheduler(ls.make_config(["queue-scorer"])), "fairness_id"), {"request": (ls.Request("m"), "object")}),
    ("on_response_body", of(flight, "on_response_body"), {"first": (True, "bool"), "last": (True, "bool"), "prompt_tokens": (1, "optional integer 0 .. 2**53"), "completion_tokens": (1, "optional integer 0 .. 2**53"), "now": (0.0, "optional number")}),
    ("register", of(ls.Registry, "register"), {"type_name": ("t", "text"), "factory": (dict, "optional object"), "experimental": (False, "bool")}),
    ("api_of_path", lg.api_of_path, {"path": ("/", "text")}),
    ("parse_request", lg.parse_request, {"path": ("/v1/completions", "text"), "body": (b'{"model": "m", "prompt": ""}', "bytes"), "max_depth": (9, U64), "max_body_bytes": (99, U64)}),
    ("replace_model", lg.replace_model, {"body": (b'{"model": "m", "prompt": ""}', "bytes"), "request": (lg.parse_request("/v1/completions", b'{"model": "m", "prompt": ""}'), "object"), "model": ("n", "text")}),
    ("UsageReader", lg.UsageReader, {"event_stream": (True, "bool")}),
    ("UsageReader.append", of(lambda: lg.UsageReader(event_stream=True), "append"), {"piece": (b"", "bytes")}),
    ("SessionIdReader", lg.SessionIdReader, {"sources": ((lg.SessionSource("header", "a"),), "optional list"), "max_bytes": (9, "integer 1 .. 2**64-1")}),
    ("SessionIdReader.read", of(lg.SessionIdReader, "read"), {"headers": ((), "list")}),
    ("find_cookie", lg.find_cookie, {"cookie_header": ("a=1", "text"), "name": ("a", "text")}),
    ("envoy_address_key", lg.envoy_address_key, {"address": ("a", "text"), "port": (1, U16)}),
    ("xxhash64", lg.xxhash64, {"text": (b"", "bytes or text"), "seed": (0, U64)}),
    ("murmurhash2", lg.murmurhash2, {"text": (b"", "bytes or text")}),
    ("combine_hashes", lg.combine_hashes, {"hashes": ([1], "list")}),
    ("hash_hosts_of", lg.hash_hosts_of, {"pool": (pool()[0], "object")}),
    ("RingHash", lg.RingHash, {"hosts": (["a"], "list"), "min_ring_size": (1, "integer 1 .. 8388608"), "max_ring_size": (1024, "integer 1 .. 8388608"), "function": ("xxhash", "text"), "locality_weights": ((), "list")}),
    ("Maglev", lg.Maglev, {"hosts": (["a"], "list"), "table_size": (11, U64), "locality_weights": ((), "list")}),
    ("pick", RING.pick, {"hash": (1, U64), "attempt": (0, U32)}),
    ("pick_many", RING.pick_many, {"hashes": ([1], "keys")}),
    ("bounded", RING.bounded, {"balance_factor": (100, U32)}),
    ("BoundedLoad.pick", of(lambda: RING.bounded(100), "pick"), {"host": (0, "optional " + U32), "hash": (1, U64), "active": ([0, 0], "list"), "total": (0, "optional " + U64)}),
    ("EngineMetricsReader", lg.EngineMetricsReader, {"engine": ("vllm", "text"), "parameters": (None, "optional mapping"), "first_rank_alone": (False, "bool")}),
    ("EngineMetricsReader", lg.EngineMetricsReader, {"labels": ({}, "optional mapping")}),
    ("EngineMetricsReader.read", of(lg.EngineMetricsReader, "read"), {"page": (b"", "bytes or text"), "now": (0.0, "optional number")}),
    ("update", lambda **a: lg.EngineMetricsReader().update(**a), {"page": (b"", "bytes or text"), "pool": (pool()[0], "object"), "endpoint": (ls.EndpointHandle(0, 1), "object"), "now": (0.0, "optional number")}),
    ("EndpointsFile", lg.EndpointsFile, {"text": ("endpoints: []", "bytes or text"), "refuse_bad_entries": (False, "bool"), "max_bytes": (99, U64)}),
    ("EndpointsFile.apply", of(lambda: lg.EndpointsFile("endpoints: []"), "apply"), {"pool": (pool()[0], "object")}),
    ("ExtProcStream", lg.ExtProcStream, {"options": (None, "optional object"), "seed": (0, U64)}),
    ("receive", of(STREAM, "receive"), {"message": (b"", "bytes"), "now": (0.0, "optional number")}),
    ("decide", of(STREAM, "decide"), {"destinations": (["a:1"], "texts"), "set_headers": ((), "list"), "remove_headers": ((), "texts"), "metadata": ((), "list"), "scores": (None, "optional mapping"), "model": (None, "optional text"), "now": (0.0, "optional number")}),
    ("decide_with", of(STREAM, "decide_with"), {"decision": (None, "object")}),
    ("refuse", of(STREAM, "refuse"), {"http_status": (429, "integer -2**31 .. 2**31-1"), "message": ("m", "text"), "reason": ("", "text"), "headers": ((), "list")}),
    ("evict", of(STREAM, "evict"), {"reason": ("", "text")}),
    ("fail", of(STREAM, "fail"), {"message": ("", "text")}),
    ("close", of(STREAM, "close"), {"cancelled": (False, "bool")}),
    ("edit_response_headers", of(STREAM, "edit_response_headers"), {"set": ((), "list"), "remove": ((), "texts")}),
    ("add_response_metadata", of(STREAM, "add_response_metadata"), {"metadata": ((), "list")}),
]


def call_without_ns(method, arguments):
    made, holder, _ = index()
    return getattr(made, method)(**{"holder": holder, **arguments})


TABLE = [(f"{name}.{wrong}", call, arguments, wrong) for name, call, arguments in CALLS for wrong in arguments]


@pytest.mark.parametrize("call, arguments, wrong", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_bad_argument(call, arguments, wrong):
    good = {name: value for name, (value, _) in arguments.items()}
    kind = arguments[wrong][1]
    for make in bad_values(kind):
        value = make()
        try:
            call(**(good | {wrong: value}))
        except (TypeError, ValueError) as error:
            assert wrong in str(error), f"{value!r:.80} for a {kind}: {type(error).__name__}: {error}"
            assert len(str(error)) < 1000
        else:
            pytest.fail(f"{value!r:.80} passes for a {kind}")
