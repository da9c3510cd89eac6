#include "examples/gateway_scheduler/engine_token_source.h"

#include <atomic>
#include <future>
#include <memory>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/request_shape.h"
#include "examples/gateway_scheduler/token_answer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/toy_worker.h"

namespace llmd::host {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kChat[] =
    R"({"model":"m","messages":[{"role":"user","content":"Hello there, how are you?"}]})";

class EngineTokenSourceTest : public testing::Test {
 protected:
  absl::Status StatusFrom(const ToyWorkerOptions& options, EngineTokenOptions engine = {}) {
    ToyWorker worker(options);
    engine.url = worker.url();
    EngineTokenSource source(engine, loop_, nullptr);
    const absl::Status status = Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":"x"})")).status();
    counters_ = source.counters();
    return status;
  }
  CurlLoop loop_;
  EngineTokenCounters counters_;
};

TEST_F(EngineTokenSourceTest, CompletionsAndChats) {
  ToyWorker worker;
  EngineTokenSource source({.url = worker.url()}, loop_, nullptr);
  TokenResult text =
      Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":"Some \"text\"\n and more"})"));
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT((*text)->prompts, ElementsAre(worker.Tokens("Some \"text\"\n and more")));
  TokenResult several = Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":["one","two"]})"));
  ASSERT_TRUE(several.ok()) << several.status();
  EXPECT_THAT((*several)->prompts, ElementsAre(worker.Tokens("one"), worker.Tokens("two")));
  TokenResult chat = Tokenize(source, ToyRequest("/v1/chat/completions", kChat));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT((*chat)->prompts, ElementsAre(worker.ChatTokens(kChat)));
  const int asked = worker.requests();
  TokenResult ids = Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":[5,6]})"));
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT((*ids)->prompts, ElementsAre(ElementsAre(5, 6)));
  EXPECT_EQ(Tokenize(source, ToyRequest("/v1/responses", R"({"input":"x"})")).status().code(),
            StatusCode::kUnimplemented);
  EXPECT_EQ(worker.requests(), asked);
}

TEST_F(EngineTokenSourceTest, OptionsThatChangeTokensGoToTheRenderer) {
  ToyWorker worker;
  EngineTokenSource source({.url = worker.url()}, loop_, nullptr);
  TokenResult text =
      Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":"some text","add_special_tokens":false})"));
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT((*text)->prompts, ElementsAre(ToyTokenizer().Encode("some text", false)));
}

TEST_F(EngineTokenSourceTest, WithoutRendererTheTokenizerIsAsked) {
  ToyWorker worker({.render = false});
  EngineTokenSource source({.url = worker.url()}, loop_, nullptr);
  for (int i = 0; i < 3; ++i) {
    TokenResult chat = Tokenize(source, ToyRequest("/v1/chat/completions", kChat));
    ASSERT_TRUE(chat.ok()) << chat.status();
    EXPECT_THAT((*chat)->prompts, ElementsAre(worker.ChatTokens(kChat)));
  }
  EXPECT_EQ(worker.requests(), 4);  // the renderer is tried once
  // An option that would be lost there.
  EXPECT_FALSE(
      Tokenize(source, ToyRequest("/v1/chat/completions",
                                  R"({"reasoning_effort":"low","messages":[{"role":"user","content":"x"}]})"))
          .ok());
}

TEST_F(EngineTokenSourceTest, TheModelIsTheServers) {
  ToyWorker worker;
  EngineTokenSource source({.url = worker.url()}, loop_, nullptr);
  ASSERT_TRUE(Tokenize(source, ToyRequest("/v1/chat/completions", kChat, "other")).ok());
}

TEST_F(EngineTokenSourceTest, HostileAnswers) {
  const auto status = [&](const std::string& answer) { return StatusFrom({.broken = answer}); };
  for (const char* answer :
       {"{", "[]", "null", "{\"tokens\":7}", "{\"token_ids\":[1]}", "{\"tokens\":[1,-2]}",
        "{\"tokens\":[1,2.5]}", "{\"tokens\":[4294967296]}", "{\"tokens\":[1e400]}", "{\"tokens\":[\"1\"]}",
        "{\"tokens\":[1]} x", "{\"tokens\":[1],\"count\":2}", "{\"tokens\":[1", "\xff\xfe",
        "{\"tokens\":[99999999999999999999]}"}) {
    EXPECT_EQ(status(answer).code(), StatusCode::kInvalidArgument) << answer;
    EXPECT_EQ(counters_.malformed, 1) << answer;
  }
  EXPECT_TRUE(status("{\"tokens\":[4294967295],\"count\":1}").ok());
  EXPECT_EQ(StatusFrom({.broken = std::string(1 << 20, ' ')}, {.max_answer_bytes = 1000}).code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusFrom({.status = 500}).code(), StatusCode::kUnavailable);
  EXPECT_EQ(StatusFrom({.status = 400}).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(StatusFrom({.hang = true}, {.timeout = absl::Milliseconds(50)}).code(),
            StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTokenSourceTest, AnEndlessAnswerIsCutOff) {
  std::atomic<std::uint64_t> sent = 0;
  TinyServer server([&](const http::Request&, TinyServer::Reply& reply) {
    reply.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"tokens\":[1,1,1\r\n");
    const std::string piece = absl::StrCat("10000\r\n", std::string(65536, ' '), "\r\n");
    for (int i = 0; i < 16384 && reply.Raw(piece); ++i) sent += piece.size();
    reply.Close();
  });
  EngineTokenSource source({.url = server.url(""), .timeout = absl::Seconds(60), .max_answer_bytes = 1 << 20},
                           loop_, nullptr);
  EXPECT_EQ(Tokenize(source, ToyRequest("/v1/completions", R"({"prompt":"x"})")).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_LT(sent, 100 << 20);
}

TEST_F(EngineTokenSourceTest, WorkersOfThePool) {
  ToyWorker good;
  ToyWorker bad({.status = 503});
  PoolStore pool;
  EngineTokenSource source({}, loop_, &pool);
  const ToyRequest request("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(Tokenize(source, request).status().code(), StatusCode::kUnavailable);
  const auto endpoint = [](const char* name, std::uint16_t port) {
    return sched::EndpointMetadata{.name = name, .address = "127.0.0.1", .port = port};
  };
  // One refuses connections, one gives errors, one works: every request finds it.
  ASSERT_TRUE(pool.SetEndpoints(std::vector{endpoint("dead", 1), endpoint("bad", bad.port()),
                                            endpoint("good", good.port())})
                  .ok());
  for (int i = 0; i < 20; ++i) {
    TokenResult result = Tokenize(source, request);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT((*result)->prompts, ElementsAre(good.Tokens("x")));
  }
  EXPECT_LE(bad.requests(), 3);  // it is left alone
}

TEST_F(EngineTokenSourceTest, WhenWorkersAreDownErrorsComeAtOnce) {
  ToyWorker hanging({.hang = true});
  EngineTokenSource source(
      {.url = hanging.url(), .timeout = absl::Milliseconds(100), .max_rest = absl::Hours(1)}, loop_, nullptr);
  const ToyRequest request("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(Tokenize(source, request).status().code(), StatusCode::kDeadlineExceeded);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Tokenize(source, request).status().code(), StatusCode::kUnavailable);
  EXPECT_LE(hanging.requests(), 10);
  EXPECT_GE(source.counters().no_worker, 40);
}

TEST_F(EngineTokenSourceTest, CallsAreBounded) {
  ToyWorker worker;
  worker.hold = true;
  EngineTokenSource source(
      {.url = worker.url(), .timeout = absl::Seconds(30), .max_in_flight = 2, .max_waiting = 3}, loop_,
      nullptr);
  const ToyRequest request("/v1/completions", R"({"prompt":"x"})");
  std::vector<std::future<TokenResult>> results;
  for (int i = 0; i < 8; ++i) {
    auto promise = std::make_shared<std::promise<TokenResult>>();
    results.push_back(promise->get_future());
    source.Tokenize(request.query(),
                    [promise](TokenResult result) { promise->set_value(std::move(result)); });
  }
  for (int i = 5; i < 8; ++i) EXPECT_EQ(results[i].get().status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(source.counters().in_flight, 2);
  EXPECT_EQ(source.counters().waiting, 3);
  worker.hold = false;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(results[i].get().ok());
  EXPECT_EQ(source.counters().overloaded, 3);
}

TEST_F(EngineTokenSourceTest, EndsWithCallsUnderWay) {
  ToyWorker worker({.hang = true});
  std::vector<std::future<TokenResult>> results;
  const ToyRequest request("/v1/completions", R"({"prompt":"x"})");
  {
    EngineTokenSource source({.url = worker.url(), .timeout = absl::Seconds(60), .max_in_flight = 3}, loop_,
                             nullptr);
    for (int i = 0; i < 10; ++i) {
      auto promise = std::make_shared<std::promise<TokenResult>>();
      results.push_back(promise->get_future());
      source.Tokenize(request.query(),
                      [promise](TokenResult result) { promise->set_value(std::move(result)); });
    }
  }
  for (auto& result : results) EXPECT_EQ(result.get().status().code(), StatusCode::kCancelled);
}

TEST(TokenAnswerTest, Render) {
  EXPECT_THAT(*ReadRenderAnswer(R"({"x":{"token_ids":[9]},"token_ids":[1,2]})"),
              ElementsAre(ElementsAre(1, 2)));
  EXPECT_THAT(*ReadRenderAnswer(R"([{"token_ids":[1]},{"token_ids":[]}])"),
              ElementsAre(ElementsAre(1), IsEmpty()));
  EXPECT_FALSE(ReadRenderAnswer(R"([{"token_ids":[1]},{"token_id":[]}])").ok());
  EXPECT_FALSE(ReadRenderAnswer("7").ok());
}

TEST(RequestShapeTest, OptionsThatMayChangeTokens) {
  EXPECT_THAT(
      OtherTokenOptions(R"({"model":"m","prompt":"a \"quoted\" {text} \\","max_tokens":3, "stop" : ["}"] })"),
      IsEmpty());
  EXPECT_THAT(
      OtherTokenOptions(R"({"prompt":"x","truncate_prompt_tokens": 5 ,"stream":true,"y":{"a":[1,"]"]}})"),
      "truncate_prompt_tokens:5,y:{\"a\":[1,\"]\"]},");
  EXPECT_THAT(OtherTokenOptions(R"({"mod\u0065l":"m"})"), HasSubstr("u0065"));
  EXPECT_THAT(OtherTokenOptions(R"({"reasoning_effort":null})"), IsEmpty());
}

TEST(RequestShapeTest, Messages) {
  const auto messages = SplitMessages(
      R"([ {"role":"user","content":"a ] } \" b"} ,{"content":"x","role":"assistant","tool_calls":[]},
           {"role":"user","content":[{"type":"text","text":"t"}]},{"role":"user","content":"<think>x</think>"}])");
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].json, R"({"role":"user","content":"a ] } \" b"})");
  EXPECT_TRUE(messages[0].simple);
  for (int i = 1; i < 4; ++i) EXPECT_FALSE(messages[i].simple) << i;
  EXPECT_THAT(SplitMessages("[]"), IsEmpty());
  EXPECT_THAT(SplitMessages(""), IsEmpty());
}

}  // namespace
}  // namespace llmd::host
