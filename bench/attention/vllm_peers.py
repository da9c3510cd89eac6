"""The attention kernels in vLLM's wheel: FlashAttention-3 on pages, and its own in Triton."""

import enum
import importlib
import math
import pathlib
import sys
import types

import dry_device
import torch
from contenders import Contender
from unsupported import Unsupported


class KvQuantMode(enum.IntEnum):
    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4


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


def pages_first(problem):
    """The caches as [pages, P, Hkv, D] whatever their layout."""
    if problem.hnd:
        return [x.transpose(1, 2) for x in problem.k], [x.transpose(1, 2) for x in problem.v]
    return problem.k, problem.v


class Fa3(Contender):
    """FlashAttention-3, splitting as it sees fit, its schedule computed once a step. Over an fp8 cache it wants fp8
    queries and multiplies in fp8, as vLLM runs it."""

    @classmethod
    def load(cls, options):
        """Its operators, which need the PyTorch that the library was built for."""
        library = next(pathlib.Path(options["vllm"]).rglob("_vllm_fa3_C*.so"))
        torch.ops.load_library(str(library))
        cls.ops = torch.ops._vllm_fa3_C

    @classmethod
    def check(cls, case):
        if case["fp8"] and case["part"] == "prefill":
            raise Unsupported("fp8 queries are not those of the case")

    def __init__(self, problem):
        super().__init__(problem)
        p = problem
        self.k, self.v = pages_first(p)
        self.q = p.q.to(torch.float8_e4m3fn) if p.fp8 else p.q
        self.window = (p.window - 1, 0) if p.window else (-1, -1)
        self.longest_q, self.longest_kv = max(p.new_lens), max(p.kv_lens)
        self.plan()

    def plan(self):
        p = self.p
        self.schedule = self.ops.get_scheduler_metadata(
            p.batch, self.longest_q, self.longest_kv, p.num_q_heads, p.num_kv_heads, p.head_dim, p.head_dim,
            self.q.dtype, p.lens, p.q_start, None, None, None, None, p.page_size, 0, True, *self.window, False, 0,
            None, 0)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        self.ops.fwd(self.q, self.k[j], self.v[j], None, None, None, self.out, p.q_start, None, None, None, p.lens,
                     self.longest_q, self.longest_kv, p.table, None, None, None, None, None, None, None, None,
                     p.scale, True, *self.window, 0.0, True, self.schedule, 0, None, 0, None, 1, 0, None)


class Unified(Contender):
    """Unified attention in Triton, with its split-KV form in decode."""

    segments = 16
    split_below = None  # as vLLM sets it: 128 / KV heads

    @classmethod
    def load(cls, options):
        cls.call = staticmethod(unified_attention(options["vllm"]))
        if options.get("dry_run"):
            dry_device.pretend_triton_driver()

    @classmethod
    def check(cls, case):
        if case["name"].startswith("sweep/G"):
            raise Unsupported("left out of the sweep over groups: each would be compiled anew")

    def __init__(self, problem):
        super().__init__(problem)
        p = problem
        self.k, self.v = pages_first(p)
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
        self.longest_q, self.longest_kv = max(p.new_lens), max(p.kv_lens)

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        self.call(q=p.q, k=self.k[j], v=self.v[j], out=self.out, cu_seqlens_q=p.q_start,
                  max_seqlen_q=self.longest_q, seqused_k=p.lens, max_seqlen_k=self.longest_kv,
                  softmax_scale=p.scale, causal=True, window_size=(p.window - 1 if p.window else -1, 0),
                  block_table=p.table, softcap=0, q_descale=None, k_descale=self.one, v_descale=self.one,
                  kv_quant_mode=KvQuantMode.FP8_PER_TENSOR if p.fp8 else KvQuantMode.NONE, **self.split)


class UnifiedDefault(Unified):
    pass


class UnifiedSplit(Unified):
    """The same with four times the segments, for any batch."""

    segments = 64
    split_below = 1 << 30

    @classmethod
    def check(cls, case):
        super().check(case)
        if len(case["kv_lens"]) > 64:
            raise Unsupported("for small batches")
