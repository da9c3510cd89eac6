// Reads the prefix-cache counters of workers, from themselves or from a Prometheus that scrapes them.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_WORKER_METRICS_H_
#define LLMD_EXAMPLES_LLMD_LOAD_WORKER_METRICS_H_

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/llmd_load/records.h"
#include "examples/llmd_load/runner.h"

namespace llmd::load {

// Sums over all series of the page. Both current names, vllm:prefix_cache_{queries,hits}_total, and the older
// ones with gpu_ are read; NotFound when neither is there.
absl::StatusOr<WorkerCounters> ReadCounters(std::string_view page);

// The values by instance of an answer to /api/v1/query.
absl::StatusOr<std::vector<std::pair<std::string, double>>> ReadQueryAnswer(std::string_view body);

// One entry for each worker, with `error` when it does not answer. Blocks.
std::vector<WorkerCounters> FetchWorkers(const std::vector<Target>& workers,
                                         std::chrono::milliseconds timeout);
absl::StatusOr<std::vector<WorkerCounters>> FetchPrometheus(const Target& prometheus,
                                                            std::chrono::milliseconds timeout);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_WORKER_METRICS_H_
