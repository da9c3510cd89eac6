// trace_replay: routing policies compared on a recorded or generated workload, in virtual time.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "examples/trace_replay/bound.h"
#include "examples/trace_replay/generator.h"
#include "examples/trace_replay/policy.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/report.h"
#include "examples/trace_replay/simulation.h"
#include "examples/trace_replay/trace_reader.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {
namespace {

struct Options {
  std::string trace;
  bool skip_bad = false;
  std::string generate;
  std::size_t requests = 2000;
  double rate = 8;
  double speed = 1;
  std::size_t limit = 0;
  std::vector<std::string> policies;
  std::vector<std::string> weights;
  std::int64_t scrape_ms = 50;
  SimulationOptions simulation;
  bool json = false;
  bool timing = false;
  std::string report;
};

void Declare(CLI::App& app, Options& o) {
  app.description(
      "Replays a workload against simulated engines under several routing policies and compares cache hits, "
      "time to\n"
      "first token and load. Results go to stdout and are the same for the same options; this machine's "
      "speed goes to\n"
      "stderr.");
  app.get_formatter()->column_width(34);
  const auto workload = "Workload";
  app.add_option("--trace", o.trace, "Recorded requests, one JSON object a line (Mooncake's schema)")
      ->group(workload);
  app.add_flag("--skip-bad", o.skip_bad, "Skip and count bad lines of the trace instead of stopping")
      ->group(workload);
  app.add_option("--generate", o.generate,
                 "Generated requests: chat, agent or retrieval; with --trace, both mixed")
      ->group(workload);
  app.add_option("--requests", o.requests, "Number of generated requests")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000))
      ->group(workload);
  app.add_option("--rate", o.rate, "Generated requests a second")
      ->capture_default_str()
      ->check(CLI::Range(1e-3, 1e6))
      ->group(workload);
  app.add_option("--speed", o.speed, "Factor by which arrivals come faster")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1e6))
      ->group(workload);
  app.add_option("--limit", o.limit, "Replay only the first requests, 0 for all")
      ->capture_default_str()
      ->group(workload);
  app.add_option("--seed", o.simulation.seed, "Seed of the generator and of the scheduler's choices")
      ->capture_default_str()
      ->group(workload);

  const auto policy = "Policies";
  app.add_option(
         "--policy", o.policies,
         "random, round-robin, least-queue, approx, exact or all; repeatable (default: all, or none beside "
         "--weights)")
      ->group(policy);
  app.add_option("--weights", o.weights,
                 "Your own mix of scorers, e.g. exact-prefix=3,queue=2,kv=2,running=1; repeatable. Also "
                 "approx-prefix")
      ->group(policy);
  app.add_option(
         "--approx-capacity-blocks", o.simulation.approx_capacity_blocks,
         "64-token blocks that the approximate index remembers of each endpoint; 0: as many as the engine "
         "reports, llm-d's choice")
      ->capture_default_str()
      ->group(policy);
  app.add_option("--scrape-interval", o.scrape_ms, "Age that load metrics reach, ms; 0: always fresh")
      ->capture_default_str()
      ->check(CLI::Range(0, 3'600'000))
      ->group(policy);
  app.add_option("--explain", o.simulation.explain, "Print how the first decisions of each policy came about")
      ->capture_default_str()
      ->group(policy);

  const auto engine = "Engines (defaults: Llama-3.1-8B in bf16 on one H200)";
  EngineOptions& e = o.simulation.engine;
  app.add_option("--endpoints", o.simulation.endpoints, "Number of engines")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096))
      ->group(engine);
  app.add_option("--capacity-blocks", e.capacity_blocks, "KV cache of an engine, in blocks of 16 tokens")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000'000))
      ->group(engine);
  app.add_option("--max-running", e.max_running, "Requests in one step at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 100'000))
      ->group(engine);
  app.add_option("--max-batched-tokens", e.max_batched_tokens, "Tokens in one step at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000))
      ->group(engine);
  app.add_option("--prefill-rate", e.latency.prefill_tokens_per_s, "Tokens a second, without attention")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 1e9))
      ->group(engine);
  app.add_option("--weight-read-ms", e.latency.weight_read_ms,
                 "Shortest time of the matrix products of a step")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6))
      ->group(engine);
  app.add_option("--kv-read-ns", e.latency.kv_read_ns, "Decode: time per context token")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e9))
      ->group(engine);
  app.add_option("--attention-ns", e.latency.attention_ns,
                 "Prefill: time per pair of token and context token")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e9))
      ->group(engine);

  const auto output = "Output";
  app.add_flag("--json", o.json, "One JSON object instead of the table")->group(output);
  app.add_option("--report", o.report, "Write a self-contained HTML page with charts to this file")
      ->group(output);
  app.add_flag("--timing", o.timing, "Put this machine's speed into --json and --report as well")
      ->group(output);
}

// On a terminal only.
class ProgressBar {
 public:
  explicit ProgressBar(std::size_t total) : total_(total), on_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressBar() {
    if (on_) std::fputs("\r\033[K", stderr);
  }

  void Update(std::size_t done) {
    if (!on_ || done * 200 / total_ == shown_) return;
    shown_ = done * 200 / total_;
    constexpr std::size_t kWidth = 40;
    const std::size_t filled = done * kWidth / total_;
    const auto elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::fprintf(stderr, "\r\033[K[%s%s] %3zu %%  %.0f s left", std::string(filled, '#').c_str(),
                 std::string(kWidth - filled, '.').c_str(), done * 100 / total_,
                 elapsed * static_cast<double>(total_ - done) / static_cast<double>(done));
  }

 private:
  std::size_t total_;
  bool on_;
  std::size_t shown_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

absl::StatusOr<std::vector<Policy>> ChoosePolicies(const Options& options) {
  std::vector<std::string> names;
  for (const std::string& name : options.policies) {
    if (name == "all") {
      names.insert(names.end(), PolicyNames().begin(), PolicyNames().end());
    } else {
      names.push_back(name);
    }
  }
  if (names.empty() && options.weights.empty()) names = PolicyNames();
  std::vector<Policy> policies;
  for (const std::string& name : names) {
    absl::StatusOr<Policy> policy = MakePolicy(name);
    if (!policy.ok()) return policy.status();
    policies.push_back(*std::move(policy));
  }
  for (std::size_t i = 0; i < options.weights.size(); ++i) {
    absl::StatusOr<Policy> policy = MakeMix(options.weights[i]);
    if (!policy.ok()) return policy.status();
    if (options.weights.size() > 1) absl::StrAppend(&policy->name, "-", i + 1);
    policies.push_back(*std::move(policy));
  }
  return policies;
}

absl::StatusOr<Workload> LoadWorkload(const Options& options, ReportSettings& settings) {
  if (options.trace.empty() && options.generate.empty()) {
    return absl::InvalidArgumentError("nothing to replay: give --trace FILE, --generate KIND or both");
  }
  Workload workload;
  std::vector<std::string> sources;
  if (!options.trace.empty()) {
    absl::StatusOr<Trace> trace =
        ReadTraceFile(options.trace, {.skip_bad = options.skip_bad, .limit = options.limit, .limits = {}});
    if (!trace.ok()) return trace.status();
    settings.skipped_lines = trace->skipped_lines;
    if (trace->skipped_lines > 0) {
      absl::FPrintF(stderr, "skipped %d bad lines, the first: %s\n", trace->skipped_lines,
                    std::string(trace->first_skipped.message()));
    }
    workload = std::move(trace->requests);
    SpreadEqualArrivals(workload);
    sources.push_back(options.trace.substr(options.trace.find_last_of('/') + 1));
  }
  if (!options.generate.empty()) {
    absl::StatusOr<WorkloadKind> kind = ParseWorkloadKind(options.generate);
    if (!kind.ok()) return kind.status();
    workload = Merge(std::move(workload), Generate({.kind = *kind,
                                                    .requests = options.requests,
                                                    .rate = options.rate,
                                                    .seed = options.simulation.seed}));
    sources.push_back(absl::StrCat("generated ", options.generate));
  }
  CompressAndCut(options.speed, options.limit, workload);
  settings.workload = absl::StrJoin(sources, " and ");
  return workload;
}

absl::Status Run(Options& options, const std::string& command) {
  options.simulation.scrape_interval = options.scrape_ms * 1'000'000;
  absl::StatusOr<std::vector<Policy>> policies = ChoosePolicies(options);
  if (!policies.ok()) return policies.status();
  Report report;
  report.settings = {.command = command,
                     .workload = {},
                     .speed = options.speed,
                     .timing = options.timing,
                     .simulation = options.simulation};
  absl::StatusOr<Workload> workload = LoadWorkload(options, report.settings);
  if (!workload.ok()) return workload.status();

  PrepareOptions prepare{.exact_keys = false};
  std::vector<std::unique_ptr<Simulation>> simulations;
  for (Policy& policy : *policies) {
    prepare.exact_keys |= policy.uses_exact;
    if (policy.uses_approx) prepare.approx_block_tokens = ApproxBlockTokens();
    auto simulation = Simulation::Create(options.simulation, std::move(policy), workload->size());
    if (!simulation.ok()) return simulation.status();
    simulations.push_back(*std::move(simulation));
  }
  absl::StatusOr<PromptMaker> maker = PromptMaker::Create(prepare);
  if (!maker.ok()) return maker.status();

  // All policies side by side, so that each request is hashed once.
  InfiniteCache bound;
  {
    ProgressBar progress(workload->size());
    for (std::size_t i = 0; i < workload->size(); ++i) {
      const WorkloadRequest& request = (*workload)[i];
      const std::shared_ptr<const PreparedRequest> prepared = maker->Make(i, request);
      bound.Add(request, *prepared);
      report.output_tokens += prepared->output_tokens;
      for (const auto& simulation : simulations) {
        if (absl::Status s = simulation->Arrive(prepared); !s.ok()) return s;
      }
      progress.Update(i + 1);
    }
    for (const auto& simulation : simulations) {
      if (absl::Status s = simulation->Finish(); !s.ok()) return s;
    }
  }

  report.bound = &bound;
  for (const auto& simulation : simulations) {
    report.results.push_back(&simulation->result());
    report.summaries.push_back(Summarize(simulation->result()));
  }
  if (!options.report.empty()) {
    std::ofstream file(options.report, std::ios::binary);
    file << HtmlReport(report);
    if (!file.flush())
      return absl::UnavailableError(absl::StrCat("report: ", options.report, " cannot be written"));
  }
  if (options.json) {
    std::cout << JsonReport(report);
  } else {
    for (const PolicyResult* result : report.results) std::cout << result->explanations;
    std::cout << TextReport(report);
  }
  std::cout.flush();
  std::cerr << WallText(report);
  return absl::OkStatus();
}

}  // namespace
}  // namespace llmd::replay

int main(int argc, char** argv) {
  CLI::App app;
  llmd::replay::Options options;
  llmd::replay::Declare(app, options);
  CLI11_PARSE(app, argc, argv);
  std::string command = "trace_replay";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  const absl::Status status = llmd::replay::Run(options, command);
  if (status.ok()) return 0;
  std::cerr << "trace_replay: " << status.message() << "\n";
  return 1;
}
