#!/usr/bin/env python3
"""Replays a production trace under several routing policies, and plots how many prompt tokens the caches had.

    python3 examples/trace_hit_rates.py                                  # hit_rates.png
    python3 examples/trace_hit_rates.py --requests 2000 --endpoints 4

Hashes, block pools, KV events, index and scheduler are the library's. Time is a rough model: a request runs from its
arrival, for as long as its prompt and its answer take at fixed speeds. Needs matplotlib. The cells (# %%) also run one
by one, in an editor with notebooks. examples/trace_replay, in C++, models the steps of an engine as well.
"""

# %% Options
import argparse
import heapq
import json
import pathlib
import sys
from dataclasses import dataclass

import matplotlib
import numpy as np

from llmd import hash, index, sched, worker

TRACE = pathlib.Path(__file__).parent / "trace_replay" / "traces" / "mooncake_conversation_trace.jsonl"

parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
)
parser.add_argument("--trace", type=pathlib.Path, default=TRACE, help="requests in Mooncake's schema, one JSON object a line")
parser.add_argument("--requests", type=int, metavar="N", help="only the first N (default: all)")
parser.add_argument("--endpoints", type=int, default=8, metavar="N", help="engines")
parser.add_argument("--blocks", type=int, default=50926, metavar="N", help="KV cache of an engine, in blocks of 16 tokens")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("hit_rates.png"), help="the plot, as PNG, SVG or PDF")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if options.endpoints < 1 or options.blocks < 1 or (options.requests is not None and options.requests < 1):
    parser.error("--requests, --endpoints and --blocks must be at least 1")

MODEL, BLOCK, TRACE_BLOCK = "m", 16, 512  # tokens per block: of the engines, of the trace
PREFILL, DECODE = 40_000.0, 50.0  # tokens a second, of one request

# %% The trace: a hash id stands for 512 tokens, made here from the id


@dataclass
class Arrival:
    at: float  # seconds
    length: int
    output: int
    ids: np.ndarray

    def tokens(self) -> np.ndarray:
        blocks = self.ids[:, None] * TRACE_BLOCK + np.arange(TRACE_BLOCK)
        return blocks.astype(np.int32).ravel()[: self.length]


def read_trace(path: pathlib.Path, limit: int | None) -> list[Arrival]:
    arrivals = []
    with path.open() as lines:
        for number, line in zip(range(limit or sys.maxsize), lines):
            try:
                row = json.loads(line)
                ids = np.array(row["hash_ids"], dtype=np.int64)
                arrivals.append(Arrival(row["timestamp"] / 1000, row["input_length"], row["output_length"], ids))
            except (ValueError, KeyError, TypeError) as error:
                sys.exit(f"{path}:{number + 1}: not a request in Mooncake's schema: {error!r}")
    return arrivals or sys.exit(f"{path} has no requests")


try:
    trace = read_trace(options.trace, options.requests)
except OSError as error:
    sys.exit(f"--trace: {error}")
print(f"{len(trace):,} requests, {sum(a.length for a in trace):,} prompt tokens, {options.endpoints} endpoints")


def infinite_cache(trace: list[Arrival]) -> np.ndarray:
    """Tokens of each prompt that one cache without end, shared by all, would have: a bound for every policy."""
    seen: set[int] = set()
    cached = []
    for arrival in trace:
        known = next((i for i, number in enumerate(arrival.ids.tolist()) if number not in seen), len(arrival.ids))
        cached.append(min(known * TRACE_BLOCK, arrival.length))
        seen.update(arrival.ids.tolist())
    return np.array(cached)


# %% The policies: configurations of the scheduler; one uses a picker written in Python


@sched.registry.register("round-robin-picker")
class RoundRobinPicker:
    def __init__(self) -> None:
        self.turn = -1

    def pick(self, context: sched.Context, positions: np.ndarray, scores: np.ndarray, ties: np.ndarray) -> list[int]:
        self.turn += 1
        return [positions[self.turn % len(positions)]]


def by_prefix(producer: str) -> str:
    scorer = {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": producer}}
    weights = {"prefix-cache-scorer": 3, "active-request-scorer": 2}
    return sched.make_config([producer, scorer, "active-request-scorer"], {"default": weights})


POLICIES = {
    "round robin": sched.make_config(["round-robin-picker"]),
    "fewest active requests": sched.make_config(["active-request-scorer"]),
    "approximate prefix": by_prefix("approx-prefix-cache-producer"),
    "exact prefix": by_prefix("precise-prefix-cache-producer"),
}


# %% The replay


def replay(policy: str) -> np.ndarray:
    """Tokens of each prompt that the endpoint chosen by the policy had in its cache."""
    exact, guess = index.PrefixIndex(), index.ApproxIndex(capacity_blocks=max(1, options.blocks // 4))  # of 64 tokens
    scheduler = sched.Scheduler(POLICIES[policy], exact=exact, approximate=guess)
    hasher, ingestor, pool = hash.VllmHasher(block_size=BLOCK), index.KvEventIngestor(exact), sched.EndpointPool()
    managers, publishers = [], []
    for number in range(options.endpoints):
        endpoint = pool.add(f"gpu-{number}", f"10.0.{number // 250}.{number % 250 + 1}", 8000)
        address = pool.find(endpoint).host_port
        pool.bind_holder(guess.add_holder(address), endpoint, source=sched.APPROXIMATE)
        publishers.append(ingestor.add_publisher(address, model=MODEL))
        managers.append(worker.KvCacheManager(num_blocks=options.blocks + 1, block_size=BLOCK, enable_events=True))

    running: list[tuple[float, int, int, worker.Request, sched.Flight]] = []  # a heap, by end
    cached = np.zeros(len(trace), dtype=np.int64)

    def end(entry: tuple[float, int, int, worker.Request, sched.Flight]) -> None:
        managers[entry[2]].free(entry[3])
        entry[4].close()

    for number, arrival in enumerate(trace):
        while running and running[0][0] <= arrival.at:
            end(heapq.heappop(running))
        tokens = arrival.tokens()
        request = scheduler.request(tokens, model=MODEL, engine_block_size=BLOCK)
        decision = scheduler.schedule(request, pool, now=arrival.at, seed=number)
        chosen = decision.target.position
        manager, work = managers[chosen], worker.Request(number, tokens, hasher=hasher)
        while True:
            hit = manager.get_computed_blocks(work)
            new = len(tokens) - hit.num_tokens
            if manager.allocate_slots(work, new, hit=hit, num_lookahead_tokens=arrival.output) is not None:
                break
            ahead = [entry for entry in running if entry[2] == chosen]  # full: it waits for one that runs
            if not ahead:
                sys.exit(f"--blocks: request {number} has {arrival.length} + {arrival.output} tokens, too many for one engine")
            running.remove(min(ahead))
            heapq.heapify(running)
            end(min(ahead))
        work.num_computed_tokens, cached[number] = len(tokens), hit.num_tokens
        until = arrival.at + new / PREFILL + arrival.output / DECODE
        heapq.heappush(running, (until, number, chosen, work, decision.dispatch()))
        batch = manager.take_event_batch(timestamp=arrival.at)
        if batch is not None and "precise" in POLICIES[policy]:
            ingestor.apply(publishers[chosen], batch)
            pool.bind_index(exact)
        if sys.stderr.isatty() and (number % 100 == 99 or number + 1 == len(trace)):
            print(f"\r{policy:24}{number + 1:8,} of {len(trace):,}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return cached


lengths = np.array([arrival.length for arrival in trace])
bound = infinite_cache(trace)
results = {}
print(f"{'infinite cache':24}{bound.sum() / lengths.sum():8.2%} of prompt tokens")
for policy in POLICIES:
    results[policy] = replay(policy)
    print(f"{policy:24}{results[policy].sum() / lengths.sum():8.2%} of prompt tokens")

# %% The plot: over time, and in all
if "ipykernel" not in sys.modules:
    matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt  # noqa: E402

COLORS = {"round robin": "#9e9e9e", "fewest active requests": "#e69f00", "approximate prefix": "#56b4e9", "exact prefix": "#0b5394"}
minutes = np.array([arrival.at for arrival in trace]) / 60
edges = np.linspace(minutes[0], max(minutes[-1], minutes[0] + 1e-3), 25)
window = np.clip(np.searchsorted(edges, minutes, side="right") - 1, 0, 23)
asked = np.maximum(np.bincount(window, lengths, 24), 1)

figure, (over_time, in_all) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=[5, 3], layout="constrained")
figure.suptitle(f"What caches had of {len(trace):,} prompts: {options.endpoints} engines, {options.blocks * BLOCK:,} tokens each")
for name, cached in {"infinite cache, shared by all": bound, **results}.items():
    style = {"color": COLORS.get(name, "black"), "linestyle": "-" if name in COLORS else ":"}
    over_time.plot((edges[:-1] + edges[1:]) / 2, 100 * np.bincount(window, cached, 24) / asked, label=name, **style)
over_time.set(xlabel="time in the trace, minutes", ylabel="hit rate, % of prompt tokens", ylim=(0, None), xlim=(edges[0], edges[-1]))
over_time.legend(loc="upper left", fontsize="small", frameon=False)
totals = {name: 100 * cached.sum() / lengths.sum() for name, cached in reversed(results.items())}
bars = in_all.barh(list(totals), list(totals.values()), color=[COLORS[name] for name in totals])
in_all.bar_label(bars, fmt="%.1f %%", padding=4)
in_all.axvline(100 * bound.sum() / lengths.sum(), color="black", linestyle=":")
in_all.set(xlabel="hit rate of the whole replay, % of prompt tokens", xlim=(0, 115 * bound.sum() / lengths.sum() + 1))
for axes in (over_time, in_all):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(options.out, dpi=150)
print(f"plotted into {options.out}")
