// Workloads as files, so that other implementations can run the same bytes (format:
// docs/bench-index-format.md).
#ifndef BENCH_INDEX_STREAM_FILE_H_
#define BENCH_INDEX_STREAM_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/index/workload.h"

namespace llmd::bench {

// Unavailable when the file cannot be written; an incomplete one is removed.
absl::Status Dump(const Workload& workload, const std::string& path);

// NotFound when the file cannot be opened, InvalidArgument for one that breaks the format: the message names
// the field, its offset in the file, the value and the limit. Memory is taken only in proportion to the
// file's size.
absl::StatusOr<Workload> Load(const std::string& path);

}  // namespace llmd::bench

#endif  // BENCH_INDEX_STREAM_FILE_H_
