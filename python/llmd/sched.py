"""The scheduler: from a request and a pool of endpoints to the endpoint that serves it.

A router in ten lines (``index`` is fed with what the workers hold, see `llmd.index` and `llmd.vllm.events`):

>>> from llmd import sched
>>> pool = sched.EndpointPool()
>>> for name, queue in (("a", 3), ("b", 0)):
...     endpoint = pool.add(name, "10.0.0.1", 8000 + queue)
...     pool.set_metrics(endpoint, waiting=queue, at=0)
>>> scheduler = sched.Scheduler(sched.make_config(["queue-scorer"]))
>>> request = scheduler.request([1, 2, 3], model="m")
>>> decision = scheduler.schedule(request, pool, now=1, seed=1)
>>> decision.address, decision.target.name
('10.0.0.1:8000', 'b')
>>> with decision.dispatch():  # counts as load until the answer has ended
...     pass

Times are seconds since the epoch; where one is left out, it is ``time.time()``. A decision is a function of its
arguments, of what indexes and plugins remember, and of the seed. Any thread may call anything; the GIL is released
while the scheduler works, and taken again only around plugins written in Python.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._core import Endpoint, EndpointHandle, HolderId, NamespaceId, PluginContext
from llmd._types import TokensLike
from llmd.errors import Error
from llmd.index import ApproxIndex, PrefixIndex

EXACT = 0
"""The prefix source that is fed by the engines' KV events."""
APPROXIMATE = 1
"""The prefix source that is fed by our own decisions."""

Context = PluginContext
"""What a plugin written in Python sees of one decision; void after its call."""


class PluginError(Error):
    """A plugin written in Python failed. ``plugin`` is its name, ``__cause__`` what it raised."""

    def __init__(self, message: str, plugin: str) -> None:
        super().__init__(message)
        self.plugin = plugin


def _at(seconds: float | None) -> float:
    return time.time() if seconds is None else seconds


# --- Endpoints ---


class EndpointPool:
    """The endpoints among which decisions are taken, and what was last measured there.

    A decision works on the pool as it was at its beginning. A value that was never set is unknown, which is not zero.
    """

    def __init__(self) -> None:
        self._core = _core.EndpointPool()

    def add(
        self,
        name: str,
        address: str,
        port: int,
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        node_address: str = "",
        rank: int = 0,
    ) -> EndpointHandle:
        """Adds an endpoint.

        Parameters
        ----------
        name
            Unique together with `namespace`.
        address, port
            Host name or IP, and 1 to 65535.
        labels
            As of a pod; ``llm-d.ai/role`` says which stages it serves.
        rank
            Index among the ports of one pod.

        Raises
        ------
        ValueError
            For an empty name or address, or a bad port.
        AlreadyExistsError
            For a known name.

        Examples
        --------
        >>> pool = EndpointPool()
        >>> pool.add("a", "10.0.0.1", 8000)
        EndpointHandle(0, 1)
        """
        handle: EndpointHandle = self._core.add(
            name, address, port, namespace, dict(labels or {}), node_address, rank
        )
        return handle

    def remove(self, endpoint: EndpointHandle) -> bool:
        """Removes it, with its holders; false when it is not there."""
        return bool(self._core.remove(endpoint))

    def __len__(self) -> int:
        return len(self._core)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.endpoints())

    def endpoints(self) -> list[Endpoint]:
        """All of them, as they are now, by position."""
        out: list[Endpoint] = self._core.endpoints()
        return out

    def find(self, endpoint: EndpointHandle | str) -> Endpoint | None:
        """By handle, or by ``"namespace/name"``."""
        found: Endpoint | None
        found = self._core.find_id(endpoint) if isinstance(endpoint, str) else self._core.find(endpoint)
        return found

    def set_metrics(
        self,
        endpoint: EndpointHandle,
        *,
        waiting: int | None = None,
        running: int | None = None,
        kv_usage: float | None = None,
        max_adapters: int | None = None,
        active_adapters: Sequence[str] = (),
        waiting_adapters: Sequence[str] = (),
        cache_block_size: int | None = None,
        cache_num_blocks: int | None = None,
        at: float | None = None,
    ) -> None:
        """Sets what was measured; what is None stays as it was.

        Parameters
        ----------
        waiting, running
            Requests.
        kv_usage
            Fraction of the cache in use, 0 to 1.
        max_adapters
            With it, `active_adapters` and `waiting_adapters` are set as well.
        cache_block_size, cache_num_blocks
            Of the engine: tokens, blocks.
        at
            When it was read.

        Raises
        ------
        NotFoundError
            When the endpoint is not in the pool.
        """
        self._core.set_metrics(
            endpoint,
            _at(at),
            waiting,
            running,
            kv_usage,
            max_adapters,
            list(active_adapters),
            list(waiting_adapters),
            cache_block_size,
            cache_num_blocks,
        )

    def set_attribute(self, endpoint: EndpointHandle, name: str, value: float, *, at: float | None = None) -> None:
        """Sets a named number, for plugins of one's own."""
        self._core.set_attribute(endpoint, name, value, _at(at))

    def bind_holder(
        self, holder: HolderId | tuple[int, int], endpoint: EndpointHandle, *, source: int = EXACT, tier: str = "gpu"
    ) -> None:
        """Says that a holder of the source's index keeps blocks of `endpoint`.

        Parameters
        ----------
        holder
            As ``add_holder`` of the index gives it.
        source
            `EXACT` or `APPROXIMATE`.
        tier
            Of the storage, in lower case.
        """
        self._core.bind_holder(source, holder, endpoint, tier)

    def bind_index(self, index: PrefixIndex, *, source: int = EXACT) -> int:
        """Binds every holder of an index to the endpoint of its address, and unbinds all others.

        To be called after the index or the pool got or lost endpoints, before the next decision; it is cheap when
        nothing changed. Returns how many holders are bound.
        """
        return int(self._core.bind_index(source, index._core))

    def unbind_holder(self, holder: HolderId | tuple[int, int], *, source: int = EXACT) -> None:
        """To be called when the index retires the holder."""
        self._core.unbind_holder(source, holder)

    def __repr__(self) -> str:
        return f"EndpointPool({', '.join(e.id for e in self)})"


# --- Requests ---


@dataclass(frozen=True)
class KeyChain:
    """The block keys of one prompt, first block first.

    Attributes
    ----------
    namespace
        Of the index, as `llmd.index.request_namespace` gives it.
    block_size
        Tokens per block.
    keys
        uint64 array, shape (blocks,).
    """

    namespace: NamespaceId
    block_size: int
    keys: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class MultimodalItem:
    """An image, a sound or a video inside a prompt; `offset` and `length` are its placeholder tokens."""

    modality: str
    hash: str
    offset: int = 0
    length: int = 0


def _items(items: Iterable[MultimodalItem]) -> list[tuple[str, str, int, int]]:
    return [(i.modality, i.hash, i.offset, i.length) for i in items]


class Prompt:
    """One prompt of a request. Immutable.

    Parameters
    ----------
    tokens
        Its ids; None when only their number is known.
    token_count
        Their number, when there are no tokens.
    chains
        One `KeyChain` for each prefix source, or None where nothing is known.
    items
        Multimodal items, in order.

    Examples
    --------
    >>> Prompt([1, 2, 3]).token_count
    3
    """

    def __init__(
        self,
        tokens: TokensLike | None = None,
        *,
        token_count: int = 0,
        chains: Sequence[KeyChain | None] = (),
        items: Iterable[MultimodalItem] = (),
    ) -> None:
        parts = [None if c is None else (c.namespace, c.block_size, c.keys) for c in chains]
        self._core = _core.SchedulerPrompt(token_count, tokens, parts, _items(items))

    @classmethod
    def _of(cls, core: Any) -> Prompt:
        self = cls.__new__(cls)
        self._core = core
        return self

    @property
    def token_count(self) -> int:
        return int(self._core.token_count)

    @property
    def tokens(self) -> npt.NDArray[np.uint32]:
        """A copy of the ids, shape (token_count,), or empty."""
        out: npt.NDArray[np.uint32] = self._core.tokens
        return out

    @property
    def chains(self) -> list[KeyChain]:
        """The chains by prefix source; one that is not known has no keys."""
        return [KeyChain(NamespaceId(*ns), size, keys) for ns, size, keys in self._core.chains]

    def __repr__(self) -> str:
        return f"Prompt({self.token_count} tokens, {[len(c.keys) for c in self.chains]} keys)"


class Request:
    """A request as the scheduler sees it. Immutable; `Scheduler.request` makes one from tokens.

    Parameters
    ----------
    model
        After rewriting; for a LoRA adapter its name.
    prompts
        What it asks for.
    headers
        Of the client; names in any case.
    priority
        Below 0: may be shed.
    size_bytes
        Of the body.

    Examples
    --------
    >>> Request("m", [Prompt(token_count=5)], headers={"X-Session-Token": "s"}).prompts
    (Prompt(5 tokens, [] keys),)
    """

    def __init__(
        self,
        model: str = "",
        prompts: Iterable[Prompt] = (),
        *,
        id: str = "",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        priority: int = 0,
        fairness_id: str = "default-flow",
        size_bytes: int = 0,
        max_output_tokens: int | None = None,
    ) -> None:
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        self.model = model
        self.prompts = tuple(prompts)
        self.id = id
        self.headers = tuple((name.lower(), value) for name, value in pairs)
        self.priority = priority
        self._core = _core.SchedulerRequest(
            id,
            model,
            fairness_id,
            priority,
            size_bytes,
            max_output_tokens,
            pairs,
            [p._core for p in self.prompts],
        )

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        name = name.lower()
        return next((value for key, value in self.headers if key == name), None)

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, model={self.model!r}, prompts={list(self.prompts)})"


# --- Plugins written in Python ---

Positions = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Says how good each candidate is."""

    def score(self, context: Context, candidates: Positions, scores: Floats) -> Any:
        """Fills `scores` (all NaN: no opinion), or returns as many numbers; the profile clamps them to 0..1."""


class Filter(Protocol):
    """Says which candidates must not serve the request. An attribute ``reason`` says why, for explanations."""

    def filter(self, context: Context, candidates: Positions) -> Iterable[Any]:
        """One element for each candidate: true or None keeps it, false or a reason (str) drops it."""


class Picker(Protocol):
    """Chooses among the candidates that are left."""

    def pick(self, context: Context, positions: Positions, scores: Floats, ties: npt.NDArray[np.uint64]) -> Any:
        """Returns the positions chosen, best first, at least one. `ties` is a random rank, to decide among equals."""


class Producer(Protocol):
    """Computes a datum of each endpoint before the profiles run.

    An attribute ``produces`` says which: PrefixCacheMatchInfo, InFlightLoad, UncachedRequestTokens (structured
    arrays) or Number (float64, the default).
    """

    def produce(self, context: Context, values: npt.NDArray[Any]) -> Any:
        """Fills `values` (one element for each position of the pool), or returns them; False publishes nothing."""


_Factory = TypeVar("_Factory", bound=Callable[..., Any])


class Registry:
    """Plugin types by name: all of the library, and those that you register.

    The factory is called with the plugin's ``parameters`` from the configuration as keyword arguments. A plugin that
    reads data of others has an attribute ``consumes = {"name": (data type, producer)}`` and reads
    ``context.data("name")``. Any thread may call anything; plugins are called by all threads that decide.

    Examples
    --------
    >>> registry = Registry()
    >>> @registry.register("warm-start-scorer")
    ... class WarmStart:
    ...     def __init__(self, rampSeconds=60.0):
    ...         self.ramp = rampSeconds
    ...     def score(self, context, candidates, scores):
    ...         scores[:] = np.minimum(1, context.attribute("uptime_seconds") / self.ramp)
    >>> warm_start = {"type": "warm-start-scorer", "parameters": {"rampSeconds": 10}}
    >>> scheduler = Scheduler(make_config([warm_start]), registry=registry)
    >>> pool = EndpointPool()
    >>> old, new = pool.add("old", "h", 1), pool.add("new", "h", 2)
    >>> pool.set_attribute(old, "uptime_seconds", 60.0); pool.set_attribute(new, "uptime_seconds", 1.0)
    >>> scheduler.schedule(Request(), pool, seed=1).target.name
    'old'
    """

    def __init__(self) -> None:
        self._core = _core.Registry()

    @overload
    def register(self, type_name: str, *, experimental: bool = ...) -> Callable[[_Factory], _Factory]: ...
    @overload
    def register(self, type_name: str, factory: _Factory, *, experimental: bool = ...) -> _Factory: ...
    def register(
        self, type_name: str, factory: _Factory | None = None, *, experimental: bool = False
    ) -> _Factory | Callable[[_Factory], _Factory]:
        """Registers a class or function under a type name; without a factory it is a decorator.

        Raises
        ------
        AlreadyExistsError
            For a known name.
        """

        def add(made: _Factory) -> _Factory:
            self._core.register(type_name, made, experimental)
            return made

        return add if factory is None else add(factory)

    def types(self) -> list[str]:
        """All names."""
        return list(self._core.types())


registry = Registry()
"""What a `Scheduler` uses that is given no other."""


@dataclass(frozen=True)
class PluginCost:
    """What a plugin written in Python took: `seconds` in all, `gil_seconds` of that waiting for the GIL."""

    calls: int
    errors: int
    seconds: float
    gil_seconds: float


def _costs(tuples: Iterable[tuple[str, int, int, float, float]]) -> dict[str, PluginCost]:
    return {name: PluginCost(*rest) for name, *rest in tuples}  # type: ignore[arg-type]


# --- Decisions ---


@dataclass(frozen=True)
class ProfileResult:
    """What one profile chose. `state` is pending, skipped, failed or done; `port` 0 means the targets' own ports."""

    state: str
    targets: tuple[Endpoint, ...]
    host_ports: str
    port: int
    skip_reason: str | None


@dataclass(frozen=True)
class Drop:
    """A filter's decision against an endpoint."""

    endpoint: Endpoint
    filter: str
    reason: str


@dataclass(frozen=True)
class ProfileExplanation:
    """How a profile came to its result.

    Attributes
    ----------
    scorers
        Names and weights.
    endpoints
        Those that passed the filters.
    raw, weighted
        Float64, shape (scorers, endpoints): as the scorer gave it (NaN: no opinion); clamped, times the weight.
    totals
        Float64, shape (endpoints,): the sum of `weighted`, bit for bit.
    picked
        Best first.
    """

    state: str
    drops: tuple[Drop, ...]
    scorers: tuple[tuple[str, float], ...]
    endpoints: tuple[Endpoint, ...]
    raw: Floats = field(compare=False)
    weighted: Floats = field(compare=False)
    totals: Floats = field(compare=False)
    tie_seed: int
    picked: tuple[Endpoint, ...]

    def scores_of(self, scorer: str) -> dict[str, float]:
        """Raw scores by the endpoint's name, of those that got one.

        Raises
        ------
        KeyError
            When no scorer of that name ran.
        """
        names = [name for name, _ in self.scorers]
        if scorer not in names:
            raise KeyError(f"no scorer {scorer!r} ran, only {names}")
        row = self.raw[names.index(scorer)]
        return {e.name: float(v) for e, v in zip(self.endpoints, row, strict=True) if not np.isnan(v)}


@dataclass(frozen=True)
class Explanation:
    """Why a decision came out as it did. ``str()`` gives a table for people.

    Attributes
    ----------
    profiles
        By name; those that did not run are empty.
    refused_by
        The admitter that turned the request away, or empty.
    costs
        Of the plugins written in Python, in this decision.
    """

    seed: int
    candidates: int
    profiles: Mapping[str, ProfileExplanation]
    refused_by: str
    costs: Mapping[str, PluginCost] = field(compare=False)
    _core: Any = field(compare=False, repr=False)

    def __str__(self) -> str:
        lines = [str(self._core.explanation_text).rstrip("\n")]
        for name, cost in self.costs.items():
            lines.append(f"  {name}: {cost.calls} calls in Python, {cost.seconds * 1e6:.1f} us")
        return "\n".join(lines)


class Flight:
    """A request on its way: what plugins remember of it until its answer has ended.

    Tell it of the answer with `on_response_headers` and `on_response_body`; leaving the ``with`` block, `close` or
    garbage collection undoes what is left, once.
    """

    def __init__(self, core: Any) -> None:
        self._core = core

    @property
    def headers(self) -> dict[str, str | None]:
        """Headers to send upstream; None removes one."""
        return dict(self._core.headers)

    @property
    def open(self) -> bool:
        """Whether a plugin still remembers the request."""
        return bool(self._core.open)

    def on_response_headers(self, *, now: float | None = None) -> dict[str, str | None]:
        """The headers came; returns what to change in them."""
        return dict(self._core.on_response_headers(_at(now)))

    def on_response_body(
        self,
        *,
        first: bool = False,
        last: bool = False,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        now: float | None = None,
    ) -> None:
        """A piece of the body came; after the last one the flight is over."""
        self._core.on_response_body(_at(now), first, last, prompt_tokens, completion_tokens)

    def close(self) -> None:
        """The answer ended, or never came. May be called twice."""
        self._core.close()

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Decision:
    """The result of scheduling one request."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._explanation: Explanation | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a target; else see `message`, `code`, `http_status` and `dropped_reason`."""
        return bool(self._core.ok)

    @property
    def message(self) -> str:
        return str(self._core.message)

    @property
    def code(self) -> str:
        """``"OK"``, or why not: ``"UNAVAILABLE"``, ``"RESOURCE_EXHAUSTED"``, ..."""
        return str(self._core.code)

    @property
    def http_status(self) -> int:
        return int(self._core.http_status)

    @property
    def dropped_reason(self) -> str:
        """As in the header ``x-llm-d-request-dropped-reason``; empty for none."""
        return str(self._core.dropped_reason)

    @property
    def seed(self) -> int:
        return int(self._core.seed)

    @property
    def primary(self) -> str | None:
        """The profile whose targets serve the request."""
        name: str | None = self._core.primary
        return name

    @property
    def targets(self) -> list[Endpoint]:
        """Of the primary profile, best first."""
        out: list[Endpoint] = self._core.targets
        return out

    @property
    def target(self) -> Endpoint:
        """The endpoint that serves the request."""
        self.check()
        return self.targets[0]

    @property
    def address(self) -> str:
        """``"host:port"`` of the target."""
        self.check()
        return self.destination.split(",", 1)[0]

    @property
    def destination(self) -> str:
        """The value of ``x-gateway-destination-endpoint``: all targets, comma-joined, best first."""
        return str(self._core.destination)

    @property
    def headers(self) -> dict[str, str]:
        """What a proxy sets for this decision; those of the plugins come with `dispatch`."""
        if not self.ok:
            reason = self.dropped_reason
            return {"x-llm-d-request-dropped-reason": reason} if reason else {}
        return {"x-gateway-destination-endpoint": self.destination}

    @property
    def scores(self) -> dict[str, float]:
        """Weighted sums of the primary profile by ``"host:port"``."""
        return dict(self._core.scores)

    @property
    def profiles(self) -> dict[str, ProfileResult]:
        """By name, in the scheduler's order."""
        return {
            name: ProfileResult(state, tuple(targets), host_ports, port, skip)
            for name, state, targets, host_ports, port, skip in self._core.profiles
        }

    @property
    def explanation(self) -> Explanation:
        if self._explanation is None:
            at = self._core.endpoint
            profiles = {}
            for name, state, drops, scorers, positions, raw, weighted, totals, ties, picked in self._core.explained:
                profiles[name] = ProfileExplanation(
                    state=state,
                    drops=tuple(Drop(at(p), filter_name, reason) for p, filter_name, reason in drops),
                    scorers=tuple(scorers),
                    endpoints=tuple(at(p) for p in positions),
                    raw=raw,
                    weighted=weighted,
                    totals=totals,
                    tie_seed=ties,
                    picked=tuple(at(p) for p in picked),
                )
            self._explanation = Explanation(
                seed=self.seed,
                candidates=self._core.candidates,
                profiles=profiles,
                refused_by=self._core.refused_by,
                costs=_costs(self._core.costs),
                _core=self._core,
            )
        return self._explanation

    def check(self) -> None:
        """Raises the error of a request that was turned away.

        Raises
        ------
        UnavailableError
            There is no candidate.
        ResourceExhaustedError
            Filters leave none, or the request may be shed and the candidates are saturated.
        FailedPreconditionError
            ``Prefer: if-available``, and the target holds nothing of the prompt.
        PluginError
            A plugin written in Python failed.
        """
        if self._core.ok:
            return
        try:
            plugin = self._core.failed_plugin
            if plugin is None:
                self._core.check()
            cause = self._core.exception
            if cause is not None and not isinstance(cause, Exception):
                raise cause  # KeyboardInterrupt and its like are not a plugin's failure
            raise PluginError(self.message, plugin) from cause
        except Exception as error:
            error.decision = self  # type: ignore[attr-defined]
            raise

    def dispatch(self) -> Flight:
        """The decision is carried out: plugins record it. Once for each decision.

        Raises
        ------
        FailedPreconditionError
            It was dispatched before, has no target, or 64 later decisions wait for their dispatch.
        """
        return Flight(self._core.dispatch(True))

    def __repr__(self) -> str:
        if not self.ok:
            return f"Decision({self.code}: {self.message})"
        return f"Decision({self.primary}: {self.destination})"


# --- Schedulers ---


@dataclass(frozen=True)
class Config:
    """A configuration that was read. ``str()`` gives it as YAML, in the order and spelling of llm-d.

    Attributes
    ----------
    plugins
        Name, type and parameters of each.
    profiles
        Names, each with its plugins and weights (None: not given).
    warnings
        What is accepted but deserves a look.
    """

    plugins: tuple[tuple[str, str, Any], ...]
    profiles: Mapping[str, tuple[tuple[str, float | None], ...]]
    warnings: tuple[str, ...]
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


def parse_config(text: str, *, source: str = "config", allow_experimental: bool = False) -> Config:
    """Reads an EndpointPickerConfig in YAML or JSON, strictly, without making plugins.

    Raises
    ------
    ValueError
        ``"config: line 12: plugins[2].parameters.depth is a string, expected an integer"``

    Examples
    --------
    >>> parse_config(make_config(["queue-scorer"])).plugins
    (('queue-scorer', 'queue-scorer', None),)
    >>> parse_config("plugin: []")
    Traceback (most recent call last):
    ValueError: config: line 1: ...
    """
    warnings: list[str] = []
    plugins, profiles, printed = _core.parse_config(text, source, allow_experimental, warnings)
    return Config(
        tuple(plugins), {name: tuple(refs) for name, refs in profiles}, tuple(warnings), printed
    )


def make_config(
    plugins: Iterable[str | Mapping[str, Any]],
    profiles: Mapping[str, Mapping[str, float | None] | Iterable[str]] | None = None,
    **fields: Any,
) -> str:
    """The text of a configuration, in JSON.

    Parameters
    ----------
    plugins
        Types, or mappings with ``type``, ``name`` and ``parameters``.
    profiles
        For each profile its plugins' names, with weights or without; None: one of all plugins.
    fields
        Of EndpointPickerConfig, such as ``featureGates``.

    Examples
    --------
    >>> config = make_config(["queue-scorer", "running-requests-size-scorer"], {"default": {"queue-scorer": 2}})
    >>> Scheduler(config).profiles
    ['default']
    """
    document: dict[str, Any] = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    document["plugins"] = [{"type": p} if isinstance(p, str) else dict(p) for p in plugins]
    if profiles is not None:
        document["schedulingProfiles"] = [
            {"name": name, "plugins": [_reference(refs, plugin) for plugin in refs]}
            for name, refs in profiles.items()
        ]
    return json.dumps(document | fields)


def _reference(refs: Mapping[str, float | None] | Iterable[str], plugin: str) -> dict[str, Any]:
    weight = refs[plugin] if isinstance(refs, Mapping) else None
    return {"pluginRef": plugin} if weight is None else {"pluginRef": plugin, "weight": weight}


def print_config(config: str | Config | Scheduler, *, source: str = "config", allow_experimental: bool = True) -> str:
    """The configuration as YAML; of a `Scheduler`, the one in force with every default."""
    if isinstance(config, Scheduler):
        return config.config
    if isinstance(config, str):
        config = parse_config(config, source=source, allow_experimental=allow_experimental)
    return config.text


class Scheduler:
    """A scheduler made from a configuration.

    Parameters
    ----------
    config
        Text in YAML or JSON, or a `Config`. An empty text means llm-d's defaults: queue, cache usage and prefix
        scorers with weights 2, 2 and 3.
    source
        The file's name, for messages.
    registry
        Plugin types; `llmd.sched.registry` unless given.
    exact, approximate
        A `llmd.index.PrefixIndex` and a `llmd.index.ApproxIndex`, for the prefix producers that are configured. The
        defaults have one that needs `approximate`.
    replaces
        A scheduler whose plugins' memory (sessions, load in flight) this one takes over.

    Raises
    ------
    ValueError
        Names the source, the line, the plugin or profile, and what was expected.
    FailedPreconditionError
        A prefix producer is configured, and its index is not given.
    """

    def __init__(
        self,
        config: str | Config = "",
        *,
        source: str = "config",
        allow_experimental: bool = False,
        registry: Registry | None = None,
        exact: PrefixIndex | None = None,
        approximate: ApproxIndex | None = None,
        replaces: Scheduler | None = None,
    ) -> None:
        self._init(
            config,
            source,
            allow_experimental,
            registry or globals()["registry"],
            [_core_index(exact), _core_index(approximate)],
            None if replaces is None else replaces._core.states,
        )

    def _init(
        self,
        config: str | Config,
        source: str,
        allow_experimental: bool,
        registry: Registry,
        indexes: list[Any],
        states: Any,
    ) -> None:
        warnings: list[str] = []
        self._core = _core.Scheduler(
            str(config), source, allow_experimental, registry._core, indexes, states, warnings
        )
        self.warnings = tuple(warnings)
        self._plan = self._core.plan

    @classmethod
    def from_file(cls, path: str | PathLike[str], **arguments: Any) -> Scheduler:
        """As the constructor, with the configuration in a file."""
        arguments.setdefault("source", str(path))
        return cls(Path(path).read_text(encoding="utf-8"), **arguments)

    @property
    def config(self) -> str:
        """The configuration in force as YAML, with all that was added."""
        return str(self._core.config)

    @property
    def profiles(self) -> list[str]:
        """Names."""
        return list(self._core.profiles)

    def costs(self) -> dict[str, PluginCost]:
        """Of the plugins written in Python, over all decisions."""
        return _costs(self._core.costs())

    def prompt(
        self,
        tokens: TokensLike,
        *,
        model: str = "",
        lora: str = "",
        cache_salt: str = "",
        items: Iterable[MultimodalItem] = (),
        engine_block_size: int = 0,
    ) -> Prompt:
        """A prompt with the key chains that the configured prefix producers want; see `request`."""
        return Prompt._of(
            _core.SchedulerPrompt.hashed(self._plan, model, lora, cache_salt, engine_block_size, tokens, _items(items))
        )

    def request(
        self,
        tokens: TokensLike,
        *,
        model: str = "",
        lora: str = "",
        cache_salt: str = "",
        items: Iterable[MultimodalItem] = (),
        engine_block_size: int = 0,
        **fields: Any,
    ) -> Request:
        """A request of one prompt, hashed as the configuration says.

        Parameters
        ----------
        tokens
            Ids, shape (n,).
        model, lora
            As in the workers' events.
        cache_salt
            Part of the first block.
        engine_block_size
            Tokens per block that the engines report, for the approximate producer; 0 when unknown.
        fields
            Of `Request`: headers, priority, ...

        Raises
        ------
        ValueError
            For a token that is negative or does not fit 32 bits.
        """
        prompt = self.prompt(
            tokens,
            model=model,
            lora=lora,
            cache_salt=cache_salt,
            items=items,
            engine_block_size=engine_block_size,
        )
        return Request(lora or model, [prompt], **fields)

    def fairness_id(self, request: Request) -> str:
        """Under which flow a request is queued."""
        return str(self._core.fairness_id(request._core))

    def schedule(
        self,
        request: Request,
        pool: EndpointPool,
        *,
        candidates: Iterable[int | Endpoint] | None = None,
        now: float | None = None,
        seed: int | None = None,
        check: bool = True,
    ) -> Decision:
        """Decides.

        Parameters
        ----------
        candidates
            Endpoints or positions that may serve the request; None for the whole pool.
        seed
            Decides among equals; random unless given.
        check
            False returns a decision that is not ``ok`` instead of raising.

        Raises
        ------
        Error, ValueError
            As `Decision.check`; the exception has the decision in its attribute ``decision``.
        """
        positions = None
        if candidates is not None:
            positions = sorted(c.position if isinstance(c, Endpoint) else c for c in candidates)
        decision = Decision(
            self._core.schedule(
                request._core,
                pool._core,
                _at(now),
                random.getrandbits(64) if seed is None else seed,
                positions,
                request,
            )
        )
        if check:
            decision.check()
        return decision

    def __repr__(self) -> str:
        return f"Scheduler(profiles={self.profiles})"


def _core_index(index: Any) -> Any:
    return getattr(index, "_core", index)


__all__ = [
    "APPROXIMATE",
    "EXACT",
    "Config",
    "Context",
    "Decision",
    "Drop",
    "Endpoint",
    "EndpointHandle",
    "EndpointPool",
    "Explanation",
    "Filter",
    "Flight",
    "KeyChain",
    "MultimodalItem",
    "Picker",
    "PluginCost",
    "PluginError",
    "Producer",
    "ProfileExplanation",
    "ProfileResult",
    "Prompt",
    "Registry",
    "Request",
    "Scheduler",
    "Scorer",
    "make_config",
    "parse_config",
    "print_config",
    "registry",
]
