// trace_replay: routing policies compared on a recorded or generated workload, in virtual time; decisions
// recorded and taken again; weights fitted.
#include <CLI/CLI.hpp>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "examples/trace_replay/modes.h"
#include "examples/trace_replay/options.h"

namespace llmd::replay {
namespace {

absl::Status Run(Options& options) {
  if (absl::Status status = Check(options); !status.ok()) return status;
  if (!options.decisions.empty()) return RunDecisions(options);
  if (options.fit) return RunFit(options);
  return RunComparison(options);
}

}  // namespace
}  // namespace llmd::replay

int main(int argc, char** argv) {
  CLI::App app;
  llmd::replay::Options options;
  llmd::replay::Declare(app, options);
  CLI11_PARSE(app, argc, argv);
  options.command = "trace_replay";
  for (int i = 1; i < argc; ++i) options.command += std::string(" ") + argv[i];
  const absl::Status status = llmd::replay::Run(options);
  if (status.ok()) return 0;
  std::cerr << "trace_replay: " << status.message() << "\n";
  return 1;
}
