"""A subscriber to the KV events of one engine.

With a thread of its own, which ends with the ``with`` block:

    publisher = ingestor.add_publisher("10.0.0.7:8000", model="m", gpu_removal="refcount")
    with KvEventSubscriber("tcp://10.0.0.7:5557", replay="tcp://10.0.0.7:5558") as events:
        for event in events:
            apply_to(ingestor, publisher, event)

and with asyncio:

    async for event in AsyncKvEventSubscriber("tcp://10.0.0.7:5557"):
        apply_to(ingestor, publisher, event)

Both yield `KvBatch`, whose numbers follow one another, and `KvClear`: forget all that this engine has announced. What
the transport loses is asked for again on the replay socket, and else cleared; see `llmd.events.PublisherStream`. A
loss shows when the next batch comes. Needs pyzmq.

vLLM binds an endpoint with a star in it, ``tcp://*:5557``, or of ``ipc://``; to any other it
connects. It announces each physical copy of a block, hence ``gpu_removal``: see
`llmd.index.KvEventIngestor.add_publisher`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Union

import zmq
import zmq.asyncio
import zmq.utils.monitor

from llmd.events import (
    Action,
    Batch,
    PublisherStream,
    StreamCounters,
    decode,
    parse_live_message,
    parse_replay_message,
    replay_request,
)
from llmd.index import KvEventIngestor

_PER_TURN = 1000  # messages of a socket, before the others get their turn


@dataclass(frozen=True)
class KvBatch:
    """Events of one scheduler step, as they came.

    Attributes
    ----------
    seq
        Of the publisher's process, from 0.
    topic
        Of the latest message that had one.
    payload
        MessagePack, for `KvEventIngestor.apply`.
    """

    seq: int
    topic: str
    payload: bytes = field(repr=False)

    def decode(self) -> Batch:
        """The events themselves."""
        return decode(self.payload)


@dataclass(frozen=True)
class KvClear:
    """The engine restarted, or events were lost for good: what it announced before is void."""


KvItem = Union[KvBatch, KvClear]
"""What a subscriber yields."""


def apply_to(ingestor: KvEventIngestor, publisher: int, item: KvItem) -> bool:
    """Applies an item to an index; true when an event named a parent that nobody has heard of."""
    if isinstance(item, KvClear):
        ingestor.clear(publisher)
        return False
    return ingestor.apply(publisher, item.payload).wants_replay


class _Driver:
    """Sockets and stream of one publisher. One thread."""

    def __init__(
        self,
        endpoint: str,
        replay: str | None,
        topic: str,
        mode: Literal["strict", "best_effort"],
        stream_options: dict[str, Any],
    ) -> None:
        self._replay_endpoint = replay
        self._stream = PublisherStream(mode=mode, replay=replay is not None, **stream_options)
        self._context = zmq.Context()
        self._items: deque[KvItem] = deque()
        self._topic = ""
        self.malformed = 0
        self._dealer: zmq.Socket[bytes] | None = None
        self._request = 0
        try:
            self.live = self._context.socket(zmq.SUB)
            self.live.linger = 0
            self.live.rcvhwm = 0  # the publisher's mark decides what is lost
            self.live.setsockopt(zmq.SUBSCRIBE, topic.encode())
            self.monitor = self.live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            self.monitor.linger = 0
            self.live.connect(endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def close(self) -> None:
        self._context.destroy(linger=0)

    def sockets(self) -> list[Any]:
        """What to poll for reading; changes from turn to turn."""
        return [s for s in (self.monitor, self.live, self._dealer) if s is not None]

    def timeout(self, longest: float) -> float:
        """Seconds until something is due."""
        deadline = self._stream.next_deadline
        return longest if deadline is None else min(longest, max(0.0, deadline - time.monotonic()))

    def turn(self) -> deque[KvItem]:
        """Reads what is there, without waiting; what comes of it is in the deque returned."""
        self._read_monitor()
        self._read_live()
        self._read_replay()
        if self.timeout(1.0) == 0.0:
            self._carry_out(self._stream.tick(time.monotonic()))
        return self._items

    @property
    def stream(self) -> PublisherStream:
        return self._stream

    def _read_monitor(self) -> None:
        while self.monitor.poll(0):
            zmq.utils.monitor.recv_monitor_message(self.monitor, zmq.NOBLOCK)
            self._carry_out(self._stream.on_connected(time.monotonic()))

    def _read_live(self) -> None:
        for _ in range(_PER_TURN):
            try:
                frames = self.live.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = parse_live_message(frames)
            except ValueError:
                self.malformed += 1
                continue
            self._topic = message.topic
            self._carry_out(self._stream.on_live(time.monotonic(), message.seq, message.payload))

    def _read_replay(self) -> None:
        for _ in range(_PER_TURN):
            if self._dealer is None:
                return
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            request, now = self._request, time.monotonic()
            try:
                message = parse_replay_message(frames)
            except ValueError:
                self.malformed += 1
                self._drop_dealer()
                self._carry_out(self._stream.on_replay_failed(now, request, malformed=True))
                continue
            if message.end:
                self._drop_dealer()
                self._carry_out(self._stream.on_replay_end(now, request))
            else:
                self._topic = message.topic or self._topic
                self._carry_out(self._stream.on_replay_batch(now, request, message.seq, message.payload))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if action.kind == "apply":
                self._items.append(KvBatch(action.seq, self._topic, bytes(action.payload)))
            elif action.kind == "clear":
                self._items.append(KvClear())
            elif action.kind == "request_replay":
                self._ask(action)
            elif action.request == self._request:
                self._drop_dealer()

    def _ask(self, action: Action) -> None:
        assert self._replay_endpoint is not None
        self._drop_dealer()
        self._request = action.request
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.rcvhwm = 0
        self._dealer.connect(self._replay_endpoint)
        self._dealer.send_multipart(replay_request(action.seq))

    def _drop_dealer(self) -> None:
        if self._dealer is not None:
            self._dealer.close(linger=0)
            self._dealer = None


class _Subscriber:
    def __init__(
        self,
        endpoint: str,
        *,
        replay: str | None = None,
        topic: str = "",
        mode: Literal["strict", "best_effort"] = "strict",
        **stream_options: Any,
    ) -> None:
        self._driver = _Driver(endpoint, replay, topic, mode, stream_options)

    @property
    def counters(self) -> StreamCounters:
        """Gaps, replays, clears, ..."""
        return self._driver.stream.counters

    @property
    def in_sync(self) -> bool:
        """Nothing is missing as far as can be known."""
        return self._driver.stream.in_sync

    @property
    def last_applied(self) -> int | None:
        """Number of the last batch that was yielded or waits to be."""
        return self._driver.stream.last_applied

    @property
    def malformed(self) -> int:
        """Messages that are none of this protocol."""
        return self._driver.malformed


class KvEventSubscriber(_Subscriber):
    """Subscribes in a thread of its own; iterate over it in another.

    Parameters
    ----------
    endpoint
        Of the engine's publisher, ``"tcp://host:port"``.
    replay
        Of its replay socket; without one, a hole clears what came before.
    topic
        Prefix to subscribe to; "" is all.
    mode
        "strict" or "best_effort"; see `llmd.events.PublisherStream`.
    max_items
        Items that wait to be taken before the thread waits.
    **stream_options
        Further options of `llmd.events.PublisherStream`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        replay: str | None = None,
        topic: str = "",
        mode: Literal["strict", "best_effort"] = "strict",
        max_items: int = 10000,
        **stream_options: Any,
    ) -> None:
        super().__init__(endpoint, replay=replay, topic=topic, mode=mode, **stream_options)
        self._queue: queue.Queue[KvItem | BaseException | None] = queue.Queue(max_items)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmd-kv-events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                items = self._driver.turn()
                while items and not self._stop.is_set():
                    self._put(items.popleft())
                poller = zmq.Poller()
                for socket in self._driver.sockets():
                    poller.register(socket, zmq.POLLIN)
                poller.poll(int(self._driver.timeout(0.1) * 1000))
            self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            self._driver.close()

    def _put(self, item: KvItem | BaseException | None) -> None:
        while True:
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                if self._stop.is_set():
                    return

    def get(self, timeout: float | None = None) -> KvItem | None:
        """The next item; None when none came in `timeout` seconds, or the subscriber was closed."""
        if self._stop.is_set():
            return None
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def __iter__(self) -> Iterator[KvItem]:
        while (item := self.get()) is not None:
            yield item

    def close(self) -> None:
        """Ends the thread, and a loop over the subscriber in another one."""
        self._stop.set()
        self._thread.join()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass

    def __enter__(self) -> KvEventSubscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncKvEventSubscriber(_Subscriber):
    """The same for asyncio, without a thread. Parameters as of `KvEventSubscriber`, without `max_items`."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        super().__init__(endpoint, **options)
        self._closed = False
        self._polling = False

    async def __aiter__(self) -> AsyncIterator[KvItem]:
        while not self._closed:
            items = self._driver.turn()
            while items and not self._closed:
                yield items.popleft()
            if not self._closed:
                await self._poll()

    async def _poll(self) -> None:
        poller = zmq.asyncio.Poller()
        for socket in self._driver.sockets():
            poller.register(socket, zmq.POLLIN)
        self._polling = True
        try:
            await poller.poll(int(self._driver.timeout(0.1) * 1000))
        finally:
            self._polling = False
            if self._closed:
                self._driver.close()

    def close(self) -> None:
        """Ends the loop over the subscriber."""
        if not self._closed:
            self._closed = True
            if not self._polling:  # sockets must not go away below a poll
                self._driver.close()

    async def __aenter__(self) -> AsyncKvEventSubscriber:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["AsyncKvEventSubscriber", "KvBatch", "KvClear", "KvEventSubscriber", "KvItem", "apply_to"]
