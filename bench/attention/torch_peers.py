"""PyTorch's scaled_dot_product_attention, which knows no pages."""

import math

from contenders import Contender
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from unsupported import Unsupported


class Sdpa(Contender):
    @classmethod
    def check(cls, case):
        lens = case["kv_lens"]
        if len(set(lens)) > 1 or lens[0] % case["page_size"] or case["window"] or case["fp8"] or case["hnd"]:
            raise Unsupported("only equal lengths of whole NHD pages in bf16")
        if case["part"] != "prefill" and case["kv_bytes"] > 600e6:
            raise Unsupported("decode of up to 600 MB")  # it may copy the cache, once a query head


class SdpaGather(Sdpa):
    """After gathering the pages into a contiguous cache."""

    def __init__(self, problem):
        super().__init__(problem)
        self.index = problem.table.reshape(-1).long()

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        shape = (p.batch, p.kv_lens[0], p.num_kv_heads, p.head_dim)
        k, v = (x.index_select(0, self.index).view(shape).transpose(1, 2) for x in (p.k[j], p.v[j]))
        out = scaled_dot_product_attention(p.q.unsqueeze(2), k, v, scale=p.scale, enable_gqa=p.group > 1)
        self.out.copy_(out.squeeze(2))


class SdpaDense(Sdpa):
    """Reads each pool's memory as if it were a contiguous cache: the same bytes in another order, so its output is
    another one."""

    checked = False

    def __init__(self, problem):
        super().__init__(problem)
        p = problem
        shape = (p.batch, p.kv_lens[0], p.num_kv_heads, p.head_dim)
        count = math.prod(shape)
        self.k, self.v = ([x.reshape(-1)[:count].view(shape).transpose(1, 2) for x in caches]
                          for caches in (p.k, p.v))
        self.q = p.q.view(p.batch, p.new_lens[0], p.num_q_heads, p.head_dim).transpose(1, 2)
        self.mask = {}
        if p.prefill and p.new_lens[0] == p.kv_lens[0]:
            self.mask = {"is_causal": True}
        elif p.prefill:
            self.mask = {"attn_mask": causal_lower_right(p.new_lens[0], p.kv_lens[0])}

    def run(self, i):
        p = self.p
        j = i % p.num_pools
        scaled_dot_product_attention(self.q, self.k[j], self.v[j], scale=p.scale, enable_gqa=p.group > 1, **self.mask)
