"""Real threads on shared objects. Nothing here measures time; the work is bounded."""

import sys
import threading

import numpy as np
import pytest

import llmd.events as le
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import llmd.worker as lw


@pytest.fixture(autouse=True)
def switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(count, work):
    """Runs work(i) in `count` threads that begin together; raises what the first one raised."""
    barrier, errors = threading.Barrier(count), []

    def body(i):
        barrier.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_writers_and_readers_of_one_index():
    """Each of 16 writers owns a holder; 16 readers see chains grow only. The end is that of a single thread."""
    index, ns = li.PrefixIndex(), li.make_namespace("m")
    pods = [index.add_holder(f"pod{i}:1") for i in range(16)]
    keys = np.arange(1, 4001, dtype=np.uint64)
    done = threading.Event()
    finished = []

    def work(i):
        if i < 16:
            for start in range(0, 4000, 400):
                part = keys[start : start + 400]
                parent = None if start == 0 else int(keys[start - 1])
                assert index.store(pods[i], ns, engine_keys=part, content_keys=part, parent=parent).applied
                index.remove(pods[i], [12345678])
            finished.append(i)
            if len(finished) == 16:
                done.set()
        else:
            seen = 0
            while True:
                last = done.is_set()
                match = index.match(ns, keys if i % 2 else keys[:50])
                depth = match.depth(pods[i - 16])
                assert depth >= seen
                seen = depth
                if i == 16:
                    index.stats(), index.by_endpoint(match), index.holders()
                if last:
                    break
            assert seen == (4000 if i % 2 else 50)

    in_threads(32, work)
    assert dict(index.match(ns, keys)) == {pod.slot: 4000 for pod in pods}
    assert index.stats().holder_blocks == 16 * 4000


def test_more_threads_than_readers_are_kept():
    index, ns = li.PrefixIndex(), li.make_namespace("m")
    pod = index.add_holder("a:1")
    keys = np.arange(1, 2000, dtype=np.uint64)
    index.store(pod, ns, engine_keys=keys, content_keys=keys)
    for _ in range(20):  # 1280 threads in all, beyond the number of readers that an index has room for
        in_threads(64, lambda i: [index.match(ns, keys[: 1 + i * 20]).depth(pod) for _ in range(3)])
    assert index.match(ns, keys).depth(pod) == 1999


def test_decisions_that_wait_hold_no_readers():
    """1536 matchers of one index, more than it has room for readers: four producers in each of 64 decisions of six
    schedulers."""
    index, pool, plugins = li.PrefixIndex(), ls.EndpointPool(), []
    pool.bind_holder(index.add_holder("h:1"), pool.add("a", "h", 1))
    for i in range(4):
        name = f"producer-{i}"
        plugins.append({"type": "precise-prefix-cache-producer", "name": name})
        parameters = {"prefixMatchInfoProducerName": name}
        plugins.append({"type": "prefix-cache-scorer", "name": f"scorer-{i}", "parameters": parameters})
    schedulers = [ls.Scheduler(ls.make_config(plugins), exact=index) for _ in range(6)]
    request = schedulers[0].request(list(range(64)), model="m")
    decisions = [scheduler.schedule(request, pool) for scheduler in schedulers for _ in range(64)]

    def work(i):
        for scheduler in schedulers:
            decisions.append(scheduler.schedule(request, pool))

    in_threads(64, work)
    for decision in decisions[-64:]:
        assert decision.explanation.profiles["default"].scores_of("scorer-3") == {"a": 0.0}


def test_one_stream_one_chain_one_manager():
    hasher = lh.VllmHasher(block_size=4)
    chain = lh.VllmChain(hasher)
    manager = lw.KvCacheManager(num_blocks=2000, block_size=4, enable_events=True)
    shared = lw.Request(10**6, [1] * 8, hasher=hasher)
    stream = le.PublisherStream()
    feed = li.KvEventIngestor(li.PrefixIndex())
    tokens = np.arange(2000, dtype=np.int32)
    expected = hasher.hash_blocks(tokens)

    def work(i):
        pod = feed.add_publisher(f"pod{i}:1", model="m")
        for turn in range(20):
            assert hasher.hash_blocks(tokens) == expected
            chain.extend(tokens[:40])
            assert chain.token_count % 40 == 0
            request = lw.Request(i * 1000 + turn, tokens[i : i + 100], hasher=hasher)
            assert manager.allocate_slots(request, 100, hit=None) is not None
            manager.get_computed_blocks(shared)
            shared.append([turn])
            assert len(manager.block_table(request)) == 25
            manager.free(request)
            for event in manager.take_events():
                assert event.kind in ("BlockStored", "BlockRemoved")
            stream.on_live(0.0, turn, b"x")
            stream.tick(1.0)
            event = le.block_stored([turn + 1], tokens=[turn] * 4, block_size=4)
            assert le.decode(le.encode([event], timestamp=0)).events[0] == event
            feed.apply(pod, le.encode([event], timestamp=0))

    in_threads(16, work)
    assert chain.token_count == 16 * 20 * 40 and shared.num_tokens == 8 + 16 * 20
    assert manager.state.num_held == 0 and manager.num_requests == 0
    assert feed.counters.batches == 16 * 20


def test_arrays_that_change_meanwhile():
    """The result is garbage then, but nothing else is."""
    tokens = np.arange(100_000, dtype=np.int64)
    hasher = lh.VllmHasher()
    stop = threading.Event()

    def work(i):
        if i == 0:
            for _ in range(10):
                try:
                    assert len(hasher.hash_blocks(tokens)) == 6250
                except ValueError as error:
                    assert "tokens[" in str(error)
            stop.set()
        else:
            while not stop.is_set():
                tokens[:] = i - 2

    in_threads(3, work)
