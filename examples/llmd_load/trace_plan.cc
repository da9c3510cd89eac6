#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/llmd_load/plan.h"
#include "examples/llmd_load/text.h"
#include "examples/trace_replay/trace_reader.h"

namespace llmd::load {
namespace {

constexpr std::uint64_t kTraceBlock = 6;

}  // namespace

absl::StatusOr<Plan> MakeTracePlan(const PlanOptions& options) {
  if (options.trace_file.empty()) return absl::InvalidArgumentError("trace: no file is given");
  if (options.block_tokens == 0) return absl::InvalidArgumentError("block-tokens: must be above 0");
  replay::TraceOptions reading;
  reading.limit = options.requests.value_or(0);
  absl::StatusOr<replay::Trace> trace = replay::ReadTraceFile(options.trace_file, reading);
  if (!trace.ok()) return trace.status();
  replay::Workload& requests = trace->requests;
  // The clock of recorded traces is coarse.
  replay::SpreadEqualArrivals(requests);

  Plan plan;
  plan.api = options.api.value_or(Api::kChat);
  plan.open_loop = true;
  // Rate and time scale say the same: the first wins.
  double scale = options.time_scale;
  const double span = replay::Seconds(requests.back().arrival - requests.front().arrival);
  if (options.rate && span > 0) {
    scale = static_cast<double>(requests.size() - 1) / *options.rate / span;
  }
  plan.lanes.reserve(requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const replay::WorkloadRequest& recorded = requests[i];
    Lane& lane = plan.lanes.emplace_back();
    lane.start = span > 0 ? replay::Seconds(recorded.arrival - requests.front().arrival) * scale
                          : static_cast<double>(i) / options.rate.value_or(1);
    PlannedRequest& request = lane.requests.emplace_back();
    request.max_tokens =
        std::min(recorded.output.tokens, options.max_tokens.value_or(recorded.output.tokens));
    Content content;
    std::uint64_t left = options.max_prompt_tokens == 0 ? UINT64_MAX : options.max_prompt_tokens;
    for (const replay::Segment& segment : recorded.prompt) {
      // A block that is not full is not full in the same proportion.
      const std::uint64_t tokens = std::max<std::uint64_t>(
          1, std::uint64_t{segment.tokens} * options.block_tokens / replay::kTraceBlockTokens);
      const std::uint64_t taken = std::min(tokens, left);
      if (taken == 0) break;
      content.segments.push_back(
          {StreamOf(options.seed, kTraceBlock, segment.stream), static_cast<std::uint32_t>(taken)});
      left -= taken;
    }
    request.messages.push_back({"user", std::move(content)});
  }
  if (options.poisson) return absl::InvalidArgumentError("arrivals: a trace has its own");
  return plan;
}

}  // namespace llmd::load
