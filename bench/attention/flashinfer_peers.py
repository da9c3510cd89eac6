"""FlashInfer's kernels that read pages, each planned for the exact lengths of the case (not padded for graphs)."""

import importlib
import os
import pathlib

import torch
from contenders import Contender
from unsupported import Unsupported


class FlashInfer(Contender):
    module = None

    @classmethod
    def load(cls, options):
        """With `prebuilt`, a folder that build_peers.py filled, it compiles nothing itself: what is not there is
        refused, and no lock of a compilation is waited for."""
        prebuilt = options.get("prebuilt")
        if prebuilt:
            os.environ["FLASHINFER_DISABLE_JIT"] = "1"
        os.environ["FLASHINFER_DECODE_AUTO_CUDNN"] = "0"  # its own kernels
        cls.module = importlib.import_module("flashinfer")
        if prebuilt:
            importlib.import_module("flashinfer.jit.env").FLASHINFER_AOT_DIR = pathlib.Path(prebuilt).resolve()

    def __init__(self, problem):
        super().__init__(problem)
        self.layout = "HND" if problem.hnd else "NHD"
        self.kv_dtype = torch.float8_e4m3fn if problem.fp8 else torch.bfloat16
        self.left = problem.window - 1 if problem.window else -1
        self.caches = list(zip(problem.k, problem.v, strict=True))

    def workspace(self):
        """Zeroed: semaphores may live in it."""
        return torch.zeros(384 << 20, dtype=torch.uint8, device=self.p.device)

    def run(self, i):
        self.wrapper.run(self.p.q, self.caches[i % len(self.caches)], out=self.out)


class Decode(FlashInfer):
    tensor_cores = False

    def __init__(self, problem):
        super().__init__(problem)
        self.wrapper = self.module.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace(), self.layout, use_tensor_cores=self.tensor_cores,
            **({"backend": "fa2"} if self.tensor_cores else {}))
        self.plan()

    def plan(self):
        p = self.p
        self.wrapper.plan(p.indptr_host, p.indices, p.last_page_len_host, p.num_q_heads, p.num_kv_heads, p.head_dim,
                          p.page_size, window_left=self.left, q_data_type=torch.bfloat16,
                          kv_data_type=self.kv_dtype, sm_scale=p.scale)


class CudaCores(Decode):
    @classmethod
    def check(cls, case):
        if case["num_q_heads"] // case["num_kv_heads"] not in (1, 2, 3, 4, 6, 8):
            raise Unsupported("its CUDA-core kernel has no such group")


class TensorCores(Decode):
    tensor_cores = True


class Persistent(FlashInfer):
    """BatchAttention: one cooperative kernel that balances its work over the device."""

    @classmethod
    def check(cls, case):
        if case["window"] or case["fp8"] or case["head_dim"] != 128:
            raise Unsupported("no window; only built for bf16 and heads of 128")

    def __init__(self, problem):
        super().__init__(problem)
        self.wrapper = self.module.BatchAttention(self.layout, str(problem.device))
        self.lse = torch.empty(problem.q.shape[:2], dtype=torch.float32, device=problem.device)
        self.indptr = problem.indptr_host.to(problem.device)
        self.plan()

    def plan(self):
        p = self.p
        self.wrapper.plan(p.q_start, self.indptr, p.indices, p.lens, p.num_q_heads, p.num_kv_heads, p.head_dim,
                          p.head_dim, p.page_size, causal=p.prefill, sm_scale=p.scale, q_data_type=torch.bfloat16,
                          kv_data_type=self.kv_dtype)

    def run(self, i):
        self.wrapper.run(self.p.q, self.caches[i % len(self.caches)], out=self.out, lse=self.lse)


class Xqa(FlashInfer):
    @classmethod
    def check(cls, case):
        if case["page_size"] not in (16, 32, 64, 128):
            raise Unsupported("pages of 16 to 128 only")

    def __init__(self, problem):
        super().__init__(problem)
        self.call = importlib.import_module("flashinfer.decode").xqa_batch_decode_with_kv_cache
        self.scratch = self.workspace()
        self.longest = max(problem.kv_lens)

    def run(self, i):
        p = self.p
        self.call(p.q, self.caches[i % len(self.caches)], self.scratch, p.table, p.lens, self.longest,
                  bmm1_scale=p.scale, bmm2_scale=1.0, window_left=self.left, out=self.out, kv_layout=self.layout)


class Fa2(FlashInfer):
    """Paged prefill with mma.sync."""

    def __init__(self, problem):
        super().__init__(problem)
        self.wrapper = self.module.BatchPrefillWithPagedKVCacheWrapper(self.workspace(), self.layout, backend="fa2")
        self.plan()

    def plan(self):
        p = self.p
        self.wrapper.plan(p.q_start_host, p.indptr_host, p.indices, p.last_page_len_host, p.num_q_heads,
                          p.num_kv_heads, p.head_dim, p.page_size, causal=True, window_left=self.left,
                          q_data_type=torch.bfloat16, kv_data_type=self.kv_dtype, sm_scale=p.scale)
