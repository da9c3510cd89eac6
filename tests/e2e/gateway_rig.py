"""The whole picture on one machine: gateway_scheduler, model servers, Envoy, Prometheus, on loopback, gone with the test.

    options = gateway_rig.options(__doc__)                  # --venv, --gateway, --sim ...; runs in the environment's Python
    with gateway_rig.Rig(options, "routing") as rig:
        ports = rig.echo(3)
        gateway = rig.gateway(config=CONFIG, endpoints=rig.endpoints(ports))
        envoy = rig.envoy("e1.yaml", gateway)

Logs of every process lie in one folder, which is kept, and named, when the test fails.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

import envoy_rig
from envoy_rig import SKIP, free_ports

ROOT = envoy_rig.ROOT
sys.path.insert(0, str(ROOT / "examples/gateway_scheduler/envoy"))
import render  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent


def options(description, *more):
    """Reads the command line, and goes on in the Python of the virtual environment. Each of `more`: an option's name."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--venv", required=True)
    parser.add_argument("--gateway", required=True, help="the program gateway_scheduler")
    parser.add_argument("--sim", help="the program sim_worker")
    parser.add_argument("--sanitized", action="store_true", help="memory is a sanitizer's matter, and not measured")
    parser.add_argument("--only", help="a regular expression: runs the cases whose name has it")
    for name, default in more:
        parser.add_argument(name, default=default, type=type(default) if default is not None else str)
    result = parser.parse_args()
    result.envoy = envoy_rig.install(result.venv)
    python = pathlib.Path(result.venv).absolute() / "bin/python3"
    if pathlib.Path(sys.prefix) != python.parents[1]:
        os.execv(python, [str(python), *sys.argv])
    for program in (result.gateway, result.sim):
        if program and not pathlib.Path(program).exists():
            print(f"SKIPPED: {program} is not built", file=sys.stderr)
            sys.exit(SKIP)
    return result


def wait_for(what, condition, seconds=20.0, interval=0.02):
    """Waits until `condition` gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            result = condition()
            if result:
                return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(interval)


def fetch(port, path="/", method="GET", body=None, headers=None, timeout=20):
    """(status, headers, body) of one request, whatever the status."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """A page in Prometheus' text format."""

    def __init__(self, text):
        self.text = text
        self.samples = []
        for line in text.splitlines():
            match = SAMPLE.match(line)
            if match:
                self.samples.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))

    def all(self, name, **labels):
        return [(found, value) for sample, found, value in self.samples
                if sample == name and all(found.get(key) == wanted for key, wanted in labels.items())]

    def sum(self, name, **labels):
        """The sum over all series that have these labels; 0 when there are none."""
        return sum(value for _, value in self.all(name, **labels))

    def has(self, name):
        return any(sample == name for sample, _, _ in self.samples)


class Process:
    """A program with its log, which dies with the test."""

    def __init__(self, rig, name, command, ready=None, seconds=30.0, env=None):
        self.name, self.command = name, [str(part) for part in command]
        rig.starts += 1
        self.log_path = rig.folder / f"{rig.starts:02}-{name}.log"
        self._out = self.log_path.with_suffix(".out")
        with self.log_path.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=log, env=env,
                                            preexec_fn=envoy_rig.die_with_parent)
        rig.processes.append(self)
        if ready:
            self.ready = self.wait_ready(ready, seconds)

    @property
    def pid(self):
        return self.process.pid

    def stdout(self):
        return self._out.read_text(errors="replace")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive(self):
        return self.process.poll() is None

    def wait_ready(self, pattern, seconds):
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.stdout())
            if match:
                return match
            if not self.alive() or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start ({' '.join(self.command)}):\n"
                                     f"{self.stdout()[-2000:]}{self.log()[-4000:]}")
            time.sleep(0.02)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=40):
        """SIGTERM, and the exit status."""
        if self.alive():
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name} did not end {seconds} s after SIGTERM") from error

    def rss(self):
        """Resident bytes."""
        return int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self):
        """Seconds of processor time so far."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Gateway(Process):
    def __init__(self, rig, flags, port=None, env=None, name="gateway"):
        port = port or free_ports(1)[0]
        command = [rig.options.gateway, "--bind-address=127.0.0.1", f"--grpc-port={port}"]
        given = {flag.split("=")[0] for flag in flags}
        for flag in ("--grpc-health-port=0", "--metrics-port=0", "--status-port=0", "--secure-serving=false",
                     "--metrics-endpoint-auth=false", "--allow-experimental-plugins",
                     "--enable-grpc-stream-metrics", "--drain-timeout=1s", "--threads=2"):
            if flag.split("=")[0] not in given:
                command.append(flag)
        super().__init__(rig, name, [*command, *flags], env=env,
                         ready=r"ready ext_proc=(\d+) health=(\d+) metrics=(\d+) status=(\d+) proxy=(\d+)")
        self.ext_proc, self.health, self.metrics_port, self.status, self.proxy = map(int, self.ready.groups())

    def metrics(self):
        status, _, body = fetch(self.metrics_port, "/metrics")
        assert status == 200, f"/metrics answers {status}: {body[:200]}"
        return Metrics(body.decode())

    def wait_endpoints(self, count):
        wait_for(f"{count} ready endpoints", lambda: self.metrics().sum("llm_d_epp_ready_endpoints") == count)


class Envoy(Process):
    def __init__(self, rig, file, pickers, concurrency=1, **changes):
        self.port, self.admin = free_ports(2)
        text = render.render((ROOT / "examples/gateway_scheduler/envoy" / file).read_text(), listen=self.port,
                             admin=self.admin, pickers=pickers, **changes)
        path = rig.folder / f"{rig.starts + 1:02}-{file}"
        path.write_text(text)
        super().__init__(rig, "envoy", [rig.options.envoy, "-c", path, "--concurrency", str(concurrency),
                                        "--disable-hot-restart", "-l", "warning", "--file-flush-interval-msec", "100"])
        wait_for(f"Envoy with {path}", lambda: self.alive() and envoy_rig.admin(self.admin, "ready").strip() == "LIVE", 30)

    def stat(self, name):
        text = envoy_rig.admin(self.admin, f"stats?filter=^{name}$")
        return int(text.rsplit(":", 1)[1]) if ":" in text else 0

    def access_log(self):
        """The log's lines as objects; a line comes up to 0.1 s after its request's end."""
        lines = [line for line in self.stdout().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]


class Rig:
    def __init__(self, given, name):
        self.options, self.name = given, name
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"llmd-{name}-"))
        self.processes, self.starts = [], 0

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for process in reversed(self.processes):
            with contextlib.suppress(OSError):
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self.processes:
            try:
                process.process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        reports = [path.name for path in self.folder.glob("*.log")
                   if re.search(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|: runtime error: ", path.read_text(errors="replace"))]
        if not reports and (kind is None or kind is SystemExit and error.code in (0, SKIP)):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        print(f"logs are in {self.folder}", flush=True)
        if reports and kind is None:
            raise AssertionError(f"a sanitizer reports in {reports}")

    def echo(self, count):
        """The ports of echo servers, which share a process."""
        ports = free_ports(count)
        Process(self, "echo", [sys.executable, HERE / "echo_upstream.py", *ports], ready="ready")
        return ports

    def control(self, port, **state):
        return json.loads(fetch(port, "/control", "PUT", json.dumps(state).encode())[2])

    def sim(self, *flags, port=0, name="sim"):
        """A sim_worker, with its ports as http, kv_events and kv_replay."""
        worker = Process(self, name, [self.options.sim, "--host=127.0.0.1", f"--port={port}", *flags],
                         ready=r"ready http=(\d+) kv_events=(\d+) kv_replay=(\d+)")
        worker.http, worker.kv_events, worker.kv_replay = map(int, worker.ready.groups())
        worker.metrics = lambda: Metrics(fetch(worker.http, "/metrics")[2].decode())
        return worker

    def endpoints(self, workers, name="endpoints.json"):
        """The path of a file with these endpoints: ports, or (port, labels)."""
        entries = []
        for worker in workers:
            port, labels = worker if isinstance(worker, tuple) else (worker, {})
            entries.append({"name": f"worker-{port}", "address": "127.0.0.1", "port": str(port), "labels": labels})
        path = self.folder / name
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"endpoints": entries}, indent=1))
        os.replace(temporary, path)
        return path

    def gateway(self, config=None, endpoints=None, flags=(), port=None, env=None, name="gateway"):
        flags = list(flags)
        if endpoints:
            flags.append(f"--endpoints-file={endpoints}")
        if config:
            path = self.folder / f"{name}-{self.starts + 1}.yaml"
            path.write_text(config)
            flags.append(f"--config-file={path}")
        return Gateway(self, flags, port, env and dict(os.environ, **env), name)

    def envoy(self, file, *gateways, **changes):
        """Gateways, or their addresses as text."""
        pickers = [f"127.0.0.1:{g.ext_proc}" if isinstance(g, Gateway) else g for g in gateways]
        return Envoy(self, file, pickers, **changes)

    def prometheus(self, jobs, rules=None, interval="1s"):
        """A Prometheus that scrapes `jobs`, {name: [(port, labels)]}; its `query` asks it."""
        program = shutil.which("prometheus")
        if not program:
            print("SKIPPED: no Prometheus here", file=sys.stderr)
            sys.exit(SKIP)
        config = {"global": {"scrape_interval": interval, "evaluation_interval": interval},
                  "rule_files": [str(rules)] if rules else [],
                  "scrape_configs": [{"job_name": job, "static_configs": [
                      {"targets": [f"127.0.0.1:{port}"], "labels": labels} for port, labels in targets]}
                      for job, targets in jobs.items()]}
        path = self.folder / "prometheus.json"
        path.write_text(json.dumps(config))
        port = free_ports(1)[0]
        server = Process(self, "prometheus", [program, f"--config.file={path}", f"--storage.tsdb.path={self.folder}/tsdb",
                                              f"--web.listen-address=127.0.0.1:{port}"])

        def query(path, **arguments):
            text = urllib.parse.urlencode(arguments)
            status, _, body = fetch(port, f"/api/v1/{path}?{text}")
            assert status == 200, f"Prometheus: {status} {body.decode()}"
            return json.loads(body)["data"]

        server.query = query
        wait_for("Prometheus", lambda: fetch(port, "/-/ready")[0] == 200, 30)
        return server


class Cases:
    """Named cases that run one after the other, each reported; the program's end says whether all passed."""

    def __init__(self, given):
        self.only = re.compile(given.only or "")
        self.failed = []
        self.run_count = 0

    def run(self, name, function, *arguments):
        if not self.only.search(name):
            return
        self.run_count += 1
        start = time.monotonic()
        try:
            seen = function(*arguments)
        except Exception:  # a case that fails must not hide the others
            self.failed.append(name)
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
            return
        seen = f": {seen}" if seen else ""
        print(f"passed {name}{seen} ({time.monotonic() - start:.1f} s)", flush=True)

    def check(self):
        """Raises when a case failed, so that the rig keeps its logs."""
        if self.failed:
            raise SystemExit(f"{len(self.failed)} of {self.run_count} cases failed: {', '.join(self.failed)}")
        assert self.run_count, "no case has that name"
        print(f"{self.run_count} cases passed", flush=True)
