"""A stand-in for the parts of vLLM that llmd.vllm.hashing replaces: modules of the same names and shapes.

The hashes are made the way the engine makes them (pickle or CBOR, SHA-256), without sharing code with llmd; an
algorithm can be made to differ, so that tests see it left alone.
"""

import hashlib
import pickle
import sys
import types

MODULES = (
    "vllm",
    "vllm.utils",
    "vllm.utils.hashing",
    "vllm.v1",
    "vllm.v1.core",
    "vllm.v1.core.kv_cache_utils",
    "vllm.v1.engine",
)


def cbor(value):
    """Canonical CBOR of what block hashes are made of."""

    def head(major, n):
        for size, tag in ((1, 24), (2, 25), (4, 26), (8, 27)):
            if n < 24:
                return bytes([major << 5 | n])
            if n < 1 << 8 * size:
                return bytes([major << 5 | tag]) + n.to_bytes(size, "big")
        raise ValueError(n)

    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    return head(4, len(value)) + b"".join(cbor(item) for item in value)


def sha256(value):
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


def sha256_cbor(value):
    return hashlib.sha256(cbor(value)).digest()


def xxhash(value):
    raise ModuleNotFoundError("No module named 'xxhash'")


def make(*, wrong=(), old_request=False):
    """Puts the modules into sys.modules and returns kv_cache_utils."""
    remove()
    modules = {name: types.ModuleType(name) for name in MODULES}
    for name in ("vllm", "vllm.utils", "vllm.v1", "vllm.v1.core"):
        modules[name].__path__ = []
    hashing, utils, engine = (
        modules[n] for n in ("vllm.utils.hashing", "vllm.v1.core.kv_cache_utils", "vllm.v1.engine")
    )
    functions = {"sha256": sha256, "sha256_cbor": sha256_cbor, "xxhash": xxhash}
    for name, function in functions.items():
        # Functions of their own for each module, as after a reload.
        own = types.FunctionType(function.__code__, function.__globals__, name)
        if name in wrong:
            own = lambda value, function=function: function(value)[::-1]  # noqa: E731
        setattr(hashing, name, own)

    utils.calls = []
    utils.NONE_HASH = None

    def init_none_hash(hash_fn):
        utils.NONE_HASH = hash_fn("vllm-none-hash")

    def need_extra_keys(request):
        return bool(request.mm_features) or request.lora_request is not None or bool(request.cache_salt)

    def hash_block_tokens(hash_function, parent_block_hash, curr_block_token_ids, extra_keys=None):
        utils.calls.append("block")
        if not parent_block_hash:
            parent_block_hash = utils.NONE_HASH
        return hash_function((parent_block_hash, tuple(curr_block_token_ids), extra_keys))

    def get_request_block_hasher(block_size, caching_hash_fn):
        def request_block_hasher(request):
            utils.calls.append("request")
            if old_request and not hasattr(request, "something_new"):
                raise AttributeError("something_new")
            out = []
            parent = request.block_hashes[-1] if request.block_hashes else None
            start = len(request.block_hashes) * block_size
            while start + block_size <= request.num_tokens:
                extra = None
                if need_extra_keys(request):
                    salt = (request.cache_salt,) if request.cache_salt and start == 0 else ()
                    extra = ((request.lora_request,) if request.lora_request else ()) + salt or None
                tokens = request.all_token_ids[start : start + block_size]
                parent = utils.hash_block_tokens(caching_hash_fn, parent, tokens, extra)
                out.append(parent)
                start += block_size
            return out

        return request_block_hasher

    for function in (init_none_hash, need_extra_keys, hash_block_tokens, get_request_block_hasher):
        setattr(utils, function.__name__, function)
    engine.get_request_block_hasher = get_request_block_hasher  # imported by name, as the engine's core does
    sys.modules.update(modules)
    return utils


def remove():
    for name in MODULES:
        sys.modules.pop(name, None)


class Request:
    def __init__(self, tokens, *, lora=None, salt=None):
        self.all_token_ids = list(tokens)
        self.num_tokens = len(self.all_token_ids)
        self.block_hashes = []
        self.mm_features = []
        self.lora_request = lora
        self.cache_salt = salt
        self.prompt_embeds = None
