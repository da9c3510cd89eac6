"""A pool, a request and a scheduler made by hand, to test scorers and whole configurations with pytest.

Any name is a text; the same name is the same text. What is not set is as at a freshly started endpoint that was never
scraped. Decisions run the real scheduler with literal prefix indexes: in the exact source blocks are of 16 tokens, in
the approximate one of 64. A failed ``assert`` shows the decision's explanation. One thread.

Examples
--------
>>> from llmd.testing import TestBed, TestRequest, drops, picks
>>> bed = TestBed()
>>> _ = bed.endpoint("a").waiting(4).kv_usage(0.5).holds("chat", 512)  # has 512 tokens of the text "chat"
>>> _ = bed.endpoint("b").waiting(0).kv_usage(0.1)
>>> outcome = bed.decide(TestRequest("chat", 1024))  # a prompt of its first 1,024 tokens
>>> assert outcome == picks("b")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmd import _core
from llmd._core import NamespaceId
from llmd.errors import NotFoundError
from llmd.sched import (
    APPROXIMATE,
    EXACT,
    Config,
    Decision,
    EndpointHandle,
    EndpointPool,
    Flight,
    KeyChain,
    MultimodalItem,
    ProfileExplanation,
    Prompt,
    Registry,
    Request,
    Scheduler,
    make_config,
)

EXACT_BLOCK_TOKENS = 16
APPROXIMATE_BLOCK_TOKENS = 64
_IN_FLIGHT = "inflight-load-producer"
_NAMESPACE = NamespaceId(1, 1)


class TestRequest:
    """A request of texts. Every method returns the request.

    Parameters
    ----------
    text
        Name of the text that the prompt is the beginning of; None: no prompt yet.
    tokens
        Length of the prompt.

    Examples
    --------
    >>> TestRequest("chat", 100).header("x-session-token", "s").priority(-1)
    TestRequest(chat[:100])
    """

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    def __init__(self, text: str | None = None, tokens: int = 0) -> None:
        self._prompts: list[tuple[str, int, list[tuple[str, str]]]] = []
        self._headers: list[tuple[str, str]] = []
        self._fields: dict[str, Any] = {"id": "request"}
        self._model = "model"
        if text is not None:
            self.prompt(text, tokens)

    def prompt(self, text: str, tokens: int) -> TestRequest:
        """A further prompt: the first `tokens` tokens of `text`."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}, wanted at least 0")
        self._prompts.append((text, tokens, []))
        return self

    def item(self, modality: str, hash: str) -> TestRequest:
        """A multimodal item inside the latest prompt; one placeholder token."""
        if not self._prompts:
            raise ValueError("item() comes before prompt()")
        self._prompts[-1][2].append((modality, hash))
        return self

    def id(self, id: str) -> TestRequest:
        """Its x-request-id; "request" by itself."""
        self._fields["id"] = id
        return self

    def model(self, model: str) -> TestRequest:
        """After rewriting."""
        self._model = model
        return self

    def header(self, name: str, value: str) -> TestRequest:
        """A header of the client."""
        self._headers.append((name, value))
        return self

    def priority(self, priority: int) -> TestRequest:
        """Below 0: may be shed."""
        self._fields["priority"] = priority
        return self

    def fairness_id(self, id: str) -> TestRequest:
        """Under which flow it is queued."""
        self._fields["fairness_id"] = id
        return self

    def max_output_tokens(self, tokens: int) -> TestRequest:
        """As in the body."""
        self._fields["max_output_tokens"] = tokens
        return self

    def _make(self, keys: _TextKeys) -> Request:
        prompts = []
        for text, tokens, items in self._prompts:
            chains = [
                KeyChain(_NAMESPACE, EXACT_BLOCK_TOKENS, keys.full(text, tokens, EXACT_BLOCK_TOKENS)),
                KeyChain(_NAMESPACE, APPROXIMATE_BLOCK_TOKENS, keys.all(text, tokens, APPROXIMATE_BLOCK_TOKENS)),
            ]
            placed = [MultimodalItem(modality, hash, i, 1) for i, (modality, hash) in enumerate(items)]
            prompts.append(Prompt(token_count=tokens, chains=chains, items=placed))
        return Request(self._model, prompts, headers=self._headers, **self._fields)

    def __repr__(self) -> str:
        return f"TestRequest({', '.join(f'{text}[:{tokens}]' for text, tokens, _ in self._prompts)})"


class _TextKeys:
    """Block keys by the name of a text: number of the text, of the block, and the tokens of a partial block."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def full(self, text: str, tokens: int, block_tokens: int) -> Any:
        base = self._number(text)
        return np.array([base | i << 8 for i in range(tokens // block_tokens)], dtype=np.uint64)

    def all(self, text: str, tokens: int, block_tokens: int) -> Any:
        keys = self.full(text, tokens, block_tokens)
        rest = tokens % block_tokens
        if rest == 0:
            return keys
        last = self._number(text) | len(keys) << 8 | rest
        return np.append(keys, np.array([last], dtype=np.uint64))

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers) + 1) << 40


class Outcome:
    """What came of a decision, by names.

    Attributes
    ----------
    decision
        The decision itself.
    headers
        That go upstream; a removed one is None.
    explanation
        Why, as a table.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a").waiting(4), bed.endpoint("b").waiting(0)
    >>> outcome = bed.decide(TestRequest("chat", 100))
    >>> outcome.targets, outcome.scores_of("queue-scorer")
    (['b'], {'a': 0.0, 'b': 1.0})
    """

    def __init__(self, decision: Decision, headers: Mapping[str, str | None], explanation: str) -> None:
        self.decision = decision
        self.headers = dict(headers)
        self.explanation = explanation

    @property
    def targets(self) -> list[str]:
        """Of the primary profile, best first; empty after an error."""
        return [e.name for e in self.decision.targets]

    def targets_of(self, profile: str) -> list[str]:
        """Of another profile; empty when it was skipped or found none."""
        result = self.decision.profiles.get(profile)
        return [] if result is None else [e.name for e in result.targets]

    def scores_of(self, scorer: str, profile: str | None = None) -> dict[str, float]:
        """Raw scores by endpoint; one that got no score is left out."""
        return self._explained(profile).scores_of(scorer)

    def totals(self, profile: str | None = None) -> dict[str, float]:
        """Weighted sums by endpoint."""
        explained = self._explained(profile)
        return {e.name: float(t) for e, t in zip(explained.endpoints, explained.totals, strict=True)}

    def dropped(self) -> dict[str, list[tuple[str, str]]]:
        """By endpoint: the filters that dropped it, in any profile, and why."""
        out: dict[str, list[tuple[str, str]]] = {}
        for profile in self.decision.explanation.profiles.values():
            for drop in profile.drops:
                out.setdefault(drop.endpoint.name, []).append((drop.filter, drop.reason))
        return out

    def _explained(self, profile: str | None) -> ProfileExplanation:
        name = self.decision.primary if profile is None else profile
        profiles = self.decision.explanation.profiles
        if name is None:
            name = next(iter(profiles))  # the request was refused
        if name not in profiles:
            raise NotFoundError(f"no profile {name!r}, only {list(profiles)}")
        return profiles[name]

    def __eq__(self, other: object) -> bool:
        return other.matches(self) if isinstance(other, Matcher) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.decision!r}\n{self.explanation}"


class Matcher:
    """Compared with an `Outcome` by ``==``; its ``repr`` says what was expected.

    Parameters
    ----------
    expected
        What the outcome does, for a failed test.
    matches
        A function that tells whether an `Outcome` does it.

    Examples
    --------
    >>> Matcher("has two candidates", lambda outcome: outcome.decision.explanation.candidates == 2)
    <an outcome that has two candidates>
    """

    def __init__(self, expected: str, matches: Any) -> None:
        self._expected = expected
        self.matches = matches

    def __eq__(self, other: object) -> bool:
        return bool(self.matches(other)) if isinstance(other, Outcome) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<an outcome that {self._expected}>"


def _close(given: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return given.keys() == expected.keys() and all(
        math.isclose(given[k], expected[k], rel_tol=1e-9, abs_tol=1e-12) for k in expected
    )


def picks(*names: str) -> Matcher:
    """The primary profile's first targets are these, best first.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a").waiting(4), bed.endpoint("b").waiting(0)
    >>> assert bed.decide(TestRequest("chat", 100)) == picks("b")
    """
    return Matcher(f"picks {', '.join(names)}", lambda o: tuple(o.targets[: len(names)]) == names)


def picks_in_order(names: Sequence[str]) -> Matcher:
    """The primary profile's targets are exactly these.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a")
    >>> assert bed.decide(TestRequest("chat", 100)) == picks_in_order(["a"])
    """
    return Matcher(f"picks exactly {list(names)}", lambda o: o.targets == list(names))


def picks_for(profile: str, name: str) -> Matcher:
    """The first target of a profile; "" when it was skipped or found none.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a")
    >>> assert bed.decide(TestRequest("chat", 100)) == picks_for("default", "a")
    """
    return Matcher(f"picks {name!r} in profile {profile}", lambda o: (o.targets_of(profile) or [""])[0] == name)


def scores(scorer: str, expected: Mapping[str, float], profile: str | None = None) -> Matcher:
    """Raw scores of a scorer, to 9 digits.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a").waiting(4), bed.endpoint("b").waiting(0)
    >>> assert bed.decide(TestRequest("chat", 100)) == scores("queue-scorer", {"a": 0, "b": 1})
    """
    return Matcher(f"scores {dict(expected)} by {scorer}", lambda o: _close(o.scores_of(scorer, profile), expected))


def totals(expected: Mapping[str, float], profile: str | None = None) -> Matcher:
    """Weighted sums, to 9 digits.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.configure(make_config(["queue-scorer"], {"default": {"queue-scorer": 2}}))
    >>> _ = bed.endpoint("a").waiting(4), bed.endpoint("b").waiting(0)
    >>> assert bed.decide(TestRequest("chat", 100)) == totals({"a": 0, "b": 2})
    """
    return Matcher(f"has the totals {dict(expected)}", lambda o: _close(o.totals(profile), expected))


def drops(endpoint: str, filter: str, reason: str | None = None) -> Matcher:
    """A filter of any profile dropped the endpoint.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.configure(make_config(["decode-filter"]))
    >>> _ = bed.endpoint("a").role("prefill"), bed.endpoint("b").role("decode")
    >>> assert bed.decide(TestRequest("chat", 100)) == drops("a", "decode-filter")
    """

    def matches(outcome: Outcome) -> bool:
        found = outcome.dropped().get(endpoint, [])
        return any(name == filter and reason in (None, why) for name, why in found)

    return Matcher(f"drops {endpoint} by {filter}", matches)


def sends_header(name: str, value: str | None) -> Matcher:
    """A header that goes upstream; None: it is removed.

    Examples
    --------
    >>> sends_header("x-prefiller-host-port", "10.0.0.1:8000")
    <an outcome that sends x-prefiller-host-port: 10.0.0.1:8000>
    """
    return Matcher(f"sends {name}: {value}", lambda o: name in o.headers and o.headers[name] == value)


def refuses(code: str, reason: str = "") -> Matcher:
    """Ends with this code, such as ``"RESOURCE_EXHAUSTED"``, and dropped reason.

    Examples
    --------
    >>> assert TestBed().decide(TestRequest("chat", 100)) == refuses("UNAVAILABLE", "rejected-no-endpoints")
    """
    return Matcher(
        f"refuses with {code} {reason!r}",
        lambda o: o.decision.code == code and o.decision.dropped_reason == reason,
    )


class EndpointSetup:
    """Sets up one endpoint of a `TestBed`. Every method returns it; labels and address come before all else.

    Examples
    --------
    >>> bed = TestBed()
    >>> bed.endpoint("a").role("decode").waiting(4).kv_usage(0.5).holds("chat", 512)
    EndpointSetup('a')
    """

    def __init__(self, bed: TestBed, name: str) -> None:
        self._bed = bed
        self._name = name
        self._labels: dict[str, str] = {}
        self._address = name
        self._port = 8000
        self._handle: EndpointHandle | None = None
        self._holders: dict[str, tuple[int, int]] = {}

    @property
    def handle(self) -> EndpointHandle:
        """In the bed's pool."""
        return self._bed._materialize(self)

    def role(self, role: str) -> EndpointSetup:
        """Label llm-d.ai/role."""
        return self.label("llm-d.ai/role", role)

    def label(self, name: str, value: str) -> EndpointSetup:
        """Of its pod."""
        self._must_be_new("labels come")
        self._labels[name] = value
        return self

    def address(self, address: str, port: int = 8000) -> EndpointSetup:
        """Where it listens; its name by itself."""
        self._must_be_new("the address comes")
        self._address, self._port = address, port
        return self

    def waiting(self, requests: int) -> EndpointSetup:
        """Its queue, read now."""
        return self._metrics(waiting=requests)

    def running(self, requests: int) -> EndpointSetup:
        """Requests in its batch, read now."""
        return self._metrics(running=requests)

    def kv_usage(self, fraction: float) -> EndpointSetup:
        """Of its cache, 0 to 1, read now."""
        return self._metrics(kv_usage=fraction)

    def adapters(self, max_active: int, active: Sequence[str], waiting: Sequence[str] = ()) -> EndpointSetup:
        """LoRA adapters: most at a time, active, waiting; read now."""
        return self._metrics(max_adapters=max_active, active_adapters=active, waiting_adapters=waiting)

    def attribute(self, name: str, value: float) -> EndpointSetup:
        """A named number, read now."""
        self._bed.pool.set_attribute(self.handle, name, value, at=self._bed.now)
        return self

    def holds(self, text: str, tokens: int, tier: str = "gpu") -> EndpointSetup:
        """The first `tokens` tokens of a text are in its cache: by tier in the exact source, in the approximate one
        whatever the tier."""
        bed, handle = self._bed, self.handle
        if tier not in self._holders:
            self._holders[tier] = bed._new_holder()
            bed.pool.bind_holder(self._holders[tier], handle, source=EXACT, tier=tier)
        bed._exact.store(self._holders[tier][0], bed._keys.full(text, tokens, EXACT_BLOCK_TOKENS))
        bed._approximate.store(self._holders["(approximate)"][0], bed._keys.all(text, tokens, APPROXIMATE_BLOCK_TOKENS))
        return self

    def in_flight(self, requests: int, tokens: int = 0) -> EndpointSetup:
        """As if that many requests and tokens were under way through this router."""
        self._bed._states.add_in_flight(_IN_FLIGHT, self.handle, requests, tokens)
        return self

    def __repr__(self) -> str:
        return f"EndpointSetup({self._name!r})"

    def _metrics(self, **values: Any) -> EndpointSetup:
        self._bed.pool.set_metrics(self.handle, at=self._bed.now, **values)
        return self

    def _must_be_new(self, what: str) -> None:
        if self._handle is not None:
            raise ValueError(f"endpoint {self._name}: {what} before all else")


class TestBed:
    """A cluster by names. Time stands still until `advance`.

    Parameters
    ----------
    registry
        Plugin types; by default the library's, to which `registry` adds your own.

    Attributes
    ----------
    pool
        The endpoints.
    now
        Seconds since the epoch.
    registry
        Plugin types.

    Examples
    --------
    >>> bed = TestBed()
    >>> _ = bed.endpoint("a").waiting(4), bed.endpoint("b").waiting(0)
    >>> bed.score("queue-scorer", {}, TestRequest("chat", 1024))
    {'a': 0.0, 'b': 1.0}
    """

    __test__ = False

    def __init__(self, registry: Registry | None = None) -> None:
        self.pool = EndpointPool()
        self.now = 1_700_000_000.0
        self.registry = registry if registry is not None else Registry()
        self._endpoints: dict[str, EndpointSetup] = {}
        self._keys = _TextKeys()
        self._exact = _core.TestIndex(False)
        self._approximate = _core.TestIndex(True)
        self._next_slot = 1
        self._flights: list[Flight] = []
        self._scheduler: Scheduler | None = None
        self._states = _core.PluginStates()

    @property
    def scheduler(self) -> Scheduler:
        """The one of the following decisions; llm-d's defaults without `configure`."""
        if self._scheduler is None:
            self._scheduler = self._make("")
        return self._scheduler

    def endpoint(self, name: str) -> EndpointSetup:
        """A new endpoint, or the one of that name. Endpoints keep the order in which they were first named."""
        return self._endpoints.setdefault(name, EndpointSetup(self, name))

    def remove(self, name: str) -> None:
        """It goes away, with what it remembers."""
        setup = self._endpoints.pop(self._known(name))
        handle = self._materialize(setup)
        for tier, (slot, _) in setup._holders.items():
            (self._approximate if tier == "(approximate)" else self._exact).forget(slot)
        self.pool.remove(handle)

    def configure(self, config: str | Config) -> Scheduler:
        """The configuration of the following decisions, experimental plugins allowed. A later call is a live reload:
        what plugins remember stays."""
        self._scheduler = self._make(config)
        return self._scheduler

    def decide(self, request: TestRequest, seed: int = 1) -> Outcome:
        """Decides, and carries the decision out: its load stays in flight until `finish`."""
        return self._run(self.scheduler, request, None, seed, True)

    def decide_among(self, candidates: Sequence[str], request: TestRequest, seed: int = 1) -> Outcome:
        """Only for the endpoints named."""
        return self._run(self.scheduler, request, candidates, seed, True)

    def ask(self, request: TestRequest, seed: int = 1) -> Outcome:
        """Decides without carrying out."""
        return self._run(self.scheduler, request, None, seed, False)

    def finish(self, completion_tokens: int = 1) -> None:
        """The answers of all decisions carried out have ended."""
        for flight in self._flights:
            flight.on_response_headers(now=self.now)
            flight.on_response_body(first=True, last=True, completion_tokens=completion_tokens, now=self.now)
        self._flights.clear()

    def score(self, type_name: str, parameters: Mapping[str, Any] | None, request: TestRequest) -> dict[str, float]:
        """The raw scores that one scorer gives to the endpoints."""
        outcome = self._run(self._make(_one_plugin(type_name, parameters)), request, None, 1, False)
        outcome.decision.check()
        return outcome.scores_of(type_name, "default")

    def filter(
        self, type_name: str, parameters: Mapping[str, Any] | None, request: TestRequest, seed: int = 1
    ) -> list[str]:
        """The endpoints that one filter keeps, in order."""
        outcome = self._run(self._make(_one_plugin(type_name, parameters)), request, None, seed, False)
        if outcome.decision.code == "INTERNAL":
            outcome.decision.check()
        dropped = outcome.dropped()
        return [name for name in self._endpoints if name not in dropped]

    def advance(self, seconds: float) -> None:
        """Time goes on."""
        self.now += seconds

    def __repr__(self) -> str:
        return f"TestBed({', '.join(self._endpoints)})"

    def _make(self, config: str | Config) -> Scheduler:
        scheduler = Scheduler.__new__(Scheduler)
        scheduler._init(config, "test", True, self.registry, [self._exact, self._approximate], self._states)
        return scheduler

    def _run(
        self, scheduler: Scheduler, request: TestRequest, among: Sequence[str] | None, seed: int, carry_out: bool
    ) -> Outcome:
        for setup in self._endpoints.values():
            self._materialize(setup)
        candidates = None
        if among is not None:
            found = [self.pool.find(self._endpoints[self._known(name)].handle) for name in among]
            candidates = [e for e in found if e is not None]
        decision = scheduler.schedule(
            request._make(self._keys), self.pool, candidates=candidates, now=self.now, seed=seed, check=False
        )
        headers: dict[str, str | None] = {}
        explanation = str(decision.explanation)
        if decision.ok and carry_out:
            flight = decision.dispatch()
            headers = flight.headers
            self._flights.append(flight)
        return Outcome(decision, headers, explanation)

    def _known(self, name: str) -> str:
        if name not in self._endpoints:
            raise NotFoundError(f"no endpoint is named {name!r}, only {list(self._endpoints)}")
        return name

    def _new_holder(self) -> tuple[int, int]:
        self._next_slot += 1
        return (self._next_slot - 1, 1)

    def _materialize(self, setup: EndpointSetup) -> EndpointHandle:
        if setup._handle is None:
            for other in self._endpoints.values():  # those named before come first
                if other is not setup and other._handle is None and self._before(other, setup):
                    self._add(other)
            self._add(setup)
        assert setup._handle is not None
        return setup._handle

    def _before(self, one: EndpointSetup, other: EndpointSetup) -> bool:
        names = list(self._endpoints)
        return other._name not in names or names.index(one._name) < names.index(other._name)

    def _add(self, setup: EndpointSetup) -> None:
        setup._handle = self.pool.add(setup._name, setup._address, setup._port, labels=setup._labels)
        holder = setup._holders["(approximate)"] = self._new_holder()
        self.pool.bind_holder(holder, setup._handle, source=APPROXIMATE)


def _one_plugin(type_name: str, parameters: Mapping[str, Any] | None) -> str:
    return make_config([{"type": type_name, "parameters": dict(parameters or {})}])


__all__ = [
    "EndpointSetup",
    "Matcher",
    "Outcome",
    "TestBed",
    "TestRequest",
    "drops",
    "picks",
    "picks_for",
    "picks_in_order",
    "refuses",
    "scores",
    "sends_header",
    "totals",
]
