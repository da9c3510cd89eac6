"""What a contender's process does on the device, step by step; each step is announced before it begins.

The order matters. A plan may replace the buffers that the kernels read (FlashInfer's wrappers do), so all planning,
the timing of it included, comes before the capture: a graph captured earlier would read memory that has gone back to
the allocator, and lengths read from there make a kernel run for hours without a fault. A contender first runs plainly,
waited for and compared with float32 arithmetic; the same again after the first replay, which also finds a graph that
its launches did not get into; and once more after the last.
"""

import gc
import importlib
import math
import os
import statistics
import time
import traceback

import dry_device
import torch
from problems import Arena, Problem, graph_launches
from roster import ROSTER
from unsupported import Unsupported


def open_session(name, options, stage):
    return Session(next(entry for entry in ROSTER if entry.name == name), options, stage)


class Stopped(Exception):
    """The case ends here for this contender; the reply's fields say why."""

    def __init__(self, **reply):
        super().__init__(str(reply))
        self.reply = reply


class Session:
    def __init__(self, entry, options, stage):
        self.entry, self.options, self.stage = entry, options, stage
        self.dry = bool(options.get("dry_run"))
        self.kind = getattr(importlib.import_module(entry.module), entry.kind)
        stage("import its package")
        if self.dry:
            dry_device.pretend_hopper()
        self.kind.load(options)
        self.device = None
        self.arena = None
        self.contender = None

    def _open_device(self):
        if self.device is not None:
            return
        self.stage("open the device")
        device = torch.device("cpu" if self.dry else "cuda:0")
        torch.manual_seed(1)
        if not self.dry:
            # One stream for everything, and not the default one, which cannot be captured.
            self.stream = torch.cuda.Stream(device)
            torch.cuda.set_stream(self.stream)
        self.arena = Arena(device)
        self.device = device

    def open(self):
        self._open_device()
        self.stage("small matrix product")
        one = torch.ones(64, 64, device=self.device)
        torch.matmul(one, one)
        self._synchronize()
        return {"status": "ok"}

    def _synchronize(self):
        if not self.dry:
            self.stream.synchronize()

    def prepare(self, case, graph=True):
        try:
            return self._prepare(case, graph)
        except Unsupported as reason:
            return self._stopped("unsupported", reason)
        except Stopped as stopped:
            self._release()
            return stopped.reply
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            return self._stopped("out of memory", error)
        except Exception as error:  # a peer's refusal, or its failure to compile
            traceback.print_exc()
            if self._broken():
                raise
            return self._stopped("error", f"{type(error).__name__}: {error}")

    def _broken(self):
        """Whether the device context is lost, or never came: then only a new process helps."""
        if self.device is None:
            return True
        try:
            self._synchronize()
        except RuntimeError:
            return True
        return False

    def _stopped(self, status, reason):
        self._release()
        return {"status": status, "detail": str(reason)[:300]}

    def _prepare(self, case, graph):
        self._release()
        self.kind.check(case)
        self._open_device()
        self.stage("fill the caches")
        if Arena.bytes_of(case) > self.options.get("max_bytes", math.inf):
            raise MemoryError("the caches do not fit beside the other contenders'")
        self.case = case
        self.problem = Problem(case, self.arena, self.device)
        pools = self.problem.num_pools
        self.launches = graph_launches(case)
        if not graph:
            self.launches = min(self.launches, 400)  # a stream takes about a thousand before it makes the host wait
        last = (self.launches - 1) % pools  # the pool that the outputs of a replay come from
        self.stage("compute the reference")
        self.reference = self.problem.reference(last)
        self._synchronize()
        self.stage("plan")
        self.contender = self.kind(self.problem)
        plan_us = self._plan_us()
        self.stage("first run")
        self.error = self._error(lambda: self.contender.run(last))
        if self.dry:
            return {"status": "ok", "error": self.error}
        self.stage("warm up")
        for i in range(3):
            self.contender.run(i)
        self.stream.synchronize()
        self.graph = None
        if graph:
            self.stage("capture")
            self.graph = self._capture()
            self.stage("first replay")
        else:
            self.stage("first launches")
            self._find_lead()
        self.error = max(self.error, self._error(self._enqueue))
        self.stage("time one replay")
        return {"status": "ok", "error": self.error, "plan_us": plan_us, "launches": self.launches,
                "once_ms": min(self._times(2))}

    def _plan_us(self, repeats=5):
        """Time of planning a step on the host, until the device has it; None for those who do not plan there."""
        if self.dry or self.contender.plan is None:
            return None
        times = []
        for _ in range(repeats):
            self.stream.synchronize()
            start = time.perf_counter()
            self.contender.plan()
            self.stream.synchronize()
            times.append((time.perf_counter() - start) * 1e6)
        return statistics.median(times)

    def _error(self, run):
        """||out - ref|| / ||ref|| of what run() leaves; too much of it ends the case."""
        rows, expected = self.reference
        self.contender.out.fill_(float("nan"))
        run()
        self._synchronize()
        if not self.contender.checked:
            return 0.0
        got = self.contender.out[rows].float()
        error = ((got - expected).norm() / expected.norm()).item()
        if self.dry and math.isnan(error):
            raise Stopped(status="ran", detail="as far as its launches, which do nothing here")
        if not error <= self.entry.limit(self.case):
            raise Stopped(status="wrong", detail=f"relative error {error:.2g}")
        return error

    def _capture(self):
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it frees could call CUDA, which ends a capture
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(self.launches):
                self.contender.run(i)
        finally:
            graph.capture_end()
            gc.enable()
        return graph

    def _enqueue(self):
        if self.graph is not None:
            self.graph.replay()
            return
        for i in range(self.launches):
            self.contender.run(i)

    def _find_lead(self):
        """Without a graph the device sleeps while the host prepares the launches, so that it never waits for them."""
        start = time.perf_counter()
        self._enqueue()
        host = time.perf_counter() - start
        self.stream.synchronize()
        self.lead = int((1.5 * host + 1e-3) * 2e9)  # cycles, at most 2 GHz

    def _times(self, count):
        """Milliseconds of `count` replays."""
        if self.graph is not None:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            self.graph.replay()  # not counted: it waits for the host, and another process had the device before
            events[0].record()
            for event in events[1:]:
                self.graph.replay()
                event.record()
            self.stream.synchronize()
            return [a.elapsed_time(b) for a, b in zip(events, events[1:])]
        times = []
        for _ in range(count):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(self.lead)
            begin.record()
            self._enqueue()
            late = begin.query()
            end.record()
            self.stream.synchronize()
            if late:
                self.lead *= 2  # the device woke first: its time contains waiting
            times.append(begin.elapsed_time(end))
        return times

    def replay(self, count):
        self.stage("replay")
        return {"ms": self._times(count)}

    def finish(self):
        self.stage("last check")
        try:
            self.error = max(self.error, self._error(self._enqueue))
            reply = {"status": "ok", "error": self.error}
        except Stopped as stopped:
            reply = stopped.reply
        self.stage("release")
        self._release()
        return reply

    def _release(self):
        self.contender = self.problem = self.reference = self.graph = None
        if self.device is not None and not self.dry:
            torch.cuda.empty_cache()

    def matmul(self):
        """bf16 matrix products of random data, 8192 cubed: what prefill is measured against."""
        self._open_device()
        self.stage("matrix product")
        a, b = (torch.randn(8192, 8192, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        times = []
        for i in range(23):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            torch.matmul(a, b, out=out)
            end.record()
            self.stream.synchronize()
            if i >= 3:
                times.append(begin.elapsed_time(end))
        del a, b, out
        self._release()
        return {"tflop_per_s": 2 * 8192**3 / statistics.median(times) / 1e9,
                "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "pid": os.getpid()}
