"""Endpoints and requests; public through `llmd.sched`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmd import _core
from llmd._core import Endpoint, EndpointHandle, HolderId, NamespaceId
from llmd._types import TokensLike, core_of, listed, mapped, of_type
from llmd.index import PrefixIndex

EXACT = 0
"""The prefix source that is fed by the engines' KV events."""
APPROXIMATE = 1
"""The prefix source that is fed by our own decisions."""


def _at(seconds: float | None) -> float:
    """The time given, or now."""
    return time.time() if seconds is None else seconds


class EndpointPool:
    """The endpoints among which decisions are taken, and what was last measured there.

    A decision works on the pool as it was at its beginning. A value that was never set is unknown, which is not zero.

    Examples
    --------
    >>> pool = EndpointPool()
    >>> endpoint = pool.add("a", "10.0.0.1", 8000, labels={"llm-d.ai/role": "decode"})
    >>> pool.set_metrics(endpoint, waiting=3, kv_usage=0.5, at=0.0)
    >>> a = pool.find("default/a")
    >>> a, a.waiting, a.running
    (Endpoint(default/a at 10.0.0.1:8000), 3, None)
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
        handle: EndpointHandle = self._core.add(name, address, port, namespace, mapped(labels or {}, "labels"), node_address, rank)
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
        ValueError
            For a count below 0, or a `kv_usage` that is no fraction.
        """
        self._core.set_metrics(
            endpoint,
            _at(at),
            waiting,
            running,
            kv_usage,
            max_adapters,
            listed(active_adapters, "active_adapters"),
            listed(waiting_adapters, "waiting_adapters"),
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
        return int(self._core.bind_index(source, core_of(index, "index", PrefixIndex)))

    def unbind_holder(self, holder: HolderId | tuple[int, int], *, source: int = EXACT) -> None:
        """To be called when the index retires the holder."""
        self._core.unbind_holder(source, holder)

    def __repr__(self) -> str:
        return f"EndpointPool({', '.join(e.id for e in self)})"


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

    Examples
    --------
    >>> from llmd.hash import content_keys
    >>> from llmd.index import request_namespace
    >>> chain = KeyChain(request_namespace("m"), 16, content_keys(list(range(48))))
    >>> Prompt(token_count=48, chains=[chain])
    Prompt(48 tokens, [3] keys)
    """

    namespace: NamespaceId
    block_size: int
    keys: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class MultimodalItem:
    """An image, a sound or a video inside a prompt.

    Attributes
    ----------
    modality : str
        ``"image"``, ``"audio"``, ``"video"``.
    hash : str
        Of its content, as the engine names it.
    offset, length : int
        Its placeholder tokens.
    """

    modality: str
    hash: str
    offset: int = 0
    length: int = 0


def item_tuples(items: Iterable[MultimodalItem]) -> list[tuple[str, str, int, int]]:
    made = [of_type(item, "items", MultimodalItem) for item in listed(items, "items")]
    return [(i.modality, i.hash, i.offset, i.length) for i in made]


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
        given = [None if c is None else of_type(c, "chains", KeyChain) for c in listed(chains, "chains")]
        parts = [None if c is None else (c.namespace, c.block_size, c.keys) for c in given]
        self._core = _core.SchedulerPrompt(token_count, tokens, parts, item_tuples(items))

    @classmethod
    def _of(cls, core: Any) -> Prompt:
        self = cls.__new__(cls)
        self._core = core
        return self

    @property
    def token_count(self) -> int:
        """Tokens, whether they are known or only counted."""
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

    Attributes
    ----------
    model, id, priority
        As given.
    prompts
        A tuple.
    headers
        A tuple of pairs; names in lower case.

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
        pairs = list(headers.items()) if isinstance(headers, Mapping) else listed(headers, "headers")
        made = tuple(listed(prompts, "prompts"))
        self._core = _core.SchedulerRequest(
            id,
            model,
            fairness_id,
            priority,
            size_bytes,
            max_output_tokens,
            pairs,
            [core_of(p, f"prompts[{i}]", Prompt) for i, p in enumerate(made)],
        )
        self.model = model
        self.prompts = made
        self.id = id
        self.headers = tuple((name.lower(), value) for name, value in pairs)
        self.priority = priority

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        name = name.lower()
        return next((value for key, value in self.headers if key == name), None)

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, model={self.model!r}, prompts={list(self.prompts)})"


__all__ = [
    "EndpointPool",
    "KeyChain",
    "MultimodalItem",
    "Prompt",
    "Request",
]
