// The standalone proxy: what reaches the worker, what comes back, and who hears of an end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "tests/hosts/proxy_bed.h"
#include "tests/hosts/session_bed.h"

namespace llmd::host {
namespace {

using gateway::CompletionCause;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kCompletion[] = R"({"model":"m","prompt":"hello",  "x":1.50})";

// A port that nobody listens on.
std::string DeadHostPort() {
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  return "127.0.0.1:" + std::to_string(acceptor.local_endpoint().port());
}

TEST(HttpProxyTest, BothMessagesArriveAsTheyWereSent) {
  TestWorker worker([](http::Request, http::Response& response) -> asio::awaitable<void> {
    http::Headers headers;
    headers.emplace_back("content-type", "application/json");
    headers.emplace_back("x-from-worker", "a");
    headers.emplace_back("x-from-worker", "b");
    headers.emplace_back("x-upstream-host", "forged");
    co_await response.Send(201, headers, "{\"id\": \"\xc3\xa9\"}");
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  http::Headers headers = {{"x-custom", "1"},
                           {"x-custom", "2"},
                           {"x-forwarded-for", "9.9.9.9"},
                           {"connection", "x-private, keep-alive"},
                           {"x-private", "hop"},
                           {"te", "trailers"},
                           {"upgrade", "h2c"},
                           {"host", "models.example"},
                           {"x-prefiller-host-port", "evil:1"}};
  const Answer answer = bed.Ask(Post("/v1/completions?a=b", kCompletion, headers));
  EXPECT_EQ(answer.status, 201);
  EXPECT_EQ(answer.body, "{\"id\": \"\xc3\xa9\"}");
  EXPECT_EQ(answer.Header("x-upstream-host"), worker.host_port());
  EXPECT_EQ(answer.Header("content-length"), std::to_string(answer.body.size()));
  EXPECT_EQ(answer.Header("x-went-into-resp-headers"), "true");
  EXPECT_EQ(std::count_if(answer.headers.begin(), answer.headers.end(),
                          [](const auto& header) { return header.first == "x-from-worker"; }),
            2);

  ASSERT_EQ(worker.requests().size(), 1u);
  const http::Request seen = worker.requests()[0];
  EXPECT_EQ(seen.method, "POST");
  EXPECT_EQ(seen.target, "/v1/completions?a=b");
  EXPECT_EQ(seen.body, kCompletion) << "byte for byte";
  std::multiset<std::string> lines;
  for (const auto& [name, value] : seen.headers) lines.insert(name + ": " + value);
  for (const char* line : {"x-custom: 1", "x-custom: 2", "host: models.example",
                           "x-forwarded-for: 9.9.9.9, 127.0.0.1", "content-type: application/json"}) {
    EXPECT_EQ(lines.count(line), 1u) << line;
  }
  EXPECT_EQ(lines.count("x-gateway-destination-endpoint: " + worker.host_port()), 1u);
  EXPECT_NE(http::FindHeader(seen.headers, "x-request-id"), nullptr);
  for (const char* name : {"x-private", "te", "upgrade", "connection", "x-prefiller-host-port"}) {
    EXPECT_EQ(http::FindHeader(seen.headers, name), nullptr) << name;
  }
  ASSERT_EQ(bed.script->completed(), 1u);
  EXPECT_EQ(bed.script->completions[0], CompletionCause::kNatural);
  EXPECT_EQ(bed.script->served[0], worker.host_port());
}

TEST(HttpProxyTest, OtherRequestsPass) {
  TestWorker worker([](http::Request request, http::Response& response) -> asio::awaitable<void> {
    if (request.path() == "/nothing") {
      co_await response.Send(204, http::Headers(), "");
      co_return;
    }
    co_await response.Send(200, http::ContentType("text/plain"), request.method + " " + request.target);
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  EXPECT_EQ(bed.Ask(http::Request("GET", "/v1/models")).body, "GET /v1/models");
  EXPECT_EQ(bed.Ask(http::Request("DELETE", "/v1/files/1")).body, "DELETE /v1/files/1");
  EXPECT_EQ(bed.Ask(http::Request("GET", "/nothing")).status, 204);
  const Answer head = bed.Ask(http::Request("HEAD", "/v1/models"));
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");
  EXPECT_EQ(head.Header("content-length"), "15");
  EXPECT_EQ(bed.script->completions.size(), 4u);
}

TEST(HttpProxyTest, StreamsAsItComes) {
  std::atomic<int> taken = 0;
  TestWorker worker([&](http::Request, http::Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, http::ContentType("text/event-stream"));
    while (taken < 1) co_await Sleep(std::chrono::milliseconds(1));  // until the headers are there
    for (int i = 0; i < 10; ++i) {
      co_await response.Write("data: " + std::to_string(i) + "\n\n");
      while (taken < i + 2) co_await Sleep(std::chrono::milliseconds(1));
    }
    co_await response.Finish();
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  const auto response = bed.Begin(Post("/v1/completions", kCompletion));
  taken = 1;
  std::string all;
  while (const auto piece = bed.loop().Run(response->Read())) {
    all += *piece;
    taken = 1 + static_cast<int>(std::count(all.begin(), all.end(), ':'));
  }
  EXPECT_THAT(all, HasSubstr("data: 0\n\ndata: 1\n\n"));
  EXPECT_EQ(std::count(all.begin(), all.end(), ':'), 10);
}

TEST(HttpProxyTest, AWorkerIsReadNoFasterThanTheClientReads) {
  std::atomic<std::size_t> written = 0;
  constexpr std::size_t kPieces = 4096;
  const std::string piece = "data: " + std::string(64 << 10, 'x') + "\n\n";
  TestWorker worker([&](http::Request, http::Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, http::ContentType("text/event-stream"));
    for (std::size_t i = 0; i < kPieces; ++i) {
      co_await response.Write(piece);
      ++written;
    }
    co_await response.Finish();
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  const auto response = bed.Begin(Post("/v1/completions", kCompletion));
  std::size_t before = 0;
  ASSERT_TRUE(Eventually([&] {  // comes to a stand
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const std::size_t now = written;
    return now > 0 && std::exchange(before, now) == now;
  }));
  EXPECT_LT(written, kPieces);
  EXPECT_EQ(bed.loop().Run(response->ReadAll(kPieces * piece.size())).size(), kPieces * piece.size());
}

TEST(HttpProxyTest, AClientThatLeavesIsGoneForWorkerAndSession) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  TestWorker worker([&](http::Request request, http::Response& response) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    if (request.body.find("stream") != std::string::npos) {
      co_await response.Start(200, http::ContentType("text/event-stream"));
      co_await response.Write("data: 0\n\n");
    }
    co_await Sleep(std::chrono::hours(1));
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  auto response = bed.Begin(Post("/v1/completions", R"({"model":"m","prompt":"x","stream":true})"));
  EXPECT_EQ(*bed.loop().Run(response->Read()), "data: 0\n\n");
  response.reset();
  EXPECT_TRUE(Eventually([&] { return released == 1 && bed.script->completed() == 1; }));
  // Before the worker has answered.
  http::RawClient raw(bed.proxy().port());
  raw.Send(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 27\r\n\r\n"
      R"({"model":"m", "prompt":"x"})");
  ASSERT_TRUE(Eventually([&] { return begun == 2; }));
  raw.Close();
  EXPECT_TRUE(Eventually([&] { return released == 2 && bed.script->completed() == 2; }));
  EXPECT_THAT(bed.script->completions,
              ElementsAre(CompletionCause::kClientDisconnect, CompletionCause::kClientDisconnect));
}

TEST(HttpProxyTest, TheNextDestinationIsTriedWhenOneCannotBeReached) {
  TestWorker worker(Says(200, "{}"));
  ProxyBed bed;
  const std::string dead = DeadHostPort();
  bed.RouteTo({dead, worker.host_port()});
  const Answer answer = bed.Ask(Post("/v1/completions", kCompletion));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.Header("x-upstream-host"), worker.host_port());
  EXPECT_THAT(bed.script->served, ElementsAre(worker.host_port()));
  ASSERT_EQ(worker.requests().size(), 1u);
  EXPECT_EQ(worker.requests()[0].body, kCompletion);

  bed.RouteTo({dead});
  const Answer none = bed.Ask(Post("/v1/completions", kCompletion));
  EXPECT_EQ(none.status, 503);
  const Json error = Json::parse(none.body);
  EXPECT_EQ(error["object"], "error");
  EXPECT_EQ(error["type"], "ServiceUnavailable");
  EXPECT_EQ(error["code"], 503);
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(dead));
  EXPECT_EQ(bed.script->completed(), 2u) << "the session saw the answer of the proxy's own";
}

TEST(HttpProxyTest, AWorkerThatBreaksOffIsA502OrAnIncompleteAnswer) {
  std::atomic<int> asked = 0;
  TestWorker worker([&](http::Request request, http::Response& response) -> asio::awaitable<void> {
    ++asked;
    if (request.path() == "/v1/stream") {
      co_await response.Start(200, http::ContentType("text/event-stream"));
      co_await response.Write("data: 0\n\n");
    } else if (request.path() == "/v1/half") {
      co_await response.Start(200, http::ContentType("application/json"));
      co_await response.Write("{");
    }
    response.Abort();
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port(), worker.host_port()});
  for (const char* path : {"/v1/silent", "/v1/half"}) {
    asked = 0;
    const Answer answer = bed.Ask(Post(path, "{}"));
    EXPECT_EQ(answer.status, 502) << path;
    EXPECT_EQ(Json::parse(answer.body)["type"], "BadGateway");
    EXPECT_EQ(asked, 1) << "a request that was sent is not sent again";
  }
  auto response = bed.Begin(Post("/v1/stream", "{}"));
  EXPECT_EQ(response->status(), 200);
  EXPECT_THROW(bed.loop().Run(response->ReadAll(1000)), boost::system::system_error);
  EXPECT_TRUE(Eventually([&] { return bed.script->completed() == 3; }));
}

TEST(HttpProxyTest, AWorkerThatHangsIsA504) {
  std::atomic<int> released = 0;
  TestWorker worker([&](http::Request, http::Response&) -> asio::awaitable<void> {
    const Held held{released};
    co_await Sleep(std::chrono::hours(1));
  });
  ProxyBed bed({.response_timeout = std::chrono::milliseconds(50)});
  bed.RouteTo({worker.host_port()});
  const Answer answer = bed.Ask(Post("/v1/completions", kCompletion));
  EXPECT_EQ(answer.status, 504);
  EXPECT_EQ(Json::parse(answer.body)["type"], "GatewayTimeout");
  EXPECT_TRUE(Eventually([&] { return released == 1; }));
}

TEST(HttpProxyTest, RefusalsHaveTheSchedulersText) {
  ProxyBed bed;
  bed.script->decide = [](const gateway::RequestFacts&) {
    return gateway::Refusal{.http_status = 503,
                            .message = "failed to find endpoint candidates for serving the request",
                            .reason = sched::DroppedReason::kNoEndpoints};
  };
  const Answer answer = bed.Ask(Post("/v1/completions", kCompletion));
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(
      answer.body,
      "inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request");
  EXPECT_EQ(answer.Header("x-llm-d-request-dropped-reason"), "rejected-no-endpoints");
  const Answer bad = bed.Ask(Post("/v1/completions", "{nonsense"));
  EXPECT_EQ(bad.status, 400);
  EXPECT_THAT(bad.body, HasSubstr("BadRequest"));
}

TEST(HttpProxyTest, DecisionsMayComeLaterFromElsewhere) {
  TestWorker worker(Says(200, "{}"));
  ProxyBed bed({.threads = 2});
  bed.script->decide_later = true;
  bed.RouteTo({worker.host_port()});
  for (int i = 0; i < 20; ++i) EXPECT_EQ(bed.Ask(Post("/v1/completions", kCompletion)).status, 200);
}

TEST(HttpProxyTest, AModelIsRenamedOnItsWayAndBack) {
  TestWorker worker([](http::Request request, http::Response& response) -> asio::awaitable<void> {
    if (request.body.find("stream") == std::string::npos) {
      co_await response.Send(200, http::ContentType("application/json"), R"({"model":"inner"})");
      co_return;
    }
    co_await response.Start(200, http::ContentType("text/event-stream"));
    co_await response.Write("data: {\"mod");
    co_await Sleep(std::chrono::milliseconds(5));
    co_await response.Write("el\":\"inner\"}\n\n");
    co_await response.Finish();
  });
  ProxyBed bed;
  bed.script->decide = [&](const gateway::RequestFacts&) {
    return gateway::RoutingResult{.destinations = {worker.host_port()}, .model = "inner"};
  };
  const Answer answer = bed.Ask(Post("/v1/completions", R"({"model":"a public name","prompt":"x"})"));
  EXPECT_EQ(worker.requests()[0].body, R"({"model":"inner","prompt":"x"})");
  EXPECT_EQ(answer.body, R"({"model":"a public name"})");
  EXPECT_EQ(answer.Header("content-length"), std::to_string(answer.body.size()));
  EXPECT_EQ(bed.Ask(Post("/v1/completions", R"({"model":"public","prompt":"x","stream":true})")).body,
            "data: {\"model\":\"public\"}\n\n");
}

TEST(HttpProxyTest, AnEvictedRequestEnds) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  TestWorker worker([&](http::Request request, http::Response& response) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    if (request.body.find("stream") != std::string::npos) {
      co_await response.Start(200, http::ContentType("text/event-stream"));
      co_await response.Write("data: 0\n\n");
    }
    co_await Sleep(std::chrono::hours(1));
  });
  ProxyBed bed;
  bed.RouteTo({worker.host_port()});
  const auto evict = [&](int count) {
    return std::thread([&, count] {
      if (!Eventually([&] { return begun == count; })) return;
      const std::lock_guard lock(bed.script->mutex);
      bed.script->evict();
    });
  };
  std::thread first = evict(1);
  const Answer answer = bed.Ask(Post("/v1/completions", kCompletion));
  first.join();
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.body, "request evicted by flow control");
  EXPECT_EQ(answer.Header("x-llm-d-request-dropped-reason"), "evicted-priority");
  EXPECT_TRUE(Eventually([&] { return released == 1; })) << "the worker is told";

  auto response = bed.Begin(Post("/v1/completions", R"({"model":"m","prompt":"x","stream":true})"));
  EXPECT_EQ(*bed.loop().Run(response->Read()), "data: 0\n\n");
  evict(2).join();
  EXPECT_THROW(bed.loop().Run(response->ReadAll(1000)), boost::system::system_error);
  EXPECT_TRUE(Eventually([&] { return released == 2; }));
}

TEST(HttpProxyTest, HealthIsWhetherThereAreEndpoints) {
  ProxyBed bed;
  EXPECT_EQ(bed.Ask(http::Request("GET", "/health")).status, 200);
  bed.has_endpoints = false;
  EXPECT_EQ(bed.Ask(http::Request("GET", "/health")).status, 503);
  EXPECT_EQ(bed.script->completed(), 0u);
}

TEST(HttpProxyTest, LimitsHold) {
  ProxyBed bed({.max_header_bytes = 2000, .max_body_bytes = 1000});
  bed.RouteTo({DeadHostPort()});
  EXPECT_EQ(bed.Ask(Post("/v1/completions", std::string(1001, ' '))).status, 413);
  EXPECT_EQ(bed.Ask(http::Request("GET", "/", {{"a", std::string(3000, 'b')}})).status, 431);
  EXPECT_EQ(bed.Ask(http::Request("CONNECT", "a.b:443")).status, 501);
}

TEST(HttpProxyTest, StopEndsWhatIsUnderWay) {
  std::atomic<int> released = 0;
  std::atomic<int> begun = 0;
  TestWorker worker([&](http::Request, http::Response&) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    co_await Sleep(std::chrono::hours(1));
  });
  std::shared_ptr<Script> script;
  std::vector<std::unique_ptr<http::RawClient>> clients;
  {
    ProxyBed bed({.threads = 2});
    script = bed.script;
    bed.RouteTo({worker.host_port()});
    for (int i = 0; i < 10; ++i) {
      clients.push_back(std::make_unique<http::RawClient>(bed.proxy().port()));
      clients.back()->Send("GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    ASSERT_TRUE(Eventually([&] { return begun == 10; }));
  }
  EXPECT_TRUE(Eventually([&] { return released == 10; }));
  EXPECT_EQ(script->completed(), 10u);
}

// With the host's own sessions.
class CountingObserver final : public Observer {
 public:
  void OnDecision(const DecisionReport& report) override { decided += report.status.ok(); }
  void OnFinished(const FinishReport& report) override {
    ++finished;
    completion_tokens += report.response.usage.completion_tokens;
  }
  std::atomic<int> decided = 0, finished = 0;
  std::atomic<std::uint64_t> completion_tokens = 0;
};

TEST(HttpProxyTest, TheGatewaysDecisionsAreFollowed) {
  std::vector<std::unique_ptr<TestWorker>> workers;
  std::vector<sched::EndpointMetadata> endpoints;
  for (int i = 0; i < 3; ++i) {
    workers.push_back(std::make_unique<TestWorker>(
        Says(200, R"({"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}})")));
    endpoints.push_back(MakeEndpoint("w" + std::to_string(i), workers.back()->server().port()));
    endpoints.back().address = "127.0.0.1";
  }
  PoolStore pool;
  auto gateway = Gateway::Create({}, pool);
  ASSERT_TRUE(gateway.ok()) << gateway.status();
  CountingObserver observer;
  (*gateway)->AddObserver(&observer);
  auto proxy = HttpProxy::Create({.threads = 2}, **gateway);
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  const std::string host_port = "127.0.0.1:" + std::to_string((*proxy)->port());
  http::Loop loop;
  http::Client client(loop.io().get_executor(), {});
  EXPECT_EQ(loop.Run(client.Send(host_port, http::Request("GET", "/health")))->status(), 503);
  ASSERT_TRUE(pool.SetEndpoints(endpoints).ok());
  EXPECT_EQ(loop.Run(client.Send(host_port, http::Request("GET", "/health")))->status(), 200);
  for (int i = 0; i < 30; ++i) {
    auto response = loop.Run(client.Send(host_port, Post("/v1/chat/completions", ChatBody("hello"))));
    EXPECT_EQ(response->status(), 200);
    EXPECT_THAT(loop.Run(response->ReadAll(1000)), HasSubstr("usage"));
  }
  EXPECT_TRUE(Eventually([&] { return observer.finished == 30; }));
  EXPECT_EQ(observer.decided, 30);
  EXPECT_EQ(observer.completion_tokens, 60u);
  std::size_t seen = 0;
  for (const auto& worker : workers) seen += worker->requests().size();
  EXPECT_EQ(seen, 30u);
  EXPECT_TRUE(Eventually([&] { return (*gateway)->active_sessions == 0; }));
}

}  // namespace
}  // namespace llmd::host
