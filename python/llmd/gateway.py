"""What a gateway needs besides a scheduler: the endpoint-picker protocol on bytes, OpenAI requests, session affinity,
consistent hashing as Envoy's, metrics pages of engines, and endpoints files.

>>> from llmd import gateway
>>> request = gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": [1, 2, 3], "stream": true}')
>>> request.model, request.prompts[0].tokens.tolist(), request.stream
('m', [1, 2, 3], True)
>>> ring = gateway.RingHash(["10.0.0.1:8000", "10.0.0.2:8000"])
>>> ring.pick(gateway.hash_header("session-7"))
1

Nothing here does I/O. Any thread may call anything; calls of one object take turns. Text that came from outside and
is not UTF-8 is kept with surrogates (``errors="surrogateescape"``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd.sched import Decision, EndpointHandle, EndpointPool

Headers = Union[Mapping[str, str], Iterable[tuple[str, str]]]
Event = Literal[
    "none", "needs_decision", "request_refused", "response_headers", "response_body", "response_end", "failed"
]
"""What `ExtProcStream.receive` tells."""


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def _at(seconds: float | None) -> float:
    return time.time() if seconds is None else seconds


# --- Requests ---


@dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation: its role and the pieces of text that it has."""

    role: str
    text: tuple[str, ...]


@dataclass(frozen=True)
class OpenAIPrompt:
    """A prompt: pieces of text, or token ids (uint32 array)."""

    text: tuple[str, ...]
    tokens: npt.NDArray[np.uint32] = field(compare=False)


@dataclass(frozen=True)
class MediaItem:
    """A picture, a sound or a video. `hash` tells contents apart; `piece` is the number of text pieces before it."""

    modality: str
    data: str
    format: str
    hash: str
    piece: int
    offset: int
    length: int


@dataclass(frozen=True)
class OpenAIRequest:
    """What a router needs of a body.

    Attributes
    ----------
    text
        The prompt as text, in the order in which it reaches the model, to be joined without a separator.
    model_values
        (begin, size) in bytes of every top-level value of "model", for `replace_model`.
    raw_messages, raw_tools, ...
        JSON as it came, empty when absent: what a renderer of chats needs.
    """

    api: str
    model: str
    text: tuple[str, ...]
    messages: tuple[ChatMessage, ...]
    prompts: tuple[OpenAIPrompt, ...]
    media: tuple[MediaItem, ...]
    model_values: tuple[tuple[int, int], ...]
    stream: bool
    include_usage: bool
    max_output_tokens: int | None
    cache_salt: str
    user: str
    prompt_cache_key: str
    previous_response_id: str
    conversation: str
    session_id: str
    raw_messages: str
    raw_tools: str
    raw_chat_template: str
    raw_chat_template_kwargs: str
    add_generation_prompt: bool
    continue_final_message: bool

    @property
    def prompt_text(self) -> str:
        return "".join(self.text)


def _request_of(parts: dict[str, Any]) -> OpenAIRequest:
    text = parts["text"] = tuple(parts["text"])
    parts["messages"] = tuple(ChatMessage(role, text[first : first + n]) for role, first, n in parts["messages"])
    parts["prompts"] = tuple(OpenAIPrompt(text[first : first + n], tokens) for first, n, tokens in parts["prompts"])
    parts["media"] = tuple(MediaItem(*item) for item in parts["media"])
    parts["model_values"] = tuple(parts["model_values"])
    return OpenAIRequest(**parts)


def api_of_path(path: str) -> str:
    """The interface that claims a path: ``"chat_completions"`` and so on; see `OpenAIRequest.api`.

    Examples
    --------
    >>> api_of_path("/v1/chat/completions?x=1") == api_of_path("/v1/chat/completions")
    True
    """
    return str(_core.api_of_path(path))


def parse_request(
    path: str, body: bytes, *, max_depth: int = 256, max_body_bytes: int = 64 << 20
) -> OpenAIRequest:
    """Reads the body that was sent to `path`. The whole of it is validated.

    Raises
    ------
    ValueError
        With the byte and the reason.
    ResourceExhaustedError
        Over a limit.
    """
    return _request_of(_core.parse_openai(api_of_path(path), body, max_depth, max_body_bytes))


def replace_model(body: bytes, request: OpenAIRequest, model: str) -> bytes:
    """The body with another model; all other bytes stay.

    Examples
    --------
    >>> body = b'{"model": "a", "prompt": "x"}'
    >>> replace_model(body, parse_request("/v1/completions", body), "b")
    b'{"model": "b", "prompt": "x"}'
    """
    return bytes(_core.splice_model(body, list(request.model_values), model))


@dataclass(frozen=True)
class Usage:
    """Tokens as a model server counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


def _usage_of(parts: tuple[int, int, int, int] | None) -> Usage | None:
    return None if parts is None else Usage(*parts)


class UsageReader:
    """Reads the usage from an answer as it passes.

    Examples
    --------
    >>> reader = UsageReader(event_stream=False)
    >>> reader.append(b'{"usage": {"prompt_tokens": 5, '); reader.append(b'"completion_tokens": 2}}'); reader.finish()
    >>> reader.usage.prompt_tokens
    5
    """

    def __init__(self, *, event_stream: bool) -> None:
        self._core = _core.UsageReader(event_stream)

    def append(self, piece: bytes) -> None:
        """The next piece of the body, of any size."""
        self._core.append(piece)

    def finish(self) -> None:
        """The body has ended."""
        self._core.finish()

    @property
    def usage(self) -> Usage | None:
        """None until one was seen."""
        return _usage_of(self._core.usage)


# --- Sessions ---


@dataclass(frozen=True)
class SessionSource:
    """A header or cookie that may name the session."""

    kind: Literal["header", "cookie"]
    name: str


@dataclass(frozen=True)
class SessionId:
    """What was found. `result` is found, absent, too_long or control (a control character); `source` an index."""

    result: str
    source: int
    value: str

    def __bool__(self) -> bool:
        return self.result == "found"


class SessionIdReader:
    """Finds a request's session as the filter in front of a mesh does.

    Examples
    --------
    >>> SessionIdReader().read({"Cookie": "a=1; session-id=xyz"}).value
    'xyz'
    """

    def __init__(self, sources: Iterable[SessionSource] | None = None, *, max_bytes: int = 1024) -> None:
        given = None if sources is None else [(s.kind, s.name) for s in sources]
        self._core = _core.SessionIdReader(given, max_bytes)

    def read(self, headers: Headers) -> SessionId:
        """The first source that has a value; false when none has, or it is refused."""
        return SessionId(*self._core.read(_pairs(headers)))


def find_cookie(cookie_header: str, name: str) -> str:
    """The first cookie of that name; empty when there is none."""
    return str(_core.find_cookie(cookie_header, name))


# --- Consistent hashing ---


@dataclass(frozen=True)
class HashHost:
    """A host of a ring or table, known by its key."""

    key: str
    weight: int = 1
    locality: int = 0


def _hosts(hosts: Iterable[HashHost | str]) -> list[tuple[str, int, int]]:
    made = [HashHost(h) if isinstance(h, str) else h for h in hosts]
    return [(h.key, h.weight, h.locality) for h in made]


def hash_hosts_of(pool: EndpointPool) -> list[HashHost]:
    """The endpoints by address, so that a pick is a position."""
    return [HashHost(*parts) for parts in _core.hash_hosts_of(pool._core)]


def envoy_address_key(address: str, port: int) -> str:
    """The key of a host as Envoy spells it.

    Examples
    --------
    >>> envoy_address_key("0:0::1", 80)
    '[::1]:80'
    """
    return str(_core.envoy_address_key(address, port))


def xxhash64(text: bytes | str, seed: int = 0) -> int:
    """XXH64, Envoy's hash of a cookie, a source IP or a query parameter."""
    return int(_core.envoy_xxhash64(text.encode() if isinstance(text, str) else text, seed))


def murmurhash2(text: bytes | str) -> int:
    """What Envoy calls MURMUR_HASH_2."""
    return int(_core.envoy_murmur2(text.encode() if isinstance(text, str) else text))


def hash_header(*values: str) -> int:
    """Envoy's hash of a header with these values, at least one."""
    return int(_core.hash_header_values(list(values)))


def combine_hashes(hashes: Iterable[int]) -> int | None:
    """Envoy's combination of several policies' hashes; None for none."""
    out: int | None = _core.combine_hashes(list(hashes))
    return out


class _Table:
    _core: Any

    def pick(self, hash: int, attempt: int = 0) -> int | None:
        """Index of a host; None when there is none. `attempt` counts retries."""
        host: int | None = self._core.pick(hash, attempt)
        return host

    def pick_many(self, hashes: npt.NDArray[np.uint64] | Sequence[int]) -> npt.NDArray[np.uint32]:
        """Index of a host for each hash; 2**32 - 1 when there is none."""
        out: npt.NDArray[np.uint32] = self._core.pick_many(hashes)
        return out

    def __len__(self) -> int:
        return len(self._core)

    def bounded(self, balance_factor: int) -> BoundedLoad:
        """A bound on the load of this table's hosts: percent of their share, at least 100, or 0 for no bound."""
        return BoundedLoad(self._core.bounded(balance_factor))


class RingHash(_Table):
    """Envoy's ring hash, bit for bit. Immutable.

    Parameters
    ----------
    hosts
        `HashHost` or keys, in the order of the cluster.
    function
        "xxhash" or "murmurhash2".

    Raises
    ------
    ValueError
        For empty or repeated keys, weights of 0, sizes out of range.
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
            _hosts(hosts), min_ring_size, max_ring_size, function == "murmurhash2", list(locality_weights)
        )


class Maglev(_Table):
    """Envoy's Maglev, bit for bit. Immutable. `table_size` is prime.

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
        self._core = _core.Maglev(_hosts(hosts), table_size, list(locality_weights))


class BoundedLoad:
    """A host that is too busy passes its requests on, always to the same other hosts for one hash."""

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
        out: int | None = self._core.pick(host, hash, list(active), total)
        return out


# --- Metrics of engines ---


@dataclass(frozen=True)
class EngineMetrics:
    """What a page tells; None where it does not."""

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
        if labels is None:
            key = (parameters or {}).get("engineLabelKey", "llm-d.ai/engine-type")
            labels = {key: engine}
        self._core = _core.EngineMetricsReader(
            dict(labels), None if parameters is None else dict(parameters), first_rank_alone
        )

    @property
    def engine(self) -> str:
        return str(self._core.engine)

    def read(self, page: bytes | str, *, now: float | None = None) -> EngineMetrics:
        """Reads a page by itself.

        Raises
        ------
        ValueError, ResourceExhaustedError
            For a page that is refused as a whole.
        """
        return EngineMetrics(*self._core.read(_bytes(page), _at(now)))

    def update(
        self, page: bytes | str, pool: EndpointPool, endpoint: EndpointHandle, *, now: float | None = None
    ) -> str:
        """Reads a page into a pool: what it does not give keeps its value and time. Returns the problems, or "".

        Raises
        ------
        NotFoundError
            When the endpoint is not in the pool.
        """
        _, problems = self._core.update(_bytes(page), pool._core, endpoint, _at(now))
        return str(problems)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


# --- Endpoints files ---


@dataclass(frozen=True)
class EndpointsChange:
    """How a pool changed: ids that were added; ids that changed, with the old handle and whether the address did;
    handles that are gone. An endpoint that changed has a new handle, so its holders must be bound anew."""

    added: tuple[str, ...]
    changed: tuple[tuple[EndpointHandle, str, bool], ...]
    removed: tuple[EndpointHandle, ...]


class EndpointsFile:
    """The content of an endpoints file, YAML or JSON.

    Raises
    ------
    ValueError
        With the line. A bad entry is passed over and told in `skipped`, unless `refuse_bad_entries`.

    Examples
    --------
    >>> file = EndpointsFile("endpoints: [{name: a, address: 127.0.0.1, port: 8001}]")
    >>> pool = EndpointPool()
    >>> file.apply(pool).added
    ('default/a',)
    """

    def __init__(
        self, text: bytes | str, *, refuse_bad_entries: bool = False, max_bytes: int = 1 << 20
    ) -> None:
        self._core = _core.EndpointsFile(_bytes(text), refuse_bad_entries, max_bytes)

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
        return int(self._core.skipped_count)

    def apply(self, pool: EndpointPool) -> EndpointsChange:
        """Changes the pool so that it has exactly these endpoints."""
        added, changed, removed = self._core.apply(pool._core)
        return EndpointsChange(tuple(added), tuple(changed), tuple(removed))


# --- The endpoint-picker protocol ---

BodyMode = Literal["none", "streamed", "buffered", "buffered_partial", "full_duplex"]


@dataclass(frozen=True)
class ExtProcOptions:
    """As ``llmd::gateway::ExtProcOptions``; see the header for what each means. Sizes are in bytes."""

    max_body_bytes: int = 64 << 20
    max_response_body_bytes: int = 64 << 20
    max_headers: int = 512
    max_header_bytes: int = 256 << 10
    max_subset_entries: int = 8192
    chunk_bytes: int = 62000
    single_destination: bool = False
    refuse_unknown_paths: bool = False
    require_model: bool = True
    strip_client_headers: bool = True
    resend_headers: bool = False
    mark_responses: bool = True
    report_served_endpoint: bool = False
    skip_response: bool = False
    assumed_request_body_mode: BodyMode = "full_duplex"
    assumed_response_body_mode: BodyMode = "full_duplex"
    override_request_body_mode: BodyMode | None = None
    override_response_body_mode: BodyMode | None = None


@dataclass(frozen=True)
class RequestFacts:
    """What is known when a decision is due."""

    headers: dict[str, str]
    request_id: str
    method: str
    path: str
    api: str
    openai: OpenAIRequest
    body: bytes
    bodyless: bool
    headers_only: bool
    truncated: bool
    incoming_model: str
    target_model: str
    can_rewrite_model: bool
    objective: str
    fairness_id: str
    subset: list[str] | None
    received: float | None
    complete: float | None


@dataclass(frozen=True)
class ResponseFacts:
    """What is known of the response so far."""

    headers: dict[str, str]
    status: int
    streaming: bool
    ended: bool
    served_endpoint: str
    body_bytes: int
    chunks: int
    usage: Usage | None
    started: float | None
    first_byte: float | None
    last_byte: float | None


@dataclass(frozen=True)
class Completion:
    """How it went: natural, client_disconnect, evicted or error; `refused_with` is the status of our own answer."""

    cause: str
    routed: bool
    refused_with: int
    error: str


class ExtProcStream:
    """One HTTP request in Envoy's external-processing protocol: serialized ProcessingRequests in, ProcessingResponses
    out. The gRPC stream is the host's.

    Parameters
    ----------
    options
        Limits and behaviour.
    seed
        Of the request ids that are made here.

    Examples
    --------
    A host's loop::

        stream = ExtProcStream()
        async for message in grpc_stream:
            if stream.receive(message) == "needs_decision":
                stream.decide_with(schedule(stream.facts))
            while (answer := stream.next()) is not None:
                await grpc_stream.write(answer)
            if stream.finished:
                break
        stream.close()
    """

    def __init__(self, options: ExtProcOptions | None = None, *, seed: int = 0) -> None:
        self._core = _core.ExtProcStream(vars(options or ExtProcOptions()), seed)

    def receive(self, message: bytes, *, now: float | None = None) -> Event:
        """Takes a serialized ProcessingRequest."""
        event: Event = self._core.receive(message, _at(now))
        return event

    def next(self) -> bytes | None:
        """The next serialized ProcessingResponse, or None."""
        answer: bytes | None = self._core.next()
        return answer

    @property
    def facts(self) -> RequestFacts | None:
        """While a decision is due."""
        parts = self._core.facts
        if parts is None:
            return None
        parts["openai"] = _request_of(parts["openai"])
        return RequestFacts(**parts)

    @property
    def response(self) -> ResponseFacts:
        parts = self._core.response
        parts["usage"] = _usage_of(parts["usage"])
        return ResponseFacts(**parts)

    def decide(
        self,
        destinations: Sequence[str],
        *,
        set_headers: Headers = (),
        remove_headers: Sequence[str] = (),
        metadata: Iterable[tuple[str, str, str | Mapping[str, float]]] = (),
        scores: Mapping[str, float] | None = None,
        model: str | None = None,
        now: float | None = None,
    ) -> None:
        """While a decision is due: where the request goes.

        Parameters
        ----------
        destinations
            ``"ip:port"``, best first.
        metadata
            (filter namespace, key, text or numbers by name), for the data plane's filters.
        scores
            Sent along under x-gateway-destination-endpoint-scores.
        model
            For the model server; what the client asked for unless given.

        Raises
        ------
        ValueError
            The result cannot be sent; nothing has changed.
        FailedPreconditionError
            No decision is due.
        """
        entries = [(n, k, dict(v) if isinstance(v, Mapping) else v) for n, k, v in metadata]
        self._core.decide(
            _at(now),
            list(destinations),
            _pairs(set_headers),
            list(remove_headers),
            entries,
            list((scores or {}).items()),
            model,
        )

    def decide_with(
        self, decision: Decision, headers: Mapping[str, str | None] | None = None, *, now: float | None = None
    ) -> None:
        """As `decide`, from a scheduler's decision and the headers of its flight; or refuses with its error."""
        if not decision.ok:
            self.refuse(decision.http_status, decision.message, reason=decision.dropped_reason, now=now)
            return
        edits = dict(headers or {})
        self.decide(
            decision.destination.split(","),
            set_headers={k: v for k, v in edits.items() if v is not None},
            remove_headers=[k for k, v in edits.items() if v is None],
            now=now,
        )

    def refuse(
        self,
        http_status: int,
        message: str = "",
        *,
        reason: str = "",
        headers: Headers = (),
        now: float | None = None,
    ) -> None:
        """While a decision is due: answers the client. `reason` as in ``x-llm-d-request-dropped-reason``."""
        self._core.refuse(_at(now), http_status, message, reason, _pairs(headers))

    def evict(self, reason: str, *, now: float | None = None) -> None:
        """Ends a decided request that is still being served."""
        self._core.evict(_at(now), reason)

    def fail(self, message: str, *, now: float | None = None) -> None:
        """Ends the stream with an error, so that the data plane's failure mode decides."""
        self._core.fail(_at(now), message)

    def close(self, *, cancelled: bool = False, now: float | None = None) -> None:
        """The data plane ended the stream."""
        self._core.close(_at(now), cancelled)

    def edit_response_headers(self, set: Headers = (), remove: Sequence[str] = ()) -> None:
        """Before the answer to the response headers is taken."""
        self._core.edit_response_headers(_pairs(set), list(remove))

    def add_response_metadata(self, metadata: Iterable[tuple[str, str, str | Mapping[str, float]]]) -> None:
        """Before the last answer of the response is taken."""
        self._core.add_response_metadata(
            [(n, k, dict(v) if isinstance(v, Mapping) else v) for n, k, v in metadata]
        )

    def take_completion(self) -> Completion | None:
        """Once for each stream, after its end."""
        parts = self._core.take_completion()
        return None if parts is None else Completion(*parts)

    @property
    def needs_decision(self) -> bool:
        return bool(self._core.needs_decision)

    @property
    def finished(self) -> bool:
        """Nothing more is to be read; end the gRPC stream with `status` when `next` gives None."""
        return bool(self._core.finished)

    @property
    def status(self) -> tuple[int, str]:
        """gRPC code and message."""
        code, message = self._core.status
        return int(code), str(message)

    @property
    def request_body_mode(self) -> str:
        return str(self._core.request_body_mode)

    @property
    def response_body_mode(self) -> str:
        return str(self._core.response_body_mode)

    @property
    def ignored_messages(self) -> int:
        return int(self._core.ignored_messages)

    @property
    def held_bytes(self) -> int:
        return int(self._core.held_bytes)


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
