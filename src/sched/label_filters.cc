// Filters on labels: label-selector-filter (and its old name by-label-selector), by-label. (spec:
// scheduling.md 2.1)
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// One condition of a Kubernetes label selector.
struct Requirement {
  enum class Operator { kIn, kNotIn, kExists, kDoesNotExist };

  std::string key;
  Operator op = Operator::kIn;
  std::vector<std::string> values;

  bool Matches(const std::string* value) const {
    switch (op) {
      case Operator::kIn:
        return value != nullptr && std::find(values.begin(), values.end(), *value) != values.end();
      case Operator::kNotIn:
        return value == nullptr || std::find(values.begin(), values.end(), *value) == values.end();
      case Operator::kExists:
        return value != nullptr;
      case Operator::kDoesNotExist:
        return value == nullptr;
    }
    return false;
  }
};

// Keeps the endpoints that meet every requirement; without any, all.
class LabelSelectorFilter final : public Plugin, public Filter {
 public:
  LabelSelectorFilter(std::string type, std::string name, std::vector<Requirement> requirements)
      : Plugin(std::move(type), std::move(name)), requirements_(std::move(requirements)) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Endpoint& endpoint = context.pool[candidates[i]];
      for (const Requirement& requirement : requirements_) {
        if (requirement.Matches(endpoint.FindLabel(requirement.key))) continue;
        dropped[i] = "labels do not match the selector";
        break;
      }
    }
  }

 private:
  std::vector<Requirement> requirements_;
};

class ByLabelFilter final : public Plugin, public Filter {
 public:
  ByLabelFilter(std::string type, std::string name, std::string label, std::vector<std::string> values,
                bool allow_none)
      : Plugin(std::move(type), std::move(name)),
        label_(std::move(label)),
        values_(std::move(values)),
        allow_none_(allow_none) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::string* value = context.pool[candidates[i]].FindLabel(label_);
      if (value == nullptr) {
        if (!allow_none_) dropped[i] = "label is missing";
      } else if (std::find(values_.begin(), values_.end(), *value) == values_.end()) {
        dropped[i] = "label has another value";
      }
    }
  }

 private:
  std::string label_;
  std::vector<std::string> values_;
  bool allow_none_;
};

absl::StatusOr<Requirement> ParseExpression(ParameterReader& read) {
  Requirement requirement;
  std::string op;
  read.Optional("key", &requirement.key);
  read.Optional("operator", &op);
  read.Optional("values", &requirement.values);
  if (requirement.key.empty()) read.Reject("key", "missing", "a label name");
  bool takes_values = false;
  if (op == "In") {
    takes_values = true;
  } else if (op == "NotIn") {
    requirement.op = Requirement::Operator::kNotIn;
    takes_values = true;
  } else if (op == "Exists") {
    requirement.op = Requirement::Operator::kExists;
  } else if (op == "DoesNotExist") {
    requirement.op = Requirement::Operator::kDoesNotExist;
  } else {
    read.Reject("operator", absl::StrCat("\"", op, "\""), "In, NotIn, Exists or DoesNotExist");
  }
  if (takes_values && requirement.values.empty())
    read.Reject("values", "empty", absl::StrCat("values for ", op));
  if (!takes_values && !requirement.values.empty())
    read.Reject("values", "given", absl::StrCat("none for ", op));
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return requirement;
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeLabelSelector(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::vector<Requirement> requirements;
  ParameterReader labels = read.Nested("matchLabels");
  if (const Value* map = read.Raw("matchLabels"); map != nullptr && map->AsMap() != nullptr) {
    for (const auto& [key, unused] : *map->AsMap()) {
      std::string value;
      labels.Optional(key, &value);
      requirements.push_back({key, Requirement::Operator::kIn, {value}});
    }
  }
  if (absl::Status status = labels.Finish(); !status.ok()) return status;
  const Value::List* expressions = read.OptionalList("matchExpressions");
  for (std::size_t i = 0; expressions != nullptr && i < expressions->size(); ++i) {
    ParameterReader expression = read.NestedItem("matchExpressions", i, (*expressions)[i]);
    absl::StatusOr<Requirement> requirement = ParseExpression(expression);
    if (!requirement.ok()) return requirement.status();
    requirements.push_back(*std::move(requirement));
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<LabelSelectorFilter>(builder.type(), builder.name(), std::move(requirements));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeByLabel(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string label;
  std::vector<std::string> values;
  bool allow_none = false;
  read.Optional("label", &label);
  read.Optional("validValues", &values);
  read.Optional("allowsNoLabel", &allow_none);
  if (label.empty()) read.Reject("label", "missing", "a label name");
  if (values.empty() && !allow_none) read.Reject("validValues", "empty", "values, or allowsNoLabel");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<ByLabelFilter>(builder.type(), builder.name(), std::move(label), std::move(values),
                                         allow_none);
}

}  // namespace

void RegisterLabelFilters(PluginRegistry& registry) {
  MustRegister(registry, "label-selector-filter", MakeLabelSelector);
  MustRegister(registry, "by-label-selector", MakeLabelSelector, Stability::kDeprecated,
               "label-selector-filter");
  MustRegister(registry, "by-label", MakeByLabel, Stability::kDeprecated, "label-selector-filter");
}

}  // namespace llmd::sched
