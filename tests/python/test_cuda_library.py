"""The CUDA library is found and called as it should be, without a GPU: a fake one notes streams and pointers."""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import types

import dlpack_arrays as da
import numpy as np
import pytest
from dlpack_arrays import Array

import llmd
from llmd import cuda

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang-14"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a fake CUDA library with")


class Note(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_char * 32),
        ("stream", ctypes.c_uint64),
        ("pointers", ctypes.c_uint64 * 4),
        ("numbers", ctypes.c_int64 * 8),
        ("calls", ctypes.c_uint32),
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fake_cuda")


def build(folder, name, *flags):
    path = folder / name
    if not path.exists():
        command = [COMPILER, "-std=c11", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-shared", "-fPIC"]
        include = f"-I{ROOT / 'include'}"
        command += [include, *flags, str(ROOT / "tests/python/fake_cuda.c"), f"-Wl,-soname,{name}", "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def library(folder):
    return build(folder, "libllmd_cuda.so", "-DABI=1")


@pytest.fixture
def fake(library, monkeypatch):
    """The fake library, found for all CUDA arrays."""
    found = cuda.backend("cuda", library)
    monkeypatch.setattr(llmd._cuda_backend, "_found", lambda: found)
    handle = ctypes.CDLL(str(library))
    handle.note = Note.in_dll(handle, "fake_note")
    handle.code = ctypes.c_int.in_dll(handle, "fake_code")
    yield handle
    handle.code.value = 0


def on_gpu(array, number=0, **how):
    """Said to be in memory of a CUDA device: whoever looked into it there would see nothing wrong here."""
    return Array(np.ascontiguousarray(array), device=(da.CUDA, number), **how)


def gpu_cache(**how):
    return cuda.KvCache(*(on_gpu(a, **how) for a in np.zeros((2, 4, 16, 2, 128), np.float16)))


def append(cache=None, **how):
    k = on_gpu(np.ones((3, 2, 128), np.float16))
    slots = on_gpu(np.array([99999, -1, 2]))  # out of range, but nobody looks
    cuda.append_kv(cache or gpu_cache(), k, k, slots=slots, **how)
    return k, slots


# --- finding it ---


def find(tmp_path, code="", **environment):
    program = (
        "import llmd.cuda\n"
        "try:\n    print(llmd.cuda.backend('cuda').path)\n"
        "except llmd.Error as error:\n    print(type(error).__name__, error)\n" + code
    )
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(llmd.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    environment = {k: v for k, v in environment.items() if v is not None}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CLEAN = {"LLMD_CUDA_LIBRARY": None, "LD_LIBRARY_PATH": None}


def test_it_is_found_by_the_environment(tmp_path, library):
    assert find(tmp_path, **CLEAN | {"LLMD_CUDA_LIBRARY": str(library)}) == str(library)


def test_only_there_if_it_says_so(tmp_path, library):
    text = find(tmp_path, **CLEAN | {"LLMD_CUDA_LIBRARY": "/nowhere.so", "LD_LIBRARY_PATH": str(library.parent)})
    assert text.startswith("UnavailableError the CUDA library is not found:\n  environment variable LLMD_CUDA_LIBRARY: /nowhere.so")
    assert "loader" not in text


def test_it_is_found_in_its_package(tmp_path, library):
    (tmp_path / "llmd_cuda").mkdir()
    (tmp_path / "llmd_cuda" / "__init__.py").touch()
    shutil.copy(library, tmp_path / "llmd_cuda" / "libllmd_cuda.so")
    assert find(tmp_path, **CLEAN) == str(tmp_path / "llmd_cuda" / "libllmd_cuda.so")


def test_it_is_found_by_the_loader(tmp_path, library):
    assert find(tmp_path, **CLEAN | {"LD_LIBRARY_PATH": str(library.parent)}) == "libllmd_cuda.so"


def test_it_says_where_it_was_looked_for(tmp_path):
    text = find(tmp_path, **CLEAN)
    assert text.startswith("UnavailableError the CUDA library is not found:\n  the system's loader (pip install llmd[cuda]): libllmd_cuda.so.")
    assert "libllmd_cuda.so: cannot open shared object file" in text


def test_another_version_is_refused(tmp_path, folder):
    other = build(folder, "libllmd_cuda_other.so", "-DABI=2")
    text = find(tmp_path, **CLEAN | {"LLMD_CUDA_LIBRARY": str(other)})
    assert text.startswith("FailedPreconditionError environment variable LLMD_CUDA_LIBRARY: ")
    assert "has ABI 2, wanted 1: install the versions of llmd and llmd-cuda that go together" in text


def test_a_library_of_others_is_refused(tmp_path, folder):
    other = build(folder, "libother.so", "-DWITHOUT_ENTRY")
    assert "llmd_attention_cuda" in find(tmp_path, **CLEAN | {"LLMD_CUDA_LIBRARY": str(other)})


def test_nothing_is_loaded_before_it_is_needed(tmp_path, library):
    code = "import sys; print([m for m in ('torch', 'cupy', 'jax', 'llmd_cuda') if m in sys.modules])"
    assert find(tmp_path, code, **CLEAN | {"LLMD_CUDA_LIBRARY": str(library)}).endswith("[]")
    light = "import sys, llmd; print('llmd.cuda' in sys.modules)"
    path = str(pathlib.Path(llmd.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.strip() == "False"


def test_a_file_of_ones_own(library):
    own = cuda.backend("cuda", library)
    assert own.path == str(library) and own.name == "cuda" and repr(own) == f"Backend('cuda', path={str(library)!r})"
    with pytest.raises(ValueError, match='path is given for the backend "cpu"'):
        cuda.backend("cpu", library)
    with pytest.raises(ValueError, match='backend is "gpu", wanted cpu, reference or cuda'):
        cuda.backend("gpu")


# --- calling it ---


class Torchish:
    cuda_stream = 0x1234


class Cupyish:
    ptr = 0x2345


class Protocol:
    cuda_stream = 1  # torch's streams may have both

    def __cuda_stream__(self):
        return (0, 0x3456)


@pytest.mark.parametrize(
    "stream, handle, dlpack",
    [
        (0, 0, 1),
        (1, 0, 1),
        (2, 2, 2),
        (0x7FFF_1234, 0x7FFF_1234, 0x7FFF_1234),
        (2**63 - 1, 2**63 - 1, 2**63 - 1),
        (Torchish(), 0x1234, 0x1234),
        (Cupyish(), 0x2345, 0x2345),
        (Protocol(), 0x3456, 0x3456),
        (types.SimpleNamespace(cuda_stream=0), 0, 1),
    ],
)
def test_streams(fake, stream, handle, dlpack):
    k, slots = append(stream=stream)
    assert fake.note.function == b"append_kv" and fake.note.stream == handle
    assert k.calls == [{"stream": dlpack, "max_version": (1, 1)}] * 2 and slots.calls[0]["stream"] == dlpack


def test_streams_and_old_exporters(fake):
    x, y = (on_gpu(np.zeros(n, np.float32), version=None) for n in (4, 2))
    cuda.silu_and_mul(x, y, stream=7)
    assert x.calls == [{"stream": 7, "max_version": (1, 1)}, {"stream": 7}] and x.freed == y.freed == 1


@pytest.mark.parametrize(
    "stream, kind, message",
    [
        (None, ValueError, "stream is not given, and no array is torch's or CuPy's"),
        (True, TypeError, "stream is of type bool"),
        (1.5, TypeError, "stream is of type float"),
        ("1", TypeError, "stream is of type str, wanted an integer, or an object with __cuda_stream__"),
        (-1, ValueError, "stream is -1"),
        (2**63, ValueError, "stream is 9223372036854775808"),
        (types.SimpleNamespace(cuda_stream="a"), TypeError, "stream.cuda_stream is of type str"),
        (types.SimpleNamespace(ptr=-5), ValueError, "stream.ptr is -5"),
        (types.SimpleNamespace(__cuda_stream__=lambda: 5), TypeError, "stream's __cuda_stream__ gives no"),
    ],
)
def test_bad_streams(fake, stream, kind, message):
    calls = fake.note.calls
    with pytest.raises(kind, match=message):
        append(stream=stream)
    assert fake.note.calls == calls


def framework(monkeypatch, name, array_type, **streams):
    """A module as torch's or CuPy's, imported, with arrays and current streams."""
    module = types.ModuleType(name)
    kind = type(array_type, (Array,), {})
    setattr(module, array_type, kind)
    module.cuda = types.SimpleNamespace(**streams)
    monkeypatch.setitem(sys.modules, name, module)
    return kind


def test_torchs_current_stream(fake, monkeypatch):
    asked = []

    def current_stream(device):
        asked.append(device)
        return types.SimpleNamespace(cuda_stream=0xAA)

    tensor = framework(monkeypatch, "torch", "Tensor", current_stream=current_stream)
    x, y = (tensor(np.zeros(n, np.float32), device=(da.CUDA, 3)) for n in (4, 2))
    cuda.silu_and_mul(x, y)
    assert fake.note.stream == 0xAA and asked == [3]
    cuda.silu_and_mul(x, y, stream=5)
    assert fake.note.stream == 5
    other = on_gpu(np.zeros(2, np.float32), 3)
    cuda.silu_and_mul(x, other)  # one is enough
    assert fake.note.stream == 0xAA
    # What torch's current stream has written, that stream need not wait for.
    assert [call["stream"] for call in x.calls] == [-1, 5, -1] and other.calls[0]["stream"] == 0xAA
    cuda.silu_and_mul(x, y, stream=types.SimpleNamespace(cuda_stream=0xAA))
    assert x.calls[-1]["stream"] == -1


def test_cupys_current_stream(fake, monkeypatch):
    stream = types.SimpleNamespace(ptr=0xBB)
    ndarray = framework(monkeypatch, "cupy", "ndarray", get_current_stream=lambda: stream)
    cuda.silu_and_mul(*(ndarray(np.zeros(n, np.float32), device=(da.CUDA, 0)) for n in (4, 2)))
    assert fake.note.stream == 0xBB
    torch_stream = types.SimpleNamespace(cuda_stream=0xBB)
    tensor = framework(monkeypatch, "torch", "Tensor", current_stream=lambda device: torch_stream)
    both = ndarray(np.zeros(4, np.float32), device=(da.CUDA, 0)), tensor(np.zeros(2, np.float32), device=(da.CUDA, 0))
    cuda.silu_and_mul(*both)
    torch_stream.cuda_stream = 0xCC
    with pytest.raises(ValueError, match="current streams of torch and CuPy differ"):
        cuda.silu_and_mul(*both)


def test_a_half_imported_framework_is_none(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with pytest.raises(ValueError, match="stream is not given"):
        append()


def test_pointers_and_strides(fake):
    k, slots = append(stream=1)
    assert list(fake.note.pointers)[1:] == [k.array.ctypes.data, slots.array.ctypes.data, 0]  # no error word of its own
    assert list(fake.note.numbers) == [256, 128, 3, 4, 16 * 2 * 128, 1, 0, 1]


def test_a_cache_waits_for_nothing():
    k, v = (on_gpu(a) for a in np.zeros((2, 4, 16, 2, 128), np.float16))
    cache = cuda.KvCache(k, v)
    assert k.calls == v.calls == [{"stream": -1, "max_version": (1, 1)}] and cache.device == "cuda:0"


def test_scales(fake):
    scale = on_gpu(np.ones(2, np.float32))
    stored = [on_gpu(a, dtype=da.FP8) for a in np.zeros((2, 4, 16, 2, 128), np.uint8)]
    append(cuda.KvCache(*stored, k_scale=scale, v_scale=scale), stream=1)
    assert list(fake.note.numbers)[5:7] == [3, 1]
    with pytest.raises(ValueError, match="v_scale is on cpu, but k is on cuda:0"):
        cuda.KvCache(*stored, v_scale=np.ones(1, np.float32))


def test_workspaces_and_plans(fake):
    shape = cuda.AttentionShape("decode", 4, 8, 2, 128, "f16", 16)
    assert cuda.backend("cuda").workspace_bytes(shape) == 1024
    with pytest.raises(ValueError, match="memory is None, wanted an array of 1024 bytes"):
        cuda.Workspace(shape, backend="cuda")
    with pytest.raises(ValueError, match="memory has 1023 bytes, wanted at least 1024"):
        cuda.Workspace(shape, on_gpu(np.zeros(1023, np.uint8)), stream=1)
    memory = on_gpu(np.zeros(2048, np.uint8))
    workspace = cuda.Workspace(shape, memory, stream=6)
    assert (fake.note.function, fake.note.stream) == (b"init_workspace", 6)
    assert (fake.note.pointers[0], fake.note.numbers[0]) == (memory.array.ctypes.data, 2048)
    assert repr(workspace) == "Workspace(2048 bytes on cuda:0, mode='decode')" and workspace.backend.name == "cuda"

    table = Array(np.zeros((3, 9), np.int32)[:, :5], device=(da.CUDA, 0))
    plan = workspace.plan(cuda.PageList(table, seq_lens=on_gpu(np.ones(3, np.int32))), stream=7)
    assert (fake.note.function, fake.note.stream, list(fake.note.numbers)[:3]) == (b"plan", 7, [3, 9, 5])
    assert fake.note.pointers[0] == table.array.ctypes.data

    q, o = (on_gpu(np.zeros((3, 8, 128), np.uint16), dtype=da.BF16) for _ in range(2))
    plan.attention(q, o, gpu_cache(), stream=8, early_start=True, zero_padding=True)
    assert (fake.note.function, fake.note.stream, list(fake.note.numbers)[:3]) == (b"attention", 8, [7, 2, 2])
    plan.attention(q, o, gpu_cache(), stream=8, validate=False)
    assert fake.note.numbers[0] == 0

    assert workspace.check(stream=9) is None and fake.note.stream == 9
    fake.code.value = 4
    assert workspace.check(stream=9) == cuda.DataError("page", 1, 2, 3)


def test_unsupported_shapes(fake):
    shape = cuda.AttentionShape("decode", 4, 8, 2, 96, "f16", 16)
    with pytest.raises(llmd.UnsupportedError, match="the fake fails"):
        cuda.backend("cuda").workspace_bytes(shape)
    with pytest.raises(llmd.UnsupportedError):
        cuda.Workspace(shape, on_gpu(np.zeros(2048, np.uint8)), stream=1)


@pytest.mark.parametrize("code, kind", [(1, ValueError), (2, llmd.UnsupportedError), (3, llmd.Error), (4, llmd.DataLossError)])
def test_codes(fake, code, kind):
    fake.code.value = code
    with pytest.raises(kind, match="the fake fails"):
        append(stream=1)


def test_all_functions(fake):
    """Each goes to its entry of the table, on its stream."""
    x = lambda *shape: on_gpu(np.zeros(shape, np.float32))  # noqa: E731
    i32 = lambda *shape: on_gpu(np.zeros(shape, np.int32))  # noqa: E731
    i64 = lambda *shape: on_gpu(np.zeros(shape, np.int64))  # noqa: E731
    rope = cuda.Rope(10000, 64)
    sizes = {"page_stride_bytes": 64, "block_bytes": 64}
    calls = {
        "copy_blocks": lambda: cuda.copy_blocks(i64(4), i64(1, 2), **sizes, stream=3),
        "gather_blocks": lambda: cuda.gather_blocks(i64(4), i64(1), on_gpu(np.zeros(256, np.uint8)), **sizes, stream=3),
        "scatter_blocks": lambda: cuda.scatter_blocks(i64(4), i64(1), on_gpu(np.zeros(256, np.uint8)), **sizes, stream=3),
        "merge_states": lambda: cuda.merge_states(x(2, 3, 4, 8), x(2, 3, 4), x(3, 4, 8), stream=3),
        "rope": lambda: cuda.rope(rope, i32(3), x(3, 4, 64), stream=3),
        "rope_append": lambda: cuda.rope_append(
            rope, gpu_cache(), x(3, 4, 128), x(3, 2, 128), x(3, 2, 128), i32(3), slots=i64(3), stream=3
        ),
        "rms_norm": lambda: cuda.rms_norm(x(2, 8), x(8), x(2, 8), epsilon=1e-6, stream=3),
        "silu_and_mul": lambda: cuda.silu_and_mul(x(2, 8), x(2, 4), stream=3),
        "sample": lambda: cuda.sample(x(2, 8), i32(2), stream=3),
    }
    for name, call in calls.items():
        call()
        assert (fake.note.function.decode(), fake.note.stream) == (name, 3)
    with pytest.raises(ValueError, match="staging has 255 bytes"):
        cuda.gather_blocks(i64(4), i64(1), on_gpu(np.zeros(255, np.uint8)), **sizes, stream=3)


def test_staging_may_be_page_locked_memory(fake):
    staging = Array(np.zeros(256, np.uint8), device=(da.CUDA_HOST, 0))
    sizes = {"page_stride_bytes": 64, "block_bytes": 64, "stream": 3}
    where = on_gpu(np.zeros(4, np.int64)), on_gpu(np.zeros(1, np.int64))
    cuda.gather_blocks(*where, staging, **sizes)
    assert fake.note.pointers[0] == staging.array.ctypes.data
    with pytest.raises(ValueError, match="staging is on cpu, but bases is on cuda:0"):
        cuda.gather_blocks(*where, np.zeros(256, np.uint8), **sizes)


def test_devices(fake):
    x, y = np.zeros((2, 8), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="y is on cpu, but x is on cuda:0, wanted one device"):
        cuda.silu_and_mul(on_gpu(x), y, stream=1)
    with pytest.raises(ValueError, match="y is on cuda:1, but x is on cuda:0"):
        cuda.silu_and_mul(on_gpu(x), on_gpu(y, 1), stream=1)
    cuda.silu_and_mul(on_gpu(x), Array(y, device=(da.MANAGED, 0)), stream=1)
    with pytest.raises(ValueError, match="backend is cpu, which works on memory of the host, but x is on cuda:0"):
        cuda.silu_and_mul(on_gpu(x), on_gpu(y), stream=1, backend="cpu")
    with pytest.raises(ValueError, match="backend is cuda, which works on CUDA devices, but x is on cpu"):
        cuda.silu_and_mul(x, y, backend="cuda")
    with pytest.raises(ValueError, match="stream is given, but x is in memory of the host"):
        cuda.silu_and_mul(x, y, stream=1)
    with pytest.raises(ValueError, match="cache.k is on cpu, but k is on cuda:0"):
        cuda.append_kv(cuda.KvCache(*np.zeros((2, 4, 16, 2, 128), np.float16)), *[on_gpu(np.ones((1, 2, 128)))] * 2,
                       slots=on_gpu(np.zeros(1, np.int64)))  # fmt: skip


def test_the_current_device(fake, folder):
    """The driver, if it is loaded, is asked."""
    path = build(folder, "libcuda.so.1", "-DDRIVER")
    program = f"""
import ctypes, sys
sys.path.insert(0, {str(ROOT / "tests/python")!r})
import numpy as np
from dlpack_arrays import Array
from llmd import cuda
driver = ctypes.CDLL({str(path)!r}, ctypes.RTLD_LOCAL)
device, error = (ctypes.c_int.in_dll(driver, name) for name in ("fake_device", "fake_error"))
for current, code, number in ((0, 0, 0), (1, 0, 1), (1, 0, 0), (1, 201, 0), (1, 201, 1)):
    device.value, error.value = current, code
    try:
        cuda.silu_and_mul(*(Array(np.zeros(n, np.float32), device=(2, number)) for n in (4, 2)), stream=1)
        print("works")
    except ValueError as problem:
        print(problem)
"""
    path = str(pathlib.Path(llmd.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "LLMD_CUDA_LIBRARY": str(folder / "libllmd_cuda.so")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    wrong = "x is on cuda:{}, but the current device is cuda:{}: make the array's device the current one"
    assert lines == ["works", "works", wrong.format(0, 1), "works", wrong.format(1, 0)]
