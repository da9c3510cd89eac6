"""Plugins of the scheduler that are written in Python; public through `llmd.sched`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._core import PluginContext
from llmd.errors import Error

Context = PluginContext
"""What a plugin written in Python sees of one decision; void after its call."""
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
    >>> from llmd.sched import EndpointPool, Request, Scheduler, make_config
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


def costs_of(tuples: Iterable[tuple[str, int, int, float, float]]) -> dict[str, PluginCost]:
    return {name: PluginCost(*rest) for name, *rest in tuples}  # type: ignore[arg-type]


class PluginError(Error):
    """A plugin written in Python failed. ``plugin`` is its name, ``__cause__`` what it raised."""

    def __init__(self, message: str, plugin: str) -> None:
        super().__init__(message)
        self.plugin = plugin


__all__ = [
    "Context",
    "Filter",
    "Picker",
    "PluginCost",
    "PluginError",
    "Producer",
    "Registry",
    "Scorer",
]
