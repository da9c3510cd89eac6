"""The KV-event subscriber against a publisher that follows vLLM's protocol."""

import asyncio
import struct
import threading
import time

import pytest

zmq = pytest.importorskip("zmq")

from llmd import events, hash, index  # noqa: E402
from llmd.vllm.events import AsyncKvEventSubscriber, KvBatch, KvClear, KvEventSubscriber, apply_to  # noqa: E402

LIMIT = 20.0  # seconds; a test that takes longer has failed


class Publisher:
    """PUB and ROUTER sockets of an engine; replays from one thread, as vLLM does."""

    def __init__(self, *, with_topic=True, port=0, replay_port=0):
        self.context = zmq.Context()
        self.live = self.context.socket(zmq.PUB)
        self.port = self._bind(self.live, port)
        self.router = self.context.socket(zmq.ROUTER)
        self.replay_port = self._bind(self.router, replay_port)
        self.with_topic = with_topic
        self.kept, self.seq, self.requests = {}, 0, []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _bind(self, socket, port):
        socket.linger = 0
        if port:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return port
        return socket.bind_to_random_port("tcp://127.0.0.1")

    def _serve(self):
        while not self.stopping.is_set():
            if not self.router.poll(20):
                continue
            identity, _, start = self.router.recv_multipart()
            start = int.from_bytes(start, "big")
            self.requests.append(start)
            topic = [b"topic"] if self.with_topic else []
            for seq in sorted(k for k in list(self.kept) if k >= start):
                self.router.send_multipart([identity, b"", *topic, struct.pack(">Q", seq), self.kept[seq]])
            empty = [b""] if self.with_topic else []
            self.router.send_multipart([identity, b"", *empty, b"\xff" * 8, b""])

    def publish(self, payload, *, lose=False):
        self.kept[self.seq] = payload
        if not lose:
            self.live.send_multipart([b"kv@w@m", struct.pack(">Q", self.seq), payload])
        self.seq += 1

    def close(self):
        self.stopping.set()
        self.thread.join()
        self.context.destroy(linger=0)

    @property
    def addresses(self):
        return f"tcp://127.0.0.1:{self.port}", f"tcp://127.0.0.1:{self.replay_port}"


@pytest.fixture
def publisher():
    made = []

    def make(**arguments):
        made.append(Publisher(**arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def batches_until(subscriber, last):
    """Items up to batch `last`."""
    out, end = [], time.monotonic() + LIMIT
    while time.monotonic() < end:
        item = subscriber.get(timeout=0.1)
        if item is None:
            continue
        out.append(item)
        if isinstance(item, KvBatch) and item.seq == last:
            return out
    raise AssertionError(f"batch {last} did not come, only {out}")


def join(publisher, subscriber):
    """Publishes until a batch came live, so that the subscription is active, and takes all items."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        asked = len(publisher.requests)
        publisher.publish(b"hello")
        patience = time.monotonic() + 0.3
        while subscriber.last_applied != publisher.seq - 1 and time.monotonic() < patience:
            time.sleep(0.01)
        if subscriber.last_applied == publisher.seq - 1 and len(publisher.requests) == asked:
            return batches_until(subscriber, publisher.seq - 1)
    raise AssertionError("no batch came")


@pytest.mark.parametrize("with_topic", [True, False])
def test_a_gap_is_filled_by_a_replay(publisher, with_topic):
    engine = publisher(with_topic=with_topic)
    live, replay = engine.addresses
    with KvEventSubscriber(live, replay=replay) as subscriber:
        join(engine, subscriber)
        before = engine.seq
        engine.publish(b"a")
        engine.publish(b"lost", lose=True)
        engine.publish(b"c")
        items = batches_until(subscriber, before + 2)
        assert [(i.seq, i.payload) for i in items] == [(before, b"a"), (before + 1, b"lost"), (before + 2, b"c")]
        end = time.monotonic() + LIMIT
        while not subscriber.in_sync and time.monotonic() < end:  # the end marker comes after the last batch
            time.sleep(0.01)
        assert subscriber.in_sync and subscriber.counters.gaps_total >= 1 and subscriber.last_applied == before + 2
        assert engine.requests[-1] == before + 1


def test_without_replay_a_gap_clears(publisher):
    engine = publisher()
    with KvEventSubscriber(engine.addresses[0]) as subscriber:
        join(engine, subscriber)
        engine.publish(b"lost", lose=True)
        engine.publish(b"after")
        items = batches_until(subscriber, engine.seq - 1)
        position = [i.seq if isinstance(i, KvBatch) else "clear" for i in items]
        assert position[-2:] == ["clear", engine.seq - 1]


def test_what_was_published_before_is_replayed(publisher):
    engine = publisher()
    for n in range(50):
        engine.publish(b"%d" % n)
    with KvEventSubscriber(engine.addresses[0], replay=engine.addresses[1]) as subscriber:
        time.sleep(0.3)
        engine.publish(b"50")
        end = time.monotonic() + LIMIT
        while subscriber.last_applied is None and time.monotonic() < end:
            engine.publish(b"more")
            time.sleep(0.1)
        items = batches_until(subscriber, 50)
        assert [i.seq for i in items if isinstance(i, KvBatch)] == list(range(51))


def test_malformed_messages_are_counted(publisher):
    engine = publisher()
    with KvEventSubscriber(engine.addresses[0]) as subscriber:
        join(engine, subscriber)
        engine.live.send_multipart([b"one frame"])
        engine.live.send_multipart([b"t", b"short", b"x"])
        engine.publish(b"good")
        batches_until(subscriber, engine.seq - 1)
        assert subscriber.malformed == 2


def test_a_restart_clears(publisher):
    first = publisher()
    live, replay = first.addresses
    with KvEventSubscriber(live, replay=replay) as subscriber:
        join(first, subscriber)
        first.close()
        second = publisher(port=first.port, replay_port=first.replay_port)
        end, seen = time.monotonic() + LIMIT, []
        while time.monotonic() < end:
            second.publish(b"second")
            while (item := subscriber.get(timeout=0.1)) is not None:
                seen.append(item)
            if any(isinstance(i, KvBatch) and i.payload == b"second" for i in seen):
                break
        kinds = [i.payload if isinstance(i, KvBatch) else "clear" for i in seen]
        assert b"second" in kinds and "clear" in kinds[: kinds.index(b"second")]


def test_asyncio_feeds_an_index(publisher):
    engine = publisher()
    live, replay = engine.addresses
    tokens = list(range(64))
    keys = hash.content_keys(tokens, block_size=16)
    cache = index.PrefixIndex()
    ingestor = index.KvEventIngestor(cache)
    pod = ingestor.add_publisher("w", model="m")

    async def run():
        async def publish():
            payload = events.encode([events.block_stored([1, 2, 3, 4], tokens=tokens, block_size=16)], timestamp=0.0)
            while True:
                engine.publish(payload)
                await asyncio.sleep(0.05)

        async with AsyncKvEventSubscriber(live, replay=replay) as subscriber:
            task = asyncio.create_task(publish())
            async for item in subscriber:
                apply_to(ingestor, pod, item)
                if isinstance(item, KvBatch):
                    assert len(item.decode().events) == 1
                    break
            task.cancel()

    asyncio.run(asyncio.wait_for(run(), LIMIT))
    match = cache.match(index.request_namespace("m", block_size=16), keys)
    assert cache.by_endpoint(match) == {"w": 4}
    apply_to(ingestor, pod, KvClear())
    assert not len(cache.match(index.request_namespace("m", block_size=16), keys))


def test_closing_ends_loops(publisher):
    engine = publisher()
    subscriber = KvEventSubscriber(engine.addresses[0])
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(subscriber))
    thread.start()
    time.sleep(0.2)
    subscriber.close()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert subscriber.get(timeout=0) is None

    async def run():
        other = AsyncKvEventSubscriber(engine.addresses[0])

        async def consume():
            async for _ in other:
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.2)
        other.close()
        await asyncio.wait_for(task, LIMIT)

    asyncio.run(run())


def test_bad_addresses_are_errors():
    with pytest.raises(zmq.ZMQError):
        KvEventSubscriber("nonsense")
