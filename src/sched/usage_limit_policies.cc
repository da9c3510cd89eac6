// Ceilings on the saturation at which each priority is held back: static-usage-limit-policy,
// priority-holdback-policy, soft-reflective-ceiling-policy. (spec: scheduling.md 2.7)
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// The same for all.
class StaticLimiter final : public UsageLimiter {
 public:
  explicit StaticLimiter(double threshold) : threshold_(threshold) {}
  void Limit(double, std::span<const std::int32_t>, std::span<double> ceilings) override {
    std::fill(ceilings.begin(), ceilings.end(), threshold_);
  }

 private:
  double threshold_;
};

struct Holdback {
  double min = 0;
  double max = 1;
  bool by_value = false;  // where a priority lies between the extremes; otherwise its rank
};

// From `max` for the highest priority down to `min` for the lowest.
class HoldbackLimiter final : public UsageLimiter {
 public:
  explicit HoldbackLimiter(const Holdback& holdback) : holdback_(holdback) {}
  void Limit(double, std::span<const std::int32_t> priorities, std::span<double> ceilings) override {
    const std::size_t n = priorities.size();
    const double range = holdback_.max - holdback_.min;
    if (n == 0) return;
    ceilings[0] = holdback_.max;
    const double top = priorities.front();
    const double bottom = priorities.back();
    for (std::size_t i = 1; i < n; ++i) {
      ceilings[i] = holdback_.by_value
                        ? holdback_.min + (priorities[i] - bottom) / (top - bottom) * range
                        : holdback_.max - static_cast<double>(i) * range / static_cast<double>(n - 1);
    }
  }

 private:
  Holdback holdback_;
};

// Lower priorities get a share of the cycles that shrinks as the saturation grows.
class SoftReflectiveLimiter final : public UsageLimiter {
 public:
  void Limit(double saturation, std::span<const std::int32_t> priorities,
             std::span<double> ceilings) override {
    const std::size_t n = priorities.size();
    if (n < 2) return;
    // The lowest ceiling is 1 - saturation: unless that is reached, all are open, and no call is counted.
    bool open = true;
    if (saturation >= 1) {
      open = false;
    } else if (saturation >= 1 - saturation) {
      // Almost 1 would give a period beyond any integer; then the bands are as good as closed.
      const double period = std::min(std::round(saturation / (1 - saturation)), 1e15);
      open = ++calls_ % static_cast<std::uint64_t>(std::max(period, 1.0)) == 0;
    }
    for (std::size_t i = 1; i < n; ++i) {
      const double ceiling = 1 - static_cast<double>(i) * saturation / static_cast<double>(n - 1);
      ceilings[i] = saturation < ceiling || open ? 1.0 : 0.0;
    }
  }

 private:
  std::uint64_t calls_ = 0;
};

class StaticPolicy final : public Plugin, public UsageLimitPolicy {
 public:
  StaticPolicy(std::string type, std::string name, double threshold)
      : Plugin(std::move(type), std::move(name)), threshold_(threshold) {}
  std::unique_ptr<UsageLimiter> NewLimiter() const override {
    return std::make_unique<StaticLimiter>(threshold_);
  }

 private:
  double threshold_;
};

class HoldbackPolicy final : public Plugin, public UsageLimitPolicy {
 public:
  HoldbackPolicy(std::string type, std::string name, const Holdback& holdback)
      : Plugin(std::move(type), std::move(name)), holdback_(holdback) {}
  std::unique_ptr<UsageLimiter> NewLimiter() const override {
    return std::make_unique<HoldbackLimiter>(holdback_);
  }

 private:
  Holdback holdback_;
};

class SoftReflectivePolicy final : public Plugin, public UsageLimitPolicy {
 public:
  using Plugin::Plugin;
  std::unique_ptr<UsageLimiter> NewLimiter() const override {
    return std::make_unique<SoftReflectiveLimiter>();
  }
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeStatic(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  double threshold = 1.0;
  read.Optional("threshold", &threshold);
  if (!(threshold > 0)) read.Reject("threshold", absl::StrCat(threshold), "more than 0");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<StaticPolicy>(builder.type(), builder.name(), threshold);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeHoldback(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  Holdback holdback;
  std::string shape = "linear";
  std::string domain = "rank";
  double min = std::numeric_limits<double>::quiet_NaN();  // no number that can be given
  read.Optional("minCeiling", &min);
  read.Optional("maxCeiling", &holdback.max);
  read.Optional("shape", &shape);
  read.Optional("domain", &domain);
  if (std::isnan(min)) {
    read.Reject("minCeiling", "missing", "at least 0 and less than 1");
    min = 0;
  }
  if (!(min >= 0 && min < 1)) read.Reject("minCeiling", absl::StrCat(min), "at least 0 and less than 1");
  if (!(holdback.max > 0 && holdback.max <= 1)) {
    read.Reject("maxCeiling", absl::StrCat(holdback.max), "more than 0 and at most 1");
  }
  if (min > holdback.max)
    read.Reject("minCeiling", absl::StrCat(min), absl::StrCat("at most maxCeiling ", holdback.max));
  if (shape != "linear") read.Reject("shape", absl::StrCat("\"", shape, "\""), "linear");
  if (domain != "rank" && domain != "value") {
    read.Reject("domain", absl::StrCat("\"", domain, "\""), "rank or value");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  holdback.min = min;
  holdback.by_value = domain == "value";
  return std::make_unique<HoldbackPolicy>(builder.type(), builder.name(), holdback);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeSoftReflective(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<SoftReflectivePolicy>(builder.type(), builder.name());
}

}  // namespace

void RegisterUsageLimitPolicies(PluginRegistry& registry) {
  MustRegister(registry, kStaticUsageLimitType, MakeStatic);
  MustRegister(registry, "priority-holdback-policy", MakeHoldback, Stability::kExperimental);
  MustRegister(registry, "soft-reflective-ceiling-policy", MakeSoftReflective, Stability::kExperimental);
}

}  // namespace llmd::sched
