#!/usr/bin/env python3
"""Makes bench/results/attention-<gpu>.json of what bench_attention and peers.py wrote, and prints it as a table.

  python3 summarize.py --ours ours.jsonl --peers peers.jsonl --out bench/results
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import sys

UNPAGED = {"sdpa-dense"}
# Section 5 of the specification: share of the read ceiling from so many bytes on (batches of 16-bit decode).
GATES = [(500e6, 0.92), (134e6, 0.90), (33e6, 0.70)]


def read(paths):
    """{case: {metric: value}}, later lines winning."""
    cases = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            cases.setdefault(row["case"], {})[row["metric"]] = row["value"]
    return cases


def rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def make_row(name, ours, peers):
    """`us` and what is derived from it come from the C++ program; the ratio from the run that took turns."""
    row = {"case": name}
    for key in ("us", "us_min", "us_max", "plan_us", "early_start_us", "step_32_layers_us", "kv_bytes", "bytes", "gb_per_s",
                "share_of_read_ceiling", "share_of_copy_rate", "tflop_per_s", "single_launch_us"):
        if key in ours:
            row[key] = rounded(ours[key])
    times = {key[3:]: value for key, value in peers.items() if key.startswith("us/")}
    errors = {key[6:]: value for key, value in peers.items() if key.startswith("error/")}
    paged = {key: value for key, value in times.items() if key != "llmd" and key not in UNPAGED}
    if "us" not in row and "llmd" in times:
        row["us"] = rounded(times["llmd"])
    if paged and "llmd" in times:
        best = min(paged, key=paged.get)
        row["best_peer"] = best
        row["best_peer_us"] = rounded(paged[best])
        row["us_beside_peers"] = rounded(times["llmd"])
        row["ratio_to_best_peer"] = rounded(times["llmd"] / paged[best])
        row["peers_us"] = {key: rounded(value) for key, value in sorted(times.items()) if key != "llmd"}
        plans = {key[8:]: rounded(v) for key, v in peers.items() if key.startswith("plan_us/") and key[8:] != "llmd"}
        if plans:
            row["peers_plan_us"] = plans
    if "llmd" in errors:
        row["error"] = rounded(errors["llmd"])
    return row


def gate(row):
    """What the row must reach, and whether it does; None if no gate speaks of it."""
    if not row["case"].startswith(("decode/", "sweep/", "mixes/")) or "share_of_read_ceiling" not in row:
        return None
    for size, share in GATES:
        if row["kv_bytes"] >= size:
            return row["share_of_read_ceiling"] >= share
    return row["us"] <= 6 if row["kv_bytes"] <= 4e6 else None


def table(rows, out=sys.stdout):
    header = f"{'case':56s} {'us':>9s} {'MB':>7s} {'share':>6s} {'best peer':>24s} {'us':>9s} {'ratio':>6s}  gate"
    print(header, file=out)
    for row in rows:
        def cell(key, form, scale=1.0):
            return format(row[key] * scale, form) if key in row else "-"

        share = cell("share_of_read_ceiling", ".3f")
        if share == "-":
            share = cell("share_of_copy_rate", ".3f") if "share_of_copy_rate" in row else cell(
                "share_of_matmul_ceiling", ".3f")
        verdict = {None: "", True: "ok", False: "MISSED"}[gate(row)]
        print(f"{row['case']:56s} {cell('us', '9.2f')} {cell('kv_bytes', '7.1f', 1e-6)} {share:>6s} "
              f"{row.get('best_peer', '-'):>24s} {cell('best_peer_us', '9.2f')} "
              f"{cell('ratio_to_best_peer', '6.3f')}  {verdict}", file=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--peers", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--environment", type=pathlib.Path, help="lines of `name: value` to keep with the results")
    parser.add_argument("--gpu", help="name in the file's name; default: what bench_attention saw")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    args = parser.parse_args()
    ours, peers = (read([p for p in paths if p.exists()]) for paths in (args.ours, args.peers))
    device = next((name[len("device/"):] for name in ours if name.startswith("device/")), args.gpu or "unknown")
    ceilings = {}
    for name, metrics in [*ours.items(), *peers.items()]:
        if name.startswith("ceiling/"):
            for metric, value in metrics.items():
                if metric.endswith("_per_s"):
                    ceilings[f"{name[len('ceiling/'):]} {metric}"] = rounded(value)
    names = [n for n in dict.fromkeys([*ours, *peers]) if not n.startswith(("ceiling/", "device/"))]
    rows = [make_row(name, ours.get(name, {}), peers.get(name, {})) for name in names]
    if not rows:
        print("no results: nothing written", file=sys.stderr)
        return 1
    matmul = ceilings.get("matmul tflop_per_s")
    for row in rows:
        if matmul and "tflop_per_s" in row:
            row["share_of_matmul_ceiling"] = rounded(row["tflop_per_s"] / matmul)
    summary = {}
    for title, chosen in [("decode", [r for r in rows if not r["case"].startswith("prefill/")]),
                          ("prefill", [r for r in rows if r["case"].startswith("prefill/")])]:
        ratios = [r["ratio_to_best_peer"] for r in chosen if "ratio_to_best_peer" in r]
        if ratios:
            summary[title] = {
                "cases_with_peers": len(ratios),
                "geometric_mean_ratio": rounded(math.exp(statistics.mean(map(math.log, ratios)))),
                "worst_ratio": max(ratios),
                "ratios_above_1.03": sum(r > 1.03 for r in ratios),
            }
    verdicts = [v for v in map(gate, rows) if v is not None]
    if verdicts:
        summary["gates"] = {"met": sum(verdicts), "of": len(verdicts)}
    environment = {}
    if args.environment and args.environment.exists():
        for line in args.environment.read_text().splitlines():
            key, _, value = line.partition(": ")
            environment[key] = value
    slug = re.sub(r"[^a-z0-9]+", "-", (args.gpu or device).lower()).strip("-").removeprefix("nvidia-")
    path = args.out / f"attention-{slug}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    head = json.dumps({"gpu": device, "device": ours.get(f"device/{device}", {}), "environment": environment,
                       "ceilings": ceilings, "summary": summary}, indent=1)
    path.write_text(f"{head[:-2]},\n \"rows\": [\n{lines}\n ]\n}}\n")
    json.loads(path.read_text())
    table(rows)
    for name, value in ceilings.items():
        print(f"ceiling {name}: {value:g}")
    print(json.dumps(summary))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
