"""Inputs of one case on the device: pools of random pages, one page table, and a float32 reference for some."""

import math

import torch

COLD_BYTES = 300e6  # working sets below this rotate over disjoint pools, so that no launch finds its keys in the cache


def rotations(size):
    return 1 if size >= COLD_BYTES else int(COLD_BYTES / max(size, 1)) + 2


def graph_launches(case):
    """Launches a replay: enough for its time to be measured well, each pool at least once."""
    size = case["kv_bytes"]
    if case["part"] == "prefill":
        return max(1, min(6, round(4e12 / case["flop"])))
    if size > 3.5e9:
        return 6
    return max(rotations(size), 50 if size < 134e6 else 20)


def used_pages(case):
    """Page each request's visible keys begin in, and the page after its last."""
    window, size = case["window"], case["page_size"]
    first = [max(0, length - new - window + 1) // size if window else 0
             for length, new in zip(case["kv_lens"], case["new_lens"], strict=True)]
    end = [-(-length // size) for length in case["kv_lens"]]
    return first, end


class Arena:
    """Random memory that the cases read their caches from, of one type at a time; grows to what a case needs."""

    def __init__(self, device):
        self.device = device
        self.memory = torch.empty(0, dtype=torch.bfloat16, device=device)

    @staticmethod
    def pool(case):
        """Pages of a pool, more than needed, and elements of one's keys or values."""
        first, end = used_pages(case)
        used = sum(e - f for f, e in zip(first, end, strict=True))
        pages = used + used // 8 + 7
        page = case["page_size"] * case["num_kv_heads"] * case["head_dim"]
        return pages, -(-pages * page // 256) * 256

    @classmethod
    def elements_of(cls, case):
        return 2 * cls.pool(case)[1] * rotations(case["kv_bytes"])

    @classmethod
    def bytes_of(cls, case):
        return cls.elements_of(case) * (1 if case["fp8"] else 2)

    def take(self, case):
        dtype = torch.float8_e4m3fn if case["fp8"] else torch.bfloat16
        count = self.elements_of(case)
        if self.memory.dtype == dtype and self.memory.numel() >= count:
            return self.memory
        self.memory = torch.empty(0, dtype=dtype, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.memory = torch.empty(count, dtype=dtype, device=self.device)
        chunk = 1 << 26
        for start in range(0, count, chunk):
            part = self.memory[start:start + chunk]
            if case["fp8"]:
                random = torch.randn(part.numel(), device=self.device).to(dtype)
                part.view(torch.uint8).copy_(random.view(torch.uint8))
            else:
                part.normal_()
        return self.memory


class Problem:
    """Case `case` (a line of `bench_attention --list`). `k[i]`, `v[i]` are pool i, [pages, P, Hkv, D] or HND."""

    def __init__(self, case, arena, device):
        for name, value in case.items():
            setattr(self, name, value)
        self.case = case
        self.device = device
        self.batch = len(self.kv_lens)
        self.tokens = sum(self.new_lens)
        self.prefill = self.part == "prefill"
        self.group = self.num_q_heads // self.num_kv_heads
        self.scale = 1 / math.sqrt(self.head_dim)
        self._views(arena)
        self._tables(*used_pages(case))
        generator = torch.Generator(device=device).manual_seed(2)
        self.q = torch.randn((self.tokens, self.num_q_heads, self.head_dim), generator=generator, device=device,
                             dtype=torch.bfloat16)

    def _views(self, arena):
        memory = arena.take(self.case)
        page = self.page_size * self.num_kv_heads * self.head_dim
        self.pages, half = arena.pool(self.case)
        self.num_pools = rotations(self.kv_bytes)
        shape = (self.pages, self.num_kv_heads, self.page_size, self.head_dim) if self.hnd else (
            self.pages, self.page_size, self.num_kv_heads, self.head_dim)

        def view(start):
            return memory[start:start + self.pages * page].view(shape)

        self.k = [view(2 * i * half) for i in range(self.num_pools)]
        self.v = [view((2 * i + 1) * half) for i in range(self.num_pools)]

    def _tables(self, first, end):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randperm(self.pages, generator=generator, dtype=torch.int64).to(torch.int32)
        self.row = max(end)
        table = torch.zeros((self.batch, self.row), dtype=torch.int32)  # skipped pages: any id, never used
        start = 0
        for b in range(self.batch):
            count = end[b] - first[b]
            table[b, first[b]:end[b]] = ids[start:start + count]
            start += count
        self.table_host = table
        self.table = table.to(self.device)
        self.lens = torch.tensor(self.kv_lens, dtype=torch.int32, device=self.device)
        self.q_start_host = torch.zeros(self.batch + 1, dtype=torch.int32)
        self.q_start_host[1:] = torch.cumsum(torch.tensor(self.new_lens), 0)
        self.q_start = self.q_start_host.to(self.device)
        # The same in the other format: prefix sums of pages, all ids in a row, tokens in the last page.
        self.indptr_host = torch.zeros(self.batch + 1, dtype=torch.int32)
        self.indptr_host[1:] = torch.cumsum(torch.tensor(end), 0)
        self.indices = torch.cat([self.table[b, :end[b]] for b in range(self.batch)])
        self.last_page_len = (self.lens - 1) % self.page_size + 1
        self.last_page_len_host = self.last_page_len.cpu()

    def contiguous(self, b, pool):
        """Request b's visible keys and values, [L, Hkv, D]."""
        pages = self.table[b, :-(-self.kv_lens[b] // self.page_size)].long()
        parts = []
        for cache in (self.k[pool], self.v[pool]):
            raw = cache.view(torch.uint8)[pages].view(cache.dtype)
            if self.hnd:
                raw = raw.transpose(1, 2)
            parts.append(raw.reshape(-1, self.num_kv_heads, self.head_dim)[:self.kv_lens[b]])
        return parts

    def checked_requests(self):
        """The shortest, the longest and one between: enough to find a wrong mask, page or split."""
        order = sorted(range(self.batch), key=lambda b: self.kv_lens[b])
        return sorted({order[0], order[len(order) // 2], order[-1]})

    def reference(self, pool):
        """Rows of the output over that pool and their values in float32 arithmetic, for the requests above; in prefill
        for the first and last rows of each."""
        rows, values = [], []
        for b in self.checked_requests():
            k, v = (x.float() for x in self.contiguous(b, pool))
            length, new = self.kv_lens[b], self.new_lens[b]
            picked = list(range(new)) if new <= 64 else [*range(32), *range(new - 32, new)]
            index = torch.tensor([int(self.q_start_host[b]) + i for i in picked], device=self.device)
            position = torch.tensor([length - new + i for i in picked], device=self.device)
            key = torch.arange(length, device=self.device)
            visible = key[None, :] <= position[:, None]
            if self.window:
                visible &= key[None, :] > position[:, None] - self.window
            q = self.q[index].float().view(len(picked), self.num_kv_heads, self.group, self.head_dim)
            out = torch.empty_like(q)
            for h in range(self.num_kv_heads):  # one head at a time: the scores of a long prefix are large
                scores = torch.einsum("tgd,ld->tgl", q[:, h], k[:, h]) * self.scale
                scores.masked_fill_(~visible[:, None, :], float("-inf"))
                out[:, h] = torch.einsum("tgl,ld->tgd", torch.softmax(scores, -1), v[:, h])
            rows.append(index)
            values.append(out.reshape(len(picked), self.num_q_heads, self.head_dim))
        return torch.cat(rows), torch.cat(values)
