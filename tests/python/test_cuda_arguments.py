"""Bad arguments of `llmd.cuda`: each is refused with the argument's name, the value and the limit."""

import dlpack_arrays as da
import numpy as np
import pytest
from dlpack_arrays import Array

import llmd
from llmd import cuda

T, HQ, HKV, D, P, PAGES, B = 3, 4, 2, 16, 4, 6, 2
READ_ONLY = da.READ_ONLY


def f16(*shape):
    return np.zeros(shape, np.float16)


def f32(*shape):
    return np.zeros(shape, np.float32)


def i32(*shape):
    return np.zeros(shape, np.int32)


def i64(*shape):
    return np.zeros(shape, np.int64)


def frozen(array):
    return Array(array, flags=READ_ONLY)


def cache(**how):
    return cuda.KvCache(*f16(2, PAGES, P, HKV, D), **how)


def pages(**fields):
    return cuda.PageList(**{"pages": i32(B, 3), "seq_lens": np.ones(B, np.int32), **fields})


def compressed(**fields):
    good = {"pages": i32(4), "indptr": np.array([0, 1, 3], np.int32), "last_page_len": np.ones(B, np.int32)}
    return cuda.PageList(**{**good, **fields})


def shape(**fields):
    good = {
        "mode": "decode", "max_batch": 4, "num_q_heads": HQ, "num_kv_heads": HKV, "head_dim": D, "kv_dtype": "f16",
        "page_size": P, "max_tokens": 8,
    }  # fmt: skip
    return cuda.AttentionShape(**{**good, **fields})


def workspace(**fields):
    return cuda.Workspace(shape(**fields))


def of_plan(*, mode="decode", pages=pages(), q_start=None):
    if mode != "decode" and q_start is None:
        q_start = np.array([0, 1, T], np.int32)
    return workspace(mode=mode).plan(pages, q_start=q_start)


def of_attention(*, mode="decode", **arguments):
    rows = B if mode == "decode" else T
    good = {"q": f16(rows, HQ, D), "o": f16(rows, HQ, D), "cache": cache()}
    of_plan(mode=mode).attention(**{**good, **arguments})


ROPE = cuda.Rope(10000, D)
LLAMA = {"scale_factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "old_context": 8192}
CACHE = cache()  # the bases do not keep it
KV = {"cache": CACHE, "k": f16(T, HKV, D), "v": f16(T, HKV, D)}
BLOCKS = {"bases": cuda.block_bases([CACHE]).bases, "page_stride_bytes": 256, "block_bytes": 256}
PLACED = {"slots": None, "batch_index": i32(T), "positions": i32(T), "pages": pages()}
GOOD = {
    cuda.append_kv: {**KV, "slots": np.arange(T)},
    cuda.rope_append: {"rope": ROPE, "q": f16(T, HQ, D), **KV, "positions": i32(T), "slots": np.arange(T)},
    cuda.copy_blocks: {**BLOCKS, "pairs": np.array([[0, 1]])},
    cuda.gather_blocks: {**BLOCKS, "blocks": np.array([0, 1]), "staging": np.zeros(1024, np.uint8)},
    cuda.scatter_blocks: {**BLOCKS, "blocks": np.array([0, 1]), "staging": np.zeros(1024, np.uint8)},
    cuda.merge_states: {"partial_o": f32(2, T, HQ, D), "partial_lse": f32(2, T, HQ), "o": f32(T, HQ, D)},
    cuda.rope: {"rope": ROPE, "positions": i32(T), "q": f16(T, HQ, D), "k": f16(T, HKV, D)},
    cuda.rms_norm: {"x": f32(T, 8), "weight": f32(8), "y": f32(T, 8), "epsilon": 1e-6},
    cuda.silu_and_mul: {"x": f32(T, 8), "y": f32(T, 4)},
    cuda.sample: {"logits": f32(B, 9), "tokens": i32(B)},
    cuda.KvCache: {"k": f16(PAGES, P, HKV, D), "v": f16(PAGES, P, HKV, D)},
    cuda.Workspace: {"shape": shape()},
    of_plan: {},
    of_attention: {},
}
SCALED = {"k": np.zeros((PAGES, P, HKV, D), np.uint8), "v": np.zeros((PAGES, P, HKV, D), np.uint8), "dtype": "e4m3"}
CSR = {"slots": None, "batch_index": i32(T), "positions": i32(T)}
RAGGED = {"partial_o": f32(5, HQ, D), "partial_lse": f32(5, HQ)}
BAD = [
    (cuda.append_kv, {"cache": None}, TypeError, "cache is of type NoneType, wanted KvCache"),
    (cuda.append_kv, {"k": f16(T, HKV + 1, D)}, ValueError, r"k is of shape \(3, 3, 16\), wanted \(T, Hkv, D\), where Hkv is 2 as in cache"),
    (cuda.append_kv, {"k": f16(T, HKV, D + 1)}, ValueError, "k is of shape .* D is 16 as in cache"),
    (cuda.append_kv, {"v": f16(T + 1, HKV, D)}, ValueError, "v is of shape .* T is 3 as in k"),
    (cuda.append_kv, {"v": f16(T * HKV, D)}, ValueError, r"v is of shape \(6, 16\), wanted \(T, Hkv, D\)"),
    (cuda.append_kv, {"k": f16(T, HKV, 2 * D)[..., ::2]}, ValueError, "k has a stride of 2 elements in its last dimension"),
    (cuda.append_kv, {"k": f16(T, HKV, D)[::-1]}, ValueError, "k_strides.token is -32, must be at least 0"),
    (cuda.append_kv, {"v": f32(T, HKV, D)}, ValueError, "v is of another type than k"),
    (cuda.append_kv, {"k": np.zeros((T, HKV, D))}, TypeError, "k is of float64, wanted float32, float16"),
    (cuda.append_kv, {"slots": i32(T)}, TypeError, "slots is of int32, wanted int64"),
    (cuda.append_kv, {"slots": np.arange(T + 1)}, ValueError, r"slots is of shape \(4,\), wanted \(T,\), where T is 3"),
    (cuda.append_kv, {"slots": np.arange(2 * T)[::2]}, ValueError, "slots is of shape .* contiguous"),
    (cuda.append_kv, {"slots": [0, 1, 2]}, TypeError, "slots is of type list"),
    (cuda.append_kv, {"slots": np.array([0, PAGES * P, 1])}, ValueError, r"slots\[1\] is 24, past the last page"),
    (cuda.append_kv, {"slots": None}, ValueError, "slots is None, wanted it, or batch_index, positions and pages"),
    (cuda.append_kv, {"pages": pages()}, ValueError, "slots and batch_index or pages are both given"),
    (cuda.append_kv, {**PLACED, "pages": "table"}, TypeError, "pages is or has .* str, wanted PageList"),
    (cuda.append_kv, {**PLACED, "batch_index": np.array([0, 2, 0], np.int32)}, ValueError, r"batch_index\[1\] is 2, wanted less than B, 2"),
    (cuda.append_kv, {**PLACED, "batch_index": i64(T)}, TypeError, "batch_index is of int64, wanted int32"),
    (cuda.append_kv, {**PLACED, "positions": np.array([0, 1, 12], np.int32)}, ValueError, r"positions\[2\] is 12, outside"),
    (cuda.append_kv, {**PLACED, "positions": np.array([0, -1, 2], np.int32)}, ValueError, r"positions\[1\] is -1, outside"),
    (cuda.append_kv, {**PLACED, "pages": pages(pages=np.full((B, 3), PAGES, np.int32))}, ValueError, r"pages.pages has page 6 for token 0, not in 0 .. 5"),
    (cuda.append_kv, {**PLACED, "pages": pages(pages=i64(B, 3))}, TypeError, "pages.pages is of int64, wanted int32"),
    (cuda.append_kv, {**PLACED, "pages": pages(pages=None)}, TypeError, "pages.pages is None"),
    (cuda.append_kv, {**CSR, "pages": compressed(indptr=np.array([0, 9, -4], np.int32)), "positions": np.full(T, 99, np.int32)}, ValueError, r"positions\[0\] is 99"),
    (cuda.append_kv, {"error": i64(2)}, ValueError, r"error is of shape \(2,\), wanted \(3,\)"),
    (cuda.append_kv, {"error": frozen(i64(3))}, ValueError, "error is read-only"),
    (cuda.append_kv, {"cache": cuda.KvCache(*map(frozen, f16(2, PAGES, P, HKV, D)))}, ValueError, "cache.k is read-only"),
    (cuda.append_kv, {"dtype": 5}, TypeError, "dtype is of type int"),
    (cuda.append_kv, {"backend": "gpu"}, ValueError, 'backend is "gpu", wanted cpu, reference or cuda'),
    (cuda.append_kv, {"backend": 1}, TypeError, "backend is of type int, wanted Backend or str"),
    (cuda.append_kv, {"stream": 1}, ValueError, "stream is given, but k is in memory of the host"),
    (cuda.rope_append, {"q": f16(T + 1, HQ, D)}, ValueError, "q is of shape .* T is 3"),
    (cuda.rope_append, {"q": f32(T, HQ, D)}, TypeError, "q is of another type than k"),
    (cuda.rope_append, {"q_out": f16(T, HQ + 1, D)}, ValueError, "q_out is of shape .* Hq is 4 as in q"),
    (cuda.rope_append, {"q_out": frozen(f16(T, HQ, D))}, ValueError, "q_out is read-only"),
    (cuda.rope_append, {"positions": None}, TypeError, "positions is None"),
    (cuda.rope_append, {"positions": i32(T + 1)}, ValueError, "positions is of shape"),
    (cuda.rope_append, {"slots": np.array([0, 99, 1])}, ValueError, r"slots\[1\] is 99"),
    (cuda.copy_blocks, {"pairs": i64(2, 3)}, ValueError, r"pairs is of shape \(2, 3\), wanted \(n, 2\)"),
    (cuda.copy_blocks, {"pairs": i32(2, 2)}, TypeError, "pairs is of int32"),
    (cuda.copy_blocks, {"bases": np.zeros(3, np.uint64)}, ValueError, r"bases is of shape \(3,\), wanted \(2\*layers,\)"),
    (cuda.copy_blocks, {"bases": f32(2)}, TypeError, "bases is of float32, wanted int64"),
    (cuda.copy_blocks, {"block_bytes": 8}, ValueError, "block_bytes is 8, must be a multiple of 16"),
    (cuda.copy_blocks, {"block_bytes": 1.5}, TypeError, "block_bytes is of type float"),
    (cuda.copy_blocks, {"page_stride_bytes": 240}, ValueError, "page_stride_bytes is 240, must be at least 256"),
    (cuda.gather_blocks, {"staging": np.zeros(1023, np.uint8)}, ValueError, "staging has 1023 bytes, wanted 2 blocks"),
    (cuda.gather_blocks, {"staging": f32(256)}, TypeError, "staging is of float32, wanted uint8"),
    (cuda.gather_blocks, {"staging": frozen(np.zeros(1024, np.uint8))}, ValueError, "staging is read-only"),
    (cuda.gather_blocks, {"blocks": i64(1, 1)}, ValueError, r"blocks is of shape \(1, 1\), wanted \(n,\)"),
    (cuda.scatter_blocks, {"staging": np.zeros((2, 512), np.uint8)}, ValueError, r"staging is of shape \(2, 512\), wanted \(bytes,\)"),
    (cuda.merge_states, {"partial_lse": f32(2, T, HQ + 1)}, ValueError, "partial_lse is of shape .* Hq is 4 as in o"),
    (cuda.merge_states, {"partial_o": f32(T, HQ, D)}, ValueError, r"partial_o is of shape .* wanted \(parts, T, Hq, D\)"),
    (cuda.merge_states, {"partial_o": f32(4, T, HQ, D)[::2]}, ValueError, "partial_o is of shape .* contiguous"),
    (cuda.merge_states, {"lse": f16(T, HQ)}, TypeError, "lse is of float16, wanted float32"),
    (cuda.merge_states, {"o": np.broadcast_to(f32(1, HQ, D), (T, HQ, D))}, ValueError, "o"),
    (cuda.merge_states, {**RAGGED, "part_start": np.array([0, 2, 1, 5], np.int32)}, ValueError, r"part_start\[2\] is 1, wanted ascending numbers in 0 .. 5"),
    (cuda.merge_states, {**RAGGED, "part_start": np.array([0, 2, 3, 6], np.int32)}, ValueError, r"part_start\[3\] is 6"),
    (cuda.merge_states, {**RAGGED, "part_start": np.array([-1, 2, 3, 5], np.int32)}, ValueError, r"part_start\[0\] is -1"),
    (cuda.merge_states, {**RAGGED, "part_start": i32(T)}, ValueError, r"part_start is of shape \(3,\), wanted \(T\+1,\), where T is 3"),
    (cuda.rope, {"rope": 10000}, TypeError, "rope is or has .* int, wanted Rope"),
    (cuda.rope, {"rope": cuda.Rope(10000, D + 2)}, ValueError, "rope.rotary_dim is 18, must be at most 16"),
    (cuda.rope, {"rope": cuda.Rope(10000, 3)}, ValueError, "rope.rotary_dim is 3, must be a multiple of 2"),
    (cuda.rope, {"rope": cuda.Rope(-1, D)}, ValueError, "rope.theta is -1"),
    (cuda.rope, {"rope": cuda.Rope("a", D)}, TypeError, "rope.theta is of type str"),
    (cuda.rope, {"rope": cuda.Rope(10000, 1.5)}, TypeError, "rope.rotary_dim is of type float"),
    (cuda.rope, {"rope": cuda.Rope(10000, D, 1)}, TypeError, "rope.interleaved is of type int, wanted bool"),
    (cuda.rope, {"rope": cuda.Rope(10000, D, **LLAMA | {"high_freq_factor": 1})}, ValueError, "rope.high_freq_factor is 1"),
    (cuda.rope, {"positions": i64(T)}, TypeError, "positions is of int64, wanted int32"),
    (cuda.rope, {"k": f16(T, HKV, D + 2)}, ValueError, "k is of shape .* D is 16 as in q"),
    (cuda.rope, {"k": None, "k_out": f16(T, HKV, D)}, ValueError, "k_out is given without k"),
    (cuda.rope, {"k": f32(T, HKV, D)}, TypeError, "k is of another type than q"),
    (cuda.rope, {"q": frozen(f16(T, HQ, D))}, ValueError, "q_out is read-only"),
    (cuda.rms_norm, {"weight": f32(7)}, ValueError, r"weight is of shape \(7,\), wanted \(size,\), where size is 8 as in x"),
    (cuda.rms_norm, {"weight": f16(8)}, TypeError, "weight is of another type than x"),
    (cuda.rms_norm, {"y": f32(T, 9)}, ValueError, r"y is of shape \(3, 9\), wanted \(3, 8\)"),
    (cuda.rms_norm, {"x": f32()}, ValueError, r"x is of shape \(\), wanted \(..., size\)"),
    (cuda.rms_norm, {"epsilon": -1}, ValueError, "epsilon is -1"),
    (cuda.rms_norm, {"epsilon": None}, TypeError, "epsilon is of type NoneType"),
    (cuda.rms_norm, {"residual": f32(T, 16)[:, ::2]}, ValueError, "residual is of shape .* contiguous"),
    (cuda.rms_norm, {"residual": frozen(f32(T, 8))}, ValueError, "residual is read-only"),
    (cuda.silu_and_mul, {"x": f32(T, 7)}, ValueError, r"x is of shape \(3, 7\), wanted an even last dimension"),
    (cuda.sample, {"tokens": i64(B)}, TypeError, "tokens is of int64, wanted int32"),
    (cuda.sample, {"tokens": frozen(i32(B))}, ValueError, "tokens is read-only"),
    (cuda.sample, {"logits": f32(9)}, ValueError, r"logits is of shape \(9,\), wanted \(B, vocab\)"),
    (cuda.sample, {"logits": f32(B, 0)}, ValueError, "vocab is 0, must be at least 1"),
    (cuda.sample, {"temperature": np.ones(B)}, TypeError, "temperature is of float64, wanted float32"),
    (cuda.sample, {"temperature": 0.5}, TypeError, "temperature is of type float, wanted an array"),
    (cuda.sample, {"top_k": i32(B + 1)}, ValueError, "top_k is of shape"),
    (cuda.sample, {"steps": i32(B)}, TypeError, "steps is of int32, wanted int64"),
    (cuda.sample, {"seed": -1}, ValueError, "seed is -1"),
    (cuda.sample, {"logprobs": frozen(f32(B))}, ValueError, "logprobs is read-only"),
    (cuda.KvCache, {"v": f16(PAGES + 1, P, HKV, D)}, ValueError, "v is of shape .* pages is 6 as in k"),
    (cuda.KvCache, {"k": f32(PAGES, P, HKV, D)}, ValueError, "v is of another type than k"),
    (cuda.KvCache, {"k": f16(PAGES, P, D)}, ValueError, r"k is of shape .* wanted \(pages, P, Hkv, D\)"),
    (cuda.KvCache, {"layout": "DHN"}, ValueError, 'layout is "DHN", wanted NHD or HND'),
    (cuda.KvCache, {"layout": None}, TypeError, "layout is of type NoneType"),
    (cuda.KvCache, {"k": f16(PAGES, P, HKV, D + 4)[..., :D]}, ValueError, "cache.k_strides.head is 20, must be a multiple of 16 bytes"),
    (cuda.KvCache, {"k_scale": f32(1)}, ValueError, "k_scale is given, but the cache is f16, wanted e4m3"),
    (cuda.KvCache, {**SCALED, "k_scale": f32(3)}, ValueError, r"k_scale is of shape \(3,\), wanted \(\), \(1,\) or \(Hkv,\)"),
    (cuda.KvCache, {**SCALED, "k_scale": 0.5}, TypeError, "k_scale is of type float"),
    (cuda.KvCache, {**SCALED, "k_scale": np.ones(2)}, TypeError, "k_scale is of float64"),
    (cuda.KvCache, {**SCALED, "k_scale": f32(1), "v_scale": f32(2)}, ValueError, "v_scale has 2 elements, wanted 1 as in k_scale"),
    (cuda.Workspace, {"shape": "decode"}, TypeError, "shape is or has .* str, wanted AttentionShape"),
    (cuda.Workspace, {"shape": shape(mode="encode")}, ValueError, 'shape.mode is "encode", wanted decode, prefill or mixed'),
    (cuda.Workspace, {"shape": shape(max_batch=0)}, ValueError, "shape.max_batch is 0, must be at least 1"),
    (cuda.Workspace, {"shape": shape(max_batch=2**31)}, ValueError, "shape.max_batch is 2147483648, not in"),
    (cuda.Workspace, {"shape": shape(num_q_heads=3)}, ValueError, "shape.num_q_heads is 3, must be a multiple"),
    (cuda.Workspace, {"shape": shape(kv_dtype="f64")}, ValueError, 'shape.kv_dtype is "f64", wanted f16, bf16 or e4m3'),
    (cuda.Workspace, {"shape": shape(kv_dtype="f32")}, ValueError, "shape.kv_dtype is f32"),
    (cuda.Workspace, {"shape": shape(page_size=1.5)}, TypeError, "shape.page_size is of type float"),
    (cuda.Workspace, {"shape": shape(head_dim=1 << 20)}, llmd.UnsupportedError, "shape.head_dim is 1048576"),
    (cuda.Workspace, {"memory": np.zeros(8, np.uint8)}, ValueError, "memory has 8 bytes, wanted at least"),
    (cuda.Workspace, {"memory": f32(1 << 16)}, TypeError, "memory is of float32, wanted uint8"),
    (cuda.Workspace, {"memory": np.zeros((2, 1 << 16), np.uint8)}, ValueError, "memory is of shape"),
    (cuda.Workspace, {"memory": frozen(np.zeros(1 << 16, np.uint8))}, ValueError, "memory is read-only"),
    (cuda.Workspace, {"memory": np.zeros((1 << 21) + 1, np.uint8)[1:]}, ValueError, "workspace is not a multiple of 16 bytes"),
    (of_plan, {"pages": None}, TypeError, "pages is or has"),
    (of_plan, {"pages": pages(seq_lens=None)}, ValueError, "pages.seq_lens is None"),
    (of_plan, {"pages": pages(seq_lens=i32(B + 1))}, ValueError, "pages.seq_lens is of shape .* B is 2 as in pages.pages"),
    (of_plan, {"pages": pages(seq_lens=i64(B))}, TypeError, "pages.seq_lens is of int64"),
    (of_plan, {"pages": pages(pages=i32(5, 3), seq_lens=i32(5))}, ValueError, "batch is 5, must be at most 4"),
    (of_plan, {"pages": pages(pages=i32(B, 6)[:, ::2])}, ValueError, "pages.pages has a stride of 2"),
    (of_plan, {"pages": pages(indptr=i32(3))}, ValueError, "pages.seq_lens and pages.indptr are both given"),
    (of_plan, {"pages": pages(last_page_len=i32(B))}, ValueError, "pages.last_page_len is given without pages.indptr"),
    (of_plan, {"pages": compressed(last_page_len=None)}, ValueError, "pages.last_page_len is None"),
    (of_plan, {"pages": compressed(indptr=i32(0))}, ValueError, r"pages.indptr is of shape \(0,\), wanted \(B\+1,\)"),
    (of_plan, {"pages": compressed(pages=i32(2, 2))}, ValueError, "pages.pages is of shape"),
    (of_plan, {"q_start": i32(3)}, ValueError, "q_start is given, but the workspace is for decode"),
    (of_plan, {"mode": "prefill", "q_start": i32(4)}, ValueError, r"q_start is of shape \(4,\), wanted \(B\+1,\), where B is 2"),
    (of_plan, {"mode": "prefill", "q_start": i64(3)}, TypeError, "q_start is of int64"),
    (of_attention, {"q": f16(T, HQ, D)}, ValueError, "q is of shape .* T is 2 as in the plan's batch"),
    (of_attention, {"q": f16(B, HQ + 1, D)}, ValueError, "q is of shape .* Hq is 4 as in shape.num_q_heads"),
    (of_attention, {"mode": "prefill", "q": f16(9, HQ, D), "o": f16(9, HQ, D)}, ValueError, "num_tokens is 9, must be at most 8"),
    (of_attention, {"q": f32(B, HQ, D)}, ValueError, "q_dtype is f32"),
    (of_attention, {"q": np.zeros((B, HQ, D), np.uint16), "q_dtype": "bf16"}, ValueError, "q_dtype is bf16, must be that of the cache"),
    (of_attention, {"o": f16(T, HQ, D)}, ValueError, "o is of shape"),
    (of_attention, {"o": frozen(f16(B, HQ, D))}, ValueError, "o is read-only"),
    (of_attention, {"o": Array(np.broadcast_to(f16(1, HQ, D), (B, HQ, D)))}, ValueError, "o_strides"),
    (of_attention, {"lse": f32(B, HQ, 1)}, ValueError, "lse is of shape"),
    (of_attention, {"lse": f16(B, HQ)}, TypeError, "lse is of float16"),
    (of_attention, {"sinks": f32(HKV)}, ValueError, "sinks is of shape .* Hq is 4"),
    (of_attention, {"scale": float("nan")}, ValueError, "scale is nan"),
    (of_attention, {"scale": "1"}, TypeError, "scale is of type str"),
    (of_attention, {"validate": 1}, TypeError, "validate is of type int, wanted bool"),
    (of_attention, {"cache": cuda.KvCache(*f16(2, PAGES, P, 1, D))}, ValueError, "cache.num_kv_heads is 1, must be shape.num_kv_heads, 2"),
    (of_attention, {"cache": cuda.KvCache(*np.zeros((2, PAGES, P, HKV, D), np.uint16), dtype="bf16")}, ValueError, "cache.dtype is bf16"),
    (of_attention, {"cache": None}, TypeError, "cache is of type NoneType, wanted KvCache"),
]  # fmt: skip


@pytest.mark.parametrize("function", GOOD, ids=lambda f: f.__name__)
def test_the_good_arguments_are_good(function):
    function(**GOOD[function])


@pytest.mark.parametrize("function, wrong, kind, message", BAD, ids=[f"{f.__name__}-{i}" for i, (f, *_) in enumerate(BAD)])
def test_bad_arguments(function, wrong, kind, message):
    with pytest.raises(kind, match=message):
        function(**{**GOOD[function], **wrong})


def test_an_error_word_takes_what_would_be_raised():
    error = i64(3)
    cuda.append_kv(**GOOD[cuda.append_kv] | {"slots": np.array([0, 24, 99]), "error": error})
    assert error.tolist() == [3, 1, 24]


def test_layers_that_differ():
    with pytest.raises(ValueError, match=r"caches\[1\] has"):
        cuda.block_bases([cache(), cuda.KvCache(*f16(2, PAGES, P, HKV, 2 * D))])
    with pytest.raises(ValueError, match="caches: the pages of k have strides"):
        cuda.block_bases([cuda.KvCache(*f16(2, PAGES, P, 2 * HKV, D)[:, :, :, :HKV])])
    with pytest.raises(ValueError, match="caches has no elements"):
        cuda.block_bases([])
    with pytest.raises(TypeError, match=r"caches\[0\] is of type int"):
        cuda.block_bases([1])


@pytest.mark.parametrize("kind", [cuda.Backend, cuda.Plan])
def test_results_are_not_made_by_hand(kind):
    with pytest.raises(TypeError, match="is not made directly"):
        kind()
