"""The indexes against literal models; snapshot; events into the index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmd
import llmd.events as le
import llmd.hash as lh
import llmd.index as li

KEY = st.integers(0, 2**64 - 1)


class Model:
    """A literal map: (namespace, chain) -> holders that have the block at its end."""

    def __init__(self):
        self.nodes = {}
        self.paths = {}  # engine key -> (namespace, chain)

    def store(self, slot, ns, parent, blocks):
        chain = () if parent is None else self.paths[parent][1]
        for engine, content in blocks:
            chain += (content,)
            self.paths[engine] = (ns, chain)
            self.nodes.setdefault((ns, chain), set()).add(slot)

    def remove(self, slot, engine):
        self.nodes.get(self.paths.get(engine), set()).discard(slot)

    def match(self, ns, chain):
        rows = {}
        alive = None
        for i in range(len(chain)):
            holders = self.nodes.get((ns, tuple(chain[: i + 1])), set())
            alive = holders if alive is None else alive & holders
            for slot in alive:
                rows[slot] = i + 1
        return rows


def engine_key(ns_name, chain):
    """As an engine does: one key for one chain."""
    return hash((ns_name, chain)) % 2**64


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_against_a_literal_map(data):
    index, model = li.PrefixIndex(), Model()
    spaces = {name: li.make_namespace(name) for name in "ab"}
    pods = [index.add_holder(f"pod{i}:1") for i in range(3)]
    assert [pod.slot for pod in pods] == [1, 2, 3]
    chains = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
    for _ in range(data.draw(st.integers(1, 25))):
        pod = data.draw(st.sampled_from(pods))
        name = data.draw(st.sampled_from("ab"))
        chain = data.draw(chains)
        if data.draw(st.booleans()):
            blocks = [(engine_key(name, chain[: i + 1]), chain[i]) for i in range(len(chain))]
            result = index.store(
                pod,
                spaces[name],
                engine_keys=np.array([block[0] for block in blocks], np.uint64),
                content_keys=[block[1] for block in blocks],
            )
            assert result.applied and result.added + result.duplicates == len(chain)
            model.store(pod.slot, name, None, blocks)
        else:
            key = engine_key(name, chain)
            had = pod.slot in model.nodes.get((name, chain), set())
            assert index.remove(pod, [key]) == had
            model.remove(pod.slot, key)
        asked = data.draw(chains)
        match = index.match(spaces[name], list(asked))
        assert dict(match) == model.match(name, asked)
        assert dict(zip(match.slots.tolist(), match.depths.tolist(), strict=True)) == dict(match)
        assert all(match.depth(pod) == model.match(name, asked).get(pod.slot, 0) for pod in pods)
    again = li.PrefixIndex.restore(index.snapshot())
    assert again.holders() == index.holders()
    for name in "ab":
        for asked in ((0,), (0, 1), (1, 2, 0), (2, 2)):
            assert dict(again.match(spaces[name], list(asked))) == model.match(name, asked)


def test_parents_and_outcomes():
    index = li.PrefixIndex()
    ns, other = li.make_namespace("m"), li.make_namespace("m", lora="x")
    pod = index.add_holder("a:1")
    assert index.store(pod, ns, engine_keys=[1], content_keys=[10], parent=99).outcome == "unknown_parent"
    assert index.store(pod, ns, engine_keys=[1], content_keys=[10]).applied
    assert index.store(pod, other, engine_keys=[2], content_keys=[11], parent=1).outcome == "other_namespace"
    assert index.store(pod, ns, engine_keys=[-2], content_keys=[11], parent=1) == ("applied", 1, 0)
    cpu = index.add_holder("a:1", tier="cpu")
    assert index.store_known(cpu, [1, 2**64 - 2, 7]) == 2
    assert index.by_endpoint(index.match(ns, [10, 11, 12])) == {"a:1": 2}
    assert index.remove(pod, np.array([-2], np.int64)) == 1
    match = index.match(ns, [10, 11])
    assert (match.depth(pod), match.depth(cpu)) == (1, 2)
    assert index.by_endpoint(match, tier="gpu") == {"a:1": 1}
    assert index.holder(cpu) == li.Holder("a:1", None, "cpu")
    assert index.find_holder("a:1", tier="cpu") == cpu and index.find_holder("b:1") is None
    assert index.clear(cpu) and index.retire(cpu) and not index.retire(cpu)
    assert index.holder(cpu) is None and index.store_known(cpu, [1]) == 0
    assert index.store(cpu, ns, engine_keys=[1], content_keys=[10]).outcome == "stale_holder"
    stats = index.stats()
    assert (stats.holders, stats.holder_blocks, stats.unknown_parents) == (1, 1, 1)
    index.compact()
    assert index.memory_usage().total_bytes > 0 and index.memory_usage().budget_bytes == 4 << 30
    assert repr(index) == "PrefixIndex(holders=1, holder_blocks=1)"
    assert repr(match) == "Match({1: 1, 2: 2})" and match[-1] == (2, 2) and len(match) == 2
    with pytest.raises(IndexError):
        match[2]
    with pytest.raises(AttributeError):
        match.rows = []


def test_errors_are_mapped():
    index = li.PrefixIndex(max_holders=1)
    pod = index.add_holder("a:1")
    with pytest.raises(llmd.AlreadyExistsError, match="a:1"):
        index.add_holder("a:1")
    with pytest.raises(llmd.ResourceExhaustedError, match="1"):
        index.add_holder("b:1")
    assert issubclass(llmd.AlreadyExistsError, llmd.Error) and issubclass(llmd.Error, RuntimeError)
    with pytest.raises(ValueError, match="max_bytes is 5"):
        li.PrefixIndex(max_bytes=5)
    with pytest.raises(ValueError, match="max_bytes is -5"):
        li.PrefixIndex(max_bytes=-5)
    with pytest.raises(ValueError, match="max_holders"):
        li.PrefixIndex(max_holders=70000)
    with pytest.raises(TypeError, match="max_bytes is of type float"):
        li.PrefixIndex(max_bytes=1e9)
    ns = li.make_namespace("m")
    with pytest.raises(ValueError, match="engine_keys has 1 elements, content_keys has 2"):
        index.store(pod, ns, engine_keys=[1], content_keys=[1, 2])
    with pytest.raises(ValueError, match=r"chain\[1\] is 18446744073709551616, not in -2\^63"):
        index.match(ns, [0, 2**64])
    with pytest.raises(TypeError, match="chain is of type NoneType"):
        index.match(ns, None)
    with pytest.raises(TypeError, match="chain: a buffer of format 'I'"):
        index.match(ns, np.zeros(3, np.uint32))
    with pytest.raises(ValueError, match="chain: .*contiguous"):
        index.match(ns, np.zeros(8, np.uint64)[::2])
    with pytest.raises(TypeError, match="ns is of type NoneType, wanted NamespaceId"):
        index.match(None, [1])
    with pytest.raises(TypeError, match="ns is of type str"):
        index.match("m", [1])
    with pytest.raises(TypeError, match="holder is of type int, wanted HolderId"):
        index.remove(0, [1])
    with pytest.raises(TypeError, match="match is of type dict"):
        index.by_endpoint({})
    with pytest.raises(TypeError, match="index is of type NoneType, wanted PrefixIndex"):
        li.KvEventIngestor(None)
    with pytest.raises(TypeError, match=r"peers\[0\] is of type int, wanted HolderId"):
        index.store_known(pod, [1], peers=[0])
    with pytest.raises(ValueError, match="removal is"):
        index.add_holder("c:1", removal="never")
    with pytest.raises(ValueError, match="dp_rank is -1"):
        index.add_holder("c:1", dp_rank=-1)
    with pytest.raises(TypeError, match="endpoint is of type bytes"):
        index.add_holder(b"c:1")
    snapshot = index.snapshot()
    with pytest.raises(llmd.DataLossError):
        li.PrefixIndex.restore(snapshot[:-3])
    with pytest.raises(TypeError, match="snapshot is of type int"):
        li.PrefixIndex.restore(3)
    with pytest.raises(llmd.NotFoundError) as caught:
        li.KvEventIngestor(index).apply(77, le.encode([], timestamp=0))
    assert isinstance(caught.value, KeyError) and "77" in str(caught.value) and str(caught.value)[0] != "'"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 2), min_size=1, max_size=4)), max_size=12))
def test_approx_index_without_limits(sent):
    index, ns = li.ApproxIndex(), li.make_namespace("m")
    pods = [index.add_holder(f"pod{i}") for i in range(2)]
    known = [set(), set()]
    for now, (pod, chain) in enumerate(sent):
        assert index.predict(pods[pod], ns, chain, now=now)
        known[pod] |= {tuple(chain[: i + 1]) for i in range(len(chain))}
    for pod in range(2):
        assert index.size(pods[pod]) == len(known[pod])
    for chain in ([0], [0, 1, 2], [2, 2, 2, 2]):
        expected = {
            pods[pod].slot: max(i + 1 for i in range(len(chain)) if tuple(chain[: i + 1]) in known[pod])
            for pod in range(2)
            if tuple(chain[:1]) in known[pod]
        }
        assert dict(index.match(ns, chain)) == expected


def test_approx_index_forgets():
    index, ns = li.ApproxIndex(capacity_blocks=3, ttl=10), li.make_namespace("m")
    pod = index.add_holder("a")
    index.predict(pod, ns, [1, 2], now=0)
    index.predict(pod, ns, [3, 4], now=1)
    assert index.size(pod) == 3
    assert index.resize(pod, 1) and index.size(pod) == 1 and dict(index.match(ns, [3, 4])) == {pod.slot: 1}
    assert index.resize(pod, 0) and index.predict(pod, ns, [5, 6, 7, 8], now=2) and index.size(pod) == 3
    index.expire(now=100)
    assert index.size(pod) == 0 and len(index.match(ns, [3])) == 0
    assert index.clear(pod) and index.retire(pod) and not index.predict(pod, ns, [1], now=101)
    assert not index.resize(pod, 5)
    with pytest.raises(ValueError, match="ttl"):
        li.ApproxIndex(ttl=-1)
    with pytest.raises(ValueError, match="now is nan"):
        index.predict(pod, ns, [1], now=float("nan"))
    assert "holders=0" in repr(index) and index.stats().holders == 0 and index.memory_usage().total_bytes > 0


def test_events_into_the_index():
    index = li.PrefixIndex()
    feed = li.KvEventIngestor(index)
    pod = feed.add_publisher("a:1", model="m")
    hasher = lh.VllmHasher(block_size=4, seed="any")
    prompt = list(range(40))
    keys = hasher.block_keys(prompt)
    late = le.block_stored(keys[5:], tokens=prompt[20:], block_size=4, parent=int(keys[4]))
    first = le.block_stored(keys[:5], tokens=prompt[:20], block_size=4)
    assert feed.apply(pod, le.encode([late], timestamp=0)).wants_replay
    assert not feed.apply(pod, le.encode([first], timestamp=0)).wants_replay
    ns = li.request_namespace("m", block_size=4)
    chain = lh.content_keys(prompt, block_size=4)
    assert index.by_endpoint(index.match(ns, chain)) == {"a:1": 10}
    salted = lh.content_keys(prompt, block_size=4, cache_salt="s")
    assert len(index.match(ns, salted)) == 0 and (salted[1:] == chain[1:]).all()
    picture = lh.content_keys(prompt, block_size=4, items=[lh.MultimodalItem("x", 5, 2)])
    assert (picture != chain).tolist() == [False, True] + [False] * 8
    feed.apply(pod, le.encode([le.block_removed(keys[3:4])], timestamp=0))
    assert index.by_endpoint(index.match(ns, chain)) == {"a:1": 3}
    assert feed.counters.orphans_attached == 1 and feed.counters.stored_blocks == 10
    with pytest.raises(llmd.AlreadyExistsError):
        feed.add_publisher("a:1", model="m")
    with pytest.raises(ValueError, match="endpoint"):
        feed.add_publisher("", model="m")
    with pytest.raises(ValueError):
        feed.apply(pod, b"\xc1")
    assert feed.clear(pod) and len(index.match(ns, chain)) == 0
    assert feed.remove_publisher(pod) and not feed.remove_publisher(pod) and index.stats().holders == 0
    del index  # the ingestor keeps it
    assert feed.add_publisher("a:1", model="m") != pod


@pytest.mark.parametrize("policy, left", [("set", 1), ("refcount", 2)])
def test_copies_in_gpu_memory(policy, left):
    index = li.PrefixIndex()
    feed = li.KvEventIngestor(index)
    pod = feed.add_publisher("a:1", model="m", gpu_removal=policy)
    stored = le.block_stored([1, 2], tokens=range(8), block_size=4)
    feed.apply(pod, le.encode([stored, stored, le.block_removed([2])], timestamp=0))
    chain = lh.content_keys(list(range(8)), block_size=4)
    match = index.match(li.request_namespace("m", block_size=4), chain)
    assert index.by_endpoint(match) == {"a:1": left}
    with pytest.raises(ValueError, match='gpu_removal is "copies", not "set" or "refcount"'):
        feed.add_publisher("b:1", model="m", gpu_removal="copies")


def test_handles():
    index = li.PrefixIndex()
    pod = index.add_holder("a:1")
    assert pod == li.HolderId(pod.slot, pod.generation) and hash(pod) == hash(li.HolderId(pod.slot, pod.generation))
    assert pod != "a:1" and pod in {pod}
    ns = li.make_namespace("m", block_size=32)
    assert ns == li.NamespaceId(ns.hi, ns.lo) and ns != li.make_namespace("m") and ns in {ns}
    assert "HolderId(slot=1, generation=" in repr(pod) and repr(ns).startswith("NamespaceId(hi=0x")
    with pytest.raises(ValueError, match="slot is 65536"):
        li.HolderId(65536, 1)
    assert li.request_namespace("m", block_size=16) == li.request_namespace("m")
