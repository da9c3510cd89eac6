#include "examples/trace_replay/options.h"

namespace llmd::replay {
namespace {

void DeclareWorkload(CLI::App& app, Options& o) {
  const auto group = "Workload";
  app.add_option("--trace", o.trace, "Recorded requests, one JSON object a line (Mooncake's schema)")
      ->group(group);
  app.add_flag("--skip-bad", o.skip_bad, "Skip and count bad lines of the trace instead of stopping")
      ->group(group);
  app.add_option("--generate", o.generate,
                 "Generated requests: chat, agent or retrieval; with --trace, both mixed")
      ->group(group);
  app.add_option("--requests", o.requests, "Number of generated requests")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000))
      ->group(group);
  app.add_option("--rate", o.rate, "Generated requests a second")
      ->capture_default_str()
      ->check(CLI::Range(1e-3, 1e6))
      ->group(group);
  app.add_option("--speed", o.speed, "Factor by which arrivals come faster")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1e6))
      ->group(group);
  app.add_option("--limit", o.limit, "Replay only the first requests, 0 for all")
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", o.simulation.seed, "Seed of the generator and of the scheduler's choices")
      ->capture_default_str()
      ->group(group);
}

void DeclarePolicies(CLI::App& app, Options& o) {
  const auto group = "Policies";
  app.add_option(
         "--policy", o.policies,
         "random, round-robin, least-queue, approx, exact or all; repeatable (default: all, or none beside "
         "--weights and --config)")
      ->group(group);
  app.add_option("--weights", o.weights,
                 "Your own mix of scorers, e.g. exact-prefix=3,queue=2,kv=2,running=1; repeatable. Also "
                 "approx-prefix, active")
      ->group(group);
  app.add_option("--config", o.config, "A policy from an EndpointPickerConfig file (YAML)")->group(group);
  app.add_option("--versus", o.versus, "A second one")->group(group);
  app.add_option(
         "--approx-capacity-blocks", o.simulation.approx_capacity_blocks,
         "64-token blocks that the approximate index remembers of each endpoint; 0: as many as the engine "
         "reports, llm-d's choice")
      ->capture_default_str()
      ->group(group);
  app.add_option("--scrape-interval", o.scrape_ms, "Age that load metrics reach, ms; 0: always fresh")
      ->capture_default_str()
      ->check(CLI::Range(0, 3'600'000))
      ->group(group);
  app.add_option("--explain", o.simulation.explain,
                 "Print how the first decisions of each policy, or with --decisions the first that differ, "
                 "came about")
      ->capture_default_str()
      ->group(group);
}

void DeclareDecisions(CLI::App& app, Options& o) {
  const auto group = "Decisions on record";
  app.add_option("--record", o.record, "Write the decisions of the only policy to this log")->group(group);
  app.add_option(
         "--decisions", o.decisions,
         "Take the decisions of a log again, bit for bit (else exit code 1); with --config, --versus, "
         "--policy or --weights say what those would have decided instead. Each decision is taken in the "
         "recorded state of the endpoints: that other decisions would have led to other states is not "
         "modelled")
      ->group(group);
}

void DeclareFit(CLI::App& app, Options& o) {
  const auto group = "Fit";
  FitOptions& f = o.fitting;
  app.add_flag(
         "--fit", o.fit,
         "Search weights and thresholds of the policy exact on the first part of the trace, and compare "
         "them with the default ones on the rest. Objective: p90 time to first token, raised where "
         "tokens are shared out unevenly")
      ->group(group);
  app.add_option("--fit-evaluations", f.evaluations, "Settings to try")
      ->capture_default_str()
      ->check(CLI::Range(4, 100'000))
      ->group(group);
  app.add_option("--fit-seeds", f.seeds, "Simulations of each setting, each with a seed of its own")
      ->capture_default_str()
      ->check(CLI::Range(1, 100))
      ->group(group);
  app.add_option("--fit-held-out-seeds", f.held_out_seeds, "The same for the final comparison, other seeds")
      ->capture_default_str()
      ->check(CLI::Range(2, 100))
      ->group(group);
  app.add_option("--fit-share", f.share, "Part of the time that is fitted; the rest is held out")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 0.9))
      ->group(group);
  app.add_option("--fit-imbalance", f.max_imbalance,
                 "Tokens of the busiest endpoint over the mean from which the objective is raised")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 1000.0))
      ->group(group);
  app.add_option("--fit-penalty", f.penalty, "By how much: times 1 + penalty * (imbalance / limit - 1)")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6))
      ->group(group);
  app.add_option("--fit-threads", f.threads, "Simulations at a time; the result does not depend on it")
      ->capture_default_str()
      ->check(CLI::Range(1, 256))
      ->group(group);
}

void DeclareEngines(CLI::App& app, Options& o) {
  const auto group = "Engines (defaults: Llama-3.1-8B in bf16 on one H200)";
  EngineOptions& e = o.simulation.engine;
  app.add_option("--endpoints", o.simulation.endpoints, "Number of engines")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096))
      ->group(group);
  app.add_option("--capacity-blocks", e.capacity_blocks, "KV cache of an engine, in blocks of 16 tokens")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000'000))
      ->group(group);
  app.add_option("--max-running", e.max_running, "Requests in one step at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000))
      ->group(group);
  app.add_option("--max-batched-tokens", e.max_batched_tokens, "Tokens in one step at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000))
      ->group(group);
  app.add_option("--prefill-rate", e.latency.prefill_tokens_per_s, "Tokens a second, without attention")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 1e9))
      ->group(group);
  app.add_option("--weight-read-ms", e.latency.weight_read_ms,
                 "Shortest time of the matrix products of a step")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6))
      ->group(group);
  app.add_option("--kv-read-ns", e.latency.kv_read_ns, "Decode: time per context token")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e9))
      ->group(group);
  app.add_option("--attention-ns", e.latency.attention_ns,
                 "Prefill: time per pair of token and context token")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e9))
      ->group(group);
}

void DeclareOutput(CLI::App& app, Options& o) {
  const auto group = "Output";
  app.add_flag("--json", o.json, "One JSON object instead of the table")->group(group);
  app.add_option("--report", o.report, "Write a self-contained HTML page with charts to this file")
      ->group(group);
  app.add_flag("--timing", o.timing, "Put this machine's speed into --json and --report as well")
      ->group(group);
}

}  // namespace

void Declare(CLI::App& app, Options& options) {
  app.description(
      "Replays a workload against simulated engines under several routing policies and compares cache hits, "
      "time to\n"
      "first token and load; records decisions and takes them again; fits weights. Results go to stdout and "
      "are the\n"
      "same for the same options; this machine's speed goes to stderr.");
  app.get_formatter()->column_width(34);
  DeclareWorkload(app, options);
  DeclarePolicies(app, options);
  DeclareDecisions(app, options);
  DeclareFit(app, options);
  DeclareEngines(app, options);
  DeclareOutput(app, options);
}

}  // namespace llmd::replay
