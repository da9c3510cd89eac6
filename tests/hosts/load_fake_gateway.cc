#include "tests/hosts/load_fake_gateway.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace llmd::load {
namespace {

constexpr std::size_t kWorkers = 3;
constexpr double kPromptTokens = 100;

std::string Event(const nlohmann::json& event) { return "data: " + event.dump() + "\n\n"; }

nlohmann::json UsageOf(int words, double cached) {
  return {{"prompt_tokens", kPromptTokens},
          {"completion_tokens", words},
          {"total_tokens", kPromptTokens + words},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

std::string WordEvent(bool chat, int i) {
  const std::string word = absl::StrCat("word", i, " ");
  const nlohmann::json choice =
      chat ? nlohmann::json{{"delta", {{"content", word}}}} : nlohmann::json{{"text", word}};
  return Event({{"choices", nlohmann::json::array({choice})}});
}

std::string ErrorEvent() { return Event({{"error", {{"message", "engine died"}}}}); }

std::string UsageEvent(const nlohmann::json& usage) {
  return Event({{"choices", nlohmann::json::array()}, {"usage", usage}}) + "data: [DONE]\n\n";
}

std::string Document(bool chat, const nlohmann::json& usage) {
  const nlohmann::json choice =
      chat ? nlohmann::json{{"message", {{"content", "all of it"}}}} : nlohmann::json{{"text", "all of it"}};
  const nlohmann::json answer = {{"choices", nlohmann::json::array({choice})}, {"usage", usage}};
  return answer.dump();
}

class Busy {
 public:
  Busy(std::mutex& mutex, std::size_t& now, std::size_t& most) : mutex_(mutex), now_(now) {
    const std::lock_guard lock(mutex_);
    most = std::max(most, ++now_);
  }
  ~Busy() {
    const std::lock_guard lock(mutex_);
    --now_;
  }

 private:
  std::mutex& mutex_;
  std::size_t& now_;
};

}  // namespace

FakeGateway::FakeGateway(FakeBehaviour behaviour)
    : behaviour_(behaviour), bed_([this](http::Request request, http::Response& response) {
        return Handle(std::move(request), response);
      }) {}

http::asio::awaitable<void> FakeGateway::Handle(http::Request request, http::Response& response) {
  if (request.path() == "/v1/models") {
    co_await response.Send(200, http::ContentType("application/json"), R"({"data":[{"id":"fake-model"}]})");
    co_return;
  }
  if (request.path() == "/metrics") {
    std::string page;
    {
      const std::lock_guard lock(mutex_);
      page = absl::StrCat("vllm:prefix_cache_queries_total{model_name=\"fake-model\"} ", queries_, "\n",
                          "vllm:prefix_cache_hits_total{model_name=\"fake-model\"} ", hits_, "\n");
    }
    co_await response.Send(200, http::ContentType("text/plain"), std::move(page));
    co_return;
  }
  co_await Complete(std::move(request), response);
}

http::asio::awaitable<void> FakeGateway::Complete(http::Request request, http::Response& response) {
  const Busy busy(mutex_, now_, most_);
  std::size_t number = 0;
  double cached = 0;
  {
    const std::lock_guard lock(mutex_);
    seen_.push_back({std::string(request.path()), request.body, request.headers});
    number = seen_.size();
    cached = behaviour_.caches && caches_[request.body]++ > 0 ? 96 : 0;
    queries_ += kPromptTokens;
    hits_ += cached;
  }
  const auto each = [&](int every) { return every > 0 && number % static_cast<std::size_t>(every) == 0; };
  if (each(behaviour_.refuse_every)) {
    http::Headers headers = http::ContentType("text/plain");
    headers.emplace_back("x-llm-d-request-dropped-reason", "rejected-no-endpoints");
    co_await response.Send(503, std::move(headers), "inference error: ServiceUnavailable - none");
    co_return;
  }
  http::asio::steady_timer timer(co_await http::asio::this_coro::executor);
  timer.expires_after(each(behaviour_.hang_every)
                          ? std::chrono::nanoseconds(std::chrono::hours(1))
                          : std::chrono::nanoseconds(static_cast<std::int64_t>(behaviour_.seconds * 1e9)));
  co_await timer.async_wait(http::asio::use_awaitable);

  const nlohmann::json body = nlohmann::json::parse(request.body);
  const bool chat = request.path() == "/v1/chat/completions";
  const std::string* session = http::FindHeader(request.headers, "x-session-id");
  const std::size_t worker =
      behaviour_.sticky && session ? std::hash<std::string>()(*session) % kWorkers : number % kWorkers;
  http::Headers headers =
      http::ContentType(body["stream"] == true ? "text/event-stream" : "application/json");
  if (behaviour_.upstream_header)
    headers.emplace_back("x-upstream-host", absl::StrCat("10.0.0.", worker + 1, ":8000"));
  const nlohmann::json usage = UsageOf(behaviour_.words, cached);
  if (body["stream"] != true) {
    co_await response.Send(200, std::move(headers), Document(chat, usage));
    co_return;
  }
  co_await response.Start(200, std::move(headers));
  for (int i = 0; i < behaviour_.words; ++i) {
    const std::string event = behaviour_.error_event && i == 1 ? ErrorEvent() : WordEvent(chat, i);
    co_await response.Write(event);
    if (each(behaviour_.break_every)) {
      response.Abort();
      co_return;
    }
  }
  const std::string last = UsageEvent(usage);
  co_await response.Write(last);
  co_await response.Finish();
}

}  // namespace llmd::load
