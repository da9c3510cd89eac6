#!/usr/bin/env python3
"""The demo's own acceptance runs on one machine: demo_run_test.py --venv V --gateway G --sim S

The pipeline of thirty equal requests, five sessions at once, the ramp, a server lost on the way, and the picker's latencies
against the client's.
"""
import sys

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import http_load  # noqa: E402
from gateway_rig import SKIP, wait_for  # noqa: E402
from http_load import chat, post, post_all  # noqa: E402

CHAT = "/v1/chat/completions"
MODEL = "meta-llama/Llama-3.2-3B-Instruct"
PROMPT = ("The history of computing is a story of people who wanted machines to do the work that tires the mind. Looms that "
          "read holes in cards, engines of brass that computed tables for sailors, relays that broke ciphers, valves, "
          "transistors and at last millions of them on a fingernail: each step made the one before it look slow. ") * 3 + (
          "Summarize this paragraph in one sentence.")
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


def request(session, prompt=PROMPT, **more):
    body = chat(prompt, model=MODEL, max_tokens=16, temperature=0, top_p=1, seed=12345, **more)
    return CHAT, body, [("x-test-id", session), ("session-id", session), ("x-session-id", session),
                        ("authorization", "Bearer token"), ("cookie", f"session_id={session}")]


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.workers = [self.worker(i) for i in range(3)]
        entries = [(worker.http, {"llm-d.ai/role": "decode", "llm-d.ai/inferenceServing": "true",
                                  "llmd.ai/kv-events-port": str(worker.kv_events),
                                  "llmd.ai/kv-replay-port": str(worker.kv_replay)}) for worker in self.workers]
        self.gateway = rig.gateway(CONFIG, rig.endpoints(entries), flags=["--tokenizer=engine"])
        self.gateway.wait_endpoints(3)
        self.envoy = rig.envoy("e1.yaml", self.gateway)

    def worker(self, i, port=0, events=0, replay=0):
        return self.rig.sim(f"--model={MODEL}", "--block-size=16", "--num-gpu-blocks=2000", "--enable-prefix-caching",
                            "--no-enable-chunked-prefill", "--max-model-len=4096", f"--kv-events-port={events}",
                            f"--kv-replay-port={replay}", "--decode-us-per-token=3000", port=port, name=f"sim-{i}")

    def counters(self):
        """(queries, hits) of each worker, in tokens."""
        pages = [worker.metrics() for worker in self.workers]
        return [(page.sum("vllm:prefix_cache_queries_total"), page.sum("vllm:prefix_cache_hits_total")) for page in pages]

    def measured(self, requests, parallel):
        before = self.counters()
        answers = post_all(self.envoy.port, requests, parallel)
        assert all(answer.ok for answer in answers), http_load.summary(answers)
        after = self.counters()
        queries = [a[0] - b[0] for a, b in zip(after, before)]
        hits = [a[1] - b[1] for a, b in zip(after, before)]
        assert sum(queries) > 0, "no prefix cache queries were counted"
        return answers, queries, 100 * sum(hits) / sum(queries)

    @staticmethod
    def stickiness(answers):
        upstreams = [answer.upstream for answer in answers]
        return 100 * max(map(upstreams.count, upstreams)) / len(upstreams)

    def pipeline(self):
        """One warm-up and thirty equal requests of one session: hit rate at least 80 %, stickiness 100 %."""
        assert post(self.envoy.port, "/v1/models", b"").ok
        path, body, headers = request("tekton")
        assert post(self.envoy.port, path, body, headers).ok
        answers, queries, rate = self.measured([request("tekton")] * 30, 1)
        by_metrics = 100 * max(queries) / sum(queries)
        by_headers = self.stickiness(answers)
        log = wait_for("the access log", lambda: (lines := [line for line in self.envoy.access_log()
                                                          if line["x_test_id"] == "tekton"]) and len(lines) == 31 and lines)
        assert {line["x_session_id"] for line in log} == {"tekton"}
        assert len({line["upstream_host"] for line in log}) == 1
        assert rate >= 80, f"hit rate {rate:.1f} %"
        assert by_metrics == by_headers == 100, f"stickiness {by_metrics} % by metrics, {by_headers} % by headers"
        # Each request asks for its whole prompt; all full blocks but what the last token needs are there.
        tokens = answers[0].json()["usage"]["prompt_tokens"]
        assert sum(queries) == 30 * tokens, (queries, tokens)
        full = (tokens - 1) // 16 * 16
        assert abs(rate - 100 * full / tokens) < 0.01, (rate, full, tokens)
        first = sum(answer.first for answer in answers[:3]) / 3
        last = sum(answer.first for answer in answers[-3:]) / 3
        return f"hit rate {rate:.1f} %, stickiness 100 %, {tokens} tokens, {first * 1e3:.0f} and {last * 1e3:.0f} ms"

    def multi5(self):
        """Five sessions of 25 requests at once, each with a prompt of its own."""
        requests = [request(f"multi-{i % 5}", f"Session {i % 5} begins. {PROMPT}") for i in range(125)]
        answers, _, rate = self.measured(requests, 5)
        for session in range(5):
            share = self.stickiness(answers[session::5])
            assert share == 100, f"session {session}: {share} %"
        used = len({answer.upstream for answer in answers})
        assert rate >= 80 and used >= 2, (rate, used)
        return f"hit rate {rate:.1f} %, {used} workers"

    def ramp(self):
        answers, _, rate = self.measured([request("ramp", f"Ramp. {PROMPT}")] * 80, 4)
        assert self.stickiness(answers) == 100 and rate >= 80, rate
        return f"hit rate {rate:.1f} %"

    def prefix_test_job(self):
        """Ten identical completions: after the first, all full blocks are hits."""
        body = http_load.json.dumps({"model": MODEL, "prompt": f"Ten. {PROMPT}", "max_tokens": 50}).encode()
        before = self.counters()
        answers = post_all(self.envoy.port, [("/v1/completions", body, [])] * 10, 1)
        assert all(answer.ok for answer in answers), http_load.summary(answers)
        after = self.counters()
        tokens = answers[0].json()["usage"]["prompt_tokens"]
        hits = sum(a[1] - b[1] for a, b in zip(after, before))
        assert hits == 9 * ((tokens - 1) // 16 * 16), (hits, tokens)

    def worker_restart(self):
        """The session's worker is lost and comes back cold: no request fails for long, the session is bound anew, and the
        hit rate recovers."""
        session = [request("restart", f"Restart. {PROMPT}")]
        home = post_all(self.envoy.port, session * 5, 1)[-1].upstream
        at = [f"127.0.0.1:{worker.http}" for worker in self.workers].index(home)
        old = self.workers[at]

        def entries(workers):
            return [(worker.http, {"llmd.ai/kv-events-port": str(worker.kv_events),
                                   "llmd.ai/kv-replay-port": str(worker.kv_replay)}) for worker in workers]
        others = [worker for worker in self.workers if worker is not old]
        old.kill()
        self.rig.endpoints(entries(others))
        self.gateway.wait_endpoints(2)
        moved = post_all(self.envoy.port, session * 10, 1)
        assert all(answer.ok for answer in moved), http_load.summary(moved)
        assert self.stickiness(moved) == 100 and moved[0].upstream != home
        self.workers[at] = self.worker(at, old.http, old.kv_events, old.kv_replay)
        self.rig.endpoints(entries(self.workers))
        self.gateway.wait_endpoints(3)
        answers, _, rate = self.measured(session * 20, 1)
        assert self.stickiness(answers) == 100 and answers[0].upstream == moved[0].upstream
        assert rate >= 80, rate
        # The cold worker is used again.
        fresh = post_all(self.envoy.port, [request(f"fresh-{i}", f"Fresh {i}. {PROMPT}") for i in range(18)], 6)
        assert home in {answer.upstream for answer in fresh}
        return f"hit rate {rate:.1f} % after the move"

    def latencies(self):
        """Time to first token and between tokens, as the picker tells them and as the client sees them: within 5 %.
        A machine that is busy elsewhere may come between the two; what holds once is not an accident of counting."""
        for attempts_left in (2, 1, 0):
            try:
                return self.compare_latencies()
            except AssertionError:
                if attempts_left == 0:
                    raise

    def compare_latencies(self):
        ports = self.rig.echo(2)
        gateway = self.rig.gateway(None, self.rig.endpoints(ports, "echo.json"))
        gateway.wait_endpoints(2)
        envoy = self.rig.envoy("e1.yaml", gateway)
        headers = [("x-echo-stream", "12:0.06"), ("x-echo-sleep", "0.6")]
        requests = [(CHAT, chat(f"latency {i}", stream=True, stream_options={"include_usage": True}), headers)
                    for i in range(30)]
        answers = post_all(envoy.port, requests, 10)
        assert all(answer.ok for answer in answers), http_load.summary(answers)
        metrics = wait_for("30 requests", lambda: (m := gateway.metrics()).sum(
            "llm_d_epp_request_ttft_seconds_count") == 30 and m)
        ttft = sum(answer.first for answer in answers) / 30
        ours = metrics.sum("llm_d_epp_request_ttft_seconds_sum") / 30
        assert abs(ours - ttft) < 0.05 * ttft, (ours, ttft)
        # Of the gaps between pieces; the usage and the end follow the last token at once.
        gaps = [gap for answer in answers for gap in answer.gaps if gap > 0.03]
        itl = sum(gaps) / len(gaps)
        count = metrics.sum("llm_d_epp_request_streaming_itl_seconds_count")
        seen = metrics.sum("llm_d_epp_request_streaming_itl_seconds_sum") / 30
        total = sum(sum(answer.gaps) for answer in answers) / 30
        assert abs(seen - total) < 0.05 * total, (seen, total, count)
        tpot = metrics.sum("llm_d_epp_request_streaming_tpot_seconds_sum") / metrics.sum(
            "llm_d_epp_request_streaming_tpot_seconds_count")
        theirs = sum((answer.seconds - answer.first) / 11 for answer in answers) / 30
        assert abs(tpot - theirs) < 0.05 * theirs, (tpot, theirs)
        envoy.stop()
        gateway.stop()
        return (f"first token {ours * 1e3:.1f} and {ttft * 1e3:.1f} ms, per token {tpot * 1e3:.2f} and "
                f"{theirs * 1e3:.2f} ms, gap {itl * 1e3:.1f} ms")

    def no_leak(self):
        """After all of it nothing is running and no stream is open."""
        wait_for("rest", lambda: self.gateway.metrics().sum("llm_d_epp_request_running") == 0
                 and self.gateway.metrics().sum("llm_d_epp_extproc_streams_inflight") == 0)
        assert self.gateway.metrics().sum("llm_d_epp_inflight_requests") == 0


def main(options):
    if not options.sim:
        print("SKIPPED: needs --sim", file=sys.stderr)
        sys.exit(SKIP)
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "demo") as rig:
        suite = Suite(rig)
        for name in ("pipeline", "multi5", "ramp", "prefix_test_job", "worker_restart", "latencies", "no_leak"):
            cases.run(name, getattr(suite, name))
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
