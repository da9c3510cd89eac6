"""What a gateway needs besides a scheduler: the endpoint-picker protocol on bytes, OpenAI requests, session affinity,
consistent hashing as Envoy's, metrics pages of engines, and endpoints files.

Nothing here does I/O. Any thread may call anything; calls of one object take turns. Text that came from outside and
is not UTF-8 is kept with surrogates (``errors="surrogateescape"``).

Examples
--------
>>> from llmd import gateway
>>> request = gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": [1, 2, 3], "stream": true}')
>>> request.model, request.prompts[0].tokens.tolist(), request.stream
('m', [1, 2, 3], True)
>>> ring = gateway.RingHash(["10.0.0.1:8000", "10.0.0.2:8000"])
>>> ring.pick(gateway.hash_header("session-7"))
1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._core import EndpointHandle
from llmd._ext_proc import (
    Completion,
    ExtProcOptions,
    ExtProcStream,
    Headers,
    RequestFacts,
    ResponseFacts,
    pairs_of,
)
from llmd._openai import (
    ChatMessage,
    MediaItem,
    OpenAIPrompt,
    OpenAIRequest,
    Usage,
    UsageReader,
    api_of_path,
    parse_request,
    replace_model,
)
from llmd._pool import EndpointPool, _at
from llmd._types import core_of, listed, mapped, of_type

# --- Sessions ---


@dataclass(frozen=True)
class SessionSource:
    """A header or cookie that may name the session.

    Attributes
    ----------
    kind
        header or cookie.
    name
        Of it.
    """

    kind: Literal["header", "cookie"]
    name: str


@dataclass(frozen=True)
class SessionId:
    """What was found; true when there is a session.

    Attributes
    ----------
    result
        found, absent, too_long or control (a control character).
    source
        Index of the `SessionSource`.
    value
        Name of the session.
    """

    result: str
    source: int
    value: str

    def __bool__(self) -> bool:
        return self.result == "found"


class SessionIdReader:
    """Finds a request's session as the filter in front of a mesh does.

    Parameters
    ----------
    sources
        Where to look, first source first; by default the headers ``x-session-id`` and ``session-id``, then the
        cookies ``session-id`` and ``session_id``.
    max_bytes
        A longer value is refused.

    Examples
    --------
    >>> SessionIdReader().read({"Cookie": "a=1; session-id=xyz"}).value
    'xyz'
    """

    def __init__(self, sources: Iterable[SessionSource] | None = None, *, max_bytes: int = 1024) -> None:
        given = None
        if sources is not None:
            made = [of_type(s, "sources", SessionSource) for s in listed(sources, "sources")]
            given = [(s.kind, s.name) for s in made]
        self._core = _core.SessionIdReader(given, max_bytes)

    def read(self, headers: Headers) -> SessionId:
        """The first source that has a value; false when none has, or it is refused."""
        return SessionId(*self._core.read(pairs_of(headers)))


def find_cookie(cookie_header: str, name: str) -> str:
    """The first cookie of that name; empty when there is none.

    Examples
    --------
    >>> find_cookie("theme=dark; sid=7", "sid")
    '7'
    """
    return str(_core.find_cookie(cookie_header, name))


# --- Consistent hashing ---


@dataclass(frozen=True)
class HashHost:
    """A host of a ring or table.

    Attributes
    ----------
    key
        By which it is hashed, ``"address:port"``; see `envoy_address_key`.
    weight
        Its share, at least 1.
    locality
        Index of its locality's weight.
    """

    key: str
    weight: int = 1
    locality: int = 0


def _hosts(hosts: Iterable[HashHost | str]) -> list[tuple[str, int, int]]:
    made = [HashHost(h) if isinstance(h, str) else of_type(h, "hosts", HashHost) for h in listed(hosts, "hosts")]
    return [(h.key, h.weight, h.locality) for h in made]


def hash_hosts_of(pool: EndpointPool) -> list[HashHost]:
    """The endpoints by address, so that a pick is a position.

    Examples
    --------
    >>> pool = EndpointPool()
    >>> _ = pool.add("a", "10.0.0.1", 8000)
    >>> hash_hosts_of(pool)
    [HashHost(key='10.0.0.1:8000', weight=1, locality=0)]
    """
    return [HashHost(*parts) for parts in _core.hash_hosts_of(core_of(pool, "pool", EndpointPool))]


def envoy_address_key(address: str, port: int) -> str:
    """The key of a host as Envoy spells it.

    Examples
    --------
    >>> envoy_address_key("0:0::1", 80)
    '[::1]:80'
    """
    return str(_core.envoy_address_key(address, port))


def xxhash64(text: bytes | str, seed: int = 0) -> int:
    """XXH64, Envoy's hash of a cookie, a source IP or a query parameter.

    Examples
    --------
    >>> hex(xxhash64("a"))
    '0xd24ec4f1a98c6e5b'
    """
    return int(_core.envoy_xxhash64(_bytes(text, "text"), seed))


def murmurhash2(text: bytes | str) -> int:
    """What Envoy calls MURMUR_HASH_2.

    Examples
    --------
    >>> murmurhash2("a") == murmurhash2(b"a")
    True
    """
    return int(_core.envoy_murmur2(_bytes(text, "text")))


def hash_header(*values: str) -> int:
    """Envoy's hash of a header with these values, at least one, in any order.

    Examples
    --------
    >>> hash_header("a", "b") == hash_header("b", "a")
    True
    """
    return int(_core.hash_header_values(list(values)))


def combine_hashes(hashes: Iterable[int]) -> int | None:
    """Envoy's combination of several policies' hashes; None for none.

    Examples
    --------
    >>> combine_hashes([5]), combine_hashes([])
    (5, None)
    """
    out: int | None = _core.combine_hashes(listed(hashes, "hashes"))
    return out


class _Table:
    _core: Any

    def pick(self, hash: int, attempt: int = 0) -> int | None:
        """Index of a host; None when there is none. `attempt` counts retries."""
        host: int | None = self._core.pick(hash, attempt)
        return host

    def pick_many(self, hashes: npt.NDArray[np.uint64] | Sequence[int]) -> npt.NDArray[np.uint32]:
        """Index of a host for each hash, shape (n,); 2**32 - 1 when there is none."""
        out: npt.NDArray[np.uint32] = self._core.pick_many(hashes)
        return out

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} entries)"

    def bounded(self, balance_factor: int) -> BoundedLoad:
        """A bound on the load of this table's hosts: percent of their share, at least 100, or 0 for no bound."""
        return BoundedLoad(self._core.bounded(balance_factor))


class RingHash(_Table):
    """Envoy's ring hash, bit for bit. Immutable.

    Parameters
    ----------
    hosts
        `HashHost` or keys, in the order of the cluster.
    min_ring_size, max_ring_size
        Entries.
    function
        "xxhash" or "murmurhash2".
    locality_weights
        By `HashHost.locality`; none when there are no localities.

    Raises
    ------
    ValueError
        For empty or repeated keys, weights of 0, sizes out of range.

    Examples
    --------
    >>> ring = RingHash(["10.0.0.1:8000", HashHost("10.0.0.2:8000", weight=3)])
    >>> ring, ring.pick(hash_header("session-7")) in (0, 1)
    (RingHash(1024 entries), True)
    """

    def __init__(
        self,
        hosts: Iterable[HashHost | str],
        *,
        min_ring_size: int = 1024,
        max_ring_size: int = 8_388_608,
        function: Literal["xxhash", "murmurhash2"] = "xxhash",
        locality_weights: Sequence[int] = (),
    ) -> None:
        if function not in ("xxhash", "murmurhash2"):
            raise ValueError(f"function is {function!r}, wanted xxhash or murmurhash2")
        self._core = _core.RingHash(
            _hosts(hosts), min_ring_size, max_ring_size, function == "murmurhash2", listed(locality_weights, "locality_weights")
        )


class Maglev(_Table):
    """Envoy's Maglev, bit for bit. Immutable.

    Parameters
    ----------
    hosts
        `HashHost` or keys, in the order of the cluster.
    table_size
        Entries; a prime number.
    locality_weights
        As of `RingHash`.

    Raises
    ------
    ValueError
        As of `RingHash`.

    Examples
    --------
    >>> Maglev(["a:1", "b:1"], table_size=11).pick(5) in (0, 1)
    True
    """

    def __init__(
        self,
        hosts: Iterable[HashHost | str],
        *,
        table_size: int = 65537,
        locality_weights: Sequence[int] = (),
    ) -> None:
        self._core = _core.Maglev(_hosts(hosts), table_size, listed(locality_weights, "locality_weights"))


class BoundedLoad:
    """A host that is too busy passes its requests on, always to the same other hosts for one hash.

    Examples
    --------
    >>> ring = RingHash(["a:1", "b:1"])
    >>> host, bound = ring.pick(7), ring.bounded(125)  # at most 125 % of a fair share
    >>> bound.pick(host, 7, active=[0, 0]) == host, bound.pick(host, 7, active=[9 * (i == host) for i in (0, 1)]) == host
    (True, False)
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    def pick(self, host: int | None, hash: int, active: Sequence[int], total: int | None = None) -> int | None:
        """The host that serves.

        Parameters
        ----------
        host
            The table's pick for `hash`.
        active
            Active requests of each host.
        total
            Of the cluster; the sum of `active` unless given.
        """
        out: int | None = self._core.pick(host, hash, listed(active, "active"), total)
        return out


# --- Metrics of engines ---


@dataclass(frozen=True)
class EngineMetrics:
    """What a page tells; None where it does not.

    Attributes
    ----------
    waiting, running
        Requests.
    kv_usage
        Fraction of the cache in use, 0 to 1.
    adapters
        LoRA adapters: most at a time, active, waiting.
    cache_block_size, cache_num_blocks
        Tokens, blocks; 0 when not told.
    attributes
        Custom metrics by name.
    updated
        How many values the page gave.
    problems
        What was wrong with single metrics, or empty.
    """

    waiting: int | None
    running: int | None
    kv_usage: float | None
    adapters: tuple[int, list[str], list[str]] | None
    cache_block_size: int
    cache_num_blocks: int
    attributes: Mapping[str, float]
    updated: int
    problems: str


class EngineMetricsReader:
    """Reads the metrics page of an engine.

    Parameters
    ----------
    engine
        vllm, sglang, trtllm-serve, triton-tensorrt-llm, triton, or one of `parameters`.
    parameters
        Of llm-d's core-metrics-extractor: engineLabelKey, defaultEngine, engineConfigs.
    labels
        Of the endpoint's pod, instead of `engine`.
    first_rank_alone
        Of an engine with data-parallel ranks, reads the first one's series instead of combining them.

    Raises
    ------
    ValueError
        For an unknown engine, or bad parameters.

    Examples
    --------
    >>> reader = EngineMetricsReader()
    >>> reader.read("vllm:num_requests_waiting 3\\n").waiting
    3
    """

    def __init__(
        self,
        engine: str = "vllm",
        *,
        parameters: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        first_rank_alone: bool = False,
    ) -> None:
        chosen = engine if labels is None else None
        if labels is None:
            key = mapped(parameters or {}, "parameters").get("engineLabelKey", "llm-d.ai/engine-type")
            labels = {key: engine}
        self._core = _core.EngineMetricsReader(
            mapped(labels, "labels"), None if parameters is None else mapped(parameters, "parameters"), first_rank_alone
        )
        if chosen is not None and self.engine != chosen:  # labels of an unknown engine mean the default one
            raise ValueError(f"engine is {chosen!r}, wanted one that is known or in parameters")

    @property
    def engine(self) -> str:
        """Whose names of metrics are read."""
        return str(self._core.engine)

    def __repr__(self) -> str:
        return f"EngineMetricsReader({self.engine!r})"

    def read(self, page: bytes | str, *, now: float | None = None) -> EngineMetrics:
        """Reads a page by itself.

        Raises
        ------
        ValueError, ResourceExhaustedError
            For a page that is refused as a whole.
        """
        return EngineMetrics(*self._core.read(_bytes(page, "page"), _at(now)))

    def update(
        self, page: bytes | str, pool: EndpointPool, endpoint: EndpointHandle, *, now: float | None = None
    ) -> str:
        """Reads a page into a pool: what it does not give keeps its value and time. Returns the problems, or "".

        Raises
        ------
        NotFoundError
            When the endpoint is not in the pool.
        """
        _, problems = self._core.update(_bytes(page, "page"), core_of(pool, "pool", EndpointPool), endpoint, _at(now))
        return str(problems)


def _bytes(text: bytes | str, name: str) -> bytes:
    if not isinstance(text, str):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {error}") from None


# --- Endpoints files ---


@dataclass(frozen=True)
class EndpointsChange:
    """How a pool changed. An endpoint that changed has a new handle, so its holders must be bound anew.

    Attributes
    ----------
    added
        Ids, ``"namespace/name"``.
    changed
        (old handle, id, whether the address changed) of each.
    removed
        Handles that are gone.
    """

    added: tuple[str, ...]
    changed: tuple[tuple[EndpointHandle, str, bool], ...]
    removed: tuple[EndpointHandle, ...]


class EndpointsFile:
    """The content of an endpoints file, YAML or JSON.

    Parameters
    ----------
    text
        Of the file.
    refuse_bad_entries
        Otherwise a bad entry is passed over and told in `skipped`.
    max_bytes
        A longer text is refused.

    Raises
    ------
    ValueError
        With the line.

    Examples
    --------
    >>> file = EndpointsFile("endpoints: [{name: a, address: 127.0.0.1, port: 8001}]")
    >>> pool = EndpointPool()
    >>> file.apply(pool).added
    ('default/a',)
    """

    def __init__(self, text: bytes | str, *, refuse_bad_entries: bool = False, max_bytes: int = 1 << 20) -> None:
        self._core = _core.EndpointsFile(_bytes(text, "text"), refuse_bad_entries, max_bytes)

    @property
    def endpoints(self) -> list[dict[str, Any]]:
        """name, namespace, address, port and labels of each."""
        out: list[dict[str, Any]] = self._core.endpoints
        return out

    @property
    def skipped(self) -> list[str]:
        """Why entries were passed over; at most 100 of `skipped_count`."""
        return list(self._core.skipped)

    @property
    def skipped_count(self) -> int:
        """Entries that were passed over."""
        return int(self._core.skipped_count)

    def __repr__(self) -> str:
        return f"EndpointsFile({len(self.endpoints)} endpoints, {self.skipped_count} skipped)"

    def apply(self, pool: EndpointPool) -> EndpointsChange:
        """Changes the pool so that it has exactly these endpoints."""
        added, changed, removed = self._core.apply(core_of(pool, "pool", EndpointPool))
        return EndpointsChange(tuple(added), tuple(changed), tuple(removed))


__all__ = [
    "BoundedLoad",
    "ChatMessage",
    "Completion",
    "EndpointsChange",
    "EndpointsFile",
    "EngineMetrics",
    "EngineMetricsReader",
    "ExtProcOptions",
    "ExtProcStream",
    "HashHost",
    "Maglev",
    "MediaItem",
    "OpenAIPrompt",
    "OpenAIRequest",
    "RequestFacts",
    "ResponseFacts",
    "RingHash",
    "SessionId",
    "SessionIdReader",
    "SessionSource",
    "Usage",
    "UsageReader",
    "api_of_path",
    "combine_hashes",
    "envoy_address_key",
    "find_cookie",
    "hash_header",
    "hash_hosts_of",
    "murmurhash2",
    "parse_request",
    "replace_model",
    "xxhash64",
]
