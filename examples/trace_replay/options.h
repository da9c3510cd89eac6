// The command line of trace_replay.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_OPTIONS_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/trace_replay/fit.h"
#include "examples/trace_replay/policy.h"
#include "examples/trace_replay/report.h"
#include "examples/trace_replay/simulation.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

struct Options {
  std::string command;  // as it was typed

  std::string trace;
  bool skip_bad = false;
  std::string generate;
  std::size_t requests = 2000;
  double rate = 8;
  double speed = 1;
  std::size_t limit = 0;

  std::vector<std::string> policies;
  std::vector<std::string> weights;
  std::string config;
  std::string versus;
  std::int64_t scrape_ms = 50;
  SimulationOptions simulation;

  std::string record;
  std::string decisions;

  bool fit = false;
  FitOptions fitting;

  bool json = false;
  bool timing = false;
  std::string report;
};

void Declare(CLI::App& app, Options& options);
// What CLI11 cannot: options that exclude or need each other. Completes `options.simulation`.
absl::Status Check(Options& options);

// Policies in the order in which they are reported. `fallback` are those when none is named.
absl::StatusOr<std::vector<Policy>> ChoosePolicies(const Options& options,
                                                   const std::vector<std::string>& fallback);
// The requests; says in `settings` where they come from.
absl::StatusOr<Workload> LoadWorkload(const Options& options, ReportSettings& settings);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_OPTIONS_H_
