"""Types of arguments and results that several modules share."""

from __future__ import annotations

import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt

UInt64Array: TypeAlias = npt.NDArray[np.uint64]
"""Keys."""
UInt32Array: TypeAlias = npt.NDArray[np.uint32]
"""Token ids, positions, block numbers."""

TokensLike: TypeAlias = Union[npt.NDArray[Any], "array.array[int]", memoryview, list[int], tuple[int, ...]]
"""Token ids: a contiguous buffer of int32 or uint32 (read in place), int64 or uint64 (one conversion pass), or a list."""
KeysLike: TypeAlias = Union[npt.NDArray[Any], "array.array[int]", memoryview, list[int], tuple[int, ...]]
"""64-bit keys: a contiguous buffer of uint64 or int64 (read in place), or a list."""
BytesLike: TypeAlias = Union[bytes, bytearray, memoryview]
"""Bytes, or a contiguous buffer of them."""


class MemoryCause(NamedTuple):
    """Bytes of a container by cause.

    Attributes
    ----------
    name : str
        What the memory is for.
    live_bytes, dead_bytes, free_bytes : int
        In use; waiting for compaction; kept for reuse.
    """

    name: str
    live_bytes: int
    dead_bytes: int
    free_bytes: int


class MemoryUsage(NamedTuple):
    """What a bounded container holds, in bytes.

    Attributes
    ----------
    budget_bytes : int
        0 when it is unlimited.
    causes : tuple of MemoryCause
        What `total_bytes` is made of.
    """

    budget_bytes: int
    causes: tuple[MemoryCause, ...]

    @property
    def total_bytes(self) -> int:
        """All that the container has taken from the system."""
        return sum(cause.live_bytes + cause.dead_bytes + cause.free_bytes for cause in self.causes)


def memory_usage(values: tuple[int, tuple[tuple[str, int, int, int], ...]]) -> MemoryUsage:
    return MemoryUsage(values[0], tuple(MemoryCause(*cause) for cause in values[1]))


def listed(values: Any, name: str) -> list[Any]:
    """The elements of any iterable; TypeError, with the argument's name, for anything else, text and bytes too."""
    if isinstance(values, (str, bytes, bytearray)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is of type {type(values).__name__}, wanted an iterable")
    return list(values)


def mapped(values: Any, name: str) -> dict[Any, Any]:
    """A copy of a mapping; TypeError, with the argument's name, for anything else."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} is of type {type(values).__name__}, wanted a mapping")
    return dict(values)


_T = TypeVar("_T")


def of_type(value: Any, name: str, wanted: type[_T]) -> _T:
    """The value; TypeError, with the argument's name, when it is something else."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} is or has an element of type {type(value).__name__}, wanted {wanted.__name__}")
    return value


def core_of(wrapper: Any, name: str, wanted: type) -> Any:
    """The extension's object inside one of our own; TypeError, with the argument's name, for anything else."""
    if not isinstance(wrapper, wanted):
        raise TypeError(f"{name} is of type {type(wrapper).__name__}, wanted {wanted.__name__}")
    return wrapper._core  # type: ignore[attr-defined]
