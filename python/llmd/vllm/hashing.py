"""vLLM's block hashes in C++.

`install` replaces ``hash_block_tokens`` and ``get_request_block_hasher`` of
``vllm.v1.core.kv_cache_utils``, there and in every module of vLLM that has imported them by name
(``vllm.v1.engine.core`` in releases 0.10.2 to 0.33.0), by functions that call
`llmd.hash.VllmHasher` for the algorithms sha256, sha256_cbor, xxhash and xxhash_cbor. Every
algorithm is compared with vLLM's own function first, on blocks of many shapes; one that gives
another hash, or that this vLLM does not have, stays vLLM's, with a warning if it differs. A
request's hasher is compared once more when it is made, with the engine's own first parent.

Extra keys of blocks (LoRA, multimodal items, salts, prompt embeddings, tokens ahead) are made by
vLLM's own functions, which differ between releases. With a CBOR algorithm the blocks are then
hashed here; with pickle, whose bytes depend on which of the keys are one object, by vLLM. So are
tokens that do not fit 32 bits.

The environment variable ``LLMD_VLLM_HASHING=0`` leaves vLLM as it is.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from llmd import _core

logger = logging.getLogger("llmd.vllm")

ALGORITHMS = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
"""Those of vLLM that can be made here."""
_UTILS = "vllm.v1.core.kv_cache_utils"
_HASHING = ("vllm.utils.hashing", "vllm.utils")  # where the functions of ALGORITHMS are, newest first
_PATCHED = ("hash_block_tokens", "get_request_block_hasher")

_HashFunction = Callable[[Any], Any]


class _Installed(NamedTuple):
    utils: ModuleType
    originals: dict[str, Callable[..., Any]]
    replacements: dict[str, Callable[..., Any]]
    algorithms: tuple[str, ...]


_installed: _Installed | None = None


class _ProbeLora:
    lora_name = name = "llmd-probe-adapter"
    lora_int_id = adapter_id = 7
    lora_path = "/llmd/probe"


class _ProbePosition(NamedTuple):
    offset: int
    length: int


class _ProbeItem(NamedTuple):
    identifier: str
    mm_position: _ProbePosition


class _Probe:
    """A request as a block hasher sees it: text alone, or with all sorts of extra keys."""

    def __init__(self, tokens: list[int], block_hashes: list[bytes], extras: bool = False) -> None:
        self.request_id = "llmd-probe"
        self.all_token_ids = tokens
        self.num_tokens = len(tokens)
        self.block_hashes = block_hashes
        self.lora_request: Any = None
        self.cache_salt: str | None = None
        self.prompt_embeds = None
        self.mm_features: list[Any] = []
        self.mm_positions: list[Any] = []
        self.mm_hashes: list[Any] = []
        self.mm_inputs: list[Any] = []
        self.skip_reading_prefix_cache = False
        if extras:
            self.lora_request = _ProbeLora
            self.cache_salt = "llmd-probe-salt"
            length = max(1, len(tokens) // 8)
            identifier = "0123456789abcdef" * 4
            # The same picture twice, then another.
            for i, name in enumerate((identifier, identifier, identifier[::-1])):
                position = _ProbePosition(1 + i * (length + 1), length)
                self.mm_features.append(_ProbeItem(name, position))
            self.mm_positions = [item.mm_position for item in self.mm_features]
            self.mm_hashes = [item.identifier for item in self.mm_features]
            self.mm_inputs = [None] * len(self.mm_features)


# Each encodes in another number of bytes, by pickle or CBOR.
_TOKENS = [0, 23, 24, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]


def _tokens(count: int, salt: int) -> list[int]:
    return [(_TOKENS[(i * 7 + salt) % len(_TOKENS)] + i * 131 * (salt % 3)) % 2**32 for i in range(count)]


def find_functions() -> dict[str, _HashFunction]:
    """vLLM's hash functions by name of the algorithm, as far as this release has them."""
    found: dict[str, _HashFunction] = {}
    for module_name in _HASHING:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name in ALGORITHMS:
            function = getattr(module, name, None)
            if callable(function):
                found.setdefault(name, function)
    return found


def _hasher(name: str, block_size: int, none_hash: bytes) -> _core.VllmHasher:
    return _core.VllmHasher(name, block_size, None, none_hash)


def _blocks_differ(hash_block_tokens: Callable[..., Any], function: _HashFunction, name: str) -> str | None:
    """Compares single blocks. None when all are equal, else the first difference."""
    size = 16 if name.startswith("xxhash") else 32
    parents = [bytes(range(size)), b"\xff" * size, bytes(32)]
    hasher = _hasher(name, 1, bytes(32))
    for block_size in (1, 2, 3, 4, 16, 64, 256):
        for salt, parent in enumerate(parents):
            tokens = _tokens(block_size, salt)
            theirs = hash_block_tokens(function, parent, tokens, None)
            ours = hasher.hash_block(tokens, parent, None)
            if theirs != ours:
                return f"block of {block_size} tokens: vLLM has {theirs!r}, llmd has {ours!r}"
    return None


def _requests_differ(
    original: Callable[[Any], Any], ours: Callable[[Any], Any], block_size: int, extras: bool
) -> str | None:
    """Compares whole requests, from the start and continued."""
    what = "request with extra keys" if extras else "request"
    try:
        for count in (block_size - 1, block_size, 4 * block_size + block_size // 2):
            theirs = original(_Probe(_tokens(count, 1), [], extras))
            if list(theirs) != list(ours(_Probe(_tokens(count, 1), [], extras))):
                return f"{what} of {count} tokens"
        tokens = _tokens(5 * block_size, 2)
        begin = list(original(_Probe(tokens[: 2 * block_size], [], extras)))
        theirs = original(_Probe(tokens, begin, extras))
        if list(theirs) != list(ours(_Probe(tokens, begin, extras))):
            return f"{what} that is continued"
    except Exception as error:  # this vLLM reads what a probe does not have
        return f"the comparison failed ({what}): {error!r}"
    return None


class _Recorder(list[Any]):
    """Collects the extra keys of blocks in place of a hash function."""

    def __call__(self, value: Any) -> bytes:
        self.append(value[2])
        return b"parent"


def _has_extra_keys(utils: ModuleType, request: Any) -> bool:
    need = getattr(utils, "need_extra_keys", None)
    if need is not None and need(request):
        return True
    return bool(
        getattr(request, "lora_request", None) is not None
        or getattr(request, "prompt_embeds", None) is not None
        or getattr(request, "cache_salt", None)
        or getattr(request, "mm_features", None)
        or getattr(request, "mm_positions", None)
    )


def _make_hash_block_tokens(
    utils: ModuleType, original: Callable[..., Any], native: dict[_HashFunction, str]
) -> Callable[..., Any]:
    hashers = {function: _hasher(name, 1, bytes(32)) for function, name in native.items()}

    @functools.wraps(original)
    def hash_block_tokens(
        hash_function: _HashFunction,
        parent_block_hash: Any,
        curr_block_token_ids: Sequence[int],
        extra_keys: tuple[Any, ...] | None = None,
    ) -> Any:
        if type(hash_function) is _Recorder:
            hash_function.append(extra_keys)
            return b"parent"
        if extra_keys is not None:
            return original(hash_function, parent_block_hash, curr_block_token_ids, extra_keys)
        hasher = hashers.get(hash_function)
        parent = parent_block_hash or getattr(utils, "NONE_HASH", None)
        if hasher is None or type(parent) is not bytes:
            return original(hash_function, parent_block_hash, curr_block_token_ids, extra_keys)
        try:
            return hasher.hash_block(curr_block_token_ids, parent, None)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # tokens of another kind, or beyond 32 bits
            return original(hash_function, parent_block_hash, curr_block_token_ids, extra_keys)

    return hash_block_tokens


def _make_get_request_block_hasher(
    utils: ModuleType, original: Callable[..., Any], native: dict[_HashFunction, str]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_request_block_hasher(
        block_size: int, caching_hash_fn: _HashFunction, *args: Any, **kwargs: Any
    ) -> Callable[[Any], Any]:
        theirs: Callable[[Any], Any] = original(block_size, caching_hash_fn, *args, **kwargs)
        name = native.get(caching_hash_fn)
        none_hash = getattr(utils, "NONE_HASH", None)
        if name is None or type(none_hash) is not bytes:
            return theirs
        hasher = _hasher(name, block_size, none_hash)

        def extra_keys_of(request: Any) -> list[Any]:
            """Of each new block, by vLLM's own loop over them."""
            recorder = _Recorder()
            original(block_size, recorder, *args, **kwargs)(request)
            return recorder

        def request_block_hasher(request: Any) -> Any:
            begin = len(request.block_hashes) * block_size
            end = request.num_tokens // block_size * block_size
            if end <= begin:
                return []
            if getattr(utils, "NONE_HASH", None) is not none_hash:
                return theirs(request)
            keys: list[Any] | None = None
            try:
                if all_have_keys or _has_extra_keys(utils, request):
                    if not with_keys:
                        return theirs(request)
                    keys = extra_keys_of(request)
                    end = begin + len(keys) * block_size
                parent = request.block_hashes[-1] if request.block_hashes else None
                return hasher.hash_blocks(request.all_token_ids[begin:end], parent, keys)
            except (TypeError, ValueError):
                return theirs(request)

        with_keys = name.endswith("_cbor")
        try:
            # Tokens ahead, say.
            all_have_keys = any(extra_keys_of(_Probe(_tokens(4 * block_size, 0), [])))
        except Exception:
            all_have_keys = True
        difference = _requests_differ(theirs, request_block_hasher, block_size, extras=False)
        if difference is not None:
            logger.warning("llmd: vLLM's %s hashes stay in place, %s", name, difference)
            return theirs
        if with_keys:
            difference = _requests_differ(theirs, request_block_hasher, block_size, extras=True)
        if difference is not None:
            logger.warning(
                "llmd: vLLM's %s hashes of blocks with extra keys stay in place, %s", name, difference
            )
            with_keys = False
        logger.info("llmd: %s block hashes of requests are made in C++", name)
        return request_block_hasher

    return get_request_block_hasher


def _replace_everywhere(utils: ModuleType, before: dict[str, Any], after: dict[str, Any]) -> None:
    """In the module, and in those of vLLM that imported the functions by name."""
    for module_name, module in list(sys.modules.items()):
        if module is None or not (module is utils or module_name == "vllm" or module_name.startswith("vllm.")):
            continue
        for name, function in before.items():
            if getattr(module, name, None) is function:
                setattr(module, name, after[name])


def install() -> tuple[str, ...]:
    """Replaces vLLM's functions; returns the algorithms that are now made here. Again: the same.

    Raises
    ------
    ImportError
        When there is no vLLM, or one without these functions.
    """
    global _installed
    if _installed is not None:
        return _installed.algorithms
    utils = importlib.import_module(_UTILS)
    missing = [name for name in _PATCHED if not callable(getattr(utils, name, None))]
    if missing:
        raise ImportError(f"{_UTILS} has no {' and no '.join(missing)}")
    originals: dict[str, Callable[..., Any]] = {name: getattr(utils, name) for name in _PATCHED}
    native: dict[_HashFunction, str] = {}
    for name, function in find_functions().items():
        try:
            difference = _blocks_differ(originals["hash_block_tokens"], function, name)
        except ImportError as error:  # an optional dependency of that algorithm alone
            logger.info("llmd: vLLM's %s is not usable here: %s", name, error)
            continue
        except Exception as error:
            difference = f"the comparison failed: {error!r}"
        if difference is None:
            native[function] = name
        else:
            logger.warning("llmd: vLLM's %s hash stays in place, %s", name, difference)
    if not native:
        logger.warning("llmd: none of vLLM's block hashes is replaced")
        return ()
    replacements: dict[str, Callable[..., Any]] = {
        "hash_block_tokens": _make_hash_block_tokens(utils, originals["hash_block_tokens"], native),
        "get_request_block_hasher": _make_get_request_block_hasher(
            utils, originals["get_request_block_hasher"], native
        ),
    }
    _replace_everywhere(utils, originals, replacements)
    _installed = _Installed(utils, originals, replacements, tuple(native.values()))
    return _installed.algorithms


def uninstall() -> None:
    """Puts vLLM's functions back. Hashers of requests that were made meanwhile stay."""
    global _installed
    if _installed is None:
        return
    _replace_everywhere(_installed.utils, _installed.replacements, _installed.originals)
    _installed = None


def register() -> None:
    """`install` for vLLM's plugin loader: says what it does and never raises."""
    if os.environ.get("LLMD_VLLM_HASHING", "1") == "0":
        return
    try:
        algorithms = install()
        if algorithms:
            logger.info("llmd: block hashes in C++: %s", ", ".join(algorithms))
    except Exception as error:
        logger.warning("llmd: vLLM's block hashes stay in place: %r", error)


__all__ = ["ALGORITHMS", "find_functions", "install", "register", "uninstall"]
