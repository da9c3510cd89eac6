"""Who is measured, without importing any of them: the parent process reads this, each contender's own process imports
its class."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    name: str
    module: str  # next to this file
    kind: str  # the class in it
    decode: bool = True
    prefill: bool = False
    paged: bool = True  # reads the pages themselves; one that does not is never the best peer
    ours: bool = False
    error_limit: float = 2e-2  # ||out - ref|| / ||ref||
    error_limit_fp8: float = 2e-2  # wider for those who compute in fp8 over an fp8 cache

    def takes(self, case):
        return self.prefill if case["part"] == "prefill" else self.decode

    def limit(self, case):
        return self.error_limit_fp8 if case["fp8"] else self.error_limit


ROSTER = [
    Entry("llmd", "contenders", "Llmd", prefill=True, ours=True, error_limit=8e-3, error_limit_fp8=8e-3),
    Entry("llmd-early-start", "contenders", "LlmdEarlyStart", ours=True, error_limit=8e-3, error_limit_fp8=8e-3),
    Entry("flashinfer-tensor-cores", "flashinfer_peers", "TensorCores"),
    Entry("flashinfer-cuda-cores", "flashinfer_peers", "CudaCores"),
    Entry("flashinfer-xqa", "flashinfer_peers", "Xqa", error_limit_fp8=5e-2),
    Entry("fa3", "vllm_peers", "Fa3", prefill=True, error_limit_fp8=6e-2),
    Entry("flashinfer-fa2", "flashinfer_peers", "Fa2", decode=False, prefill=True),
    Entry("triton-unified", "vllm_peers", "UnifiedDefault", prefill=True),
    Entry("flashinfer-persistent", "flashinfer_peers", "Persistent", prefill=True),
    Entry("triton-unified-64", "vllm_peers", "UnifiedSplit"),
    Entry("sdpa-gather", "torch_peers", "SdpaGather"),
    Entry("sdpa-dense", "torch_peers", "SdpaDense", prefill=True, paged=False),
]

UNPAGED = {entry.name for entry in ROSTER if not entry.paged}
WGMMA = {"fa3"}  # multiplied by Hopper's own instructions; the others by mma.sync or not at all
OURS = {entry.name for entry in ROSTER if entry.ours}
