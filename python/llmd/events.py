"""KV events: what an engine says about the blocks in its prefix cache.

An engine publishes one batch per scheduler step: blocks were stored, blocks were removed, the whole cache was cleared.
`decode` reads every wire form that engines use into one shape, `encode` writes what vLLM's publisher would write, and
`PublisherStream` says what to do about lost batches and restarts. Nothing here needs a socket.

Examples
--------
>>> payload = encode([block_stored([11, 12], tokens=range(8), block_size=4)], timestamp=1.5)
>>> batch = decode(payload)
>>> batch.events[0]
Event(BlockStored, 2 blocks, 8 tokens, tier='gpu')
>>> [int(key) for key in batch.events[0].hashes], batch.events[0].parent
([11, 12], None)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeAlias, Union

import numpy as np

from llmd import _core
from llmd._core import RawMsgpack
from llmd._types import BytesLike, UInt32Array, UInt64Array, listed

EventKind: TypeAlias = Literal["BlockStored", "BlockRemoved", "AllBlocksCleared"]
"""What an event says of its blocks."""
Schema: TypeAlias = Literal["array6", "array7", "array8", "array9", "array10", "array12", "map", "map_wide"]
"""The generation of vLLM whose wire form is written; see `encode`."""
ExtraKey: TypeAlias = Union[str, tuple[str, int], int, bytes, RawMsgpack]
"""Text; multimodal identifier and its offset from the block's start; LoRA number; digest of embeddings; anything else."""

END_SEQ = 2**64 - 1
"""Sequence number of a replay's end marker; no batch carries it."""

TOPIC_PREFIX = "kv@"
"""What to subscribe to."""


def _no_keys() -> UInt64Array:
    return np.empty(0, np.uint64)


def _no_tokens() -> UInt32Array:
    return np.empty(0, np.uint32)


@dataclass(slots=True, eq=False, repr=False)
class Event:
    """One event. Fields that a kind does not have, and those that the wire left out, are empty or None.

    Attributes
    ----------
    kind : {"BlockStored", "BlockRemoved", "AllBlocksCleared"}
    hashes : ndarray of uint64
        Engine block hashes in chain order. Negative ones become their two's complement; byte strings are reduced to
        their last eight bytes.
    hash_bytes : tuple of bytes
        The byte strings themselves; empty when every hash is an integer.
    parent : int or None
        Hash of the block before the first; None at the root of a chain.
    parent_bytes : bytes
        The same as a byte string; empty when it is an integer.
    tokens : ndarray of uint32
        Token ids of all blocks in one run; empty for a tier update.
    bigram_tokens : ndarray of uint32
        Second tokens of bigram keys.
    block_size : int
        Tokens per block as the publisher says, 0 when it does not.
    lora_id : int or None
        The adapter's number.
    lora_name : str
        The adapter's name; empty for the base model.
    extra_keys : tuple of tuples
        Per block; may be shorter than `hashes`.
    lookahead_tokens : tuple of ndarrays of uint32
        Per block, tokens behind it that are part of its hash.
    cache_salt, session_id : str
        Of the request.
    medium : str
        As on the wire, e.g. ``"GPU"``.
    tier : str
        `medium` in lower case; ``"gpu"`` when there is none. Not encoded.
    group_idx : int or None
        KV-cache group of a hybrid model.
    spec_kind : str
        E.g. ``"full_attention"``.
    sliding_window : int or None
        In tokens.
    locality, ownership : str
        ``"LOCAL"`` or ``"REMOTE"``, and the id of a secondary tier; empty when absent.
    model_name, tenant_id, backend_id, object_key : str
        Store publishers only; not encoded.
    first_block : int or None
        Position of the first hash in its chain, in blocks. Not encoded.

    Examples
    --------
    `block_stored`, `block_removed` and `all_blocks_cleared` make events.

    >>> block_removed([11, -1])
    Event(BlockRemoved, 2 blocks, tier='gpu')
    """

    kind: EventKind
    hashes: UInt64Array = field(default_factory=_no_keys)
    hash_bytes: tuple[bytes, ...] = ()
    parent: int | None = None
    parent_bytes: bytes = b""
    tokens: UInt32Array = field(default_factory=_no_tokens)
    bigram_tokens: UInt32Array = field(default_factory=_no_tokens)
    block_size: int = 0
    lora_id: int | None = None
    lora_name: str = ""
    extra_keys: tuple[tuple[ExtraKey, ...], ...] = ()
    lookahead_tokens: tuple[UInt32Array, ...] = ()
    cache_salt: str = ""
    session_id: str = ""
    medium: str = ""
    tier: str = "gpu"
    group_idx: int | None = None
    spec_kind: str = ""
    sliding_window: int | None = None
    locality: str = ""
    ownership: str = ""
    model_name: str = ""
    tenant_id: str = ""
    backend_id: str = ""
    object_key: str = ""
    first_block: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts: list[str] = [self.kind]
        if self.kind != "AllBlocksCleared":
            parts.append(f"{len(self.hashes)} blocks")
            if len(self.tokens):
                parts.append(f"{len(self.tokens)} tokens")
            if self.parent is not None:
                parts.append(f"parent=0x{self.parent:x}")
            if self.lora_name:
                parts.append(f"lora_name={self.lora_name!r}")
            parts.append(f"tier={self.tier!r}")
        return f"Event({', '.join(parts)})"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _keys(values: Iterable[int] | UInt64Array) -> UInt64Array:
    return values if isinstance(values, np.ndarray) else _core.key_array(listed(values, "hashes"), "hashes")


def block_stored(
    hashes: Iterable[int] | UInt64Array,
    *,
    tokens: Iterable[int] | UInt32Array = (),
    block_size: int,
    parent: int | None = None,
    **more: Any,
) -> Event:
    """A BlockStored event.

    Parameters
    ----------
    hashes : array of uint64, or ints
        Negative ones become their two's complement.
    tokens : array of uint32, or ints
        ``len(hashes) * block_size`` of them, or none for a tier update.
    block_size : int
        Tokens per block.
    parent : int, optional
        Hash of the block before.
    **more
        Other fields of `Event`.

    Examples
    --------
    >>> block_stored([11, 12], tokens=range(8), block_size=4, lora_name="sql")
    Event(BlockStored, 2 blocks, 8 tokens, lora_name='sql', tier='gpu')
    """
    array = tokens if isinstance(tokens, np.ndarray) else _core.token_array(listed(tokens, "tokens"), "tokens")
    return Event("BlockStored", _keys(hashes), tokens=array, block_size=block_size, parent=parent, **more)


def block_removed(hashes: Iterable[int] | UInt64Array, **more: Any) -> Event:
    """A BlockRemoved event.

    Parameters
    ----------
    hashes : array of uint64, or ints
        Negative ones become their two's complement.
    **more
        Other fields of `Event`.

    Examples
    --------
    >>> block_removed([11], tier="cpu")
    Event(BlockRemoved, 1 blocks, tier='cpu')
    """
    return Event("BlockRemoved", _keys(hashes), **more)


def all_blocks_cleared() -> Event:
    """An AllBlocksCleared event.

    Examples
    --------
    >>> all_blocks_cleared()
    Event(AllBlocksCleared)
    """
    return Event("AllBlocksCleared")


@dataclass(slots=True, frozen=True)
class Batch:
    """A decoded batch.

    Attributes
    ----------
    events : tuple of Event
        In the order of the wire, bad ones left out.
    timestamp : float
        As sent: seconds since the epoch from vLLM.
    data_parallel_rank : int or None
        Of the engine that sent it.
    skipped_events : int
        Malformed, of unknown kind, over a limit, or cut off.
    truncated : bool
        The payload ended early.
    first_error : str or None
        Why the first skipped event was skipped.
    """

    events: tuple[Event, ...]
    timestamp: float
    data_parallel_rank: int | None = None
    skipped_events: int = 0
    truncated: bool = False
    first_error: str | None = None


def decode(payload: BytesLike, *, zero_parent_is_root: bool = True, max_payload_bytes: int = 16 << 20) -> Batch:
    """Decodes a batch in any form that engines publish.

    Parameters
    ----------
    payload : bytes or contiguous buffer
        MessagePack, as the engine sent it.
    zero_parent_is_root : bool
        Some publishers write 0 for "no parent".
    max_payload_bytes : int
        A longer one is refused.

    Returns
    -------
    Batch
        Its events, and what was skipped.

    Raises
    ------
    ValueError
        The payload is no batch; one bad event alone is skipped and counted.
    ResourceExhaustedError
        A limit is exceeded.

    Examples
    --------
    >>> decode(encode([all_blocks_cleared()], timestamp=1.5)).events
    (Event(AllBlocksCleared),)
    >>> decode(b"text")
    Traceback (most recent call last):
    ValueError: ...
    """
    events, timestamp, rank, skipped, truncated, first_error = _core.decode(
        payload, zero_parent_is_root, max_payload_bytes
    )
    return Batch(tuple(Event(*values) for values in events), timestamp, rank, skipped, truncated, first_error)


def encode(
    events: Sequence[Event], *, timestamp: float, schema: Schema = "map", data_parallel_rank: int | None = None
) -> bytes:
    """Encodes a batch, byte for byte what vLLM's publisher writes for the same events.

    Parameters
    ----------
    events : list of Event
        In order.
    timestamp : float
        Seconds since the epoch.
    schema : str
        The generation: ``"array6"`` (vLLM 0.9) to ``"array12"``, ``"map"`` (0.24), ``"map_wide"`` (0.33). Fields that
        a schema does not have are dropped.
    data_parallel_rank : int, optional
        Of the engine.

    Returns
    -------
    bytes
        MessagePack.

    Raises
    ------
    TypeError
        For an event that is no `Event`, or a field of the wrong type; the message names the field.
    ValueError
        For an unknown schema.

    Examples
    --------
    >>> decode(encode([block_removed([11])], timestamp=0.0, data_parallel_rank=3)).data_parallel_rank
    3
    """
    return _core.encode(listed(events, "events"), timestamp, schema, data_parallel_rank)


class LiveMessage(NamedTuple):
    """A message of the SUB socket.

    Attributes
    ----------
    topic : str
        As the engine publishes; see `parse_topic`.
    seq : int
        Number of the batch, from 0.
    payload : bytes
        For `decode`.
    """

    topic: str
    seq: int
    payload: BytesLike


class ReplayMessage(NamedTuple):
    """A reply of the replay socket; nothing but `end` is set in the last one.

    Attributes
    ----------
    end : bool
        No more replies follow.
    topic : str
        Empty where the publisher sends none.
    seq : int
        Number of the batch.
    payload : bytes
        For `decode`.
    """

    end: bool
    topic: str
    seq: int
    payload: BytesLike


def parse_live_message(frames: Sequence[BytesLike]) -> LiveMessage:
    """Reads ``[topic, seq, payload]``.

    Raises
    ------
    ValueError
        For another shape.

    Examples
    --------
    >>> parse_live_message([b"kv@a@m", encode_seq(7), b"batch"])
    LiveMessage(topic='kv@a@m', seq=7, payload=b'batch')
    """
    return LiveMessage(*_core.parse_live_message(listed(frames, "frames")))


def parse_replay_message(frames: Sequence[BytesLike]) -> ReplayMessage:
    """Reads a replay reply, with or without topic and leading empty frame.

    Raises
    ------
    ValueError
        For another shape.

    Examples
    --------
    >>> parse_replay_message([b"", encode_seq(7), b"batch"]).seq, parse_replay_message([b"", encode_seq(END_SEQ), b""]).end
    (7, True)
    """
    return ReplayMessage(*_core.parse_replay_message(listed(frames, "frames")))


def encode_seq(seq: int) -> bytes:
    """A sequence number as its frame: eight bytes, big-endian.

    Examples
    --------
    >>> encode_seq(258)
    b'\\x00\\x00\\x00\\x00\\x00\\x00\\x01\\x02'
    """
    return _core.encode_seq(seq)


def replay_request(start_seq: int) -> list[bytes]:
    """The two frames that a DEALER socket sends to ask for every buffered batch from `start_seq` on.

    Examples
    --------
    >>> replay_request(5) == [b"", encode_seq(5)]
    True
    """
    return [b"", _core.encode_seq(start_seq)]


class Topic(NamedTuple):
    """What a topic says.

    Attributes
    ----------
    pod : str
        ``"address:port"``, or whatever the engine calls itself.
    model : str
        Empty when the topic does not say.
    """

    pod: str
    model: str


def parse_topic(topic: str) -> Topic:
    """Reads ``kv@<pod>@<model>``; any other text is a pod without a model.

    Examples
    --------
    >>> parse_topic("kv@10.0.0.7:8000@org/model@v2")
    Topic(pod='10.0.0.7:8000', model='org/model@v2')
    """
    return Topic(*_core.parse_topic(topic))


def make_topic(pod: str, model: str) -> str:
    """The topic ``kv@<pod>@<model>``.

    Examples
    --------
    >>> make_topic("10.0.0.7:8000", "m")
    'kv@10.0.0.7:8000@m'
    """
    return _core.make_topic(pod, model)


def is_pseudo_pod(pod: str) -> bool:
    """True for storage tiers that publish under a pod's name: no endpoint that can be picked.

    Examples
    --------
    >>> is_pseudo_pod("10.0.0.7:8000")
    False
    """
    return _core.is_pseudo_pod(pod)


class Action(NamedTuple):
    """What the host is to do.

    Attributes
    ----------
    kind : {"apply", "clear", "request_replay", "cancel_replay"}
        Decode and apply `payload`, batch `seq`; forget all this publisher has announced; ask for batches from `seq` on,
        on a new socket, and tag the answers with `request`; close the socket of `request`.
    seq, request : int
        0 where the kind has none.
    payload : bytes
        Empty but for ``"apply"``.
    """

    kind: Literal["apply", "clear", "request_replay", "cancel_replay"]
    seq: int
    request: int
    payload: bytes


class StreamCounters(NamedTuple):
    """Counters of a `PublisherStream` since its creation.

    Attributes
    ----------
    applied, duplicates, dropped : int
        Batches: given to the host; live ones seen before; live ones not applied when they came, which a replay may have
        brought later.
    gaps_total : int
        Times a batch was missing, live or in a replay.
    events_lost_total : int
        Batches passed over for good.
    restarts, clears : int
        Restarts of the publisher that were noticed; times that what it had announced became void.
    replays_requested, replays_failed : int
        Requests, and those given up.
    malformed : int
        Messages that broke the protocol.
    """

    applied: int
    duplicates: int
    dropped: int
    gaps_total: int
    events_lost_total: int
    restarts: int
    clears: int
    replays_requested: int
    replays_failed: int
    malformed: int


class PublisherStream:
    """The stream of one publisher: which batches to apply, when to clear, when to ask for a replay.

    Does no I/O and knows no clock: every input carries the time, in seconds of any clock that does not go backwards,
    and the answer is a list of `Action` to be carried out in order. Several threads may call it; each call is atomic,
    but messages must arrive in the order of the transport.

    Parameters
    ----------
    mode : {"strict", "best_effort"}
        What to do when a replay is given up: wait for a complete one, or go on with what comes.
    replay : bool
        The publisher has a replay socket.
    replay_deadline, idle_timeout, retry_backoff, cooldown : float
        Seconds: from the first request to caught up; of silence that ends a request; between two requests; without
        requests after giving up.
    max_attempts_without_progress : int
        Requests in a row that bring nothing before giving up.
    max_held_bytes : int
        Live batches held during a replay.

    Examples
    --------
    >>> stream = PublisherStream()
    >>> (action,) = stream.on_connected(0.0)
    >>> action.kind, action.seq
    ('request_replay', 0)
    >>> stream.on_replay_batch(0.1, action.request, 0, b"batch")
    [Action(kind='apply', seq=0, request=0, payload=b'batch')]
    >>> stream.on_replay_end(0.1, action.request)
    []
    >>> [(action.kind, action.seq) for action in stream.on_live(0.2, 1, b"next")]
    [('apply', 1)]
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        *,
        mode: Literal["strict", "best_effort"] = "strict",
        replay: bool = True,
        replay_deadline: float = 120.0,
        idle_timeout: float = 2.0,
        retry_backoff: float = 0.1,
        cooldown: float = 30.0,
        max_attempts_without_progress: int = 3,
        max_held_bytes: int = 16 << 20,
    ) -> None:
        self._core = _core.PublisherStream(
            mode,
            replay,
            replay_deadline,
            idle_timeout,
            retry_backoff,
            cooldown,
            max_attempts_without_progress,
            max_held_bytes,
        )

    def on_connected(self, now: float) -> list[Action]:
        """The subscription became active: the first time, or again after a loss of the connection."""
        return _actions(self._core.on_connected(now))

    def on_live(self, now: float, seq: int, payload: BytesLike) -> list[Action]:
        """A live message."""
        return _actions(self._core.on_live(now, seq, payload))

    def on_replay_batch(self, now: float, request: int, seq: int, payload: BytesLike) -> list[Action]:
        """An answer to replay request `request`; those of earlier requests are ignored."""
        return _actions(self._core.on_replay_batch(now, request, seq, payload))

    def on_replay_end(self, now: float, request: int) -> list[Action]:
        """The end marker of a replay."""
        return _actions(self._core.on_replay_end(now, request))

    def on_replay_failed(self, now: float, request: int, *, malformed: bool = False) -> list[Action]:
        """The replay failed: its transport, or what it sent."""
        return _actions(self._core.on_replay_failed(now, request, malformed))

    def tick(self, now: float) -> list[Action]:
        """Time has passed; call it at `next_deadline` or later."""
        return _actions(self._core.tick(now))

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None when nothing is pending."""
        return self._core.next_deadline

    @property
    def last_applied(self) -> int | None:
        """Number of the batch last applied since the last clear."""
        return self._core.last_applied

    @property
    def in_sync(self) -> bool:
        """Nothing is missing, as far as the stream can know."""
        return self._core.in_sync

    @property
    def held_bytes(self) -> int:
        """Bytes of live batches that wait for a replay."""
        return self._core.held_bytes

    @property
    def counters(self) -> StreamCounters:
        """A snapshot of the counters."""
        return StreamCounters(*self._core.counters)

    def __repr__(self) -> str:
        return f"PublisherStream(last_applied={self.last_applied}, in_sync={self.in_sync})"


def _actions(values: list[tuple[Any, int, int, bytes]]) -> list[Action]:
    return [Action(*value) for value in values]


__all__ = [
    "END_SEQ",
    "TOPIC_PREFIX",
    "Action",
    "Batch",
    "Event",
    "EventKind",
    "ExtraKey",
    "LiveMessage",
    "PublisherStream",
    "RawMsgpack",
    "ReplayMessage",
    "Schema",
    "StreamCounters",
    "Topic",
    "all_blocks_cleared",
    "block_removed",
    "block_stored",
    "decode",
    "encode",
    "encode_seq",
    "is_pseudo_pod",
    "make_topic",
    "parse_live_message",
    "parse_replay_message",
    "parse_topic",
    "replay_request",
]
