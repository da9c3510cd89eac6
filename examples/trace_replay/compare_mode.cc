#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/trace_replay/bound.h"
#include "examples/trace_replay/modes.h"
#include "examples/trace_replay/progress.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/report.h"
#include "examples/trace_replay/simulation.h"

namespace llmd::replay {

absl::Status RunComparison(const Options& options) {
  absl::StatusOr<std::vector<Policy>> policies = ChoosePolicies(options, PolicyNames());
  if (!policies.ok()) return policies.status();
  SimulationOptions simulation_options = options.simulation;
  std::ofstream log;
  std::size_t log_bytes = 0;
  if (!options.record.empty()) {
    if (policies->size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("--record: ", policies->size(), " policies, expected one, such as --policy exact"));
    }
    log.open(options.record, std::ios::binary | std::ios::trunc);
    simulation_options.record = [&](std::span<const std::byte> piece) {
      log_bytes += piece.size();
      log.write(reinterpret_cast<const char*>(piece.data()), static_cast<std::streamsize>(piece.size()));
      return log ? absl::OkStatus()
                 : absl::UnavailableError(absl::StrCat("--record: ", options.record, " cannot be written"));
    };
  }
  Report report;
  report.settings = {.command = options.command,
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
    auto simulation = Simulation::Create(simulation_options, std::move(policy), workload->size());
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
  if (log.is_open()) {
    log.close();
    if (!log) return absl::UnavailableError(absl::StrCat("--record: ", options.record, " cannot be written"));
    absl::FPrintF(stderr, "recorded %d decisions in %s, %d bytes each\n", workload->size(), options.record,
                  log_bytes / workload->size());
  }

  report.bound = &bound;
  for (const auto& simulation : simulations) {
    report.results.push_back(&simulation->result());
    report.summaries.push_back(Summarize(simulation->result()));
  }
  if (!options.report.empty()) {
    std::ofstream file(options.report, std::ios::binary);
    file << HtmlReport(report);
    if (!file.flush()) {
      return absl::UnavailableError(absl::StrCat("--report: ", options.report, " cannot be written"));
    }
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

}  // namespace llmd::replay
