#!/usr/bin/env python3
"""Times this library and public kernels on the same memory in one process, taking turns: A B C C B A.

  bench_attention --list --grid quick > cases.jsonl
  python3 peers.py --library libllmd_cuda.so --cases cases.jsonl --part decode --json peers.jsonl

Every contender's launches over rotating pools are captured in a CUDA graph; the graphs are replayed by turns and the
medians compared. Outputs of a few requests are checked against float32 arithmetic; a contender that is wrong is
reported and does not count. Run again with the same --json to go on where it stopped: cases in the file are skipped,
and a contender that took the process down is left out of that case.
"""

import argparse
import collections
import contextlib
import json
import math
import pathlib
import statistics
import sys
import time

import torch

import capi
import contenders as library
from problems import Arena, Problem, graph_launches

FATAL = ("illegal memory access", "misaligned address", "unspecified launch failure", "device-side assert",
         "illegal instruction", "hardware stack error", "an illegal address")
LIMITS = {"llmd": 8e-3, "flashinfer-xqa": 5e-2}  # ||out - ref|| / ||ref||; XQA computes fp8 caches in fp8


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libllmd_cuda.so")
    parser.add_argument("--cases", type=pathlib.Path, required=True, help="output of bench_attention --list")
    parser.add_argument("--part", default="decode,sweep,mixes,prefill")
    parser.add_argument("--filter", default="", help="only cases whose name contains it")
    parser.add_argument("--contenders", default="", help="only these, by name; llmd is always in")
    parser.add_argument("--json", type=pathlib.Path, required=True, help="results are appended here")
    parser.add_argument("--seconds", type=float, default=200, help="for the whole run")
    parser.add_argument("--prebuilt", help="folder that build_peers.py filled")
    parser.add_argument("--vllm", help="folder of an unpacked vLLM wheel, for its Triton kernel and FlashAttention-3")
    parser.add_argument("--gigabytes", type=float, default=9.8, help="memory for caches; larger cases are left out")
    return parser.parse_args()


class Output:
    """Appends metrics; knows which cases are done, and which contender of which case was the last to begin."""

    def __init__(self, path):
        self.path = path
        self.begun = path.with_suffix(path.suffix + ".begun")
        self.done = set()
        self.crashed = set()
        self.unusable = set()
        if path.exists():
            self.done = {json.loads(line)["case"] for line in path.read_text().splitlines()}
        if self.begun.exists():
            pairs = [tuple(line.split("\t")) for line in self.begun.read_text().splitlines()]
            # The last to begin in a case that never ended took the process down, and may have done so before.
            last = {}
            for run, case, name in pairs:
                last[run, case] = name
            self.crashed = {(case, name) for (_, case), name in last.items() if case not in self.done}
            counts = collections.Counter(name for _, name in self.crashed)
            self.unusable = {name for name, count in counts.items() if count > 1 and name != "llmd"}
        self.run = str(time.time_ns())

    def begin(self, case, name):
        with self.begun.open("a") as file:
            file.write(f"{self.run}\t{case}\t{name}\n")

    def write(self, case, metrics):
        with self.path.open("a") as file:
            for metric, value, unit, better in metrics:
                file.write(json.dumps({"bench": "attention_peers", "case": case, "metric": metric, "value": value,
                                       "unit": unit, "better": better}) + "\n")


def capture(contender, launches):
    """A graph of the launches. Unlike torch.cuda.graph it collects no garbage, which costs more than the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for i in range(3):
            contender.run(i)
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(launches):
                contender.run(i)
        except Exception:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.synchronize()
    return graph


def replay(graphs, order):
    """Milliseconds of each replay, in the order given; the device is never kept waiting in between."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(order) + 2)]
    graphs[order[0]].replay()  # not counted: it waits for the host
    events[0].record()
    for i, name in enumerate(order):
        graphs[name].replay()
        events[i + 1].record()
    torch.cuda.synchronize()
    return [events[i].elapsed_time(events[i + 1]) for i in range(len(order))]


def error_of(contender, reference):
    rows, expected = reference
    contender.out.fill_(float("nan"))
    contender.run(0)
    got = contender.out[rows].float()
    error = ((got - expected).norm() / expected.norm()).item()
    return error if math.isfinite(error) else float("inf")


def contend(case, problem, kinds, output, seconds):
    """Metrics of one case, and a line for people."""
    graphs, metrics, remarks, times = {}, [], [], {}
    launches = 6 if problem.prefill else graph_launches(problem.kv_bytes)
    reference = problem.reference()
    for kind in kinds:
        if kind.name in output.unusable or (case["name"], kind.name) in output.crashed:
            remarks.append(f"{kind.name}: crashed before")
            continue
        output.begin(case["name"], kind.name)
        try:
            contender = kind(problem)
            if contender.checked:
                error = error_of(contender, reference)
                metrics.append((f"error/{kind.name}", error, "", "lower"))
                if error > LIMITS.get(kind.name, 2e-2):
                    remarks.append(f"{kind.name}: WRONG by {error:.2g}")
                    continue
            graphs[kind.name] = capture(contender, launches)
            plan = contender.plan_us()
            if plan is not None:
                metrics.append((f"plan_us/{kind.name}", plan, "us", "lower"))
        except library.Unsupported:
            pass
        except torch.cuda.OutOfMemoryError:
            remarks.append(f"{kind.name}: out of memory")
            torch.cuda.empty_cache()
        except Exception as problem_found:  # a peer's refusal or its failure to compile is its own affair
            if any(word in str(problem_found) for word in FATAL):
                raise
            remarks.append(f"{kind.name}: {type(problem_found).__name__}: {str(problem_found)[:160]}")
    names = list(graphs)
    if not names:
        return metrics, "nothing ran; " + "; ".join(remarks)
    once = sum(replay(graphs, names)) / 1e3
    rounds = max(3, min(25, int(seconds / (2 * once))))
    order = (names + names[::-1]) * rounds
    for name, ms in zip(order, replay(graphs, order), strict=True):
        times.setdefault(name, []).append(ms * 1e3 / launches)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        metrics += [(f"us/{name}", medians[name], "us", "lower"), (f"us_min/{name}", min(values), "us", "lower"),
                    (f"us_max/{name}", max(values), "us", "lower")]
    paged = {kind.name for kind in kinds if kind.paged}
    peers = {name: value for name, value in medians.items() if name in paged and name != "llmd"}
    best = min(peers, key=peers.get) if peers else None
    line = f"{medians.get('llmd', math.nan):9.2f} us"
    if best:
        line += f"  best {best} {peers[best]:.2f}"
        if "llmd" in medians:
            ratio = medians["llmd"] / peers[best]
            metrics.append(("ratio_to_best_peer", ratio, "", "lower"))
            line += f"  ratio {ratio:.3f}"
    others = [f"{name} {value:.2f}" for name, value in sorted(medians.items(), key=lambda x: x[1])
              if name not in ("llmd", best)]
    return metrics, line + "  | " + ", ".join(others) + ("  | " + "; ".join(remarks) if remarks else "")


def matmul_ceiling(output):
    """bf16 matrix products of random data, 8192 cubed: what prefill is measured against."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    rate = 2 * 8192**3 / statistics.median(times) / 1e9
    output.write("ceiling/matmul", [("tflop_per_s", rate, "TFLOP/s", "higher")])
    print(f"bf16 matrix product: {rate:.0f} TFLOP/s", flush=True)


def main():
    args = parse()
    start = time.monotonic()
    torch.manual_seed(1)
    device = torch.device("cuda", 0)
    library.Llmd.backend = capi.Backend(args.library)
    library.FlashInfer.prebuilt = args.prebuilt
    library.Unified.folder = library.Fa3.folder = args.vllm
    wanted = set(filter(None, args.contenders.split(",")))
    kinds = [kind for kind in library.ALL if not wanted or kind.name == "llmd" or kind.name in wanted]
    cases = [json.loads(line) for line in args.cases.read_text().splitlines()]
    parts = args.part.split(",")
    cases = [c for c in cases if c["part"] in parts and args.filter in c["name"]]
    cases.sort(key=lambda c: c["priority"])
    output = Output(args.json)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {len(cases)} cases", flush=True)
    if "prefill" in parts and "ceiling/matmul" not in output.done:
        matmul_ceiling(output)
    arena = Arena(int(args.gigabytes * 1e9) // 4096 * 4096, device)
    ratios, left_out, failed = [], 0, 0
    todo = [c for c in cases if c["name"] not in output.done]
    for i, case in enumerate(todo):
        remaining = args.seconds - (time.monotonic() - start)
        if remaining <= 0:
            left_out += 1
            continue
        try:
            problem = Problem(case, arena, device)
        except MemoryError:
            left_out += 1
            continue
        try:
            metrics, line = contend(case, problem, kinds, output, min(0.6, 0.5 * remaining / (len(todo) - i)))
        except RuntimeError as error:
            print(f"{case['name']}: the device is lost: {str(error)[:300]}", flush=True)
            return 4
        print(f"{case['name']:58s} {line}", flush=True)
        output.write(case["name"], metrics)
        ratios += [value for name, value, *_ in metrics if name == "ratio_to_best_peer"]
        failed += "WRONG" in line
        del problem
        if i % 8 == 7:
            torch.cuda.empty_cache()
    if ratios:
        mean = math.exp(statistics.mean(math.log(r) for r in ratios))
        print(f"ratio to the best peer over {len(ratios)} cases: geometric mean {mean:.3f}, worst {max(ratios):.3f}")
    print(f"{left_out} cases left out; {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
