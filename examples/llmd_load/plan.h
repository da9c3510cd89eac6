// What will be sent: lanes of requests. Within a lane a request waits for the answer to the one before; lanes
// do not wait for one another. In an open-loop plan every lane has a time at which it starts, whatever became
// of the others.
//
// Plain values, the same for the same seed. Prompts are kept as recipes: a trace of gigabytes of text takes
// little memory.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_PLAN_H_
#define LLMD_EXAMPLES_LLMD_LOAD_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace llmd::load {

// Literal text, then the beginnings of streams (text.h).
struct Content {
  struct Segment {
    std::uint64_t stream = 0;
    std::uint32_t tokens = 0;
  };
  std::string text = {};
  std::vector<Segment> segments = {};

  std::string Render() const;
};

struct Message {
  std::string role = "user";
  Content content = {};
};

enum class Api : std::uint8_t { kChat, kCompletions };

struct PlannedRequest {
  std::vector<Message> messages = {};  // for completions, their contents in a row
  std::uint32_t max_tokens = 16;
};

struct Lane {
  std::string session = {};          // empty: no session headers
  std::optional<double> start = {};  // seconds from the beginning of the run; none: when there is room
  double pause = 0;                  // seconds between an answer and the next request
  bool grows = false;                // a request repeats the lane's messages and answers so far
  std::vector<PlannedRequest> requests = {};
};

struct Plan {
  Api api = Api::kChat;
  bool open_loop = false;
  std::vector<Lane> lanes = {};
  std::vector<PlannedRequest> warmup = {};  // one after another, before anything is counted
  // Pass criteria that the workload is made for.
  std::optional<double> min_hit_rate = {};
  std::optional<double> min_stickiness = {};

  std::size_t requests() const;
  double last_start() const;  // 0 in a closed loop
};

enum class Workload : std::uint8_t { kSessions, kRamp, kMulti5, kChat, kSharedPrefix, kVllmLoadTest, kTrace };
absl::StatusOr<Workload> ParseWorkload(std::string_view name);

// What is not given is the workload's own: see MakePlan().
struct PlanOptions {
  Workload workload = Workload::kSessions;
  std::uint64_t seed = 1;
  std::optional<Api> api = {};
  std::optional<std::size_t> sessions = {};
  std::optional<std::size_t> requests = {};  // of each session; in all where there are none
  std::optional<double> pause = {};
  std::optional<std::size_t> warmup = {};
  std::optional<std::uint32_t> max_tokens = {};  // for a trace: at most
  std::string prompt = {};
  std::uint32_t prefix_tokens = 2048;  // shared-prefix; for chat, the instructions shared by all
  std::uint32_t turn_tokens = 64;      // of a question
  std::size_t prefixes = 8;
  std::string trace_file = {};
  std::uint32_t block_tokens = 512;     // text for each block of a trace
  std::uint32_t max_prompt_tokens = 0;  // longer prompts of a trace are cut; 0: none
  double time_scale = 1;                // > 1 is slower
  std::optional<double> rate = {};      // requests a second, in an open loop
  bool poisson = false;                 // arrivals at random instead of evenly
};

// sessions        1 session of 30 equal chat requests, 0.8 s apart, 1 warm-up (spec: deployment.md 8.2)
// ramp            1 session of 80, 0.3 s apart
// multi5          5 sessions side by side, of 25, 0.3 s apart
// chat            8 sessions of 6 turns that repeat the conversation, below shared instructions
// shared-prefix   200 questions without sessions, each below one of `prefixes` long beginnings, 8 a second
// vllm-load-test  completions: 50 equal ones at 1 a second, 30 that go round 4 prompts at 2 a second, 20 in
//                 bursts of 5, 2 s apart (spec: deployment.md 8.1)
// trace           the arrivals and block hashes of `trace_file`, equal hashes as equal text
absl::StatusOr<Plan> MakePlan(const PlanOptions& options);

// As MakePlan() for a trace (trace_plan.cc).
absl::StatusOr<Plan> MakeTracePlan(const PlanOptions& options);

// Turns a plan into an open loop of `rate` requests a second: each request becomes a lane of its own, taken
// from the lanes in turn. Lanes that grow stay whole and start at rate / their length.
void SpreadAtRate(double rate, bool poisson, std::uint64_t seed, Plan& plan);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_PLAN_H_
