#!/usr/bin/env python3
"""Times this library and public kernels on the same cases, each in a process of its own, taking turns: A B C C B A.

  bench_attention --list --grid quick > cases.jsonl
  python3 peers.py --library libllmd_cuda.so --cases cases.jsonl --json peers.jsonl

This process never touches the device. A contender that hangs, dies or answers nonsense is ended with all it started,
named with the step it was in, and started once more for the cases to come, without graphs if it failed in one; after
a second failure it is out. One whose output is wrong is named and not timed. What is measured is appended to --json case
by case; run again with the same file to go on where it stopped.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from roster import ROSTER
from workers import Worker, ask

HERE = pathlib.Path(__file__).resolve().parent
VISITS = 4  # turns of each contender in a case
GRAPH_STAGES = ("capture", "first replay", "time one replay", "replay", "last check")
LONG_MS = 25  # a replay that takes longer is repeated less
FAR_BEHIND = 3  # times the best: such a contender gets one turn


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="libllmd_cuda.so")
    parser.add_argument("--function", default="llmd_attention_cuda", help="of the library, that gives the table")
    parser.add_argument("--cases", type=pathlib.Path, required=True, help="output of bench_attention --list")
    parser.add_argument("--part", default="decode,sweep,mixes,prefill")
    parser.add_argument("--filter", default="", help="only cases whose name contains it")
    parser.add_argument("--contenders", default="", help="only these, by name; this library is always in")
    parser.add_argument("--json", type=pathlib.Path, required=True, help="results are appended here")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for a log of each contender; default: beside --json")
    parser.add_argument("--seconds", type=float, default=240, help="for the whole run")
    parser.add_argument("--case-seconds", type=float, default=1.0, help="of timing, shared by the contenders of a case")
    parser.add_argument("--silence", type=float, default=20, help="a step that takes so many seconds is taken to hang")
    parser.add_argument("--replay-seconds", type=float, default=5, help="the same for one turn")
    parser.add_argument("--start-seconds", type=float, default=60, help="to import everything; late ones join later")
    parser.add_argument("--join-seconds", type=float, default=0, help="how long a case waits for those started again")
    parser.add_argument("--prebuilt", help="folder that build_peers.py filled")
    parser.add_argument("--vllm", help="folder of an unpacked vLLM wheel, for its Triton kernel and FlashAttention-3")
    parser.add_argument("--no-graphs", action="store_true", help="time launches on a stream")
    parser.add_argument("--dry-run", action="store_true",
                        help="without a device: every contender's own code on the CPU, as far as it goes")
    parser.add_argument("--session", default="gpu_session:open_session", help=argparse.SUPPRESS)
    return parser.parse_args()


def spread(count):
    """0 .. count - 1 such that any beginning covers the whole range: the first, the middle, the quarters, ..."""
    def place(i):
        bits = f"{i:b}"[::-1]
        return int(bits, 2) / (1 << len(bits))
    return sorted(range(count), key=place)


def by_worth(cases):
    """The quick grid first; within a grid one case of each family in turn, so that a run that is cut short has seen
    all kinds."""
    families = {}
    for case in cases:
        model, page = case["name"].split("/")[1], case["page_size"]
        model = model if case["part"] == "decode" else ""
        key = (case["priority"], case["part"], model, case["fp8"], page, case["hnd"])
        families.setdefault(key, []).append(case)
    ordered = []
    for key, family in families.items():
        for turn, index in enumerate(spread(len(family))):
            # A family gets two turns in a round if it is a large one: uniform decode is what most of the gates are on.
            ordered.append((key[0], turn / (2 if key[1] == "decode" else 1), len(ordered), family[index]))
    return [case for *_, case in sorted(ordered, key=lambda x: x[:3])]


class Output:
    """Appends results, one JSON object a line, each on disk before the next thing is tried."""

    def __init__(self, path):
        self.path = path
        self.done = set()
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            self.done = {row["case"] for row in rows if row.get("metric") == "contenders"}

    def write(self, rows):
        with self.path.open("a") as file:
            for row in rows:
                file.write(json.dumps({"bench": "attention_peers", **row}) + "\n")

    def metrics(self, case, metrics):
        self.write({"case": case, "metric": metric, "value": value, "unit": unit, "better": better}
                   for metric, value, unit, better in metrics)


@dataclasses.dataclass
class Seat:
    """A contender's place: its process, and what became of it."""

    entry: object
    worker: object = None
    graphs: bool = True
    failures: int = 0

    @property
    def allowed(self):
        return 5 if self.entry.ours else 1

    @property
    def out(self):
        return self.failures > self.allowed


class Contest:
    def __init__(self, args, output):
        self.args, self.output = args, output
        self.start = time.monotonic()
        self.one_by_one = False  # in preparing, since many hung at once
        self.logs = args.logs or args.json.parent
        self.logs.mkdir(parents=True, exist_ok=True)
        wanted = set(filter(None, args.contenders.split(",")))
        self.seats = [Seat(entry, graphs=not args.no_graphs) for entry in ROSTER
                      if not wanted or entry.ours or entry.name in wanted]
        self.options = {"library": args.library, "function": args.function, "prebuilt": args.prebuilt,
                        "vllm": args.vllm, "dry_run": args.dry_run}
        memory = free_memory()
        if memory:
            # A process has its context and workspaces besides, 1.5 GB or so, and some of the card stays free.
            self.options["max_bytes"] = max(0.9 * memory / len(self.seats) - 1.5e9, 0.7e9)

    def remaining(self):
        return self.args.seconds - (time.monotonic() - self.start)

    def launch(self, seat):
        name = seat.entry.name
        command = [sys.executable, str(HERE / "worker_main.py"), "--name", name, "--session", self.args.session,
                   "--options", json.dumps(self.options)]
        environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS="2")
        base = environment.get("FLASHINFER_WORKSPACE_BASE")
        if base:  # its lock files would be shared
            environment["FLASHINFER_WORKSPACE_BASE"] = f"{base}/{name}"
        seat.worker = Worker(name, command, environment, self.logs / f"peer-{name}.log")

    def open(self):
        """Starts all, and waits for ours and, less patiently, for the others: late ones join in a later case."""
        for seat in self.seats:
            self.launch(seat)
        end = time.monotonic() + min(self.args.start_seconds, self.remaining())
        while time.monotonic() < end:
            for worker in self.workers():
                if worker.pending is not None and worker.failure is None:
                    worker.receive()
            missing = [seat for seat in self.seats if seat.worker.pending is not None and seat.worker.failure is None]
            if not missing:
                break
            if not any(seat.entry.ours for seat in missing) and 2 * len(missing) < len(self.seats):
                end = min(end, time.monotonic() + self.args.start_seconds / 6)
            time.sleep(0.02)
        for seat in self.seats:
            self.settle(seat, "start")

    def close(self):
        for seat in self.seats:
            if seat.worker is not None:
                seat.worker.kill()

    def workers(self):
        return [seat.worker for seat in self.seats if seat.worker is not None]

    def settle(self, seat, case, forgiven=False):
        """Notes a worker's failure, and starts it again if it may."""
        failure = seat.worker.failure if seat.worker is not None else None
        if failure is None:
            return
        seat.worker = None
        seat.failures += not forgiven
        if failure.stage in GRAPH_STAGES and not forgiven:
            seat.graphs = False
        self.report(seat, case, failure.what, failure.stage, failure.detail)
        if not seat.out:
            self.launch(seat)

    def report(self, seat, case, status, stage, detail):
        self.output.write([{"case": case, "contender": seat.entry.name, "status": status, "stage": stage,
                            "detail": detail}])
        print(f"  {seat.entry.name}: {status} in {stage!r} of {case}: {detail}", flush=True)

    def ask(self, seats, request, case, limit):
        """Replies of those that gave one, by name."""
        limit = max(1.0, min(limit, self.remaining() + 10))
        replies = ask([seat.worker for seat in seats], request, min(self.args.silence, limit), limit)
        # Where most hang, one may have held the device up for the others: next time it will be alone in that.
        hung = sum(seat.worker.failure is not None and seat.worker.failure.what == "hung" for seat in seats)
        many = hung >= 3 and 2 * hung > len(seats) and not self.one_by_one
        self.one_by_one |= many
        good = {}
        for seat in seats:
            reply = replies.get(seat.worker)
            if reply is not None:
                good[seat.entry.name] = reply
            self.settle(seat, case, forgiven=many)
        return good

    def idle(self, case):
        """Who can take the case; those started again join once they have imported everything."""
        starting = [w for w in self.workers() if w.failure is None and w.pending == 0]
        for worker in starting:
            worker.receive()
            if worker.pending == 0 and time.monotonic() - worker.began > 2 * self.args.start_seconds:
                worker.fail("hung", "does not start")
        for seat in self.seats:
            self.settle(seat, "start")
        return [seat for seat in self.seats if seat.worker is not None and seat.worker.idle and seat.entry.takes(case)]

    def prepare(self, case):
        """Seats that are ready to run the case, and their replies."""
        seats = self.idle(case)
        replies = {}
        # Those with and those without graphs are asked apart, since all of a call get the same request.
        groups = [(flag, [seat for seat in seats if seat.graphs == flag]) for flag in (True, False)]
        if self.one_by_one:
            groups = [(seat.graphs, [seat]) for seat in seats]
        for graph, group in groups:
            if group:
                replies |= self.ask(group, {"do": "prepare", "case": case, "graph": graph}, case["name"],
                                    3 * self.args.silence)
        ready = []
        for seat in seats:
            reply = replies.get(seat.entry.name, {})
            if reply.get("status") == "ok":
                ready.append(seat)
            elif reply.get("status", "unsupported") != "unsupported":
                self.report(seat, case["name"], reply["status"], seat.worker.stage, reply["detail"])
        return ready, replies

    def race(self, case, ready, replies):
        """Milliseconds of each contender's replays; a contender that fails has none."""
        times = {seat.entry.name: [] for seat in ready}
        share = 1e3 * self.args.case_seconds / (VISITS * max(1, len(ready)))
        running = list(ready)
        for visit in range(VISITS):
            for seat in running if visit % 2 == 0 else running[::-1]:
                name = seat.entry.name
                once = replies[name]["once_ms"]
                count = max(5 if once < LONG_MS else 3, min(12, int(share / max(once, 1e-3))))
                limit = self.args.replay_seconds + 3e-3 * once * (count + 1)
                reply = self.ask([seat], {"do": "replay", "count": count}, case["name"], limit)
                if name in reply:
                    times[name] += reply[name]["ms"]
                else:
                    del times[name]
            best = min((statistics.median(values) for values in times.values()), default=0)
            running = [seat for seat in running if seat.entry.name in times and
                       (seat.entry.ours or statistics.median(times[seat.entry.name]) <= FAR_BEHIND * best)]
        seats = [seat for seat in ready if seat.entry.name in times]
        last = self.ask(seats, {"do": "finish"}, case["name"], self.args.silence)
        for seat in seats:
            reply = last.get(seat.entry.name)
            if reply is None or reply["status"] != "ok":
                del times[seat.entry.name]
                if reply is not None:
                    self.report(seat, case["name"], reply["status"], "last check", reply["detail"])
        return times, last

    def contend(self, case):
        """Metrics of one case, and a line for people."""
        ready, replies = self.prepare(case)
        launches = {name: reply["launches"] for name, reply in replies.items() if reply["status"] == "ok"}
        graphs = {seat.entry.name: seat.graphs for seat in ready}
        times, last = self.race(case, ready, replies)
        metrics, medians = [], {}
        for seat in ready:
            name = seat.entry.name
            if name not in times:
                continue
            us = [1e3 * ms / launches[name] for ms in times[name]]
            medians[name] = statistics.median(us)
            metrics += [(f"us/{name}", medians[name], "us", "lower"), (f"us_min/{name}", min(us), "us", "lower"),
                        (f"us_max/{name}", max(us), "us", "lower"),
                        (f"error/{name}", max(replies[name]["error"], last[name]["error"]), "", "lower")]
            if not graphs[name]:
                metrics.append((f"on_a_stream/{name}", 1, "", "lower"))
            if replies[name].get("plan_us") is not None:
                metrics.append((f"plan_us/{name}", replies[name]["plan_us"], "us", "lower"))
        if medians:
            metrics += [("kv_bytes", case["kv_bytes"], "B", "lower"), ("flop", case["flop"], "", "higher"),
                        ("contenders", len(medians), "", "higher")]
        return metrics, line_for(medians)

    def await_starts(self):
        """A case without us is of little use: if we are being started again, waits for that; for others only as long as
        --join-seconds says. False if we are out."""
        began = time.monotonic()
        while self.remaining() > 0:
            for seat in self.seats:
                if seat.worker is not None and seat.worker.pending == 0:
                    seat.worker.receive()
                self.settle(seat, "start")
            starting = [s for s in self.seats if s.worker is not None and s.worker.pending == 0]
            ours = [s for s in self.seats if s.entry.ours]
            if all(seat.out for seat in ours):
                return False
            ready = any(seat.worker is not None and seat.worker.idle for seat in ours)
            passed = time.monotonic() - began
            if not starting or passed > (self.args.join_seconds if ready else self.args.start_seconds):
                break
            time.sleep(0.02)
        return True


def line_for(medians):
    if not medians:
        return "nothing ran"
    ours = {e.name for e in ROSTER if e.ours} & medians.keys()
    peers = {e.name for e in ROSTER if e.paged and not e.ours} & medians.keys()
    text = []
    if ours:
        mine = min(ours, key=medians.get)
        text.append(f"{mine} {medians[mine]:.2f} us")
    if peers:
        best = min(peers, key=medians.get)
        text.append(f"best {best} {medians[best]:.2f}")
        if ours:
            text.append(f"ratio {medians[mine] / medians[best]:.3f}")
    others = sorted(medians.items(), key=lambda x: x[1])
    return "  ".join(text) + "  | " + ", ".join(f"{name} {value:.2f}" for name, value in others)


def free_memory():
    """Bytes of the first GPU, as the driver's own tool has it: this process has no context."""
    try:
        text = subprocess.run(["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"], timeout=20,
                              capture_output=True, text=True, check=True).stdout
        return float(text.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def dry_run(contest, cases):
    """How far each contender comes without a device, with one small case of each family."""
    for case in cases:
        seats = contest.idle(case)
        replies = contest.ask(seats, {"do": "prepare", "case": case}, case["name"], 10 * contest.args.silence)
        for seat in seats:
            reply = replies.get(seat.entry.name, {"status": "failed", "detail": ""})
            stage = seat.worker.stage if seat.worker else "?"
            print(f"{case['name']:52s} {seat.entry.name:24s} {reply['status']:12s} {stage:22s} "
                  f"{reply.get('detail', '')}", flush=True)


def small(cases):
    """One case of each part, type and page size, cut down to what a CPU can do."""
    chosen = {}
    for case in cases:
        key = (case["part"], case["fp8"], case["page_size"], case["hnd"], case["window"], case["head_dim"])
        lens = [min(n, 160) for n in case["kv_lens"][:2]]
        news = [min(n, length) for n, length in zip(case["new_lens"][:2], lens, strict=True)]
        # As large as two caches, so that there are few pools.
        chosen.setdefault(key, dict(case, kv_lens=lens, new_lens=news, kv_bytes=int(150e6)))
    return list(chosen.values())


def run(contest, cases):
    args, output = contest.args, contest.output
    todo = [case for case in cases if case["name"] not in output.done]
    largest = contest.options.get("max_bytes", math.inf)
    left_out = [case for case in todo if 1.2 * case["kv_bytes"] > largest]
    todo = [case for case in todo if 1.2 * case["kv_bytes"] <= largest]
    contest.open()
    # Contexts of all before kernels of any: what hangs later is a contender's own doing.
    contest.ask([s for s in contest.seats if s.worker is not None and s.worker.idle], {"do": "open"}, "start",
                2 * args.silence)
    if any(case["part"] == "prefill" for case in todo) and "ceiling/matmul" not in output.done:
        seat = next((s for s in contest.seats if s.worker is not None and s.worker.idle and not s.entry.ours), None)
        reply = contest.ask([seat], {"do": "matmul"}, "ceiling/matmul", args.silence) if seat else {}
        for product in reply.values():
            output.metrics("ceiling/matmul", [("tflop_per_s", product["tflop_per_s"], "TFLOP/s", "higher"),
                                              ("contenders", 1, "", "higher")])
            print(f"{product['gpu']}, torch {product['torch']}; "
                  f"bf16 matrix product: {product['tflop_per_s']:.0f} TFLOP/s", flush=True)
    took, measured = [], 0
    for i, case in enumerate(todo):
        if not contest.await_starts():
            print("this library is out: the rest is not measured", flush=True)
            left_out += todo[i:]
            break
        if contest.remaining() < (2 * statistics.median(took) if took else 1):
            left_out += todo[i:]
            break
        began = time.monotonic()
        metrics, line = contest.contend(case)
        output.metrics(case["name"], metrics)
        took.append(time.monotonic() - began)
        measured += bool(metrics)
        print(f"{case['name']:56s} {line}  ({took[-1]:.1f} s)", flush=True)
    print(f"{measured} cases measured, {len(left_out)} left out; {time.monotonic() - contest.start:.0f} s", flush=True)
    return 0 if measured else 1


def main():
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = [json.loads(line) for line in args.cases.read_text().splitlines()]
    parts = args.part.split(",")
    cases = by_worth([c for c in cases if c["part"] in parts and args.filter in c["name"]])
    contest = Contest(args, Output(args.json))
    try:
        if args.dry_run:
            contest.open()
            dry_run(contest, small(cases))
            return 0
        return run(contest, cases)
    finally:
        contest.close()


if __name__ == "__main__":
    sys.exit(main())
