"""The indexes and the event codec against models in plain Python: sets of paths, and msgpack."""

import hashlib

import llmd
import llmd.events as le
import llmd.hash as lh
import llmd.index as li
import models
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

NAMESPACES = [li.make_namespace("m"), li.make_namespace("m", lora="a")]


def engine_key(path):
    """As of an engine: a hash of everything up to the block's end."""
    return int.from_bytes(hashlib.sha256(repr(path).encode()).digest()[:8], "big")


class Holders:
    """Which holder has which paths; a path is a namespace and the content keys from the root."""

    def __init__(self):
        self.held = {}  # holder: {path: how often it was stored}
        self.counts = {}  # holder: whether it counts

    def store(self, holder, start, contents):
        if contents and len(start) > 1 and not any(start in paths for paths in self.held.values()):
            return "unknown_parent", 0
        added = 0
        for content in contents:
            start = (*start, content)
            had = self.held[holder].get(start, 0)
            added += had == 0
            self.held[holder][start] = had + 1
        return "applied", added

    def remove(self, holder, paths):
        removed = 0
        for path in paths:
            had = self.held[holder].get(path, 0)
            if had > 1 and self.counts[holder]:
                self.held[holder][path] = had - 1
            elif had:
                del self.held[holder][path]
                removed += 1
        return removed

    def match(self, ns, chain):
        rows = {}
        for holder, paths in self.held.items():
            depth = 0
            while depth < len(chain) and (ns, *chain[: depth + 1]) in paths:
                depth += 1
            if depth:
                rows[holder.slot] = depth
        return rows


# Chains of keys 1 .. 3 meet often.
CHAIN = st.lists(st.integers(1, 3), max_size=5)
OPERATION = st.tuples(
    st.sampled_from(
        ["add", "store", "store", "store", "remove", "clear", "retire", "snapshot", "compact"]
    ),
    st.integers(0, 9),
    st.integers(0, 1),
    CHAIN,
    CHAIN,
)


@settings(max_examples=120, deadline=None)
@given(st.lists(OPERATION, max_size=25))
def test_prefix_index(operations):
    index, model, retired, added = li.PrefixIndex(), Holders(), [], 0
    for what, number, space, start, contents in operations:
        ns, holders = NAMESPACES[space], list(model.held)
        holder = holders[number % len(holders)] if holders else None
        if what == "add":
            counts = number % 2 == 1
            holder = index.add_holder(
                f"pod{added}:1", removal="refcount" if counts else "set", tier="cpu"
            )
            assert index.find_holder(f"pod{added}:1", tier="cpu") == holder
            added += 1
            model.held[holder], model.counts[holder] = {}, counts
        elif what == "snapshot":
            index = li.PrefixIndex.restore(index.snapshot())
        elif what == "compact":
            index.compact()
        elif holder is None:
            continue
        elif what == "store":
            path = (ns, *start)
            keys = [engine_key((ns, *start, *contents[: i + 1])) for i in range(len(contents))]
            result = index.store(
                holder,
                ns,
                engine_keys=keys,
                content_keys=contents,
                parent=engine_key(path) if start else None,
            )
            outcome, new = model.store(holder, path, contents)
            assert (result.outcome, result.added) == (outcome, new)
            assert result.duplicates == (len(contents) - new if result.applied else 0)
        elif what == "remove":
            paths = [(ns, *start[: i + 1]) for i in range(len(start))]
            assert index.remove(holder, [engine_key(path) for path in paths]) == model.remove(
                holder, paths
            )
        elif what == "clear":
            assert index.clear(holder)
            model.held[holder].clear()
        elif what == "retire":
            assert index.retire(holder) and not index.retire(holder)
            del model.held[holder]
            retired.append(holder)
        for chain in (start, contents, start + contents):
            assert dict(index.match(ns, chain)) == model.match(ns, chain)
        assert index.stats().holder_blocks == sum(len(paths) for paths in model.held.values())
        assert [h for h, _ in index.holders()] == sorted(model.held, key=lambda h: h.slot)
        for gone in retired:
            assert index.holder(gone) is None
            assert (
                index.store(gone, ns, engine_keys=[1], content_keys=[1]).outcome == "stale_holder"
            )


def test_damaged_snapshots():
    index = li.PrefixIndex()
    holder = index.add_holder("a:1")
    index.store(holder, NAMESPACES[0], engine_keys=[1, 2], content_keys=[1, 2])
    good = index.snapshot()
    for damaged in (
        good[:-1],
        good[: len(good) // 2],
        good[:20] + b"\xff" + good[21:],
        b"",
        good + b"x",
    ):
        with pytest.raises((llmd.DataLossError, llmd.FailedPreconditionError, ValueError)):
            li.PrefixIndex.restore(damaged)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), CHAIN, st.integers(0, 5)), max_size=20),
    st.sampled_from([None, 7.0]),
)
def test_approximate_index(predictions, ttl):
    index, now = li.ApproxIndex(ttl=ttl, capacity_blocks=1000), 0.0
    holders = [index.add_holder(f"pod{i}:1") for i in range(3)]
    when = {}  # (holder, path): time of the last prediction
    for who, chain, wait in predictions:
        now += wait
        assert index.predict(holders[who], NAMESPACES[0], chain, now=now)
        for i in range(len(chain)):
            when[who, tuple(chain[: i + 1])] = now
        index.expire(now=now)
        if ttl is not None:
            when = {key: then for key, then in when.items() if now - then < ttl}
        for i, holder in enumerate(holders):
            depth = 0
            while (i, tuple(chain[: depth + 1])) in when and depth < len(chain):
                depth += 1
            assert index.match(NAMESPACES[0], chain).depth(holder) == depth
            assert index.size(holder) == sum(1 for who, _ in when if who == i)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=8), max_size=10),
)
def test_approximate_index_is_bounded(capacity, chains):
    index = li.ApproxIndex(capacity_blocks=capacity)
    holder = index.add_holder("a:1")
    for chain in chains:
        index.predict(holder, NAMESPACES[0], chain, now=0.0)
        assert index.size(holder) <= capacity
        assert index.match(NAMESPACES[0], chain).depth(holder) <= capacity


# --- From events to the index ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["store", "store", "remove", "clear"]), st.integers(0, 1),
                          st.lists(st.integers(1, 2), min_size=1, max_size=4), st.integers(0, 3)), max_size=15))  # fmt: skip
def test_ingestor(operations):
    """Two publishers of blocks of two tokens; parents that nobody has are waited for."""
    index = li.PrefixIndex()
    feed = li.KvEventIngestor(index, max_orphan_blocks=0)
    pods = [feed.add_publisher(f"pod{i}:1", model="m") for i in range(2)]
    held = [set(), set()]
    ns = li.request_namespace("m", block_size=2)
    for what, who, tokens, skipped in operations:
        path = tuple(tokens)
        begin = min(skipped, len(path) - 1)
        if what == "clear":
            event = le.all_blocks_cleared()
            held[who].clear()
        elif what == "store":
            keys = [engine_key(path[: i + 1]) for i in range(begin, len(path))]
            event = le.block_stored(
                keys,
                tokens=[t for token in path[begin:] for t in (token, 7)],
                block_size=2,
                parent=engine_key(path[:begin]) if begin else None,
            )
            if begin == 0 or path[:begin] in held[0] | held[1]:
                held[who].update(path[: i + 1] for i in range(begin, len(path)))
        else:
            event = le.block_removed([engine_key(path)])
            held[who].discard(path)
        feed.apply(pods[who], le.encode([event], timestamp=0.0))
        chain = lh.content_keys([t for token in path for t in (token, 7)], block_size=2)
        expected = {}
        for i in range(2):
            depth = 0
            while depth < len(path) and path[: depth + 1] in held[i]:
                depth += 1
            if depth:
                expected[f"pod{i}:1"] = depth
        assert index.by_endpoint(index.match(ns, chain)) == expected
    assert feed.counters.batches == len(operations)


def test_publishers_leave_holders_of_others_alone():
    index = li.PrefixIndex()
    mine = index.add_holder("a:1")
    feed = li.KvEventIngestor(index)
    with pytest.raises(
        llmd.AlreadyExistsError, match='endpoint "a:1" has a holder that no ingestor made'
    ):
        feed.add_publisher("a:1", model="m")
    assert index.holder(mine) is not None
    index.retire(mine)
    feed.add_publisher("a:1", model="m")


# --- The codec ---

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
TEXT = st.text(max_size=8)


@st.composite
def stored_fields(draw):
    count = draw(st.integers(1, 3))
    return {
        "block_hashes": draw(st.lists(U64, min_size=count, max_size=count)),
        "parent_block_hash": draw(st.none() | st.integers(1, 2**64 - 1)),
        "token_ids": draw(st.lists(U32, min_size=2 * count, max_size=2 * count)),
        "block_size": 2,
        "lora_id": draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        "medium": draw(st.none() | st.sampled_from(["GPU", "CPU"])),
        "lora_name": draw(st.none() | st.text(min_size=1, max_size=8)),
        "extra_keys": draw(
            st.none()
            | st.lists(st.lists(TEXT, min_size=1, max_size=2), min_size=count, max_size=count)
        ),
        "group_idx": draw(st.none() | U32),
        "kv_cache_spec_kind": draw(st.none() | st.sampled_from(["full_attention", "mamba"])),
        "kv_cache_spec_sliding_window": draw(st.none() | U32),
    }


REMOVED = st.fixed_dictionaries({
    "block_hashes": st.lists(U64, max_size=3),
    "medium": st.none() | st.just("GPU"),
    "group_idx": st.none() | U32,
})  # fmt: skip


def event_of(kind, fields):
    if kind == "AllBlocksCleared":
        return le.all_blocks_cleared()
    if kind == "BlockRemoved":
        return le.block_removed(
            fields["block_hashes"], medium=fields["medium"] or "", group_idx=fields["group_idx"],
            tier=(fields["medium"] or "gpu").lower(),
        )  # fmt: skip
    return le.block_stored(
        fields["block_hashes"],
        tokens=fields["token_ids"],
        block_size=2,
        parent=fields["parent_block_hash"],
        lora_id=fields["lora_id"],
        medium=fields["medium"] or "",
        tier=(fields["medium"] or "gpu").lower(),
        lora_name=fields["lora_name"] or "",
        extra_keys=tuple(tuple(keys) for keys in fields["extra_keys"] or ()),
        group_idx=fields["group_idx"],
        spec_kind=fields["kv_cache_spec_kind"] or "",
        sliding_window=fields["kv_cache_spec_sliding_window"],
    )


WIRE = st.one_of(st.tuples(st.just("BlockStored"), stored_fields()), st.tuples(st.just("BlockRemoved"), REMOVED),
                 st.just(("AllBlocksCleared", {})))  # fmt: skip


def fields_of(kind):
    return {"BlockStored": models.STORED, "BlockRemoved": models.REMOVED, "AllBlocksCleared": ()}[
        kind
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(WIRE, max_size=3), st.sampled_from(sorted(models.STORED_FIELDS)), st.none() | U32,
       st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
def test_array_form_is_msgpack(events, schema, rank, timestamp):
    wanted = {"BlockStored": models.STORED_FIELDS, "BlockRemoved": models.REMOVED_FIELDS}
    rows = []
    for kind, fields in events:
        names = fields_of(kind)[: wanted[kind][schema]] if kind in wanted else ()
        rows.append([kind, *(fields[name] for name in names)])
    payload = le.encode(
        [event_of(*event) for event in events],
        timestamp=timestamp,
        schema=schema,
        data_parallel_rank=rank,
    )
    assert payload == msgpack.packb(
        [timestamp, rows] if schema == "array6" and rank is None else [timestamp, rows, rank]
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(WIRE, max_size=3), st.sampled_from(["map", "map_wide"]), st.none() | U32)
def test_map_form_is_msgpack(events, schema, rank):
    rows = []
    for kind, fields in events:
        kept = {
            n: fields[n] for n in fields_of(kind) if fields[n] is not None or n in models.NO_DEFAULT
        }
        rows.append({"type": kind, **kept})
    payload = le.encode(
        [event_of(*event) for event in events],
        timestamp=1.5,
        schema=schema,
        data_parallel_rank=rank,
    )
    unpacked = msgpack.unpackb(payload)
    assert unpacked == [1.5, rows, rank] and [list(row) for row in unpacked[1]] == [
        list(row) for row in rows
    ]
    if schema == "map":
        assert payload == msgpack.packb([1.5, rows, rank])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(WIRE, max_size=3), st.booleans(), st.none() | U32, st.randoms(use_true_random=False)
)
def test_decoder_reads_what_msgpack_writes(events, maps, rank, random):
    rows = []
    for kind, fields in events:
        if maps:
            items = [("type", kind), *fields.items()]
            random.shuffle(items)
            rows.append(dict(items))
        else:
            rows.append([kind, *(fields[name] for name in fields_of(kind))])
    batch = le.decode(msgpack.packb([1.5, rows, rank]))
    assert (batch.skipped_events, batch.data_parallel_rank, batch.timestamp) == (0, rank, 1.5)
    assert list(batch.events) == [event_of(*event) for event in events]


@given(
    st.lists(
        st.integers(-(2**63), 2**64 - 1) | st.binary(min_size=1, max_size=40),
        min_size=1,
        max_size=4,
    )
)
def test_hashes_of_every_width(hashes):
    (event,) = le.decode(msgpack.packb([0, [["BlockRemoved", hashes, None]]])).events
    expected = [h % 2**64 if isinstance(h, int) else int.from_bytes(h[-8:], "big") for h in hashes]
    assert event.hashes.tolist() == expected and event.hashes.dtype == np.uint64
