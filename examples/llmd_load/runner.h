// Carries a plan out over HTTP, on one thread, and writes down what happened.
//
// In an open loop a request is due at its time, whether or not earlier ones are answered; when no connection
// may be opened for it (`concurrency`), it waits, and the waiting counts: `due` stays what it was.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_RUNNER_H_
#define LLMD_EXAMPLES_LLMD_LOAD_RUNNER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/llmd_load/plan.h"
#include "examples/llmd_load/records.h"

namespace llmd::load {

// http://HOST[:PORT][/BASE]
struct Target {
  std::string host_port = {};
  std::string base = {};  // without the last '/'
};
absl::StatusOr<Target> ParseTarget(const std::string& url);

struct Progress {
  std::size_t done = 0, all = 0, in_flight = 0, errors = 0;
  double seconds = 0;
};

struct RunOptions {
  Target target = {};
  std::string model = {};
  bool stream = true;
  std::size_t concurrency = 0;  // requests at a time; 0: as many as are due, or as there are lanes
  std::chrono::milliseconds timeout{300'000};  // of a request
  double max_seconds = 0;                      // nothing is started later; 0: no limit
  std::string test_id = {};
  // Which of the session's carriers are sent: x-session-id, session-id, cookie.
  bool session_x_header = true, session_header = true, session_cookie = true;
  std::vector<std::pair<std::string, std::string>> headers = {};  // further ones
  std::uint64_t sampling_seed = 12345;
  std::function<void()> warm = {};                     // after the warm-up, before what counts
  std::function<void(const Progress&)> progress = {};  // about once a second
};

// Blocks. SIGINT and SIGTERM end it early: what is on its way is given up.
RunResult RunPlan(const Plan& plan, const RunOptions& options);

// One GET; blocks. Unavailable when there is no answer with status 200 in time.
absl::StatusOr<std::string> Get(const Target& target, const std::string& path,
                                std::chrono::milliseconds timeout, std::size_t limit = std::size_t{16} << 20);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_RUNNER_H_
