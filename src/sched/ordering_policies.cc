// Order of the requests of a flow: fcfs-ordering-policy, edf-ordering-policy, slo-deadline-ordering-policy.
// (spec: scheduling.md 2.7)
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "llmd/base/strings.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// Saturates, so that infinite times are kNever.
std::int64_t Nanos(absl::Time time) { return absl::ToUnixNanos(time); }

// First come, first served.
class FcfsOrdering final : public Plugin, public OrderingPolicy {
 public:
  using Plugin::Plugin;
  OrderKey Key(const FlowItem&, absl::Time enqueued, absl::Duration) const override {
    return {Nanos(enqueued), 0};
  }
};

// Earliest deadline first; without a TTL there is no deadline.
class EdfOrdering final : public Plugin, public OrderingPolicy {
 public:
  using Plugin::Plugin;
  OrderKey Key(const FlowItem&, absl::Time enqueued, absl::Duration ttl) const override {
    return {Nanos(enqueued + ttl), Nanos(enqueued)};
  }
};

// Earliest moment at which the first token is due.
class SloDeadlineOrdering final : public Plugin, public OrderingPolicy {
 public:
  using Plugin::Plugin;
  OrderKey Key(const FlowItem& item, absl::Time enqueued, absl::Duration) const override {
    const absl::Time received = item.received.value_or(enqueued);
    const bool has_slo = item.slo_ttft.has_value() && *item.slo_ttft >= absl::ZeroDuration();
    return {has_slo ? Nanos(received + *item.slo_ttft) : kNever, Nanos(received)};
  }
};

template <typename Policy>
absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<Policy>(builder.type(), builder.name());
}

}  // namespace

std::optional<absl::Duration> ParseSloMilliseconds(std::string_view value) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max() / 1000000;
  std::int64_t milliseconds = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(ToAbsl(value)), &milliseconds)) return std::nullopt;
  if (milliseconds < 0 || milliseconds > kMax) return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

void RegisterOrderingPolicies(PluginRegistry& registry) {
  MustRegister(registry, kFcfsOrderingType, Make<FcfsOrdering>);
  MustRegister(registry, "edf-ordering-policy", Make<EdfOrdering>);
  MustRegister(registry, "slo-deadline-ordering-policy", Make<SloDeadlineOrdering>);
}

}  // namespace llmd::sched
