"""The block pool and the KV cache manager."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmd
import llmd.events as le
import llmd.hash as lh
import llmd.index as li
import llmd.worker as lw

HASHER = lh.VllmHasher(block_size=4)


def run(manager, request, tokens_per_step=1000):
    """Admits a request and computes its prompt in chunks; False when it does not fit."""
    hit = manager.get_computed_blocks(request)
    request.num_computed_tokens = 0
    while request.num_computed_tokens + hit.num_tokens < request.num_tokens:
        n = min(tokens_per_step, request.num_tokens - request.num_computed_tokens - hit.num_tokens)
        if manager.allocate_slots(request, n, hit=hit if len(hit) else None) is None:
            return False
        request.num_computed_tokens += hit.num_tokens + n
        request.status = "running"
        if len(hit):
            hit = manager.get_computed_blocks(lw.Request(2**63, [1], hasher=HASHER))  # empty
    return True


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), min_size=1, max_size=15))
def test_hits_are_what_the_events_say(requests):
    """An index fed by the manager's batches predicts every prefix hit."""
    manager = lw.KvCacheManager(num_blocks=20, block_size=4, enable_events=True)
    index = li.PrefixIndex()
    feed = li.KvEventIngestor(index)
    pod = feed.add_publisher("a:1", model="m")
    ns = li.request_namespace("m", block_size=4)
    for i, (kind, length) in enumerate(requests):
        tokens = [kind] * 8 + list(range(length))
        request = lw.Request(i, np.array(tokens, np.int32), hasher=HASHER)
        match = index.match(ns, lh.content_keys(tokens, block_size=4))
        depth = max((depth for _, depth in match), default=0)
        expected = min(depth * 4, (len(tokens) - 1) // 4 * 4)
        assert manager.get_computed_blocks(request).num_tokens == expected
        assert run(manager, request, 7)
        assert len(manager.block_table(request)) == -(-len(tokens) // 4)
        manager.free(i)
        batch = manager.take_event_batch(timestamp=float(i))
        if batch is not None:
            assert not feed.apply(pod, batch).wants_replay
    assert manager.num_requests == 0 and manager.state.num_held == 0
    assert index.stats().holder_blocks == manager.state.num_cached_keys


def test_decode_preempt_and_statistics():
    manager = lw.KvCacheManager(num_blocks=6, block_size=4, enable_events=True)
    request = lw.Request(7, list(range(8)), hasher=HASHER, lora_id=3, extras=lh.RequestExtras(lora_name="sql"))
    assert manager.allocate_slots(request, 8).tolist() == [1, 2]
    request.num_computed_tokens = 8
    request.status = "running"
    request.append([9])
    assert manager.allocate_slots(request, 1).tolist() == [3]
    assert request.tokens.tolist() == [*range(8), 9] and len(request.block_hashes) == 2
    (event,) = manager.take_events(full_digests=True)
    assert event.hash_bytes == tuple(request.block_hashes) and event.tokens.tolist() == list(range(8))
    assert (event.lora_id, event.lora_name, event.extra_keys) == (3, "sql", (("sql",), ("sql",)))
    assert manager.take_events() == [] and manager.take_event_batch(timestamp=0) is None
    assert manager.find(request.block_hashes[1]) == 2 and manager.find(bytes(32)) is None
    assert manager.block_state(2) == (1, request.block_hashes[1], 0, False)
    assert manager.allocate_slots(lw.Request(8, list(range(100)), hasher=HASHER), 100) is None
    assert not manager.reset_prefix_cache()
    manager.preempt(request)
    assert (request.status, request.num_preemptions, request.num_computed_tokens) == ("preempted", 1, 0)
    assert manager.get_computed_blocks(request).num_tokens == 8
    assert manager.take_prefix_cache_stats().requests == 1
    assert manager.reset_prefix_cache()
    assert [event.kind for event in manager.take_events()] == ["AllBlocksCleared"]
    assert manager.memory_usage().total_bytes > 0 and manager.state.usage == 0


def test_remote_load():
    manager = lw.KvCacheManager(num_blocks=10, block_size=4)
    request = lw.Request(1, list(range(9)), hasher=HASHER)
    request.status = "waiting_for_remote_kv"
    blocks = manager.allocate_slots(request, 0, num_external_computed_tokens=9, delay_cache_blocks=True)
    assert len(blocks) == 3 and manager.state.num_cached_blocks == 0
    assert manager.commit_remote_load(request, 9) == 8
    assert manager.state.num_cached_blocks == 2


def test_pool():
    pool = lw.BlockPool(num_blocks=5, block_size=4, enable_events=True)
    blocks = pool.get_new_blocks(3)
    assert blocks.dtype == np.uint32 and blocks.tolist() == [1, 2, 3]
    request = lw.Request(1, list(range(12)), hasher=HASHER)
    pool.cache_full_blocks(request, blocks, 0, 3)
    assert le.decode(pool.take_event_batch(timestamp=1, data_parallel_rank=None)).events[0].tokens.size == 12
    pool.touch([2])
    pool.free_blocks(blocks[::-1].copy())
    assert pool.state[:4] == (5, 3, 1, 3) and not pool.reset()
    pool.evict_blocks([2])
    assert pool.block_state(2).hash is None and pool.block_state(0).is_null
    with pytest.raises(llmd.ResourceExhaustedError, match="n is 4 blocks, but only 3 are free"):
        pool.get_new_blocks(4)
    with pytest.raises(ValueError, match="block id 9 is out of range"):
        pool.touch([9])
    with pytest.raises(ValueError, match="block is 5, the pool has 5 blocks"):
        pool.block_state(5)
    pool.free_blocks([2])
    assert pool.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_blocks is 1, must be 2"):
        lw.BlockPool(num_blocks=1)
    with pytest.raises(ValueError, match="num_blocks is 1099511627776"):
        lw.BlockPool(num_blocks=2**40)
    with pytest.raises(ValueError, match="watermark"):
        lw.KvCacheManager(num_blocks=10, watermark=2)
    with pytest.raises(ValueError, match="id is"):
        lw.Request(2**64, [1])
    with pytest.raises(ValueError, match=r"tokens\[0\] is -1"):
        lw.Request(1, [-1])
    with pytest.raises(TypeError, match="tokens is of type NoneType"):
        lw.Request(1, None)
    request = lw.Request(1, [1, 2, 3], hasher=HASHER)
    with pytest.raises(ValueError, match='status is "done"'):
        request.status = "done"
    with pytest.raises(ValueError, match="num_computed_tokens is -1"):
        request.num_computed_tokens = -1
    manager = lw.KvCacheManager(num_blocks=10, block_size=8)
    with pytest.raises(ValueError, match="request 1 was hashed with block_size 4, the pool's is 8"):
        manager.get_computed_blocks(request)
    with pytest.raises(llmd.NotFoundError, match="1"):
        manager.free(request)
    with pytest.raises(ValueError):
        manager.allocate_slots(lw.Request(2, [1] * 8), 8)  # no hashes
    manager = lw.KvCacheManager(num_blocks=10, block_size=4)
    with pytest.raises(ValueError, match="num_new_tokens is -1"):
        manager.allocate_slots(request, -1)
    with pytest.raises(TypeError, match="request is of type NoneType, wanted Request"):
        manager.allocate_slots(None, 1)
    with pytest.raises(TypeError, match="hit is of type int, wanted PrefixHit"):
        manager.allocate_slots(request, 1, hit=3)
    with pytest.raises(TypeError, match="hasher is of type str, wanted VllmHasher"):
        lw.Request(1, [1], hasher="sha256")
    assert manager.block_table(99).tolist() == []
    assert repr(request) == "Request(1, num_tokens=3, status='waiting')"
    plain = lw.KvCacheManager(num_blocks=10, block_size=4, enable_caching=False)
    assert plain.allocate_slots(lw.Request(3, [1] * 9), 9).size == 3
