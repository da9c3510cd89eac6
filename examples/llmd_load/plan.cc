#include "examples/llmd_load/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/llmd_load/text.h"
#include "llmd/base/random.h"

namespace llmd::load {
namespace {

constexpr std::size_t kMaxRequests = 10'000'000;

// Kinds of streams, so that no two coincide.
enum StreamKind : std::uint64_t {
  kInstructions = 1,
  kQuestion = 2,
  kPrefix = 3,
  kRotating = 4,
  kSession = 5
};

std::string SessionName(const PlanOptions& options, std::size_t index) {
  return absl::StrCat("session-", index, "-",
                      absl::Hex(StreamOf(options.seed, kSession, index) & 0xffffffff, absl::kZeroPad8));
}

PlannedRequest Request(Content content, std::uint32_t max_tokens) {
  PlannedRequest request;
  request.messages.push_back({"user", std::move(content)});
  request.max_tokens = max_tokens;
  return request;
}

// Equal requests in every session.
Plan EqualSessions(const PlanOptions& options, std::size_t sessions, std::size_t requests, double pause,
                   std::size_t warmup) {
  Plan plan;
  plan.min_hit_rate = 0.8;
  plan.min_stickiness = 1.0;
  const PlannedRequest request =
      Request({.text = options.prompt.empty() ? std::string(TestParagraph()) : options.prompt},
              options.max_tokens.value_or(16));
  for (std::size_t i = 0; i < options.sessions.value_or(sessions); ++i) {
    Lane& lane = plan.lanes.emplace_back();
    lane.session = SessionName(options, i);
    lane.pause = options.pause.value_or(pause);
    lane.requests.assign(options.requests.value_or(requests), request);
  }
  plan.warmup.assign(options.warmup.value_or(warmup), request);
  return plan;
}

Plan Chat(const PlanOptions& options) {
  Plan plan;
  plan.min_stickiness = 1.0;
  for (std::size_t i = 0; i < options.sessions.value_or(8); ++i) {
    Lane& lane = plan.lanes.emplace_back();
    lane.session = SessionName(options, i);
    lane.pause = options.pause.value_or(0.2);
    lane.grows = true;
    for (std::size_t turn = 0; turn < options.requests.value_or(6); ++turn) {
      PlannedRequest& request = lane.requests.emplace_back();
      request.max_tokens = options.max_tokens.value_or(64);
      if (turn == 0 && options.prefix_tokens > 0) {
        request.messages.push_back(
            {"system", {.segments = {{StreamOf(options.seed, kInstructions), options.prefix_tokens}}}});
      }
      const std::uint64_t question = StreamOf(options.seed, kQuestion, i << 32 | turn);
      request.messages.push_back({"user", {.segments = {{question, options.turn_tokens}}}});
    }
  }
  return plan;
}

Plan SharedPrefix(const PlanOptions& options) {
  Plan plan;
  Random random(StreamOf(options.seed, kPrefix));
  for (std::size_t i = 0; i < options.requests.value_or(200); ++i) {
    const std::uint64_t prefix = random.Below(options.prefixes);
    Lane& lane = plan.lanes.emplace_back();
    PlannedRequest& request = lane.requests.emplace_back();
    request.max_tokens = options.max_tokens.value_or(32);
    request.messages.push_back(
        {"system", {.segments = {{StreamOf(options.seed, kPrefix, prefix + 1), options.prefix_tokens}}}});
    request.messages.push_back(
        {"user", {.segments = {{StreamOf(options.seed, kQuestion, i), options.turn_tokens}}}});
  }
  return plan;
}

Plan VllmLoadTest(const PlanOptions& options) {
  Plan plan;
  plan.api = Api::kCompletions;
  plan.open_loop = true;
  const std::uint32_t max_tokens = options.max_tokens.value_or(50);
  const PlannedRequest same =
      Request({.text = options.prompt.empty() ? std::string(TestParagraph()) : options.prompt}, max_tokens);
  const auto add = [&](double start, const PlannedRequest& request) {
    Lane& lane = plan.lanes.emplace_back();
    lane.start = start * options.time_scale;
    lane.requests.push_back(request);
  };
  for (int i = 0; i < 50; ++i) add(i, same);
  for (int i = 0; i < 30; ++i) {
    const std::uint64_t prompt = StreamOf(options.seed, kRotating, static_cast<std::uint64_t>(i % 4));
    add(50 + i / 2.0, Request({.segments = {{prompt, 200}}}, max_tokens));
  }
  for (int i = 0; i < 20; ++i) add(65 + i / 5 * 2.0, same);
  return plan;
}

}  // namespace

std::string Content::Render() const {
  std::string out = text;
  for (const Segment& segment : segments) AppendText(segment.stream, segment.tokens, out);
  return out;
}

std::size_t Plan::requests() const {
  std::size_t sum = 0;
  for (const Lane& lane : lanes) sum += lane.requests.size();
  return sum;
}

double Plan::last_start() const {
  double last = 0;
  for (const Lane& lane : lanes) last = std::max(last, lane.start.value_or(0));
  return last;
}

absl::StatusOr<Workload> ParseWorkload(std::string_view name) {
  if (name == "sessions") return Workload::kSessions;
  if (name == "ramp") return Workload::kRamp;
  if (name == "multi5") return Workload::kMulti5;
  if (name == "chat") return Workload::kChat;
  if (name == "shared-prefix") return Workload::kSharedPrefix;
  if (name == "vllm-load-test") return Workload::kVllmLoadTest;
  if (name == "trace") return Workload::kTrace;
  return absl::InvalidArgumentError(absl::StrCat("workload: \"", std::string(name), "\" is none"));
}

absl::StatusOr<Plan> MakePlan(const PlanOptions& options) {
  if (!(options.time_scale > 0)) return absl::InvalidArgumentError("time-scale: must be above 0");
  if (options.rate && !(*options.rate > 0)) return absl::InvalidArgumentError("rate: must be above 0");
  if (options.pause && !(*options.pause >= 0))
    return absl::InvalidArgumentError("pause: must not be negative");
  if (options.prefixes == 0) return absl::InvalidArgumentError("prefixes: must be above 0");
  const std::size_t sessions = options.sessions.value_or(1), requests = options.requests.value_or(1);
  if (sessions == 0 || requests == 0 || sessions > kMaxRequests / requests) {
    return absl::InvalidArgumentError(absl::StrCat("sessions and requests: ", sessions, " times ", requests,
                                                   " is not 1 to ", kMaxRequests));
  }
  Plan plan;
  std::optional<double> rate = options.rate;
  switch (options.workload) {
    case Workload::kSessions:
      plan = EqualSessions(options, 1, 30, 0.8, 1);
      break;
    case Workload::kRamp:
      plan = EqualSessions(options, 1, 80, 0.3, 1);
      break;
    case Workload::kMulti5:
      plan = EqualSessions(options, 5, 25, 0.3, 1);
      break;
    case Workload::kChat:
      plan = Chat(options);
      break;
    case Workload::kSharedPrefix:
      plan = SharedPrefix(options);
      if (!rate) rate = 8 / options.time_scale;
      break;
    case Workload::kVllmLoadTest:
      plan = VllmLoadTest(options);
      break;
    case Workload::kTrace: {
      absl::StatusOr<Plan> trace = MakeTracePlan(options);
      if (!trace.ok()) return trace.status();
      return *std::move(trace);
    }
  }
  if (options.api) {
    if (*options.api == Api::kCompletions && options.workload == Workload::kChat) {
      return absl::InvalidArgumentError("api: chat conversations are no completions");
    }
    plan.api = *options.api;
  }
  if (rate) SpreadAtRate(*rate, options.poisson, options.seed, plan);
  return plan;
}

void SpreadAtRate(double rate, bool poisson, std::uint64_t seed, Plan& plan) {
  std::vector<Lane> lanes;
  std::size_t longest = 0;
  bool grows = false;
  for (const Lane& lane : plan.lanes) {
    longest = std::max(longest, lane.requests.size());
    grows |= lane.grows;
  }
  double gap = 1 / rate;
  if (grows) {
    lanes = std::move(plan.lanes);
    gap *= static_cast<double>(longest);
  } else {
    for (std::size_t turn = 0; turn < longest; ++turn) {
      for (Lane& lane : plan.lanes) {
        if (turn >= lane.requests.size()) continue;
        Lane& one = lanes.emplace_back();
        one.session = lane.session;
        one.requests.push_back(std::move(lane.requests[turn]));
      }
    }
  }
  Random random(seed);
  double now = 0;
  for (Lane& lane : lanes) {
    lane.start = now;
    now += poisson ? random.Exponential(gap) : gap;
  }
  plan.open_loop = true;
  plan.lanes = std::move(lanes);
}

}  // namespace llmd::load
