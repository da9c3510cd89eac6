"""Plugins of the scheduler that are written in Python; public through `llmd.sched`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._core import PluginContext as Context
from llmd.errors import Error

Positions = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Says how good each candidate is.

    Examples
    --------
    >>> class ShortQueue:
    ...     def score(self, context, candidates, scores):
    ...         scores[:] = 1 / (1 + context.waiting)  # shape (candidates,); NaN stays: no opinion
    """

    def score(self, context: Context, candidates: Positions, scores: Floats) -> Any:
        """Fills `scores` (all NaN: no opinion), or returns as many numbers; the profile clamps them to 0..1.

        Parameters
        ----------
        context : Context
            The request and the candidates' metrics.
        candidates : ndarray of uint32, shape (n,)
            Positions in the pool.
        scores : ndarray of float64, shape (n,)
            To be filled.
        """


class Filter(Protocol):
    """Says which candidates must not serve the request. An attribute ``reason`` says why, for explanations.

    Examples
    --------
    >>> class HasRoom:
    ...     reason = "cache is full"
    ...     def filter(self, context, candidates):
    ...         return ~(context.kv_usage > 0.95)  # what is not known stays
    """

    def filter(self, context: Context, candidates: Positions) -> Iterable[Any]:
        """One element for each candidate: true or None keeps it, false or a reason (str) drops it.

        Parameters
        ----------
        context : Context
            The request and the candidates' metrics.
        candidates : ndarray of uint32, shape (n,)
            Positions in the pool.
        """


class Picker(Protocol):
    """Chooses among the candidates that are left.

    Examples
    --------
    >>> class Best:
    ...     def pick(self, context, positions, scores, ties):
    ...         return [positions[np.lexsort((ties, scores))[-1]]]
    """

    def pick(self, context: Context, positions: Positions, scores: Floats, ties: npt.NDArray[np.uint64]) -> Any:
        """Returns the positions chosen, best first, at least one.

        Parameters
        ----------
        context : Context
            The request and the candidates' metrics.
        positions : ndarray of uint32, shape (n,)
            The candidates.
        scores : ndarray of float64, shape (n,)
            Their weighted sums.
        ties : ndarray of uint64, shape (n,)
            A random rank, to decide among equals.
        """


class Producer(Protocol):
    """Computes a datum of each endpoint before the profiles run.

    An attribute ``produces`` says which: PrefixCacheMatchInfo, InFlightLoad, UncachedRequestTokens (structured
    arrays) or Number (float64, the default).

    Examples
    --------
    >>> class Load:
    ...     produces = "Number"
    ...     def produce(self, context, values):
    ...         values[:] = context.waiting + context.running
    """

    def produce(self, context: Context, values: npt.NDArray[Any]) -> Any:
        """Fills `values`, or returns them; False publishes nothing.

        Parameters
        ----------
        context : Context
            The request; all endpoints are candidates.
        values : ndarray, shape (pool_size,)
            One element for each position of the pool.
        """


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

        Parameters
        ----------
        type_name : str
            As in ``type:`` of a configuration.
        factory : callable, optional
            Called with the plugin's parameters as keyword arguments, once for each plugin of that type.
        experimental : bool
            Configurations may use it with ``allow_experimental`` alone.

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
        """All names, those of the library's own plugins included."""
        return list(self._core.types())

    def __repr__(self) -> str:
        return f"Registry({len(self.types())} types)"


registry = Registry()
"""What a `Scheduler` uses that is given no other."""


@dataclass(frozen=True)
class PluginCost:
    """What a plugin written in Python took.

    Attributes
    ----------
    calls, errors : int
        Calls, and those that raised or returned nonsense.
    seconds, gil_seconds : float
        In all, and of that waiting for the GIL.
    """

    calls: int
    errors: int
    seconds: float
    gil_seconds: float


def costs_of(tuples: Iterable[tuple[str, int, int, float, float]]) -> dict[str, PluginCost]:
    return {name: PluginCost(*rest) for name, *rest in tuples}  # type: ignore[arg-type]


class PluginError(Error):
    """A plugin written in Python failed; ``__cause__`` is what it raised.

    Attributes
    ----------
    plugin : str
        Its name.
    """

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
