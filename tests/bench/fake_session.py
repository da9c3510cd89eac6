"""Contenders that misbehave, for test_peers.py: LLMD_FAKES names what each does, everyone else is well behaved."""

import ctypes
import json
import os
import subprocess
import sys
import time

MICROSECONDS = {"llmd": 10.0, "llmd-early-start": 9.0}


def hang():
    # With a process of its own, which must go as well, and deaf to everything but being killed.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    with open(os.environ["LLMD_FAKES_PIDS"], "a") as file:
        file.write(f"{child.pid}\n{os.getpid()}\n")
    time.sleep(1000)


def segfault():
    ctypes.string_at(0)


def garbage():
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"\xff{]\n")
        except OSError:
            pass
    time.sleep(1000)


def endless_line():
    for descriptor in range(3, 20):
        try:
            while True:
                os.write(descriptor, b"x" * 60000)
        except OSError:
            pass


def raises():
    raise RuntimeError("an illegal memory access was encountered")


ACTIONS = {"hang": hang, "segfault": segfault, "exit": lambda: os._exit(3), "garbage": garbage,
           "endless line": endless_line, "raise": raises, "slow": lambda: time.sleep(0.15),
           "print": lambda: print('{"reply": 0}\nnoise', flush=True)}


class Fake:
    def __init__(self, name, options, stage):
        del options
        self.name, self.announce = name, stage
        self.fakes = json.loads(os.environ.get("LLMD_FAKES", "{}")).get(name, {})
        self.stage("import its package")

    def stage(self, name):
        """What is to happen in a stage: {stage: action}; with "once" in the action, only the first time, in whichever
        process that is; with "graph", only with graphs."""
        self.announce(name)
        action = self.fakes.get(name)
        if action is None or action.startswith("graph ") and not self.graph:
            return
        action = action.removeprefix("graph ")
        if action.startswith("once "):
            mark = f"{os.environ['LLMD_FAKES_PIDS']}.{self.name}"
            if os.path.exists(mark):
                return
            open(mark, "w").close()
            action = action.removeprefix("once ")
        ACTIONS[action]()

    def open(self):
        self.stage("open the device")
        return {"status": "ok"}

    def prepare(self, case, graph):
        self.graph = graph
        for stage in ("fill the caches", "plan", "first run", "capture", "first replay"):
            self.stage(stage)
        if "refuses" in self.fakes and self.fakes["refuses"] in case["name"]:
            return {"status": "unsupported", "detail": "no such kernel"}
        if self.fakes.get("output") == "wrong":
            return {"status": "wrong", "detail": "relative error 0.5"}
        self.us = self.fakes.get("us", MICROSECONDS.get(self.name, 20.0))
        return {"status": "ok", "error": 1e-3, "plan_us": None, "launches": 20, "once_ms": 0.02 * self.us}

    def replay(self, count):
        self.stage("replay")
        return {"ms": [0.02 * self.us] * count}

    def finish(self):
        self.stage("last check")
        if self.fakes.get("output") == "wrong at last":
            return {"status": "wrong", "detail": "relative error 0.5"}
        return {"status": "ok", "error": 2e-3}

    def matmul(self):
        return {"tflop_per_s": 780.0, "gpu": "fake", "torch": "none"}


def open_session(name, options, stage):
    return Fake(name, options, stage)
