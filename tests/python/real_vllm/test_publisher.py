"""The subscriber of llmd.vllm.events against vLLM's own ZmqEventPublisher and msgspec classes."""

import asyncio
import inspect
import random
import time

import pytest
import zmq
from llmd.vllm.events import AsyncKvEventSubscriber, KvBatch, KvClear, KvEventSubscriber
from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

LIMIT = 20.0  # seconds; a test that waits longer has failed
STORED_FIELDS = BlockStored.__struct_fields__
REMOVED_FIELDS = BlockRemoved.__struct_fields__


class LossySocket:
    """A publisher's socket; what is sent while `losing` is lost, as beyond the high-water mark."""

    def __init__(self, socket):
        self.socket, self.losing, self.lost = socket, False, 0

    def send_multipart(self, frames):
        if self.losing:
            self.lost += 1
        else:
            self.socket.send_multipart(frames)

    def close(self, **arguments):
        self.socket.close(**arguments)


class Engine:
    """vLLM's publisher, and what it was given, by sequence number."""

    def __init__(self, live, replay, **options):
        self.publisher = ZmqEventPublisher(
            data_parallel_rank=0,
            endpoint=live,
            replay_endpoint=replay,
            topic="kv@10.0.0.1:8000@m",
            **options,
        )
        pub, router = self.publisher._pub, self.publisher._replay
        self.live = pub.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.socket = self.publisher._pub = LossySocket(pub)
        self.sent = []

    def publish(self, *events):
        batch = KVEventBatch(ts=1234.5 + len(self.sent), events=list(events))
        self.sent.append(batch)
        self.publisher.publish(batch)

    def lose(self, *events):
        """Publishes so that nobody hears of it."""
        self.settle()
        self.socket.losing, before = True, self.socket.lost
        self.publish(*events)
        self.settle()
        assert self.socket.lost == before + 1
        self.socket.losing = False

    def settle(self):
        end = time.monotonic() + LIMIT
        while self.publisher._event_queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.001)
        assert not self.publisher._event_queue.unfinished_tasks

    def close(self):
        self.publisher.shutdown()


@pytest.fixture
def engine(tmp_path):
    made = []

    def make(**options):
        made.append(Engine(f"ipc://{tmp_path}/live", f"ipc://{tmp_path}/replay", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def stored(hashes, tokens, parent=None, **more):
    values = {"lora_id": None, "medium": "GPU", "lora_name": None, **more}
    values = {name: value for name, value in values.items() if name in STORED_FIELDS}
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=parent,
        token_ids=tokens,
        block_size=len(tokens) // max(1, len(hashes)),
        **values,
    )


def removed(hashes, **more):
    values = {"medium": "GPU", **more}
    return BlockRemoved(
        block_hashes=hashes,
        **{name: value for name, value in values.items() if name in REMOVED_FIELDS},
    )


def random_hash(rng, as_bytes):
    return rng.randbytes(32) if as_bytes else rng.choice((rng.getrandbits(64), rng.randrange(200)))


def random_event(rng):
    as_bytes = rng.random() < 0.3
    hashes = [random_hash(rng, as_bytes) for _ in range(rng.randrange(1, 9))]
    if rng.random() < 0.3:
        return removed(hashes, group_idx=rng.choice((None, 0, 3)))
    if rng.random() < 0.05:
        return AllBlocksCleared()
    parent = rng.choice((None, random_hash(rng, as_bytes)))
    tokens = [
        rng.choice((rng.randrange(100), rng.getrandbits(32))) for _ in range(16 * len(hashes))
    ]
    extra = [rng.choice((None, ("sql",), (("f" * 64, -3), "salt"), (b"\1" * 32,))) for _ in hashes]
    return stored(
        hashes,
        tokens,
        parent,
        lora_id=rng.choice((None, 7)),
        medium=rng.choice((None, "GPU", "CPU")),
        lora_name=rng.choice((None, "sql")),
        extra_keys=rng.choice((None, extra)),
        group_idx=rng.choice((None, 0)),
        kv_cache_spec_kind=rng.choice((None, "full_attention")),
        session_id=rng.choice((None, "s")),
    )


def low64(value):
    return int.from_bytes(value[-8:], "big") if isinstance(value, bytes) else value


def assert_same(ours, theirs):
    assert ours.kind == type(theirs).__name__
    if isinstance(theirs, AllBlocksCleared):
        return
    assert [int(h) for h in ours.hashes] == [low64(h) for h in theirs.block_hashes]
    assert list(ours.hash_bytes) == [h for h in theirs.block_hashes if isinstance(h, bytes)]
    for name in ("medium", "group_idx"):
        assert (getattr(ours, name) or None) == (getattr(theirs, name, None) or None)
    if isinstance(theirs, BlockRemoved):
        return
    parent = theirs.parent_block_hash
    # A parent of 0 means none for some publishers.
    assert ours.parent == (None if parent in (None, 0) else low64(parent))
    assert ours.tokens.tolist() == theirs.token_ids and ours.block_size == theirs.block_size
    assert ours.lora_id == theirs.lora_id
    for ours_name, theirs_name in (
        ("lora_name", "lora_name"),
        ("spec_kind", "kv_cache_spec_kind"),
        ("session_id", "session_id"),
    ):
        assert getattr(ours, ours_name) == (getattr(theirs, theirs_name, None) or "")
    extra = getattr(theirs, "extra_keys", None) or []
    assert [block or None for block in ours.extra_keys] == list(extra)


def take(subscriber, last):
    """Items up to batch `last`."""
    out, end = [], time.monotonic() + LIMIT
    while time.monotonic() < end:
        item = subscriber.get(timeout=0.1)
        if item is not None:
            out.append(item)
            if isinstance(item, KvBatch) and item.seq == last:
                return out
    raise AssertionError(f"batch {last} did not come, only {out}")


def join(engine, subscriber):
    """Publishes until something came live, and takes it."""
    end = time.monotonic() + LIMIT
    while subscriber.last_applied is None and time.monotonic() < end:
        engine.publish(AllBlocksCleared())
        time.sleep(0.05)
    engine.settle()
    return take(subscriber, len(engine.sent) - 1)


def seqs(items):
    return [item.seq if isinstance(item, KvBatch) else "clear" for item in items]


def test_every_event_is_read_as_it_was_made(engine):
    publisher, rng = engine(), random.Random(5)
    for _ in range(100):  # before anybody listens: to be replayed
        publisher.publish(*(random_event(rng) for _ in range(rng.randrange(5))))
    with KvEventSubscriber(publisher.live, replay=publisher.replay, topic="kv@") as subscriber:
        items = join(publisher, subscriber)
        for _ in range(200):
            publisher.publish(*(random_event(rng) for _ in range(rng.randrange(5))))
        items += take(subscriber, len(publisher.sent) - 1)
        assert seqs([i for i in items if isinstance(i, KvBatch)]) == list(
            range(len(publisher.sent))
        )
        assert subscriber.malformed == 0
    for item in items:
        if isinstance(item, KvClear):
            continue
        batch, sent = item.decode(), publisher.sent[item.seq]
        assert item.topic == "kv@10.0.0.1:8000@m" or not item.topic  # old replays have no topic
        assert (
            batch.timestamp == sent.ts
            and batch.data_parallel_rank == 0
            and batch.skipped_events == 0
        )
        assert len(batch.events) == len(sent.events)
        for ours, theirs in zip(batch.events, sent.events, strict=True):
            assert_same(ours, theirs)


def test_a_gap_is_replayed_by_vllm(engine):
    publisher = engine()
    with KvEventSubscriber(publisher.live, replay=publisher.replay) as subscriber:
        join(publisher, subscriber)
        first = len(publisher.sent)
        for round_ in range(10):
            publisher.publish(stored([3 * round_ + 1], [1, 2]))
            publisher.lose(stored([3 * round_ + 2], [3, 4]))
            publisher.lose(stored([3 * round_ + 3], [5, 6]))
        publisher.publish(removed([1]))
        items = take(subscriber, len(publisher.sent) - 1)
        assert seqs(items) == list(range(first, len(publisher.sent)))
        assert subscriber.counters.gaps_total >= 1 and not subscriber.malformed
        assert [e.kind for e in items[1].decode().events] == ["BlockStored"]


def test_a_gap_that_vllm_no_longer_has_clears(engine):
    publisher = engine(buffer_steps=4)
    with KvEventSubscriber(
        publisher.live, replay=publisher.replay, mode="best_effort"
    ) as subscriber:
        join(publisher, subscriber)
        for n in range(10):
            publisher.lose(stored([n], [1, 2]))
        publisher.publish(removed([1]))
        items = take(subscriber, len(publisher.sent) - 1)
        assert "clear" in seqs(items)
        # What vLLM still had came, in order, after the clear.
        assert seqs(items)[-1] == len(publisher.sent) - 1


def test_a_gap_without_replay_clears(engine):
    publisher = engine()
    with KvEventSubscriber(publisher.live) as subscriber:
        join(publisher, subscriber)
        publisher.lose(stored([1], [1, 2]))
        publisher.publish(removed([1]))
        items = take(subscriber, len(publisher.sent) - 1)
        assert seqs(items) == ["clear", len(publisher.sent) - 1]


def test_a_restart_of_vllm_clears(engine):
    first = engine()
    with KvEventSubscriber(first.live, replay=first.replay) as subscriber:
        join(first, subscriber)
        for n in range(20):
            first.publish(stored([n], [1, 2]))
        take(subscriber, len(first.sent) - 1)
        first.close()
        second = engine()
        end, items = time.monotonic() + LIMIT, []
        while not any(isinstance(i, KvBatch) for i in items) and time.monotonic() < end:
            second.publish(stored([1000], [7, 8]))
            if (item := subscriber.get(timeout=0.1)) is not None:
                items.append(item)
        assert seqs(items)[:2] == ["clear", 0]


def test_asyncio_with_gaps_over_tcp(tmp_path):
    # vLLM binds an endpoint with a star in it and connects to any other.
    publisher = Engine("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")

    async def run():
        seen = []
        async with AsyncKvEventSubscriber(publisher.live, replay=publisher.replay) as subscriber:

            async def publish():
                while subscriber.last_applied is None:
                    publisher.publish(AllBlocksCleared())
                    await asyncio.sleep(0.05)
                for n in range(5):
                    await asyncio.to_thread(publisher.lose, stored([n], [1, 2]))
                    publisher.publish(stored([n], [1, 2]))
                publisher.publish(removed([99]))

            task = asyncio.create_task(publish())
            async for item in subscriber:
                seen.append(item)
                if isinstance(item, KvBatch) and item.decode().events[0].kind == "BlockRemoved":
                    break
            await task
        return [i for i in seqs(seen) if i != "clear"]

    try:
        assert asyncio.run(asyncio.wait_for(run(), LIMIT)) == list(range(len(publisher.sent)))
    finally:
        publisher.close()


def test_both_layouts_of_a_replay_are_among_the_releases(release):
    source = inspect.getsource(ZmqEventPublisher._service_replay)
    assert ("self._topic_bytes" in source) == (release >= (0, 26))
