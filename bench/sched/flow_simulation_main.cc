// Runs the simulation of flow_simulation.h and prints how requests ended, and how long all took.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "bench/bench_util.h"
#include "bench/index/progress.h"
#include "bench/sched/flow_simulation.h"

namespace llmd::sched {
namespace {

// Growth of the process that counts as none: the allocator and the simulation's own queue of events.
constexpr double kFlatBytes = 4 << 20;

int Main(int argc, char** argv) {
  SimulationOptions options;
  bool json = false;
  CLI::App app(
      "Simulates flow control under load; fails unless every request ends exactly once in flat memory.");
  app.add_option("--requests", options.requests, "How many arrive")
      ->check(CLI::Range(std::uint64_t{10}, std::uint64_t{1000000000}))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of all randomness")->capture_default_str();
  app.add_option("--flows", options.flows, "Tenants")->check(CLI::Range(1u, 1000000u))->capture_default_str();
  app.add_option("--endpoints", options.endpoints, "Servers, of 16 requests at a time each")
      ->check(CLI::Range(1u, 10000u))
      ->capture_default_str();
  app.add_flag("--json", json, "Print one JSON object a line");
  CLI11_PARSE(app, argc, argv);

  const bench::Progress progress;
  options.progress = [&](std::uint64_t arrived) {
    progress.Show(std::to_string(arrived) + " of " + std::to_string(options.requests) + " requests");
  };
  const std::int64_t start = bench::NowNs();
  const absl::StatusOr<SimulationReport> report = Simulate(options);
  const double seconds = static_cast<double>(bench::NowNs() - start) * 1e-9;
  progress.Clear();
  if (!report.ok()) {
    std::fprintf(stderr, "flow_simulation: %s\n", std::string(report.status().message()).c_str());
    return 1;
  }

  const bench::Reporter reporter("flow_simulation", json);
  const std::string name = "r" + std::to_string(options.requests);
  const auto count = [&](const std::string& metric, std::uint64_t value, const char* unit = "requests") {
    reporter.Report(name, metric, static_cast<double>(value), unit, true);
  };
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < kFates; ++i) {
    count(ToString(static_cast<Fate>(i)), report->fates[i]);
    total += report->fates[i];
  }
  count("accounted", total);
  count("peak_queued", report->peak_queued);
  count("evictions_ordered", report->evictions_ordered);
  count("evictions_unconfirmed", report->unconfirmed_evictions);
  count("cycles", report->cycles, "");
  reporter.Report(name, "simulated_s", absl::ToDoubleSeconds(report->simulated), "s", true);
  reporter.Report(name, "wait_p50_ms", absl::ToDoubleMilliseconds(report->wait_p50), "ms", true);
  reporter.Report(name, "wait_p99_ms", absl::ToDoubleMilliseconds(report->wait_p99), "ms", true);
  constexpr double kMiB = 1 << 20;
  reporter.Report(name, "rss_warm_mib", static_cast<double>(report->rss_warm) / kMiB, "MiB", true);
  reporter.Report(name, "rss_end_mib", static_cast<double>(report->rss_end) / kMiB, "MiB", true);
  reporter.Report(name, "controller_warm_mib", static_cast<double>(report->controller_warm) / kMiB, "MiB",
                  true);
  reporter.Report(name, "controller_end_mib", static_cast<double>(report->controller_end) / kMiB, "MiB",
                  true);
  reporter.Report(name, "wall_s", seconds, "s", true);
  reporter.Report(name, "us_per_request", seconds * 1e6 / static_cast<double>(options.requests), "us", true);
  if (static_cast<double>(report->rss_end) > static_cast<double>(report->rss_warm) + kFlatBytes) {
    std::fprintf(stderr,
                 "flow_simulation: memory grew after a fifth of the requests, expected at most 4 MiB\n");
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace llmd::sched

int main(int argc, char** argv) { return llmd::sched::Main(argc, argv); }
