"""Ring hash, Maglev, sessions, metrics pages and scores against models in plain Python."""

import base64
import math

import llmd.gateway as lg
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import models
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=50, deadline=None)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=12)
HOSTS = st.lists(
    st.tuples(st.text("abc:0123", min_size=1, max_size=8), st.integers(1, 5)), min_size=1, max_size=6,
    unique_by=lambda host: host[0],
)  # fmt: skip
HASHES = {"xxhash": lambda data: xxhash.xxh64_intdigest(data), "murmurhash2": models.murmur}


# --- Consistent hashing ---


@FEW
@given(
    HOSTS,
    st.integers(1, 200),
    st.integers(200, 400),
    st.sampled_from(sorted(HASHES)),
    st.lists(U64, max_size=20),
)
def test_ring_hash(hosts, smallest, largest, function, keys):
    entries = models.ring(hosts, smallest, largest, HASHES[function])
    ring = lg.RingHash(
        [lg.HashHost(*host) for host in hosts],
        min_ring_size=smallest,
        max_ring_size=largest,
        function=function,
    )
    assert len(ring) == len(entries)
    keys += [entry[0] + d for entry in entries[:5] for d in (-1, 0, 1)] + [0, 2**64 - 1]
    keys = [key for key in keys if 0 <= key < 2**64]
    expected = [models.ring_pick(entries, key) for key in keys]
    assert ring.pick_many(keys).tolist() == expected == [ring.pick(key) for key in keys]
    for attempt in (1, 2, 7):
        assert [ring.pick(k, attempt) for k in keys] == [
            models.ring_pick(entries, k, attempt) for k in keys
        ]


@FEW
@given(HOSTS, st.sampled_from([2, 3, 11, 101, 251]), st.lists(U64, max_size=20))
def test_maglev(hosts, size, keys):
    table = models.maglev(hosts, size)
    ours = lg.Maglev([lg.HashHost(*host) for host in hosts], table_size=size)
    assert ours.pick_many(np.arange(size, dtype=np.uint64)).tolist() == table
    for key in keys:
        assert ours.pick(key) == table[key % size]
        assert ours.pick(key, 3) == table[(key ^ (2**64 - 3)) % size]


@FEW
@given(
    st.binary(max_size=60), U64, st.lists(TEXT, min_size=1, max_size=4), st.lists(U64, max_size=5)
)
def test_request_hashes(data, seed, values, hashes):
    assert lg.xxhash64(data, seed) == xxhash.xxh64_intdigest(data, seed)
    assert lg.murmurhash2(data) == models.murmur(data)
    expected = 0
    for value in sorted(value.encode() for value in values):  # each hash is the next one's seed
        expected = xxhash.xxh64_intdigest(value, expected)
    assert lg.hash_header(*values) == expected
    combined = None
    for value in hashes:  # Envoy: rotate left by one, xor
        combined = (
            value if combined is None else ((combined << 1 | combined >> 63) & models.MASK) ^ value
        )
    assert lg.combine_hashes(hashes) == combined


# --- Sessions ---

VALUE = st.text("abcXYZ019-_.=", max_size=10)
COOKIES = st.lists(
    st.tuples(st.sampled_from(["session-id", "session-id2", "a"]), VALUE), max_size=4
)


def cookie_of(header, name):
    """The value ends at a second sign; an empty one is none."""
    for part in header.split(";"):
        key, _, rest = part.lstrip(" \t").partition("=")
        value = rest.partition("=")[0]
        if key == name and value:
            return value
    return ""


@FEW
@given(
    st.dictionaries(
        st.sampled_from(["x-session-id", "X-Session-Id", "session-id", "other"]), VALUE
    ),
    COOKIES,
)
def test_session_ids(headers, cookies):
    headers = {name.lower(): value for name, value in headers.items()}
    header = "; ".join(f"{name}={value}" for name, value in cookies)
    if cookies:
        headers["cookie"] = header
    expected = (
        headers.get("x-session-id") or headers.get("session-id") or cookie_of(header, "session-id")
    )
    assert lg.find_cookie(header, "session-id") == cookie_of(header, "session-id")
    found = lg.SessionIdReader().read(headers)
    assert (found.value, bool(found)) == (expected, bool(expected))


# --- Metrics pages ---

NUMBER = st.integers(0, 1000)
SERIES = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), NUMBER), min_size=1, max_size=3)


@FEW
@given(SERIES, SERIES, st.lists(st.floats(0, 1), min_size=1, max_size=2), st.none() | st.tuples(NUMBER, NUMBER),
       st.randoms(use_true_random=False))  # fmt: skip
def test_metrics_pages(waiting, running, usage, cache, random):
    """The first series of a family counts; families in any order, others between them."""
    families = [
        [
            "# TYPE vllm:num_requests_waiting gauge",
            *(f'vllm:num_requests_waiting{{m="{m}"}} {v}' for m, v in waiting),
        ],
        [
            "# TYPE vllm:num_requests_running gauge",
            *(f'vllm:num_requests_running{{m="{m}"}} {v}.0' for m, v in running),
        ],
        ["# HELP vllm:kv_cache_usage_perc x", *(f"vllm:kv_cache_usage_perc {v!r}" for v in usage)],
        ['other{a="b\\"c"} 5', "", "# a remark"],
    ]
    if cache is not None:
        families.append(
            [f'vllm:cache_config_info{{block_size="{cache[0]}",num_gpu_blocks="{cache[1]}"}} 1']
        )
    random.shuffle(families)
    page = "\n".join(line for family in families for line in family) + "\n"
    read = lg.EngineMetricsReader().read(page, now=1.0)
    assert (read.waiting, read.running, read.kv_usage) == (waiting[0][1], running[0][1], usage[0])
    assert (read.cache_block_size, read.cache_num_blocks) == (cache or (0, 0))


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200) | st.text('vllm:num_requests_waiting{}="\\ \n10e.#TYPE', max_size=80)
)
def test_hostile_pages(page):
    reader = lg.EngineMetricsReader()
    try:
        read = reader.read(page, now=1.0)
    except ValueError:
        return
    assert read.waiting is None or read.waiting >= 0


# --- Scores ---

LOAD = st.lists(
    st.tuples(st.none() | st.integers(0, 300), st.none() | st.integers(0, 300), st.none() | st.floats(0, 1)),
    min_size=1, max_size=6,
)  # fmt: skip


def pool_of(loads):
    pool = ls.EndpointPool()
    handles = []
    for i, (waiting, running, usage) in enumerate(loads):
        handles.append(pool.add(f"w{i}", f"10.0.0.{i + 1}", 8000))
        pool.set_metrics(handles[-1], waiting=waiting, running=running, kv_usage=usage, at=1.0)
    return pool, handles


def scores(plugin, pool, request=None):
    """By position; None where the scorer has no opinion."""
    scheduler = ls.Scheduler(ls.make_config([plugin]), allow_experimental=True)
    decision = scheduler.schedule(request or ls.Request("m"), pool, now=2.0, seed=1)
    name = plugin if isinstance(plugin, str) else plugin["type"]
    found = decision.explanation.profiles["default"].scores_of(name)
    return [found.get(f"w{i}") for i in range(len(pool))]


def each(function, values):
    """Of an endpoint that was never measured nothing is known."""
    return [None if value is None else pytest.approx(function(value)) for value in values]


def falling(values):
    known = [value for value in values if value is not None]
    low, high = min(known, default=0), max(known, default=0)
    return each(lambda value: 1.0 if low == high else (high - value) / (high - low), values)


@FEW
@given(LOAD, st.integers(-1, 200))
def test_load_scorers(loads, threshold):
    pool, _ = pool_of(loads)
    waiting, running, usage = zip(*loads, strict=True)
    assert scores("queue-scorer", pool) == falling(waiting)
    assert scores("running-requests-size-scorer", pool) == falling(running)
    assert scores("kv-cache-utilization-scorer", pool) == each(lambda used: 1 - used, usage)
    limit = threshold if threshold > 0 else 128
    expected = each(lambda q: 0.5 * (1 - min(q, limit) / limit), waiting)
    assert (
        scores({"type": "load-aware-scorer", "parameters": {"threshold": threshold}}, pool)
        == expected
    )


@FEW
@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=6), st.booleans())
def test_attribute_scorer(values, higher):
    pool, handles = pool_of([(None, None, None)] * len(values))
    for handle, value in zip(handles, values, strict=True):
        if value is not None:
            pool.set_attribute(handle, "x", value, at=1.0)
    known = [value for value in values if value is not None]
    kind = "linear_higher_is_better" if higher else "linear_lower_is_better"
    plugin = {
        "type": "endpoint-attribute-scorer",
        "parameters": {"attributeKey": "x", "algorithm": {"type": kind}},
    }
    expected = []
    for value in values:
        if value is None:
            expected.append(0.0)
        elif min(known) == max(known):
            expected.append(1.0)
        else:
            part = (value - min(known)) / (max(known) - min(known))
            expected.append(part if higher else 1 - part)
    assert scores(plugin, pool) == pytest.approx(expected, abs=1e-9)


@FEW
@given(st.integers(1, 4), st.data())
def test_session_affinity(count, data):
    pool, _ = pool_of([(0, 0, 0.0)] * count)
    wanted = data.draw(st.integers(0, count))
    token = base64.b64encode(f"default/w{wanted}".encode()).decode()
    request = ls.Request("m", headers={"X-Session-Token": token})
    expected = [1.0 if i == wanted else 0.0 for i in range(count)]
    assert scores("session-affinity-scorer", pool, request) == expected


@FEW
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=5),
    st.integers(0, 130),
    st.floats(0, 1),
    st.integers(1, 300),
)
def test_prefix_scorer(depths, tokens, weight, scale):
    pool, handles = pool_of([(0, 0, 0.0)] * len(depths))
    index = li.PrefixIndex()
    config = ls.make_config([
        "precise-prefix-cache-producer",
        {"type": "prefix-cache-scorer", "parameters": {
            "prefixMatchInfoProducerName": "precise-prefix-cache-producer", "matchLengthWeight": weight,
            "matchLengthScaleTokens": scale}},
    ])  # fmt: skip
    scheduler = ls.Scheduler(config, exact=index)
    request = scheduler.request(list(range(tokens)), model="m")
    chain = lh.content_keys(list(range(tokens)), block_size=16)
    for i, (handle, depth) in enumerate(zip(handles, depths, strict=True)):
        holder = index.add_holder(f"10.0.0.{i + 1}:8000")
        index.store(
            holder,
            li.request_namespace("m", block_size=16),
            engine_keys=chain[:depth],
            content_keys=chain[:depth],
        )
        pool.bind_holder(holder, handle)
    found = (
        scheduler.schedule(request, pool, now=1, seed=1)
        .explanation.profiles["default"]
        .scores_of("prefix-cache-scorer")
    )
    if len(chain) == 0:
        assert found == {}
    for i, depth in enumerate(depths if len(chain) else ()):
        blocks = min(depth, len(chain))
        length = min(1.0, blocks * 16 / scale) ** 2 if weight > 0 else 0.0
        assert found[f"w{i}"] == pytest.approx(weight * length + (1 - weight) * blocks / len(chain))


@FEW
@given(LOAD, st.lists(st.floats(0.25, 4), min_size=3, max_size=3), st.integers(1, 3), U64)
def test_weighted_sum_and_pick(loads, weights, most, seed):
    pool, _ = pool_of(loads)
    names = ["queue-scorer", "running-requests-size-scorer", "kv-cache-utilization-scorer"]
    picker = {"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": most}}
    config = ls.make_config(
        [*names, picker],
        {"default": {**dict(zip(names, weights, strict=True)), "max-score-picker": None}},
    )
    decision = ls.Scheduler(config).schedule(ls.Request("m"), pool, now=1.0, seed=seed)
    explained = decision.explanation.profiles["default"]
    waiting, running, usage = zip(*loads, strict=True)
    columns = [falling(waiting), falling(running), each(lambda used: 1 - used, usage)]
    parts = [
        [w * c[i].expected for w, c in zip(weights, columns, strict=True) if c[i] is not None]
        for i in range(len(loads))
    ]
    totals = [math.fsum(part) for part in parts]
    by_name = {e.name: float(t) for e, t in zip(explained.endpoints, explained.totals, strict=True)}
    assert [by_name[f"w{i}"] for i in range(len(loads))] == pytest.approx(totals)
    picked = [by_name[e.name] for e in decision.targets]
    assert picked == sorted(by_name.values(), reverse=True)[: len(picked)] and len(picked) == min(
        most, len(loads)
    )
    again = ls.Scheduler(config).schedule(ls.Request("m"), pool, now=1.0, seed=seed)
    assert again.targets == decision.targets and again.explanation == decision.explanation
