#include "examples/llmd_load/request_body.h"

#include <nlohmann/json.hpp>

namespace llmd::load {

http::Request MakeRequest(Api api, const Conversation& conversation, std::uint32_t max_tokens,
                          const std::string& session, const RunOptions& options) {
  nlohmann::ordered_json body = {{"model", options.model}};
  if (api == Api::kChat) {
    auto& messages = body["messages"] = nlohmann::ordered_json::array();
    for (const auto& [role, text] : conversation) messages.push_back({{"role", role}, {"content", text}});
  } else {
    std::string prompt;
    for (const auto& [role, text] : conversation) prompt += text;
    body["prompt"] = std::move(prompt);
  }
  body["max_tokens"] = max_tokens;
  body["temperature"] = 0;
  body["top_p"] = 1;
  body["seed"] = options.sampling_seed;
  body["stream"] = options.stream;
  if (options.stream) body["stream_options"] = {{"include_usage", true}};

  http::Request request;
  request.method = "POST";
  request.target = options.target.base + (api == Api::kChat ? "/v1/chat/completions" : "/v1/completions");
  request.headers = {{"content-type", "application/json"},
                     {"accept", options.stream ? "text/event-stream" : "application/json"},
                     {"user-agent", "llmd_load"}};
  if (!options.test_id.empty()) request.headers.emplace_back("x-test-id", options.test_id);
  if (!session.empty()) {
    if (options.session_header) request.headers.emplace_back("session-id", session);
    if (options.session_x_header) request.headers.emplace_back("x-session-id", session);
    // In the spelling of the seed's test client; the picker reads both.
    if (options.session_cookie) request.headers.emplace_back("cookie", "session_id=" + session);
  }
  request.headers.insert(request.headers.end(), options.headers.begin(), options.headers.end());
  request.body = body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  return request;
}

}  // namespace llmd::load
