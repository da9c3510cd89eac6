"""The KV block pool of a worker, with prefix caching: what a batch scheduler calls in each step.

Behaves like vLLM V1's block pool and KV cache manager with one full-attention group.

Threads. Every object may be used by any number of threads; each call is atomic.

Examples
--------
>>> import llmd.hash
>>> hasher = llmd.hash.VllmHasher(block_size=4)
>>> manager = KvCacheManager(num_blocks=100, block_size=4, enable_events=True)
>>> request = Request(1, list(range(10)), hasher=hasher)
>>> hit = manager.get_computed_blocks(request)
>>> blocks = manager.allocate_slots(request, 10, hit=hit)
>>> [int(block) for block in blocks]
[1, 2, 3]
>>> request.num_computed_tokens = 10
>>> manager.take_events()
[Event(BlockStored, 2 blocks, 8 tokens, tier='gpu')]
>>> manager.free(request)
>>> manager.get_computed_blocks(Request(2, list(range(10)), hasher=hasher))
PrefixHit(2 blocks, num_tokens=8)
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from llmd import _core
from llmd._core import PrefixHit
from llmd._types import MemoryUsage, TokensLike, UInt32Array, core_of, memory_usage
from llmd.events import Event, Schema
from llmd.hash import ExtraKeyStyle, RequestExtras, VllmHasher

RequestStatus: TypeAlias = Literal["waiting", "waiting_for_remote_kv", "running", "preempted", "finished"]
"""What the host says a request is doing."""

NULL_BLOCK = 0
"""The block that stands in block tables where no KV is needed."""


class Request:
    """A request: its tokens, the hashes of its full blocks, and the counters that the manager's rules read.

    Parameters
    ----------
    id : int
        0 to 2**64 - 1; the manager remembers the request by it.
    tokens : array of int32, uint32 or int64, shape (n,), or list of int
        The prompt.
    hasher : VllmHasher, optional
        Needed where caching is on; its block size must be the pool's.
    extras : RequestExtras, optional
        Go into the hashes and into stored events.
    style : str
        See `llmd.hash.request_extra_keys`.
    lora_id : int, optional
        Written into stored events.
    skip_reading_prefix_cache : bool
        E.g. when prompt logprobs are wanted: everything is computed.

    Examples
    --------
    >>> request = Request(1, [1, 2, 3])
    >>> request.append([4])
    >>> request
    Request(1, num_tokens=4, status='waiting')
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        id: int,
        tokens: TokensLike,
        *,
        hasher: VllmHasher | None = None,
        extras: RequestExtras | None = None,
        style: ExtraKeyStyle = "offset",
        lora_id: int | None = None,
        skip_reading_prefix_cache: bool = False,
    ) -> None:
        self._core = _core.Request(
            id,
            tokens,
            None if hasher is None else core_of(hasher, "hasher", VllmHasher),
            extras,
            style,
            lora_id,
            skip_reading_prefix_cache,
        )

    def append(self, tokens: TokensLike) -> None:
        """Takes the next tokens, e.g. one that was sampled, and hashes the blocks they complete."""
        self._core.append(tokens)

    @property
    def id(self) -> int:
        """Number of the request."""
        return self._core.id

    @property
    def tokens(self) -> UInt32Array:
        """A copy of all tokens, shape (num_tokens,)."""
        return self._core.tokens

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return self._core.num_tokens

    @property
    def block_hashes(self) -> list[bytes]:
        """One digest per full block."""
        return self._core.block_hashes

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose KV is in blocks held by the request; set by the host after each step."""
        return self._core.num_computed_tokens

    @num_computed_tokens.setter
    def num_computed_tokens(self, value: int) -> None:
        self._core.num_computed_tokens = value

    @property
    def num_preemptions(self) -> int:
        """How often it was preempted."""
        return self._core.num_preemptions

    @property
    def status(self) -> RequestStatus:
        """State of the request; set by the host."""
        return self._core.status

    @status.setter
    def status(self, value: RequestStatus) -> None:
        self._core.status = value

    def __repr__(self) -> str:
        return f"Request({self.id}, num_tokens={self.num_tokens}, status={self.status!r})"


class PoolState(NamedTuple):
    """A snapshot of a pool, then its counters since creation. The null block counts in `num_blocks` only.

    Attributes
    ----------
    num_blocks, num_free, num_held : int
        Blocks; a block that is cached and held by nobody is free.
    num_cached_blocks, num_cached_keys : int
        Blocks that can be found by their prefix; the same without duplicates.
    usage : float
        Share of blocks that requests hold, 0 to 1.
    blocks_allocated, blocks_cached, blocks_evicted : int
        Since creation.
    events_dropped : int
        Events that nobody took in time.
    """

    num_blocks: int
    num_free: int
    num_held: int
    num_cached_blocks: int
    num_cached_keys: int
    usage: float
    blocks_allocated: int
    blocks_cached: int
    blocks_evicted: int
    events_dropped: int


class BlockState(NamedTuple):
    """State of one block.

    Attributes
    ----------
    ref_cnt : int
        Holders.
    hash : bytes or None
        None while it is not cached.
    group_id : int
        KV-cache group.
    is_null : bool
        It is `NULL_BLOCK`.
    """

    ref_cnt: int
    hash: bytes | None
    group_id: int
    is_null: bool


class PrefixCacheStats(NamedTuple):
    """Counters since they were last taken. Hit rate = hits / queries.

    Attributes
    ----------
    requests, queries, hits : int
        Requests that looked up their prefix; their tokens; of these, cached ones.
    preempted_requests, preempted_queries, preempted_hits : int
        The same of requests that had been preempted.
    reset : bool
        The cache was reset meanwhile.
    """

    requests: int
    queries: int
    hits: int
    preempted_requests: int
    preempted_queries: int
    preempted_hits: int
    reset: bool


class _Pool:
    """What `BlockPool` and `KvCacheManager` have in common."""

    __slots__ = ("_core",)
    _core: _core.BlockPool | _core.KvCacheManager

    def find(self, digest: bytes, group_id: int = 0) -> int | None:
        """The block that holds this prefix, or None. No side effects: `touch` it before allocating anything else."""
        return self._core.find(digest, group_id)

    def touch(self, blocks: TokensLike) -> None:
        """Adds one holder to each block.

        Raises
        ------
        ValueError
            For an unknown one.
        """
        self._core.touch(blocks)

    def free_blocks(self, blocks: TokensLike) -> None:
        """Takes one holder from each block; list first what is to be evicted first.

        Raises
        ------
        ValueError, FailedPreconditionError
            For an id that is out of range or not held; the others are freed.
        """
        self._core.free_blocks(blocks)

    def evict_blocks(self, blocks: TokensLike) -> None:
        """Forgets the hashes of these blocks; holders keep them. For KV found to be invalid."""
        self._core.evict_blocks(blocks)

    def block_state(self, block: int) -> BlockState:
        """State of a block."""
        return BlockState(*self._core.block_state(block))

    @property
    def state(self) -> PoolState:
        """A snapshot of the pool."""
        return PoolState(*self._core.state)

    def memory_usage(self) -> MemoryUsage:
        """Memory by cause, in bytes."""
        return memory_usage(self._core.memory_usage())

    def take_events(self, *, full_digests: bool = False, medium: str = "GPU") -> list[Event]:
        """The KV events since they were last taken.

        Parameters
        ----------
        full_digests : bool
            Hashes as byte strings besides the 64-bit keys.
        medium : str
            Where the blocks are.
        """
        return [Event(*values) for values in self._core.take_events(full_digests, medium)]

    def take_event_batch(
        self,
        *,
        timestamp: float,
        schema: Schema = "map",
        full_digests: bool = False,
        data_parallel_rank: int | None = 0,
        medium: str = "GPU",
    ) -> bytes | None:
        """The KV events since they were last taken, as the batch that an engine publishes; None without events.

        Parameters
        ----------
        timestamp : float
            Seconds since the epoch.
        schema, data_parallel_rank
            See `llmd.events.encode`.
        full_digests : bool
            Hashes as byte strings instead of 64-bit keys.
        medium : str
            Where the blocks are.
        """
        return self._core.take_event_batch(timestamp, schema, full_digests, data_parallel_rank, medium)


class BlockPool(_Pool):
    """The pool of KV blocks: who holds which block, and what each free block still remembers.

    Parameters
    ----------
    num_blocks : int
        The null block included; 2 to 2**28.
    block_size : int
        Tokens per block.
    enable_caching, enable_events : bool
        Whether full blocks are found again; whether what happens to them is recorded.
    max_event_bytes : int
        Events that nobody takes are replaced by one "cleared" event beyond this.

    Examples
    --------
    >>> pool = BlockPool(num_blocks=10)
    >>> blocks = pool.get_new_blocks(3)
    >>> pool.state.num_free
    6
    >>> pool.free_blocks(blocks)
    """

    __slots__ = ()
    _core: _core.BlockPool

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 16,
        enable_caching: bool = True,
        enable_events: bool = False,
        max_event_bytes: int = 256 << 20,
    ) -> None:
        self._core = _core.BlockPool(num_blocks, block_size, enable_caching, enable_events, max_event_bytes)

    def get_new_blocks(self, n: int) -> UInt32Array:
        """`n` blocks with one holder each, shape (n,).

        Raises
        ------
        ResourceExhaustedError
            When fewer are free.
        """
        return self._core.get_new_blocks(n)

    def cache_full_blocks(
        self, request: Request, table: TokensLike, num_cached: int, num_full: int, group_id: int = 0
    ) -> None:
        """Makes blocks ``[num_cached, num_full)`` of a request's block table findable.

        Raises
        ------
        ValueError, FailedPreconditionError
            When the request's hashes or the table do not allow it; nothing was changed.
        """
        self._core.cache_full_blocks(core_of(request, "request", Request), table, num_cached, num_full, group_id)

    def reset(self) -> bool:
        """Forgets everything cached; False, and no change, while any block is held."""
        return self._core.reset()

    def __repr__(self) -> str:
        state = self.state
        return f"BlockPool(num_blocks={state.num_blocks}, num_free={state.num_free})"


class KvCacheManager(_Pool):
    """Block tables of running requests over a block pool.

    Parameters
    ----------
    num_blocks, block_size, enable_caching, enable_events, max_event_bytes
        As for `BlockPool`.
    group_id : int
        The KV-cache group that the pool serves.
    max_model_len : int, optional
        Tokens, prompt and output.
    watermark : float
        Share of the pool, 0 to 1, that admissions leave free while others run.

    Examples
    --------
    >>> manager = KvCacheManager(num_blocks=3, block_size=4, enable_caching=False)
    >>> request = Request(1, list(range(8)))
    >>> manager.allocate_slots(request, 8).tolist(), manager.allocate_slots(Request(2, [1]), 1)
    ([1, 2], None)
    >>> manager.free(request)
    >>> manager
    KvCacheManager(num_requests=0, num_blocks=3, num_free=2)
    """

    __slots__ = ()
    _core: _core.KvCacheManager

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 16,
        enable_caching: bool = True,
        enable_events: bool = False,
        max_event_bytes: int = 256 << 20,
        group_id: int = 0,
        max_model_len: int | None = None,
        watermark: float = 0.0,
    ) -> None:
        self._core = _core.KvCacheManager(
            num_blocks,
            block_size,
            enable_caching,
            enable_events,
            max_event_bytes,
            group_id,
            max_model_len,
            watermark,
        )

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._core.block_size

    @property
    def num_requests(self) -> int:
        """Requests that hold blocks."""
        return self._core.num_requests

    def get_computed_blocks(self, request: Request) -> PrefixHit:
        """The longest cached run of the request's leading blocks, at most ``num_tokens - 1`` tokens.

        Holds nothing: pass it to `allocate_slots` before allocating anything else.
        """
        return self._core.get_computed_blocks(core_of(request, "request", Request))

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        *,
        hit: PrefixHit | None = None,
        num_external_computed_tokens: int = 0,
        num_lookahead_tokens: int = 0,
        reserved_blocks: int = 0,
        delay_cache_blocks: bool = False,
        full_sequence_must_fit: bool = False,
        has_scheduled_requests: bool = False,
    ) -> UInt32Array | None:
        """Makes room for the request's next tokens and commits the blocks that these complete.

        Parameters
        ----------
        request : Request
            With `num_computed_tokens` up to date.
        num_new_tokens : int
            To be computed in this step.
        hit : PrefixHit, optional
            Only for a request that holds no blocks yet.
        num_external_computed_tokens : int
            KV that a connector will write into the new blocks.
        num_lookahead_tokens : int
            Speculative: slots only.
        reserved_blocks : int
            Promised to others.
        delay_cache_blocks : bool
            KV arrives later: commit with `commit_remote_load`.
        full_sequence_must_fit : bool
            The whole sequence must fit, not just this chunk.
        has_scheduled_requests : bool
            Others run: admissions leave the watermark free.

        Returns
        -------
        ndarray of uint32 or None
            The new blocks, hits not included; None when they do not fit now and nothing was changed.

        Raises
        ------
        ValueError, FailedPreconditionError
            For an argument that contradicts the request or the pool.
        """
        return self._core.allocate_slots(
            core_of(request, "request", Request),
            num_new_tokens,
            hit,
            num_external_computed_tokens,
            num_lookahead_tokens,
            reserved_blocks,
            delay_cache_blocks,
            full_sequence_must_fit,
            has_scheduled_requests,
        )

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Commits the full blocks among the first `num_tokens` tokens that a delayed allocation left uncommitted."""
        self._core.cache_blocks(core_of(request, "request", Request), num_tokens)

    def commit_remote_load(self, request: Request, num_loaded_tokens: int) -> int:
        """A remote load ended. Returns the new ``num_computed_tokens``; 0: nothing could be used."""
        return self._core.commit_remote_load(core_of(request, "request", Request), num_loaded_tokens)

    def free(self, request: Request | int) -> None:
        """Gives the request's blocks back, tail first.

        Raises
        ------
        NotFoundError
            When it holds none.
        """
        self._core.free(request._core if isinstance(request, Request) else request)

    def preempt(self, request: Request) -> None:
        """Gives the blocks of a running request back and sets it back to be computed again."""
        self._core.preempt(core_of(request, "request", Request))

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached blocks; False, and no change, while any block is held."""
        return self._core.reset_prefix_cache()

    def block_table(self, request: Request | int) -> UInt32Array:
        """A copy of the request's block table; empty when unknown."""
        return self._core.block_table(request._core if isinstance(request, Request) else request)

    def take_prefix_cache_stats(self) -> PrefixCacheStats:
        """The counters since they were last taken."""
        return PrefixCacheStats(*self._core.take_prefix_cache_stats())

    def __repr__(self) -> str:
        state = self.state
        return (
            f"KvCacheManager(num_requests={self.num_requests}, num_blocks={state.num_blocks}, num_free={state.num_free})"
        )


__all__ = [
    "NULL_BLOCK",
    "BlockPool",
    "BlockState",
    "KvCacheManager",
    "PoolState",
    "PrefixCacheStats",
    "PrefixHit",
    "Request",
    "RequestStatus",
]
