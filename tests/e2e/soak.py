#!/usr/bin/env python3
"""Hours in minutes: soak.py --venv V --gateway G --sim S --minutes 30 --rate 200

Requests at a rate through Envoy, while workers join, leave, hang and crash. At the end: every request was answered or refused
with a reason, no stream is stuck, and the picker's memory is flat after it has warmed up. Prints a summary as JSON; exits with
1 when one of these does not hold.
"""
import asyncio
import json
import random
import signal
import sys
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__, ("--minutes", 0.5), ("--rate", 200), ("--workers", 6), ("--seed", 1),
                                  ("--file", "e2.yaml"), ("--warm-up", 0.3))

import http_load  # noqa: E402
from gateway_rig import SKIP, wait_for  # noqa: E402

CHAT = "/v1/chat/completions"
MODEL = "soak"
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 16}
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true, inMemoryConfig: {size: 200000}}}
    kvEventsConfig: {discoverPods: true, podDiscoveryConfig: {socketPort: 5557}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: session-affinity-scorer
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{header: x-session-id}], maxSessions: 2000}}
- type: active-request-scorer
- type: queue-scorer
  parameters: {metricsStalenessThreshold: 500ms}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: session-affinity-scorer, weight: 2}
  - {pluginRef: active-request-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 2}
"""
# What may be said to a client instead of an answer; anything else is a request that was lost.
REASONS = {503: "a worker that is gone, or none at all", 504: "a worker that hangs", 429: "a full queue", 502: "a bad worker",
           500: "a worker's own error"}


class Chaos:
    """The workers, and what befalls them. One thing at a time, every few seconds, from a seed."""

    def __init__(self, rig, count, seed):
        self.rig, self.source = rig, random.Random(seed)
        self.slots = [None] * count
        self.absent, self.stopped = set(), set()
        self.done = {}
        for at in range(count):
            self.start(at)
        self.write()

    def start(self, at):
        old = self.slots[at]
        if old is not None:
            self.rig.processes.remove(old)
        port, events, replay = (old.http, old.kv_events, old.kv_replay) if old else (0, 0, 0)
        self.slots[at] = self.rig.sim(
            f"--model={MODEL}", "--block-size=16", "--num-gpu-blocks=1200", f"--kv-events-port={events}",
            f"--kv-replay-port={replay}", "--time-scale=0.2", "--max-waiting=200", "--shutdown-timeout=1", port=port,
            name=f"sim-{at}")

    def write(self):
        entries = [(worker.http, {"llmd.ai/kv-events-port": str(worker.kv_events),
                                  "llmd.ai/kv-replay-port": str(worker.kv_replay)})
                   for at, worker in enumerate(self.slots) if at not in self.absent]
        self.rig.endpoints(entries)

    def step(self):
        free = [at for at in range(len(self.slots)) if at not in self.absent and at not in self.stopped]
        possible = ["join"] * bool(self.absent) + ["wake"] * 2 * bool(self.stopped)
        if free:
            possible += ["crash", "crash_unseen", "slow", "error"]
        if len(free) > 2:
            possible += ["leave", "hang"]
        choice = self.source.choice(possible)
        self.done[choice] = self.done.get(choice, 0) + 1
        at = self.source.choice(free) if free else None
        if choice == "join":
            self.absent.discard(self.source.choice(sorted(self.absent)))
            self.write()
        elif choice == "wake":
            at = self.source.choice(sorted(self.stopped))
            self.slots[at].signal(signal.SIGCONT)
            self.stopped.discard(at)
        elif choice == "leave":
            self.absent.add(at)
            self.write()
        elif choice == "hang":
            self.slots[at].signal(signal.SIGSTOP)
            self.stopped.add(at)
        elif choice == "crash":  # discovery notices, as a cluster's does
            self.absent.add(at)
            self.slots[at].kill()
            self.write()
            self.start(at)
            self.absent.discard(at)
            self.write()
        elif choice == "crash_unseen":  # it is back before anybody was told
            self.slots[at].kill()
            self.start(at)
        else:
            fault = {"mode": choice, "rate": 0.3, "count": 40}
            gateway_rig.fetch(self.slots[at].http, "/sim/fault", "POST", json.dumps(fault).encode(), timeout=5)

    def calm(self):
        for at in self.stopped:
            self.slots[at].signal(signal.SIGCONT)
        self.stopped.clear()
        self.absent.clear()
        self.write()


class Traffic:
    """Open-loop requests; counts outcomes instead of keeping answers, so that hours fit in memory."""

    def __init__(self, port, rate, seed):
        self.port, self.rate, self.source = port, rate, random.Random(seed)
        self.sent, self.outcomes, self.lost, self.times = 0, {}, [], []
        self.idle, self.stop = [], False
        self.open = 0

    def make(self, i):
        talk = self.source.randrange(60)
        prompt = f"talk {talk} " + "word " * self.source.choice((20, 80, 200)) + f"question {i}"
        more = {"stream": True, "stream_options": {"include_usage": True}} if i % 3 == 0 else {}
        return http_load.chat(prompt, model=MODEL, max_tokens=4, **more), [("x-session-id", f"s{self.source.randrange(3000)}")]

    async def run(self):
        tasks, start = set(), time.monotonic()
        while not self.stop:
            task = asyncio.create_task(self.one(self.sent))
            self.sent += 1
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(max(0.0, start + self.sent / self.rate - time.monotonic()))
        await asyncio.gather(*tasks)

    async def one(self, i):
        connection = self.idle.pop() if self.idle else http_load.Connection(self.port)
        body, headers = self.make(i)
        self.open += 1
        if i % 97 == 0:  # a client that leaves before its answer
            answer = await connection.request(CHAT, body, headers, timeout=0.02)
            connection.close()
            outcome = "client left" if answer.error else str(answer.status)
        else:
            answer = await connection.request(CHAT, body, headers, timeout=30)
            outcome = str(answer.status) if not answer.error else "lost"
            if answer.status == 200 and answer.cut:
                outcome = "cut by its worker's end"
            elif answer.error or answer.status != 200 and (answer.status not in REASONS or not (
                    answer.body or answer.headers.get("x-llm-d-request-dropped-reason"))):
                outcome = "lost"
                self.lost.append(f"{answer.status} {answer.error} {answer.body[:80]!r}")
        self.open -= 1
        if answer.status == 200 and not answer.error and len(self.times) < 200_000:
            self.times.append(answer.seconds)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.idle.append(connection)


def slope(samples):
    """Least squares: bytes per hour over (seconds, bytes)."""
    n = len(samples)
    mean_x, mean_y = sum(x for x, _ in samples) / n, sum(y for _, y in samples) / n
    over = sum((x - mean_x) ** 2 for x, _ in samples)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / over if over else 0.0


async def drive(rig, options, gateway, traffic, chaos):
    running = asyncio.create_task(traffic.run())
    start = time.monotonic()
    end = start + options.minutes * 60
    samples, next_step = [], start + 2
    loop = asyncio.get_running_loop()
    while time.monotonic() < end:
        await asyncio.sleep(1)
        samples.append((time.monotonic() - start, gateway.rss()))
        assert gateway.alive(), "the picker died:\n" + gateway.log()[-3000:]
        if time.monotonic() >= next_step:
            next_step = time.monotonic() + chaos.source.uniform(0.5, 3)
            await loop.run_in_executor(None, chaos.step)
    chaos.calm()
    traffic.stop = True
    await asyncio.wait_for(running, 60)
    return samples


def main(options):
    if not options.sim:
        print("SKIPPED: needs --sim", file=sys.stderr)
        sys.exit(SKIP)
    with gateway_rig.Rig(options, "soak") as rig:
        chaos = Chaos(rig, options.workers, options.seed)
        gateway = rig.gateway(CONFIG, rig.folder / "endpoints.json", flags=["--tokenizer=estimate"])
        gateway.wait_endpoints(options.workers)
        envoy = rig.envoy(options.file, gateway, **({} if options.file == "e1.yaml" else {
            "workers": [f"127.0.0.1:{worker.http}" for worker in chaos.slots]}), timeout="10s")
        traffic = Traffic(envoy.port, options.rate, options.seed)
        cpu, start = gateway.cpu(), time.monotonic()
        samples = asyncio.run(drive(rig, options, gateway, traffic, chaos))
        seconds = time.monotonic() - start
        cpu = gateway.cpu() - cpu
        try:
            wait_for("no stream", lambda: gateway.metrics().sum("llm_d_epp_extproc_streams_inflight") == 0, 20)
        except AssertionError:
            pass
        metrics = gateway.metrics()
        warm = [sample for sample in samples if sample[0] >= options.warm_up * options.minutes * 60]
        traffic.times.sort()
        summary = {
            "minutes": options.minutes, "rate": options.rate, "sent": traffic.sent, "outcomes": traffic.outcomes,
            "lost": traffic.lost[:10], "events": chaos.done, "open_at_the_end": traffic.open,
            "streams_inflight": metrics.sum("llm_d_epp_extproc_streams_inflight"),
            "requests_running": metrics.sum("llm_d_epp_request_running"),
            "rss_mib": {"first": samples[0][1] >> 20, "warm": warm[0][1] >> 20, "last": samples[-1][1] >> 20,
                        "highest": max(rss for _, rss in samples) >> 20},
            "rss_slope_mib_per_hour": round(slope(warm) / (1 << 20), 2),
            "cpu_ms_per_request": round(1000 * cpu / max(1, traffic.sent), 3), "cpu_share": round(cpu / seconds, 3),
            "p50_ms": round(1000 * traffic.times[len(traffic.times) // 2], 1),
            "p99_ms": round(1000 * traffic.times[len(traffic.times) * 99 // 100], 1)}
        print(json.dumps(summary), flush=True)
        answered = sum(count for outcome, count in traffic.outcomes.items())
        assert answered == traffic.sent, f"{traffic.sent - answered} requests without an outcome"
        assert not traffic.lost, f"{len(traffic.lost)} requests were lost: {traffic.lost[:5]}"
        assert traffic.outcomes.get("200", 0) > 0.8 * traffic.sent, traffic.outcomes
        assert summary["streams_inflight"] == 0 == summary["requests_running"], summary
        # Minutes say whether memory grows; half a minute only that it does not run away.
        grown = warm[-1][1] - warm[0][1]
        allowed = (8 << 20) + 0.05 * warm[0][1] if options.minutes >= 5 else 64 << 20
        assert grown <= allowed or options.sanitized, f"{grown >> 20} MiB more than after warming up"


if __name__ == "__main__":
    main(OPTIONS)
