"""Types of the extension module: short positional signatures; the modules of the package are for use."""

from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from llmd._types import BytesLike, KeysLike, TokensLike, UInt32Array, UInt64Array
from llmd.events import Event, EventKind
from llmd.events import ExtraKey as EventExtraKey
from llmd.hash import ExtraKey, ExtraKeys, MultimodalItem, RequestExtras

__version__: str

_Memory: TypeAlias = tuple[int, tuple[tuple[str, int, int, int], ...]]

# hash

class Tag(str):
    """A string literal of the engine's source: one Python object however often it occurs. Pickle tells it apart.

    Examples
    --------
    >>> from llmd import hash
    >>> extras = hash.RequestExtras(lora_name="sql")
    >>> hash.request_extra_keys(extras, block_size=16, count=1, style="tagged")
    [(('lora', 'sql', ''),)]
    """

@final
class VllmHasher:
    def __init__(
        self, algorithm: str, block_size: int, seed: str | None, none_hash: bytes | Literal[0] | None, /
    ) -> None: ...
    def hash_blocks(
        self, tokens: TokensLike, parent: bytes | None, extra_keys: list[ExtraKeys] | None, /
    ) -> list[bytes]: ...
    def block_keys(
        self, tokens: TokensLike, parent: bytes | None, extra_keys: list[ExtraKeys] | None, /
    ) -> UInt64Array: ...
    def hash_block(self, tokens: TokensLike, parent: bytes | None, extra_keys: ExtraKeys, /) -> bytes: ...
    def preimage(self, tokens: TokensLike, parent: bytes | None, extra_keys: ExtraKeys, /) -> bytes: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def none_hash(self) -> bytes: ...

@final
class VllmChain:
    def __init__(self, hasher: VllmHasher, extras: RequestExtras | None, style: str, /) -> None: ...
    def extend(self, tokens: TokensLike, /) -> list[bytes]: ...
    def clear(self) -> None: ...
    @property
    def digests(self) -> list[bytes]: ...
    @property
    def keys(self) -> UInt64Array: ...
    @property
    def token_count(self) -> int: ...

@final
class RequestKeyHasher:
    def __init__(self, algorithm: str, seed: str, block_size: int, /) -> None: ...
    def root(self, model: str, /) -> int: ...
    def hash_blocks(self, tokens: TokensLike, parent: int, extra: list[Any] | None, /) -> UInt64Array: ...

def extra_keys_of_request(
    extras: RequestExtras, style: str, block_size: int, count: int, /
) -> list[tuple[ExtraKey, ...] | None]: ...
def extra_strings_of_request(extras: RequestExtras, block_size: int, count: int, /) -> list[tuple[str, ...]]: ...
def low64(digest: BytesLike, /) -> int: ...
def first64(digest: BytesLike, /) -> int: ...
def pool_key(digest: bytes, group_id: int, /) -> bytes: ...
def parse_pool_key(key: BytesLike, /) -> tuple[bytes, int]: ...
def group_digests(digests: list[bytes], factor: int, /) -> list[bytes]: ...
def approx_prefix_keys(
    tokens: TokensLike,
    model: str,
    cache_salt: str,
    block_size: int,
    max_prefix_tokens: int,
    max_prefix_blocks: int,
    /,
) -> UInt64Array: ...
def gaie_prefix_keys(
    prompt: str | BytesLike, model: str, cache_salt: str, block_bytes: int, max_blocks: int, /
) -> UInt64Array: ...
def estimate_tokens(parts: list[str | tuple[str, int]], /) -> UInt32Array: ...
def dynamo_local_seed(lora_name: str, cache_namespace: str, /) -> int: ...
def dynamo_local_hashes(tokens: TokensLike, block_size: int, seed: int, eagle: bool, /) -> UInt64Array: ...
def dynamo_sequence_hashes(local: KeysLike, parent: int | None, seed: int, /) -> UInt64Array: ...
def sglang_page_hashes(tokens: TokensLike, page_size: int, parent: bytes | None, bigram: bool, /) -> list[bytes]: ...
def parse_lmcache_algorithm(algorithm: str, /) -> str: ...
def lmcache_chunk_hashes(hasher: VllmHasher, tokens: TokensLike, save_unfull_chunk: bool, /) -> list[bytes]: ...
def trtllm_salt_id(cache_salt: str, /) -> int: ...
def trtllm_v1_keys(
    tokens: TokensLike, tokens_per_block: int, parent: int, lora_task_id: int | None, salt_id: int | None, /
) -> UInt64Array: ...
def trtllm_v2_digests(
    tokens: TokensLike, tokens_per_block: int, parent: bytes | None, lora_task_id: int | None, salt_id: int | None, /
) -> list[bytes]: ...

_ProbeMatch: TypeAlias = tuple[str, str, str, str, str, int, bool]

def probe(
    tokens: TokensLike,
    block_size: int,
    hashes: list[int | bytes],
    parent: int | bytes | None,
    extras: RequestExtras | None,
    event_extra_keys: list[ExtraKeys],
    first_block: int,
    seeds: list[str],
    none_hashes: list[bytes],
    models: list[str],
    /,
) -> tuple[_ProbeMatch | None, list[_ProbeMatch], int, str]: ...

# events

class RawMsgpack(bytes):
    """An extra key of a shape that is not known: its MessagePack bytes."""

_Event: TypeAlias = tuple[
    EventKind,
    UInt64Array,
    tuple[bytes, ...],
    int | None,
    bytes,
    UInt32Array,
    UInt32Array,
    int,
    int | None,
    str,
    tuple[tuple[EventExtraKey, ...], ...],
    tuple[UInt32Array, ...],
    str,
    str,
    str,
    str,
    int | None,
    str,
    int | None,
    str,
    str,
    str,
    str,
    str,
    str,
    int | None,
]

def key_array(keys: KeysLike, name: str, /) -> UInt64Array: ...
def token_array(tokens: TokensLike, name: str, /) -> UInt32Array: ...
def decode(
    payload: BytesLike, zero_parent_is_root: bool, max_payload_bytes: int, /
) -> tuple[list[_Event], float, int | None, int, bool, str | None]: ...
def encode(events: list[Event], timestamp: float, schema: str, data_parallel_rank: int | None, /) -> bytes: ...
def parse_live_message(frames: list[BytesLike], /) -> tuple[str, int, BytesLike]: ...
def parse_replay_message(frames: list[BytesLike], /) -> tuple[bool, str, int, BytesLike]: ...
def encode_seq(seq: int, /) -> bytes: ...
def parse_topic(topic: str, /) -> tuple[str, str]: ...
def make_topic(pod: str, model: str, /) -> str: ...
def is_pseudo_pod(pod: str, /) -> bool: ...

_Action: TypeAlias = tuple[Literal["apply", "clear", "request_replay", "cancel_replay"], int, int, bytes]

@final
class PublisherStream:
    def __init__(
        self,
        mode: str,
        replay: bool,
        replay_deadline: float,
        idle_timeout: float,
        retry_backoff: float,
        cooldown: float,
        max_attempts_without_progress: int,
        max_held_bytes: int,
        /,
    ) -> None: ...
    def on_connected(self, now: float, /) -> list[_Action]: ...
    def on_live(self, now: float, seq: int, payload: BytesLike, /) -> list[_Action]: ...
    def on_replay_batch(self, now: float, request: int, seq: int, payload: BytesLike, /) -> list[_Action]: ...
    def on_replay_end(self, now: float, request: int, /) -> list[_Action]: ...
    def on_replay_failed(self, now: float, request: int, malformed: bool, /) -> list[_Action]: ...
    def tick(self, now: float, /) -> list[_Action]: ...
    @property
    def next_deadline(self) -> float | None: ...
    @property
    def last_applied(self) -> int | None: ...
    @property
    def in_sync(self) -> bool: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def counters(self) -> tuple[int, int, int, int, int, int, int, int, int, int]: ...

# index

@final
class NamespaceId:
    """128-bit name of a namespace; hashable. `make_namespace` and `request_namespace` make one."""

    def __init__(self, hi: int, lo: int, /) -> None: ...
    @property
    def hi(self) -> int:
        """Upper 64 bits."""
    @property
    def lo(self) -> int:
        """Lower 64 bits."""
    def __hash__(self) -> int: ...

@final
class HolderId:
    """Handle of a holder; hashable. `PrefixIndex.add_holder` makes one."""

    def __init__(self, slot: int, generation: int, /) -> None: ...
    @property
    def slot(self) -> int:
        """As in the rows of a `Match`; reused under another generation."""
    @property
    def generation(self) -> int:
        """Tells apart the holders that have had this slot."""
    def __hash__(self) -> int: ...

@final
class Match:
    """Rows (slot, depth): the holder in `slot` has the first `depth` blocks of the chain, at least one."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> tuple[int, int]: ...
    @property
    def slots(self) -> UInt32Array:
        """Slots of the rows, shape (len,)."""
    @property
    def depths(self) -> UInt32Array:
        """Depths of the rows in blocks, shape (len,)."""
    def depth(self, holder: HolderId, /) -> int:
        """Depth of one holder in blocks; 0 when it has no row."""

_Holder: TypeAlias = tuple[str, int | None, str, Literal["set", "refcount"], int]
_Outcome: TypeAlias = Literal["applied", "unknown_parent", "stale_holder", "other_namespace"]
_IndexStats: TypeAlias = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, int, int
]

def make_namespace(model: str, lora: str, cache_salt: str, block_size: int, /) -> NamespaceId: ...
@final
class PrefixIndex:
    def __init__(self, max_bytes: int, max_holders: int, /) -> None: ...
    @staticmethod
    def restore(snapshot: BytesLike, max_bytes: int, max_holders: int, /) -> PrefixIndex: ...
    def add_holder(
        self, endpoint: str, dp_rank: int | None, tier: str, removal: str, key_space: int, /
    ) -> HolderId: ...
    def find_holder(self, endpoint: str, dp_rank: int | None, tier: str, /) -> HolderId | None: ...
    def get_holder(self, holder: HolderId, /) -> _Holder | None: ...
    def holders(self) -> list[tuple[HolderId, _Holder]]: ...
    def store(
        self,
        holder: HolderId,
        ns: NamespaceId,
        engine_keys: KeysLike,
        content_keys: KeysLike,
        parent: int | None,
        peers: list[HolderId],
        /,
    ) -> tuple[_Outcome, int, int]: ...
    def store_known(self, holder: HolderId, engine_keys: KeysLike, peers: list[HolderId], /) -> int: ...
    def remove(self, holder: HolderId, engine_keys: KeysLike, /) -> int: ...
    def clear(self, holder: HolderId, /) -> bool: ...
    def retire(self, holder: HolderId, /) -> bool: ...
    def compact(self) -> None: ...
    def match(self, ns: NamespaceId, chain: KeysLike, /) -> Match: ...
    def by_endpoint(self, match: Match, tier: str | None, /) -> dict[str, int]: ...
    def stats(self) -> _IndexStats: ...
    def memory_usage(self) -> _Memory: ...
    def snapshot(self) -> bytes: ...

@final
class ApproxIndex:
    def __init__(self, capacity_blocks: int, ttl: float | None, max_bytes: int, max_holders: int, /) -> None: ...
    def add_holder(self, endpoint: str, capacity_blocks: int, /) -> HolderId: ...
    def resize(self, holder: HolderId, capacity_blocks: int, /) -> bool: ...
    def predict(self, holder: HolderId, ns: NamespaceId, chain: KeysLike, now: float, /) -> bool: ...
    def expire(self, now: float, /) -> None: ...
    def clear(self, holder: HolderId, /) -> bool: ...
    def retire(self, holder: HolderId, /) -> bool: ...
    def size(self, holder: HolderId, /) -> int: ...
    def match(self, ns: NamespaceId, chain: KeysLike, /) -> Match: ...
    def stats(self) -> _IndexStats: ...
    def memory_usage(self) -> _Memory: ...

# ingest

@final
class KvEventIngestor:
    def __init__(self, index: PrefixIndex, max_orphan_blocks: int, max_publishers: int, /) -> None: ...
    def add_publisher(self, endpoint: str, model: str, gpu_removal: str, /) -> int: ...
    def apply(self, publisher: int, payload: BytesLike, /) -> tuple[bool, int]: ...
    def clear(self, publisher: int, /) -> bool: ...
    def remove_publisher(self, publisher: int, /) -> bool: ...
    @property
    def counters(
        self,
    ) -> tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, int]: ...

def content_keys(
    tokens: TokensLike, block_size: int, cache_salt: str, items: list[MultimodalItem], /
) -> UInt64Array: ...
def request_namespace(model: str, lora: str, block_size: int, /) -> NamespaceId: ...

# worker

@final
class Request:
    def __init__(
        self,
        id: int,
        tokens: TokensLike,
        hasher: VllmHasher | None,
        extras: RequestExtras | None,
        style: str,
        lora_id: int | None,
        skip_reading_prefix_cache: bool,
        /,
    ) -> None: ...
    def append(self, tokens: TokensLike, /) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def tokens(self) -> UInt32Array: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def block_hashes(self) -> list[bytes]: ...
    @property
    def num_preemptions(self) -> int: ...
    num_computed_tokens: int
    status: Literal["waiting", "waiting_for_remote_kv", "running", "preempted", "finished"]

@final
class PrefixHit:
    """Leading blocks of a request that are cached already."""

    @property
    def blocks(self) -> UInt32Array:
        """Ids, shape (len,)."""
    @property
    def num_tokens(self) -> int:
        """``len * block_size``."""
    def __len__(self) -> int: ...

class _Pool:
    def find(self, digest: bytes, group_id: int, /) -> int | None: ...
    def touch(self, blocks: TokensLike, /) -> None: ...
    def free_blocks(self, blocks: TokensLike, /) -> None: ...
    def evict_blocks(self, blocks: TokensLike, /) -> None: ...
    def block_state(self, block: int, /) -> tuple[int, bytes | None, int, bool]: ...
    def memory_usage(self) -> _Memory: ...
    def take_events(self, full_digests: bool, medium: str, /) -> list[_Event]: ...
    def take_event_batch(
        self, timestamp: float, schema: str, full_digests: bool, data_parallel_rank: int | None, medium: str, /
    ) -> bytes | None: ...
    @property
    def state(self) -> tuple[int, int, int, int, int, float, int, int, int, int]: ...

@final
class BlockPool(_Pool):
    def __init__(
        self, num_blocks: int, block_size: int, enable_caching: bool, enable_events: bool, max_event_bytes: int, /
    ) -> None: ...
    def get_new_blocks(self, n: int, /) -> UInt32Array: ...
    def cache_full_blocks(
        self, request: Request, table: TokensLike, num_cached: int, num_full: int, group_id: int, /
    ) -> None: ...
    def reset(self) -> bool: ...

@final
class KvCacheManager(_Pool):
    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_caching: bool,
        enable_events: bool,
        max_event_bytes: int,
        group_id: int,
        max_model_len: int | None,
        watermark: float,
        /,
    ) -> None: ...
    def get_computed_blocks(self, request: Request, /) -> PrefixHit: ...
    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        hit: PrefixHit | None,
        num_external_computed_tokens: int,
        num_lookahead_tokens: int,
        reserved_blocks: int,
        delay_cache_blocks: bool,
        full_sequence_must_fit: bool,
        has_scheduled_requests: bool,
        /,
    ) -> UInt32Array | None: ...
    def cache_blocks(self, request: Request, num_tokens: int, /) -> None: ...
    def commit_remote_load(self, request: Request, num_loaded_tokens: int, /) -> int: ...
    def free(self, request: Request | int, /) -> None: ...
    def preempt(self, request: Request, /) -> None: ...
    def reset_prefix_cache(self) -> bool: ...
    def block_table(self, request: Request | int, /) -> UInt32Array: ...
    def take_prefix_cache_stats(self) -> tuple[int, int, int, int, int, int, bool]: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def block_size(self) -> int: ...

# sched

@final
class EndpointHandle:
    """Names an endpoint for as long as it lives; hashable. `EndpointPool.add` makes one."""

    def __init__(self, slot: int, generation: int) -> None: ...
    @property
    def slot(self) -> int:
        """Reused under another generation."""
    @property
    def generation(self) -> int:
        """Tells apart the endpoints that have had this slot."""
    def __hash__(self) -> int: ...

@final
class Endpoint:
    """An endpoint as it was at one moment. What was never measured is None."""

    @property
    def position(self) -> int:
        """Index in the pool at that moment."""
    @property
    def handle(self) -> EndpointHandle:
        """For the pool's functions."""
    @property
    def id(self) -> str:
        """``"namespace/name"``."""
    @property
    def name(self) -> str:
        """Unique together with `namespace`."""
    @property
    def namespace(self) -> str:
        """As given; ``"default"``."""
    @property
    def address(self) -> str:
        """Host name or IP."""
    @property
    def port(self) -> int:
        """1 to 65535."""
    @property
    def host_port(self) -> str:
        """``"address:port"``, IPv6 in brackets."""
    @property
    def node_address(self) -> str:
        """Of the machine; empty when not known."""
    @property
    def rank(self) -> int:
        """Index among the ports of one pod."""
    @property
    def labels(self) -> dict[str, str]:
        """As of a pod."""
    @property
    def waiting(self) -> int | None:
        """Requests in its queue."""
    @property
    def running(self) -> int | None:
        """Requests in its batch."""
    @property
    def kv_usage(self) -> float | None:
        """Fraction of its cache in use, 0 to 1."""
    @property
    def cache_block_size(self) -> int:
        """Tokens; 0 when the engine does not say."""
    @property
    def cache_num_blocks(self) -> int:
        """Blocks; 0 when the engine does not say."""
    @property
    def updated(self) -> float | None:
        """When the newest of waiting, running and kv_usage was read."""
    @property
    def adapters(self) -> tuple[int, list[str], list[str]] | None:
        """Most at a time, active, waiting."""
    @property
    def attributes(self) -> dict[str, float]:
        """Named numbers, for plugins of one's own."""
    def __hash__(self) -> int: ...

@final
class PluginContext:
    """What a plugin written in Python sees of one decision. Any use after the call raises RuntimeError."""

    @property
    def request(self) -> Any:
        """The `llmd.sched.Request`."""
    @property
    def now(self) -> float:
        """Time of the decision, seconds since the epoch."""
    @property
    def pool_size(self) -> int:
        """Endpoints in the pool."""
    @property
    def candidates(self) -> UInt32Array:
        """Positions of this call's candidates, shape (n,)."""
    @property
    def waiting(self) -> npt.NDArray[np.float64]:
        """Requests of each candidate, NaN where not known, shape (n,)."""
    @property
    def running(self) -> npt.NDArray[np.float64]:
        """Requests in each candidate's batch, NaN where not known, shape (n,)."""
    @property
    def kv_usage(self) -> npt.NDArray[np.float64]:
        """Fraction of each candidate's cache in use, NaN where not known, shape (n,)."""
    def attribute(self, name: str, /) -> npt.NDArray[np.float64]:
        """A named number of each candidate, NaN where there is none, shape (n,)."""
    def data(self, name: str, /) -> npt.NDArray[Any] | None:
        """What another plugin published, one element per position of the pool; None: nothing this time."""
    def endpoint(self, position: int, /) -> Endpoint:
        """The endpoint at a position of the pool."""
    def random(self) -> int:
        """64 random bits, decided by the seed."""

# The rest is wrapped by the modules of the package, which have the types.
EndpointPool: Any
SchedulerPrompt: Any
SchedulerRequest: Any
Registry: Any
Scheduler: Any
PluginStates: Any
TestIndex: Any
ExtProcStream: Any
UsageReader: Any
SessionIdReader: Any
BoundedLoad: Any
RingHash: Any
Maglev: Any
EngineMetricsReader: Any
EndpointsFile: Any

def parse_config(text: str, source: str, allow_experimental: bool, warnings: list[str], /) -> Any: ...
def api_of_path(path: str, /) -> str: ...
def parse_openai(api: str, body: BytesLike, max_depth: int, max_body_bytes: int, /) -> dict[str, Any]: ...
def splice_model(body: BytesLike, values: list[tuple[int, int]], model: str, /) -> bytes: ...
def find_cookie(header: str, name: str, /) -> str: ...
def envoy_address_key(address: str, port: int, /) -> str: ...
def hash_hosts_of(pool: Any, /) -> list[tuple[str, int, int]]: ...
def envoy_xxhash64(text: BytesLike, seed: int, /) -> int: ...
def envoy_murmur2(text: BytesLike, /) -> int: ...
def hash_header_values(values: list[str], /) -> int: ...
def combine_hashes(hashes: list[int], /) -> int | None: ...
