"""bench/attention/peers.py with contenders that hang, die, are wrong or talk nonsense: it must end in time, name
them, measure the others, and leave no process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
BENCH = HERE.parents[1] / "bench" / "attention"
sys.path.insert(0, str(BENCH))

from peers import by_worth, spread  # noqa: E402
from roster import ROSTER  # noqa: E402


def case(name, kv_bytes=1_000_000, priority=0, **fields):
    part = name.split("/")[0]
    return {"part": part, "name": name, "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "page_size": 16,
            "hnd": False, "fp8": False, "window": 0, "priority": priority, "kv_bytes": kv_bytes, "flop": 1e9,
            "kv_lens": [64, 128], "new_lens": [1, 1], **fields}


DECODE = [case(f"decode/m/B{i}") for i in range(1, 4)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


class Run:
    """One run of peers.py with fake contenders."""

    def __init__(self, folder, fakes, cases=tuple(DECODE), names="flashinfer-xqa,fa3", *options, wait=True):
        self.folder = pathlib.Path(folder)
        self.json = self.folder / "peers.jsonl"
        (self.folder / "cases.jsonl").write_text("".join(json.dumps(c) + "\n" for c in cases))
        environment = dict(os.environ, LLMD_FAKES=json.dumps(fakes), LLMD_FAKES_PIDS=str(self.folder / "pids"))
        start = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(BENCH / "peers.py"), "--cases", str(self.folder / "cases.jsonl"), "--json",
             str(self.json), "--contenders", names, "--session", f"{HERE / 'fake_session.py'}:open_session",
             "--silence", "2.5", "--replay-seconds", "2.5", "--start-seconds", "20", "--join-seconds", "20",
             "--case-seconds", "0.01", *options],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if wait:
            self.text, _ = self.process.communicate(timeout=60)
            self.code = self.process.returncode
            self.seconds = time.monotonic() - start

    def rows(self):
        return [json.loads(line) for line in self.json.read_text().splitlines()] if self.json.exists() else []

    def times(self, name):
        return {row["case"]: row["value"] for row in self.rows() if row.get("metric") == f"us/{name}"}

    def failures(self, name):
        return [(row["status"], row["stage"], row["case"]) for row in self.rows() if row.get("contender") == name]

    def left_alive(self):
        pids = self.folder / "pids"
        return [pid for pid in map(int, pids.read_text().split()) if alive(pid)] if pids.exists() else []


class PeersTest(unittest.TestCase):
    def run_with(self, fakes, *arguments, **options):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        run = Run(folder.name, fakes, *arguments, **options)
        if options.get("wait", True):
            self.assertEqual(run.left_alive(), [], run.text)
        return run

    def assert_others_measured(self, run, names=("llmd", "llmd-early-start", "fa3"), cases=DECODE):
        self.assertEqual(run.code, 0, run.text)
        for name in names:
            self.assertEqual(set(run.times(name)), {c["name"] for c in cases}, f"{name}\n{run.text}")

    def test_all_well(self):
        run = self.run_with({"fa3": {"us": 12.0}})
        self.assert_others_measured(run, ("llmd", "llmd-early-start", "fa3", "flashinfer-xqa"))
        self.assertAlmostEqual(run.times("fa3")["decode/m/B1"], 12.0)
        self.assertIn("ratio 0.750", run.text)  # 9 of 12
        self.assertEqual([row for row in run.rows() if "status" in row], [])

    def test_a_hang_is_named_with_its_stage_and_costs_little(self):
        run = self.run_with({"flashinfer-xqa": {"plan": "hang"}})
        self.assert_others_measured(run)
        failures = run.failures("flashinfer-xqa")
        self.assertEqual([f[:2] for f in failures], [("hung", "plan")] * 2)  # once more, then out
        self.assertLess(run.seconds, 30)

    def test_a_hang_in_a_graph_is_tried_without(self):
        run = self.run_with({"flashinfer-xqa": {"first replay": "graph hang"}})
        self.assert_others_measured(run)
        self.assertEqual([f[:2] for f in run.failures("flashinfer-xqa")], [("hung", "first replay")])
        later = run.times("flashinfer-xqa")
        self.assertEqual(len(later), 2)
        marked = {row["case"] for row in run.rows() if row.get("metric") == "on_a_stream/flashinfer-xqa"}
        self.assertEqual(set(later), marked)

    def test_a_hang_between_the_replays(self):
        run = self.run_with({"fa3": {"replay": "once hang"}})
        self.assert_others_measured(run, ("llmd", "llmd-early-start", "flashinfer-xqa"))
        self.assertEqual([f[:2] for f in run.failures("fa3")], [("hung", "replay")])
        self.assertEqual(len(run.times("fa3")), 2)

    def test_a_hang_of_most_is_looked_into_one_by_one(self):
        names = ("llmd", "llmd-early-start", "flashinfer-xqa")
        run = self.run_with({name: {"plan": "once hang"} for name in names})
        for name in names:  # forgiven: graphs and all later cases
            self.assertEqual(len(run.times(name)), 2, run.text)
        self.assertFalse(any("on_a_stream" in row.get("metric", "") for row in run.rows()))

    def test_no_device(self):
        run = self.run_with({"flashinfer-xqa": {"open the device": "exit"}})
        self.assert_others_measured(run)
        self.assertEqual(run.failures("flashinfer-xqa")[0][:2], ("crashed", "open the device"))

    def test_deaths(self):
        for action, detail in (("segfault", "SIGSEGV"), ("exit", "exit status 3"), ("raise", "illegal memory")):
            with self.subTest(action):
                run = self.run_with({"flashinfer-xqa": {"first run": action}})
                self.assert_others_measured(run)
                self.assertEqual(run.failures("flashinfer-xqa")[0][:2], ("crashed", "first run"))
                self.assertIn(detail, run.text)

    def test_garbage(self):
        for action in ("garbage", "endless line"):
            with self.subTest(action):
                run = self.run_with({"flashinfer-xqa": {"first run": action}})
                self.assert_others_measured(run)
                self.assertEqual(run.failures("flashinfer-xqa")[0][0], "garbage")

    def test_printing_is_harmless(self):
        run = self.run_with({"flashinfer-xqa": {"first run": "print", "replay": "print"}})
        self.assert_others_measured(run, ("llmd", "fa3", "flashinfer-xqa"))

    def test_wrong_output_is_reported_and_does_not_count(self):
        for when in ("wrong", "wrong at last"):
            with self.subTest(when):
                run = self.run_with({"flashinfer-xqa": {"output": when, "us": 1.0}})
                self.assert_others_measured(run)
                self.assertEqual(run.times("flashinfer-xqa"), {})
                self.assertEqual({f[0] for f in run.failures("flashinfer-xqa")}, {"wrong"})
                self.assertNotIn("best flashinfer-xqa", run.text)

    def test_slow_steps_are_not_hangs(self):
        slow = {stage: "slow" for stage in ("fill the caches", "plan", "first run", "capture", "first replay")}
        run = self.run_with({"flashinfer-xqa": slow}, DECODE[:1])
        self.assertIn("decode/m/B1", run.times("flashinfer-xqa"))

    def test_one_who_never_starts(self):
        run = self.run_with({"flashinfer-xqa": {"import its package": "hang"}}, DECODE, "flashinfer-xqa,fa3",
                            "--start-seconds", "12", "--join-seconds", "0")
        self.assert_others_measured(run)

    def test_one_who_cannot_be_imported(self):
        run = self.run_with({"flashinfer-xqa": {"import its package": "raise"}})
        self.assert_others_measured(run)
        self.assertEqual(run.failures("flashinfer-xqa")[0], ("crashed", "import its package", "start"))
        self.assertIn("RuntimeError", run.text)

    def test_unsupported_is_no_failure(self):
        run = self.run_with({"flashinfer-xqa": {"refuses": "B2"}})
        self.assertEqual(set(run.times("flashinfer-xqa")), {"decode/m/B1", "decode/m/B3"})
        self.assertEqual(run.failures("flashinfer-xqa"), [])

    def test_ours_failing_once_leaves_the_peers_their_times(self):
        run = self.run_with({"llmd": {"replay": "once segfault"}})
        self.assertEqual(set(run.times("fa3")), {c["name"] for c in DECODE})
        self.assertEqual(run.failures("llmd")[0][:2], ("crashed", "replay"))

    def test_without_ours_the_run_waits_and_then_ends(self):
        cases = DECODE
        once = self.run_with({name: {"plan": "once exit"} for name in ("llmd", "llmd-early-start")}, cases, "fa3")
        self.assertEqual(len(once.times("llmd-early-start")), 2)  # it waited for the new processes
        self.assertEqual(len(once.times("fa3")), 3)
        cases = [case(f"decode/m/B{i}") for i in range(1, 9)]
        always = self.run_with({name: {"plan": "exit"} for name in ("llmd", "llmd-early-start")}, cases, "fa3")
        self.assertIn("this library is out", always.text)
        self.assertLess(len(always.times("fa3")), len(cases))

    def test_a_contender_far_behind_gets_one_turn(self):
        run = self.run_with({"fa3": {"us": 900.0}}, DECODE[:1])
        self.assertAlmostEqual(run.times("fa3")["decode/m/B1"], 900.0)

    def test_time_is_kept_and_results_survive_a_stop(self):
        many = [case(f"decode/m/B{i}") for i in range(1, 400)]
        run = self.run_with({"fa3": {"replay": "slow"}}, many, "fa3", "--seconds", "6")
        self.assertLess(run.seconds, 12)
        self.assertIn("left out", run.text)
        count = len(run.times("llmd"))
        self.assertGreater(count, 0)

        stopped = self.run_with({"fa3": {"replay": "slow"}}, many, "fa3", wait=False)
        deadline = time.monotonic() + 30
        while not stopped.times("llmd") and time.monotonic() < deadline:
            time.sleep(0.1)
        stopped.process.send_signal(signal.SIGTERM)
        stopped.text, _ = stopped.process.communicate(timeout=30)
        self.assertGreater(len(stopped.times("llmd")), 0)

    def test_it_goes_on_where_it_stopped(self):
        with tempfile.TemporaryDirectory() as folder:
            Run(folder, {}, DECODE[:1])
            second = Run(folder, {}, DECODE)
            self.assertEqual(second.code, 0)
            self.assertIn("2 cases measured", second.text)

    def test_prefill_asks_those_who_can(self):
        run = self.run_with({}, [case("prefill/m/x")], "flashinfer-xqa,fa3,flashinfer-fa2")
        self.assertEqual(run.times("flashinfer-xqa"), {})
        self.assertIn("prefill/m/x", run.times("flashinfer-fa2"))
        self.assertIn({"metric": "tflop_per_s", "value": 780.0},
                      [{k: row.get(k) for k in ("metric", "value")} for row in run.rows()])

    def test_killing_the_parent_takes_the_workers_along(self):
        run = self.run_with({"fa3": {"plan": "hang"}}, DECODE, "fa3", "--silence", "60", wait=False)
        pids = run.folder / "pids"
        deadline = time.monotonic() + 30
        while not (pids.exists() and pids.read_text().count("\n") == 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        own = int(pids.read_text().split()[1])
        run.process.kill()
        run.process.communicate()
        deadline = time.monotonic() + 10
        while alive(own) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(alive(own))
        os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)  # a grandchild outlives a parent that was killed


class OrderTest(unittest.TestCase):
    def test_spread_covers_early(self):
        for count in (1, 2, 3, 7, 16, 17):
            order = spread(count)
            self.assertEqual(sorted(order), list(range(count)))
        first = sorted(spread(16)[:4])
        self.assertLessEqual(max(b - a for a, b in zip(first, first[1:])), 5)

    def test_quick_cases_first_and_every_kind_among_them(self):
        cases = [case(f"decode/{model}/B{i}") for model in "ab" for i in range(8)]
        cases += [case(f"mixes/a/{i}", page_size=page) for page in (16, 64) for i in range(3)]
        cases += [case("prefill/a/x"), case("sweep/a/fp8", fp8=True), case("decode/c/B1", priority=1)]
        ordered = by_worth(cases)
        self.assertEqual(len(ordered), len(cases))
        self.assertEqual(ordered[-1]["name"], "decode/c/B1")
        kinds = {(c["part"], c["page_size"], c["fp8"]) for c in ordered[:10]}
        self.assertEqual(len(kinds), 5)

    def test_the_roster_names_classes_that_exist(self):
        for entry in ROSTER:
            text = (BENCH / f"{entry.module}.py").read_text()
            self.assertIn(f"class {entry.kind}(", text)
        self.assertEqual(len({entry.name for entry in ROSTER}), len(ROSTER))


if __name__ == "__main__":
    unittest.main()
