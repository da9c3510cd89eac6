"""Block hashes against the engines' own vectors and pure-Python models."""

import array
import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llmd.hash as lh

TOKEN = st.integers(0, 2**32 - 1)


def from_json(key):
    if isinstance(key, dict):
        if "tuple" in key:
            return tuple(from_json(item) for item in key["tuple"])
        return bytes.fromhex(key["bytes_hex"])
    return key


def sha256_chain(tokens, block_size, none_hash, extra_keys=()):
    """vLLM's `sha256`, as its request_block_hasher computes it."""
    parent, out = none_hash, []
    for i in range(len(tokens) // block_size):
        block = tuple(tokens[i * block_size : (i + 1) * block_size])
        extra = extra_keys[i] if i < len(extra_keys) else None
        parent = hashlib.sha256(pickle.dumps((parent, block, extra), protocol=5)).digest()
        out.append(parent)
    return out


def test_vllm_vectors(block_hashes):
    for case in block_hashes["vllm"]:
        first = {"seed": case["seed_string"]}
        if case["seed_string"] is None:
            first = {"none_hash": bytes.fromhex(case["none_hash"])}
        hasher = lh.VllmHasher(case["algo"], block_size=case["block_size"], **first)
        assert hasher.none_hash.hex() == case["none_hash"], case["id"]
        extra = [from_json(key) for key in case["extra_keys"]]
        tokens = np.array(case["token_ids"], np.int64)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= 2**32):
            with pytest.raises(ValueError, match=r"tokens\[\d+\] is"):
                hasher.hash_blocks(tokens, None, extra)
            continue
        digests = hasher.hash_blocks(tokens, None, extra)
        assert [digest.hex() for digest in digests] == case["block_hashes"], case["id"]
        assert [str(key) for key in hasher.block_keys(tokens, None, extra)] == case["external_u64"]
        for i, preimage in enumerate(case.get("preimages_hex", [])):
            parent = digests[i - 1] if i else None
            block = tokens[i * hasher.block_size : (i + 1) * hasher.block_size]
            key = extra[i] if i < len(extra) else None
            assert hasher.preimage(block, parent, key).hex() == preimage
            assert hasher.hash_block(block, parent, key) == digests[i]


def test_other_vectors(block_hashes):
    for case in block_hashes["sglang"]:
        if "bigrams" in case:
            tokens = [pair[0] for pair in case["bigrams"]] + [case["bigrams"][-1][1]]
        else:
            tokens = case["token_ids"]
        pages = lh.sglang_page_hashes(tokens, page_size=case["page_size"], bigram="bigrams" in case)
        assert [page.hex() for page in pages] == case["page_hashes"]
        for page, event in zip(pages, case.get("event_int64", []), strict=False):
            assert lh.first64(page) == int(event) % 2**64
    for case in block_hashes["llmd"]:
        hasher = lh.RequestKeyHasher(case["algo"], seed=case["hash_seed"], block_size=case["block_size"])
        extra = [case.get("extra_hashes_per_block", {}).get(str(i)) for i in range(len(case["request_keys"]))]
        keys = hasher.hash_blocks(case["token_ids"], hasher.root(case.get("model_name", "")), extra)
        assert [str(key) for key in keys] == case["request_keys"], case["id"]
    for case in block_hashes["dynamo"]:
        if case["mm_hashes_per_block"]:
            continue
        seed = lh.dynamo_local_seed(case["lora_name"] or "", case["cache_namespace"] or "")
        assert str(seed) == case["seed"]
        local = lh.dynamo_local_hashes(case["token_ids"], block_size=case["block_size"], seed=seed)
        assert [str(key) for key in local] == case["block_hashes"]
        assert [str(key) for key in lh.dynamo_sequence_hashes(local)] == case["sequence_hashes"]
    for case in block_hashes["approx"]:
        if case["recipe"] == "bytes":
            keys = lh.gaie_prefix_keys(
                case["input_utf8"], case["model"], cache_salt=case["salt"], block_bytes=case["block_bytes"]
            )
        else:
            keys = lh.approx_prefix_keys(
                case["token_ids"], case["model"], cache_salt=case["salt"], block_size=case["block_size"]
            )
        assert [str(key) for key in keys] == case["hashes"], case["id"]


@settings(max_examples=60, deadline=None)
@given(st.lists(TOKEN, max_size=80), st.integers(1, 17), st.binary(min_size=1, max_size=32))
def test_sha256_is_hashlib_and_pickle(tokens, block_size, none_hash):
    hasher = lh.VllmHasher(block_size=block_size, none_hash=none_hash)
    expected = sha256_chain(tokens, block_size, none_hash)
    forms = [
        tokens,
        tuple(tokens),
        np.array(tokens, np.uint32),
        np.array(tokens, np.int64),
        np.array(tokens, np.uint64),
        memoryview(np.array(tokens, np.uint32)),
        array.array("q", tokens),
    ]
    for form in forms:
        assert hasher.hash_blocks(form) == expected
    if all(token < 2**31 for token in tokens):
        assert hasher.hash_blocks(np.array(tokens, np.int32)) == expected
    half = len(expected) // 2
    if half:
        assert hasher.hash_blocks(tokens[half * block_size :], expected[half - 1]) == expected[half:]


ATOM = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=2)
    | st.text(max_size=2)
    | st.binary(max_size=300)
    | st.text(max_size=300)
)
NESTED = st.recursive(ATOM, lambda inner: st.lists(inner, max_size=5).map(tuple), max_leaves=6)
EXTRA = st.none() | st.lists(NESTED, min_size=1, max_size=4).map(tuple)


def received(value):
    """A copy made of new objects, as a message is decoded. What CPython has only once stays the same object."""
    if isinstance(value, tuple):
        return tuple([received(item) for item in value])
    return value.encode().decode() if isinstance(value, str) else bytes(bytearray(value)) if value.__class__ is bytes else value


@settings(max_examples=200, deadline=None)
@given(st.lists(EXTRA, max_size=4))
@example([(b"", b"", ("", ""), "\xe9", ("\xe9", 1), b"\0", b"\0")])
@example([("ab", "ab", ("ab", 1), b"ab", b"ab", "\u0100", "\u0100")])
def test_extra_keys_are_pickled(extra_keys):
    # Two draws of hypothesis may be one object, which pickle would write once.
    expected = sha256_chain(range(16), 4, b"\1" * 32, received(tuple(extra_keys)))
    hasher = lh.VllmHasher(block_size=4, none_hash=b"\1" * 32)
    assert hasher.hash_blocks(list(range(16)), None, extra_keys) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(TOKEN, max_size=20), max_size=8))
def test_chain_is_the_whole(pieces):
    hasher = lh.VllmHasher("sha256_cbor", block_size=3)
    extras = lh.RequestExtras(lora_name="a", cache_salt="s", multimodal=(lh.MultimodalItem("x", 2, 5),))
    chain = lh.VllmChain(hasher, extras)
    everything = [token for piece in pieces for token in piece]
    digests = [digest for piece in pieces for digest in chain.extend(piece)]
    keys = lh.request_extra_keys(extras, block_size=3, count=len(digests))
    assert digests == chain.digests == hasher.hash_blocks(everything, None, keys)
    assert [int(key) for key in chain.keys] == [lh.low64(digest) for digest in digests]
    assert chain.token_count == len(everything)
    chain.clear()
    assert chain.digests == [] and chain.token_count == 0


def test_extra_keys_styles():
    extras = lh.RequestExtras("sql", 7, "/lora", (lh.MultimodalItem("img", 20, 4),), "salt")
    expected = {
        "int-lora": [(7, "salt"), (7, "img")],
        "bare": [("sql", "salt"), ("sql", "img")],
        "offset": [("sql", "salt"), ("sql", ("img", 4))],
        "tagged": [(("lora", "sql", "/lora"), ("cache_salt", "salt")), (("lora", "sql", "/lora"), ("mm", "img", 4))],
    }
    for style, keys in expected.items():
        assert lh.request_extra_keys(extras, block_size=16, count=2, style=style) == keys
    tagged = lh.request_extra_keys(extras, block_size=16, count=1, style="tagged")
    assert type(tagged[0][0][0]) is lh.Tag and type(tagged[0][0][1]) is str
    # A tag is one object: pickle refers back to it. An equal text is not.
    hasher = lh.VllmHasher(block_size=1)
    mm = lh.Tag("mm")
    twice = ((mm, "a", 0), (mm, "b", 1))
    plain = (("mm", "a", 0), ("mm", "b", 1))
    assert hasher.hash_block([1], None, twice) != hasher.hash_block([1], None, plain)


def test_pool_keys_and_groups():
    digest = bytes(range(32))
    assert lh.parse_pool_key(lh.pool_key(digest, 3)) == (digest, 3)
    with pytest.raises(ValueError, match="pool key has 4 bytes"):
        lh.parse_pool_key(b"1234")
    digests = [bytes([i]) * 32 for i in range(7)]
    assert lh.group_digests(digests, 3) == [digests[2], digests[5]]
    assert lh.low64(digest) == int.from_bytes(digest[-8:], "big")
    assert lh.first64(digest) == int.from_bytes(digest[:8], "big")


def test_lmcache_and_trtllm():
    hasher = lh.lmcache_hasher("sha256_cbor_64bit", chunk_size=4)
    assert hasher.algorithm == "sha256_cbor" and hasher.none_hash == b""
    assert len(lh.lmcache_chunk_hashes(hasher, list(range(6)))) == 2
    assert len(lh.lmcache_chunk_hashes(hasher, list(range(6)), save_unfull_chunk=False)) == 1
    with pytest.raises(ValueError, match="builtin"):
        lh.lmcache_hasher("builtin")
    assert len(lh.trtllm_v1_keys([1, 2, 3], tokens_per_block=2)) == 2
    assert [len(digest) for digest in lh.trtllm_v2_digests([1, 2, 3], tokens_per_block=2)] == [32, 32]


def test_probe_names_the_function():
    hasher = lh.VllmHasher("sha256", block_size=4, seed="17")
    hashes = [int(key) for key in hasher.block_keys([1, 2, 3, 4, 5, 6, 7, 8])]
    report = lh.probe([1, 2, 3, 4, 5, 6, 7, 8], hashes, block_size=4, seeds=["17"])
    assert report.match is not None
    assert (report.match.engine, report.match.algorithm, report.match.blocks) == ("vllm", "sha256", 2)
    assert lh.probe([1, 2, 3, 4], [1], block_size=4).match is None
    with pytest.raises(ValueError, match="hashes"):
        lh.probe([1], [], block_size=1)


BAD_TOKENS = [
    (None, TypeError, "tokens is of type NoneType"),
    ("abc", TypeError, "tokens is of type str"),
    (b"abcd", TypeError, "tokens: a buffer of format 'B'"),
    (3, TypeError, "tokens is of type int"),
    ([1, "x"], TypeError, r"tokens\[1\] is of type str"),
    ([1, 2.0], TypeError, r"tokens\[1\] is of type float"),
    ([1, None], TypeError, r"tokens\[1\] is of type NoneType"),
    ([0, -1], ValueError, r"tokens\[1\] is -1, not in 0 \.\. 4294967295"),
    ([0, 2**32], ValueError, r"tokens\[1\] is 4294967296"),
    ([2**200], ValueError, r"tokens\[0\] is 1606938"),
    (np.array([0, 5, -7], np.int32), ValueError, r"tokens\[2\] is -7"),
    (np.array([0, -7]), ValueError, r"tokens\[1\] is -7"),
    (np.array([2**40]), ValueError, r"tokens\[0\] is 1099511627776"),
    (np.array([2**63], np.uint64), ValueError, r"tokens\[0\] is 9223372036854775808"),
    (np.array([1.0]), TypeError, "tokens: a buffer of format 'd'"),
    (np.array([1], np.int16), TypeError, "tokens: a buffer of format 'h'"),
    (np.array([True]), TypeError, r"tokens: a buffer of format '\?'"),
    (np.array([1], ">i4"), TypeError, "tokens: a buffer of format '>i'"),
    (np.array([1], "M8[s]"), ValueError, "tokens: "),
    (np.array([object()]), TypeError, "tokens: a buffer of format 'O'"),
    (np.array(3), ValueError, "tokens has 0 dimensions"),
    (np.zeros((2, 2), np.int32), ValueError, "tokens has 2 dimensions"),
    (np.arange(10, dtype=np.int32)[::2], ValueError, "tokens: .*contiguous"),
    (np.arange(10, dtype=np.int32)[::-1], ValueError, "tokens: .*contiguous"),
]


@pytest.mark.parametrize("tokens, error, text", BAD_TOKENS, ids=[str(i) for i in range(len(BAD_TOKENS))])
def test_bad_tokens(tokens, error, text):
    hasher = lh.VllmHasher(block_size=1)
    for call in (
        hasher.hash_blocks,
        hasher.block_keys,
        hasher.hash_block,
        hasher.preimage,
        lh.VllmChain(hasher).extend,
        lh.content_keys,
        lambda t: lh.approx_prefix_keys(t, "m"),
        lh.dynamo_local_hashes,
        lambda t: lh.sglang_page_hashes(t, page_size=1),
    ):
        with pytest.raises(error, match=text):
            call(tokens)


def test_buffers_that_went_away():
    view = memoryview(array.array("i", [1, 2, 3]))
    view.release()
    with pytest.raises(ValueError, match="tokens: .*released"):
        lh.VllmHasher().hash_blocks(view)
    # A buffer is exported while it is used only.
    owner = array.array("i", range(64))
    lh.VllmHasher().hash_blocks(owner)
    owner.append(1)


def test_read_only_and_empty_arrays():
    tokens = np.arange(32, dtype=np.int32)
    hasher = lh.VllmHasher()
    expected = hasher.hash_blocks(tokens)
    tokens.flags.writeable = False
    assert hasher.hash_blocks(tokens) == expected
    assert hasher.hash_blocks(np.empty(0, np.int32)) == [] == hasher.hash_blocks([])
    assert hasher.block_keys([]).dtype == np.uint64
    assert hasher.hash_blocks([np.int64(token) for token in tokens]) == expected


def test_bad_options():
    with pytest.raises(ValueError, match='"builtin" cannot be reproduced'):
        lh.VllmHasher("builtin")
    with pytest.raises(ValueError, match="md5"):
        lh.VllmHasher("md5")
    for size in (0, -1, 2**40):
        with pytest.raises(ValueError, match=f"block_size is {size}, not in 1"):
            lh.VllmHasher(block_size=size)
    with pytest.raises(TypeError, match="block_size is of type str"):
        lh.VllmHasher(block_size="16")
    with pytest.raises(TypeError, match="algorithm is of type NoneType"):
        lh.VllmHasher(None)
    with pytest.raises(TypeError, match="seed is of type int"):
        lh.VllmHasher(seed=0)
    with pytest.raises(ValueError, match="exclude one another"):
        lh.VllmHasher(seed="0", none_hash=b"x")
    with pytest.raises(ValueError, match="none_hash has 33 bytes"):
        lh.VllmHasher(none_hash=bytes(33))
    with pytest.raises(ValueError, match="none_hash is 1"):
        lh.VllmHasher(none_hash=1)
    with pytest.raises(ValueError, match="xxhash"):
        lh.VllmHasher("xxhash")  # random without a seed
    hasher = lh.VllmHasher()
    with pytest.raises(TypeError, match="parent is of type str"):
        hasher.hash_blocks([1], "00")
    with pytest.raises(ValueError, match="parent has 40 bytes"):
        hasher.hash_blocks([1], bytes(40))
    with pytest.raises(TypeError, match=r"extra_keys\[0\] is of type str"):
        hasher.hash_blocks([1], None, ["salt"])
    with pytest.raises(TypeError, match=r"extra_keys\[0\]\[1\] is of type float"):
        hasher.hash_blocks([1], None, [("a", 1.5)])
    with pytest.raises(TypeError, match="bool"):
        hasher.hash_blocks([1], None, [(True,)])
    with pytest.raises(ValueError, match=r"extra_keys\[0\]\[0\] is 9223372036854775808"):
        hasher.hash_blocks([1], None, [(2**63,)])
    nested = ()
    for _ in range(100):
        nested = (nested,)
    with pytest.raises(ValueError, match="nested deeper than 16"):
        hasher.hash_block([1], None, nested)
    with pytest.raises(ValueError, match="style is"):
        lh.request_extra_keys(lh.RequestExtras(), block_size=16, count=1, style="new")
    with pytest.raises(ValueError, match="count is"):
        lh.request_extra_keys(lh.RequestExtras(), block_size=16, count=10**12)
    with pytest.raises(ValueError, match="seed: "):
        lh.VllmHasher(seed="\ud800")
