"""Which endpoints hold how many leading blocks of a prompt.

`PrefixIndex` is exact: it is filled from the KV events that engines publish, by a `KvEventIngestor` or by hand.
`ApproxIndex` guesses from where prompts were sent, for engines without events.

Threads. Every object may be used by any number of threads. Matches run beside writes and beside one another; writes
follow one another. The GIL is released for long chains and for writes of many blocks.

Examples
--------
>>> import llmd.events, llmd.hash
>>> index = PrefixIndex()
>>> feed = KvEventIngestor(index)
>>> pod = feed.add_publisher("10.0.0.7:8000", model="m")
>>> stored = llmd.events.block_stored([1, 2], tokens=range(8), block_size=4)
>>> feed.apply(pod, llmd.events.encode([stored], timestamp=0.0)).wants_replay
False
>>> prompt = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
>>> match = index.match(request_namespace("m", block_size=4), llmd.hash.content_keys(prompt, block_size=4))
>>> index.by_endpoint(match)
{'10.0.0.7:8000': 2}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llmd import _core
from llmd._core import HolderId, Match, NamespaceId
from llmd._types import BytesLike, KeysLike, MemoryCause, MemoryUsage, core_of, listed, memory_usage


def make_namespace(model: str, *, lora: str = "", cache_salt: str = "", block_size: int = 16) -> NamespaceId:
    """The 128-bit name of chains that may share blocks; stable across processes and versions.

    Parameters
    ----------
    model : str
        As requests and events name it.
    lora : str
        Empty for the base model.
    cache_salt : str
        Empty for none.
    block_size : int
        Tokens per block.

    Examples
    --------
    >>> make_namespace("m") == make_namespace("m", lora="sql")
    False
    """
    return _core.make_namespace(model, lora, cache_salt, block_size)


def request_namespace(model: str, *, lora: str = "", block_size: int = 16) -> NamespaceId:
    """The namespace in which a `KvEventIngestor` files this model's blocks.

    Parameters
    ----------
    model : str
        As given to `KvEventIngestor.add_publisher`.
    lora : str
        Name of the adapter, as events have it; empty for the base model.
    block_size : int
        Tokens per block, the engine's.

    Examples
    --------
    >>> request_namespace("m") == request_namespace("m", block_size=32)
    False
    """
    return _core.request_namespace(model, lora, block_size)


class Holder(NamedTuple):
    """One endpoint in one storage tier.

    Attributes
    ----------
    endpoint : str
        ``"address:port"``, as the scheduler names it.
    dp_rank : int or None
        Data-parallel rank.
    tier : str
        Lower case; any text is its own tier.
    removal : {"set", "refcount"}
        Whether the first removal forgets a block that was stored several times, or the last.
    key_space : int
        Holders of one key space publish the same engine key for the same chain.
    """

    endpoint: str
    dp_rank: int | None = None
    tier: str = "gpu"
    removal: Literal["set", "refcount"] = "set"
    key_space: int = 0


class StoreResult(NamedTuple):
    """What became of a store. Nothing was changed unless the outcome is ``"applied"``.

    Attributes
    ----------
    outcome : {"applied", "unknown_parent", "stale_holder", "other_namespace"}
        Why it was not: nobody stored the parent; the holder is retired; the parent is in another namespace.
    added, duplicates : int
        Blocks that the holder did not have, and had already.
    """

    outcome: Literal["applied", "unknown_parent", "stale_holder", "other_namespace"]
    added: int
    duplicates: int

    @property
    def applied(self) -> bool:
        """True when the outcome is ``"applied"``."""
        return self.outcome == "applied"


class IndexStats(NamedTuple):
    """Counters of an index since its creation, then its present state.

    Attributes
    ----------
    stored_blocks, duplicate_blocks, removed_blocks : int
        Blocks that a store added; that the holder had already; that a remove took away.
    unknown_removes, unknown_parents, stale_holder_calls, namespace_mismatches : int
        Blocks, and calls, that named what is not there or belongs elsewhere.
    rebound_keys : int
        Engine keys that moved to other content.
    evicted_runs, evicted_holder_blocks : int
        Dropped to stay below the budget.
    holders, nodes, runs, holder_blocks : int
        Now: live holders; nodes, live or waiting for compaction; runs; pairs of a holder and a block.
    foreign_keys : int
        Now: engine keys that are kept for one holder alone.
    """

    stored_blocks: int
    duplicate_blocks: int
    removed_blocks: int
    unknown_removes: int
    unknown_parents: int
    stale_holder_calls: int
    namespace_mismatches: int
    rebound_keys: int
    evicted_runs: int
    evicted_holder_blocks: int
    holders: int
    nodes: int
    runs: int
    holder_blocks: int
    foreign_keys: int


class PrefixIndex:
    """The exact prefix index.

    A block has two 64-bit keys: the *content key*, computed by the router from tokens, by which chains are matched,
    and the *engine key*, the hash that the engine publishes, by which its later events name the block. Answers are
    those of a literal map of sets; over the budget, runs of blocks stored to least recently are dropped and counted.

    Parameters
    ----------
    max_bytes : int
        At least 1 MiB.
    max_holders : int
        1 to 65535.

    Examples
    --------
    >>> index = PrefixIndex()
    >>> ns = make_namespace("m")
    >>> pod = index.add_holder("10.0.0.7:8000")
    >>> index.store(pod, ns, engine_keys=[91, 92], content_keys=[1, 2])
    StoreResult(outcome='applied', added=2, duplicates=0)
    >>> match = index.match(ns, [1, 2, 3])
    >>> match, match.depth(pod), [int(depth) for depth in match.depths]
    (Match({1: 2}), 2, [2])
    """

    __slots__ = ("_core",)

    def __init__(self, *, max_bytes: int = 4 << 30, max_holders: int = 4096) -> None:
        self._core = _core.PrefixIndex(max_bytes, max_holders)

    def add_holder(
        self,
        endpoint: str,
        *,
        dp_rank: int | None = None,
        tier: str = "gpu",
        removal: Literal["set", "refcount"] = "set",
        key_space: int = 0,
    ) -> HolderId:
        """Adds a holder; see `Holder`.

        Raises
        ------
        AlreadyExistsError
            For a live (endpoint, dp_rank, tier).
        ResourceExhaustedError
            When `max_holders` are in use.
        """
        return self._core.add_holder(endpoint, dp_rank, tier, removal, key_space)

    def find_holder(self, endpoint: str, *, dp_rank: int | None = None, tier: str = "gpu") -> HolderId | None:
        """The live holder of this name."""
        return self._core.find_holder(endpoint, dp_rank, tier)

    def holder(self, holder: HolderId) -> Holder | None:
        """What a live holder is; None when it is retired."""
        values = self._core.get_holder(holder)
        return None if values is None else Holder(*values)

    def holders(self) -> list[tuple[HolderId, Holder]]:
        """All live holders, in the order of their slots."""
        return [(holder, Holder(*values)) for holder, values in self._core.holders()]

    def store(
        self,
        holder: HolderId,
        ns: NamespaceId,
        *,
        engine_keys: KeysLike,
        content_keys: KeysLike,
        parent: int | None = None,
        peers: Sequence[HolderId] = (),
    ) -> StoreResult:
        """The holder has these blocks, in order, below `parent`.

        Parameters
        ----------
        holder : HolderId
            Who has them.
        ns : NamespaceId
            See `make_namespace` and `request_namespace`.
        engine_keys, content_keys : array of uint64, shape (n,), or list of int
            Both names of each block, first block first.
        parent : int, optional
            Engine key of the block before; None at the root.
        peers : list of HolderId
            Holders of the same engine in other tiers.

        Raises
        ------
        ValueError
            When the two arrays have not the same length.
        """
        return StoreResult(*self._core.store(holder, ns, engine_keys, content_keys, parent, listed(peers, "peers")))

    def store_known(self, holder: HolderId, engine_keys: KeysLike, *, peers: Sequence[HolderId] = ()) -> int:
        """The holder has blocks that others published under these keys (a tier update). Returns how many were known."""
        return self._core.store_known(holder, engine_keys, listed(peers, "peers"))

    def remove(self, holder: HolderId, engine_keys: KeysLike) -> int:
        """The holder no longer has these blocks. Returns how many it had."""
        return self._core.remove(holder, engine_keys)

    def clear(self, holder: HolderId) -> bool:
        """The holder has nothing any more. False for a retired holder."""
        return self._core.clear(holder)

    def retire(self, holder: HolderId) -> bool:
        """As `clear`, and the handle becomes invalid for good."""
        return self._core.retire(holder)

    def compact(self) -> None:
        """Gives memory of dead nodes back; writes do it by themselves in small steps."""
        self._core.compact()

    def match(self, ns: NamespaceId, chain: KeysLike) -> Match:
        """How many leading blocks of a chain each holder has.

        Parameters
        ----------
        ns : NamespaceId
            Of the stores.
        chain : array of uint64, shape (n,), or list of int
            Content keys in order.

        Returns
        -------
        Match
            A row (slot, depth) for each holder that has at least the first block. The order of the rows is the same
            for the same history of writes.
        """
        return self._core.match(ns, chain)

    def by_endpoint(self, match: Match, *, tier: str | None = None) -> dict[str, int]:
        """The deepest match of each endpoint, in blocks, over its ranks and tiers, or in one tier."""
        return self._core.by_endpoint(match, tier)

    def stats(self) -> IndexStats:
        """A snapshot of the counters."""
        return IndexStats(*self._core.stats())

    def memory_usage(self) -> MemoryUsage:
        """Memory by cause, in bytes."""
        return memory_usage(self._core.memory_usage())

    def snapshot(self) -> bytes:
        """The whole index, holders included: versioned, with a checksum."""
        return self._core.snapshot()

    @classmethod
    def restore(cls, snapshot: BytesLike, *, max_bytes: int = 4 << 30, max_holders: int = 4096) -> PrefixIndex:
        """An index made from a snapshot.

        Raises
        ------
        DataLossError
            For a damaged or truncated snapshot.
        FailedPreconditionError
            For another major version.
        ResourceExhaustedError
            When it does not fit the options.
        """
        index = cls.__new__(cls)
        index._core = _core.PrefixIndex.restore(snapshot, max_bytes, max_holders)
        return index

    def __repr__(self) -> str:
        stats = self.stats()
        return f"PrefixIndex(holders={stats.holders}, holder_blocks={stats.holder_blocks})"


class ApproxIndex:
    """The approximate prefix index: where prompts were sent, as a guess of what each endpoint holds.

    Times are seconds of any clock that does not go backwards.

    Parameters
    ----------
    capacity_blocks : int
        Per holder, unless `add_holder` says otherwise; the least recently predicted are forgotten first.
    ttl : float, optional
        Seconds after which a prediction is forgotten; None: never.
    max_bytes : int
        Budget of memory.
    max_holders : int
        1 to 65535.

    Examples
    --------
    >>> index = ApproxIndex(ttl=60.0)
    >>> pod = index.add_holder("10.0.0.7:8000")
    >>> index.predict(pod, make_namespace("m"), [1, 2, 3], now=0.0)
    True
    >>> index.match(make_namespace("m"), [1, 2, 9])
    Match({1: 2})
    >>> index.expire(now=61.0)
    >>> len(index.match(make_namespace("m"), [1, 2, 9]))
    0
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        *,
        capacity_blocks: int = 31250,
        ttl: float | None = None,
        max_bytes: int = 1 << 30,
        max_holders: int = 4096,
    ) -> None:
        self._core = _core.ApproxIndex(capacity_blocks, ttl, max_bytes, max_holders)

    def add_holder(self, endpoint: str, *, capacity_blocks: int = 0) -> HolderId:
        """Adds an endpoint, ``"address:port"``; a capacity of 0 takes the index's.

        Raises
        ------
        AlreadyExistsError
            For a live endpoint.
        ResourceExhaustedError
            When `max_holders` are in use.
        """
        return self._core.add_holder(endpoint, capacity_blocks)

    def resize(self, holder: HolderId, capacity_blocks: int) -> bool:
        """Gives a holder another capacity in blocks (0: the index's) and forgets what is more.

        False for a retired holder.
        """
        return self._core.resize(holder, capacity_blocks)

    def predict(self, holder: HolderId, ns: NamespaceId, chain: KeysLike, *, now: float) -> bool:
        """The chain was sent to the holder at `now`. False for a retired holder."""
        return self._core.predict(holder, ns, chain, now)

    def expire(self, *, now: float) -> None:
        """Forgets what is older than the TTL; `predict` does it for its own holder."""
        self._core.expire(now)

    def clear(self, holder: HolderId) -> bool:
        """Forgets all predictions of a holder. False for a retired holder."""
        return self._core.clear(holder)

    def retire(self, holder: HolderId) -> bool:
        """As `clear`, and the handle becomes invalid for good."""
        return self._core.retire(holder)

    def size(self, holder: HolderId) -> int:
        """Blocks recorded for the holder."""
        return self._core.size(holder)

    def match(self, ns: NamespaceId, chain: KeysLike) -> Match:
        """As `PrefixIndex.match`. Does not count as use."""
        return self._core.match(ns, chain)

    def stats(self) -> IndexStats:
        """A snapshot of the counters."""
        return IndexStats(*self._core.stats())

    def memory_usage(self) -> MemoryUsage:
        """Memory by cause, in bytes."""
        return memory_usage(self._core.memory_usage())

    def __repr__(self) -> str:
        stats = self.stats()
        return f"ApproxIndex(holders={stats.holders}, holder_blocks={stats.holder_blocks})"


class Applied(NamedTuple):
    """What became of a batch.

    Attributes
    ----------
    wants_replay : bool
        An event named a parent nobody has heard of: a replay from the publisher would help.
    skipped_events : int
        Events that could not be decoded.
    """

    wants_replay: bool
    skipped_events: int


class IngestCounters(NamedTuple):
    """Counters of a `KvEventIngestor` since its creation.

    Attributes
    ----------
    batches, stored_events, removed_events, cleared_events : int
        Applied.
    stored_blocks, removed_blocks : int
        Announced with tokens and filed, known ones included; removed that the holder had.
    tier_updates, tier_updates_unknown : int
        Blocks filed under another tier by hash alone; those whose hash nobody has announced.
    skipped_groups, skipped_sparse, skipped_malformed : int
        Events passed over: of KV-cache groups that prefix matching cannot use; with tokens that do not fill the blocks;
        without hashes, below a block of another model or block size, or cut off.
    orphans_parked, orphans_attached, orphans_dropped : int
        Events whose parent is not known: waiting since; attached later; given up.
    holders_refused : int
        Events dropped because the index had no room for another holder.
    """

    batches: int
    stored_events: int
    removed_events: int
    cleared_events: int
    stored_blocks: int
    removed_blocks: int
    tier_updates: int
    tier_updates_unknown: int
    skipped_groups: int
    skipped_sparse: int
    skipped_malformed: int
    orphans_parked: int
    orphans_attached: int
    orphans_dropped: int
    holders_refused: int


class KvEventIngestor:
    """Applies KV events to a `PrefixIndex`: one publisher per endpoint, its ranks and tiers become holders.

    The request's side uses `request_namespace` and `llmd.hash.content_keys`. Several threads may apply batches; those
    of one publisher must come in its order. While it is in use, nobody else should write to the index.

    Parameters
    ----------
    index : PrefixIndex
        Where the events go.
    max_orphan_blocks : int
        Per publisher, waiting for their parent.
    max_publishers : int
        At a time.

    Examples
    --------
    >>> import llmd.events
    >>> index = PrefixIndex()
    >>> ingestor = KvEventIngestor(index)
    >>> publisher = ingestor.add_publisher("10.0.0.7:8000", model="m")
    >>> stored = llmd.events.block_stored([91], tokens=range(16), block_size=16)
    >>> ingestor.apply(publisher, llmd.events.encode([stored], timestamp=0.0))
    Applied(wants_replay=False, skipped_events=0)
    >>> index
    PrefixIndex(holders=1, holder_blocks=1)
    """

    __slots__ = ("_core",)

    def __init__(self, index: PrefixIndex, *, max_orphan_blocks: int = 4096, max_publishers: int = 65535) -> None:
        self._core = _core.KvEventIngestor(core_of(index, "index", PrefixIndex), max_orphan_blocks, max_publishers)

    def add_publisher(
        self, endpoint: str, *, model: str, gpu_removal: Literal["set", "refcount"] = "set"
    ) -> int:
        """Adds a publisher, ``"address:port"``, and returns its handle.

        Parameters
        ----------
        endpoint : str
        model : str
            The model part of the topic; requests must use the same text.
        gpu_removal : {"set", "refcount"}
            Of its holders in GPU memory; see `Holder`. vLLM announces each physical copy of a
            block and the removal of each: with "refcount" the index predicts its cache hits
            exactly, with "set" it forgets a block of two copies too early. Where requests ask vLLM
            to announce reused blocks too (``kv_cache_report_mode`` "full"), "refcount" would never
            forget them. Other tiers count. Holders that the index has from a snapshot keep theirs.

        Raises
        ------
        ValueError
            For an empty endpoint.
        AlreadyExistsError
            For a known endpoint, or one that has a holder that `PrefixIndex.add_holder` made: its blocks are not the
            publisher's to remove.
        ResourceExhaustedError
            When `max_publishers` are in use.
        """
        return self._core.add_publisher(endpoint, model, gpu_removal)

    def apply(self, publisher: int, payload: BytesLike) -> Applied:
        """Decodes a batch and applies its events in order; give each batch once.

        Raises
        ------
        NotFoundError
            For an unknown publisher.
        ValueError, ResourceExhaustedError
            As `llmd.events.decode`.
        """
        return Applied(*self._core.apply(publisher, payload))

    def clear(self, publisher: int) -> bool:
        """The publisher has nothing any more. False when unknown."""
        return self._core.clear(publisher)

    def remove_publisher(self, publisher: int) -> bool:
        """The endpoint is gone: its holders are retired. False when unknown."""
        return self._core.remove_publisher(publisher)

    @property
    def counters(self) -> IngestCounters:
        """A snapshot of the counters."""
        return IngestCounters(*self._core.counters)

    def __repr__(self) -> str:
        counters = self.counters
        return f"KvEventIngestor(batches={counters.batches}, stored_blocks={counters.stored_blocks})"


__all__ = [
    "Applied",
    "ApproxIndex",
    "Holder",
    "HolderId",
    "IndexStats",
    "IngestCounters",
    "KvEventIngestor",
    "Match",
    "MemoryCause",
    "MemoryUsage",
    "NamespaceId",
    "PrefixIndex",
    "StoreResult",
    "make_namespace",
    "request_namespace",
]
