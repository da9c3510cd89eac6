// The figures of a run, and whether they are good enough.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_REPORT_H_
#define LLMD_EXAMPLES_LLMD_LOAD_REPORT_H_

#include <cstddef>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "examples/llmd_load/records.h"

namespace llmd::load {

struct Summary {
  std::size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Summary Summarize(std::vector<double> samples);

struct Stickiness {
  std::string session = {};
  std::size_t requests = 0;  // with x-upstream-host
  std::string top = {};      // the host that served most of them
  double share = 0;
};

// Limits as fractions. A limit that is asked for by name must be measurable; a workload's own limit is passed
// over when it is not.
struct Criterion {
  std::optional<double> limit = {};
  bool required = false;
};
struct Criteria {
  Criterion min_hit_rate = {}, min_stickiness = {};
  double max_error_rate = 0;
};

struct Verdict {
  enum class State { kPass, kMissed, kNotMeasured };
  std::string name = {};
  double limit = 0;
  std::optional<double> value = {};
  State state = State::kPass;
  bool required = true;
};

struct Report {
  std::size_t requests = 0, succeeded = 0;
  double seconds = 0, requests_per_s = 0;
  std::map<std::string, std::size_t> errors = {}, refusal_reasons = {};
  Summary ttft_ms = {}, gap_ms = {}, total_ms = {};               // from the moment of sending
  Summary ttft_from_due_ms = {}, late_ms = {};                    // with the time spent waiting for its turn
  std::optional<double> ttft_first3_ms = {}, ttft_last3_ms = {};  // mean over sessions of 6 and more requests
  std::uint64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  std::size_t with_usage = 0;
  std::size_t most_in_flight = 0;
  bool interrupted = false;

  std::map<std::string, std::size_t> upstreams = {};  // requests by x-upstream-host
  std::vector<Stickiness> sessions = {};
  std::vector<WorkerDelta> workers = {};
  std::optional<double> hit_rate = {};
  std::string hit_rate_source = {};       // workers, prometheus, usage
  std::optional<double> stickiness = {};  // of the worst session
  std::string stickiness_source = {};     // headers, metrics
  std::vector<Verdict> verdicts = {};

  // 0: all limits are kept, 1: one is missed, 2: nothing was measured, or not what was asked for.
  int exit_code() const;
};

struct Sources {
  std::vector<WorkerDelta> workers = {};
  std::string name = "workers";
  bool complete = true;  // every worker answered before and after
};

Report MakeReport(const RunResult& result, const Sources& sources, const Criteria& criteria);

void PrintTable(const Report& report, std::ostream& out);
// One object, one line.
void PrintJson(const Report& report, const std::string& workload, std::ostream& out);
// One object a line for each request.
void PrintRecords(const RunResult& result, std::ostream& out);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_REPORT_H_
