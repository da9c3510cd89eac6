"""A contender's process as its parent sees it: requests and replies are lines of JSON over pipes, and every wait ends.

A worker sends `{"stage": NAME}` before each step, so that one that hangs or dies is known to have been in it, and one
`{"reply": ID, ...}` for each request. What its libraries print goes to its log and not into the replies.
"""

import json
import os
import selectors
import signal
import subprocess
import time

KILL_SECONDS = 10  # the driver may take a while to take a running kernel away


class Failure(Exception):
    """A worker is no more. `what`: hung, crashed or garbage."""

    def __init__(self, what, stage, detail):
        super().__init__(f"{what} in {stage}: {detail}")
        self.what, self.stage, self.detail = what, stage, detail


class Worker:
    def __init__(self, name, command, environment, log):
        self.name = name
        self.stage = "start"
        self.pending = 0  # the id of the request under way; 0 is the start itself, answered when imports are done
        self.failure = None
        self.began = self.heard = time.monotonic()
        self._last_id = 0
        self._buffer = b""
        read_end, write_end = os.pipe()
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [*command, "--replies", str(write_end)], stdin=subprocess.PIPE, stdout=output, stderr=output,
                env=environment, pass_fds=[write_end], start_new_session=True)
        os.close(write_end)
        os.set_blocking(read_end, False)
        os.set_blocking(self.process.stdin.fileno(), False)
        self.pipe = read_end

    @property
    def idle(self):
        return self.failure is None and self.pending is None

    def send(self, request):
        """Begins a request; the reply comes from wait_for()."""
        assert self.idle, self.name
        self._last_id += 1
        self.pending = self._last_id
        self.stage = request["do"]
        self.began = self.heard = time.monotonic()
        line = (json.dumps({"id": self._last_id, **request}) + "\n").encode()
        try:
            # A pipe holds 64 KB, and the worker has read all before: a short write means that it does not read.
            if os.write(self.process.stdin.fileno(), line) != len(line):
                self.fail("hung", "does not read its requests")
        except OSError as error:
            self.fail("crashed", self._end() or str(error))

    def receive(self):
        """The reply to the request under way if it is there, else None. Marks a worker that ended or sends garbage."""
        ended = False
        while True:
            try:
                block = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                break
            if not block:
                ended = True
                break
            self._buffer += block
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                if "stage" in message:
                    self.stage = str(message["stage"])
                    self.heard = time.monotonic()
                    continue
                reply = message["reply"]
            except (ValueError, KeyError, TypeError):
                self.fail("garbage", f"sent {line[:80]!r}")
                return None
            if reply == self.pending:
                if message.get("status") == "fatal":
                    self.fail("crashed", message.get("detail"))
                    return None
                self.pending = None
                return message
        if len(self._buffer) > 1 << 20:
            self.fail("garbage", "sent a line without an end")
        elif ended:
            self.fail("crashed", self._end())
        return None

    def fail(self, what, detail):
        if self.failure is None:
            self.failure = Failure(what, self.stage, detail)
            self.pending = None
            self.kill()

    def kill(self):
        """Ends the process and all it started; waits, but not for ever, since a device may be slow to let it go."""
        if self.pipe is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            self.process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        os.close(self.pipe)
        self.process.stdin.close()
        self.pipe = None

    def _end(self):
        try:
            code = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return "closed its replies"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def wait_for(workers, silence, limit):
    """Waits for the replies to requests under way: {worker: reply}. A worker that says nothing for `silence` seconds,
    or has not answered after `limit`, is ended; `worker.failure` then says how."""
    replies = {}
    waiting = [w for w in workers if w.failure is None and w.pending is not None]
    with selectors.DefaultSelector() as selector:
        for worker in waiting:
            selector.register(worker.pipe, selectors.EVENT_READ, worker)
        while waiting:
            now = time.monotonic()
            ends = {w: min(w.heard + silence, w.began + limit) for w in waiting}
            for key, _ in selector.select(max(0.0, min(ends.values()) - now)):
                worker, pipe = key.data, key.fd
                reply = worker.receive()
                if reply is not None:
                    replies[worker] = reply
                if worker.pending is None:
                    selector.unregister(pipe)
                    waiting.remove(worker)
            now = time.monotonic()
            for worker in list(waiting):
                if now >= min(worker.heard + silence, worker.began + limit):
                    selector.unregister(worker.pipe)
                    waiting.remove(worker)
                    worker.fail("hung", f"no answer in {now - worker.began:.0f} s")
    return replies


def ask(workers, request, silence, limit):
    for worker in workers:
        worker.send(request)
    return wait_for(workers, silence, limit)
