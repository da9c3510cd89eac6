// The HTTP request for a planned one.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_REQUEST_BODY_H_
#define LLMD_EXAMPLES_LLMD_LOAD_REQUEST_BODY_H_

#include <string>
#include <utility>
#include <vector>

#include "examples/http/message.h"
#include "examples/llmd_load/plan.h"
#include "examples/llmd_load/runner.h"

namespace llmd::load {

// Role and text.
using Conversation = std::vector<std::pair<std::string, std::string>>;

http::Request MakeRequest(Api api, const Conversation& conversation, std::uint32_t max_tokens,
                          const std::string& session, const RunOptions& options);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_REQUEST_BODY_H_
