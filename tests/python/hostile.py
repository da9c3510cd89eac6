"""Values that no argument may be, by what the argument wants. Each is made anew: some are spent by one use."""

import array
import math

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
NO_BOOL = [lambda: None, lambda: 1, lambda: 0.0, lambda: "true", lambda: [], lambda: np.array([True, False])]
NO_OBJECT = [lambda: None, lambda: 1, lambda: "x", lambda: [], lambda: object()]
NO_ITERABLE = [lambda: None, lambda: 1, lambda: 1.5, lambda: "ab", lambda: b"ab", lambda: object()]

BAD = {
    "tokens": NO_SEQUENCE + NO_ARRAY + NO_ELEMENTS + NO_TOKEN,
    "keys": NO_SEQUENCE + NO_ARRAY + NO_ELEMENTS + NO_KEY,
    "number": NO_NUMBER,
    "text": NO_TEXT,
    "bytes": NO_BYTES + [lambda: "text"],
    "bytes or text": NO_BYTES + [lambda: "\ud800"],
    "bool": NO_BOOL,
    "object": NO_OBJECT,
    "list": NO_ITERABLE,
    "texts": NO_ITERABLE + [lambda: [1], lambda: ["a", None], lambda: ["\ud800"], lambda: [b"a"]],
    "mapping": [lambda: 1, lambda: "ab", lambda: ["a"], lambda: object()],
}


def bad_values(kind):
    """The values for a kind; ``"integer 1 .. 9"`` has limits, and ``"optional "`` in front lets None pass."""
    optional = kind.startswith("optional ")
    kind = kind.removeprefix("optional ")
    if kind.startswith("integer"):
        low, high = (eval(limit) for limit in kind.removeprefix("integer ").split(" .. "))
        made = [*NO_INTEGER, lambda: low - 1, lambda: high + 1]
        # Beyond 64 bits for whoever takes all of them.
        made = [make for make in made if not (type(make()) is int and low <= make() <= high)]
    else:
        made = BAD[kind]
    return [make for make in made if not (optional and make() is None)]
