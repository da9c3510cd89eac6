"""Arguments that run code of their own while they are read, or that change; and arrays of every good kind."""

import array
import ctypes
import gc
import threading

import llmd.events as le
import llmd.gateway as lg
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import llmd.worker as lw
import numpy as np
import pytest

HASHER = lh.VllmHasher(block_size=2, none_hash=b"\1" * 32)
TOKENS = [1, 2, 70000, 4, 2**31 - 1, 6]
EXPECTED = HASHER.hash_blocks(TOKENS)


class Lying(list):
    """A list that says it is longer, and cannot be walked."""

    def __len__(self):
        return 2**40

    def __iter__(self):
        raise RuntimeError("no")

    def __getitem__(self, i):
        raise RuntimeError("no")


def unaligned(dtype):
    raw = bytearray(1) + bytearray(np.array(TOKENS, dtype).tobytes())
    return memoryview(raw)[1:].cast(np.dtype(dtype).char)


def read_only(values):
    values.flags.writeable = False
    return values


GOOD_TOKENS = {
    "list": lambda: TOKENS,
    "tuple": lambda: tuple(TOKENS),
    "list of a subclass": lambda: Lying(TOKENS),
    "NumPy scalars": lambda: [np.int64(token) for token in TOKENS],
    "int32": lambda: np.array(TOKENS, np.int32),
    "uint32": lambda: np.array(TOKENS, np.uint32),
    "int64": lambda: np.array(TOKENS, np.int64),
    "uint64": lambda: np.array(TOKENS, np.uint64),
    "longlong": lambda: np.array(TOKENS, np.longlong),
    "little-endian": lambda: np.array(TOKENS, "<i4"),
    "read-only int32": lambda: read_only(np.array(TOKENS, np.int32)),
    "read-only int64": lambda: read_only(np.array(TOKENS, np.int64)),
    "read-only memoryview": lambda: memoryview(np.array(TOKENS, np.uint32).tobytes()).cast("I"),
    "part of an array": lambda: np.array([9, 9, *TOKENS, 9], np.int32)[2:-1],
    "array('i')": lambda: array.array("i", TOKENS),
    "array('L')": lambda: array.array("L", TOKENS),
    "array('Q')": lambda: array.array("Q", TOKENS),
    "ctypes": lambda: (ctypes.c_int * len(TOKENS))(*TOKENS),
    "ctypes, 64 bits": lambda: (ctypes.c_uint64 * len(TOKENS))(*TOKENS),
    "unaligned uint32": lambda: unaligned(np.uint32),
    "unaligned int64": lambda: unaligned(np.int64),
    "one column": lambda: np.array([TOKENS], np.int32)[0],
}


@pytest.mark.parametrize("make", GOOD_TOKENS.values(), ids=GOOD_TOKENS)
def test_good_tokens(make):
    assert HASHER.hash_blocks(make()) == EXPECTED
    assert [int(key) for key in HASHER.block_keys(make())] == [lh.low64(d) for d in EXPECTED]
    assert lw.Request(1, make(), hasher=HASHER).block_hashes == EXPECTED
    assert ls.Prompt(make()).tokens.tolist() == TOKENS


def test_good_keys():
    index, ns = li.PrefixIndex(), li.make_namespace("m")
    holder = index.add_holder("a:1")
    keys = [5, 2**63, 2**64 - 1, 7]
    signed = [5, -(2**63), -1, 7]
    index.store(holder, ns, engine_keys=keys, content_keys=keys)
    raw = bytearray(3) + bytearray(np.array(keys, np.uint64).tobytes())
    for form in (
        keys,
        signed,
        tuple(keys),
        np.array(keys, np.uint64),
        read_only(np.array(keys, np.uint64)),
        np.array(signed, np.int64),
        array.array("Q", keys),
        memoryview(raw)[3:].cast("Q"),
        Lying(keys),
    ):
        assert index.match(ns, form).depth(holder) == 4
    ring = lg.RingHash(["a", "b", "c"])
    unaligned_picks = ring.pick_many(memoryview(raw)[3:].cast("Q"))
    assert unaligned_picks.tolist() == [ring.pick(key) for key in keys]


class Index:
    def __init__(self, give):
        self.give = give

    def __index__(self):
        return self.give()


def test_index_methods_are_called_and_their_errors_stay():
    assert HASHER.hash_blocks([Index(lambda: 1), Index(lambda: 2)]) == HASHER.hash_blocks([1, 2])

    def fail():
        raise LookupError("mine")

    for call in (
        lambda: HASHER.hash_blocks([Index(fail)]),
        lambda: li.PrefixIndex().match(li.make_namespace("m"), [Index(fail)]),
        lambda: lh.VllmHasher(block_size=Index(fail)),
        lambda: ls.EndpointPool().add("a", "h", Index(fail)),
        lambda: lg.RingHash(["a"]).pick(Index(fail)),
    ):
        with pytest.raises(LookupError, match="mine"):
            call()
    with pytest.raises(TypeError, match=r"tokens\[0\]"):
        HASHER.hash_blocks([Index(lambda: "1")])
    with pytest.raises(ValueError, match=r"tokens\[0\] is 4294967296"):
        HASHER.hash_blocks([Index(lambda: 2**32)])
    with pytest.raises(ValueError, match=r"tokens\[0\] is -1"):
        HASHER.hash_blocks([Index(lambda: -1)])


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.clear(),
        lambda values: values.pop(),
        lambda values: values.extend([3] * 10_000),
        lambda values: values.__setitem__(slice(None), [object()] * 3),
        lambda values: values.__setitem__(slice(None), ["x"] * len(values)),
    ],
    ids=["cleared", "shorter", "longer", "replaced by objects", "replaced by texts"],
)
def test_lists_that_change_while_they_are_read(change):
    """Whatever comes of it, it is an answer or an exception."""

    def hostile(elements, at=1):
        values = list(elements)
        values[at] = Index(lambda: change(values) or 1)
        return values

    index, ns = li.PrefixIndex(), li.make_namespace("m")
    holder = index.add_holder("a:1")
    ring = lg.RingHash(["a", "b"])
    for call in (
        lambda: HASHER.hash_blocks(hostile([1, 2, 3])),
        lambda: HASHER.hash_blocks(hostile(range(20_000), at=10_000)),
        lambda: index.match(ns, hostile([1, 2, 3])),
        lambda: index.store(holder, ns, engine_keys=hostile([1, 2, 3]), content_keys=[1, 2, 3]),
        lambda: index.remove(holder, hostile([1, 2])),
        lambda: lw.BlockPool(num_blocks=8).touch(hostile([1, 2])),
        lambda: ring.pick_many(hostile([1, 2])),
        lambda: le.encode(
            [le.block_stored([1], tokens=hostile([1, 2]), block_size=2)], timestamp=0
        ),
        lambda: ls.Prompt(hostile([1, 2, 3])),
    ):
        try:
            call()
        except (TypeError, ValueError, IndexError):
            pass
    gc.collect()


def test_lists_of_objects_that_change_while_they_are_read():
    events = []

    class Evil:
        def __getattr__(self, name):
            events.clear()
            gc.collect()
            raise AttributeError(name)

    events.extend([Evil(), le.all_blocks_cleared(), Evil()])
    with pytest.raises(TypeError, match=r"events\[0\]"):
        le._core.encode(events, 0.0, "map", None)


def test_iterables_that_fail():
    class Failing:
        def __iter__(self):
            raise LookupError("mine")

        def __len__(self):
            return 2**62

    def broken():
        yield "a:1"
        raise LookupError("mine")

    for call in (
        lambda values: lg.RingHash(values),
        lambda values: ls.Request("m", headers=values),
        lambda values: lh.estimate_tokens(values),
        lambda values: le.encode(values, timestamp=0),
        lambda values: lg.combine_hashes(values),
    ):
        with pytest.raises(LookupError, match="mine"):
            call(Failing())
    with pytest.raises(LookupError, match="mine"):
        lg.RingHash(broken())
    assert len(lg.RingHash(key for key in ("a", "b"))) > 0  # a generator is as good as a list


def test_buffers_cannot_be_resized_while_they_are_read():
    owner = array.array("q", range(400_000))
    slow = lh.VllmHasher(block_size=1)
    refused, running = [], threading.Event()

    def work():
        running.set()
        slow.hash_blocks(owner)

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    while thread.is_alive():
        try:
            owner.append(1)
            owner.pop()
        except BufferError:
            refused.append(True)
        thread.join(0.001)
    owner.append(1)  # given back afterwards
    raw = bytearray(64)
    batch = le.encode([], timestamp=0)
    payload = bytearray(batch)
    le.decode(payload)
    payload += b"more"
    view = memoryview(raw).cast("I")
    slow.hash_blocks(view)
    view.release()
    raw += b"more"


def test_views_outlive_their_owners():
    pool = ls.EndpointPool()
    pool.add("a", "h", 1)
    scheduler = ls.Scheduler(ls.make_config(["queue-scorer"]))
    decision = scheduler.schedule(ls.Request("m"), pool)
    endpoint, flight = decision.target, decision.dispatch()
    explanation = decision.explanation
    index = li.PrefixIndex()
    holder = index.add_holder("a:1")
    index.store(holder, li.make_namespace("m"), engine_keys=[1], content_keys=[1])
    match = index.match(li.make_namespace("m"), [1])
    chain = lh.VllmChain(lh.VllmHasher(block_size=1))
    ring = lg.RingHash(["a"]).bounded(100)
    feed = li.KvEventIngestor(li.PrefixIndex())
    del pool, scheduler, decision, index
    gc.collect()
    assert endpoint.name == "a" and flight.open in (True, False) and str(explanation)
    flight.close()
    assert match.depth(holder) == 1 and match.slots.tolist() == [holder.slot]
    assert len(chain.extend([1, 2])) == 2 and ring.pick(0, 1, [0]) == 0
    assert (
        feed.apply(feed.add_publisher("a:1", model="m"), le.encode([], timestamp=0)).skipped_events
        == 0
    )


def test_wrong_objects_inside_good_ones():
    """A field of a right object with a wrong value is as bad as a wrong argument."""
    for field, value in (("lora_name", 1), ("multimodal", 5), ("multimodal", [1]), ("multimodal", [("a", 1)]),
                         ("multimodal", [("a", -1, 1)]), ("embeds_digests", [None]), ("embeds_digests", b"x"),
                         ("lora_int_id", "1")):  # fmt: skip
        extras = lh.RequestExtras(**{field: value})
        with pytest.raises((TypeError, ValueError), match=rf"extras\.{field}"):
            lh.VllmChain(HASHER, extras)
    with pytest.raises(TypeError, match=r"headers\[0\]"):
        ls.Request("m", headers=["x"])
    with pytest.raises(TypeError, match=r"headers\[1\]\[1\]"):
        ls.Request("m", headers=[("a", "b"), ("c", None)])
    with pytest.raises(TypeError, match=r"prompts\[0\]"):
        ls.Request("m", prompts=[None])
    with pytest.raises(TypeError, match="items"):
        ls.Prompt([1], items=[("image", "x", 0, 1)])
    with pytest.raises(ValueError, match="offset 4294967296"):
        ls.Prompt([1], items=[ls.MultimodalItem("image", "x", 2**32, 1)])
    with pytest.raises(TypeError, match="candidates"):
        ls.Scheduler(ls.make_config(["queue-scorer"])).schedule(
            ls.Request(), ls.EndpointPool(), candidates=["a"]
        )
    for hosts in ([1], [None], [lg.HashHost(1)], [lg.HashHost("a", weight=-1)], [lg.HashHost("a", weight="1")],
                  [lg.HashHost("a", locality=2**32)]):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match="hosts"):
            lg.RingHash(hosts)
    with pytest.raises(ValueError, match="table_size"):
        lg.Maglev(["a"], table_size=2**61 - 1)  # a prime
    with pytest.raises(ValueError, match="ring_size"):
        lg.RingHash(["a"], max_ring_size=2**60, min_ring_size=2**59)
    with pytest.raises(TypeError, match="parameters"):
        lg.EngineMetricsReader(parameters=[("a", 1)])
    with pytest.raises(ValueError, match="parameters"):
        lg.EngineMetricsReader(parameters={"a": object()})


def test_wire_text_that_is_not_utf8_comes_back():
    """What a decoder gave may be given to any function of the gateway."""
    text = b"a\xff\xfe".decode("utf-8", "surrogateescape")
    reader = lg.SessionIdReader()
    assert reader.read({"x-session-id": text}).value == text
    assert lg.find_cookie(f"sid={text}", "sid") == text
    assert lg.hash_header(text) == lg.xxhash64(b"a\xff\xfe") == lg.xxhash64(text)
    assert ls.Request("m", headers={"x": text}).header("x") == text
    pool = ls.EndpointPool()
    pool.add("a", "h", 1, labels={"k": text})
    assert pool.find("default/a").labels["k"] == text


class Raising:
    def score(self, context, candidates, scores):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("\udcff"),
        ValueError("\ud800"),
        ValueError(b"\xff"),
        OSError(2, "x"),
        UnicodeError("\udcff"),
    ],
    ids=repr,
)
def test_plugins_with_exceptions_that_cannot_be_printed(error):
    """More than a scheduler has workspaces for: none is lost."""
    registry = ls.Registry()
    registry.register("raising", type("R", (Raising,), {"error": error}))
    scheduler = ls.Scheduler(ls.make_config(["raising"]), registry=registry)
    pool = ls.EndpointPool()
    pool.add("a", "h", 1)
    for _ in range(70):
        with pytest.raises(ls.PluginError) as raised:
            scheduler.schedule(ls.Request(), pool)
        assert raised.value.__cause__ is error


def test_plugins_that_decide_inside_a_decision():
    registry, depth = ls.Registry(), []

    class Nested:
        def score(self, context, candidates, scores):
            depth.append(1)
            scheduler.schedule(ls.Request(), pool, seed=1)

    registry.register("nested", Nested)
    scheduler = ls.Scheduler(ls.make_config(["nested"]), registry=registry)
    pool = ls.EndpointPool()
    pool.add("a", "h", 1)
    with pytest.raises(ls.PluginError) as raised:
        scheduler.schedule(ls.Request(), pool)
    error = raised.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert "16 deep" in str(error) and 16 <= len(depth) <= 18


@pytest.mark.parametrize(
    "result",
    [
        0.5,
        "abc",
        [None],
        [],
        [[1.0], [2.0]],
        [1.0, 2.0, 3.0],
        object(),
        {"a": 1},
        np.zeros((2, 2)),
        [object()] * 2,
    ],
    ids=repr,
)
def test_plugins_that_give_nonsense(result):
    registry = ls.Registry()

    class All:
        def score(self, context, candidates, scores):
            return result

    class Picks:
        def pick(self, context, positions, scores, ties):
            return result

    registry.register("scores", All)
    registry.register("picks", Picks)
    pool = ls.EndpointPool()
    pool.add("a", "h", 1)
    pool.add("b", "h", 2)
    for plugin in ("scores", "picks"):
        scheduler = ls.Scheduler(ls.make_config([plugin]), registry=registry)
        with pytest.raises(ls.PluginError, match=f'plugin "{plugin}"'):
            scheduler.schedule(ls.Request(), pool)
