// Topics of KV-event messages: kv@<pod-id>@<model>.
//
// The pod id is normally the address:port that the router scores. A model name may contain '@': only the
// first two separate. A topic of any other shape is taken as a pod id without a model. Storage tiers publish
// under a pseudo pod. The views point into the topic that was parsed. Threads: pure functions.
#ifndef LLMD_EVENTS_TOPIC_H_
#define LLMD_EVENTS_TOPIC_H_

#include <string>
#include <string_view>

namespace llmd::events {

// What to subscribe to.
inline constexpr std::string_view kTopicPrefix = "kv@";

struct Topic {
  std::string_view pod;
  std::string_view model;  // empty when the topic does not say
};

Topic ParseTopic(std::string_view topic);

std::string MakeTopic(std::string_view pod, std::string_view model);

// True for SHARED_STORAGE and OBJECT_STORE: not an endpoint that can be picked, but a tier that all of them
// reach.
bool IsPseudoPod(std::string_view pod);

}  // namespace llmd::events

#endif  // LLMD_EVENTS_TOPIC_H_
