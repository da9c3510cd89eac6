#!/usr/bin/env python3
"""Makes bench/results/attention-<gpu>.json of what bench_attention and peers.py wrote, and prints it as a table.

  python3 summarize.py --ours ours.jsonl --peers peers.jsonl --out bench/results --markdown table.md
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import sys

from roster import OURS, UNPAGED, WGMMA

# Section 5 of the specification: share of the read ceiling from so many bytes on (batches of 16-bit decode).
GATES = [(500e6, 0.92), (134e6, 0.90), (33e6, 0.70)]
NOISE = 1.03
LAUNCHES_HIDDEN = 134e6  # bytes from which launches on a stream cost no more than in a graph
# Over which cases ratios are averaged.
GROUPS = {
    "decode": lambda name: not name.startswith("prefill/"),
    "batch_1_to_4": lambda name: re.search(r"/B[124]/", name),
    "one_kv_head": lambda name: "-tp8/" in name,
    "mixed_lengths": lambda name: name.startswith("mixes/"),
    "page_16": lambda name: "/P16/" in name and not name.startswith("prefill/"),
    "page_64": lambda name: "/P64/" in name,
    "fp8": lambda name: name.endswith("/fp8"),
    "prefill": lambda name: name.startswith("prefill/"),
}


def read(paths):
    """{case: {metric: value}}, later lines winning, and {case: {contender: what became of it}}."""
    cases, failures = {}, {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "contender" in row:
                text = f"{row['status']} in {row['stage']}: {row['detail'][:120]}"
                failures.setdefault(row["case"], {})[row["contender"]] = text
            else:
                cases.setdefault(row["case"], {})[row["metric"]] = row["value"]
    return cases, failures


def rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def compare(row, peers):
    """The ratio to the best peer, and what it is made of."""
    times = {key[3:]: value for key, value in peers.items() if key.startswith("us/")}
    on_a_stream = {key.split("/")[1] for key in peers if key.startswith("on_a_stream/")}
    ours = {name: times[name] for name in times if name in OURS}
    others = {name: value for name, value in times.items() if name not in OURS}
    if others:
        row["peers_us"] = {name: rounded(value) for name, value in sorted(others.items(), key=lambda x: x[1])}
    plans = {key[8:]: rounded(value) for key, value in peers.items() if key.startswith("plan_us/")}
    if plans:
        row["peers_plan_us"] = plans
    if on_a_stream:
        row["on_a_stream"] = sorted(on_a_stream)
    if ours:
        row["ours_us"] = {name: rounded(value) for name, value in ours.items()}
        mine = min(ours, key=ours.get)
        us, streamed = ours[mine], mine in on_a_stream
    elif "us" in row:
        row["ratio_across_processes"] = "ours is bench_attention's"
        us, streamed = row["us"], False
    else:
        return
    large = row.get("kv_bytes", peers.get("kv_bytes", 0)) >= LAUNCHES_HIDDEN
    paged = {name: value for name, value in others.items()
             if name not in UNPAGED and (large or (name in on_a_stream) == streamed)}
    if not paged:
        row.pop("ratio_across_processes", None)
        return
    best = min(paged, key=paged.get)
    row["best_peer"] = best
    row["best_peer_us"] = rounded(paged[best])
    row["us_beside_peers"] = rounded(us)
    row["ratio_to_best_peer"] = rounded(us / paged[best])
    if row["case"].startswith("prefill/"):
        same_instruction = [value for name, value in paged.items() if name not in WGMMA]
        if same_instruction:
            row["ratio_to_best_mma_sync"] = rounded(us / min(same_instruction))
    if "llmd" in ours and len(ours) > 1:
        row["ratio_without_early_start"] = rounded(ours["llmd"] / paged[best])
    extremes = [(peers[f"us_max/{n}"] - peers[f"us_min/{n}"]) / times[n]
                for n in ([best, mine] if ours else [best]) if f"us_max/{n}" in peers]
    if extremes:
        row["spread"] = rounded(max(extremes))


def make_row(name, ours, peers, failures, read_ceiling):
    """`us` and what is derived from it come from bench_attention; the ratio from the run that took turns."""
    row = {"case": name}
    for key in ("us", "us_min", "us_max", "plan_us", "early_start_us", "step_32_layers_us", "kv_bytes", "bytes", "gb_per_s",
                "share_of_read_ceiling", "share_of_copy_rate", "tflop_per_s", "single_launch_us"):
        if key in ours:
            row[key] = rounded(ours[key])
    measured = [peers[f"us/{n}"] for n in OURS if f"us/{n}" in peers]
    if "us" not in row and measured:
        row["us"] = rounded(min(measured))
    if "kv_bytes" not in row and "kv_bytes" in peers:
        row["kv_bytes"] = peers["kv_bytes"]
    if "us" in row and "kv_bytes" in row and not name.startswith("prefill/") and read_ceiling:
        row.setdefault("share_of_read_ceiling", rounded(row["kv_bytes"] / row["us"] * 1e-3 / read_ceiling))
    if "us" in row and "flop" in peers and name.startswith("prefill/"):
        row.setdefault("tflop_per_s", rounded(peers["flop"] / row["us"] * 1e-6))
    compare(row, peers)
    failed = {n: text for n, text in failures.items() if f"us/{n}" not in peers}
    if failed:
        row["failed"] = failed
    errors = [peers[f"error/{n}"] for n in OURS if f"error/{n}" in peers]
    if errors:
        row["error"] = rounded(max(errors))
    return row


def without_page(name):
    return re.sub(r"^(decode|sweep)/(.*)/P\d+/", r"\2/", name)


def any_page(rows):
    """Where a case was measured with several page sizes: the best peer at the one it likes best, beside ours."""
    groups = {}
    for row in rows:
        if "best_peer" in row:
            groups.setdefault(without_page(row["case"]), []).append(row)
    for group in groups.values():
        if len({row["case"].split("/P")[1].split("/")[0] for row in group}) < 2:
            continue
        best = min(group, key=lambda row: row["best_peer_us"])
        page = re.search(r"/P(\d+)/", best["case"])[1]
        for row in group:
            row["best_peer_any_page"] = f"{best['best_peer']} P{page}"
            row["ratio_any_page"] = rounded(row["us_beside_peers"] / best["best_peer_us"])


def averages(rows):
    summary = {}
    groups = {title: ("ratio_to_best_peer", belongs) for title, belongs in GROUPS.items()}
    groups["prefill_mma_sync"] = ("ratio_to_best_mma_sync", lambda name: True)
    for title, (key, belongs) in groups.items():
        ratios = [row[key] for row in rows if key in row and belongs(row["case"])]
        if ratios:
            summary[title] = {
                "cases_with_peers": len(ratios),
                "geometric_mean_ratio": rounded(math.exp(statistics.mean(map(math.log, ratios)))),
                "worst_ratio": max(ratios),
                "ratios_above_1.03": sum(ratio > NOISE for ratio in ratios),
            }
    failed = {}
    for row in rows:
        for name, text in row.get("failed", {}).items():
            failed.setdefault(name, {}).setdefault(text.split(":")[0], []).append(row["case"])
    if failed:
        summary["failed"] = {name: {text: len(cases) for text, cases in texts.items()}
                             for name, texts in failed.items()}
    return summary


def gate(row):
    """Whether the row reaches what it must; None if no gate speaks of it."""
    if not row["case"].startswith(("decode/", "sweep/", "mixes/")) or "share_of_read_ceiling" not in row:
        return None
    for size, share in GATES:
        if row["kv_bytes"] >= size:
            return row["share_of_read_ceiling"] >= share
    return row["us"] <= 6 if row["kv_bytes"] <= 4e6 else None


def early(row):
    """The row as it is with LLMD_EARLY_START."""
    us = row.get("early_start_us", row.get("us"))
    changed = {"us": us}
    if us and "share_of_read_ceiling" in row:
        changed["share_of_read_ceiling"] = row["share_of_read_ceiling"] * row["us"] / us
    return row | changed


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
        verdict = {None: "", True: "ok", False: "early start" if gate(early(row)) else "MISSED"}[gate(row)]
        print(f"{row['case']:56s} {cell('us', '9.2f')} {cell('kv_bytes', '7.1f', 1e-6)} {share:>6s} "
              f"{row.get('best_peer', '-'):>24s} {cell('best_peer_us', '9.2f')} "
              f"{cell('ratio_to_best_peer', '6.3f')}  {verdict}", file=out)


def markdown(rows, summary):
    lines = ["| cases | number | geometric mean of ratios | worst | above 1.03 |", "|---|---|---|---|---|"]
    for title, values in summary.items():
        if "geometric_mean_ratio" in values:
            lines.append(f"| {title.replace('_', ' ')} | {values['cases_with_peers']} | "
                         f"{values['geometric_mean_ratio']:.3f} | {values['worst_ratio']:.3f} | "
                         f"{values['ratios_above_1.03']} |")
    lines += ["", "| case | MB | ours us | share | best peer | its us | ratio | others us |", "|" + "---|" * 8]
    for row in rows:
        if "best_peer" not in row and "failed" not in row:
            continue
        share = row.get("share_of_read_ceiling", row.get("share_of_matmul_ceiling"))
        best = row.get("best_peer", "-")
        rest = [f"{name} {value:g}" for name, value in row.get("peers_us", {}).items() if name != best]
        rest += [f"{name} {text.split(':')[0]}" for name, text in row.get("failed", {}).items()]
        cells = [f"`{row['case']}`", f"{row.get('kv_bytes', 0) / 1e6:.1f}",
                 row.get("us_beside_peers", row.get("us", "-")), "-" if share is None else f"{share:.2f}",
                 best, row.get("best_peer_us", "-"),
                 f"{row['ratio_to_best_peer']:.3f}" if "ratio_to_best_peer" in row else "-", ", ".join(rest)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--peers", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--environment", type=pathlib.Path, help="lines of `name: value` to keep with the results")
    parser.add_argument("--gpu", help="name in the file's name; default: what bench_attention saw")
    parser.add_argument("--markdown", type=pathlib.Path, help="a table for the notes, of the cases with peers")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    args = parser.parse_args()
    ours, _ = read([path for path in args.ours if path.exists()])
    peers, failures = read([path for path in args.peers if path.exists()])
    device = next((name[len("device/"):] for name in ours if name.startswith("device/")), args.gpu or "unknown")
    ceilings = {}
    for name, metrics in [*ours.items(), *peers.items()]:
        if name.startswith("ceiling/"):
            for metric, value in metrics.items():
                if metric.endswith("_per_s"):
                    ceilings[f"{name[len('ceiling/'):]} {metric}"] = rounded(value)
    names = [name for name in dict.fromkeys([*ours, *peers, *failures])
             if "/" in name and not name.startswith(("ceiling/", "device/"))]
    read_ceiling = max((value for name, value in ceilings.items() if name.startswith("read/")), default=None)
    rows = [make_row(name, ours.get(name, {}), peers.get(name, {}), failures.get(name, {}), read_ceiling)
            for name in names]
    if not rows:
        print("no results: nothing written", file=sys.stderr)
        return 1
    any_page(rows)
    matmul = ceilings.get("matmul tflop_per_s")
    for row in rows:
        if matmul and "tflop_per_s" in row:
            row["share_of_matmul_ceiling"] = rounded(row["tflop_per_s"] / matmul)
    summary = averages(rows)
    if "start" in failures:
        summary["failed_at_start"] = failures["start"]
    verdicts = [v for v in map(gate, rows) if v is not None]
    if verdicts:
        best = [gate(row) or gate(early(row)) for row in rows if gate(row) is not None]
        summary["gates"] = {"of": len(verdicts), "met": sum(verdicts), "met_at_the_better_setting": sum(best)}
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
    if args.markdown:
        args.markdown.write_text(markdown(rows, summary))
    table(rows)
    for name, value in ceilings.items():
        print(f"ceiling {name}: {value:g}")
    print(json.dumps(summary))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
