#include "examples/trace_replay/generator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd::replay {
namespace {

constexpr std::uint32_t kMaxPromptTokens = 120'000;  // below the context of a 128k model

class Generator {
 public:
  explicit Generator(const GeneratorOptions& options) : options_(options), random_(options.seed) {}

  Workload Run() {
    switch (options_.kind) {
      case WorkloadKind::kChat:
        Sessions({.shared_prompts = 4,
                  .shared_min = 256,
                  .shared_max = 2048,
                  .mean_turns = 6,
                  .max_turns = 40,
                  .input_min = 20,
                  .input_max = 600,
                  .output_min = 50,
                  .output_max = 600,
                  .pause_s = 25});
        break;
      case WorkloadKind::kAgent:
        Sessions({.shared_prompts = 3,
                  .shared_min = 4096,
                  .shared_max = 12288,
                  .mean_turns = 20,
                  .max_turns = 80,
                  .input_min = 100,
                  .input_max = 4000,
                  .output_min = 30,
                  .output_max = 400,
                  .pause_s = 3});
        break;
      case WorkloadKind::kRetrieval:
        Questions();
        break;
    }
    std::stable_sort(
        workload_.begin(), workload_.end(),
        [](const WorkloadRequest& a, const WorkloadRequest& b) { return a.arrival < b.arrival; });
    workload_.resize(options_.requests);
    return std::move(workload_);
  }

 private:
  // Sessions whose prompts grow: lengths in tokens, log-uniform between min and max.
  struct SessionShape {
    std::size_t shared_prompts;  // system prompts or instructions, one of which begins every session
    std::uint32_t shared_min, shared_max;
    double mean_turns;
    std::uint32_t max_turns;
    std::uint32_t input_min, input_max;    // appended by the user or by a tool before each turn
    std::uint32_t output_min, output_max;  // answer
    double pause_s;                        // mean time from an answer to the next turn
  };

  Segment NewStream(std::uint32_t low, std::uint32_t high) {
    const double log_low = std::log(low), log_high = std::log(high);
    const double tokens = std::exp(log_low + (log_high - log_low) * random_.Uniform());
    return {kGeneratedStreams + next_stream_++, static_cast<std::uint32_t>(std::lround(tokens))};
  }

  static Nanos FromSeconds(double seconds) { return std::llround(seconds * 1e9); }

  void Add(double at_s, const std::vector<Segment>& prompt, const Segment& output) {
    workload_.push_back(
        {.arrival = FromSeconds(at_s), .prompt = prompt, .output = output, .recorded = false});
  }

  void Sessions(const SessionShape& shape) {
    constexpr double kSecondsPerToken =
        0.010;  // a typical decode step: when the answer is about to be complete
    std::vector<Segment> shared;
    for (std::size_t i = 0; i < shape.shared_prompts; ++i) {
      shared.push_back(NewStream(shape.shared_min, shape.shared_max));
    }
    double start_s = 0;
    // Turns of sessions that began early reach past the arrivals of later ones, so all sessions that begin
    // within the first options_.requests turns are made and the earliest requests kept.
    while (workload_.size() < options_.requests * 2) {
      start_s += random_.Exponential(shape.mean_turns / options_.rate);
      std::vector<Segment> prompt = {shared[random_.Below(shared.size())]};
      std::uint64_t tokens = prompt[0].tokens;
      double at_s = start_s;
      for (std::uint32_t turn = 0; turn < shape.max_turns; ++turn) {
        prompt.push_back(NewStream(shape.input_min, shape.input_max));
        tokens += prompt.back().tokens;
        const Segment output = NewStream(shape.output_min, shape.output_max);
        if (tokens > kMaxPromptTokens) break;
        Add(at_s, prompt, output);
        prompt.push_back(output);
        tokens += output.tokens;
        at_s += output.tokens * kSecondsPerToken + random_.Exponential(shape.pause_s);
        if (!random_.Chance(1 - 1 / shape.mean_turns)) break;
      }
    }
  }

  void Questions() {
    constexpr std::size_t kDocuments = 300;
    constexpr double kSkew = 0.8;  // the n-th most popular document is asked about n^-0.8 times as often
    const Segment instructions = NewStream(300, 300);
    std::vector<Segment> documents;
    std::vector<double> cumulative;
    double sum = 0;
    for (std::size_t i = 0; i < kDocuments; ++i) {
      documents.push_back(NewStream(3000, 30000));
      cumulative.push_back(sum += std::pow(static_cast<double>(i + 1), -kSkew));
    }
    double at_s = 0;
    while (workload_.size() < options_.requests) {
      at_s += random_.Exponential(1 / options_.rate);
      const auto it = std::upper_bound(cumulative.begin(), cumulative.end(), random_.Uniform() * sum);
      const std::size_t document = std::min<std::size_t>(it - cumulative.begin(), kDocuments - 1);
      const Segment question = NewStream(15, 120);
      Add(at_s, {instructions, documents[document], question}, NewStream(40, 400));
    }
  }

  GeneratorOptions options_;
  Random random_;
  Workload workload_;
  std::uint64_t next_stream_ = 0;
};

}  // namespace

absl::StatusOr<WorkloadKind> ParseWorkloadKind(std::string_view name) {
  if (name == "chat") return WorkloadKind::kChat;
  if (name == "agent") return WorkloadKind::kAgent;
  if (name == "retrieval") return WorkloadKind::kRetrieval;
  return absl::InvalidArgumentError(
      absl::StrCat("generate: is \"", ToAbsl(name), "\", expected chat, agent or retrieval"));
}

Workload Generate(const GeneratorOptions& options) { return Generator(options).Run(); }

}  // namespace llmd::replay
