"""Block pool and KV cache manager against a model in plain Python: lists and dictionaries, searched through."""

import llmd
import llmd.hash as lh
import llmd.worker as lw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 2
HASHER = lh.VllmHasher(block_size=SIZE, none_hash=b"\1" * 32)


def low64(digest):
    return int.from_bytes(digest[-8:], "big")


class Pool:
    """The rules of vLLM's block pool, word by word."""

    def __init__(self, count, caching):
        self.caching = caching
        self.free = list(range(1, count))
        self.held = dict.fromkeys(range(1, count), 0)
        self.hashes = {}  # block: digest
        self.cached = {}  # digest: blocks, first come first

    def forget(self, block):
        digest = self.hashes.pop(block, None)
        if digest is not None:
            self.cached[digest].remove(block)
            if not self.cached[digest]:
                del self.cached[digest]

    def new(self, n):
        taken, self.free = self.free[:n], self.free[n:]
        for block in taken:
            self.forget(block)
            self.held[block] = 1
        return taken

    def touch(self, blocks):
        for block in blocks:
            if self.held[block] == 0:
                self.free.remove(block)
            self.held[block] += 1

    def give_back(self, blocks):
        freed = []
        for block in blocks:
            self.held[block] -= 1
            if self.held[block] == 0:
                freed.append(block)
        fresh = [block for block in freed if block not in self.hashes]
        self.free = fresh + self.free + [block for block in freed if block in self.hashes]

    def commit(self, table, digests, begin, end):
        for i in range(begin, end):
            if table[i] not in self.hashes:
                self.hashes[table[i]] = digests[i]
                self.cached.setdefault(digests[i], []).append(table[i])

    def reset(self):
        if any(self.held.values()):
            return False
        self.hashes.clear()
        self.cached.clear()
        return True


def compare(pool, model, heard):
    state = pool.state
    assert state.num_free == len(model.free)
    assert state.num_held == sum(1 for held in model.held.values() if held)
    assert state.num_cached_blocks == len(model.hashes) and state.num_cached_keys == len(
        model.cached
    )
    assert state.usage == pytest.approx(1 - len(model.free) / len(model.held))
    for block, held in model.held.items():
        assert pool.block_state(block)[:2] == (held, model.hashes.get(block))
    for event in pool.take_events():
        if event.kind == "BlockStored":
            assert len(event.tokens) == len(event.hashes) * SIZE
            heard.update(event.hashes.tolist())
        elif event.kind == "BlockRemoved":
            heard.difference_update(event.hashes.tolist())
        else:
            heard.clear()
    assert heard == {low64(digest) for digest in model.cached}


# Few prompts with common beginnings, so that blocks are found, duplicated and evicted.
PROMPT = st.tuples(st.integers(0, 2), st.integers(1, 9)).map(
    lambda p: [1, 2, 3, 4, p[0], 6, p[0], 8, 9, 10][: p[1]]
)
OPERATION = st.tuples(st.sampled_from(["new", "new", "free", "free", "touch", "commit", "evict", "reset"]),
                      st.integers(0, 99), PROMPT)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 9), st.booleans(), st.lists(OPERATION, max_size=25))
def test_block_pool(count, caching, operations):
    pool = lw.BlockPool(
        num_blocks=count, block_size=SIZE, enable_caching=caching, enable_events=True
    )
    model, tables, heard = Pool(count, caching), [], set()
    for what, number, prompt in operations:
        if what == "new":
            n = number % 4
            if n > len(model.free):
                with pytest.raises(llmd.ResourceExhaustedError):
                    pool.get_new_blocks(n)
            else:
                blocks = pool.get_new_blocks(n).tolist()
                assert blocks == model.new(n)
                tables.append(blocks)
        elif what == "free" and tables:
            blocks = tables.pop(number % len(tables))[::-1]
            pool.free_blocks(blocks)
            model.give_back(blocks)
        elif what == "touch":
            blocks = sorted(model.hashes)[: number % 3]
            pool.touch(blocks)
            model.touch(blocks)
            tables.append(blocks)
            with pytest.raises(ValueError):
                pool.touch([count])
        elif what == "commit" and tables and caching:
            request = lw.Request(number, prompt, hasher=HASHER)
            digests, table = request.block_hashes, tables[number % len(tables)]
            full = min(len(digests), len(table))
            if all(
                model.hashes.get(block, digest) == digest
                for block, digest in zip(table, digests, strict=False)
            ):
                pool.cache_full_blocks(request, table, 0, full)
                model.commit(table, digests, 0, full)
                for digest in digests[:full]:
                    assert pool.find(digest) in model.cached[digest]
            else:
                with pytest.raises((ValueError, llmd.FailedPreconditionError)):
                    pool.cache_full_blocks(request, table, 0, full)
        elif what == "evict":
            blocks = sorted(model.hashes)[: number % 3]
            pool.evict_blocks(blocks)
            for block in blocks:
                model.forget(block)
        elif what == "reset":
            assert pool.reset() == model.reset()
        compare(pool, model, heard)
    assert pool.find(bytes(32)) is None


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 12),
    st.lists(st.tuples(st.sampled_from(["start", "start", "grow", "end", "preempt", "reset"]), st.integers(0, 99), PROMPT), max_size=25),
)  # fmt: skip
def test_manager(count, operations):
    """Requests that are prefilled whole, then grow, end or are preempted."""
    manager = lw.KvCacheManager(num_blocks=count, block_size=SIZE, enable_events=True)
    model, heard, running, waiting = Pool(count, True), set(), {}, []
    expected_stats = [0, 0, 0]
    next_id = 1
    for what, number, prompt in operations:
        if what == "start":
            request = waiting.pop() if waiting else lw.Request(next_id, prompt, hasher=HASHER)
            next_id += 1
            digests, tokens = request.block_hashes, request.num_tokens
            hits = []
            for digest in digests[: (tokens - 1) // SIZE]:
                if digest not in model.cached:
                    break
                hits.append(model.cached[digest][0])
            hit = manager.get_computed_blocks(request)
            assert [model.hashes[block] for block in hit.blocks.tolist()] == digests[: len(hits)]
            assert hit.num_tokens == len(hits) * SIZE
            hits = hit.blocks.tolist()  # any of the duplicates
            need = (
                -(-tokens // SIZE) - len(hits) + sum(1 for block in hits if model.held[block] == 0)
            )
            blocks = manager.allocate_slots(request, tokens - hit.num_tokens, hit=hit)
            if need > len(model.free):
                assert blocks is None
                waiting.append(request)
            else:
                model.touch(hits)
                table = hits + model.new(-(-tokens // SIZE) - len(hits))
                assert hits + blocks.tolist() == table == manager.block_table(request).tolist()
                model.commit(table, digests, len(hits), tokens // SIZE)
                request.num_computed_tokens = tokens
                request.status = "running"
                running[request.id] = (request, table)
                if request.num_preemptions == 0:
                    expected_stats = [
                        a + b
                        for a, b in zip(expected_stats, (1, tokens, hit.num_tokens), strict=True)
                    ]
        elif what == "grow" and running:
            request, table = list(running.values())[number % len(running)]
            request.append([number])
            extra = -(-request.num_tokens // SIZE) - len(table)
            blocks = manager.allocate_slots(request, 1)
            if extra > len(model.free):
                assert blocks is None
                manager.free(request)
                model.give_back(running.pop(request.id)[1][::-1])
            else:
                table += model.new(extra)
                model.commit(table, request.block_hashes, 0, request.num_tokens // SIZE)
                request.num_computed_tokens = request.num_tokens
                assert manager.block_table(request.id).tolist() == table
        elif what in ("end", "preempt") and running:
            request, table = list(running.values())[number % len(running)]
            del running[request.id]
            model.give_back(table[::-1])
            if what == "end":
                manager.free(request.id)
                with pytest.raises(llmd.NotFoundError):
                    manager.free(request)
            else:
                manager.preempt(request)
                assert (request.status, request.num_computed_tokens) == ("preempted", 0)
                waiting.append(request)
            assert manager.block_table(request).tolist() == []
        elif what == "reset":
            assert manager.reset_prefix_cache() == model.reset()
        assert manager.num_requests == len(running)
        compare(manager, model, heard)
    stats = manager.take_prefix_cache_stats()
    assert [stats.requests, stats.queries, stats.hits] == expected_stats
    assert manager.take_prefix_cache_stats()[:6] == (0,) * 6
