"""Replays a production trace under several routing policies, and plots what their caches had.

    python3 examples/trace_hit_rates.py                                  # writes hit_rates.png
    python3 examples/trace_hit_rates.py --requests 2000 --endpoints 4

Hashes, block pools, KV events, index and scheduler are the library's. Time is a rough model: a
request runs from its arrival, as long as its prompt and answer take at fixed speeds; trace_replay,
in C++, models an engine's steps. Needs matplotlib. The cells (# %%) also run one by one.
"""

# %% Options
import argparse
import heapq
import json
import pathlib
import sys
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from llmd import hash, index, sched, worker

TRACE = pathlib.Path(__file__).parent / "trace_replay/traces/mooncake_conversation_trace.jsonl"
MODEL, BLOCK, TRACE_BLOCK = "m", 16, 512  # tokens per block: of the engines, of the trace
PREFILL, DECODE = 40_000, 50  # tokens a second, of one request


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--trace", type=pathlib.Path, default=TRACE, help="in Mooncake's schema")
parser.add_argument("--requests", type=positive, metavar="N", help="the first N alone (all)")
parser.add_argument("--endpoints", type=positive, default=8, metavar="N", help="engines (8)")
parser.add_argument("--blocks", type=positive, default=50926, metavar="N",
                    help="KV cache of an engine, in blocks of 16 tokens (50926)")  # fmt: skip
parser.add_argument("--out", type=pathlib.Path, default="hit_rates.png", help="the plot")
options = parser.parse_args([] if "ipykernel" in sys.modules else None)
if not options.out.absolute().parent.is_dir():
    parser.error(f"--out: no folder {options.out.parent}")


# %% The trace: a hash id stands for 512 tokens, made here from the id
class Arrival(NamedTuple):
    at: float  # seconds
    length: int
    output: int
    ids: list[int]

    def tokens(self) -> np.ndarray:
        blocks = np.array(self.ids)[:, None] * TRACE_BLOCK + np.arange(TRACE_BLOCK)
        return blocks.astype(np.int32).ravel()[: self.length]


def infinite_cache() -> np.ndarray:
    """What one cache without end, shared by all, would have of each prompt, in tokens."""
    seen: set[int] = set()
    cached = []
    for arrival in trace:
        known = next((i for i, x in enumerate(arrival.ids) if x not in seen), len(arrival.ids))
        cached.append(min(known * TRACE_BLOCK, arrival.length))
        seen.update(arrival.ids)
    return np.array(cached)


try:
    lines = options.trace.read_text().splitlines()
    rows = map(json.loads, lines[: options.requests])
    fields = ("input_length", "output_length", "hash_ids")
    trace = [Arrival(row["timestamp"] / 1000, *(row[f] for f in fields)) for row in rows]
    if not trace:
        raise ValueError("it is empty")
except (OSError, ValueError, KeyError, TypeError) as error:
    sys.exit(f"--trace: {options.trace} has no requests in Mooncake's schema: {error!r}")
lengths = np.array([arrival.length for arrival in trace])
print(f"{len(trace):,} requests, {lengths.sum():,} prompt tokens, {options.endpoints} engines")


# %% The policies: configurations of the scheduler; one uses a picker written in Python
@sched.registry.register("round-robin-picker")
class RoundRobinPicker:
    turn = -1

    def pick(self, context: sched.Context, positions: np.ndarray, *_: np.ndarray) -> list[int]:
        self.turn += 1
        return [positions[self.turn % len(positions)]]


def by_prefix(producer: str) -> str:
    parameters = {"prefixMatchInfoProducerName": producer}
    scorers = [{"type": "prefix-cache-scorer", "parameters": parameters}, "active-request-scorer"]
    weights = {"prefix-cache-scorer": 3, "active-request-scorer": 2}
    return sched.make_config([producer, *scorers], {"default": weights})


POLICIES = {
    "round robin": ("#9e9e9e", sched.make_config(["round-robin-picker"])),
    "fewest active requests": ("#e69f00", sched.make_config(["active-request-scorer"])),
    "approximate prefix": ("#56b4e9", by_prefix("approx-prefix-cache-producer")),
    "exact prefix": ("#0b5394", by_prefix("precise-prefix-cache-producer")),
}


# %% The replay
class Running(NamedTuple):
    end: float
    number: int
    engine: int
    request: worker.Request
    flight: sched.Flight


def replay(policy: str, config: str) -> np.ndarray:
    """What the endpoint chosen had of each prompt in its cache, in tokens."""
    exact = index.PrefixIndex()
    guess = index.ApproxIndex(capacity_blocks=max(1, options.blocks // 4))  # of 64 tokens
    scheduler = sched.Scheduler(config, exact=exact, approximate=guess)
    ingestor, pool, hasher = index.KvEventIngestor(exact), sched.EndpointPool(), hash.VllmHasher()
    engines, publishers = [], []
    for n in range(options.endpoints):
        endpoint = pool.add(f"gpu-{n}", f"10.0.{n >> 8}.{n & 255}", 8000)
        address = pool.find(endpoint).host_port
        pool.bind_holder(guess.add_holder(address), endpoint, source=sched.APPROXIMATE)
        publishers.append(ingestor.add_publisher(address, model=MODEL))
        engines.append(worker.KvCacheManager(num_blocks=options.blocks + 1, enable_events=True))
    running: list[Running] = []  # a heap
    cached = np.zeros(len(trace), dtype=np.int64)

    def finish(item: Running) -> None:
        engines[item.engine].free(item.request)
        item.flight.close()

    for number, arrival in enumerate(trace):
        while running and running[0].end <= arrival.at:
            finish(heapq.heappop(running))
        tokens = arrival.tokens()
        prompt = scheduler.request(tokens, model=MODEL, engine_block_size=BLOCK)
        decision = scheduler.schedule(prompt, pool, now=arrival.at, seed=number)
        chosen = decision.target.position
        engine, request = engines[chosen], worker.Request(number, tokens, hasher=hasher)
        while True:
            hit = engine.get_computed_blocks(request)
            new = len(tokens) - hit.num_tokens
            out = arrival.output
            if engine.allocate_slots(request, new, hit=hit, num_lookahead_tokens=out) is not None:
                break
            ahead = [item for item in running if item.engine == chosen]
            if not ahead:
                sys.exit(f"--blocks: request {number} alone has more tokens than an engine")
            running.remove(min(ahead))  # full: it waits for the next one that ends
            heapq.heapify(running)
            finish(min(ahead))
        request.num_computed_tokens, cached[number] = len(tokens), hit.num_tokens
        end = arrival.at + new / PREFILL + arrival.output / DECODE
        heapq.heappush(running, Running(end, number, chosen, request, decision.dispatch()))
        if (events := engine.take_event_batch(timestamp=arrival.at)) and policy == "exact prefix":
            ingestor.apply(publishers[chosen], events)
            pool.bind_index(exact)
        if sys.stderr.isatty() and number % 100 == 0:
            print(f"\r{policy:24}{number / len(trace):7.0%}\r", end="", file=sys.stderr)
    return cached


bound = infinite_cache()
print(f"{'infinite cache':24}{bound.sum() / lengths.sum():7.2%} of prompt tokens")
results = {}
for policy, (_, config) in POLICIES.items():
    results[policy] = replay(policy, config)
    print(f"{policy:24}{results[policy].sum() / lengths.sum():7.2%} of prompt tokens")

# %% The plot: hit rates over time, and in all
minutes = np.array([arrival.at for arrival in trace]) / 60
edges = np.linspace(0, max(minutes[-1], 1e-3), 25)
window = np.clip(np.searchsorted(edges, minutes, side="right") - 1, 0, 23)
asked = np.maximum(np.bincount(window, lengths, 24), 1)
shape = {"figsize": (11, 4.5), "width_ratios": [2, 1], "layout": "constrained"}
figure, (left, right) = plt.subplots(1, 2, **shape)
engines = f"{options.endpoints} engines of {options.blocks * BLOCK:,} tokens"
figure.suptitle(f"Prompt tokens found in the cache: {len(trace):,} requests, {engines}")
for name, cached in {"infinite cache": bound, **results}.items():
    rates = 100 * np.bincount(window, cached, 24) / asked
    color, style = (POLICIES[name][0], "-") if name in POLICIES else ("black", ":")
    left.plot((edges[:-1] + edges[1:]) / 2, rates, style, color=color, label=name)
left.set(xlim=(0, edges[-1]), ylim=0, xlabel="time in the trace, minutes")
left.set_ylabel("hit rate, % of prompt tokens")
figure.legend(loc="outside lower center", ncols=5, frameon=False)
totals = [100 * cached.sum() / lengths.sum() for cached in results.values()]
bars = right.barh(list(results), totals, color=[color for color, _ in POLICIES.values()])
right.bar_label(bars, fmt="%.1f %%", padding=4)
right.axvline(100 * bound.sum() / lengths.sum(), color="black", linestyle=":")
right.set(xlabel="hit rate of the whole replay, %", xlim=(0, 120 * bound.sum() / lengths.sum() + 1))
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(options.out, dpi=150)
print(f"plotted into {options.out}")
