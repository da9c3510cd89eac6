// bench_index: writes, matches, memory and snapshots of the prefix index on the workloads of
// docs/bench-index-format.md.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/bench_util.h"
#include "bench/index/measure.h"
#include "bench/index/progress.h"
#include "bench/index/stream_file.h"
#include "bench/index/trace.h"
#include "bench/index/workload.h"

namespace llmd::bench {
namespace {

struct Arguments {
  std::string profile = "pinned";
  std::string trace, dump, load;
  bool json = false, quick = false;
  GenerateOptions generate;
  MeasureOptions measure;
};

// Where the workload called `name` comes from: a file, a trace or the generator.
absl::StatusOr<Workload> MakeWorkload(const Arguments& arguments, const std::string& name) {
  if (!arguments.load.empty()) return Load(arguments.load);
  if (!arguments.trace.empty()) {
    std::ifstream file(arguments.trace);
    if (!file) return absl::NotFoundError(absl::StrCat(arguments.trace, ": cannot be opened"));
    auto workload = TraceWorkload(file, arguments.quick ? 500 : std::numeric_limits<std::size_t>::max());
    if (workload.ok()) return workload;
    return absl::InvalidArgumentError(absl::StrCat(arguments.trace, ": ", workload.status().message()));
  }
  // Readers beside a writer run on the pinned streams.
  auto workload = Generate(name == "mixed" ? "pinned" : name, arguments.generate);
  if (workload.ok()) workload->name = name;
  return workload;
}

absl::Status RunCase(const Arguments& arguments, const Bench& bench, const std::string& name) {
  bench.progress.Show(absl::StrCat(name, ": building the streams"));
  auto workload = MakeWorkload(arguments, name);
  if (!workload.ok()) return workload.status();
  if (!arguments.dump.empty()) return Dump(*workload, arguments.dump);
  if (workload->name == "mixed") return MeasureMixed(bench, *workload);
  auto filled = MeasureFill(bench, *workload);
  if (!filled.ok()) return filled.status();
  if (absl::Status status = MeasureMatches(bench, *workload, *filled); !status.ok()) return status;
  return workload->name == "pinned" ? MeasureSnapshot(bench, *workload, *filled) : absl::OkStatus();
}

std::vector<std::string> CaseNames() {
  std::vector<std::string> names;
  for (const Profile& profile : Profiles()) names.emplace_back(profile.name);
  names.emplace_back("mixed");
  return names;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> choices = CaseNames();
  choices.emplace_back("all");
  arguments.measure.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) - 1);

  CLI::App app("Measures the prefix index. What is inside each clock: docs/bench-index-format.md.");
  auto* profile = app.add_option("--profile", arguments.profile, "Workload to generate")
                      ->check(CLI::IsMember(choices))
                      ->capture_default_str();
  auto* trace =
      app.add_option("--trace", arguments.trace, "Replay a request trace (Mooncake JSON lines) instead");
  auto* load =
      app.add_option("--load", arguments.load, "Run the streams of a file written by --dump instead");
  app.add_option("--dump", arguments.dump, "Write the streams to a file and measure nothing");
  auto* scale = app.add_option("--scale", arguments.generate.scale, "Factor on the number of holder-blocks")
                    ->check(CLI::Range(0.0001, 64.0))
                    ->capture_default_str();
  app.add_flag("--scale8", arguments.generate.eightfold, "8 times the holder-blocks and 8 times the holders");
  app.add_option("--seed", arguments.generate.seed, "Seed of the streams")->capture_default_str();
  auto* repeat = app.add_option("--repeat", arguments.measure.repeat, "Repetitions; medians are reported")
                     ->check(CLI::Range(1, 1000))
                     ->capture_default_str();
  app.add_option("--threads", arguments.measure.threads, "mixed: measure 1 to this many readers")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", arguments.quick,
               "A smoke run: --scale 0.05 --repeat 2, few samples, 500 trace requests");
  app.add_flag("--json", arguments.json, "Print one JSON object a line");
  trace->excludes(profile)->excludes(load);
  load->excludes(profile);
  CLI11_PARSE(app, argc, argv);
  if (!arguments.dump.empty() && arguments.profile == "all") {
    std::fprintf(stderr, "bench_index: --dump writes one profile, not all\n");
    return 2;
  }
  if (arguments.quick) {
    if (scale->count() == 0) arguments.generate.scale = 0.05;
    if (repeat->count() == 0) arguments.measure.repeat = 2;
    arguments.measure.samples = 2000;
    arguments.measure.max_passes = 16;
  }
  arguments.measure.seed = arguments.generate.seed;

  const Reporter reporter("bench_index", arguments.json);
  const Progress progress;
  const Bench bench{reporter, progress, arguments.measure};
  if (arguments.dump.empty()) reporter.Report("machine", "timer_overhead_ns", TimerOverheadNs(), "ns", true);
  const auto names = arguments.profile == "all" ? CaseNames() : std::vector<std::string>{arguments.profile};
  for (const std::string& name : names) {
    if (absl::Status status = RunCase(arguments, bench, name); !status.ok()) {
      progress.Clear();
      std::fprintf(stderr, "bench_index: %s\n", std::string(status.message()).c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace llmd::bench

int main(int argc, char** argv) { return llmd::bench::Main(argc, argv); }
