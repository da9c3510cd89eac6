"""Every hash form against a model in plain Python."""

import hashlib

import llmd.hash as lh
import models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=60, deadline=None)
TOKEN = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 23, 24, 255, 256, 65535, 65536, 2**31 - 1, 2**31]
)
TOKENS = st.lists(TOKEN, max_size=70)
SIZE = st.integers(1, 20)
TEXT = st.text(max_size=20)
U64 = st.integers(0, 2**64 - 1)
DIGEST = st.binary(min_size=32, max_size=32)
ITEM = st.builds(lh.MultimodalItem, st.text(max_size=80), st.integers(0, 60), st.integers(1, 40))
EXTRAS = st.builds(
    lh.RequestExtras,
    lora_name=TEXT,
    lora_int_id=st.integers(-5, 2**40),
    lora_path=TEXT,
    multimodal=st.lists(ITEM, max_size=3).map(tuple),
    cache_salt=TEXT,
    embeds_digests=st.lists(DIGEST, max_size=3).map(tuple),
)
STYLE = st.sampled_from(["int-lora", "bare", "offset", "tagged"])


@FEW
@given(st.sampled_from(sorted(models.SERIALIZERS)), TOKENS, SIZE, TEXT)
def test_vllm_seeds_and_chains(algorithm, tokens, size, seed):
    hasher = lh.VllmHasher(algorithm, block_size=size, seed=seed)
    none_hash = models.vllm_hash(algorithm, seed)
    assert hasher.none_hash == none_hash
    expected = models.vllm_chain(algorithm, tokens, size, none_hash)
    assert hasher.hash_blocks(tokens) == expected
    assert [int(key) for key in hasher.block_keys(tokens)] == [
        int.from_bytes(d[-8:], "big") for d in expected
    ]
    block = tokens[:7]
    assert hasher.preimage(block) == models.SERIALIZERS[algorithm]((none_hash, tuple(block), None))
    assert hasher.hash_block(block) == models.vllm_hash(algorithm, (none_hash, tuple(block), None))


def test_vllm_default_seed():
    for algorithm in ("sha256", "sha256_cbor"):
        assert lh.VllmHasher(algorithm).none_hash == models.vllm_hash(algorithm, "vllm-none-hash")


@FEW
@given(EXTRAS, SIZE, st.integers(0, 6), STYLE)
def test_extra_keys_of_requests(extras, size, count, style):
    ours = lh.request_extra_keys(extras, block_size=size, count=count, style=style)
    assert ours == models.vllm_extra_keys(extras, size, count, style)


@FEW
@given(EXTRAS, TOKENS, SIZE, STYLE, st.data())
def test_chains_with_extras(extras, tokens, size, style, data):
    hasher = lh.VllmHasher("sha256_cbor", block_size=size, none_hash=b"\1" * 32)
    expected = models.vllm_chain(
        "sha256_cbor",
        tokens,
        size,
        b"\1" * 32,
        models.vllm_extra_keys(extras, size, len(tokens), style),
    )
    chain, start = lh.VllmChain(hasher, extras, style=style), 0
    while start < len(tokens):
        end = data.draw(st.integers(start + 1, len(tokens)))
        chain.extend(tokens[start:end])
        start = end
    assert chain.digests == expected


@FEW
@given(st.sampled_from(["cbor-fnv", "cbor-fnv-no-model", "xxh64"]), TOKENS, SIZE, TEXT, TEXT,
       st.lists(st.lists(TEXT, max_size=3), max_size=4))  # fmt: skip
def test_llmd_request_keys(algorithm, tokens, size, seed, model, extra):
    hasher = lh.RequestKeyHasher(algorithm, seed=seed, block_size=size)
    key = models.llmd_root(algorithm, seed, model)
    assert hasher.root(model) == key
    expected = []
    for i, block in enumerate(models.full_blocks(tokens, size)):
        key = models.llmd_block(algorithm, key, block, extra[i] if i < len(extra) else [])
        expected.append(key)
    assert hasher.hash_blocks(tokens, hasher.root(model), extra).tolist() == expected


@FEW
@given(EXTRAS, SIZE, st.integers(0, 6))
def test_extra_strings_of_requests(extras, size, count):
    expected = []
    for i in range(count):
        start = i * size
        texts = [
            item.identifier
            for item in sorted(extras.multimodal, key=lambda item: item.offset)
            if item.offset < start + size and item.offset + item.length > start
        ]
        expected.append(
            (*texts, extras.cache_salt) if i == 0 and extras.cache_salt else tuple(texts)
        )
    assert lh.extra_strings(extras, block_size=size, count=count) == expected


@FEW
@given(
    st.binary(max_size=300) | st.text(max_size=100),
    TEXT,
    TEXT,
    st.integers(1, 70),
    st.integers(1, 5),
)
def test_gaie(prompt, model, salt, size, most):
    data = prompt.encode() if isinstance(prompt, str) else prompt
    ours = lh.gaie_prefix_keys(prompt, model, cache_salt=salt, block_bytes=size, max_blocks=most)
    assert ours.tolist() == models.gaie_keys(data, model, salt, size, most)


@FEW
@given(st.lists(TOKEN, max_size=300), TEXT, TEXT, st.integers(1, 100), st.sampled_from([0, 64, 150, 10**6]),
       st.integers(0, 4))  # fmt: skip
def test_approximate(tokens, model, salt, size, max_tokens, max_blocks):
    ours = lh.approx_prefix_keys(
        tokens,
        model,
        cache_salt=salt,
        block_size=size,
        max_prefix_tokens=max_tokens,
        max_prefix_blocks=max_blocks,
    )
    assert ours.tolist() == models.approx_keys(tokens, model, salt, size, max_tokens, max_blocks)


@FEW
@given(st.lists(TEXT | st.tuples(TEXT, st.integers(0, 5)), max_size=5))
def test_estimate(parts):
    assert lh.estimate_tokens(parts).tolist() == models.estimated_tokens(parts)


@FEW
@given(TOKENS, SIZE, TEXT, TEXT, st.booleans(), st.none() | U64)
def test_dynamo(tokens, size, lora, namespace, eagle, parent):
    seed = models.dynamo_seed(lora, namespace)
    assert lh.dynamo_local_seed(lora, namespace) == seed
    local = models.dynamo_local(tokens, size, seed, eagle)
    assert lh.dynamo_local_hashes(tokens, block_size=size, seed=seed, eagle=eagle).tolist() == local
    assert lh.dynamo_sequence_hashes(local, parent).tolist() == models.dynamo_sequence(
        local, parent, 1337
    )
    assert lh.dynamo_sequence_hashes(local, parent, seed=seed).tolist() == models.dynamo_sequence(
        local, parent, seed
    )
    if not eagle:  # what the index matches by, of a prompt with nothing but tokens
        assert lh.content_keys(tokens, block_size=size).tolist() == models.dynamo_local(
            tokens, size, 1337
        )


@FEW
@given(TOKENS, SIZE, TEXT, st.lists(ITEM, max_size=3))
def test_content_keys_are_local(tokens, size, salt, items):
    """A salt changes the first block alone, an item the blocks under its placeholder."""
    plain = lh.content_keys(tokens, block_size=size)
    ours = lh.content_keys(tokens, block_size=size, cache_salt=salt, items=items)
    for i, (a, b) in enumerate(zip(plain, ours, strict=True)):
        named = [
            t
            for t in items
            if t.offset < (i + 1) * size and t.offset + t.length > i * size
        ]
        assert (a != b) == bool(named or (i == 0 and salt))


@FEW
@given(TOKENS, SIZE, st.none() | DIGEST, st.booleans())
def test_sglang(tokens, size, parent, bigram):
    ours = lh.sglang_page_hashes(tokens, page_size=size, parent=parent, bigram=bigram)
    assert ours == models.sglang_pages(tokens, size, parent, bigram)
    assert [lh.first64(page) for page in ours] == [int.from_bytes(page[:8], "big") for page in ours]


@FEW
@given(TOKENS, SIZE, st.none() | TEXT, st.booleans(), st.sampled_from(["sha256", "sha256_cbor"]))
def test_lmcache(tokens, size, seed, partial, algorithm):
    hasher = lh.lmcache_hasher(algorithm, chunk_size=size, seed=seed)
    parent, expected = 0 if seed is None else models.vllm_hash(algorithm, seed), []
    for i in range(0, len(tokens), size):
        chunk = tuple(tokens[i : i + size])
        if len(chunk) == size or partial:
            parent = models.vllm_hash(algorithm, (parent, chunk, None))
            expected.append(parent)
    assert lh.lmcache_chunk_hashes(hasher, tokens, save_unfull_chunk=partial) == expected


@FEW
@given(
    TOKENS,
    SIZE,
    st.just(0) | U64,
    st.none() | st.integers(1, 2**64 - 1),
    st.none() | st.text(min_size=1),
)
@example([1, 2, 3], 2, 0, 5, "salt")
def test_trtllm(tokens, size, parent, lora, salt):
    salt_id = None if salt is None else lh.trtllm_salt_id(salt)
    if salt is not None:
        assert salt_id == int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little")
    ours = lh.trtllm_v1_keys(
        tokens, tokens_per_block=size, parent=parent, lora_task_id=lora, salt_id=salt_id
    )
    assert ours.tolist() == models.trtllm_v1(tokens, size, parent, lora, salt_id)


@FEW
@given(
    st.binary(max_size=32),
    st.integers(0, 2**32 - 1),
    st.lists(DIGEST, max_size=9),
    st.integers(1, 4),
)
def test_pool_keys_and_groups(digest, group, digests, factor):
    key = lh.pool_key(digest, group)
    assert key == digest + group.to_bytes(4, "big")
    if len(digest) in (16, 32):
        assert lh.parse_pool_key(key) == (digest, group)
    assert lh.low64(digest) == int.from_bytes(digest[-8:], "big")
    assert (
        lh.group_digests(digests, factor) == digests[factor - 1 :: factor][: len(digests) // factor]
    )


@FEW
@given(st.sampled_from(["sha256", "sha256_cbor"]), st.lists(TOKEN, min_size=8, max_size=8), TEXT)
def test_probe_finds_every_vllm_form(algorithm, tokens, seed):
    chain = models.vllm_chain(algorithm, tokens, 4, models.vllm_hash(algorithm, seed))
    hashes = [int.from_bytes(digest[-8:], "big") for digest in chain]
    match = lh.probe(tokens, hashes, block_size=4, seeds=[seed]).match
    assert match is not None and (match.engine, match.algorithm, match.blocks) == (
        "vllm",
        algorithm,
        2,
    )
    assert lh.probe(tokens, [hashes[0] ^ 1, hashes[1]], block_size=4, seeds=[seed]).match is None


def test_unknown_forms_are_refused():
    for call in (
        lambda: lh.VllmHasher("md5"),
        lambda: lh.RequestKeyHasher("md5"),
        lambda: lh.lmcache_hasher("md5"),
    ):
        with pytest.raises(ValueError, match="md5"):
            call()
