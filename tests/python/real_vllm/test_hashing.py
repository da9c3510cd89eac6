"""llmd.vllm.hashing in the vLLM on the path: loaded by vLLM's plugin loader, on vLLM's requests."""

import logging
import os
import subprocess
import sys

import pytest
import real_requests
import vllm.plugins
import vllm.v1.core.kv_cache_utils as utils
import vllm.v1.engine.core as engine_core
from llmd.vllm import hashing

try:
    import vllm.utils.hashing as functions
except ImportError:  # up to 0.11.0
    import vllm.utils as functions

ORIGINALS = (utils.hash_block_tokens, utils.get_request_block_hasher)
NAMES = tuple(name for name in hashing.ALGORITHMS if hasattr(functions, name))


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    """Tests that break something come in a process of their own or put it back before this."""
    monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
    yield
    hashing.uninstall()
    assert (utils.hash_block_tokens, utils.get_request_block_hasher) == ORIGINALS
    assert engine_core.get_request_block_hasher is ORIGINALS[1]


def load():
    vllm.plugins.load_general_plugins()


def function_of(name):
    """As the engine's core finds it."""
    function = functions.get_hash_fn_by_name(name)
    utils.init_none_hash(function)
    return function


def is_ours(block_hasher):
    return block_hasher.__globals__["__name__"] == "llmd.vllm.hashing"


def test_the_algorithms_that_this_release_has(release):
    assert NAMES == (hashing.ALGORITHMS if release >= (0, 16) else ("sha256", "sha256_cbor"))


def test_the_plugin_loader_replaces_the_functions_where_they_are_used():
    load()
    assert hashing.install() == NAMES
    assert is_ours(utils.hash_block_tokens) and is_ours(utils.get_request_block_hasher)
    # The engine's core imported the function by name, long before.
    assert engine_core.get_request_block_hasher is utils.get_request_block_hasher
    load()  # vLLM says it may do that more than once
    assert hashing.install() == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_size", [16, 5])
def test_requests_hash_the_same(name, block_size, monkeypatch):
    function = function_of(name)
    cases = real_requests.random_cases(1, 60, block_size, plain=True)
    cases += real_requests.random_cases(2, 120, block_size)
    theirs = engine_core.get_request_block_hasher(block_size, function)
    expected = [real_requests.hashes(spec, theirs, generated) for spec, generated in cases]
    assert sum(map(len, expected)) > 500
    load()
    ours = engine_core.get_request_block_hasher(block_size, function)
    assert is_ours(ours)
    for (spec, generated), want in zip(cases, expected, strict=True):
        assert real_requests.hashes(spec, ours, generated) == want, spec

    # vLLM's functions have no part in the hashes of text.
    def refuse(*_):
        raise AssertionError("vLLM's loop over the blocks was used")

    with monkeypatch.context() as patched:
        patched.setattr(utils, "hash_block_tokens", refuse)
        for (spec, generated), want in zip(cases, expected, strict=True):
            if spec.plain:
                assert real_requests.hashes(spec, ours, generated) == want


@pytest.mark.parametrize("name", NAMES)
def test_single_blocks_hash_the_same(name):
    function = function_of(name)
    parents = (None, b"", bytes(range(16)), bytes(range(32)))
    tokens = ([1, 2, 3], tuple(range(16)), [2**31, 2**32 - 1, 0, 255], [2**40], [-1], [])
    extras = (
        None,
        ("sql",),
        (("lora", "sql", "/a"),),
        (("mm", "f" * 64, -3), ("cache_salt", "t")),
        (b"digest",),
        (7,),
    )
    arguments = [(function, p, t, e) for p in parents for t in tokens for e in extras]
    expected = [utils.hash_block_tokens(*a) for a in arguments]
    load()
    assert [utils.hash_block_tokens(*a) for a in arguments] == expected


def test_lookahead_hashes_are_the_same(release):
    if release < (0, 33):
        pytest.skip("this release has none")
    function = function_of("sha256")
    for lookahead in (1, 3):
        cases = real_requests.random_cases(3, 60, 16)
        theirs = utils.get_request_block_hasher(16, function, lookahead)
        expected = [real_requests.hashes(spec, theirs, generated) for spec, generated in cases]
        load()
        ours = utils.get_request_block_hasher(16, function, lookahead)
        assert [
            real_requests.hashes(spec, ours, generated) for spec, generated in cases
        ] == expected
        hashing.uninstall()
        vllm.plugins.plugins_loaded = False


def test_an_algorithm_that_differs_stays_with_a_warning(monkeypatch, caplog):
    original = functions.sha256_cbor
    monkeypatch.setattr(functions, "sha256_cbor", lambda value: original(value)[::-1])
    with caplog.at_level(logging.WARNING, "llmd.vllm"):
        load()
    assert "sha256_cbor hash stays in place" in caplog.text
    assert hashing.install() == tuple(name for name in NAMES if name != "sha256_cbor")
    changed = function_of("sha256_cbor")
    assert not is_ours(engine_core.get_request_block_hasher(16, changed))
    digest = utils.hash_block_tokens(changed, None, [1, 2])
    assert digest == original((utils.NONE_HASH, (1, 2), None))[::-1]
    assert is_ours(engine_core.get_request_block_hasher(16, function_of("sha256")))


def test_a_request_hash_of_ours_that_differs_is_not_used(monkeypatch, caplog):
    """As if a later vLLM chained its blocks otherwise: single blocks agree, requests do not."""
    load()
    real = hashing._hasher

    class Wrong:
        def __init__(self, *arguments):
            self.hasher = real(*arguments)

        def hash_blocks(self, *arguments):
            return [digest[::-1] for digest in self.hasher.hash_blocks(*arguments)]

    monkeypatch.setattr(hashing, "_hasher", Wrong)
    function = function_of("sha256")
    with caplog.at_level(logging.WARNING, "llmd.vllm"):
        assert not is_ours(engine_core.get_request_block_hasher(16, function))
    assert "sha256 hashes stay in place" in caplog.text


def test_extra_keys_that_hash_otherwise_stay_with_a_warning(monkeypatch, caplog):
    load()
    real = hashing._hasher

    class Wrong:
        def __init__(self, *arguments):
            self.hasher = real(*arguments)

        def hash_blocks(self, tokens, parent, keys):
            return self.hasher.hash_blocks(tokens, parent, keys and [None] * len(keys))

    function = function_of("sha256_cbor")
    monkeypatch.setattr(hashing, "_hasher", Wrong)
    with caplog.at_level(logging.WARNING, "llmd.vllm"):
        ours = engine_core.get_request_block_hasher(16, function)
    assert "blocks with extra keys stay in place" in caplog.text and is_ours(ours)
    theirs = ORIGINALS[1](16, function)
    for spec, generated in real_requests.random_cases(4, 40, 16):
        assert real_requests.hashes(spec, ours, generated) == real_requests.hashes(
            spec, theirs, generated
        )


def test_nothing_is_replaced_when_all_differ(monkeypatch, caplog):
    for name in NAMES:
        monkeypatch.setattr(functions, name, lambda value: b"another hash")
    with caplog.at_level(logging.WARNING, "llmd.vllm"):
        load()
    assert "none of vLLM's block hashes is replaced" in caplog.text
    assert (utils.hash_block_tokens, utils.get_request_block_hasher) == ORIGINALS


def test_in_a_fresh_process_before_the_engine_is_imported():
    """The loader runs when arguments are parsed, before the engine's core imports the names."""
    code = """
import vllm.plugins, sys
assert "vllm.v1.engine.core" not in sys.modules
vllm.plugins.load_general_plugins()
import vllm.v1.engine.core as core
print(core.get_request_block_hasher.__globals__["__name__"])
"""
    for value, module in (("1", "llmd.vllm.hashing"), ("0", "vllm.v1.core.kv_cache_utils")):
        environment = {**os.environ, "LLMD_VLLM_HASHING": value}
        out = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert out.returncode == 0, out.stderr[-2000:]
        assert out.stdout.split()[-1] == module
