"""Which library does the work, and where the one for CUDA is found."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, Union

from llmd import _core
from llmd.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from llmd._cuda_attention import AttentionShape


class DlpackArray(Protocol):
    """An array of any framework that speaks DLPack: NumPy, torch, CuPy, JAX.

    Examples
    --------
    >>> import numpy as np
    >>> np.zeros(3).__dlpack_device__()[1]
    0
    """

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """A capsule with the array's memory."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Type and number of the device."""


class CudaStream(Protocol):
    """A stream of any library, as those of ``cuda.core`` are.

    Examples
    --------
    >>> class Stream:
    ...     def __cuda_stream__(self):
    ...         return 0, 0x1234  # the handle that some C function gave
    """

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol, and the ``cudaStream_t``."""


class _TorchStream(Protocol):
    @property
    def cuda_stream(self) -> int: ...


class _CupyStream(Protocol):
    @property
    def ptr(self) -> int: ...


StreamLike: TypeAlias = Union[int, CudaStream, _TorchStream, _CupyStream]
"""A ``cudaStream_t`` as an integer (0 and 1: the legacy default stream, 2: the thread's), or a stream of torch, of CuPy, or
with ``__cuda_stream__``."""

DType: TypeAlias = Literal["f32", "f16", "bf16", "e4m3"]
"""Type of floats: ``e4m3`` is fp8 with 4 bits of exponent and 3 of mantissa, without infinities."""

BackendName: TypeAlias = Literal["cpu", "reference", "cuda"]
"""Name of a backend."""

ENVIRONMENT_VARIABLE = "LLMD_CUDA_LIBRARY"
"""Names the file of the CUDA library."""

LIBRARY = "libllmd_cuda.so"
_VERSIONED = LIBRARY + "." + ".".join(_core.__version__.split(".")[:2])


class Backend:
    """One implementation of all functions. Get one from `backend`.

    Examples
    --------
    >>> backend("reference")
    Backend('reference')
    """

    __slots__ = ("_core",)

    _core: _core.AttentionBackend

    def __init__(self) -> None:
        raise TypeError("Backend is not made directly: use llmd.cuda.backend()")

    @property
    def name(self) -> str:
        """What the library calls itself."""
        return self._core.name

    @property
    def path(self) -> str | None:
        """The file or name that was loaded; None for those that are part of the package."""
        return self._core.path or None

    def workspace_bytes(self, shape: AttentionShape) -> int:
        """Size of the memory that a `Workspace` for this shape needs, on the current device.

        Raises
        ------
        ValueError
            If the shape breaks a rule.
        llmd.UnsupportedError
            If this backend has no code for it, or no device.
        """
        return self._core.workspace_bytes(shape)

    def __repr__(self) -> str:
        return f"Backend({self.name!r})" if self.path is None else f"Backend({self.name!r}, path={self.path!r})"


def backend(name: BackendName, path: str | os.PathLike[str] | None = None) -> Backend:
    """An implementation of the functions, by name. The CUDA library is looked for once, when it is first asked for.

    It is looked for at the place that the environment variable ``LLMD_CUDA_LIBRARY`` names, and only there if it is set;
    in the package ``llmd_cuda`` (``pip install llmd[cuda]``); by the system's loader. It stays loaded. Safe from any thread.

    Parameters
    ----------
    name : {"cpu", "reference", "cuda"}
        Threads and floats in memory of the host; plain loops and doubles, for tests; CUDA devices.
    path : str or path, optional
        A file to load in place of the one that is found; for ``"cuda"`` only. Other calls do not use it by themselves: give them
        the result as `backend`.

    Raises
    ------
    llmd.UnavailableError
        If there is no CUDA library; says where it was looked for.
    llmd.FailedPreconditionError
        If the library that is found is of another version.

    Examples
    --------
    >>> backend("cpu").name
    'cpu'
    """
    if name == "cuda":
        return _found() if path is None else wrapped(_core.AttentionBackend.load(os.fspath(path)))
    if path is not None:
        raise ValueError(f'path is given for the backend "{name}", wanted "cuda"')
    return wrapped(_core.AttentionBackend.host(name))


def wrapped(core: _core.AttentionBackend) -> Backend:
    """The public object of one of the extension's."""
    out = object.__new__(Backend)
    out._core = core
    return out


@functools.cache
def _found() -> Backend:
    tried = []
    for path, where in _places():
        try:
            return wrapped(_core.AttentionBackend.load(path))
        except FailedPreconditionError as error:
            raise FailedPreconditionError(f"{where}: {error}") from None
        except UnavailableError as error:
            tried.append(f"\n  {where}: {error}")
    raise UnavailableError("the CUDA library is not found:" + "".join(tried))


def _places() -> Iterator[tuple[str, str]]:
    """(path, how it was found), best first."""
    variable = os.environ.get(ENVIRONMENT_VARIABLE)
    if variable:
        yield variable, f"environment variable {ENVIRONMENT_VARIABLE}"
        return
    spec = importlib.util.find_spec("llmd_cuda")
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        yield str(pathlib.Path(folder, LIBRARY)), "package llmd_cuda"
    for library in (_VERSIONED, LIBRARY):
        yield library, "the system's loader" + (" (pip install llmd[cuda])" if spec is None else "")


def core_for(name: str) -> _core.AttentionBackend:
    """The extension asks for it when no backend was given."""
    return _found()._core if name == "cuda" else _HOST


_HOST = _core.AttentionBackend.host("cpu")


def given(value: Backend | BackendName | None) -> _core.AttentionBackend | None:
    """The extension's object for an argument `backend`."""
    if value is None:
        return None
    if isinstance(value, Backend):
        return value._core
    if isinstance(value, str):
        return backend(value)._core
    raise TypeError(f"backend is of type {type(value).__name__}, wanted Backend or str")
