#!/usr/bin/env python3
"""The picker's and the workers' metrics in a real Prometheus: monitoring_test.py --venv V --gateway G --sim S

`promtool` reads every page, every panel of the demo's dashboards has data, the counts are those of the client, and the alert
about a pool without workers fires.
"""
import re
import subprocess
import sys
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import http_load  # noqa: E402
from gateway_rig import ROOT, SKIP, Metrics, fetch, wait_for  # noqa: E402
from http_load import chat, post_all  # noqa: E402

CHAT = "/v1/chat/completions"
MODEL = "test-model"
POOL = "llm-d-gaie"
F = f'{{model_name=~"{MODEL}", namespace=~"llm-d"}}'
# The demo's two dashboards (spec: deployment.md 7.2).
PANELS = {
    **{f"time to first token {q}": f"histogram_quantile({q}, rate(vllm:time_to_first_token_seconds_bucket{F}[5m]))"
       for q in (0.5, 0.95, 0.99)},
    **{f"inter-token latency {q}": f"histogram_quantile({q}, rate(vllm:time_per_output_token_seconds_bucket{F}[5m]))"
       for q in (0.5, 0.95)},
    "cache hit rate": f"sum(vllm:gpu_prefix_cache_hits_total{F}) / sum(vllm:gpu_prefix_cache_queries_total{F})",
    "cache hit rate of the pods": 'sum(vllm:gpu_prefix_cache_hits_total{instance=~".*:8200", job="kubernetes-pods"}) / '
                                  'sum(vllm:gpu_prefix_cache_queries_total{instance=~".*:8200", job="kubernetes-pods"})',
    "cache hit rate per pod": 'sum by (pod) (vllm:gpu_prefix_cache_hits_total{instance=~".*:8200"}) / '
                              'sum by (pod) (vllm:gpu_prefix_cache_queries_total{instance=~".*:8200"})',
    "current names": "sum(vllm:prefix_cache_hits_total) / sum(vllm:prefix_cache_queries_total)",
    "throughput": f"rate(vllm:request_success_total{F}[5m])",
    "throughput by latency": f"rate(vllm:e2e_request_latency_seconds_count{F}[5m])",
    "running": f"vllm:num_requests_running{F}",
    "waiting": f"vllm:num_requests_waiting{F}",
    "prompt tokens": f"rate(vllm:prompt_tokens_total{F}[5m])",
    "generation tokens": f"rate(vllm:generation_tokens_total{F}[5m])",
    **{f"end-to-end latency {q}": f"histogram_quantile({q}, rate(vllm:e2e_request_latency_seconds_bucket{F}[5m]))"
       for q in (0.5, 0.95, 0.99)},
    "average latency": f"rate(vllm:e2e_request_latency_seconds_sum{F}[5m]) / rate(vllm:e2e_request_latency_seconds_count{F}[5m])",
    "KV usage": f"vllm:kv_cache_usage_perc{F}",
    "ready pods": f'inference_pool_ready_pods{{name="{POOL}"}}',
    "pool queue": f'inference_pool_average_queue_size{{name="{POOL}"}}',
    "pool KV usage": f'inference_pool_average_kv_cache_utilization{{name="{POOL}"}}',
    "queue per pod": f'inference_pool_per_pod_queue_size{{name="{POOL}"}}',
    "demo: requests": "sum(rate(epp_requests_total[5m]))",
    "demo: duration": "histogram_quantile(0.95, sum by (le) (rate(epp_request_duration_seconds_bucket[5m])))",
    "demo: cache hit rate": "sum(epp_cache_hits_total) / sum(epp_cache_requests_total)",
    "demo: decisions": "sum by (decision_type) (epp_routing_decisions_total)",
    "demo: backends": "epp_backend_health",
    "three generations: current": "llm_d_epp_request_total",
    "three generations: objective": "inference_objective_request_total",
    "three generations: v0.2": "inference_model_request_total",
}
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: active-request-scorer
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer, weight: 3}, {pluginRef: active-request-scorer}]
"""


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.workers = [rig.sim(f"--model={MODEL}", "--block-size=16", "--num-gpu-blocks=4000", name=f"sim-{i}")
                        for i in range(3)]
        self.gateway = rig.gateway(CONFIG, rig.endpoints([worker.http for worker in self.workers]), flags=[
            "--metric-names=current,objective,v0.2", "--demo-metrics", f"--pool-name={POOL}"])
        self.gateway.wait_endpoints(3)
        self.envoy = rig.envoy("e1.yaml", self.gateway)
        rules = (ROOT / "examples/gateway_scheduler/prometheus/alerts.yml").read_text()
        path = rig.folder / "alerts.yml"
        path.write_text(re.sub(r"for: \d+m", "for: 1s", rules))
        jobs = {"llm-d-epp-metrics": [(self.gateway.metrics_port, {})],
                "kubernetes-pods": [(worker.http, {"pod": f"worker-{i}", "namespace": "llm-d", "instance": f"worker-{i}:8200"})
                                    for i, worker in enumerate(self.workers)]}
        self.prometheus = rig.prometheus(jobs, path)
        self.sent = 0
        self.load(60)

    def load(self, count):
        """Conversations that share a beginning, half of them streamed."""
        requests = []
        for i in range(count):
            prompt = " ".join(f"talk{i % 6}word{j}" for j in range(120)) + f" question {i}"
            more = {"stream": True, "stream_options": {"include_usage": True}} if i % 2 else {}
            requests.append((CHAT, chat(prompt, model=MODEL, max_tokens=12, **more), []))
        self.answers = post_all(self.envoy.port, requests, 4)
        assert all(answer.ok for answer in self.answers), http_load.summary(self.answers)
        self.sent += count

    def query(self, expression):
        return self.prometheus.query("query", query=expression)["result"]

    def value(self, expression):
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else 0.0

    def promtool(self):
        """No page has an error for `promtool check metrics`; what it says of style is about names that are given."""
        pages = {"gateway": self.gateway.metrics_port, "worker": self.workers[0].http}
        for name, port in pages.items():
            page = fetch(port, "/metrics")[2]
            result = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
            text = (result.stdout + result.stderr).decode()
            assert "error" not in text.lower().replace("request_error", "").replace("poll_errors", "").replace(
                "extract_errors", "").replace("zmq_errors", "").replace("_error_", ""), f"{name}: {text[:1000]}"
            assert result.returncode in (0, 3), f"{name}: {text[:1000]}"
            assert len(Metrics(page.decode()).samples) > 20
        rules = ROOT / "examples/gateway_scheduler/prometheus/alerts.yml"
        subprocess.run(["promtool", "check", "rules", rules], check=True, capture_output=True)

    def scraped(self):
        """Prometheus itself finds no fault with a page."""
        def up():
            targets = self.prometheus.query("targets")["activeTargets"]
            states = [(target["health"], target["lastError"]) for target in targets]
            assert not any(error for health, error in states if health == "down"), states
            return len(states) == 4 and all(health == "up" for health, _ in states)
        wait_for("four targets that are up", up)

    def panels(self):
        """Every expression of the demo's dashboards gives numbers."""
        empty = dict(PANELS)

        def all_have_data():
            for name, expression in list(empty.items()):
                result = self.query(expression)
                if result and all(sample["value"][1] != "NaN" for sample in result):
                    del empty[name]
            if empty:
                self.load(6)
            return not empty
        try:
            wait_for("data", all_have_data, 15, 0.5)
        except AssertionError as error:
            raise AssertionError(f"no data for {empty}") from error
        return f"{len(PANELS)} expressions"

    def agreement(self):
        """Prometheus' counts and the client's differ by less than 1 %."""
        expressions = (
            "sum(llm_d_epp_request_total)", "sum(inference_objective_request_total)", "sum(inference_model_request_total)",
            "sum(epp_requests_total)", "sum(vllm:request_success_total)", "sum(vllm:e2e_request_latency_seconds_count)",
            "sum(llm_d_epp_request_duration_seconds_count)", "sum(epp_routing_decisions_total)")
        time.sleep(2.2)  # each target is scraped once a second, at a moment of its own
        for expression in expressions:
            count = self.value(expression)
            assert abs(count - self.sent) <= 0.01 * self.sent, (expression, count, self.sent)
        prompt, hits = self.value("sum(vllm:prompt_tokens_total)"), self.value("sum(vllm:prefix_cache_hits_total)")
        assert abs(self.value("sum(llm_d_epp_request_input_tokens_sum)") - prompt) <= 0.01 * prompt
        output = self.value("sum(vllm:generation_tokens_total)")
        assert abs(self.value("sum(llm_d_epp_request_output_tokens_sum)") - output) <= 0.01 * output
        assert hits > 0
        return f"{self.sent} requests, {prompt:.0f} prompt tokens, {output:.0f} generated"

    def alert(self):
        """EPPNoReadyPods fires when the last worker is gone, and is over when one is back."""
        rules = self.prometheus.query("rules")["groups"]
        assert sum(len(group["rules"]) for group in rules) == 8
        assert all(rule["health"] in ("ok", "unknown") for group in rules for rule in group["rules"]), rules

        def firing():
            return [alert for alert in self.prometheus.query("alerts")["alerts"]
                    if alert["labels"]["alertname"] == "EPPNoReadyPods" and alert["state"] == "firing"]
        assert not firing()
        self.rig.endpoints([])
        wait_for("EPPNoReadyPods", firing, 20, 0.3)
        assert firing()[0]["labels"]["name"] == POOL
        self.rig.endpoints([self.workers[0].http])
        wait_for("its end", lambda: not firing(), 20, 0.3)


def main(options):
    if not options.sim:
        print("SKIPPED: needs --sim", file=sys.stderr)
        sys.exit(SKIP)
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "monitoring") as rig:
        suite = Suite(rig)
        for name in ("promtool", "scraped", "panels", "agreement", "alert"):
            cases.run(name, getattr(suite, name))
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
