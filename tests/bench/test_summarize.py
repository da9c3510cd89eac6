"""bench/attention/summarize.py: the keys of a result, who counts as the best peer, and what failures leave behind."""

import io
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench" / "attention"
sys.path.insert(0, str(BENCH))

import summarize  # noqa: E402

CASE = "decode/llama-3.1-8b/B4/L8192/P16/NHD/bf16"


def peers(**us):
    metrics = {}
    for name, value in us.items():
        name = name.replace("_", "-")
        metrics |= {f"us/{name}": value, f"us_min/{name}": 0.99 * value, f"us_max/{name}": 1.01 * value}
    return metrics


def row_of(name=CASE, ours=None, theirs=None, failures=None, ceiling=4500.0):
    return summarize.make_row(name, ours or {}, theirs or {}, failures or {}, ceiling)


class RowTest(unittest.TestCase):
    def test_required_keys(self):
        row = row_of(ours={"us": 40.0, "kv_bytes": 134e6, "share_of_read_ceiling": 0.74},
                     theirs=peers(llmd=41.0, fa3=50.0, flashinfer_xqa=44.0, sdpa_dense=10.0))
        self.assertEqual((row["us"], row["kv_bytes"], row["share_of_read_ceiling"]), (40.0, 134e6, 0.74))
        self.assertEqual((row["best_peer"], row["best_peer_us"]), ("flashinfer-xqa", 44.0))  # not the dense one
        self.assertAlmostEqual(row["ratio_to_best_peer"], 41 / 44, 3)
        self.assertEqual(list(row["peers_us"]), ["sdpa-dense", "flashinfer-xqa", "fa3"])
        self.assertAlmostEqual(row["spread"], 0.02)

    def test_best_of_our_settings_and_the_other_one(self):
        row = row_of(theirs=peers(llmd=41.0, llmd_early_start=38.0, fa3=40.0))
        self.assertAlmostEqual(row["ratio_to_best_peer"], 0.95)
        self.assertAlmostEqual(row["ratio_without_early_start"], 1.025)

    def test_without_bench_attention(self):
        row = row_of(theirs=peers(llmd=40.0, fa3=50.0) | {"kv_bytes": 134e6})
        self.assertEqual(row["us"], 40.0)
        self.assertAlmostEqual(row["share_of_read_ceiling"], 134e6 / 40e-6 / 1e9 / 4500, 3)

    def test_without_ours_among_the_peers(self):
        row = row_of(ours={"us": 40.0, "kv_bytes": 134e6}, theirs=peers(fa3=50.0),
                     failures={"llmd": "hung in replay: no answer in 5 s"})
        self.assertAlmostEqual(row["ratio_to_best_peer"], 0.8)
        self.assertIn("ratio_across_processes", row)
        self.assertEqual(row["failed"], {"llmd": "hung in replay: no answer in 5 s"})

    def test_no_ratio_without_a_peer(self):
        row = row_of(ours={"us": 40.0}, theirs=peers(llmd=40.0), failures={"fa3": "wrong in first run: 0.3"})
        self.assertNotIn("ratio_to_best_peer", row)
        self.assertIn("fa3", row["failed"])

    def test_a_small_case_on_a_stream_is_not_compared_with_graphs(self):
        theirs = peers(llmd=8.0, fa3=9.0, flashinfer_xqa=7.0) | {"on_a_stream/flashinfer-xqa": 1}
        self.assertEqual(row_of(theirs=theirs | {"kv_bytes": 4e6})["best_peer"], "fa3")
        self.assertEqual(row_of(theirs=theirs | {"kv_bytes": 200e6})["best_peer"], "flashinfer-xqa")

    def test_a_failure_that_was_made_good_is_none(self):
        self.assertNotIn("failed", row_of(theirs=peers(fa3=9.0), failures={"fa3": "hung in plan: -"}))

    def test_prefill(self):
        row = row_of("prefill/m/causal-8k/P16/NHD/bf16", theirs=peers(llmd=2000.0, fa3=1000.0) | {"flop": 6e11})
        self.assertAlmostEqual(row["tflop_per_s"], 300.0)
        self.assertNotIn("share_of_read_ceiling", row)


class SummaryTest(unittest.TestCase):
    def test_groups(self):
        names = [CASE, CASE.replace("8b", "70b-tp8").replace("B4", "B32"), "mixes/llama-3.1-8b/zipf/P64/NHD/bf16",
                 "sweep/llama-3.1-8b/B32/L2048/P16/NHD/fp8", "prefill/llama-3.1-8b/causal-8k/P16/NHD/bf16"]
        rows = [row_of(name, theirs=peers(llmd=ratio, fa3=1.0), failures={"triton-unified": "hung in plan: x"})
                for name, ratio in zip(names, (0.5, 0.8, 1.25, 2.0, 4.0), strict=True)]
        summary = summarize.averages(rows)
        self.assertEqual({k: v["cases_with_peers"] for k, v in summary.items() if "worst_ratio" in v},
                         {"decode": 4, "batch_1_to_4": 1, "one_kv_head": 1, "mixed_lengths": 1, "page_16": 3,
                          "page_64": 1, "fp8": 1, "prefill": 1})
        self.assertNotIn("prefill_mma_sync", summary)  # only the one peer that does not use it was there
        rows = [row_of("prefill/m/causal-8k/P16/NHD/bf16", theirs=peers(llmd=8.0, fa3=4.0, **{"flashinfer-fa2": 10.0}))]
        self.assertEqual(summarize.averages(rows)["prefill_mma_sync"]["worst_ratio"], 0.8)
        self.assertEqual(rows[0]["ratio_to_best_peer"], 2.0)
        self.assertAlmostEqual(summary["decode"]["geometric_mean_ratio"], math.sqrt(math.sqrt(1.0)), 3)
        self.assertEqual(summary["decode"]["ratios_above_1.03"], 2)
        self.assertEqual(summary["failed"], {"triton-unified": {"hung in plan": 5}})

    def test_any_page(self):
        names = {"decode/m/B1/L8192/P16/NHD/bf16": 12.0, "sweep/m/B1/L8192/P128/NHD/bf16": 9.0}
        rows = [row_of(name, theirs=peers(llmd=10.0, fa3=us)) for name, us in names.items()]
        summarize.any_page(rows)
        self.assertEqual({row["best_peer_any_page"] for row in rows}, {"fa3 P128"})
        self.assertAlmostEqual(rows[0]["ratio_any_page"], 1.111)

    def test_gates(self):
        self.assertIs(summarize.gate({"case": CASE, "us": 1, "kv_bytes": 34e6, "share_of_read_ceiling": 0.71}), True)
        self.assertIs(summarize.gate({"case": CASE, "us": 1, "kv_bytes": 34e6, "share_of_read_ceiling": 0.69}), False)
        self.assertIs(summarize.gate({"case": CASE, "us": 6.5, "kv_bytes": 2e6, "share_of_read_ceiling": 0.1}), False)
        self.assertIsNone(summarize.gate({"case": CASE, "us": 6.5, "kv_bytes": 9e6, "share_of_read_ceiling": 0.1}))
        late = {"case": CASE, "us": 10.0, "early_start_us": 9.0, "kv_bytes": 34e6, "share_of_read_ceiling": 0.65}
        self.assertIs(summarize.gate(late), False)
        self.assertIs(summarize.gate(summarize.early(late)), True)


class ProgramTest(unittest.TestCase):
    def test_files_of_both_programs(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            lines = [("device/NVIDIA H200", "l2", 6e7), ("ceiling/read/8192MiB", "gb_per_s", 4500.0),
                     (CASE, "us", 40.0), (CASE, "early_start_us", 32.0), (CASE, "kv_bytes", 134e6),
                     (CASE, "share_of_read_ceiling", 0.74)]
            (folder / "ours.jsonl").write_text("".join(
                json.dumps({"case": c, "metric": m, "value": v}) + "\n" for c, m, v in lines))
            rows = [{"case": CASE, "metric": m, "value": v} for m, v in peers(llmd=40.0, fa3=50.0).items()]
            failure = {"status": "hung", "stage": "capture", "detail": "-"}
            rows += [{"case": CASE, "contender": "flashinfer-xqa", **failure},
                     {"case": "start", "contender": "triton-unified", **failure},
                     {"case": "ceiling/matmul", "metric": "tflop_per_s", "value": 780.0}]
            (folder / "peers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            done = subprocess.run(
                [sys.executable, "-B", str(BENCH / "summarize.py"), "--ours", str(folder / "ours.jsonl"), "--peers",
                 str(folder / "peers.jsonl"), "--out", str(folder / "out"), "--markdown", str(folder / "t.md")],
                capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            result = json.loads((folder / "out" / "attention-h200.json").read_text())
            self.assertEqual(result["rows"][0]["ratio_to_best_peer"], 0.8)
            self.assertEqual(result["rows"][0]["failed"], {"flashinfer-xqa": "hung in capture: -"})
            self.assertEqual(result["ceilings"]["matmul tflop_per_s"], 780.0)
            self.assertEqual(result["summary"]["gates"], {"of": 1, "met": 0, "met_at_the_better_setting": 1})
            self.assertRegex(done.stdout, r"early start\n")
            self.assertIn("| decode | 1 | 0.800 |", (folder / "t.md").read_text())
            self.assertIn("flashinfer-xqa hung in capture", (folder / "t.md").read_text())

    def test_nothing_measured_writes_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-B", str(BENCH / "summarize.py"), "--out", folder],
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(list(pathlib.Path(folder).iterdir()), [])

    def test_table(self):
        text = io.StringIO()
        summarize.table([row_of(ours={"us": 40.0, "kv_bytes": 134e6, "share_of_read_ceiling": 0.74},
                                theirs=peers(llmd=40.0, fa3=50.0))], text)
        self.assertIn("0.800  MISSED", text.getvalue())


if __name__ == "__main__":
    unittest.main()
