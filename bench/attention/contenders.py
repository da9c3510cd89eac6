"""Who is measured: our library and public kernels, each at the setting its documentation recommends.

A contender takes a Problem, refuses with Unsupported what it cannot do, and runs launch i on pool i % pools into `out`.
`paged` says that it reads the pages themselves; a dense one reads a contiguous cache of the same size, is there for
comparison, and never counts as the best peer.
"""

import enum
import functools
import importlib
import math
import os
import pathlib
import sys
import time
import types

import torch

import capi


class Unsupported(Exception):
    pass


class Contender:
    paged = True
    checked = True

    def __init__(self, problem):
        self.p = problem
        self.out = torch.full_like(problem.q, float("nan"))

    def run(self, i):
        raise NotImplementedError

    def plan_us(self):
        """Time of planning a step on the host, until the device has it; None for those who do not plan there."""
        return None


def host_us(function, repeats=5):
    function()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)[repeats // 2]


class Llmd(Contender):
    """This library, through the table of functions that every host uses."""

    name = "llmd"
    backend = None  # set once by peers.py

    def __init__(self, problem):
        super().__init__(problem)
        p = problem
        self.shape = capi.Shape(mode=capi.PREFILL if p.prefill else capi.DECODE, max_batch=p.batch,
                                max_tokens=p.tokens, num_q_heads=p.num_q_heads, num_kv_heads=p.num_kv_heads,
                                head_dim=p.head_dim, kv_dtype=capi.E4M3 if p.fp8 else capi.BF16,
                                page_size=p.page_size, window=p.window, max_kv_tokens=sum(p.kv_lens))
        try:
            size = self.backend.workspace_bytes(self.shape)
        except capi.BackendError as error:
            raise Unsupported(str(error)) from error
        self.workspace = torch.empty(size, dtype=torch.uint8, device=p.device)
        self.backend.init_workspace(self.workspace.data_ptr(), size, self._stream())
        self.pages = capi.PageList(pages=p.table.data_ptr(), row_stride=p.row, max_pages=p.row,
                                   seq_lens=p.lens.data_ptr())
        q_start = p.q_start.data_ptr() if p.prefill else None
        self.plan_args = capi.PlanArgs(shape=self.shape, batch=p.batch, pages=self.pages, q_start=q_start,
                                       workspace=self.workspace.data_ptr(), workspace_bytes=size)
        strides = capi.TokenStrides(p.q.stride(0), p.q.stride(1))
        self.args = [
            capi.AttentionArgs(shape=self.shape, batch=p.batch, num_tokens=p.tokens, q=p.q.data_ptr(),
                               q_strides=strides, q_dtype=capi.BF16, o=self.out.data_ptr(), o_strides=strides,
                               o_dtype=capi.BF16, q_start=q_start, cache=self._cache(i), pages=self.pages,
                               scale=p.scale, workspace=self.workspace.data_ptr(), workspace_bytes=size)
            for i in range(p.num_pools)
        ]
        try:
            self.plan()
            self.run(0)
        except capi.BackendError as error:
            raise Unsupported(str(error)) from error

    @staticmethod
    def _stream():
        return torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else None

    def _cache(self, i):
        p = self.p
        k = p.k[i]
        token, head = (k.stride(2), k.stride(1)) if p.hnd else (k.stride(1), k.stride(2))
        strides = capi.KvStrides(k.stride(0), token, head)
        return capi.KvCache(k=k.data_ptr(), v=p.v[i].data_ptr(), k_strides=strides, v_strides=strides,
                            num_pages=p.pages, page_size=p.page_size, num_kv_heads=p.num_kv_heads,
                            head_dim=p.head_dim, dtype=capi.E4M3 if p.fp8 else capi.BF16)

    def plan(self):
        self.backend.plan(self.plan_args, self._stream())

    def run(self, i):
        self.backend.attention(self.args[i % len(self.args)], self._stream())


@functools.cache
def flashinfer(prebuilt=None):
    """The package, told where the libraries that build_peers.py made are; it then compiles nothing itself."""
    if prebuilt:
        os.environ.setdefault("FLASHINFER_DISABLE_JIT", "1")
    module = importlib.import_module("flashinfer")
    if prebuilt:
        environment = importlib.import_module("flashinfer.jit.env")
        environment.FLASHINFER_AOT_DIR = pathlib.Path(prebuilt).resolve()
    return module


@functools.cache
def flashinfer_workspace(device):
    return torch.zeros(512 << 20, dtype=torch.uint8, device=device)


class FlashInfer(Contender):
    prebuilt = None

    def __init__(self, problem):
        super().__init__(problem)
        self.module = flashinfer(self.prebuilt)
        self.workspace = flashinfer_workspace(problem.device)
        self.layout = "HND" if problem.hnd else "NHD"
        self.kv_dtype = torch.float8_e4m3fn if problem.fp8 else torch.bfloat16
        self.left = problem.window - 1 if problem.window else -1

    def run(self, i):
        j = i % self.p.num_pools
        self.wrapper.run(self.p.q, (self.p.k[j], self.p.v[j]), out=self.out)

    def plan_us(self):
        return host_us(self.plan)


class FlashInferDecode(FlashInfer):
    tensor_cores = False

    def __init__(self, problem):
        if problem.prefill:
            raise Unsupported("decode only")
        if not self.tensor_cores and problem.group not in (1, 2, 3, 4, 6, 8):
            raise Unsupported("its CUDA-core kernel has no such group")
        super().__init__(problem)
        self.wrapper = self.module.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, self.layout, use_tensor_cores=self.tensor_cores,
            **({"backend": "fa2"} if self.tensor_cores else {}))
        self.plan()
        self.run(0)

    def plan(self):
        p = self.p
        self.wrapper.plan(p.indptr_host, p.indices, p.last_page_len_host, p.num_q_heads, p.num_kv_heads, p.head_dim,
                          p.page_size, window_left=self.left, q_data_type=torch.bfloat16,
                          kv_data_type=self.kv_dtype, sm_scale=p.scale)


class FlashInferCudaCores(FlashInferDecode):
    name = "flashinfer-cuda-cores"


class FlashInferTensorCores(FlashInferDecode):
    name = "flashinfer-tensor-cores"
    tensor_cores = True


class FlashInferPersistent(FlashInfer):
    """BatchAttention: one persistent kernel that balances its work over the device."""

    name = "flashinfer-persistent"

    def __init__(self, problem):
        if problem.window or problem.fp8:
            raise Unsupported("no window; only built for bf16")
        super().__init__(problem)
        self.wrapper = self.module.BatchAttention(self.layout, str(problem.device))
        self.lse = torch.empty(problem.q.shape[:2], dtype=torch.float32, device=problem.device)
        self.plan()
        self.run(0)

    def plan(self):
        p = self.p
        self.wrapper.plan(p.q_start, p.indptr_host.to(p.device), p.indices, p.lens, p.num_q_heads, p.num_kv_heads,
                          p.head_dim, p.head_dim, p.page_size, causal=p.prefill, sm_scale=p.scale,
                          q_data_type=torch.bfloat16, kv_data_type=self.kv_dtype)

    def run(self, i):
        j = i % self.p.num_pools
        self.wrapper.run(self.p.q, (self.p.k[j], self.p.v[j]), out=self.out, lse=self.lse)


class FlashInferXqa(FlashInfer):
    name = "flashinfer-xqa"

    def __init__(self, problem):
        if problem.prefill or problem.page_size not in (16, 32, 64, 128):
            raise Unsupported("decode over pages of 16 to 128 only")
        super().__init__(problem)
        decode = importlib.import_module("flashinfer.decode")
        self.call = decode.xqa_batch_decode_with_kv_cache
        self.scratch = torch.zeros(256 << 20, dtype=torch.uint8, device=problem.device)
        self.run(0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        self.call(p.q, (p.k[j], p.v[j]), self.scratch, p.table, p.lens, max(p.kv_lens), bmm1_scale=p.scale,
                  bmm2_scale=1.0, window_left=self.left, out=self.out, kv_layout=self.layout)

    def plan_us(self):
        return None


class FlashInferPrefill(FlashInfer):
    kind = "fa2"

    def __init__(self, problem):
        if not problem.prefill:
            raise Unsupported("prefill only")
        super().__init__(problem)
        self.wrapper = self.module.BatchPrefillWithPagedKVCacheWrapper(self.workspace, self.layout,
                                                                       backend=self.kind)
        self.plan()
        self.run(0)

    def plan(self):
        p = self.p
        self.wrapper.plan(p.q_start_host, p.indptr_host, p.indices, p.last_page_len_host, p.num_q_heads,
                          p.num_kv_heads, p.head_dim, p.page_size, causal=True, window_left=self.left,
                          q_data_type=torch.bfloat16, kv_data_type=self.kv_dtype, sm_scale=p.scale)


class FlashInferFa2(FlashInferPrefill):
    name = "flashinfer-fa2"


class FlashInferFa3(FlashInferPrefill):
    name = "flashinfer-fa3"
    kind = "fa3"


class KvQuantMode(enum.IntEnum):
    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4


@functools.cache
def unified_attention(folder):
    """vLLM's Triton kernel out of an unpacked wheel, without the rest of the package: what the file imports from it is
    stood in for here."""
    import triton
    import triton.language as tl

    def module(name, **members):
        made = types.ModuleType(name)
        vars(made).update(members)
        made.__path__ = []
        sys.modules[name] = made

    platform = types.SimpleNamespace(fp8_dtype=lambda: torch.float8_e4m3fn,
                                     is_device_capability_family=lambda *_: False, is_cuda=lambda: True,
                                     is_rocm=lambda: False, is_xpu=lambda: False)
    quiet = types.SimpleNamespace(**{level: lambda *_, **__: None
                                     for level in ("debug", "info", "warning", "debug_once", "info_once")})
    for name in ("vllm", "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops"):
        module(name)
    module("vllm.envs", VLLM_BATCH_INVARIANT=False)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]
    module("vllm.logger", init_logger=lambda _: quiet)
    module("vllm.platforms", current_platform=platform)
    module("vllm.triton_utils", tl=tl, triton=triton)
    module("vllm.v1.kv_cache_interface", KVQuantMode=KvQuantMode)
    root = next(pathlib.Path(folder).rglob("triton_unified_attention.py")).parent.resolve()
    sys.modules["vllm.v1.attention.ops"].__path__ = [str(root)]
    return importlib.import_module("vllm.v1.attention.ops.triton_unified_attention").unified_attention


@functools.cache
def flash_attention_3(folder):
    """The operators of the FlashAttention-3 library in an unpacked vLLM wheel; needs the PyTorch it was built for."""
    torch.ops.load_library(str(next(pathlib.Path(folder).rglob("_vllm_fa3_C*.so"))))
    return torch.ops._vllm_fa3_C


class Fa3(Contender):
    """FlashAttention-3 on pages, splitting as it sees fit, its schedule computed once a step."""

    name = "fa3"
    folder = None

    def __init__(self, problem):
        if problem.fp8:
            raise Unsupported("wants fp8 queries with an fp8 cache")
        super().__init__(problem)
        if not self.folder or not list(pathlib.Path(self.folder).rglob("_vllm_fa3_C*.so")):
            raise Unsupported("no vLLM files given (--vllm)")
        p = problem
        self.ops = flash_attention_3(self.folder)
        self.k, self.v = ([x.transpose(1, 2) for x in caches] if p.hnd else caches for caches in (p.k, p.v))
        self.window = (p.window - 1, 0) if p.window else (-1, -1)
        self.plan()
        self.run(0)

    def plan(self):
        p = self.p
        self.schedule = self.ops.get_scheduler_metadata(
            p.batch, max(p.new_lens), max(p.kv_lens), p.num_q_heads, p.num_kv_heads, p.head_dim, p.head_dim,
            torch.bfloat16, p.lens, p.q_start, None, None, None, None, p.page_size, 0, True, *self.window, False, 0,
            None, 0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        self.ops.fwd(p.q, self.k[j], self.v[j], None, None, None, self.out, p.q_start, None, None, None, p.lens,
                     max(p.new_lens), max(p.kv_lens), p.table, None, None, None, None, None, None, None, None,
                     p.scale, True, *self.window, 0.0, True, self.schedule, 0, None, 0, None, 1, 0, None)


class Unified(Contender):
    """vLLM's unified attention in Triton, with its split-KV form in decode."""

    folder = None
    segments = 16
    split_below = None  # as its backend sets it: 128 / KV heads

    def __init__(self, problem):
        super().__init__(problem)
        if not self.folder:
            raise Unsupported("no vLLM files given (--vllm)")
        if problem.name.startswith("sweep/G"):
            raise Unsupported("left out of the sweep over groups: each would be compiled anew")
        p = problem
        self.call = unified_attention(self.folder)
        self.k, self.v = ([x.transpose(1, 2) for x in caches] if p.hnd else caches for caches in (p.k, p.v))
        padded = 1 << math.ceil(math.log2(p.head_dim))
        self.split = {}
        if not p.prefill:
            rows = (p.tokens, p.num_q_heads, self.segments)
            self.split = {
                "seq_threshold_3D": self.split_below or 128 // p.num_kv_heads,
                "num_par_softmax_segments": self.segments,
                "softmax_segm_output": torch.empty((*rows, padded), device=p.device),
                "softmax_segm_max": torch.empty(rows, device=p.device),
                "softmax_segm_expsum": torch.empty(rows, device=p.device),
            }
        self.one = torch.ones(1, device=p.device)
        self.run(0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        self.call(q=p.q, k=self.k[j], v=self.v[j], out=self.out, cu_seqlens_q=p.q_start,
                  max_seqlen_q=max(p.new_lens), seqused_k=p.lens, max_seqlen_k=max(p.kv_lens),
                  softmax_scale=p.scale, causal=True, window_size=(p.window - 1 if p.window else -1, 0),
                  block_table=p.table, softcap=0, q_descale=None, k_descale=self.one, v_descale=self.one,
                  kv_quant_mode=KvQuantMode.FP8_PER_TENSOR if p.fp8 else KvQuantMode.NONE, **self.split)


class UnifiedDefault(Unified):
    name = "triton-unified"


class UnifiedSplit(Unified):
    """The same with four times the segments, for any batch."""

    name = "triton-unified-64"
    segments = 64
    split_below = 1 << 30

    def __init__(self, problem):
        if problem.prefill or problem.batch > 64:
            raise Unsupported("for small batches")
        super().__init__(problem)


def uniform(problem):
    p = problem
    if len(set(p.kv_lens)) > 1 or p.kv_lens[0] % p.page_size or p.window or p.fp8 or p.hnd:
        raise Unsupported("only equal lengths of whole NHD pages in bf16")


class SdpaGather(Contender):
    """PyTorch's attention, after gathering the pages into a contiguous cache."""

    name = "sdpa-gather"

    def __init__(self, problem):
        if problem.prefill or problem.kv_bytes > 600e6:
            raise Unsupported("decode of up to 600 MB")
        uniform(problem)
        super().__init__(problem)
        self.index = problem.table.reshape(-1).long()
        self.run(0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        shape = (p.batch, p.kv_lens[0], p.num_kv_heads, p.head_dim)
        k, v = (x.index_select(0, self.index).view(shape).transpose(1, 2) for x in (p.k[j], p.v[j]))
        out = torch.nn.functional.scaled_dot_product_attention(p.q.unsqueeze(2), k, v, scale=p.scale,
                                                               enable_gqa=p.group > 1)
        self.out.copy_(out.squeeze(2))


class Dense(Contender):
    """Reads each pool's memory as if it were a contiguous cache: the same bytes, another order."""

    paged = False
    checked = False

    def __init__(self, problem):
        uniform(problem)
        super().__init__(problem)
        p = problem
        shape = (p.batch, p.kv_lens[0], p.num_kv_heads, p.head_dim)
        count = math.prod(shape)
        self.k, self.v = ([x.reshape(-1)[:count].view(shape) for x in caches] for caches in (p.k, p.v))


class SdpaDense(Dense):
    name = "sdpa-dense"

    def __init__(self, problem):
        if not problem.prefill and problem.kv_bytes > 600e6:
            raise Unsupported("decode of up to 600 MB")  # it may copy the cache, once a query head
        super().__init__(problem)
        p = problem
        self.mask = {}
        if p.prefill and p.new_lens[0] == p.kv_lens[0]:
            self.mask = {"is_causal": True}
        elif p.prefill:
            from torch.nn.attention.bias import causal_lower_right
            self.mask = {"attn_mask": causal_lower_right(p.new_lens[0], p.kv_lens[0])}
        self.run(0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        q = p.q.view(p.batch, p.new_lens[0], p.num_q_heads, p.head_dim).transpose(1, 2)
        torch.nn.functional.scaled_dot_product_attention(q, self.k[j].transpose(1, 2), self.v[j].transpose(1, 2),
                                                         scale=p.scale, enable_gqa=p.group > 1, **self.mask)


ALL = [Llmd, FlashInferCudaCores, FlashInferTensorCores, FlashInferXqa, FlashInferPersistent, FlashInferFa2,
       FlashInferFa3, Fa3, UnifiedDefault, UnifiedSplit, SdpaGather, SdpaDense]
