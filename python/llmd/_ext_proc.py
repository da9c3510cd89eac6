"""The endpoint-picker protocol on bytes; public through `llmd.gateway`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from llmd import _core
from llmd._decision import Decision
from llmd._openai import OpenAIRequest, Usage, request_of, usage_of
from llmd._pool import _at
from llmd._types import listed, mapped, of_type

Headers = Union[Mapping[str, str], Iterable[tuple[str, str]]]
Event = Literal[
    "none", "needs_decision", "request_refused", "response_headers", "response_body", "response_end", "failed"
]
"""What `ExtProcStream.receive` tells."""
BodyMode = Literal["none", "streamed", "buffered", "buffered_partial", "full_duplex"]


def pairs_of(headers: Headers, name: str = "headers") -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else listed(headers, name)


def _entries(metadata: Iterable[tuple[str, str, str | Mapping[str, float]]]) -> list[tuple[Any, ...]]:
    entries = []
    for entry in listed(metadata, "metadata"):
        if not isinstance(entry, (tuple, list)) or len(entry) != 3:
            raise TypeError(f"metadata has {entry!r}, wanted (filter namespace, key, text or numbers by name)")
        namespace, key, value = entry
        entries.append((namespace, key, dict(value) if isinstance(value, Mapping) else value))
    return entries


@dataclass(frozen=True)
class ExtProcOptions:
    """Limits and behaviour of an `ExtProcStream`.

    Attributes
    ----------
    max_body_bytes
        Of a request; a longer one is refused with 413.
    max_response_body_bytes
        Held back; a longer response is passed on as it comes.
    max_headers, max_header_bytes
        More are refused with 431.
    max_subset_entries
        Of the endpoints that a client may choose from; further ones are ignored.
    chunk_bytes
        Of a streamed body answer.
    single_destination
        Only the first destination, for data planes that cannot read a list.
    refuse_unknown_paths
        A request whose path nothing claims is refused with 400 instead of being forwarded without a prompt.
    require_model
        400 when neither the body nor a header names a model.
    strip_client_headers
        Control headers of the client are removed before the model server sees them.
    resend_headers
        Sends every received header back, though the data plane has them already.
    mark_responses
        Marks processed responses with ``x-went-into-resp-headers``.
    report_served_endpoint
        Copies the served endpoint to ``x-conformance-test-served-endpoint``.
    skip_response
        Ends the stream after the request has been answered.
    assumed_request_body_mode, assumed_response_body_mode
        For a data plane that does not say how it sends bodies: none, streamed, buffered, buffered_partial, full_duplex.
    override_request_body_mode, override_response_body_mode
        Asks for another mode; the data plane must allow it.
    """

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
    """What is known when a decision is due.

    Attributes
    ----------
    headers
        Of the request, names in lower case.
    request_id
        Made here when the client sent none.
    method, path
        Of the request.
    api
        As of `api_of_path`.
    openai
        The body as it was read; empty when there is none, or `api` is "none".
    body
        What there is of it.
    bodyless
        No body will come: any endpoint will do.
    headers_only
        The body is not sent to us: decide from the headers.
    truncated
        Only the beginning of the body was sent; it is not interpreted.
    incoming_model, target_model
        As the client wrote it, and after the rewrite header.
    can_rewrite_model
        Whether `ExtProcStream.decide` may name another model.
    objective, fairness_id
        As the client's headers say.
    subset
        Endpoints to choose from; None: all.
    received, complete
        Times of the first message and of the last byte.
    """

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
    """What is known of the response so far.

    Attributes
    ----------
    headers
        Names in lower case.
    status
        HTTP; 0 when not known.
    streaming, ended
        It is a stream of events; it has ended.
    served_endpoint
        ``"ip:port"``; empty: the data plane did not say, so it is the first destination.
    body_bytes, chunks
        Size, and pieces that were not empty.
    usage
        None until one was seen.
    started, first_byte, last_byte
        Times of the headers, and of the body.
    """

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
    """How it went.

    Attributes
    ----------
    cause
        natural, client-disconnect, evicted or error.
    routed
        A decision was sent.
    refused_with
        HTTP status of our own answer; 0: none.
    error
        Why, for the cause error.
    """

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
    A host's loop; `messages` come from Envoy, and `answers` go there.

    >>> def serve(messages, answers, schedule):
    ...     stream = ExtProcStream()
    ...     for message in messages:
    ...         if stream.receive(message) == "needs_decision":
    ...             stream.decide_with(schedule(stream.facts))
    ...         while (answer := stream.next()) is not None:
    ...             answers.append(answer)
    ...         if stream.finished:
    ...             break
    ...     stream.close()
    ...     return stream.status
    >>> serve([b"no ProcessingRequest"], [], schedule=None)[0]  # a gRPC code
    3
    """

    def __init__(self, options: ExtProcOptions | None = None, *, seed: int = 0) -> None:
        given = ExtProcOptions() if options is None else of_type(options, "options", ExtProcOptions)
        self._core = _core.ExtProcStream(vars(given), seed)

    def receive(self, message: bytes, *, now: float | None = None) -> Event:
        """Takes a serialized ProcessingRequest.

        Returns
        -------
        str
            "needs_decision": `facts` is complete, call `decide`, `decide_with` or `refuse`. "request_refused": by this
            object. "response_headers", "response_body", "response_end": see `response`. "failed": see `status`. Else "none".
        """
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
        parts["openai"] = request_of(parts["openai"])
        return RequestFacts(**parts)

    @property
    def response(self) -> ResponseFacts:
        """What is known of the response so far."""
        parts = self._core.response
        parts["usage"] = usage_of(parts["usage"])
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
        self._core.decide(
            _at(now),
            listed(destinations, "destinations"),
            pairs_of(set_headers, "set_headers"),
            listed(remove_headers, "remove_headers"),
            _entries(metadata),
            list(mapped(scores or {}, "scores").items()),
            model,
        )

    def decide_with(
        self, decision: Decision, headers: Mapping[str, str | None] | None = None, *, now: float | None = None
    ) -> None:
        """As `decide`, from a scheduler's decision and the headers of its flight; or refuses with its error."""
        if not of_type(decision, "decision", Decision).ok:
            self.refuse(decision.http_status, decision.message, reason=decision.dropped_reason, now=now)
            return
        edits = mapped(headers or {}, "headers")
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
        self._core.refuse(_at(now), http_status, message, reason, pairs_of(headers))

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
        self._core.edit_response_headers(pairs_of(set, "set"), listed(remove, "remove"))

    def add_response_metadata(self, metadata: Iterable[tuple[str, str, str | Mapping[str, float]]]) -> None:
        """Before the last answer of the response is taken."""
        self._core.add_response_metadata(_entries(metadata))

    def take_completion(self) -> Completion | None:
        """Once for each stream, after its end."""
        parts = self._core.take_completion()
        return None if parts is None else Completion(*parts)

    @property
    def needs_decision(self) -> bool:
        """Whether a decision is due."""
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
        """How the data plane sends the request's body."""
        return str(self._core.request_body_mode)

    @property
    def response_body_mode(self) -> str:
        """How the data plane sends the response's body."""
        return str(self._core.response_body_mode)

    @property
    def ignored_messages(self) -> int:
        """Messages that needed no attention: those after an end of stream."""
        return int(self._core.ignored_messages)

    @property
    def held_bytes(self) -> int:
        """Memory for bodies that are held back."""
        return int(self._core.held_bytes)

    def __repr__(self) -> str:
        return f"ExtProcStream(needs_decision={self.needs_decision}, finished={self.finished})"


__all__ = [
    "Completion",
    "ExtProcOptions",
    "ExtProcStream",
    "RequestFacts",
    "ResponseFacts",
]
