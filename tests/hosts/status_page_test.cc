// The status page and /metrics over real sockets.
#include "examples/gateway_scheduler/status_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/metrics_endpoint.h"
#include "nlohmann/json.hpp"
#include "tests/hosts/http_bed.h"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Answer {
  int status = 0;
  http::Headers headers;
  std::string body;
};

// One request on a connection of its own.
Answer Get(http::Loop& loop, std::uint16_t port, std::string target, http::Headers headers = http::Headers(),
           std::string method = "GET") {
  return loop.Run(
      [](http::asio::io_context& io, std::string address,
         http::Request request) -> http::asio::awaitable<Answer> {
        http::Client client(io.get_executor(), http::ClientOptions());
        std::unique_ptr<http::ClientResponse> response = co_await client.Send(address, std::move(request));
        Answer answer;
        answer.status = response->status();
        answer.headers = response->headers();
        answer.body = co_await response->ReadAll(1 << 20);
        co_return answer;
      }(loop.io(), absl::StrCat("127.0.0.1:", port),
                                http::Request(std::move(method), std::move(target), std::move(headers), "")));
}

class StatusPageTest : public ::testing::Test {
 protected:
  ~StatusPageTest() override {
    if (page_ != nullptr) page_->Stop();
    loop_.Join();
  }

  void Open(std::size_t max_streams = 4) {
    auto page = StatusPage::Create(
        loop_.io(), {.max_streams = max_streams, .interval = std::chrono::milliseconds(50)},
        [this] {
          HostState state{.now = kStart, .started = kStart, .pool = "pool", .condition = "ready"};
          state.traffic.decided = ++collected_;
          state.config = "kind: \xff";
          state.warnings = {"mind this"};
          FillEndpoints(*host_.pool.snapshot(), kStart, absl::Seconds(2), state);
          return state;
        },
        &history_);
    ASSERT_TRUE(page.ok()) << page.status();
    page_ = *std::move(page);
  }

  ScriptedHost host_{2};
  DecisionHistory history_;
  std::atomic<std::uint64_t> collected_ = 0;
  http::Loop loop_;
  std::unique_ptr<StatusPage> page_;
};

TEST_F(StatusPageTest, ThePageAllowsNoScriptButItsOwn) {
  Open();
  const Answer first = Get(loop_, page_->port(), "/");
  const Answer second = Get(loop_, page_->port(), "/");
  EXPECT_EQ(first.status, 200);
  const std::string policy = *http::FindHeader(first.headers, "content-security-policy");
  EXPECT_THAT(policy, HasSubstr("default-src 'none'"));
  const std::size_t at = policy.find("script-src 'nonce-") + 18;
  const std::string nonce = policy.substr(at, policy.find('\'', at) - at);
  EXPECT_EQ(nonce.size(), 32u);
  EXPECT_THAT(first.body, HasSubstr(absl::StrCat("<script nonce=\"", nonce, "\">")));
  EXPECT_THAT(first.body, Not(HasSubstr("{{nonce}}")));
  EXPECT_THAT(second.body, Not(HasSubstr(nonce)));
  EXPECT_THAT(first.body, Not(HasSubstr("innerHTML")));
  for (const char* outside : {"src=\"http", "href=\"http", "@import", "url(http"}) {
    EXPECT_THAT(first.body, Not(HasSubstr(outside)));
  }
  EXPECT_EQ(*http::FindHeader(first.headers, "x-content-type-options"), "nosniff");
}

TEST_F(StatusPageTest, StateConfigurationAndDecisions) {
  Open();
  host_.Schedule(history_, {.id = "r-7"});
  const Answer answer = Get(loop_, page_->port(), "/api/state");
  EXPECT_EQ(*http::FindHeader(answer.headers, "content-type"), "application/json");
  const auto state = nlohmann::json::parse(answer.body);
  EXPECT_EQ(state["pool"], "pool");
  EXPECT_EQ(state["endpoints"].size(), 2u);
  EXPECT_EQ(state["endpoints"][0]["role"], "decode");
  EXPECT_TRUE(state["endpoints"][0]["metrics_age"].is_null());
  EXPECT_EQ(state["decisions"][0]["request_id"], "r-7");
  EXPECT_TRUE(state["flow_control"].is_null());
  const auto configuration = nlohmann::json::parse(Get(loop_, page_->port(), "/api/configuration").body);
  EXPECT_EQ(configuration["text"], "kind: \uFFFD");
  EXPECT_EQ(configuration["warnings"][0], "mind this");
  EXPECT_EQ(configuration["configuration"], state["configuration"]);
  const auto decision = nlohmann::json::parse(Get(loop_, page_->port(), "/api/decisions/1").body);
  EXPECT_EQ(decision["request_id"], "r-7");
  EXPECT_EQ(decision["profiles"][0]["state"], "done");
}

TEST_F(StatusPageTest, OtherPathsAndMethods) {
  Open();
  EXPECT_EQ(Get(loop_, page_->port(), "/healthz").body, "ok\n");
  for (const char* path :
       {"/api/decisions/1", "/api/decisions/", "/api/decisions/-1", "/api/decisions/99999999999999999999",
        "/api/decisions/1x", "/../etc/passwd", "/status_page.html"}) {
    EXPECT_EQ(Get(loop_, page_->port(), path).status, 404) << path;
  }
  EXPECT_EQ(Get(loop_, page_->port(), "/api/state", http::Headers(), "POST").status, 405);
}

// Reads events until `count` snapshots are there.
http::asio::awaitable<std::string> ReadEvents(http::asio::io_context& io, std::string address, int count) {
  http::Client client(io.get_executor(), http::ClientOptions());
  std::unique_ptr<http::ClientResponse> response =
      co_await client.Send(address, http::Request("GET", "/events", http::Headers(), ""));
  std::string text;
  for (int seen = 0; seen < count;) {
    std::optional<std::string> piece = co_await response->Read();
    if (!piece) break;
    text.append(*piece);
    seen = 0;
    for (std::size_t at = 0; (at = text.find("event: state\n", at)) != std::string::npos; ++at) ++seen;
  }
  co_return text;
}

TEST_F(StatusPageTest, EventsCarryNewSnapshotsAndEndWithTheClient) {
  Open();
  const std::string text = loop_.Run(ReadEvents(loop_.io(), absl::StrCat("127.0.0.1:", page_->port()), 3));
  EXPECT_THAT(text, HasSubstr("retry: 2000\n\n"));
  EXPECT_THAT(text, HasSubstr("\"decided\":1,"));
  EXPECT_THAT(text, HasSubstr("\"decided\":2,"));
  EXPECT_TRUE(http::Eventually([&] { return page_->streams() == 0; }));
}

TEST_F(StatusPageTest, StreamsAreBounded) {
  Open(/*max_streams=*/1);
  auto held = http::asio::co_spawn(loop_.io(),
                                   ReadEvents(loop_.io(), absl::StrCat("127.0.0.1:", page_->port()), 1000000),
                                   http::asio::use_future);
  ASSERT_TRUE(http::Eventually([&] { return page_->streams() == 1; }));
  const Answer refused = Get(loop_, page_->port(), "/events");
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(http::FindHeader(refused.headers, "retry-after"), nullptr);
  EXPECT_EQ(Get(loop_, page_->port(), "/healthz").status, 200);
  page_->Stop();
  EXPECT_ANY_THROW(held.get());  // the stream breaks off
}

TEST(MetricsEndpointTest, OpenOrWithAToken) {
  ScriptedHost host(1);
  const Telemetry telemetry({}, host.pool);
  http::Loop loop;
  {
    http::ServerBed open(MetricsHandler(telemetry, {}));
    const Answer answer = Get(loop, open.server().port(), "/metrics");
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(*http::FindHeader(answer.headers, "content-type"), "text/plain; version=0.0.4; charset=utf-8");
    EXPECT_THAT(answer.body, HasSubstr("llm_d_epp_ready_endpoints{name=\"default\"} 1\n"));
    EXPECT_EQ(Get(loop, open.server().port(), "/").status, 404);
    EXPECT_EQ(Get(loop, open.server().port(), "/metrics", http::Headers(), "POST").status, 405);
  }
  const std::string file =
      (std::filesystem::temp_directory_path() / absl::StrCat("llmd_token_", ::getpid())).string();
  http::ServerBed guarded(MetricsHandler(telemetry, {.token_file = file}));
  const auto status = [&](const std::string& authorization) {
    http::Headers headers;
    if (!authorization.empty()) headers.emplace_back("authorization", authorization);
    return Get(loop, guarded.server().port(), "/metrics", std::move(headers)).status;
  };
  std::filesystem::remove(file);
  EXPECT_EQ(status("Bearer "), 401);  // no file: nobody may
  std::ofstream(file) << "\n";
  EXPECT_EQ(status("Bearer "), 401);  // an empty token is none
  std::ofstream(file) << "secret\n";
  EXPECT_EQ(status("Bearer secret"), 200);
  EXPECT_EQ(status("bearer secret"), 200);
  for (const char* wrong :
       {"", "secret", "Bearer", "Bearer secre", "Bearer secrets", "Bearer secretsecret", "Basic secret"}) {
    EXPECT_EQ(status(wrong), 401) << wrong;
  }
  std::ofstream(file) << "rotated";
  EXPECT_EQ(status("Bearer secret"), 401);
  EXPECT_EQ(status("Bearer rotated"), 200);
  std::filesystem::remove(file);
}

}  // namespace
}  // namespace llmd::host
