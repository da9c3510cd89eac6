"""OpenAI requests and answers as a router reads them; public through `llmd.gateway`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._types import listed, of_type


@dataclass(frozen=True)
class ChatMessage:
    """A message of a conversation.

    Attributes
    ----------
    role
        user, assistant, system, ...
    text
        Its pieces of text.
    """

    role: str
    text: tuple[str, ...]


@dataclass(frozen=True)
class OpenAIPrompt:
    """A prompt: text or token ids.

    Attributes
    ----------
    text
        Pieces, to be joined without a separator.
    tokens
        Ids, uint32, shape (n,); empty for a text.
    """

    text: tuple[str, ...]
    tokens: npt.NDArray[np.uint32] = field(compare=False)


@dataclass(frozen=True)
class MediaItem:
    """A picture, a sound or a video.

    Attributes
    ----------
    modality, format
        What it is, and in which format.
    data
        URL or data, as it came.
    hash
        Tells contents apart.
    piece
        Number of text pieces before it.
    offset, length
        Placeholder tokens, where the request has token ids.
    """

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
    api
        As of `api_of_path`.
    model
        Empty when there is none.
    text
        The prompt as text, in the order in which it reaches the model, to be joined without a separator.
    messages
        Of a conversation.
    prompts
        Of a completions or embeddings request; one for other interfaces.
    media
        Pictures, sounds and videos, in order.
    model_values
        (begin, size) in bytes of every top-level value of "model", for `replace_model`.
    stream, include_usage
        Whether the answer is to be streamed, with its usage at the end.
    max_output_tokens
        None when not said.
    cache_salt
        Empty for none.
    user, prompt_cache_key, previous_response_id, conversation, session_id
        By which a session may be told; empty when absent.
    raw_messages, raw_tools, raw_chat_template, raw_chat_template_kwargs
        JSON as it came, empty when absent: what a renderer of chats needs.
    add_generation_prompt, continue_final_message
        How to render a chat.
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
        """The pieces of `text`, joined."""
        return "".join(self.text)


def request_of(parts: dict[str, Any]) -> OpenAIRequest:
    text = parts["text"] = tuple(parts["text"])
    parts["messages"] = tuple(ChatMessage(role, text[first : first + n]) for role, first, n in parts["messages"])
    parts["prompts"] = tuple(OpenAIPrompt(text[first : first + n], tokens) for first, n, tokens in parts["prompts"])
    parts["media"] = tuple(MediaItem(*item) for item in parts["media"])
    parts["model_values"] = tuple(parts["model_values"])
    return OpenAIRequest(**parts)


def api_of_path(path: str) -> str:
    """The interface that claims a path, ``"none"`` when none does.

    Returns
    -------
    str
        "chat completions", "completions", "responses", "conversations", "embeddings", "images", "messages" (Anthropic),
        "vLLM generate", "SGLang generate", or one of vLLM's gRPC service.

    Examples
    --------
    >>> api_of_path("/v1/chat/completions?x=1"), api_of_path("/v1/models")
    ('chat completions', 'none')
    """
    return str(_core.api_of_path(path))


def parse_request(path: str, body: bytes, *, max_depth: int = 256, max_body_bytes: int = 64 << 20) -> OpenAIRequest:
    """Reads the body that was sent to `path`. The whole of it is validated.

    Parameters
    ----------
    path
        Of the request; see `api_of_path`.
    body
        JSON.
    max_depth
        Of nested objects and arrays.
    max_body_bytes
        A longer one is refused.

    Raises
    ------
    ValueError
        With the byte and the reason.
    ResourceExhaustedError
        Over a limit.

    Examples
    --------
    >>> body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 7}'
    >>> request = parse_request("/v1/chat/completions", body)
    >>> request.prompt_text, request.max_output_tokens
    ('hello', 7)
    """
    return request_of(_core.parse_openai(api_of_path(path), body, max_depth, max_body_bytes))


def replace_model(body: bytes, request: OpenAIRequest, model: str) -> bytes:
    """The body with another model; all other bytes stay.

    Examples
    --------
    >>> body = b'{"model": "a", "prompt": "x"}'
    >>> replace_model(body, parse_request("/v1/completions", body), "b")
    b'{"model": "b", "prompt": "x"}'
    """
    values = of_type(request, "request", OpenAIRequest).model_values
    return bytes(_core.splice_model(body, listed(values, "model_values"), model))


@dataclass(frozen=True)
class Usage:
    """Tokens as a model server counts them.

    Attributes
    ----------
    prompt_tokens, completion_tokens, total_tokens
        Of the request.
    cached_tokens
        Of the prompt, found in the cache.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


def usage_of(parts: tuple[int, int, int, int] | None) -> Usage | None:
    return None if parts is None else Usage(*parts)


class UsageReader:
    """Reads the usage from an answer as it passes.

    Parameters
    ----------
    event_stream
        The answer is a stream of events, otherwise one JSON object.

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
        return usage_of(self._core.usage)

    def __repr__(self) -> str:
        return f"UsageReader(usage={self.usage})"


__all__ = [
    "ChatMessage",
    "MediaItem",
    "OpenAIPrompt",
    "OpenAIRequest",
    "Usage",
    "UsageReader",
    "api_of_path",
    "parse_request",
    "replace_model",
]
