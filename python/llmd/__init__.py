"""Core of KV-cache-aware LLM serving: block hashes, KV events, prefix index, scheduler, block pool.

The modules follow the C++ components of the same names. No function does I/O or starts a thread, and time is an
argument; the GIL is released while the library works. Import the modules that you need: ``from llmd import index``.

Examples
--------
>>> from llmd import hash
>>> hash.VllmHasher("sha256_cbor", block_size=4, seed="0").hash_blocks([0, 1, 2, 3])[0].hex()[:8]
'8d4c7c82'
"""

from llmd import _core, errors
from llmd.errors import (
    AlreadyExistsError,
    DataLossError,
    Error,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnsupportedError,
)

__version__: str = _core.__version__

__all__ = [
    "AlreadyExistsError",
    "DataLossError",
    "Error",
    "FailedPreconditionError",
    "NotFoundError",
    "ResourceExhaustedError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "errors",
]
