"""Values that no argument may be, by what the argument wants. Each is made anew: some are spent by one use."""

import array
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

HUGE = 10**400


def released():
    view = memoryview(bytearray(16)).cast("i")
    view.release()
    return view


def generator():
    yield 1


# What is no array, list or tuple of integers at all.
NO_SEQUENCE = [
    lambda: None,
    lambda: True,
    lambda: 1.5,
    lambda: "12",
    lambda: object(),
    lambda: {1, 2},
    lambda: {1: 2},
    lambda: generator(),
    lambda: range(3),
    lambda: map(int, "12"),
    lambda: np.int64(3),
]
NO_ARRAY = [
    released,
    lambda: np.array(3),
    lambda: np.zeros((2, 2), np.int64),
    lambda: np.zeros((0, 2), np.uint64),
    lambda: np.arange(10, dtype=np.uint64)[::2],
    lambda: np.arange(10, dtype=np.uint64)[::-1],
    lambda: np.arange(10, dtype=np.int32)[1::3],
    lambda: np.array([1.0]),
    lambda: np.array([1j]),
    lambda: np.array([True]),
    lambda: np.array([1], np.int16),
    lambda: np.array([1], np.int8),
    lambda: np.array([1], ">i4"),
    lambda: np.array([1], ">u8"),
    lambda: np.array([1], "M8[s]"),
    lambda: np.array(["1"]),
    lambda: np.array([object()]),
    lambda: np.zeros(3, "V0"),
    lambda: np.zeros(3, []),
    lambda: np.zeros(3, [("a", "i4"), ("b", "i4")]),
    lambda: bytes(8),
    lambda: bytearray(8),
    lambda: array.array("d", [1.0]),
    lambda: array.array("h", [1]),
    lambda: memoryview(bytes(64)).cast("i", [4, 4]),
]
NO_ELEMENTS = [
    lambda: [None],
    lambda: [True],
    lambda: [1.0],
    lambda: [math.nan],
    lambda: ["1"],
    lambda: [b"1"],
    lambda: [[1]],
    lambda: [1, 2, np.float64(3)],
    lambda: [np.array([1, 2])],
    lambda: (1, None),
    lambda: [HUGE],
    lambda: [10**5000],
    lambda: [-HUGE],
]
NO_TOKEN = [
    lambda: [-1],
    lambda: [0, 2**32],
    lambda: [2**63],
    lambda: [2**64],
    lambda: np.array([3, -1], np.int32),
    lambda: np.array([3, -1], np.int64),
    lambda: np.array([2**32], np.int64),
    lambda: np.array([2**63], np.uint64),
    lambda: array.array("q", [-5]),
]
NO_KEY = [
    lambda: [2**64],
    lambda: [-(2**63) - 1],
    lambda: np.array([1], np.int32),
    lambda: np.array([1], np.uint32),
    lambda: array.array("i", [1]),
]
NO_INTEGER = [
    lambda: None,
    lambda: True,
    lambda: 1.0,
    lambda: math.nan,
    lambda: math.inf,
    lambda: "1",
    lambda: b"1",
    lambda: [1],
    lambda: np.array([1, 2]),
    lambda: np.float32(1),
    lambda: object(),
    lambda: HUGE,
    lambda: -HUGE,
    lambda: 10**5000,
    lambda: 2**64,
    lambda: -(2**63) - 1,
]
NO_NUMBER = [
    lambda: None,
    lambda: True,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -math.inf,
    lambda: "1",
    lambda: b"1",
    lambda: [1.0],
    lambda: object(),
    lambda: HUGE,
    lambda: np.array([1.0, 2.0]),
]
NO_TEXT = [
    lambda: None,
    lambda: 1,
    lambda: True,
    lambda: b"a",
    lambda: ["a"],
    lambda: "\ud800",
    lambda: "a\udfff",
    lambda: object(),
]
NO_BYTES = [
    lambda: None,
    lambda: 1,
    lambda: True,
    lambda: 1.5,
    lambda: [1, 2],
    lambda: object(),
    released,
    lambda: memoryview(bytes(8))[::2],
    lambda: np.zeros((4, 4), np.uint8)[:, 1],
]
NO_BOOL = [
    lambda: None,
    lambda: 1,
    lambda: 0.0,
    lambda: "true",
    lambda: [],
    lambda: np.array([True, False]),
]
NO_ITERABLE = [lambda: None, lambda: 1, lambda: 1.5, lambda: "ab", lambda: b"ab", lambda: object()]


class Kind(NamedTuple):
    """What an argument wants, and how to make values that it must refuse."""

    name: str
    bad: list[Callable[[], Any]]


def integer(low: int, high: int) -> Kind:
    """An integer with limits."""
    made = [*NO_INTEGER, lambda: low - 1, lambda: high + 1]
    # Those of more than 64 bits are bad for nearly all.
    bad = [make for make in made if not (type(make()) is int and low <= make() <= high)]
    return Kind(f"integer {low} .. {high}", bad)


def optional(kind: Kind) -> Kind:
    """None is welcome."""
    return Kind(f"optional {kind.name}", [make for make in kind.bad if make() is not None])


TOKENS = Kind("tokens", NO_SEQUENCE + NO_ARRAY + NO_ELEMENTS + NO_TOKEN)
KEYS = Kind("keys", NO_SEQUENCE + NO_ARRAY + NO_ELEMENTS + NO_KEY)
NUMBER = Kind("number", NO_NUMBER)
TEXT = Kind("text", NO_TEXT)
BYTES = Kind("bytes", [*NO_BYTES, lambda: "text"])
BYTES_OR_TEXT = Kind("bytes or text", [*NO_BYTES, lambda: "\ud800"])
FLAG = Kind("bool", NO_BOOL)
OBJECT = Kind(
    "object of our own", [lambda: None, lambda: 1, lambda: "x", lambda: [], lambda: object()]
)
LIST = Kind("iterable", NO_ITERABLE)
NO_TEXTS = [lambda: [1], lambda: ["a", None], lambda: ["\ud800"], lambda: [b"a"]]
TEXTS = Kind("texts", NO_ITERABLE + NO_TEXTS)
MAPPING = Kind("mapping", [lambda: 1, lambda: "ab", lambda: ["a"], lambda: object()])
OPTIONAL_TOKENS, OPTIONAL_NUMBER, OPTIONAL_TEXT = optional(TOKENS), optional(NUMBER), optional(TEXT)
OPTIONAL_BYTES, OPTIONAL_OBJECT, OPTIONAL_LIST = optional(BYTES), optional(OBJECT), optional(LIST)
OPTIONAL_MAPPING = optional(MAPPING)

U16, U32, U64 = integer(0, 2**16 - 1), integer(0, 2**32 - 1), integer(0, 2**64 - 1)
I64 = integer(-(2**63), 2**63 - 1)
KEY = integer(-(2**63), 2**64 - 1)  # signed ones as some engines publish them
BLOCK, COUNT = integer(1, 2**20), integer(0, 2**24)


class Case(NamedTuple):
    """A callable with a good value and a kind for each argument."""

    title: str
    call: Callable[..., Any]
    arguments: dict[str, tuple[Any, Kind]]


def case(title: str, call: Callable[..., Any], /, **arguments: tuple[Any, Kind]) -> Case:
    """So that a table reads like calls."""
    return Case(title, call, arguments)


def of(make: Callable[[], Any], method: str) -> Callable[..., Any]:
    """A method of a new object."""
    return lambda **arguments: getattr(make(), method)(**arguments)
