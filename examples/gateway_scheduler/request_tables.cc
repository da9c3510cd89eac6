#include "examples/gateway_scheduler/request_tables.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace llmd::host {

RewriteTable::RewriteTable(std::vector<RewriteObject> objects) : objects_(std::move(objects)) {
  std::sort(objects_.begin(), objects_.end(), [](const RewriteObject& a, const RewriteObject& b) {
    return std::tie(a.created, a.name) < std::tie(b.created, b.name);
  });
  for (std::uint32_t i = 0; i < objects_.size(); ++i) {
    for (std::uint32_t j = 0; j < objects_[i].rules.size(); ++j) {
      const RewriteRule& rule = objects_[i].rules[j];
      if (rule.targets.empty()) continue;
      if (rule.generic && !generic_) generic_ = Place{i, j};
      for (const std::string& model : rule.models) exact_.try_emplace(model, Place{i, j});
    }
  }
}

std::optional<RewriteTable::Choice> RewriteTable::Choose(std::string_view model, Random& random) const {
  const auto exact = exact_.find(model);
  if (exact == exact_.end() && !generic_) return std::nullopt;
  const Place place = exact == exact_.end() ? *generic_ : exact->second;
  const RewriteObject& object = objects_[place.object];
  const std::vector<RewriteTarget>& targets = object.rules[place.rule].targets;
  std::uint64_t total = 0;
  for (const RewriteTarget& target : targets) total += target.weight.value_or(0);
  if (total == 0) return Choice{targets[random.Below(targets.size())].model, object.name};
  const std::uint64_t r = random.Below(total);
  std::uint64_t sum = 0;
  for (const RewriteTarget& target : targets) {
    sum += target.weight.value_or(0);
    if (r < sum) return Choice{target.model, object.name};
  }
  return std::nullopt;  // not reached: r < total
}

}  // namespace llmd::host
