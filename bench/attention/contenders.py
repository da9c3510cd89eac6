"""What a contender is, and this library as one, through the table of functions that every host uses."""

import capi
import torch
from unsupported import Unsupported


class Contender:
    """Takes a Problem, plans the step, and runs launch i on pool i % pools into `out`."""

    checked = True  # its output is compared with the reference
    plan = None  # a method of those who plan a step on the host; after a capture it must not be called again

    @classmethod
    def load(cls, options):
        """Once a process, before the device is opened: imports what it needs."""

    @classmethod
    def check(cls, case):
        """Raises Unsupported for what the kernels are known not to do, before memory is taken."""

    def __init__(self, problem):
        self.p = problem
        self.out = torch.full_like(problem.q, float("nan"))

    def run(self, i):
        raise NotImplementedError


class Llmd(Contender):
    backend = None
    flags = 0

    @classmethod
    def load(cls, options):
        Llmd.backend = capi.Backend(options["library"], options.get("function", "llmd_attention_cuda"))

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
                               scale=p.scale, flags=self.flags, workspace=self.workspace.data_ptr(),
                               workspace_bytes=size)
            for i in range(p.num_pools)
        ]
        try:
            self.plan_step()
            self.run(0)
        except capi.BackendError as error:
            if error.code != capi.UNSUPPORTED:
                raise
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

    def plan_step(self):
        """On the device, so that its time is not the host's: bench_attention measures it."""
        self.backend.plan(self.plan_args, self._stream())

    def run(self, i):
        self.backend.attention(self.args[i % len(self.args)], self._stream())


class LlmdEarlyStart(Llmd):
    """Starts while the launch before it ends, as FlashInfer's kernels do by default."""

    flags = capi.EARLY_START
