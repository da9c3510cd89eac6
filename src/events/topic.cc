#include "llmd/events/topic.h"

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::events {

Topic ParseTopic(std::string_view topic) {
  const std::size_t first = topic.find('@');
  if (first == std::string_view::npos) return {topic, {}};
  const std::size_t second = topic.find('@', first + 1);
  if (second == std::string_view::npos) return {topic, {}};
  return {topic.substr(first + 1, second - first - 1), topic.substr(second + 1)};
}

std::string MakeTopic(std::string_view pod, std::string_view model) {
  return absl::StrCat(ToAbsl(kTopicPrefix), ToAbsl(pod), "@", ToAbsl(model));
}

bool IsPseudoPod(std::string_view pod) { return pod == "SHARED_STORAGE" || pod == "OBJECT_STORE"; }

}  // namespace llmd::events
