// Sessions of the host: what becomes of a request, from its first message to the last count that is undone.
#include "examples/gateway_scheduler/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/flow_gate.h"
#include "llmd/base/random.h"
#include "tests/hosts/session_bed.h"

namespace llmd::host {
namespace {

using ::testing::HasSubstr;

// Counts what it hears.
class CountingObserver final : public Observer {
 public:
  bool wants_explanations() const override { return true; }
  void OnReceived(const RequestInfo&) override { ++received; }
  void OnDecision(const DecisionReport& report) override {
    ++(report.status.ok() ? decided : refused);
    const std::lock_guard lock(mutex);
    last_cached = report.cached_blocks;
    last_total = report.total_blocks;
    last_tokens = report.prompt_tokens;
  }
  void OnFinished(const FinishReport&) override { ++finished; }

  std::atomic<int> received = 0, decided = 0, refused = 0, finished = 0;
  std::mutex mutex;
  std::uint32_t last_cached = 0, last_total = 0;
  std::size_t last_tokens = 0;
};

// Answers later, when the test says so.
class DeferredTokens final : public TokenSource {
 public:
  void Tokenize(const TokenQuery&, Done done) override {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(done));
  }
  void Answer(const std::vector<TokenId>& tokens) {
    std::vector<Done> waiting;
    {
      const std::lock_guard lock(mutex_);
      waiting.swap(waiting_);
    }
    for (const Done& done : waiting) {
      done(std::make_shared<const PromptTokens>(PromptTokens{.prompts = {tokens}}));
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Done> waiting_;
};

struct Bed {
  explicit Bed(std::string config = "", std::size_t endpoints = 3) {
    std::vector<sched::EndpointMetadata> all;
    for (std::size_t i = 0; i < endpoints; ++i) {
      all.push_back(MakeEndpoint(absl::StrCat("w", i), static_cast<std::uint16_t>(8000 + i)));
    }
    EXPECT_TRUE(pool.SetEndpoints(all).ok());
    auto made = Gateway::Create({.config_text = std::move(config)}, pool);
    EXPECT_TRUE(made.ok()) << made.status();
    gateway = *std::move(made);
    gateway->AddObserver(&observer);
    worker = std::make_unique<Worker>(*gateway, 1);
  }
  Exchange New() { return Exchange(*gateway, *worker, mailbox); }

  PoolStore pool;
  CountingObserver observer;
  std::unique_ptr<Gateway> gateway;
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  std::unique_ptr<Worker> worker;
};

constexpr char kTokens[] = R"({"model":"m","prompt":[%s]})";

std::string TokenBody(int first, int count) {
  std::string list;
  for (int i = 0; i < count; ++i) absl::StrAppend(&list, i ? "," : "", first + i);
  return absl::StrReplaceAll(kTokens, {{"%s", list}});
}

TEST(Session, RepeatsGoWhereThePrefixIs) {
  Bed bed;
  std::string first;
  for (int i = 0; i < 8; ++i) {
    Exchange exchange = bed.New();
    exchange.Headers("/v1/completions");
    exchange.Body(TokenBody(100, 640));
    ASSERT_EQ(exchange.refused_with(), 0);
    if (i == 0) first = exchange.destination();
    EXPECT_EQ(exchange.destination(), first);
    exchange.ResponseHeaders();
    exchange.ResponseBody(R"({"usage":{"prompt_tokens":640,"completion_tokens":1,"total_tokens":641}})",
                          true);
  }
  EXPECT_EQ(bed.observer.last_tokens, 640u);
  EXPECT_EQ(bed.observer.last_total, 10u);  // blocks of 64 tokens
  EXPECT_EQ(bed.observer.last_cached, 10u);
  EXPECT_EQ(bed.observer.decided, 8);
  EXPECT_EQ(bed.observer.finished, 8);
}

TEST(Session, NoEndpointsIsRefusedWithItsReason) {
  Bed bed("", 0);
  Exchange exchange = bed.New();
  exchange.Headers("/v1/completions");
  exchange.Body(TokenBody(1, 10));
  EXPECT_EQ(exchange.refused_with(), 503);
  EXPECT_EQ(exchange.refusal_reason(), "rejected-no-endpoints");

  Exchange get = bed.New();
  get.Headers("/v1/models", {}, /*end=*/true);
  EXPECT_EQ(get.refused_with(), 500);
}

TEST(Session, TokensMayComeLater) {
  Bed bed;
  auto source = std::make_unique<DeferredTokens>();
  DeferredTokens& tokens = *source;
  bed.gateway->SetTokenSource(std::move(source));
  Exchange one = bed.New(), two = bed.New();
  one.Headers("/v1/chat/completions");
  one.Body(ChatBody("hello"));
  two.Headers("/v1/chat/completions");
  two.Body(ChatBody("a quite different text"));
  EXPECT_EQ(one.destination(), "");
  tokens.Answer({1, 2, 3});
  while (bed.mailbox->RunSome(absl::ZeroDuration())) {
  }
  EXPECT_NE(one.destination(), "");
  EXPECT_NE(two.destination(), "");
  EXPECT_EQ(bed.observer.last_tokens, 3u);
}

TEST(Session, ClosedWhileTokensAreMade) {
  Bed bed;
  auto source = std::make_unique<DeferredTokens>();
  DeferredTokens& tokens = *source;
  bed.gateway->SetTokenSource(std::move(source));
  {
    Exchange gone = bed.New();
    gone.Headers("/v1/chat/completions");
    gone.Body(ChatBody("hello"));
    gone.Close(gateway::CloseReason::kCancelled);
    EXPECT_EQ(bed.observer.finished, 1);
  }
  tokens.Answer({1});
  while (bed.mailbox->RunSome(absl::ZeroDuration())) {
  }
  EXPECT_EQ(bed.observer.decided, 0);
  EXPECT_EQ(bed.gateway->active_sessions, 0);
}

constexpr char kFlowControl[] = R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: concurrency-detector
  parameters: {maxConcurrency: 1}
- type: inflight-load-producer
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
  defaultRequestTTL: 60s
)";

TEST(Session, FlowControlLetsOneRunAtATime) {
  Bed bed(kFlowControl, 1);
  std::vector<std::unique_ptr<Exchange>> all;
  for (int i = 0; i < 3; ++i) {
    all.push_back(std::make_unique<Exchange>(*bed.gateway, *bed.worker, bed.mailbox));
    all.back()->Headers("/v1/completions");
    all.back()->Body(TokenBody(i * 100, 10));
  }
  const auto running = [&] {
    int count = 0;
    for (const auto& exchange : all) count += !exchange->destination().empty();
    return count;
  };
  while (running() < 1) bed.mailbox->RunSome(absl::Milliseconds(50));
  bed.mailbox->RunSome(absl::Milliseconds(100));
  EXPECT_EQ(running(), 1);
  EXPECT_EQ(bed.gateway->flow().stats().queued_requests, 2u);
  for (const auto& exchange : all) {
    if (!exchange->destination().empty()) {
      exchange->ResponseHeaders();
      exchange->ResponseBody("{}", true);
    }
  }
  while (running() < 2) bed.mailbox->RunSome(absl::Milliseconds(50));
  // The one that waits goes away; then there is nothing left.
  for (const auto& exchange : all) exchange->Close(gateway::CloseReason::kCancelled);
  EXPECT_EQ(bed.gateway->flow().stats().queued_requests, 0u);
  EXPECT_EQ(bed.observer.finished, 3);
}

TEST(Session, ShutdownRefusesWhoWaits) {
  Bed bed(kFlowControl, 1);
  Exchange runs = bed.New();
  runs.Headers("/v1/completions");
  runs.Body(TokenBody(0, 10));
  while (runs.destination().empty()) bed.mailbox->RunSome(absl::Milliseconds(50));
  Exchange waits = bed.New();
  waits.Headers("/v1/completions");
  waits.Body(TokenBody(100, 10));
  bed.gateway->ShutDown();
  while (waits.refused_with() == 0) bed.mailbox->RunSome(absl::Milliseconds(50));
  EXPECT_EQ(waits.refused_with(), 503);
  EXPECT_EQ(waits.refusal_reason(), "rejected-shutting-down");
}

TEST(Session, ABadConfigurationLeavesTheOldOneInForce) {
  Bed bed;
  const absl::Status status = bed.gateway->Reload(
      "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: no-such-plugin}]",
      nullptr);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-plugin"));
  Exchange exchange = bed.New();
  exchange.Headers("/v1/completions");
  exchange.Body(TokenBody(1, 10));
  EXPECT_NE(exchange.destination(), "");
}

TEST(Session, AModelRewriteReachesTheBody) {
  Bed bed;
  bed.gateway->SetRewrites([](std::string_view model, Random&) -> std::optional<std::string> {
    if (model != "m") return std::nullopt;
    return "other";
  });
  Exchange exchange = bed.New();
  exchange.Headers("/v1/completions");
  exchange.Body(TokenBody(1, 4));
  std::string body;
  for (const auto& answer : exchange.answers()) {
    if (answer.has_request_body()) {
      body += answer.request_body().response().body_mutation().streamed_response().body();
    }
  }
  EXPECT_EQ(body, R"({"model":"other","prompt":[1,2,3,4]})");
}

// Many threads decide while endpoints come and go, values change and the configuration is replaced;
// everything that was begun must end, and nothing may be counted any more.
TEST(Session, ThreadsReloadsAndChanges) {
  for (const std::string& config : {std::string(), std::string(kFlowControl)}) {
    Bed bed(config, 4);
    constexpr int kThreads = 3, kRequests = 150;
    std::atomic<bool> stop = false;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        Worker worker(*bed.gateway, static_cast<std::uint64_t>(t));
        auto mailbox = std::make_shared<Mailbox>();
        Random random(static_cast<std::uint64_t>(t));
        for (int i = 0; i < kRequests; ++i) {
          Exchange exchange(*bed.gateway, worker, mailbox);
          exchange.Headers("/v1/completions");
          exchange.Body(TokenBody(static_cast<int>(random.Below(5)) * 1000, 200));
          for (int wait = 0; wait < 5 && exchange.answers().empty(); ++wait) {
            mailbox->RunSome(absl::Milliseconds(5));
          }
          if (random.Chance(0.7)) {
            exchange.ResponseHeaders();
            exchange.ResponseBody("{}", true);
          }
          exchange.Close(random.Chance(0.5) ? gateway::CloseReason::kCancelled
                                            : gateway::CloseReason::kEndOfStream);
        }
      });
    }
    std::thread changes([&] {
      Random random(99);
      while (!stop) {
        std::vector<sched::EndpointMetadata> some;
        for (std::uint16_t i = 0; i < 4; ++i) {
          if (i == 0 || random.Chance(0.7)) some.push_back(MakeEndpoint(absl::StrCat("w", i), 8000 + i));
        }
        ASSERT_TRUE(bed.pool.SetEndpoints(some).ok());
        bed.pool.Update([&](sched::EndpointPool& pool) {
          for (const sched::Endpoint& endpoint : pool.endpoints()) {
            pool.mutable_metrics(endpoint.handle)->waiting_requests = {
                static_cast<std::int64_t>(random.Below(9)), absl::Now()};
          }
        });
        ASSERT_TRUE(bed.gateway->Reload(config, nullptr).ok());
        (void)bed.gateway->flow().stats();
        absl::SleepFor(absl::Milliseconds(5));
      }
    });
    for (std::thread& thread : threads) thread.join();
    stop = true;
    changes.join();
    EXPECT_EQ(bed.observer.received, kThreads * kRequests);
    EXPECT_EQ(bed.observer.finished, kThreads * kRequests);
    EXPECT_EQ(bed.gateway->active_sessions, 0);
    EXPECT_EQ(bed.gateway->flow().stats().queued_requests, 0u);
    EXPECT_EQ(bed.gateway->flow().stats().running, 0u);
  }
}

}  // namespace
}  // namespace llmd::host
