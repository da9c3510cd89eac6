"""Decisions and what they set in motion; public through `llmd.sched`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from llmd._core import Endpoint
from llmd._plugins import Floats, PluginCost, PluginError, costs_of
from llmd._pool import _at
from llmd.errors import NotFoundError


@dataclass(frozen=True)
class ProfileResult:
    """What one profile chose.

    Attributes
    ----------
    state
        pending, skipped, failed or done.
    targets
        Best first.
    host_ports
        The same as text, comma-joined.
    port
        0: the targets' own ports.
    skip_reason
        Why it was skipped.
    """

    state: str
    targets: tuple[Endpoint, ...]
    host_ports: str
    port: int
    skip_reason: str | None


@dataclass(frozen=True)
class Drop:
    """A filter's decision against an endpoint.

    Attributes
    ----------
    endpoint
        Which.
    filter, reason
        Name of the plugin, and why.
    """

    endpoint: Endpoint
    filter: str
    reason: str


@dataclass(frozen=True)
class ProfileExplanation:
    """How a profile came to its result.

    Attributes
    ----------
    state
        As of a `ProfileResult`.
    drops
        What filters took away.
    scorers
        Names and weights.
    endpoints
        Those that passed the filters.
    raw, weighted
        Float64, shape (scorers, endpoints): as the scorer gave it (NaN: no opinion); clamped, times the weight.
    totals
        Float64, shape (endpoints,): the sum of `weighted`, bit for bit.
    tie_seed
        What decided among equals.
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
        NotFoundError
            When no scorer of that name ran.
        """
        names = [name for name, _ in self.scorers]
        if scorer not in names:
            raise NotFoundError(f"no scorer {scorer!r} ran, only {names}")
        row = self.raw[names.index(scorer)]
        return {e.name: float(v) for e, v in zip(self.endpoints, row, strict=True) if not np.isnan(v)}


@dataclass(frozen=True)
class Explanation:
    """Why a decision came out as it did. ``str()`` gives a table for people.

    Attributes
    ----------
    seed, candidates
        The seed; how many endpoints there were to choose from.
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

    Examples
    --------
    >>> from llmd.sched import EndpointPool, Request, Scheduler, make_config
    >>> pool = EndpointPool()
    >>> _ = pool.add("a", "10.0.0.1", 8000)
    >>> decision = Scheduler(make_config(["active-request-scorer"])).schedule(Request("m"), pool, seed=1)
    >>> with decision.dispatch() as flight:
    ...     flight  # send the request, with flight.headers; read the answer
    Flight(open=True)
    >>> flight
    Flight(open=False)
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

    def __repr__(self) -> str:
        return f"Flight(open={self.open})"

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Decision:
    """The result of scheduling one request.

    Examples
    --------
    >>> from llmd.sched import EndpointPool, Request, Scheduler, make_config
    >>> pool, scheduler = EndpointPool(), Scheduler(make_config(["queue-scorer"]))
    >>> decision = scheduler.schedule(Request("m"), pool, check=False)
    >>> decision.ok, decision.code, decision.http_status
    (False, 'UNAVAILABLE', 503)
    >>> _ = pool.add("a", "10.0.0.1", 8000)
    >>> decision = scheduler.schedule(Request("m"), pool, seed=1)
    >>> decision, decision.headers
    (Decision(default: 10.0.0.1:8000), {'x-gateway-destination-endpoint': '10.0.0.1:8000'})
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._explanation: Explanation | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a target; else see `message`, `code`, `http_status` and `dropped_reason`."""
        return bool(self._core.ok)

    @property
    def message(self) -> str:
        """Why the request was turned away; empty when `ok`."""
        return str(self._core.message)

    @property
    def code(self) -> str:
        """``"OK"``, or why not: ``"UNAVAILABLE"``, ``"RESOURCE_EXHAUSTED"``, ..."""
        return str(self._core.code)

    @property
    def http_status(self) -> int:
        """What a proxy answers a request that was turned away; 200 when `ok`."""
        return int(self._core.http_status)

    @property
    def dropped_reason(self) -> str:
        """As in the header ``x-llm-d-request-dropped-reason``; empty for none."""
        return str(self._core.dropped_reason)

    @property
    def seed(self) -> int:
        """The seed that decided among equals; with it the decision can be taken again."""
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
        """Why it came out so. Made when it is first read."""
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
                costs=costs_of(self._core.costs),
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
        return Flight(self._core.dispatch())

    def __repr__(self) -> str:
        if not self.ok:
            return f"Decision({self.code}: {self.message})"
        return f"Decision({self.primary}: {self.destination})"


__all__ = [
    "Decision",
    "Drop",
    "Explanation",
    "Flight",
    "ProfileExplanation",
    "ProfileResult",
]
