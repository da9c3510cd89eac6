"""Paged attention and KV-cache kernels on arrays of torch, CuPy, JAX and NumPy, without copies and without torch.

The functions work where the arrays are. Arrays on a CUDA device go to the CUDA library (``pip install llmd[cuda]``), which
is loaded when first needed. Arrays in memory of the host go to the backend ``"cpu"``, which does the same in threads, so
code that calls this module runs and is tested without a GPU. ``backend="reference"`` computes in double, slowly, from the
definitions. Results are written to arrays that the caller gives: nothing is allocated.

Arrays are any objects with ``__dlpack__``, with strides and offsets as they are. NumPy has no bfloat16, and some
frameworks do not export fp8: such data may come as uint16 or uint8 with an argument `dtype`. Letters in shapes: T query
tokens of a call, B requests, Hq and Hkv query and KV heads, D elements of a head, P tokens of a page;
slot = page * P + offset.

**Streams.** A call on CUDA arrays enqueues its kernels and returns; it neither waits nor allocates, and may be captured in a CUDA
graph. The stream is the argument `stream`: a ``cudaStream_t`` as an integer (0 and 1 are the legacy default stream), or a
stream of torch, of CuPy, or with ``__cuda_stream__``. Without one it is torch's current stream if an array is torch's, else
CuPy's if one is CuPy's; other arrays need it, since nobody could say which stream is right. Inputs are made ready for the
stream as DLPack has it. Arrays are kept from being freed during the call only; after it, their frameworks order reuse of
memory by their own streams, so keep arrays that another stream works on. The arrays' device must be the current one. JAX
takes arrays for constants: give it outputs only if nothing else uses them, and wait for the stream before it reads them.

**Errors.** ``TypeError`` and ``ValueError`` name the argument, the value and the limit; `llmd.UnsupportedError`: this backend has no code
for it; `llmd.Error`: the device failed. What lies in CUDA arrays is not looked at by the host: see `validate` of
`Plan.attention` and `error` of `append_kv`.

**Threads.** Functions may be called from any thread; the GIL is released while the backend works. `Workspace` says more.

Examples
--------
>>> import numpy as np
>>> shape = AttentionShape("decode", max_batch=8, num_q_heads=4, num_kv_heads=2, head_dim=64, kv_dtype="f16", page_size=16)
>>> workspace = Workspace(shape)
>>> cache = KvCache(*np.zeros((2, 100, 16, 2, 64), np.float16))
>>> q, o = np.ones((2, 3, 4, 64), np.float16)
>>> k, v = np.ones((2, 3, 2, 64), np.float16)
>>> append_kv(cache, k, v, slots=np.array([0, 37, 16 * 50]))  # one new token for each of 3 requests
>>> pages = PageList(np.array([[0, 0], [1, 2], [50, 0]], np.int32), seq_lens=np.array([1, 22, 1], np.int32))
>>> plan = workspace.plan(pages)  # once a step
>>> plan.attention(q, o, cache)  # for each layer
>>> bool((o[0] == v[0, 0]).all())
True
"""

from __future__ import annotations

from llmd._cuda_attention import AttentionShape, DataError, Mode, Plan, Workspace, merge_states
from llmd._cuda_backend import Backend, BackendName, CudaStream, DlpackArray, DType, StreamLike, backend
from llmd._cuda_cache import (
    BlockBases,
    KvCache,
    Layout,
    PageList,
    append_kv,
    block_bases,
    copy_blocks,
    gather_blocks,
    scatter_blocks,
)
from llmd._cuda_layers import Rope, rms_norm, rope, rope_append, sample, silu_and_mul

__all__ = [
    "AttentionShape",
    "Backend",
    "BackendName",
    "BlockBases",
    "CudaStream",
    "DType",
    "DataError",
    "DlpackArray",
    "KvCache",
    "Layout",
    "Mode",
    "PageList",
    "Plan",
    "Rope",
    "StreamLike",
    "Workspace",
    "append_kv",
    "backend",
    "block_bases",
    "copy_blocks",
    "gather_blocks",
    "merge_states",
    "rms_norm",
    "rope",
    "rope_append",
    "sample",
    "scatter_blocks",
    "silu_and_mul",
]
