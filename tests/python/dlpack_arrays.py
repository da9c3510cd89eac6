"""Arrays that speak DLPack in every way that an array can, made by hand of NumPy's."""

import ctypes
from typing import Any, NamedTuple

import numpy as np

CPU, CUDA, CUDA_HOST, MANAGED = 1, 2, 3, 13
INT, UINT, FLOAT, BFLOAT, E4M3 = 0, 1, 2, 4, 10
READ_ONLY, COPIED = 1, 2
CODES = {"i": INT, "u": UINT, "f": FLOAT, "b": 6}

_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype = ctypes.c_char_p
_name.argtypes = [ctypes.py_object]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class Type(NamedTuple):
    code: int
    bits: int
    lanes: int = 1


BF16, FP8 = Type(BFLOAT, 16), Type(E4M3, 8)


class Array:
    """What `array` holds, said to be on `device`, of `dtype`, in a capsule of some version (None: from before 1.0)."""

    def __init__(
        self,
        array: np.ndarray,
        *,
        device: tuple[int, int] = (CPU, 0),
        says_device: Any = None,
        dtype: Type | None = None,
        version: tuple[int, int] | None = (1, 1),
        flags: int = 0,
        offset: int = 0,
        strides: bool = True,
        shape: tuple[int, ...] | None = None,
        data: bool = True,
        name: bytes | None = None,
        result: Any = None,
    ) -> None:
        self.array, self.device, self.version, self.name, self.result = array, device, version, name, result
        self.says_device = device if says_device is None else says_device
        self.dtype = dtype or Type(CODES[array.dtype.kind], 8 * array.itemsize)
        self.flags, self.offset, self.has_strides, self.has_data = flags, offset, strides, data
        self.shape = array.shape if shape is None else shape
        self.calls: list[dict[str, Any]] = []
        self.capsules: list[Any] = []
        self.freed = 0
        self._alive: list[Any] = []

    def __dlpack_device__(self) -> Any:
        if isinstance(self.says_device, Exception):
            raise self.says_device
        return self.says_device

    def __dlpack__(self, **keywords: Any) -> Any:
        self.calls.append(keywords)
        if self.version is None and "max_version" in keywords:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is not None:
            return self.result
        n = len(self.shape)
        shape = (ctypes.c_int64 * n)(*self.shape)
        strides = (ctypes.c_int64 * n)(*(s // self.array.itemsize for s in self.array.strides[:n]))
        tensor = Tensor(
            self.array.ctypes.data - self.offset if self.has_data else None, *self.device, n, *self.dtype, shape,
            strides if self.has_strides else None, self.offset,
        )  # fmt: skip
        if self.version is None:
            managed: Any = Managed(tensor, None, DELETER(self._free))
        else:
            managed = ManagedVersioned(*self.version, None, DELETER(self._free), self.flags, tensor)
        self._alive.append((shape, strides, managed))
        name = self.name or (b"dltensor" if self.version is None else b"dltensor_versioned")
        capsule = _new(ctypes.addressof(managed), name, None)
        self.capsules.append((name, capsule))  # the name is not copied
        return capsule

    def _free(self, _: int) -> None:
        self.freed += 1

    @property
    def names(self) -> list[bytes]:
        return [_name(capsule) for _, capsule in self.capsules]


def bf16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _e4m3_values() -> np.ndarray:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    values[127] = np.nan
    return np.concatenate([values, -values])


E4M3_VALUES = _e4m3_values()


def e4m3(values: np.ndarray) -> np.ndarray:
    """The nearest e4m3, ties to even, 448 at most, as uint8."""
    magnitude = np.minimum(np.abs(np.asarray(values, np.float64)), 448)
    table = E4M3_VALUES[:127]
    above = np.searchsorted(table, magnitude)
    below = np.maximum(above - 1, 0)
    up, down = table[above] - magnitude, magnitude - table[below]
    nearest = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (nearest | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def from_e4m3(values: np.ndarray) -> np.ndarray:
    return E4M3_VALUES[values]
