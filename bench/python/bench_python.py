#!/usr/bin/env python3
"""What the Python package costs and saves. Prints one JSON object a line.

    bench_python.py [--seconds 0.5]

"vllm functions" are vLLM's own hashing functions as its request_block_hasher calls them (hashlib over pickle, tokens in
a Python list), written out here, so that vLLM need not be installed.
"""

import argparse
import hashlib
import json
import pickle
import time

import numpy as np

import llmd.events as le
import llmd.hash as lh
import llmd.index as li

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
    """The best of several rounds: others use the machine as well."""
    number, best = 1, float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(number):
            call()
        took = time.perf_counter() - start
        if took < 0.0005:
            number *= 2
        else:
            best = min(best, took / number)
    return best


def report(case, metric, value, unit, better="lower"):
    print(json.dumps({"bench": "python", "case": case, "metric": metric, "value": round(value, 4), "unit": unit, "better": better}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    seconds = parser.parse_args().seconds

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
        report(f"sha256, 100k tokens, {name}", "times faster than vllm functions", theirs / ours, "x", "higher")
    ours = seconds_per_call(lambda: hasher.block_keys(narrow), seconds)
    report("sha256 keys, 100k tokens, int32", "time", ours * 1e3, "ms")
    report("content keys, 100k tokens, int32", "time", seconds_per_call(lambda: lh.content_keys(narrow), seconds) * 1e3, "ms")

    index, ns = li.PrefixIndex(), li.make_namespace("m")
    keys = rng.integers(0, 2**63, 1000, dtype=np.uint64)
    for i in range(8):
        index.store(index.add_holder(f"pod{i}:1"), ns, engine_keys=keys, content_keys=keys)
    empty, one = np.empty(0, np.uint64), keys[:1].copy()
    other = li.make_namespace("unknown")
    for name, space, chain in (("empty chain", ns, empty), ("1 block unknown", other, one), ("1 block, 8 holders", ns, one),
                               ("1000 blocks, 8 holders", ns, keys)):
        value = seconds_per_call(lambda space=space, chain=chain: index.match(space, chain), seconds)
        report(f"match, {name}", "time", value * 1e6, "us")

    event = le.block_stored(keys[:4], tokens=narrow[:64].astype(np.uint32), block_size=16)
    payload = le.encode([event], timestamp=1.0)
    report("decode, 1 event of 64 tokens", "time", seconds_per_call(lambda: le.decode(payload), seconds) * 1e6, "us")
    report("encode, 1 event of 64 tokens", "time", seconds_per_call(lambda: le.encode([event], timestamp=1.0), seconds) * 1e6, "us")


if __name__ == "__main__":
    main()
