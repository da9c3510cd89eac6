// Looks at a request's raw JSON for what its tokens depend on. The JSON must have been validated before
// (gateway::OpenAiParser does); the scan is then exact. Free functions, any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_REQUEST_SHAPE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_REQUEST_SHAPE_H_

#include <string>
#include <string_view>
#include <vector>

namespace llmd::host {

// Members of the body that may change tokens and that gateway::OpenAiRequest does not tell of, as they stand
// there: every one whose name is not known to have no influence. Empty for most requests.
std::string OtherTokenOptions(std::string_view body);

struct RawMessage {
  std::string_view json = {};
  // Nothing but "role" and a "content" that is a string, which does not speak of thinking: templates render
  // such a message the same wherever in a conversation it stands.
  bool simple = false;
};

// The elements of `raw_messages`.
std::vector<RawMessage> SplitMessages(std::string_view raw_messages);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_REQUEST_SHAPE_H_
