"""How arrays come in: every form of the DLPack protocol, and what happens to what is no such array."""

import concurrent.futures
import re

import dlpack_arrays as da
import numpy as np
import pytest
from dlpack_arrays import Array

import llmd
from llmd import cuda


def result(x):
    """A function of `x` that depends on every element."""
    y = np.zeros((2, 2), np.float32)
    cuda.silu_and_mul(x, y)
    return y


VALUES = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
WANTED = VALUES[:, :2] / (1 + np.exp(-VALUES[:, :2])) * VALUES[:, 2:]


@pytest.mark.parametrize("version", [None, (1, 0), (1, 1), (1, 9)])
@pytest.mark.parametrize("strides", [True, False])
@pytest.mark.parametrize("offset", [0, 64])
def test_versions(version, strides, offset):
    array = Array(VALUES, version=version, strides=strides, offset=offset)
    np.testing.assert_allclose(result(array), WANTED, rtol=1e-5)
    assert array.freed == 1 and array.names == [b"used_dltensor" if version is None else b"used_dltensor_versioned"]
    asked = [{"max_version": (1, 1)}] + [{}] * (version is None)
    assert array.calls == asked  # no stream for memory of the host


def test_results_are_written_in_place():
    out = Array(np.zeros((2, 2), np.float32))
    cuda.silu_and_mul(VALUES, out)
    np.testing.assert_allclose(out.array, WANTED, rtol=1e-5)
    assert out.freed == 1


def test_inputs_may_be_read_only():
    frozen = VALUES.copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(result(Array(frozen, flags=da.READ_ONLY)), WANTED, rtol=1e-5)
    np.testing.assert_allclose(result(Array(VALUES, flags=da.COPIED)), WANTED, rtol=1e-5)


def test_page_locked_memory_is_memory_of_the_host():
    np.testing.assert_allclose(result(Array(VALUES, device=(da.CUDA_HOST, 0))), WANTED, rtol=1e-5)
    np.testing.assert_allclose(result(Array(VALUES, says_device=(da.CUDA_HOST, 0))), WANTED, rtol=1e-5)  # torch's


OUT = np.zeros((2, 2), np.float32)
BAD = {
    "read-only": (lambda: Array(OUT, flags=da.READ_ONLY), ValueError, "y is read-only"),
    "copied": (lambda: Array(OUT, flags=da.COPIED), ValueError, "y was copied"),
    "other version": (lambda: Array(OUT, version=(2, 0)), ValueError, "y's __dlpack__ gives DLPack 2.0, wanted 1"),
    "used": (lambda: Array(OUT, name=b"used_dltensor_versioned"), ValueError, 'capsule "used_dltensor_versioned"'),
    "other capsule": (lambda: Array(OUT, name=b"arrow_array"), ValueError, 'y.*"arrow_array"'),
    "no capsule": (lambda: Array(OUT, result="text"), TypeError, "y's __dlpack__ gives str, wanted a capsule"),
    "fails": (lambda: Array(OUT, result=BufferError("requires grad")), ValueError, "y's .*BufferError: requires grad"),
    "fails oddly": (lambda: Array(OUT, result=TypeError("no")), ValueError, "y's __dlpack__ failed: TypeError: no"),
    "device fails": (lambda: Array(OUT, says_device=RuntimeError("gone")), ValueError, "y's __dlpack_device__.*gone"),
    "device of text": (lambda: Array(OUT, says_device="cpu"), TypeError, "y's __dlpack_device__ gives str"),
    "device of texts": (lambda: Array(OUT, says_device=("cpu", 0)), ValueError, "y's __dlpack_device__"),
    "device below 0": (lambda: Array(OUT, says_device=(1, -1)), ValueError, "y's __dlpack_device__"),
    "device of others": (lambda: Array(OUT, device=(8, 0)), ValueError, "y is on a device of DLPack's type 8"),
    "two devices": (lambda: Array(OUT, says_device=(1, 5)), ValueError, "y is on cpu, but its __dlpack_device__"),
    "no data": (lambda: Array(OUT, data=False), ValueError, "y has no data"),
    "size below 0": (lambda: Array(OUT, shape=(2, -2)), ValueError, re.escape("y is of shape (2, -2)")),
    "size past 2^63": (lambda: Array(OUT, shape=(2**62, 2**62)), ValueError, "y is of shape .*2\\^63"),
    "integers": (lambda: Array(OUT, dtype=da.Type(da.INT, 32)), TypeError, "y is of int32, wanted float32"),
    "unsigned": (lambda: np.zeros((2, 2), np.uint16), TypeError, "y is of uint16, wanted .*dtype="),
    "doubles": (lambda: np.zeros((2, 2)), TypeError, "y is of float64"),
    "bool": (lambda: np.zeros((2, 2), bool), TypeError, "y is of bool"),
    "other fp8": (lambda: Array(OUT, dtype=da.Type(12, 8)), TypeError, "y is of DLPack's type 12 of 8 bits"),
    "vectors": (lambda: Array(OUT, dtype=da.Type(da.FLOAT, 32, 4)), TypeError, "y is of float32 x 4"),
    "half": (lambda: np.zeros((2, 2), np.float16), TypeError, "y is of another type than x"),
    "gaps": (lambda: np.zeros((2, 4), np.float32)[:, ::2], ValueError, "y is of shape .* contiguous"),
    "backward": (lambda: np.zeros((2, 2), np.float32)[::-1], ValueError, "y is of shape .* contiguous"),
    "shape": (lambda: np.zeros((2, 3), np.float32), ValueError, re.escape("y is of shape (2, 3), wanted (2, 2)")),
    "rank": (lambda: np.zeros(4, np.float32), ValueError, re.escape("y is of shape (4,), wanted (2, 2)")),
    "scalar": (lambda: np.zeros((), np.float32), ValueError, re.escape("y is of shape (), wanted (2, 2)")),
    "list": (lambda: [0.0] * 4, TypeError, "y is of type list, wanted an array with __dlpack__"),
    "None": (lambda: None, TypeError, "y is of type NoneType"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays(what):
    make, kind, message = BAD[what]
    array = make()
    with pytest.raises(kind, match=message):
        cuda.silu_and_mul(VALUES, array)
    if isinstance(array, Array) and array.names and array.names[0].startswith(b"used_dltensor"):
        assert array.freed == (0 if what == "used" else 1)  # whatever happened, exactly once


def test_what_asks_to_stop_is_passed_on():
    for exception in (KeyboardInterrupt(), MemoryError()):
        array = Array(OUT)

        def fail(exception=exception, **_):
            raise exception

        array.__class__ = type("Failing", (Array,), {"__dlpack__": lambda self, **_: fail()})
        with pytest.raises(type(exception)):
            cuda.silu_and_mul(VALUES, array)


def test_causes_are_kept():
    with pytest.raises(ValueError) as raised:
        cuda.silu_and_mul(VALUES, Array(OUT, result=BufferError("requires grad")))
    assert isinstance(raised.value.__cause__, BufferError)


def test_strides_are_honoured():
    """Views of a fused projection, a transposed table, one token: strides of single elements are whatever they are."""
    fused = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    cache = np.zeros((2, 3, 4, 1, 8), np.float16)
    cuda.append_kv(cuda.KvCache(*cache), fused[:, 1:2], fused[:, 2:3], slots=np.array([0, 5]))
    assert (cache[0, 0, 0, 0] == fused[0, 1]).all() and (cache[1, 1, 1, 0] == fused[1, 2]).all()
    one = np.lib.stride_tricks.as_strided(fused, (1, 1, 8), (-4, 2**40, 4))
    cuda.append_kv(cuda.KvCache(*cache), one, one, slots=np.array([2]))
    assert (cache[0, 0, 2, 0] == fused[0, 0]).all()


def test_types_that_numpy_lacks():
    x = da.bf16(VALUES)
    y = np.zeros((2, 2), np.uint16)
    cuda.silu_and_mul(x, y, dtype="bf16")
    np.testing.assert_allclose(da.from_bf16(y), WANTED, rtol=1e-2)
    z = np.zeros((2, 2), np.uint16)
    cuda.silu_and_mul(Array(x, dtype=da.BF16), Array(z, dtype=da.BF16))
    assert (y == z).all()
    cuda.silu_and_mul(Array(x, dtype=da.BF16), z, dtype="bf16")  # each may say it in its way
    with pytest.raises(TypeError, match="dtype is f16, but x is of bfloat16"):
        cuda.silu_and_mul(Array(x, dtype=da.BF16), z, dtype="f16")
    with pytest.raises(TypeError, match="dtype is f32, but x is of uint16"):
        cuda.silu_and_mul(x, z, dtype="f32")
    with pytest.raises(ValueError, match='dtype is "float16", wanted f32, f16, bf16 or e4m3'):
        cuda.silu_and_mul(x, z, dtype="float16")
    stored = np.zeros((2, 4, 4, 1, 16), np.uint8)
    for k, v in (stored, (Array(stored[0], dtype=da.FP8), Array(stored[1], dtype=da.FP8))):
        dtype = "e4m3" if isinstance(k, np.ndarray) else None
        assert cuda.KvCache(k, v, dtype=dtype).dtype == "e4m3"


def test_a_cache_keeps_its_arrays_and_a_call_does_not():
    k, v = (Array(a) for a in np.zeros((2, 4, 4, 1, 8), np.float16))
    cache = cuda.KvCache(k, v)
    new = Array(np.ones((1, 1, 8), np.float16))
    cuda.append_kv(cache, new, new, slots=np.array([0]))
    assert new.freed == 2 and k.freed == v.freed == 0
    del cache
    assert k.freed == v.freed == 1


def test_a_plan_keeps_its_arrays():
    shape = cuda.AttentionShape("decode", 2, 2, 1, 8, "f16", 4)
    table = Array(np.zeros((1, 2), np.int32))
    plan = cuda.Workspace(shape).plan(cuda.PageList(table, seq_lens=np.ones(1, np.int32)))
    assert table.freed == 0
    del plan
    assert table.freed == 1


def test_stale_plans():
    workspace = cuda.Workspace(cuda.AttentionShape("decode", 2, 2, 1, 8, "f16", 4))
    pages = cuda.PageList(np.zeros((1, 2), np.int32), seq_lens=np.ones(1, np.int32))
    first, second = workspace.plan(pages), workspace.plan(pages)
    assert repr(first) == "Plan(batch=1, of an earlier step)" and repr(second) == "Plan(batch=1)"
    q, o = np.ones((2, 1, 2, 8), np.float16)
    cache = cuda.KvCache(*np.zeros((2, 4, 4, 1, 8), np.float16))
    second.attention(q, o, cache)
    with pytest.raises(llmd.FailedPreconditionError, match="earlier step"):
        first.attention(q, o, cache)


def test_threads_take_turns_in_a_workspace():
    shape = cuda.AttentionShape("decode", 8, 8, 2, 64, "f16", 16)
    rng = np.random.default_rng(1)
    cache = cuda.KvCache(*rng.standard_normal((2, 64, 16, 2, 64)).astype(np.float16))
    pages = cuda.PageList(rng.permutation(64).astype(np.int32).reshape(8, 8), seq_lens=np.full(8, 128, np.int32))
    plan = cuda.Workspace(shape).plan(pages)
    q = rng.standard_normal((8, 8, 64)).astype(np.float16)
    wanted = np.zeros_like(q)
    plan.attention(q, wanted, cache)

    def work(_):
        o = np.zeros_like(q)
        plan.attention(q, o, cache)
        return (o == wanted).all()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


def test_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors are not tested")
    x = torch.tensor(VALUES).to(torch.bfloat16)
    y = torch.zeros(2, 2, dtype=torch.bfloat16)
    cuda.silu_and_mul(x, y)
    np.testing.assert_allclose(y.float().numpy(), WANTED, rtol=1e-2)
    kv = torch.zeros(4, 2, 8, 2, 64, dtype=torch.float16)
    cache = cuda.KvCache(kv[:, 0], kv[:, 1])
    qkv = torch.randn(3, 8, 64, dtype=torch.float16)
    cuda.append_kv(cache, qkv[:, 4:6], qkv[:, 6:8], slots=torch.tensor([0, 9, -1]))
    assert (kv[0, 0, 0] == qkv[0, 4:6]).all() and (kv[1, 1, 1] == qkv[1, 6:8]).all()
    stored = torch.zeros(2, 4, 8, 2, 64, dtype=torch.uint8)
    assert cuda.KvCache(stored[0], stored[1], dtype="e4m3").dtype == "e4m3"
    cuda.append_kv(cuda.KvCache(*stored.view(torch.float8_e4m3fn)), qkv[:, 4:6], qkv[:, 6:8], slots=torch.arange(3))
    assert (stored[0, 0, :3].view(torch.float8_e4m3fn) == qkv[:, 4:6].to(torch.float8_e4m3fn)).all()
    with pytest.raises(ValueError, match="y's __dlpack__ failed: BufferError.*grad"):
        cuda.silu_and_mul(x, y.float().requires_grad_())
