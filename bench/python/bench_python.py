#!/usr/bin/env python3
"""What the Python package costs and saves. Prints one JSON object a line; times are medians.

    bench_python.py [--seconds 0.5] [--bench-match build/release/bench/python/bench_match]

"vllm functions" are vLLM's own hashing functions as its request_block_hasher calls them (hashlib over pickle, tokens in
a Python list), written out here, so that vLLM need not be installed. With --bench-match the times of matches are also
given above those of C++, which that program measures in turns with this one.
"""

import argparse
import hashlib
import json
import pickle
import statistics
import subprocess
import time

import llmd.events as le
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import numpy as np

NONE_HASH = bytes(range(32))


def sha256(value):
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


def hash_block_tokens(hash_function, parent, tokens, extra_keys=None):
    if not parent:
        parent = NONE_HASH
    return hash_function((parent, tuple(tokens), extra_keys))


def request_block_hasher(tokens, block_size):
    parent, out, start = None, [], 0
    while start + block_size <= len(tokens):
        parent = hash_block_tokens(sha256, parent, tokens[start : start + block_size])
        out.append(parent)
        start += block_size
    return out


def seconds_per_call(call, seconds):
    """The median of rounds of at least half a millisecond."""
    number, rounds = 1, []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 3:
        start = time.perf_counter()
        for _ in range(number):
            call()
        took = time.perf_counter() - start
        if took < 0.0005:
            number *= 2
        else:
            rounds.append(took / number)
    return statistics.median(rounds)


def report(case, metric, value, unit, better="lower"):
    row = {
        "bench": "python",
        "case": case,
        "metric": metric,
        "value": round(value, 4),
        "unit": unit,
        "better": better,
    }
    print(json.dumps(row), flush=True)


def bench_hash(seconds):
    rng = np.random.default_rng(1)
    array = rng.integers(0, 150_000, 100_000, dtype=np.int64)
    narrow, listed = array.astype(np.int32), array.tolist()
    hasher = lh.VllmHasher("sha256", none_hash=NONE_HASH)
    assert hasher.hash_blocks(narrow) == request_block_hasher(listed, 16)
    theirs = seconds_per_call(lambda: request_block_hasher(listed, 16), seconds * 4)
    report("sha256, 100k tokens, vllm functions", "time", theirs * 1e3, "ms")
    for name, tokens in (("int32", narrow), ("int64", array), ("list", listed)):
        ours = seconds_per_call(lambda tokens=tokens: hasher.hash_blocks(tokens), seconds)
        report(f"sha256, 100k tokens, {name}", "time", ours * 1e3, "ms")
        report(
            f"sha256, 100k tokens, {name}",
            "times faster than vllm functions",
            theirs / ours,
            "x",
            "higher",
        )
    ours = seconds_per_call(lambda: hasher.block_keys(narrow), seconds)
    report("sha256 keys, 100k tokens, int32", "time", ours * 1e3, "ms")
    for name, tokens in (("int32", narrow), ("list", listed)):
        ours = seconds_per_call(lambda tokens=tokens: lh.content_keys(tokens), seconds)
        report(f"content keys, 100k tokens, {name}", "time", ours * 1e3, "ms")
    block = listed[:16]
    ours = seconds_per_call(lambda: hasher.hash_block(block), seconds)
    report("sha256, 1 block, list", "time", ours * 1e6, "us")


def bench_match(seconds, program):
    """Python and C++ in turns, so that a busy machine slows both."""
    index, ns = li.PrefixIndex(), li.make_namespace("m")
    keys = np.random.default_rng(1).integers(0, 2**63, 1000, dtype=np.uint64)
    for i in range(8):
        index.store(index.add_holder(f"pod{i}:1"), ns, engine_keys=keys, content_keys=keys)
    other = li.make_namespace("unknown")
    cases = {
        "empty chain": (ns, keys[:0]),
        "1 block unknown": (other, keys[:1]),
        "1 block, 8 holders": (ns, keys[:1]),
        "1000 blocks, 8 holders": (ns, keys),
    }
    ours, theirs = {case: [] for case in cases}, {case: [] for case in cases}
    for _ in range(5):
        for case, (space, chain) in cases.items():
            ours[case].append(
                seconds_per_call(lambda s=space, c=chain: index.match(s, c), seconds / 5) * 1e6
            )
        if program:
            lines = subprocess.run(
                [program, "--json"], check=True, capture_output=True, text=True
            ).stdout
            for row in map(json.loads, lines.splitlines()):
                theirs[row["case"]].append(row["value"])
    for case in cases:
        median = statistics.median(ours[case])
        report(f"match, {case}", "time", median, "us")
        if program:
            report(
                f"match, {case}", "time above C++", median - statistics.median(theirs[case]), "us"
            )


def bench_decision(seconds):
    """100 endpoints that all have a part of the prompt, and the default profile with exact prefixes."""
    index, pool = li.PrefixIndex(), ls.EndpointPool()
    config = ls.make_config(
        [
            "queue-scorer",
            "kv-cache-utilization-scorer",
            "precise-prefix-cache-producer",
            {
                "type": "prefix-cache-scorer",
                "parameters": {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"},
            },
        ]
    )
    scheduler = ls.Scheduler(config, exact=index)
    tokens = np.random.default_rng(1).integers(0, 150_000, 1024, dtype=np.int32)
    request = scheduler.request(tokens, model="m")
    (chain,) = request.prompts[0].chains[:1]
    for i in range(100):
        endpoint = pool.add(f"w{i}", f"10.0.0.{i}", 8000)
        pool.set_metrics(endpoint, waiting=i % 7, running=i % 5, kv_usage=i % 11 / 11, at=1.0)
        index.store(
            index.add_holder(f"10.0.0.{i}:8000"),
            chain.namespace,
            engine_keys=chain.keys[: i % 64],
            content_keys=chain.keys[: i % 64],
        )
    assert pool.bind_index(index) == 100

    def decide():
        return scheduler.schedule(request, pool, now=2.0, seed=7)

    case = "decision, 100 endpoints, 64 blocks"
    report(case, "time", seconds_per_call(decide, seconds) * 1e6, "us")
    report(
        f"{case}, with its address",
        "time",
        seconds_per_call(lambda: decide().address, seconds) * 1e6,
        "us",
    )
    whole = seconds_per_call(lambda: decide().dispatch().close(), seconds)
    report(f"{case}, dispatched", "time", whole * 1e6, "us")
    whole = seconds_per_call(
        lambda: scheduler.schedule(scheduler.request(tokens, model="m"), pool, seed=7), seconds
    )
    report(f"{case}, 1024 tokens hashed", "time", whole * 1e6, "us")

    registry = ls.Registry()
    registry.register(
        "free-scorer", type("Free", (), {"score": lambda self, c, p, s: 1 - c.kv_usage})
    )
    with_python = ls.Scheduler(ls.make_config(["queue-scorer", "free-scorer"]), registry=registry)
    took = seconds_per_call(lambda: with_python.schedule(request, pool, now=2.0, seed=7), seconds)
    report("decision, 100 endpoints, a scorer in Python", "time", took * 1e6, "us")


def bench_events(seconds):
    keys = np.arange(1, 5, dtype=np.uint64)
    event = le.block_stored(keys, tokens=np.arange(64, dtype=np.uint32), block_size=16)
    payload = le.encode([event], timestamp=1.0)
    report(
        "decode, 1 event of 64 tokens",
        "time",
        seconds_per_call(lambda: le.decode(payload), seconds) * 1e6,
        "us",
    )
    took = seconds_per_call(lambda: le.encode([event], timestamp=1.0), seconds)
    report("encode, 1 event of 64 tokens", "time", took * 1e6, "us")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--bench-match", help="the program of that name, of the same build type")
    arguments = parser.parse_args()
    bench_hash(arguments.seconds)
    bench_match(arguments.seconds, arguments.bench_match)
    bench_decision(arguments.seconds)
    bench_events(arguments.seconds)


if __name__ == "__main__":
    main()
