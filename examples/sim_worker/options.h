// The command line: vLLM's spelling where vLLM has the flag.
#ifndef EXAMPLES_SIM_WORKER_OPTIONS_H_
#define EXAMPLES_SIM_WORKER_OPTIONS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/sim_worker/worker.h"

namespace llmd::sim {

struct CommandLine {
  WorkerOptions worker = {};
  int threads = 1;
  double shutdown_timeout_s = 10;
  std::string help = {};  // to be printed instead of serving
};

// `arguments` without the program's name. PYTHONHASHSEED and POD_IP are taken from the environment.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_OPTIONS_H_
