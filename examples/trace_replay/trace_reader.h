// Reads a recorded request trace in the schema of Mooncake's FAST'25 traces: one JSON object a line.
//
//   {"timestamp": 3000, "input_length": 1030, "output_length": 20, "hash_ids": [0, 7, 8]}
//
// `timestamp` in milliseconds, not descending; `hash_ids` names each 512-token block of the prompt, the last
// one possibly partial. Other fields and empty lines are ignored. A bad line stops the reading, or is skipped
// and counted.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_TRACE_READER_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_TRACE_READER_H_

#include <cstddef>
#include <cstdint>
#include <istream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

struct TraceLimits {
  std::uint64_t max_input_tokens = 4u << 20;
  std::uint64_t max_output_tokens = 1u << 20;
  std::uint64_t max_timestamp_ms = std::uint64_t{366} * 24 * 3600 * 1000;
  std::uint64_t max_hash_id = (std::uint64_t{1} << 60) - 1;
  std::size_t max_line_bytes = 16u << 20;
};

struct TraceOptions {
  bool skip_bad = false;
  std::size_t limit = 0;  // requests read at most; 0: all
  TraceLimits limits = {};
};

struct Trace {
  Workload requests;
  std::size_t skipped_lines = 0;
  absl::Status first_skipped = absl::OkStatus();  // why the first of them was
};

// `name` stands for the input in messages: "trace.jsonl: line 7: input_length: ...". InvalidArgument for a
// bad line and for an input without requests.
absl::StatusOr<Trace> ReadTrace(std::istream& input, const std::string& name, const TraceOptions& options);
// NotFound when the file cannot be opened.
absl::StatusOr<Trace> ReadTraceFile(const std::string& path, const TraceOptions& options);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_TRACE_READER_H_
