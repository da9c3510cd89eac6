// context-length-aware: endpoints labelled with the range of prompt lengths they are meant for, such as
// "0-8192". (spec: scheduling.md 2.4)
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// Tokens, both ends included; 0 <= min <= max.
struct LengthRange {
  std::int64_t min = 0;
  std::int64_t max = 0;

  bool Contains(std::int64_t tokens) const { return tokens >= min && tokens <= max; }
};

// Spaces around the numbers are allowed; negative numbers, more than one hyphen and numbers beyond 64 bits
// are not.
std::optional<LengthRange> ParseRange(std::string_view text) {
  const std::size_t hyphen = text.find('-');
  if (hyphen == std::string_view::npos) return std::nullopt;
  LengthRange range;
  if (!absl::SimpleAtoi(ToAbsl(text.substr(0, hyphen)), &range.min) ||
      !absl::SimpleAtoi(ToAbsl(text.substr(hyphen + 1)), &range.max) || range.max < range.min ||
      text.find('-', hyphen + 1) != std::string_view::npos) {
    return std::nullopt;
  }
  return range;
}

// Above 0.3 inside the range: more for a tight range, and for room towards its end. Below 0.3 outside,
// falling with the distance.
double RangeScore(std::int64_t tokens, LengthRange range) {
  constexpr double kOutside = 0.3;
  const auto n = static_cast<double>(tokens);
  const auto min = static_cast<double>(range.min);
  const auto max = static_cast<double>(range.max);
  if (!range.Contains(tokens)) {
    const double distance = tokens > range.max ? n - max : min - n;
    return kOutside / (1 + distance / 1000);
  }
  if (range.min == range.max) return 1.0;
  const double width = static_cast<double>(range.max - range.min);
  const double raw = 0.7 / (1 + width / 10000) + 0.3 * (static_cast<double>(range.max - tokens) / width);
  return kOutside + (1 - kOutside) * raw;
}

// The request's length, 0 when it is unknown.
std::int64_t TokensOf(const Request& request) {
  constexpr std::size_t kMax = std::numeric_limits<std::int64_t>::max();
  return static_cast<std::int64_t>(std::min(request.token_count(), kMax));
}

class ContextLengthAware final : public Plugin, public Scorer, public Filter {
 public:
  ContextLengthAware(std::string type, std::string name, std::string label, bool filters)
      : Plugin(std::move(type), std::move(name)), label_(std::move(label)), filters_(filters) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const std::int64_t tokens = TokensOf(context.request);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::string* label = context.pool[candidates[i]].FindLabel(label_);
      if (label == nullptr) {
        scores[i] = 0.5;
        continue;
      }
      const std::optional<LengthRange> range = ParseRange(*label);
      scores[i] = range ? RangeScore(tokens, *range) : 0.0;
    }
  }

  // May leave none.
  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    if (!filters_) return;
    const std::int64_t tokens = TokensOf(context.request);
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::string* label = context.pool[candidates[i]].FindLabel(label_);
      if (label == nullptr) continue;
      const std::optional<LengthRange> range = ParseRange(*label);
      if (!range) {
        dropped[i] = "context length range is malformed";
      } else if (!range->Contains(tokens)) {
        dropped[i] = "context length is out of range";
      }
    }
  }

 private:
  std::string label_;
  bool filters_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string label = "llm-d.ai/context-length-range";
  bool filters = false;
  read.Optional("label", &label);
  read.Optional("enableFiltering", &filters);
  if (label.empty()) read.Reject("label", "empty", "a label name");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<ContextLengthAware>(builder.type(), builder.name(), std::move(label), filters);
}

}  // namespace

void RegisterContextLength(PluginRegistry& registry) { MustRegister(registry, "context-length-aware", Make); }

}  // namespace llmd::sched
