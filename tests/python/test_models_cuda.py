"""`llmd.cuda` on NumPy arrays against its definitions written in NumPy and double."""

import dlpack_arrays as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd import cuda

BACKENDS = st.sampled_from(["cpu", "reference"])
SEEDS = st.integers(0, 2**32 - 1)
STORED = {
    "f16": (np.float16, lambda x: np.asarray(x, np.float16), lambda x: x.astype(np.float64)),
    "bf16": (np.uint16, da.bf16, lambda x: da.from_bf16(x).astype(np.float64)),
    "e4m3": (np.uint8, da.e4m3, da.from_e4m3),
    "f32": (np.float32, lambda x: np.asarray(x, np.float32), lambda x: x.astype(np.float64)),
}
PRECISION = {"f32": 1e-5, "f16": 1e-3, "bf16": 8e-3}


def close(got, wanted, dtype):
    np.testing.assert_allclose(got, wanted, rtol=2 * PRECISION[dtype], atol=2 * PRECISION[dtype])


def explicit(dtype):
    """The argument that says what NumPy cannot."""
    return dtype if dtype in ("bf16", "e4m3") else None


class Cache:
    """A cache in one of five layouts, full of what must not be seen, with a random page list."""

    def __init__(self, rng, dtype, page_size, heads, dim, lengths, layout, compressed):
        counts = [-(-length // page_size) for length in lengths]
        self.pages = sum(counts) + 2
        self.dtype, self.page_size = dtype, page_size
        kind, _, self.widen = STORED[dtype]
        shape = {
            "NHD": (2, self.pages, page_size, heads, dim),
            "HND": (2, self.pages, heads, page_size, dim),
            "NHD in page": (self.pages, 2, page_size, heads, dim),
            "HND in page": (self.pages, 2, heads, page_size, dim),
            "row": (self.pages, heads, page_size, 2 * dim),
        }[layout]
        memory = np.full(np.prod(shape) * np.dtype(kind).itemsize + 16, 0xFF, np.uint8)  # NaN in every type
        memory = memory[-memory.ctypes.data % 16 :][: memory.size - 16]
        both = memory.view(kind).reshape(shape)
        if layout == "row":
            k, v = both[..., :dim], both[..., dim:]
        else:
            k, v = (both[:, 0], both[:, 1]) if "in page" in layout else (both[0], both[1])
        self.nhd = [a if layout.startswith("NHD") else a.transpose(0, 2, 1, 3) for a in (k, v)]
        self.scales = rng.uniform(0.5, 2, (2, heads)).astype(np.float32) if dtype == "e4m3" else np.ones((2, heads))
        scales = dict(zip(("k_scale", "v_scale"), self.scales)) if dtype == "e4m3" else {}
        self.cache = cuda.KvCache(k, v, layout=layout[:3] if layout[0] in "NH" else "HND", dtype=explicit(dtype), **scales)

        ids = rng.permutation(self.pages)[: sum(counts)].astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.rows = [ids[a:b] for a, b in zip(starts, starts[1:])]
        table = np.full((len(lengths), max(counts, default=0) + 1), 2**31 - 1, np.int32)
        for row, own in zip(table, self.rows):
            row[: len(own)] = own
        if compressed:
            last = np.array([(length - 1) % page_size + 1 for length in lengths], np.int32)
            self.list = cuda.PageList(ids, indptr=starts, last_page_len=last)
        else:
            self.list = cuda.PageList(table[:, :-1], seq_lens=np.array(lengths, np.int32))

    def slot(self, b, position):
        return int(self.rows[b][position // self.page_size]) * self.page_size + position % self.page_size

    def tokens(self, b, length):
        """[2, length, heads, dim] as they were stored."""
        slots = [self.slot(b, p) for p in range(length)]
        at = [divmod(s, self.page_size) for s in slots]
        return [
            np.array([self.widen(a[page, offset]) for page, offset in at]).reshape(length, *a.shape[2:]) * s[:, None]
            for a, s in zip(self.nhd, self.scales)
        ]


def attention(q, k, v, scale, window, sinks):
    """[n, Hq, D] over [L, Hkv, D], in double."""
    n, length, group = len(q), len(k), q.shape[1] // k.shape[1]
    o, lse = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    for i in range(n):
        p = length - n + i
        begin = max(0, p - window + 1) if window > 0 else 0
        for h in range(q.shape[1]):
            scores = scale * k[begin : p + 1, h // group] @ q[i, h]
            everything = np.append(scores, sinks[h]) if sinks is not None else scores
            if len(everything):
                lse[i, h] = np.logaddexp.reduce(everything)
                o[i, h] = np.exp(scores - lse[i, h]) @ v[begin : p + 1, h // group]
    return o, lse


LAYOUTS = ["NHD", "HND", "NHD in page", "HND in page", "row"]


@settings(max_examples=60, deadline=None)
@given(
    SEEDS, BACKENDS, st.sampled_from(["f16", "bf16", "e4m3"]), st.sampled_from(LAYOUTS), st.booleans(),
    st.sampled_from(["decode", "prefill", "mixed"]), st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.sampled_from([1, 3, 16]), st.sampled_from([1, 2]), st.sampled_from([1, 3, 4]), st.sampled_from([16, 64]),
    st.sampled_from([0, 1, 7]), st.booleans(), st.sampled_from(["f16", "bf16", "f32"]),
)  # fmt: skip
def test_append_plan_attention(
    seed, backend, dtype, layout, compressed, mode, lengths, page_size, heads, group, dim, window, with_sinks, o_dtype
):
    rng = np.random.default_rng(seed)
    cache = Cache(rng, dtype, page_size, heads, dim, lengths, layout, compressed)
    tokens = [(b, p) for b, length in enumerate(lengths) for p in range(length)]
    k, v = rng.standard_normal((2, len(tokens), heads, dim)).astype(np.float32)
    by_slot = seed % 2 == 0
    places = (
        {"slots": np.array([cache.slot(b, p) for b, p in tokens], np.int64)}
        if by_slot
        else {
            "batch_index": np.array([b for b, _ in tokens], np.int32),
            "positions": np.array([p for _, p in tokens], np.int32),
            "pages": cache.list,
        }
    )
    cuda.append_kv(cache.cache, k, v, backend=backend, **places)
    narrow = STORED[dtype][1]
    for got, new, scales in zip(cache.nhd, (k, v), cache.scales):
        for t, (b, p) in enumerate(tokens):
            page, offset = divmod(cache.slot(b, p), page_size)
            wanted = narrow(new[t] / scales[:, None].astype(np.float32))
            if dtype == "e4m3":  # a quotient that was rounded may fall on the other side of a tie
                np.testing.assert_allclose(da.from_e4m3(got[page, offset]), da.from_e4m3(wanted), rtol=0.13, atol=2**-9)
            else:
                assert (got[page, offset] == wanted).all()

    counts = [1 if mode == "decode" or rng.integers(2) else int(rng.integers(0, length + 1)) for length in lengths]
    q_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    padding = 0 if mode == "decode" else 2
    total = int(q_start[-1]) + padding
    q_dtype = "bf16" if dtype == "bf16" or dtype == "e4m3" and by_slot else "f16"
    q = STORED[q_dtype][1](rng.standard_normal((total, heads * group, dim)))
    o = STORED[o_dtype][1](np.full(q.shape, 7.0))
    lse = np.full(q.shape[:2], 7, np.float32)
    sinks = rng.standard_normal(heads * group).astype(np.float32) if with_sinks else None
    shape = cuda.AttentionShape(
        mode, len(lengths), heads * group, heads, dim, dtype, page_size, max_tokens=max(total, 1), window=window
    )
    workspace = cuda.Workspace(shape, backend=backend)
    plan = workspace.plan(cache.list, q_start=None if mode == "decode" else q_start)
    plan.attention(
        q, o, cache.cache, lse=lse, sinks=sinks, scale=0.3 if by_slot else None, zero_padding=bool(padding) and by_slot,
        q_dtype=explicit(q_dtype), o_dtype=explicit(o_dtype),
    )  # fmt: skip
    assert workspace.check() is None

    widen_q, widen_o = STORED[q_dtype][2], STORED[o_dtype][2]
    for b, length in enumerate(lengths):
        rows = slice(q_start[b], q_start[b + 1])
        scale = 0.3 if by_slot else dim**-0.5
        wanted, wanted_lse = attention(widen_q(q[rows]), *cache.tokens(b, length), scale, window, sinks)
        close(widen_o(o[rows]), wanted, "bf16" if "bf16" in (q_dtype, o_dtype) else "f16")
        np.testing.assert_allclose(lse[rows], wanted_lse, rtol=1e-3, atol=1e-3)
    if padding:
        assert (widen_o(o[q_start[-1] :]) == (0 if by_slot else 7)).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS, BACKENDS, st.sampled_from(["page", "length"]))
def test_validated_attention(seed, backend, what):
    rng = np.random.default_rng(seed)
    cache = Cache(rng, "f16", 4, 1, 16, [6, 9], "NHD", False)
    k = rng.standard_normal((15, 1, 16)).astype(np.float16)
    slots = np.array([cache.slot(0, p) for p in range(6)] + [cache.slot(1, p) for p in range(9)])
    cuda.append_kv(cache.cache, k, k, slots=slots, backend=backend)
    if what == "page":
        cache.list.pages[1, 2] = int(rng.choice([-1, cache.pages, 2**31 - 1]))
        wanted = cuda.DataError("page", 1, 2, int(cache.list.pages[1, 2]))
    else:
        cache.list.seq_lens[1] = int(rng.choice([-1, 13, 2**31 - 1]))
        wanted = cuda.DataError("length", 1, 0, int(cache.list.seq_lens[1]))
    workspace = cuda.Workspace(cuda.AttentionShape("decode", 2, 2, 1, 16, "f16", 4), backend=backend)
    q, o = rng.standard_normal((2, 2, 2, 16)).astype(np.float16)
    workspace.plan(cache.list).attention(q, o, cache.cache)
    assert workspace.check() == wanted and f"bad {what}" in str(wanted)
    assert workspace.check() is None
    kept = attention(q[:1].astype(np.float64), *cache.tokens(0, 6), 0.25, 0, None)[0]
    close(o[:1], kept, "f16")


@settings(max_examples=30, deadline=None)
@given(SEEDS, BACKENDS, st.sampled_from(["f32", "f16", "bf16"]), st.booleans())
def test_merge_states(seed, backend, dtype, ragged):
    rng = np.random.default_rng(seed)
    tokens, heads, dim = rng.integers(1, 4, 3)
    counts = rng.integers(0, 4, tokens) if ragged else np.full(tokens, 3)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    parts = start[-1]
    partial = STORED[dtype][1](rng.standard_normal((parts, heads, dim)))
    lse = (rng.standard_normal((parts, heads)) * 10).astype(np.float32)
    lse[rng.random(lse.shape) < 0.2] = -np.inf
    lse[rng.random(lse.shape) < 0.1] = np.inf
    o, out_lse = np.zeros((tokens, heads, dim), np.float32), np.zeros((tokens, heads), np.float32)
    if ragged:
        cuda.merge_states(
            partial, lse, o, lse=out_lse, part_start=start, partial_dtype=explicit(dtype), backend=backend
        )
    else:
        by_part = [np.ascontiguousarray(a.reshape(tokens, 3, *a.shape[1:]).swapaxes(0, 1)) for a in (partial, lse)]
        cuda.merge_states(*by_part, o, lse=out_lse, partial_dtype=explicit(dtype), backend=backend)
    for t in range(tokens):
        for h in range(heads):
            own = slice(start[t], start[t + 1])
            weights = np.where(np.isinf(lse[own, h]), 0, np.exp(lse[own, h].astype(np.float64)))
            wanted = weights @ STORED[dtype][2](partial[own, h]) / weights.sum() if weights.sum() else np.zeros(dim)
            close(o[t, h], wanted, "f32")
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(out_lse[t, h], np.log(weights.sum()), rtol=1e-5, atol=1e-5)


def turned(x, positions, rope):
    half = rope.rotary_dim // 2
    f = rope.theta ** (-2 * np.arange(half) / rope.rotary_dim)
    if rope.scale_factor > 0:
        length = 2 * np.pi / f
        w = (rope.old_context / length - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        f = f * (1 - np.clip(w, 0, 1)) / rope.scale_factor + f * np.clip(w, 0, 1)
    c = np.cos(positions[:, None] * f)[:, None]
    s = np.sin(positions[:, None] * f)[:, None]
    first = np.arange(half) * 2 if rope.interleaved else np.arange(half)
    second = first + 1 if rope.interleaved else first + half
    out = x.copy()
    out[..., first] = x[..., first] * c - x[..., second] * s
    out[..., second] = x[..., second] * c + x[..., first] * s
    return out


@settings(max_examples=40, deadline=None)
@given(SEEDS, BACKENDS, st.sampled_from(["f32", "f16", "bf16"]), st.booleans(), st.booleans(), st.sampled_from([0, 8]))
def test_rope_and_rope_append(seed, backend, dtype, interleaved, in_place, factor):
    rng = np.random.default_rng(seed)
    tokens, q_heads, heads, dim = int(rng.integers(0, 5)), 4, 2, 16
    rope = cuda.Rope(
        float(rng.choice([100, 10000, 500000])), int(rng.choice([2, 8, 16])), interleaved, factor,
        *((1.0, 4.0, 100.0) if factor else ()),
    )  # fmt: skip
    kind, narrow, widen = STORED[dtype]
    fused = narrow(rng.standard_normal((tokens, q_heads + 2 * heads, dim)))
    q, k, v = np.split(fused, [q_heads, q_heads + heads], axis=1)
    positions = rng.integers(0, 3000, tokens).astype(np.int32)
    wanted_q, wanted_k = turned(widen(q), positions, rope), turned(widen(k), positions, rope)
    values = widen(v)

    stored = np.zeros((2, 3, 2, heads, dim), np.float32 if dtype == "f32" else kind)
    if dtype == "f32":
        stored = stored.astype(np.float16)
    slots = rng.permutation(6)[:tokens]
    q_out = np.zeros(q.shape, kind)
    cuda.rope_append(
        rope, cuda.KvCache(*stored, dtype=explicit(dtype)), q, k, v, positions, q_out=q_out, slots=slots,
        dtype=explicit(dtype), backend=backend,
    )  # fmt: skip
    close(widen(q_out), wanted_q, dtype)
    stored_widen = STORED["f16" if dtype == "f32" else dtype][2]
    for t, slot in enumerate(slots):
        close(stored_widen(stored[0, slot // 2, slot % 2]), wanted_k[t], "bf16" if dtype == "bf16" else "f16")
        close(stored_widen(stored[1, slot // 2, slot % 2]), values[t], "bf16" if dtype == "bf16" else "f16")

    out = {} if in_place else {"q_out": q_out, "k_out": np.zeros(k.shape, kind)}
    cuda.rope(rope, positions, q, k, dtype=explicit(dtype), backend=backend, **out)
    close(widen(q if in_place else q_out), wanted_q, dtype)
    close(widen(k if in_place else out["k_out"]), wanted_k, dtype)


@settings(max_examples=30, deadline=None)
@given(SEEDS, BACKENDS, st.sampled_from(["f32", "f16", "bf16"]), st.booleans())
def test_rms_norm_and_silu_and_mul(seed, backend, dtype, with_residual):
    rng = np.random.default_rng(seed)
    kind, narrow, widen = STORED[dtype]
    rows, size = int(rng.integers(0, 5)), int(rng.choice([1, 8, 100]))
    wide = narrow(rng.standard_normal((rows, 2 * size)))
    x = wide[:, :size]  # rows lie apart
    residual = narrow(rng.standard_normal((rows, size)))
    weight = narrow(rng.uniform(0.5, 2, size))
    total = widen(x) + widen(residual) if with_residual else widen(x)
    y = np.zeros((rows, size), kind)
    arguments = {"residual": residual} if with_residual else {}
    cuda.rms_norm(x, weight, y, epsilon=1e-3, dtype=explicit(dtype), backend=backend, **arguments)
    if with_residual:
        close(widen(residual), total, dtype)
        total = widen(residual)
    wanted = total * widen(weight) / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-3)
    close(widen(y), wanted, dtype)

    gate, up = widen(wide[:, :size]), widen(wide[:, size:])
    cuda.silu_and_mul(wide, y, dtype=explicit(dtype), backend=backend)
    close(widen(y), gate / (1 + np.exp(-gate)) * up, dtype)


def test_rms_norm_of_heads():
    qkv = np.random.default_rng(1).standard_normal((3, 4, 8)).astype(np.float32)
    y = np.zeros_like(qkv)
    cuda.rms_norm(qkv, np.ones(8, np.float32), y, epsilon=0)
    np.testing.assert_allclose(y, qkv / np.sqrt((qkv**2).mean(-1, keepdims=True)), rtol=1e-5)
    with pytest.raises(ValueError, match="x is of shape .* rows at even distances"):
        cuda.rms_norm(qkv[:, :2], np.ones(8, np.float32), y[:, :2], epsilon=0)


def philox(key, counter):
    """Philox4x32-10; the first word."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    c = list(counter)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]


def kept_tokens(p, min_p, top_k, top_p):
    keep = p >= min_p * p.max()
    order = [i for i in sorted(range(len(p)), key=lambda i: (-p[i], i)) if keep[i]]
    if top_k > 0:
        order = order[:top_k]
    share = np.cumsum([p[i] for i in order]) / sum(p[i] for i in order)
    if top_p < 1:
        order = order[: int(np.searchsorted(share, top_p - 1e-9)) + 1]
    return sorted(order)


@settings(max_examples=40, deadline=None)
@given(SEEDS, BACKENDS, st.integers(0, 2**64 - 1), st.sampled_from(["f32", "f16", "bf16"]))
def test_sample(seed, backend, key, dtype):
    rng = np.random.default_rng(seed)
    batch, vocab = int(rng.integers(0, 5)), int(rng.integers(1, 50))
    logits = STORED[dtype][1](rng.permutation(batch * vocab).reshape(batch, vocab) / 8)  # all different, and exact
    wide = STORED[dtype][2](logits)
    temperature = rng.choice([0, 0.5, 1, 2], batch).astype(np.float32)
    min_p = rng.choice([0, 0.013], batch).astype(np.float32)
    top_k = rng.choice([0, 1, 7], batch).astype(np.int32)
    top_p = rng.choice([0.337, 0.913, 1], batch).astype(np.float32)
    ids, steps = rng.integers(0, 2**63, batch), rng.integers(0, 2**63, batch).astype(np.uint64)
    tokens, logprobs = np.full(batch, -7, np.int32), np.zeros(batch, np.float32)
    cuda.sample(
        logits, tokens, temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p, seed=key, request_ids=ids,
        steps=steps, logprobs=logprobs, dtype=explicit(dtype), backend=backend,
    )  # fmt: skip
    for b in range(batch):
        scaled = wide[b] / (temperature[b] or 1)
        p = np.exp(scaled - np.logaddexp.reduce(scaled))
        if temperature[b] == 0:
            assert tokens[b] == np.argmax(wide[b])
        else:
            keep = kept_tokens(p, min_p[b], top_k[b], top_p[b])
            words = [int(n) >> shift & 0xFFFFFFFF for n in (ids[b], steps[b]) for shift in (0, 32)]
            u = (philox(key, words) >> 8) / 2**24
            edges = np.cumsum(p[keep]) / p[keep].sum()
            at = int(np.searchsorted(edges, u, side="right"))
            if np.abs(edges - u).min() > 1e-6:
                assert tokens[b] == keep[min(at, len(keep) - 1)]
        np.testing.assert_allclose(logprobs[b], np.log(p[tokens[b]]), rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(SEEDS, BACKENDS)
def test_blocks(seed, backend):
    rng = np.random.default_rng(seed)
    layers, pages = int(rng.integers(1, 4)), 12
    memory = [rng.integers(0, 255, (2, pages, 4, 2, 16)).astype(np.uint8) for _ in range(layers)]
    before = [m.copy() for m in memory]
    where = cuda.block_bases([cuda.KvCache(*m, dtype="e4m3") for m in memory])
    sizes = {"page_stride_bytes": where.page_stride_bytes, "block_bytes": where.block_bytes, "backend": backend}
    order = rng.permutation(pages)
    count = int(rng.integers(0, 7))
    blocks = order[:count].copy()
    staging = np.zeros(count * 2 * layers * where.block_bytes, np.uint8)
    cuda.gather_blocks(where.bases, blocks, staging, **sizes)
    wanted = [b[half, page].ravel() for page in blocks for b in before for half in (0, 1)]
    assert (staging == (np.concatenate(wanted) if wanted else [])).all()
    targets = rng.permutation(pages)[:count]
    cuda.scatter_blocks(where.bases, targets, staging, **sizes)
    for m, b in zip(memory, before):
        b[:, targets] = b[:, blocks]
        assert (m == b).all()
    pairs = order.reshape(-1, 2)[: int(rng.integers(0, 7))]
    cuda.copy_blocks(where.bases, pairs, **sizes)
    for m, b in zip(memory, before):
        b[:, pairs[:, 1]] = b[:, pairs[:, 0]]
        assert (m == b).all()
