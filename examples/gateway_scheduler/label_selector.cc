#include "examples/gateway_scheduler/label_selector.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

std::string_view Strip(std::string_view text) {
  const absl::string_view stripped = absl::StripAsciiWhitespace(ToAbsl(text));
  return {stripped.data(), stripped.size()};
}

// Label keys and values; a key may have a prefix before a slash.
bool IsWord(std::string_view text) {
  return !text.empty() && text.size() <= 317 && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == '/';
  });
}

}  // namespace

absl::StatusOr<LabelSelector::Requirement> LabelSelector::ParseRequirement(std::string_view text) {
  const absl::Status error = absl::InvalidArgumentError(absl::StrCat(
      "label selector: \"", ToAbsl(text.substr(0, 100)),
      "\" is no requirement, expected key=value, key!=value, key in (a,b), key notin (a,b), key or "
      "!key"));
  Requirement requirement;
  if (const std::size_t open = text.find('('); open != std::string_view::npos) {
    if (text.back() != ')') return error;
    const std::string_view head = Strip(text.substr(0, open));
    const std::size_t space = head.find_last_of(" \t");
    if (space == std::string_view::npos) return error;
    const std::string_view verb = head.substr(space + 1);
    if (verb != "in" && verb != "notin") return error;
    requirement.negated = verb == "notin";
    requirement.key = Strip(head.substr(0, space));
    const std::string_view list = text.substr(open + 1, text.size() - open - 2);
    for (const absl::string_view value : absl::StrSplit(ToAbsl(list), ',')) {
      requirement.values.emplace_back(absl::StripAsciiWhitespace(value));
    }
  } else if (const std::size_t equals = text.find('='); equals != std::string_view::npos) {
    requirement.negated = equals > 0 && text[equals - 1] == '!';
    requirement.key = Strip(text.substr(0, equals - (requirement.negated ? 1 : 0)));
    std::size_t value = equals + 1;
    if (!requirement.negated && value < text.size() && text[value] == '=') ++value;
    requirement.values.emplace_back(Strip(text.substr(value)));
  } else {
    requirement.negated = text.starts_with('!');
    requirement.key = Strip(text.substr(requirement.negated ? 1 : 0));
  }
  const bool values_ok = std::all_of(requirement.values.begin(), requirement.values.end(),
                                     [](const std::string& value) { return value.empty() || IsWord(value); });
  if (!IsWord(requirement.key) || !values_ok) return error;
  return requirement;
}

absl::StatusOr<LabelSelector> LabelSelector::Parse(std::string_view text) {
  LabelSelector selector;
  text = Strip(text);
  while (!text.empty()) {
    std::size_t end = text.find(',');
    const std::size_t open = text.find('(');
    if (open < end) end = text.find(',', std::min(text.find(')', open), text.size()));
    absl::StatusOr<Requirement> requirement = ParseRequirement(Strip(text.substr(0, end)));
    if (!requirement.ok()) return requirement.status();
    selector.requirements_.push_back(*std::move(requirement));
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  return selector;
}

bool LabelSelector::Matches(const sched::Labels& labels) const {
  return std::all_of(requirements_.begin(), requirements_.end(), [&](const Requirement& requirement) {
    const auto label = labels.find(requirement.key);
    bool holds = label != labels.end();
    if (holds && !requirement.values.empty()) {
      holds = std::find(requirement.values.begin(), requirement.values.end(), label->second) !=
              requirement.values.end();
    }
    return holds != requirement.negated;
  });
}

}  // namespace llmd::host
