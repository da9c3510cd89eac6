#!/usr/bin/env python3
"""What the picker decides by, behind a real Envoy: routing_test.py --venv V --gateway G --sim S

Cached prefixes by KV events, queue depths, stale metrics, prefill and decode, and endpoints that come and go.
"""
import os
import signal
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import http_load  # noqa: E402
from gateway_rig import wait_for  # noqa: E402
from http_load import chat, post, post_all  # noqa: E402

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MODEL = "test-model"
PRECISE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 16, hashSeed: "42"}
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}
    kvEventsConfig: {discoverPods: true, podDiscoveryConfig: {socketPort: 5557}}
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: running-requests-size-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: running-requests-size-scorer, weight: 1}
"""
LOAD = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: %s
  parameters: {metricsStalenessThreshold: 400ms}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: %s}]
"""
APPROXIMATE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: active-request-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: active-request-scorer, weight: 1}
"""
PD = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  parameters: {deciders: {prefill: prefix-based-pd-decider}}
- type: prefix-based-pd-decider
  parameters: {nonCachedTokens: 100}
- type: decode-filter
- type: prefill-filter
- type: prefix-cache-scorer
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: prefix-cache-scorer, weight: 2}]
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: prefix-cache-scorer, weight: 2}]
"""


def words(seed, count):
    return " ".join(f"{seed}{i}" for i in range(count))


def completion(prompt, **more):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, **more}
    return http_load.json.dumps(body).encode()


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.ports = rig.echo(4)

    def start(self, config, workers, file="e1.yaml", **more):
        """A picker and an Envoy before it, both for one case."""
        name = f"endpoints-{self.rig.starts}.json"
        gateway = self.rig.gateway(config, self.rig.endpoints(workers, name), **more)
        gateway.endpoints = name
        gateway.wait_endpoints(len(workers))
        envoy = self.rig.envoy(file, gateway)
        return gateway, envoy

    @staticmethod
    def stop(*processes):
        for process in processes:
            process.stop()

    def scraped(self, *ports, times=3):
        """Waits until each of the servers was looked at again."""
        before = {port: self.rig.control(port)["scrapes"] for port in ports}
        wait_for("another look at the metrics",
                 lambda: all(self.rig.control(port)["scrapes"] >= seen + times for port, seen in before.items()))
        time.sleep(0.05)

    # --- KV events

    def sims(self, count, *flags):
        return [self.rig.sim(f"--model={MODEL}", "--block-size=16", "--num-gpu-blocks=2000", "--kv-events-port=0",
                             "--kv-replay-port=0", *flags, name=f"sim-{i}") for i in range(count)]

    @staticmethod
    def with_events(workers):
        return [(worker.http, {"llmd.ai/kv-events-port": str(worker.kv_events),
                               "llmd.ai/kv-replay-port": str(worker.kv_replay)}) for worker in workers]

    def kv_events(self):
        """A prompt goes to the server that has it, though that one is busier; and no more once it is gone from there."""
        workers = self.sims(3)
        gateway, envoy = self.start(PRECISE, self.with_events(workers), flags=["--tokenizer=engine"])
        wait_for("three subscriptions",
                 lambda: gateway.metrics().sum("llm_d_epp_kv_cache_events_active_subscribers") == 3)
        for n, holder in enumerate(workers):
            prompt = words(f"holder{n}w", 400)
            assert post(holder.http, COMPLETIONS, completion(prompt)).ok
            wait_for("its blocks in the index", lambda: gateway.metrics().sum(
                "llm_d_epp_kv_cache_index_admissions_total") >= (n + 1) * 24)
            time.sleep(0.1)
            with http_load.Load(holder.http, 40, lambda i: (COMPLETIONS, completion(f"busy {i}", max_tokens=60), []),
                                timeout=30):
                wait_for("load", lambda: holder.metrics().sum("vllm:num_requests_running") >= 2)
                time.sleep(0.2)
                for i in range(4):
                    answer = post(envoy.port, COMPLETIONS, completion(f"{prompt} and {i}"))
                    assert answer.ok, answer
                    assert answer.upstream == f"127.0.0.1:{holder.http}", f"holder {n}: {answer.upstream}"
        fresh = post_all(envoy.port, [(COMPLETIONS, completion(words(f"fresh{i}", 40)), []) for i in range(24)], 6)
        assert len({answer.upstream for answer in fresh}) == 3, "prompts that nobody has do not spread"
        metrics = gateway.metrics()
        hits = metrics.sum("llm_d_epp_kv_cache_index_lookup_hits_total")
        messages = metrics.sum("llm_d_epp_kv_cache_events_messages_received_total")
        assert hits > 0 and messages > 0, (hits, messages)

        # A server that starts anew has nothing; the index must forget it.
        prompt = words("holder0w", 400)
        events, replay, http = workers[0].kv_events, workers[0].kv_replay, workers[0].http
        workers[0].kill()
        again = self.rig.sim(f"--model={MODEL}", "--block-size=16", "--num-gpu-blocks=2000",
                             f"--kv-events-port={events}", f"--kv-replay-port={replay}", port=http, name="sim-again")
        assert post(workers[1].http, COMPLETIONS, completion(prompt)).ok
        assert post(again.http, COMPLETIONS, completion("something else entirely")).ok
        wait_for("the new holder", lambda: post(envoy.port, COMPLETIONS, completion(f"{prompt} then")).upstream
                 == f"127.0.0.1:{workers[1].http}", seconds=30, interval=0.3)
        self.stop(envoy, gateway, again, *workers[1:])
        return f"{messages:.0f} event messages, {hits:.0f} block hits"

    def env_kv_aware(self):
        """The variables of the first releases, no configuration file."""
        workers = self.sims(2)
        gateway, envoy = self.start(None, self.with_events(workers), flags=["--tokenizer=engine"], env={
            "ENABLE_KVCACHE_AWARE_SCORER": "true", "KVCACHE_AWARE_SCORER_WEIGHT": "10",
            "ENABLE_LOAD_AWARE_SCORER": "true", "LOAD_AWARE_SCORER_WEIGHT": "1",
            "SESSION_STICKY_DURATION": "3600"})
        prompt = words("environment", 300)
        time.sleep(0.5)
        assert post(workers[1].http, COMPLETIONS, completion(prompt)).ok
        wait_for("the holder of the prefix", lambda: post(envoy.port, COMPLETIONS, completion(f"{prompt} x")).upstream
                 == f"127.0.0.1:{workers[1].http}", interval=0.2)
        for i in range(5):
            assert post(envoy.port, COMPLETIONS, completion(f"{prompt} {i}")).upstream == f"127.0.0.1:{workers[1].http}"
        assert "SESSION_STICKY_DURATION" in gateway.log(), "no warning about a variable that nobody reads"
        self.stop(envoy, gateway, *workers)

    # --- load

    def queue_depths(self):
        ports = self.ports[:3]
        for scorer in ("queue-scorer", "load-aware-scorer"):
            gateway, envoy = self.start(LOAD % (scorer, scorer), ports)
            for depths in ((7, 2, 9), (0, 3, 1), (100, 90, 80)):
                for port, depth in zip(ports, depths):
                    self.rig.control(port, waiting=depth, metrics="ok")
                self.scraped(*ports)
                best = f"127.0.0.1:{ports[depths.index(min(depths))]}"
                answers = [post(envoy.port, CHAT, chat(f"{i}")) for i in range(6)]
                assert {answer.upstream for answer in answers} == {best}, (scorer, depths, answers[0])
            self.stop(envoy, gateway)

    def stale_metrics(self):
        """The best server stops telling its load: it is no longer chosen for what it said once."""
        ports = self.ports[:3]
        for port, depth in zip(ports, (1, 4, 6)):
            self.rig.control(port, waiting=depth, metrics="ok")
        gateway, envoy = self.start(LOAD % ("queue-scorer", "queue-scorer"), ports)
        self.scraped(*ports)
        assert post(envoy.port, CHAT, chat("x")).upstream == f"127.0.0.1:{ports[0]}"
        for how in ("refuse", "hang"):
            errors = gateway.metrics().sum("llm_d_epp_datalayer_poll_errors_total")
            self.rig.control(ports[0], metrics=how)
            wait_for(f"the second best ({how})", lambda: post(envoy.port, CHAT, chat("x")).upstream
                     == f"127.0.0.1:{ports[1]}", interval=0.1)
            wait_for("a poll error", lambda: gateway.metrics().sum("llm_d_epp_datalayer_poll_errors_total") > errors)
            self.rig.control(ports[0], metrics="ok")
            wait_for("the best again", lambda: post(envoy.port, CHAT, chat("x")).upstream == f"127.0.0.1:{ports[0]}",
                     interval=0.1)
        self.stop(envoy, gateway)

    def approximate_prefix(self):
        """Without events: who got a prompt once gets what goes on from it."""
        gateway, envoy = self.start(APPROXIMATE, self.ports[:3])
        homes = {}
        for turn in range(4):
            for talk in range(40):  # Equal scores are drawn by lot: the odds of a server without a talk are 3e-7.
                prompt = words(f"talk{talk}x", 120 + 40 * turn)
                answer = post(envoy.port, CHAT, chat(prompt))
                assert homes.setdefault(talk, answer.upstream) == answer.upstream, f"talk {talk} moved in turn {turn}"
            if turn == 0:  # by then the servers have said how large their caches are
                time.sleep(1.5)
        assert len(set(homes.values())) == 3, homes
        assert gateway.metrics().sum("llm_d_epp_prefix_indexer_size") > 0
        self.stop(envoy, gateway)

    # --- prefill and decode

    def prefill_decode(self):
        decode, prefill = self.ports[:2], self.ports[2:]
        workers = [(port, {"llm-d.ai/role": "decode"}) for port in decode]
        workers += [(port, {"llm-d.ai/role": "prefill"}) for port in prefill]
        gateway, envoy = self.start(PD, workers)

        def ask(prompt):
            answer = post(envoy.port, CHAT, chat(prompt), [("x-prefiller-host-port", "6.6.6.6:6")])
            assert answer.ok, answer
            assert answer.upstream in [f"127.0.0.1:{port}" for port in decode], answer.upstream
            return dict(answer.json()["headers"]).get("x-prefiller-host-port")

        long = words("long", 400)
        assert ask(long) in [f"127.0.0.1:{port}" for port in prefill]
        assert ask("short") is None, "a short prompt was sent through a prefill stage"
        wait_for("the long prompt counts as cached", lambda: ask(long) is None)
        assert ask(words("another", 400))
        metrics = gateway.metrics()
        for decision, least in (("prefill-decode", 2), ("decode-only", 2)):
            assert metrics.sum("llm_d_epp_disagg_decision_total", decision_type=decision) >= least, metrics.text
        # No decode server: nothing can serve, whatever prefill servers there are.
        self.rig.endpoints(workers[2:], gateway.endpoints)
        gateway.wait_endpoints(2)
        answer = post(envoy.port, CHAT, chat(long))
        assert answer.status == 503, answer
        assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints", answer.headers
        self.stop(envoy, gateway)

    def env_prefill_decode(self):
        decode, prefill = self.ports[0], self.ports[1]
        gateway, envoy = self.start(None, [(decode, {"llm-d.ai/role": "decode"}), (prefill, {"llm-d.ai/role": "prefill"})],
                                    env={"PD_ENABLED": "true", "PD_PROMPT_LEN_THRESHOLD": "400",
                                         "ENABLE_PREFIX_AWARE_SCORER": "true", "PREFIX_AWARE_SCORER_WEIGHT": "2",
                                         "ENABLE_LOAD_AWARE_SCORER": "true", "PREFILL_ENABLE_LOAD_AWARE_SCORER": "true",
                                         "PREFILL_ENABLE_PREFIX_AWARE_SCORER": "true"})
        for prompt, wanted in ((words("long", 300), f"127.0.0.1:{prefill}"), ("short", None)):
            answer = post(envoy.port, CHAT, chat(prompt))
            assert answer.upstream == f"127.0.0.1:{decode}", answer
            found = dict(answer.json()["headers"]).get("x-prefiller-host-port")
            assert found == wanted, (prompt[:10], found)
        self.stop(envoy, gateway)

    # --- discovery

    def endpoints_file(self):
        """The file is edited under load: nothing fails but what was on its way to a server that is gone."""
        ports = self.ports
        for port in ports:
            self.rig.control(port, waiting=0, metrics="ok")
        gateway, envoy = self.start(APPROXIMATE, ports[:3])

        def make(i):
            return CHAT, chat(words(f"p{i % 60}y", 100)), [("x-echo-sleep", "0.02")]

        def edit(*wanted):
            self.rig.endpoints(wanted, gateway.endpoints)
            start = time.monotonic()
            gateway.wait_endpoints(len(wanted))
            took.append(time.monotonic() - start)
            return time.monotonic()

        took, checks = [], []
        with http_load.Load(envoy.port, 80, make) as load:
            time.sleep(0.5)
            full = gateway.metrics().sum("llm_d_epp_prefix_indexer_size")
            checks.append((edit(*ports[1:3]), {ports[1], ports[2]}))
            time.sleep(0.5)
            wait_for("the index forgets the server that is gone",
                     lambda: gateway.metrics().sum("llm_d_epp_prefix_indexer_size") <= full * 1.6)
            checks.append((edit(*ports[1:4]), {ports[1], ports[2], ports[3]}))
            time.sleep(0.5)
            # A file that is no endpoints file changes nothing.
            path = self.rig.folder / gateway.endpoints
            good = path.read_text()
            path.write_text("endpoints: [{name: ")
            time.sleep(0.5)
            assert gateway.metrics().sum("llm_d_epp_ready_endpoints") == 3
            path.write_text(good)
            checks.append((edit((ports[0], {"llm-d.ai/role": "both"}), ports[3]), {ports[0], ports[3]}))
            time.sleep(0.5)
        assert all(answer.ok for answer in load.answers), http_load.summary(load.answers)
        for at, (since, allowed) in enumerate(checks):
            until = checks[at + 1][0] if at + 1 < len(checks) else time.monotonic()
            late = {int(answer.upstream.rsplit(":")[-1]) for answer in load.answers
                    if since + 0.2 < answer.at - answer.seconds and answer.at < until - 0.2}
            assert late and late <= allowed, (late, allowed)
        self.stop(envoy, gateway)
        return f"{len(load.answers)} requests, edits in force after at most {max(took) * 1e3:.0f} ms"

    def reload(self):
        """SIGHUP: another configuration, no request lost; a bad one changes nothing."""
        ports = self.ports[:3]
        for port, depth in zip(ports, (5, 0, 9)):
            self.rig.control(port, waiting=depth, kv=0.9 if depth == 0 else depth / 10, metrics="ok")
        gateway, envoy = self.start(LOAD % ("queue-scorer", "queue-scorer"), ports)
        self.scraped(*ports)
        path = max(self.rig.folder.glob("gateway-*.yaml"), key=os.path.getmtime)
        other = "kv-cache-utilization-scorer"
        with http_load.Load(envoy.port, 60, lambda i: (CHAT, chat(f"{i}"), [])) as load:
            assert post(envoy.port, CHAT, chat("x")).upstream == f"127.0.0.1:{ports[1]}"
            path.write_text(LOAD % (other, other))
            gateway.signal(signal.SIGHUP)
            wait_for("the other scorer", lambda: post(envoy.port, CHAT, chat("x")).upstream == f"127.0.0.1:{ports[0]}")
            path.write_text("plugins: nonsense")
            gateway.signal(signal.SIGHUP)
            time.sleep(0.3)
            assert post(envoy.port, CHAT, chat("x")).upstream == f"127.0.0.1:{ports[0]}"
        assert all(answer.ok for answer in load.answers), http_load.summary(load.answers)
        self.stop(envoy, gateway)


def main(options):
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "routing") as rig:
        suite = Suite(rig)
        for name in ("queue_depths", "stale_metrics", "approximate_prefix", "prefill_decode", "env_prefill_decode",
                     "endpoints_file", "reload"):
            cases.run(name, getattr(suite, name))
        if options.sim:
            cases.run("kv_events", suite.kv_events)
            cases.run("env_kv_aware", suite.env_kv_aware)
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
