#!/usr/bin/env python3
"""Many threads on shared objects of every module: no crash, no leak, and the results of a single thread.

    stress.py [--seconds 60] [--threads 64] [--seed 1] [--no-tracemalloc]

A lane is a sequence of rounds that is decided by its seed. Threads take lanes for a few rounds each, so that threads
come and go all the time; the objects below `Shared` are used by all of them at once. What a lane can know for sure
while others work (hashes, decisions on a pool that stands still, the depth of its own holders, its own block pool) goes
into a checksum after each round. Then one thread runs the same rounds on new objects, lane after lane, and must get
the same checksums. Memory is read at the end of each tenth of the time; from the third on it must stay flat.
"""

from __future__ import annotations

import argparse
import array
import faulthandler
import gc
import hashlib
import json
import random
import sys
import threading
import time
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import llmd
import llmd.events as le
import llmd.gateway as lg
import llmd.hash as lh
import llmd.index as li
import llmd.sched as ls
import llmd.worker as lw
import numpy as np

ROUNDS_OF_A_THREAD = 5
BLOCK = 4
PROMPTS = [
    np.random.default_rng(i).integers(0, 2**32, 40 * (1 + i % 8), dtype=np.uint32)
    for i in range(40)
]  # of 40 to 320 tokens, nothing in common
LONG = np.random.default_rng(99).integers(0, 2**31, 6000, dtype=np.int64)


class Weighing:
    """A scorer in Python, a function of what it sees."""

    def score(self, context: ls.Context, candidates: Any, scores: Any) -> None:
        scores[:] = 1 / (1 + context.running + context.attribute("age"))
        for i, position in enumerate(candidates):
            if context.endpoint(int(position)).labels.get("slow") == "yes":
                scores[i] /= 2


def pool_of(count: int) -> tuple[ls.EndpointPool, list[ls.EndpointHandle]]:
    pool, handles = ls.EndpointPool(), []
    for i in range(count):
        handle = pool.add(
            f"w{i}", f"10.0.{i // 250}.{i % 250 + 1}", 8000, labels={"slow": "yes"} if i % 3 else {}
        )
        pool.set_metrics(
            handle, waiting=i * 7 % 11, running=i * 5 % 13, kv_usage=i * 3 % 17 / 17, at=1.0
        )
        pool.set_attribute(handle, "age", i % 4, at=1.0)
        handles.append(handle)
    return pool, handles


class Shared:
    """What all lanes use."""

    def __init__(self, lanes: int) -> None:
        self.hasher = lh.VllmHasher(block_size=BLOCK, seed="0")
        self.chain = lh.VllmChain(self.hasher)
        self.index = li.PrefixIndex()
        self.fed = li.PrefixIndex()
        self.feed = li.KvEventIngestor(self.fed)
        self.guess = li.ApproxIndex(ttl=1000.0)
        self.manager = lw.KvCacheManager(num_blocks=20_000, block_size=BLOCK, enable_events=True)
        self.stream = le.PublisherStream(replay=False)
        self.ring = lg.RingHash([f"10.0.0.{i}:8000" for i in range(20)])
        self.maglev = lg.Maglev([f"10.0.0.{i}:8000" for i in range(20)], table_size=251)
        self.metrics = lg.EngineMetricsReader()
        registry = ls.Registry()
        registry.register("weighing-scorer", Weighing)
        names = ["queue-scorer", "kv-cache-utilization-scorer", "weighing-scorer"]
        self.still, _ = pool_of(20)
        self.still_scheduler = ls.Scheduler(ls.make_config(names), registry=registry)
        self.live, self.handles = pool_of(lanes)
        self.live_scheduler = ls.Scheduler(
            ls.make_config(
                [
                    *names,
                    "active-request-scorer",
                    "precise-prefix-cache-producer",
                    {
                        "type": "prefix-cache-scorer",
                        "parameters": {
                            "prefixMatchInfoProducerName": "precise-prefix-cache-producer"
                        },
                    },
                ]
            ),
            registry=registry,
            exact=self.fed,
        )


class Lane:
    """One sequence of rounds, with what it owns and knows."""

    def __init__(self, number: int, seed: int, shared: Shared) -> None:
        self.number = number
        self.random = random.Random(seed * 1000 + number)
        self.shared = shared
        self.checksum = hashlib.sha256()
        self.checksums = array.array("Q")
        self.holder = shared.index.add_holder(f"lane{number}:1")
        self.guessed = shared.guess.add_holder(f"lane{number}:1")
        self.address = shared.live.find(shared.handles[number]).host_port  # type: ignore[union-attr]
        self.publisher = shared.feed.add_publisher(self.address, model="m")
        self.depths = [0] * len(PROMPTS)  # in blocks, of the holder
        self.fed_depths = [0] * len(PROMPTS)  # of the publisher
        self.pool = lw.BlockPool(num_blocks=60, block_size=BLOCK, enable_events=True)
        self.tables: list[list[int]] = []
        self.next_request = number << 32
        self.steps = [
            self.hash, self.extend, self.store, self.ingest, self.ingest, self.predict, self.decide, self.dispatch,
            self.manage, self.blocks, self.route, self.route,
        ]  # fmt: skip

    def round(self) -> None:
        for step in self.random.sample(self.steps, 6):
            step()
        self.checksums.append(int.from_bytes(self.checksum.digest()[:8], "little"))

    def sure(self, *values: Any) -> None:
        """Values that do not depend on the other lanes."""
        self.checksum.update(repr(values).encode())

    def prompt(self) -> tuple[int, Any, Any]:
        which = self.random.randrange(len(PROMPTS))
        return which, PROMPTS[which], KEYS[which]

    def hash(self) -> None:
        _, tokens, _ = self.prompt()
        self.sure(
            self.shared.hasher.hash_blocks(tokens)[-1], int(self.shared.hasher.block_keys(LONG)[-1])
        )
        self.sure(self.shared.hasher.hash_blocks(tokens.tolist())[0])

    def extend(self) -> None:
        added = self.shared.chain.extend(LONG[:40])
        assert len(added) == 10 and self.shared.chain.token_count % 40 == 0  # others extend it, and clear it
        if self.shared.chain.token_count > 40_000:
            self.shared.chain.clear()

    def store(self) -> None:
        which, _, keys = self.prompt()
        index, depth = self.shared.index, self.depths[which]
        if depth and self.random.random() < 0.5:
            keep = self.random.randrange(depth)
            assert index.remove(self.holder, keys[keep:depth]) == depth - keep
            self.depths[which] = keep
        else:
            self.depths[which] = end = self.random.randint(max(depth, 1), len(keys))
            parent = int(keys[depth - 1]) if depth else None
            result = index.store(
                self.holder,
                NS,
                engine_keys=keys[depth:end],
                content_keys=keys[depth:end],
                parent=parent,
            )
            assert result.applied and result.added == end - depth
        self.sure(index.match(NS, keys).depth(self.holder))
        assert index.match(NS, keys).depth(self.holder) == self.depths[which]
        if self.random.random() < 0.02:
            index.clear(self.holder)
            self.depths = [0] * len(PROMPTS)

    def ingest(self) -> None:
        which, tokens, keys = self.prompt()
        depth = self.fed_depths[which]
        if depth and self.random.random() < 0.4:
            keep = self.random.randrange(depth)
            events = [le.block_removed(keys[keep:depth])]
            depth = keep
        else:
            end = self.random.randint(max(depth, 1), len(keys))
            events = [
                le.block_stored(
                    keys[depth:end],
                    tokens=tokens[depth * BLOCK : end * BLOCK],
                    block_size=BLOCK,
                    parent=int(keys[depth - 1]) if depth else None,
                )
            ]
            depth = end
        self.fed_depths[which] = depth
        payload = le.encode(events, timestamp=1.0)
        batch = le.decode(payload)
        assert batch.events[0] == events[0]
        result = self.shared.feed.apply(self.publisher, payload)
        match = self.shared.fed.match(FED_NS, lh.content_keys(tokens, block_size=BLOCK))
        found = self.shared.fed.by_endpoint(match).get(self.address, 0)
        self.sure(payload, result, found)
        assert found == depth
        self.shared.stream.on_live(1.0, self.random.randrange(100), payload)

    def predict(self) -> None:
        which, _, keys = self.prompt()
        assert self.shared.guess.predict(self.guessed, NS, keys, now=1.0)
        self.sure(self.shared.guess.match(NS, keys).depth(self.guessed))

    def decide(self) -> None:
        candidates = self.random.sample(range(20), 10)
        decision = self.shared.still_scheduler.schedule(
            ls.Request("m", id=str(self.number)),
            self.shared.still,
            candidates=candidates,
            now=1.0,
            seed=self.random.getrandbits(64),
        )
        explained = decision.explanation.profiles["default"]
        self.sure(
            decision.address, explained.totals.tolist(), explained.scores_of("weighing-scorer")
        )
        assert decision.explanation.costs["weighing-scorer"].errors == 0

    def dispatch(self) -> None:
        shared = self.shared
        _, tokens, _ = self.prompt()
        if self.number % 8 == 0:
            shared.live.bind_index(shared.fed)
        request = shared.live_scheduler.request(tokens, model="m")
        decision = shared.live_scheduler.schedule(request, shared.live, now=1.0)
        try:
            flight = decision.dispatch()
        except llmd.FailedPreconditionError:  # 64 others have decided since
            return
        flight.on_response_headers(now=1.0)
        flight.on_response_body(first=True, last=True, completion_tokens=3, now=1.0)
        assert not flight.open
        shared.live.set_metrics(decision.target.handle, waiting=self.random.randrange(9), at=1.0)

    def manage(self) -> None:
        _, tokens, _ = self.prompt()
        self.next_request += 1
        request = lw.Request(self.next_request, tokens, hasher=self.shared.hasher)
        manager = self.shared.manager
        hit = manager.get_computed_blocks(request)  # may be taken by others before it is used
        blocks = manager.allocate_slots(request, len(tokens))
        assert hit.num_tokens < len(tokens) and blocks is not None
        request.num_computed_tokens = len(tokens)
        request.append([1])
        if manager.allocate_slots(request, 1) is not None:
            assert len(manager.block_table(request)) == len(tokens) // BLOCK + 1
        manager.free(request)
        manager.take_event_batch(timestamp=1.0)

    def blocks(self) -> None:
        _, tokens, _ = self.prompt()
        pool, free = self.pool, self.pool.state.num_free
        count = self.random.randint(1, 20)
        if count > free:
            for table in self.tables:
                pool.free_blocks(table[::-1])
            self.tables.clear()
        table = pool.get_new_blocks(count).tolist()
        request = lw.Request(1, tokens, hasher=self.shared.hasher)
        pool.cache_full_blocks(request, table, 0, min(count, len(tokens) // BLOCK))
        self.tables.append(table)
        self.sure(table, pool.state, [event.hashes.tolist() for event in pool.take_events()])

    def route(self) -> None:
        key = self.random.getrandbits(64)
        self.sure(self.shared.ring.pick(key), self.shared.maglev.pick(key), lg.xxhash64(str(key)))
        page = f"vllm:num_requests_waiting {key % 50}\nvllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.5\n"
        self.shared.metrics.update(
            page, self.shared.live, self.shared.handles[self.number], now=1.0
        )
        endpoint = self.shared.live.find(self.shared.handles[self.number])
        assert endpoint is not None and endpoint.running == 1
        body = json.dumps({"model": "m", "prompt": [key % 1000] * 20}).encode()
        request = lg.parse_request("/v1/completions", body)
        self.sure(request.prompts[0].tokens.tolist(), lg.replace_model(body, request, "n"))


NS = li.make_namespace("stress")
FED_NS = li.request_namespace("m", block_size=BLOCK)
KEYS = [lh.VllmHasher(block_size=BLOCK, seed="0").block_keys(tokens) for tokens in PROMPTS]


@dataclass
class Report:
    """What a run did."""

    rounds: int = 0
    threads_started: int = 0
    rss: list[int] = field(default_factory=list)  # bytes, at the end of each tenth
    traced: list[int] = field(default_factory=list)  # bytes allocated by Python
    checksums: list[array.array[int]] = field(default_factory=list)


def rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def run(threads: int, seconds: float, seed: int) -> Report:
    """Runs the lanes in threads that come and go. Raises what the first thread raised."""
    shared = Shared(threads)
    lanes = [Lane(i, seed, shared) for i in range(threads)]
    report, errors = Report(), []
    end = time.monotonic() + seconds

    def work(lane: Lane) -> None:
        try:
            for _ in range(ROUNDS_OF_A_THREAD):
                lane.round()
        except BaseException as error:
            errors.append(error)

    def keep_busy(lane: Lane) -> None:
        while time.monotonic() < end and not errors:
            thread = threading.Thread(target=work, args=(lane,))
            thread.start()
            thread.join()
            started[lane.number] += 1

    started = [0] * threads
    keepers = [threading.Thread(target=keep_busy, args=(lane,)) for lane in lanes]
    for keeper in keepers:
        keeper.start()
    for tenth in range(1, 11):
        time.sleep(max(0.0, end - seconds * (1 - tenth / 10) - time.monotonic()))
        gc.collect()
        report.rss.append(rss_bytes())
        report.traced.append(tracemalloc.get_traced_memory()[0])
    for keeper in keepers:
        keeper.join()
    if errors:
        raise errors[0]
    report.threads_started = sum(started)
    report.checksums = [lane.checksums for lane in lanes]
    report.rounds = sum(len(checksums) for checksums in report.checksums)
    states = shared.live_scheduler._core.states
    assert all(
        states.in_flight("inflight-load-producer", handle) == (0, 0) for handle in shared.handles
    )
    assert shared.manager.num_requests == 0 and shared.manager.state.num_held == 0
    return report


def replay(report: Report, seed: int) -> int:
    """Runs the same rounds in this thread. Returns how many; AssertionError when one has another result."""
    shared = Shared(len(report.checksums))
    lanes = [Lane(i, seed, shared) for i in range(len(report.checksums))]
    for lane, expected in zip(lanes, report.checksums, strict=True):
        for i, checksum in enumerate(expected):
            lane.round()
            assert (
                lane.checksums[i] == checksum
            ), f"lane {lane.number}, round {i}: another result than in threads"
    return sum(len(lane.checksums) for lane in lanes)


def is_flat(series: list[int], slack: int) -> bool:
    """From the third sample on."""
    return max(series[2:]) - min(series[2:]) <= slack + series[2] // 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-tracemalloc", action="store_true", help="for sanitizers: memory is not looked at"
    )
    arguments = parser.parse_args()
    faulthandler.enable()
    sys.setswitchinterval(1e-4)
    if not arguments.no_tracemalloc:
        tracemalloc.start()
    report = run(arguments.threads, arguments.seconds, arguments.seed)
    print(
        f"{arguments.threads} threads at a time, {report.threads_started} in all, for {arguments.seconds:g} s"
    )
    print(f"{report.rounds} rounds of 6 steps, no error")
    print("RSS in MB:      ", " ".join(f"{value / 1e6:.1f}" for value in report.rss))
    print("tracemalloc, MB:", " ".join(f"{value / 1e6:.2f}" for value in report.traced))
    tracemalloc.stop()
    begin = time.monotonic()
    print(
        f"{replay(report, arguments.seed)} rounds replayed in one thread in {time.monotonic() - begin:.1f} s: equal"
    )
    if not arguments.no_tracemalloc:
        assert is_flat(report.rss, 16 << 20), "RSS grows"
        assert is_flat(report.traced, 1 << 20), "the memory that Python allocates grows"
        print("memory is flat")


if __name__ == "__main__":
    main()
