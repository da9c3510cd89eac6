"""The hook that replaces vLLM's block hashes, against a stand-in of the same shape."""

import importlib.metadata
import logging
import sys

import fake_vllm
import pytest
from llmd.vllm import hashing, register


@pytest.fixture
def vllm():
    yield fake_vllm.make
    hashing.uninstall()
    fake_vllm.remove()


def functions():
    return sys.modules["vllm.utils.hashing"]


def test_importing_the_package_imports_neither_vllm_nor_zmq():
    import subprocess

    code = "import sys, llmd.vllm; assert not {'vllm', 'zmq', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_algorithms_are_replaced_everywhere(vllm):
    utils = vllm()
    originals = (utils.hash_block_tokens, utils.get_request_block_hasher)
    assert set(hashing.install()) == {"sha256", "sha256_cbor"}
    assert utils.hash_block_tokens is not originals[0]
    engine = sys.modules["vllm.v1.engine"]
    assert engine.get_request_block_hasher is utils.get_request_block_hasher is not originals[1]
    assert set(hashing.install()) == {"sha256", "sha256_cbor"}, "a second time is harmless"
    hashing.uninstall()
    assert (utils.hash_block_tokens, engine.get_request_block_hasher) == originals


@pytest.mark.parametrize("name", ["sha256", "sha256_cbor"])
def test_blocks_and_requests_are_equal_and_made_here(vllm, name):
    utils = vllm()
    tokens = [(i * 2654435761) % 2**32 for i in range(1000)]
    function = getattr(functions(), name)
    utils.init_none_hash(function)
    expected = utils.get_request_block_hasher(16, function)(fake_vllm.Request(tokens))
    hashing.install()
    hasher = utils.get_request_block_hasher(16, function)
    utils.calls.clear()
    request = fake_vllm.Request(tokens)
    assert hasher(request) == expected and len(expected) == 62
    request.block_hashes = expected[:10]
    assert hasher(request) == expected[10:]
    request.block_hashes = expected
    assert hasher(request) == []
    assert utils.hash_block_tokens(function, None, tokens[:16]) == expected[0]
    assert utils.hash_block_tokens(function, expected[0], tuple(tokens[16:32]), None) == expected[1]
    assert utils.calls == [], "vLLM's own functions were not used"


def test_extra_keys_and_wide_tokens_go_through_vllm(vllm):
    utils = vllm()
    function = functions().sha256
    utils.init_none_hash(function)
    original = utils.get_request_block_hasher(4, function)
    cases = [
        fake_vllm.Request(range(20), lora="adapter"),
        fake_vllm.Request(range(20), salt="tenant"),
        fake_vllm.Request([2**40] * 8),
        fake_vllm.Request([-1] * 8),
    ]
    expected = [original(request) for request in cases]
    hashing.install()
    hasher = utils.get_request_block_hasher(4, function)
    for request, digests in zip(cases, expected, strict=True):
        utils.calls.clear()
        assert hasher(request) == digests and "request" in utils.calls
    assert utils.hash_block_tokens(function, b"\1" * 32, [1, 2], ("salt",)) == function((b"\1" * 32, (1, 2), ("salt",)))
    assert utils.hash_block_tokens(function, b"\1" * 32, [2**40], None) == function((b"\1" * 32, (2**40,), None))
    other = lambda value: b"other"  # noqa: E731
    assert utils.hash_block_tokens(other, None, [1], None) == b"other"
    assert utils.get_request_block_hasher(4, other)(fake_vllm.Request(range(4))) == [b"other"]


def test_a_new_first_parent_is_noticed(vllm):
    utils = vllm()
    function = functions().sha256
    utils.init_none_hash(function)
    hashing.install()
    hasher = utils.get_request_block_hasher(4, function)
    utils.NONE_HASH = b"\7" * 32
    assert hasher(fake_vllm.Request([1, 2, 3, 4])) == [function((b"\7" * 32, (1, 2, 3, 4), None))]


def test_a_mismatch_leaves_the_original_with_a_warning(vllm, caplog):
    utils = vllm(wrong=["sha256_cbor"])
    with caplog.at_level(logging.WARNING, "llmd.vllm"):
        assert hashing.install() == ("sha256",)
    assert "sha256_cbor hash stays in place" in caplog.text
    function = functions().sha256_cbor
    utils.init_none_hash(function)
    assert utils.hash_block_tokens(function, None, [1]) == function((utils.NONE_HASH, (1,), None))


def test_nothing_is_replaced_when_all_differ(vllm, caplog):
    utils = vllm(wrong=["sha256", "sha256_cbor"])
    original = utils.hash_block_tokens
    assert hashing.install() == () and utils.hash_block_tokens is original
    assert "none of vLLM's block hashes is replaced" in caplog.text


def test_a_request_of_another_shape_leaves_the_original_with_a_warning(vllm, caplog):
    utils = vllm(old_request=True)
    function = functions().sha256
    utils.init_none_hash(function)
    hashing.install()
    hasher = utils.get_request_block_hasher(4, function)
    assert "sha256 hashes stay in place, the comparison failed" in caplog.text
    request = fake_vllm.Request(range(4))
    request.something_new = True
    utils.calls.clear()
    assert len(hasher(request)) == 1 and "request" in utils.calls


def test_register_never_raises(vllm, caplog, monkeypatch):
    fake_vllm.remove()
    monkeypatch.setitem(sys.modules, "vllm", None)  # no such package
    register()
    assert "stay in place" in caplog.text
    monkeypatch.delitem(sys.modules, "vllm")
    utils = vllm()
    original = utils.hash_block_tokens
    monkeypatch.setenv("LLMD_VLLM_HASHING", "0")
    register()
    assert utils.hash_block_tokens is original
    monkeypatch.setenv("LLMD_VLLM_HASHING", "1")
    register()
    assert utils.hash_block_tokens is not original


def test_entry_point():
    found = [e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "llmd_hashing"]
    if not found:
        pytest.skip("llmd is imported from a build tree, not installed")
    assert found[0].load() is register
