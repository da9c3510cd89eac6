#!/usr/bin/env python3
"""A gateway, four simulated workers and Envoy on this machine: sends sessions and conversations through, prints a table.

scripts/demo.sh builds what is needed and calls this. Everything listens on the loopback interface, on free ports, and ends
with this program.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = "meta-llama/Llama-3.2-3B-Instruct"
WORKERS = 4
# The exact index, fed by the workers' KV events; sessions stay where they are unless that is worth nothing.
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: decode-filter
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 16, hashSeed: "42"}
    kvEventsConfig: {discoverPods: true, podDiscoveryConfig: {socketPort: 5557}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: session-affinity-scorer
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{header: x-session-id}]}}
- type: active-request-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: prefix-cache-scorer, weight: 5}
  - {pluginRef: session-affinity-scorer, weight: 20}
  - {pluginRef: active-request-scorer, weight: 1}
  - pluginRef: max-score-picker
"""
# What the same Envoy does without a picker.
ROUND_ROBIN = """
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: round_robin
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            response_headers_to_add: [{header: {key: x-upstream-host, value: "%UPSTREAM_HOST%"}}]
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: workers, timeout: 0s}}]}
  clusters:
  - name: workers
    type: STATIC
    connect_timeout: 2s
    lb_policy: ROUND_ROBIN
    load_assignment: {cluster_name: workers, endpoints: [{lb_endpoints: [ENDPOINTS]}]}
"""
RANDOM = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: random-picker
"""


class Failure(Exception):
    pass


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Demo:
    def __init__(self, build):
        self.build = build
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="llmd-demo-"))
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for process in reversed(self.processes):
            with contextlib.suppress(OSError):
                process.terminate()
        end = time.monotonic() + 5
        for process in self.processes:
            try:
                process.wait(max(0.01, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if isinstance(error, Failure):
            print(f"demo: logs are in {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def program(self, name):
        path = self.build / "examples" / name / name
        if not path.exists():
            raise Failure(f"{path} is not built")
        return path

    def start(self, name, command, ready=None, seconds=30):
        """Starts a program; with `ready`, waits for a line of its output that matches and returns the match."""
        out, log = self.folder / f"{name}.out", self.folder / f"{name}.log"
        with out.open("wb") as out_file, log.open("wb") as log_file:
            # A session of its own: Ctrl-C is for us, who end it in order.
            process = subprocess.Popen([str(part) for part in command], stdout=out_file, stderr=log_file,
                                       start_new_session=True, preexec_fn=die_with_parent)
        self.processes.append(process)
        end = time.monotonic() + seconds
        while ready:
            match = re.search(ready, out.read_text(errors="replace"))
            if match:
                return match
            if process.poll() is not None or time.monotonic() > end:
                raise Failure(f"{name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        return None

    def worker(self, index):
        """(port, labels)"""
        match = self.start(f"worker-{index}", [
            self.program("sim_worker"), "--host=127.0.0.1", "--port=0", f"--model={MODEL}", "--block-size=16",
            "--num-gpu-blocks=4000", "--kv-events-port=0", "--kv-replay-port=0", "--decode-us-per-token=3000",
            f"--seed={index}"], r"ready http=(\d+) kv_events=(\d+) kv_replay=(\d+)")
        return int(match[1]), {"llm-d.ai/role": "decode", "llmd.ai/kv-events-port": match[2],
                               "llmd.ai/kv-replay-port": match[3]}

    def gateway(self, name, config, endpoints, *flags):
        """Its ports by name."""
        path = self.folder / f"{name}.yaml"
        path.write_text(config)
        match = self.start(name, [
            self.program("gateway_scheduler"), "--bind-address=127.0.0.1", "--grpc-port=0", "--grpc-health-port=0",
            "--metrics-port=0", "--status-port=0", "--secure-serving=false",
            "--allow-experimental-plugins", "--drain-timeout=0s", "--tokenizer=engine", f"--config-file={path}",
            f"--endpoints-file={endpoints}", *flags], r"ready [^\n]*\n")
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[0])}

    def envoy(self, name, binary, config, admin):
        path = self.folder / f"{name}.yaml"
        path.write_text(config)
        self.start(name, [binary, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"])
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=2) as answer:
                    if answer.read().strip() == b"LIVE":
                        return
            if self.processes[-1].poll() is not None or time.monotonic() > end:
                raise Failure(f"Envoy did not start: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def load(self, target, workers, arguments):
        command = [self.program("llmd_load"), "--target", target, "--model", MODEL, "--json", "--quiet", *arguments]
        for port, _ in workers:
            command += ["--worker", f"http://127.0.0.1:{port}"]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, timeout=300, check=False)
        report = json.loads(done.stdout or "{}")
        if done.returncode == 2:
            raise Failure(f"nothing was measured through {target}: {report.get('errors', 'see above')}")
        return report


def find_envoy(venv):
    """The path of Envoy's binary, or None."""
    status = subprocess.run([ROOT / "scripts/e2e_venv.sh", venv], check=False).returncode
    for binary in sorted(pathlib.Path(venv).glob("lib/python*/site-packages/envoy/_bin/envoy")) if status == 0 else []:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([binary, "--version"], check=True, capture_output=True)
            return binary
    return None


def rendered(listen, admin, picker):
    """The full-duplex set-up (E1) for these ports."""
    folder = ROOT / "examples/gateway_scheduler/envoy"
    command = [sys.executable, folder / "render.py", folder / "e1.yaml", "--listen", listen, "--admin", admin,
               "--picker", f"127.0.0.1:{picker}"]
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def rows(report, workers):
    shares = report["upstreams"]
    total = sum(shares.values()) or 1

    def percent(value):
        return "-" if value is None else f"{100 * value:.1f} %"

    ttft = report["ttft_ms"]
    return [percent(report["hit_rate"]), percent(report["stickiness"]), f"{ttft['p50']:.0f}", f"{ttft['p90']:.0f}",
            "/".join(f"{100 * shares.get(f'127.0.0.1:{port}', 0) / total:.0f}" for port, _ in workers),
            str(sum(report["errors"].values()))]


def run(options, demo):
    envoy = None if options.standalone else find_envoy(options.venv)
    workers = [demo.worker(index) for index in range(WORKERS)]
    endpoints = demo.folder / "endpoints.json"
    endpoints.write_text(json.dumps({"endpoints": [
        {"name": f"worker-{index}", "address": "127.0.0.1", "port": str(port), "labels": labels}
        for index, (port, labels) in enumerate(workers)]}, indent=1))
    if envoy:
        listen, admin, plain_listen, plain_admin = free_ports(4)
        ports = demo.gateway("gateway", CONFIG, endpoints)
        demo.envoy("envoy", envoy, rendered(listen, admin, ports["ext_proc"]), admin)
        listed = ", ".join("{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}" % port
                           for port, _ in workers)
        plain = ROUND_ROBIN.replace("ADMIN", str(plain_admin)).replace("LISTEN", str(plain_listen))
        demo.envoy("envoy-round-robin", envoy, plain.replace("ENDPOINTS", listed), plain_admin)
        other = ("Envoy, round robin", f"http://127.0.0.1:{plain_listen}")
    else:
        if not options.standalone:
            print("demo: no Envoy here; the gateway proxies HTTP itself", file=sys.stderr)
        ports = demo.gateway("gateway", CONFIG, endpoints, "--proxy-port=0")
        listen = ports["proxy"]
        other_ports = demo.gateway("gateway-random", RANDOM, endpoints, "--proxy-port=0")
        other = ("gateway, random", f"http://127.0.0.1:{other_ports['proxy']}")
    url = f"http://127.0.0.1:{listen}"
    status = f"http://127.0.0.1:{ports['status']}/"
    print(f"gateway {url}   status page {status}", flush=True)

    each, conversations, turns = (5, 4, 3) if options.quick else (20, 12, 6)
    table, passed = [], True
    # Texts of its own for each, so that no run finds what another one left in the caches.
    for name, target, tag in ((other[0], other[1], "plain"), ("gateway, exact prefix", url, "picked")):
        prompt = f"Demonstration {tag}. " + (ROOT / "README.md").read_text()[:900]
        for workload, arguments in (
                (f"5 sessions, {each} equal prompts",
                 ["--workload", "multi5", "--requests", each, "--pause", 0.1, "--prompt", prompt]),
                (f"{conversations} conversations, {turns} turns",
                 ["--workload", "chat", "--sessions", conversations, "--requests", turns, "--prefix-tokens", 256,
                  "--turn-tokens", 256, "--seed", 1 if tag == "plain" else 2, "--pause", 0.2])):
            print(f"  {name}: {workload} ...", flush=True)
            report = demo.load(target, workers, arguments + ["--max-error-rate", 1])
            table.append([name, workload, *rows(report, workers)])
            if tag == "picked":
                passed &= report["exit_code"] == 0 and not report["errors"]
    header = ["routing", "workload", "hit rate", "stickiness", "TTFT p50 ms", "p90", "% of requests by worker", "errors"]
    widths = [max(len(row[i]) for row in [header, *table]) for i in range(len(header))]
    print()
    for row in [header, ["-" * width for width in widths], *table]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\nlimits (hit rate 80 % for equal prompts, every session on one worker, no error): "
          f"{'kept' if passed else 'MISSED'}", flush=True)

    if options.keep:
        print(f"\nStatus page: {status}\nTry it:      curl {url}/v1/chat/completions -H 'content-type: application/json' "
              f"-H 'x-session-id: me' \\\n               -d '{{\"model\": \"{MODEL}\", \"max_tokens\": 16, "
              f"\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\nLogs:        {demo.folder}\n"
              "Ctrl-C ends everything.", flush=True)
        while True:
            time.sleep(1)
            for process in demo.processes:
                if process.poll() is not None:
                    raise Failure(f"{process.args[0]} has ended")
    return 0 if passed else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "build/demo-venv", help="where Envoy is installed")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--standalone", action="store_true", help="without Envoy")
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.pop("HTTP_PROXY", None)
    os.environ.pop("http_proxy", None)
    try:
        with Demo(options.build) as demo:
            return run(options, demo)
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
