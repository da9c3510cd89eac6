// Plugins on one named number of the endpoint, attached by an engine-specific extractor:
// endpoint-attribute-scorer, endpoint-attribute-filter. (spec: scheduling.md 2.1, 2.4)
//
// A number that is absent, not finite, or does not count (freshness.h) is missing.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/freshness.h"

namespace llmd::sched {
namespace {

constexpr std::string_view kMetricsExtractorType = "core-metrics-extractor";

class AttributeSource {
 public:
  AttributeSource(std::string attribute, FreshnessPolicy freshness)
      : attribute_(std::move(attribute)), freshness_(freshness) {}

  FreshnessPolicy::Rule At(absl::Time now) const { return freshness_.At(now); }
  std::optional<double> Get(const Endpoint& endpoint, const FreshnessPolicy::Rule& fresh) const {
    const Attribute* attribute = endpoint.FindAttribute(attribute_);
    if (attribute == nullptr || !fresh.Counts(attribute->sample) || !std::isfinite(attribute->sample.value)) {
      return std::nullopt;
    }
    return attribute->sample.value;
  }

 private:
  std::string attribute_;
  FreshnessPolicy freshness_;
};

// An attribute is found by its name alone, whoever attached it.
AttributeSource ReadSource(PluginBuilder& builder, ParameterReader& read, std::string_view field) {
  std::string attribute;
  std::string producer;
  read.Optional(field, &attribute);
  read.Optional("producer", &producer);
  if (attribute.empty()) read.Reject(field, "missing", "the name of an attribute");
  if (!producer.empty() && producer != kMetricsExtractorType) {
    builder.Warn(absl::StrCat(builder.name(), ": producer has no effect, attributes are found by name"));
  }
  return AttributeSource(std::move(attribute), FreshnessPolicy::Read(builder, read));
}

struct Range {
  double min;
  double max;

  // Where the value lies, 0..1; 1 for an empty range. Halves cannot overflow.
  double PlaceOf(double value) const {
    const double width = max / 2 - min / 2;
    return width > 0 ? std::clamp((value / 2 - min / 2) / width, 0.0, 1.0) : 1.0;
  }
};

class EndpointAttributeScorer final : public Plugin, public Scorer {
 public:
  EndpointAttributeScorer(std::string type, std::string name, AttributeSource source, bool lower_is_better,
                          std::optional<Range> fixed)
      : Plugin(std::move(type), std::move(name)),
        source_(std::move(source)),
        lower_is_better_(lower_is_better),
        fixed_(fixed) {}

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    const FreshnessPolicy::Rule fresh = source_.At(context.now);
    constexpr double kInf = std::numeric_limits<double>::infinity();
    Range seen{kInf, -kInf};
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::optional<double> value = source_.Get(context.pool[candidates[i]], fresh);
      if (!value) continue;
      scores[i] = *value;
      seen = {std::min(seen.min, *value), std::max(seen.max, *value)};
    }
    const Range range = fixed_.value_or(seen);
    for (double& score : scores) {
      if (score != score) {
        score = 0;
      } else if (range.min == range.max) {
        score = 1;
      } else {
        score = lower_is_better_ ? 1 - range.PlaceOf(score) : range.PlaceOf(score);
      }
    }
  }

 private:
  AttributeSource source_;
  bool lower_is_better_;
  std::optional<Range> fixed_;  // nullopt: of the candidates' values
};

enum class Operator { kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kEqual, kNotEqual };

class EndpointAttributeFilter final : public Plugin, public Filter {
 public:
  struct Options {
    Operator op = Operator::kLess;
    double limit = 0;
    bool keeps_missing = true;
    bool fallback_on_empty = false;
  };

  EndpointAttributeFilter(std::string type, std::string name, AttributeSource source, const Options& options)
      : Plugin(std::move(type), std::move(name)), source_(std::move(source)), options_(options) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const FreshnessPolicy::Rule fresh = source_.At(context.now);
    bool any = false;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::optional<double> value = source_.Get(context.pool[candidates[i]], fresh);
      if (!value && !options_.keeps_missing) {
        dropped[i] = "attribute is missing";
      } else if (value && !Accepts(*value)) {
        dropped[i] = "attribute is beyond the threshold";
      } else {
        any = true;
      }
    }
    if (!any && options_.fallback_on_empty) std::fill(dropped.begin(), dropped.end(), nullptr);
  }

 private:
  bool Accepts(double value) const {
    switch (options_.op) {
      case Operator::kLess:
        return value < options_.limit;
      case Operator::kLessOrEqual:
        return value <= options_.limit;
      case Operator::kGreater:
        return value > options_.limit;
      case Operator::kGreaterOrEqual:
        return value >= options_.limit;
      case Operator::kEqual:
        return value == options_.limit;
      case Operator::kNotEqual:
        return value != options_.limit;
    }
    return false;
  }

  AttributeSource source_;
  Options options_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeScorer(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  AttributeSource source = ReadSource(builder, read, "attributeKey");
  ParameterReader algorithm = read.Nested("algorithm");
  std::string type;
  algorithm.Optional("type", &type);
  const bool lower_is_better = type == "linear_lower_is_better";
  if (!lower_is_better && type != "linear_higher_is_better") {
    algorithm.Reject("type", absl::StrCat("\"", type, "\""),
                     "linear_lower_is_better or linear_higher_is_better");
  }
  ParameterReader normalization = algorithm.Nested("normalization");
  ParameterReader adaptive = normalization.Nested("adaptiveRange");
  ParameterReader limits = normalization.Nested("fixedRange");
  std::optional<Range> fixed;
  if (normalization.Raw("fixedRange") != nullptr) {
    fixed = Range{0, 0};
    limits.Optional("min", &fixed->min);
    limits.Optional("max", &fixed->max);
    if (!(fixed->min < fixed->max)) {
      limits.Reject("max", absl::StrCat(fixed->max), absl::StrCat("more than min, ", fixed->min));
    }
    if (normalization.Raw("adaptiveRange") != nullptr) {
      normalization.Reject("adaptiveRange", "given", "none beside fixedRange");
    }
  }
  for (ParameterReader* reader : {&read, &algorithm, &normalization, &adaptive, &limits}) {
    if (absl::Status status = reader->Finish(); !status.ok()) return status;
  }
  return std::make_unique<EndpointAttributeScorer>(builder.type(), builder.name(), std::move(source),
                                                   lower_is_better, fixed);
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeFilter(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  EndpointAttributeFilter::Options options;
  AttributeSource source = ReadSource(builder, read, "attribute");
  std::string on_missing = "Pass";
  read.Optional("onMissing", &on_missing);
  read.Optional("fallbackOnEmpty", &options.fallback_on_empty);
  options.keeps_missing = on_missing == "Pass";
  if (!options.keeps_missing && on_missing != "Fail") {
    read.Reject("onMissing", absl::StrCat("\"", on_missing, "\""), "Pass or Fail");
  }
  ParameterReader algorithm = read.Nested("algorithm");
  std::string type;
  algorithm.Optional("type", &type);
  if (type != "threshold") algorithm.Reject("type", absl::StrCat("\"", type, "\""), "threshold");
  ParameterReader threshold = algorithm.Nested("threshold");
  std::string name;
  threshold.Optional("operator", &name);
  threshold.Optional("value", &options.limit);
  constexpr std::string_view kNames[] = {"LessThan",           "LessThanOrEqual", "GreaterThan",
                                         "GreaterThanOrEqual", "Equal",           "NotEqual"};
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) {
    threshold.Reject("operator", absl::StrCat("\"", name, "\""),
                     "LessThan, LessThanOrEqual, GreaterThan, GreaterThanOrEqual, Equal or NotEqual");
  }
  options.op = static_cast<Operator>(found - std::begin(kNames));
  for (ParameterReader* reader : {&read, &algorithm, &threshold}) {
    if (absl::Status status = reader->Finish(); !status.ok()) return status;
  }
  return std::make_unique<EndpointAttributeFilter>(builder.type(), builder.name(), std::move(source),
                                                   options);
}

}  // namespace

void RegisterEndpointAttribute(PluginRegistry& registry) {
  MustRegister(registry, "endpoint-attribute-scorer", MakeScorer, Stability::kExperimental);
  MustRegister(registry, "endpoint-attribute-filter", MakeFilter, Stability::kExperimental);
}

}  // namespace llmd::sched
