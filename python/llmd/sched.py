"""The scheduler: from a request and a pool of endpoints to the endpoint that serves it.

Times are seconds since the epoch; where one is left out, it is ``time.time()``. A decision is a function of its
arguments, of what indexes and plugins remember, and of the seed. Any thread may call anything; the GIL is released
while the scheduler works, and taken again only around plugins written in Python.

Examples
--------
A router in ten lines; `llmd.index` and `llmd.vllm.events` say how it learns what workers hold.

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
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from llmd import _core
from llmd._core import Endpoint, EndpointHandle
from llmd._decision import Decision, Drop, Explanation, Flight, ProfileExplanation, ProfileResult
from llmd._plugins import (
    Context,
    Filter,
    Picker,
    PluginCost,
    PluginError,
    Producer,
    Registry,
    Scorer,
    costs_of,
    registry,
)
from llmd._pool import (
    APPROXIMATE,
    EXACT,
    EndpointPool,
    KeyChain,
    MultimodalItem,
    Prompt,
    Request,
    _at,
    item_tuples,
)
from llmd._types import TokensLike, core_of, listed
from llmd.errors import FailedPreconditionError
from llmd.index import ApproxIndex, PrefixIndex


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
    text
        As ``str()``.
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
    return Config(tuple(plugins), {name: tuple(refs) for name, refs in profiles}, tuple(warnings), printed)


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
            {"name": name, "plugins": [_reference(refs, plugin) for plugin in refs]} for name, refs in profiles.items()
        ]
    return json.dumps(document | fields)


def _reference(refs: Mapping[str, float | None] | Iterable[str], plugin: str) -> dict[str, Any]:
    weight = refs[plugin] if isinstance(refs, Mapping) else None
    return {"pluginRef": plugin} if weight is None else {"pluginRef": plugin, "weight": weight}


def print_config(config: str | Config | Scheduler, *, source: str = "config", allow_experimental: bool = True) -> str:
    """The configuration as YAML; of a `Scheduler`, the one in force with every default.

    Examples
    --------
    >>> print(print_config(Scheduler(make_config(["queue-scorer"]))))
    apiVersion: llm-d.ai/v1alpha1
    ...
    """
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

    Examples
    --------
    >>> from llmd.index import ApproxIndex
    >>> Scheduler(approximate=ApproxIndex())  # llm-d's defaults
    Scheduler(profiles=['default'])
    >>> Scheduler("plugins: []")
    Traceback (most recent call last):
    ValueError: config: line 1: apiVersion is missing, ...
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
            globals()["registry"] if registry is None else registry,
            [
                None if exact is None else core_of(exact, "exact", PrefixIndex),
                None if approximate is None else core_of(approximate, "approximate", ApproxIndex),
            ],
            None if replaces is None else core_of(replaces, "replaces", Scheduler).states,
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
        text = config.text if isinstance(config, Config) else config
        plugins = core_of(registry, "registry", Registry)
        try:
            self._core = _core.Scheduler(text, source, allow_experimental, plugins, indexes, states, warnings)
        except FailedPreconditionError as error:
            for position, argument in enumerate(("exact", "approximate")):
                if str(error).endswith(f"no index as prefix source {position}"):
                    raise FailedPreconditionError(f"{error}; give `{argument}=`") from None
            raise
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
        """Names of the profiles."""
        return list(self._core.profiles)

    def costs(self) -> dict[str, PluginCost]:
        """Of the plugins written in Python, over all decisions."""
        return costs_of(self._core.costs())

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
            _core.SchedulerPrompt.hashed(
                self._plan, model, lora, cache_salt, engine_block_size, tokens, item_tuples(items)
            )
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
        return str(self._core.fairness_id(core_of(request, "request", Request)))

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
            given = [c.position if isinstance(c, Endpoint) else c for c in listed(candidates, "candidates")]
            positions = sorted(_core.token_array(given, "candidates").tolist())
        decision = Decision(
            self._core.schedule(
                core_of(request, "request", Request),
                core_of(pool, "pool", EndpointPool),
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
