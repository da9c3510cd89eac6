"""Attention: a workspace for a shape, a plan for a step, a run for a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from llmd import _core
from llmd._cuda_backend import Backend, BackendName, DlpackArray, DType, StreamLike, given, wrapped
from llmd._cuda_cache import KvCache, PageList
from llmd._types import core_of, of_type

Mode: TypeAlias = Literal["decode", "prefill", "mixed"]
"""How many new tokens requests have: one each; any number; ``mixed`` gives each kind its kernel."""


@dataclass(frozen=True)
class AttentionShape:
    """What a `Workspace` is made for.

    Attributes
    ----------
    mode : {"decode", "prefill", "mixed"}
        One new token a request, or any number.
    max_batch : int
        Requests, at most.
    num_q_heads, num_kv_heads : int
        Hq, a multiple of Hkv.
    head_dim : int
        D. The CUDA kernels have 64 and 128.
    kv_dtype : {"f16", "bf16", "e4m3"}
        Type of the cache.
    page_size : int
        P, tokens of a page.
    max_tokens : int
        Of all requests together in one call; not read in decode.
    window : int
        Keys that a query sees, its own included; 0: all before it.
    fixed_split : int
        0: work is cut so that it fills the device. A multiple of 64: each request is cut at multiples of so many keys, and
        its result does not depend on the others', bit for bit.
    max_kv_tokens : int
        With `fixed_split`: bounds the sum of all lengths.

    Examples
    --------
    >>> shape = AttentionShape("decode", max_batch=64, num_q_heads=32, num_kv_heads=8, head_dim=128, kv_dtype="bf16", page_size=16)
    >>> shape.window
    0
    """

    mode: Mode
    max_batch: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: DType
    page_size: int
    max_tokens: int = 0
    window: int = 0
    fixed_split: int = 0
    max_kv_tokens: int = 0


@dataclass(frozen=True)
class DataError:
    """The first bad element that validated attention met since the last `Workspace.check`.

    Attributes
    ----------
    kind : {"page", "length", "slot"}
        What is out of range.
    request : int
        Number in the batch.
    index : int
        Place in the request's list of pages.
    value : int
        What was there.
    """

    kind: Literal["page", "length", "slot"]
    request: int
    index: int
    value: int

    def __str__(self) -> str:
        return f"request {self.request}, index {self.index}: bad {self.kind} {self.value}"


class Workspace:
    """The memory that attention of one shape works in: partial results and the plan of a step.

    It serves one stream at a time. Its calls may come from any thread, and take turns; but a plan and its layers belong
    together, so one thread should do a step. For another window or other head counts make another one.

    Parameters
    ----------
    shape : AttentionShape
        What it is for.
    memory : array of uint8, shape (n,), optional
        At least `Backend.workspace_bytes` of the shape, on the device, a multiple of 16 bytes as address. Stays alive as long
        as the workspace. Without it NumPy makes one in memory of the host.
    stream, backend : optional
        See `llmd.cuda`. The memory is made ready on the stream.

    Raises
    ------
    ValueError
        If the shape breaks a rule or the memory is too small.
    llmd.UnsupportedError
        If the backend has no code for the shape.

    Examples
    --------
    >>> shape = AttentionShape("decode", max_batch=2, num_q_heads=4, num_kv_heads=2, head_dim=8, kv_dtype="f16", page_size=4)
    >>> workspace = Workspace(shape)
    >>> import numpy as np
    >>> cache = KvCache(*np.ones((2, 10, 4, 2, 8), np.float16))
    >>> pages = PageList(np.array([[1, 2], [3, 0]], np.int32), seq_lens=np.array([6, 1], np.int32))
    >>> plan = workspace.plan(pages)
    >>> q, o = np.ones((2, 2, 4, 8), np.float16)
    >>> plan.attention(q, o, cache)
    >>> float(o.min()), float(o.max())
    (1.0, 1.0)
    >>> workspace.check() is None
    True
    """

    __slots__ = ("_core", "_shape")

    def __init__(
        self,
        shape: AttentionShape,
        memory: DlpackArray | None = None,
        *,
        stream: StreamLike | None = None,
        backend: Backend | BackendName | None = None,
    ) -> None:
        of_type(shape, "shape", AttentionShape)
        core = given(backend)
        if memory is None:
            core = core or given("cpu")
            assert core is not None
            size = core.workspace_bytes(shape)
            if core.path:
                raise ValueError(f"memory is None, wanted an array of {size} bytes (uint8) on the device")
            memory = _aligned(size)
        self._shape = shape
        self._core = _core.AttentionWorkspace(shape, memory, stream, core)

    @property
    def shape(self) -> AttentionShape:
        """What it is for."""
        return self._shape

    @property
    def backend(self) -> Backend:
        """What does the work."""
        return wrapped(self._core.backend)

    def plan(
        self, pages: PageList, *, q_start: DlpackArray | None = None, stream: StreamLike | None = None
    ) -> Plan:
        """Divides the work of a step. What was planned before is no longer valid.

        Nothing on the host depends on what the arrays hold: in a captured CUDA graph new lengths and pages may be written to
        them between replays. The arrays, the plan and the workspace must then live as long as the graph.

        Parameters
        ----------
        pages : PageList
            Pages and lengths of B requests; requests beyond a graph's fill have length 0.
        q_start : array of int32, shape (B + 1,), optional
            Where each request's new tokens begin in `q`, ascending from 0; not in decode.
        stream : optional
            See `llmd.cuda`.

        Returns
        -------
        Plan
            To be run for each layer; it keeps the arrays alive.
        """
        of_type(pages, "pages", PageList)
        out = object.__new__(Plan)
        out._core = self._core.plan(pages, q_start, stream)
        return out

    def check(self, *, stream: StreamLike | None = None) -> DataError | None:
        """Waits for the stream; what validated attention has met, which is then forgotten. Not for graphs."""
        found = self._core.check(stream)
        return None if found is None else DataError(*found)

    def __repr__(self) -> str:
        return f"Workspace({self._core.bytes} bytes on {self._core.device}, mode={self._shape.mode!r})"


def _aligned(size: int) -> DlpackArray:
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


class Plan:
    """A step, divided: which part of the work is done where. Made by `Workspace.plan`.

    Examples
    --------
    >>> import numpy as np
    >>> workspace = Workspace(AttentionShape("prefill", 2, 2, 1, 8, "f16", 4, max_tokens=8))
    >>> pages = PageList(np.array([[1], [2]], np.int32), seq_lens=np.array([3, 1], np.int32))
    >>> plan = workspace.plan(pages, q_start=np.array([0, 3, 4], np.int32))
    >>> plan
    Plan(batch=2)
    >>> q, o = np.ones((2, 4, 2, 8), np.float16)
    >>> plan.attention(q, o, KvCache(*np.ones((2, 3, 4, 1, 8), np.float16)))
    """

    __slots__ = ("_core",)

    _core: _core.AttentionPlan

    def __init__(self) -> None:
        raise TypeError("Plan is not made directly: use Workspace.plan()")

    @property
    def batch(self) -> int:
        """Requests."""
        return self._core.batch

    def attention(
        self,
        q: DlpackArray,
        o: DlpackArray,
        cache: KvCache,
        *,
        scale: float | None = None,
        lse: DlpackArray | None = None,
        sinks: DlpackArray | None = None,
        validate: bool = True,
        zero_padding: bool = False,
        early_start: bool = False,
        q_dtype: DType | None = None,
        o_dtype: DType | None = None,
        stream: StreamLike | None = None,
    ) -> None:
        """Attention of one layer: ``o = softmax(scale * q @ k.T) @ v`` over the keys that each query sees.

        Query i of a request with n new tokens and L tokens in all is at position p = L - n + i; it sees key j if j <= p and,
        with a window W, j > p - W. A query that sees nothing gets 0, and -inf in `lse`.

        Parameters
        ----------
        q : array, shape (T, Hq, D)
            Type of the cache; f16 or bf16 for one of e4m3. T is B in decode.
        o : array, shape (T, Hq, D)
            Is written to: f16, bf16 or f32.
        cache : KvCache
            Of the workspace's shape, with the new tokens appended.
        scale : float, optional
            1 / sqrt(D) by default.
        lse : array of float32, shape (T, Hq), optional
            Is written to: natural logarithm of the sum of exp(score).
        sinks : array of float32, shape (Hq,), optional
            Each adds exp(sink) to the denominators of its head.
        validate : bool
            Page ids and lengths are checked before use: a bad one counts as masked, is never followed, and is reported by
            `Workspace.check`. Without it bad ones are undefined behaviour.
        zero_padding : bool
            Rows of `q` past the last request get 0, and -inf in `lse`; else they are left as they are.
        early_start : bool
            The decode kernel may begin while the kernel before it on the stream ends. That one must write neither the plan,
            the pages, nor keys and values other than each request's newest.
        q_dtype, o_dtype : {"f16", "bf16"}, optional
            Of arrays of uint16.
        stream : optional
            See `llmd.cuda`.

        Raises
        ------
        llmd.FailedPreconditionError
            If the workspace was planned again.
        """
        self._core.attention(
            q, o, core_of(cache, "cache", KvCache), scale, lse, sinks, validate, zero_padding, early_start,
            q_dtype, o_dtype, stream,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Plan(batch={self.batch}{'' if self._core.current else ', of an earlier step'})"


def merge_states(
    partial_o: DlpackArray,
    partial_lse: DlpackArray,
    o: DlpackArray,
    *,
    lse: DlpackArray | None = None,
    part_start: DlpackArray | None = None,
    partial_dtype: DType | None = None,
    o_dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Merges partial results of the same queries over disjoint keys, in the order of the parts.

    A part whose LSE is -inf, or +inf as some kernels give, is empty. Partial results are to be made without sinks.

    Parameters
    ----------
    partial_o : array, shape (parts, T, Hq, D), or with `part_start` (parts, Hq, D)
        f32, f16 or bf16, contiguous.
    partial_lse : array of float32, shape (parts, T, Hq) or (parts, Hq)
        Contiguous.
    o : array, shape (T, Hq, D)
        Is written to: f32, f16 or bf16.
    lse : array of float32, shape (T, Hq), optional
        Is written to.
    part_start : array of int32, shape (T + 1,), optional
        Token t has the parts ``part_start[t]`` to ``part_start[t + 1] - 1``.
    partial_dtype, o_dtype : {"f16", "bf16"}, optional
        Of arrays of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> partial_o = np.array([1, 4], np.float32).reshape(2, 1, 1, 1)
    >>> partial_lse = np.log(np.array([2, 1], np.float32)).reshape(2, 1, 1)
    >>> o, lse = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    >>> merge_states(partial_o, partial_lse, o, lse=lse)
    >>> round(float(o[0, 0, 0]), 5), round(float(np.exp(lse[0, 0])), 5)
    (2.0, 3.0)
    """
    _core.merge_states(
        partial_o, partial_lse, o, lse, part_start, partial_dtype, o_dtype, stream, given(backend)
    )  # fmt: skip
