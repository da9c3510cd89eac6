"""`llmd.cuda` on CUDA tensors of torch: current stream, other streams, graphs, fp8, against the same on the host.

Needs a GPU, torch that sees it, and the CUDA library: LLMD_CUDA_LIBRARY=build/cuda/cuda/libllmd_cuda.so pytest test_cuda_gpu.py
"""

import numpy as np
import pytest

import llmd
from llmd import cuda

torch = pytest.importorskip("torch", reason="SKIPPED: torch is not installed, so llmd.cuda is not tested on a GPU")
if not torch.cuda.is_available():
    pytest.skip("SKIPPED: torch sees no GPU, so llmd.cuda is not tested on one", allow_module_level=True)
try:
    GPU = cuda.backend("cuda")
except llmd.UnavailableError as error:
    pytest.skip(f"SKIPPED: {error}", allow_module_level=True)

HEADS, GROUP, DIM, PAGE, PAGES = 2, 4, 128, 16, 40
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)


def near(got, wanted, tolerance=2e-2):
    torch.testing.assert_close(got.float().cpu(), wanted.float().cpu(), rtol=tolerance, atol=tolerance)


class Decode:
    """A batch in decode, with all that a step needs, on some device."""

    def __init__(self, lengths, dtype, device="cuda", like=None):
        self.device, self.batch = device, len(lengths)
        move = lambda name, make: (make() if like is None else getattr(like, name)).to(device)  # noqa: E731
        self.table = move("table", lambda: torch.randperm(PAGES)[: self.batch * 8].reshape(self.batch, 8).int())
        self.lengths = move("lengths", lambda: torch.tensor(lengths, dtype=torch.int32))
        stored = torch.uint8 if dtype == "e4m3" else DTYPES[dtype]
        self.kv = torch.zeros(PAGES, 2, PAGE, HEADS, DIM, dtype=stored, device=device)
        scale = torch.full((HEADS,), 0.5, device=device) if dtype == "e4m3" else None
        explicit = dtype if dtype == "e4m3" else None
        self.cache = cuda.KvCache(self.kv[:, 0], self.kv[:, 1], dtype=explicit, k_scale=scale, v_scale=scale)
        self.shape = cuda.AttentionShape("decode", self.batch, HEADS * GROUP, HEADS, DIM, dtype, PAGE)
        backend = cuda.backend("cuda" if device == "cuda" else "cpu")
        memory = torch.zeros(backend.workspace_bytes(self.shape), dtype=torch.uint8, device=device)
        self.workspace = cuda.Workspace(self.shape, memory)
        self.kind = torch.bfloat16 if dtype == "e4m3" else DTYPES[dtype]
        self.q = move("q", lambda: normal(self.batch, HEADS * GROUP, DIM, dtype=self.kind))
        self.o = torch.zeros_like(self.q)
        self.lse = torch.zeros(self.batch, HEADS * GROUP, device=device)
        self.pages = cuda.PageList(self.table, seq_lens=self.lengths)

    def fill(self, k, v):
        total = int(self.lengths.sum())
        index = torch.repeat_interleave(torch.arange(self.batch), self.lengths.cpu().long())
        position = torch.cat([torch.arange(n) for n in self.lengths.tolist()])
        cuda.append_kv(
            self.cache, k[:total].to(self.device), v[:total].to(self.device), batch_index=index.int().to(self.device),
            positions=position.int().to(self.device), pages=self.pages,
        )  # fmt: skip

    def step(self):
        plan = self.workspace.plan(self.pages)
        plan.attention(self.q, self.o, self.cache, lse=self.lse)
        return plan


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_is_that_of_the_host(dtype):
    gpu = Decode([1, 17, 100, 128], dtype)
    host = Decode([1, 17, 100, 128], dtype, "cpu", like=gpu)
    k, v = normal(2, 256, HEADS, DIM, dtype=gpu.kind)
    gpu.fill(k, v)
    host.fill(k, v)
    assert (gpu.kv.cpu().view(torch.uint8) == host.kv.view(torch.uint8)).float().mean() > 0.999
    gpu.step()
    host.step()
    near(gpu.o, host.o)
    near(gpu.lse, host.lse, 1e-2)
    assert gpu.workspace.check() is None


def test_fp8_tensors_and_bytes_are_the_same():
    stored = torch.zeros(2, PAGES, PAGE, HEADS, DIM, dtype=torch.uint8, device="cuda")
    k = normal(5, HEADS, DIM)
    slots = torch.arange(5, device="cuda")
    cuda.append_kv(cuda.KvCache(*stored, dtype="e4m3"), k, k, slots=slots)
    try:
        typed = cuda.KvCache(*torch.zeros_like(stored).view(torch.float8_e4m3fn))
    except ValueError as error:
        pytest.skip(f"this torch does not export fp8: {error}")
    assert typed.dtype == "e4m3"
    wanted = k.float().to(torch.float8_e4m3fn).view(torch.uint8)
    assert (stored[0, 0, :5] == wanted).all()


def test_validated_mode():
    gpu = Decode([30, 30], "bf16")
    gpu.fill(*normal(2, 60, HEADS, DIM))
    gpu.table[1, 1] = PAGES
    gpu.step()
    assert gpu.workspace.check() == cuda.DataError("page", 1, 1, PAGES)
    error = torch.zeros(3, dtype=torch.int64, device="cuda")
    k = normal(2, HEADS, DIM)
    cuda.append_kv(gpu.cache, k, k, slots=torch.tensor([0, PAGES * PAGE], device="cuda"), error=error)
    assert error.tolist() == [3, 1, PAGES * PAGE]


def test_the_current_stream_orders_the_work():
    """Behind a long kernel on torch's current stream; a call on another stream would see zeros."""
    side = torch.cuda.Stream()
    x = torch.zeros(1 << 14, 2048, device="cuda")
    y = torch.zeros(1 << 14, 1024, device="cuda")
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(20):
            a = a @ a * 1e-3
        x.fill_(1)
        cuda.silu_and_mul(x, y)
    side.synchronize()
    near(y, torch.full_like(y, 1 / (1 + np.exp(-1))), 1e-5)


def test_another_stream_waits_for_the_producer():
    """DLPack: torch makes the stream that we name wait for its current one."""
    side = torch.cuda.Stream()
    x = torch.zeros(1 << 14, 2048, device="cuda")
    y = torch.zeros(1 << 14, 1024, device="cuda")
    a = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        a = a @ a * 1e-3
    x.fill_(1)
    cuda.silu_and_mul(x, y, stream=side)
    side.synchronize()
    near(y, torch.full_like(y, 1 / (1 + np.exp(-1))), 1e-5)


@pytest.mark.parametrize("stream", [0, 1])
def test_the_default_stream_by_number(stream):
    x, y = torch.ones(4, 8, device="cuda"), torch.zeros(4, 4, device="cuda")
    cuda.silu_and_mul(x, y, stream=stream)
    torch.cuda.synchronize()
    near(y, torch.full_like(y, 1 / (1 + np.exp(-1))), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_stays_right_when_lengths_change(dtype):
    gpu = Decode([128, 128, 128], dtype)
    k, v = normal(2, 384, HEADS, DIM, dtype=gpu.kind)
    gpu.fill(k, v)
    gpu.step()  # modules are loaded before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = gpu.step()
    for lengths in ([1, 128, 64], [0, 5, 100], [17, 16, 15], [0, 0, 1]):
        gpu.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        gpu.q.copy_(normal(*gpu.q.shape, dtype=gpu.kind))
        gpu.o.fill_(7)
        graph.replay()
        replayed, lse = gpu.o.clone(), gpu.lse.clone()
        gpu.o.fill_(9)
        eager = gpu.step()
        assert (replayed == gpu.o).all() and (lse == gpu.lse).all()
        del eager
    assert plan.batch == 3


def test_all_the_rest_is_that_of_the_host():
    positions = torch.randint(0, 5000, (7,), dtype=torch.int32, device="cuda")
    rope = cuda.Rope(500000, DIM, scale_factor=8, low_freq_factor=1, high_freq_factor=4, old_context=8192)
    q, k, v = normal(7, 8, DIM), normal(7, HEADS, DIM), normal(7, HEADS, DIM)
    residual, weight, wide = normal(7, 512), normal(512), normal(7, 1024)
    parts, part_lse = normal(3, 7, 8, DIM), torch.randn(3, 7, 8, device="cuda")
    logits = torch.randperm(2 * 1000, device="cuda").reshape(2, 1000) / 64
    slots = torch.randperm(PAGES * PAGE, device="cuda")[:7]
    given = locals()

    def run(device):
        at = {name: value.to(device) for name, value in given.items() if isinstance(value, torch.Tensor)}
        zeros = lambda *shape, dtype=torch.bfloat16: torch.zeros(*shape, dtype=dtype, device=device)  # noqa: E731
        kv = zeros(2, PAGES, PAGE, HEADS, DIM)
        q, k, q_out = at["q"].clone(), at["k"].clone(), zeros(7, 8, DIM)
        cuda.rope_append(rope, cuda.KvCache(*kv), q, k, at["v"], at["positions"], q_out=q_out, slots=at["slots"])
        cuda.rope(rope, at["positions"], q, k)
        norm, residual, half = zeros(7, 512), at["residual"].clone(), zeros(7, 512)
        cuda.rms_norm(at["wide"][:, :512], at["weight"], norm, epsilon=1e-5, residual=residual)
        cuda.silu_and_mul(at["wide"], half)
        merged, lse = zeros(7, 8, DIM), zeros(7, 8, dtype=torch.float32)
        cuda.merge_states(at["parts"], at["part_lse"], merged, lse=lse)
        tokens, logprobs = zeros(2, dtype=torch.int32), zeros(2, dtype=torch.float32)
        top_p = torch.full((2,), 0.9, device=device)
        cuda.sample(at["logits"], tokens, top_p=top_p, seed=5, logprobs=logprobs)
        bases, stride, size = cuda.block_bases([cuda.KvCache(*kv)])
        sizes = {"page_stride_bytes": stride, "block_bytes": size}
        bases = torch.from_numpy(bases.view(np.int64)).to(device)
        blocks = torch.tensor([3, 1, 4], device=device)
        staging = torch.zeros(3 * 2 * size, dtype=torch.uint8, pin_memory=device == "cuda")
        cuda.gather_blocks(bases, blocks, staging, **sizes)
        cuda.scatter_blocks(bases, torch.tensor([9, 2, 6], device=device), staging, **sizes)
        cuda.copy_blocks(bases, torch.tensor([[9, 0]], device=device), **sizes)
        torch.cuda.synchronize()
        return kv, q_out, q, k, norm, residual, half, merged, lse, logprobs, tokens

    for got, wanted in zip(run("cuda"), run("cpu")):
        near(got, wanted)


def test_prefill_is_that_of_the_host():
    results = []
    kv = normal(2, PAGES, PAGE, HEADS, DIM)
    q = normal(70, HEADS * GROUP, DIM)
    for device in ("cuda", "cpu"):
        shape = cuda.AttentionShape("prefill", 2, HEADS * GROUP, HEADS, DIM, "bf16", PAGE, max_tokens=70)
        size = cuda.backend("cuda" if device == "cuda" else "cpu").workspace_bytes(shape)
        workspace = cuda.Workspace(shape, torch.zeros(size, dtype=torch.uint8, device=device))
        table = torch.arange(16, dtype=torch.int32, device=device).reshape(2, 8)
        lengths = torch.tensor([100, 30], dtype=torch.int32, device=device)
        plan = workspace.plan(
            cuda.PageList(table, seq_lens=lengths), q_start=torch.tensor([0, 40, 70], dtype=torch.int32, device=device)
        )
        o = torch.zeros_like(q, device=device)
        plan.attention(q.to(device), o, cuda.KvCache(*kv.to(device)))
        results.append(o)
    near(*results)


def test_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: its arrays are not tested")
    x, y = cupy.ones((4, 8), cupy.float32), cupy.zeros((4, 4), cupy.float32)
    with cupy.cuda.Stream():
        cuda.silu_and_mul(x, y)
        np.testing.assert_allclose(y.get(), 1 / (1 + np.exp(-1)), rtol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: arrays of another device are not tested")
def test_the_current_device_is_asked_for():
    x, y = torch.ones(4, 8, device="cuda:1"), torch.zeros(4, 4, device="cuda:1")
    with pytest.raises(ValueError, match="x is on cuda:1, but the current device is cuda:0"):
        cuda.silu_and_mul(x, y)
    with torch.cuda.device(1):
        cuda.silu_and_mul(x, y)
    torch.cuda.synchronize(1)
    near(y, torch.full_like(y, 1 / (1 + np.exp(-1))), 1e-5)
