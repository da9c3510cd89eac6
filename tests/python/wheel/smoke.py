"""A first use of every module, which reaches every library inside the wheel; then the README's Python blocks.

Usage: smoke.py README [LIBRARY]

LIBRARY is loaded first, and its symbols are visible to all.
"""

import ctypes
import importlib.metadata
import pathlib
import re
import sys

if len(sys.argv) > 2 and __name__ == "__main__":
    ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)

import llmd
import llmd.testing
import llmd.vllm
import numpy as np
from llmd import events, gateway, hash, index, sched, worker


def message(number: int, payload: bytes) -> bytes:
    """A Protobuf field of type bytes, shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def use() -> None:
    tokens = np.arange(64, dtype=np.int32)
    hasher = hash.VllmHasher("sha256_cbor", block_size=16, seed="0")  # OpenSSL
    assert len(hasher.hash_blocks(tokens)) == 4
    assert len(hash.VllmHasher("xxhash_cbor", block_size=16, seed="0").block_keys(tokens)) == 4

    prefixes = index.PrefixIndex()  # Abseil
    ingestor = index.KvEventIngestor(prefixes)
    assert repr(ingestor) and repr(prefixes)
    payload = events.encode([events.block_stored([11, 12], tokens=range(8), block_size=4)], timestamp=1.5)
    assert events.decode(payload).events[0].block_size == 4
    assert len(worker.BlockPool(num_blocks=8).get_new_blocks(3)) == 3

    scheduler, pool = sched.Scheduler(sched.make_config(["queue-scorer"])), sched.EndpointPool()  # yaml-cpp
    pool.add("a", "10.0.0.1", 8000)
    assert scheduler.schedule(scheduler.request(tokens), pool, seed=1).address == "10.0.0.1:8000"

    assert gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": "x"}').model == "m"  # simdjson
    stream = gateway.ExtProcStream()  # Protobuf
    path = message(1, message(1, message(1, b":path") + message(3, b"/v1/completions")))
    assert stream.receive(message(2, path), now=1) == "none"
    assert stream.receive(message(4, message(1, b'{"model": "m", "prompt": [1]}') + b"\x10\x01"), now=2) == "needs_decision"
    stream.decide(["10.0.0.1:8000"], now=3)
    answer = stream.next()
    assert answer is not None and b"10.0.0.1:8000" in answer
    try:
        sched.Scheduler("plugins: [")  # an exception that crosses libraries
    except ValueError:
        pass
    else:
        raise AssertionError("no error")


def main() -> None:
    assert "site-packages" in llmd.__file__, llmd.__file__
    use()
    (hook,) = (e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "llmd_hashing")
    assert hook.load() is llmd.vllm.register
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", pathlib.Path(sys.argv[1]).read_text(), re.M | re.S):
        exec(compile(block, sys.argv[1], "exec"), names)
    print("llmd", llmd.__version__, "works in", sys.prefix, *sys.argv[2:])


if __name__ == "__main__":
    main()
