// What became of each request, and the counters of the workers around a run.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_RECORDS_H_
#define LLMD_EXAMPLES_LLMD_LOAD_RECORDS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace llmd::load {

// Times in seconds since the beginning of the run.
struct RequestRecord {
  std::size_t lane = 0, turn = 0;
  std::string session = {};
  double due = 0;  // when it should have been sent
  double sent = 0;
  std::optional<double> first_token = {};  // without streaming: the answer's first byte
  double end = 0;
  int status = 0;             // HTTP; 0: no answer
  std::string error = {};     // its kind; empty: all went well
  std::string reason = {};    // of the gateway, for a refusal
  std::string upstream = {};  // x-upstream-host
  std::uint32_t pieces = 0;   // of generated text
  std::uint64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  bool has_usage = false;

  bool ok() const { return error.empty(); }
};

struct RunResult {
  std::vector<RequestRecord> records = {};  // in the order of their ends
  std::vector<float> gaps_ms = {};  // between pieces of text of a stream; a sample when there are many
  std::uint64_t gaps_seen = 0;
  std::size_t most_in_flight = 0;
  double seconds = 0;
  bool interrupted = false;
};

// Counters of one worker at some moment.
struct WorkerCounters {
  std::string worker = {};
  std::optional<double> queries = {}, hits = {};  // in tokens; none: not to be had
  std::string error = {};
};

struct WorkerDelta {
  std::string worker = {};
  double queries = 0, hits = 0;
  bool restarted = false;  // its counters went back to 0 in between
};

// By worker; those that are missing before or after count from 0 or not at all.
std::vector<WorkerDelta> Delta(const std::vector<WorkerCounters>& before,
                               const std::vector<WorkerCounters>& after);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_RECORDS_H_
