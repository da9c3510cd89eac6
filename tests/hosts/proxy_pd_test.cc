// The sidecar's part of P/D, by the standalone proxy: what goes over each leg. (spec: gateway.md 5.3, 8.2)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "examples/gateway_scheduler/pd_messages.h"
#include "tests/hosts/proxy_bed.h"

namespace llmd::host {
namespace {

using ::testing::HasSubstr;

const char kPrefillAnswer[] =
    R"({"id":"p","choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}},)"
    R"("kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"e-1",)"
    R"("remote_block_ids":[[3,1,2]],"remote_host":"10.0.0.9","remote_port":5600,"an_engines_own":1.5}})";
const char kDecodeAnswer[] =
    R"({"id":"d","usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":9}}})";

HttpProxyOptions Pd() { return {.pd = true}; }

TEST(PdMessagesTest, WhichRequestsHaveAPrefillStage) {
  EXPECT_EQ(PdApiOf("POST", "/v1/chat/completions"), PdApi::kCompletions);
  EXPECT_EQ(PdApiOf("POST", "/v1/completions"), PdApi::kCompletions);
  EXPECT_EQ(PdApiOf("POST", "/v1/messages"), PdApi::kCompletions);
  EXPECT_EQ(PdApiOf("POST", "/v1/responses"), PdApi::kResponses);
  EXPECT_EQ(PdApiOf("POST", "/inference/v1/generate"), PdApi::kGenerate);
  EXPECT_EQ(PdApiOf("GET", "/v1/completions"), PdApi::kNone);
  EXPECT_EQ(PdApiOf("POST", "/v1/embeddings"), PdApi::kNone);
  EXPECT_EQ(PrefillTarget(" http://10.0.0.1:8000 , 10.0.0.2:8000"), "10.0.0.1:8000");
  EXPECT_EQ(PrefillTarget(" "), "");
}

TEST(PdMessagesTest, ThePrefillLegWantsOneTokenAndKeepsTheBlocks) {
  const Json to_decoder = Json::parse(
      R"({"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,
          "remote_block_ids":null,"remote_host":null,"remote_port":null})");
  struct Case {
    PdApi api;
    const char* body;
    const char* prefill;
  };
  const Case cases[] = {
      {PdApi::kCompletions,
       R"({"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":50,"min_tokens":5,
           "kv_transfer_params":{"client":"own"}})",
       R"({"model":"m","stream":false,"max_tokens":1,"min_tokens":1,"max_completion_tokens":1})"},
      {PdApi::kCompletions, R"({"model":"m"})",
       R"({"model":"m","stream":false,"max_tokens":1,"min_tokens":1,"max_completion_tokens":1})"},
      {PdApi::kResponses, R"({"input":"x","max_output_tokens":9})",
       R"({"input":"x","stream":false,"max_output_tokens":1})"},
      {PdApi::kGenerate, R"({"token_ids":[1],"sampling_params":{"max_tokens":9,"temperature":0.5}})",
       R"({"token_ids":[1],"stream":false,"sampling_params":{"max_tokens":1,"min_tokens":1,"temperature":0.5}})"},
      {PdApi::kGenerate, R"({"token_ids":[1]})",
       R"({"token_ids":[1],"stream":false,"sampling_params":{"max_tokens":1,"min_tokens":1}})"},
  };
  for (const Case& one : cases) {
    const auto request = PdRequest::Read(one.api, one.body);
    ASSERT_TRUE(request.ok());
    Json expected = Json::parse(one.prefill);
    expected["kv_transfer_params"] = to_decoder;
    EXPECT_EQ(Json::parse(request->PrefillBody()), expected) << one.body;
    // The decode leg has the client's own fields, and no others.
    expected = Json::parse(one.body);
    expected["kv_transfer_params"] = Json::parse(R"({"remote_host":"h"})");
    EXPECT_EQ(Json::parse(request->DecodeBody({.kv_transfer_params = R"({"remote_host":"h"})"})), expected);
    expected["kv_transfer_params"] = nullptr;
    EXPECT_EQ(Json::parse(request->DecodeBody({})), expected);
  }
}

TEST(PdMessagesTest, BodiesThatAreNoObjectsAreRefused) {
  for (const std::string& body : {std::string("{"), std::string("[]"), std::string("1"), std::string(),
                                  std::string(100000, '['), std::string("{\"a\":\"\xff\"}")}) {
    EXPECT_FALSE(PdRequest::Read(PdApi::kCompletions, body).ok()) << body.substr(0, 20);
  }
}

TEST(PdMessagesTest, WhatIsTakenFromThePrefillAnswer) {
  const PrefillResult whole = ReadPrefillAnswer(kPrefillAnswer);
  EXPECT_EQ(Json::parse(whole.kv_transfer_params), Json::parse(kPrefillAnswer)["kv_transfer_params"]);
  EXPECT_EQ(whole.cached_tokens, 7);
  for (const char* body : {"", "{}", "[]", R"({"usage":null})", R"({"usage":{"prompt_tokens_details":[]}})",
                           R"({"usage":{"prompt_tokens_details":{"cached_tokens":"x"}}})"}) {
    EXPECT_EQ(ReadPrefillAnswer(body).kv_transfer_params, "null") << body;
    EXPECT_EQ(ReadPrefillAnswer(body).cached_tokens, 0) << body;
  }
}

// In pieces of every size.
std::string Rewrite(bool event_stream, std::int64_t count, const std::string& text, std::size_t size) {
  CachedTokensRewriter rewriter(event_stream, count);
  std::string out;
  for (std::size_t at = 0; at < text.size(); at += size) {
    out += rewriter.Append(std::string_view(text).substr(at, size));
  }
  return out + rewriter.Finish();
}

TEST(PdMessagesTest, CachedTokensAreThePrefillers) {
  const std::string events =
      ": a comment\n"
      "data: {\"choices\":[{\"text\":\"usage\"}],\"usage\":null}\n\n"
      "event: "
      "x\r\ndata:{\"usage\":{\"prompt_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":1}}}\r\n\r\n"
      "data: {\"usage\": broken\n\n"
      "data: [DONE]\n\n";
  const std::string expected =
      ": a comment\n"
      "data: {\"choices\":[{\"text\":\"usage\"}],\"usage\":null}\n\n"
      "event: x\r\ndata: "
      "{\"usage\":{\"prompt_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":5}}}\r\n\r\n"
      "data: {\"usage\": broken\n\n"
      "data: [DONE]\n\n";
  for (std::size_t size = 1; size <= events.size(); ++size) {
    EXPECT_EQ(Rewrite(true, 5, events, size), expected) << size;
  }
  EXPECT_EQ(Rewrite(false, 5, R"({"usage":{"prompt_tokens_details":{"cached_tokens":9}}})", 10),
            R"({"usage":{"prompt_tokens_details":{"cached_tokens":5}}})");
  // An engine that reports no details has none, unless the prefiller says something.
  EXPECT_EQ(Rewrite(false, 0, R"({"usage":{"prompt_tokens":1}})", 10), R"({"usage":{"prompt_tokens":1}})");
  EXPECT_EQ(Rewrite(false, 5, R"({"usage":{"prompt_tokens_details":null}})", 10),
            R"({"usage":{"prompt_tokens_details":{"cached_tokens":5}}})");
  EXPECT_EQ(Rewrite(false, 5, "no json", 3), "no json");
  // Lines without an end are not held for ever.
  const std::string endless = "data: " + std::string(3 << 20, 'x');
  EXPECT_EQ(Rewrite(true, 5, endless + "\n\n" + events, 1 << 16), endless + "\n\n" + expected);
}

TEST(HttpProxyPdTest, PrefillThenDecode) {
  TestWorker prefiller(Says(200, kPrefillAnswer));
  TestWorker decoder(Says(200, kDecodeAnswer));
  ProxyBed bed(Pd());
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  const Answer answer = bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x","max_tokens":20})",
                                     {{"authorization", "Bearer t"}, {"x-encoder-hosts-ports", "evil:1"}}));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(Json::parse(answer.body),
            Json::parse(R"({"id":"d","usage":{"prompt_tokens":9,"completion_tokens":4,
                                               "prompt_tokens_details":{"cached_tokens":7}}})"));
  EXPECT_EQ(answer.Header("content-length"), std::to_string(answer.body.size()));
  EXPECT_EQ(answer.Header("x-upstream-host"), decoder.host_port());
  ASSERT_EQ(prefiller.requests().size(), 1u);
  ASSERT_EQ(decoder.requests().size(), 1u);
  const http::Request prefill = prefiller.requests()[0];
  const http::Request decode = decoder.requests()[0];
  EXPECT_EQ(Json::parse(prefill.body),
            Json::parse(R"({"model":"m","prompt":"x","stream":false,"max_tokens":1,"max_completion_tokens":1,
                            "min_tokens":1,"kv_transfer_params":{"do_remote_decode":true,
                            "do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,
                            "remote_host":null,"remote_port":null}})"));
  Json expected = Json::parse(R"({"model":"m","prompt":"x","max_tokens":20})");
  expected["kv_transfer_params"] = Json::parse(kPrefillAnswer)["kv_transfer_params"];
  EXPECT_EQ(Json::parse(decode.body), expected);
  for (const http::Request* leg : {&prefill, &decode}) {
    EXPECT_EQ(leg->method, "POST");
    EXPECT_EQ(leg->target, "/v1/completions");
    EXPECT_EQ(*http::FindHeader(leg->headers, "authorization"), "Bearer t");
    EXPECT_EQ(http::FindHeader(leg->headers, "x-prefiller-host-port"), nullptr);
    EXPECT_EQ(http::FindHeader(leg->headers, "x-encoder-hosts-ports"), nullptr);
  }
  EXPECT_EQ(*http::FindHeader(prefill.headers, "x-request-id"),
            *http::FindHeader(decode.headers, "x-request-id"));
  ASSERT_EQ(bed.script->completed(), 1u);
  EXPECT_EQ(bed.script->served[0], decoder.host_port());
  EXPECT_EQ(bed.script->cached_tokens[0], 7u) << "what is counted is what the client sees";
}

TEST(HttpProxyPdTest, TheDecodeLegStreams) {
  std::atomic<bool> seen = false;
  TestWorker prefiller(Says(200, kPrefillAnswer));
  TestWorker decoder([&](http::Request, http::Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, http::ContentType("text/event-stream"));
    co_await response.Write("data: {\"choices\":[]}\n\n");
    while (!seen) co_await Sleep(std::chrono::milliseconds(1));
    co_await response.Write("data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":9}}}\n\n");
    co_await response.Write("data: [DONE]\n\n");
    co_await response.Finish();
  });
  ProxyBed bed(Pd());
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  const auto response =
      bed.Begin(Post("/v1/chat/completions",
                     R"({"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,
                         "stream_options":{"include_usage":true}})"));
  EXPECT_EQ(*bed.loop().Run(response->Read()), "data: {\"choices\":[]}\n\n");
  seen = true;
  EXPECT_EQ(bed.loop().Run(response->ReadAll(10000)),
            "data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\ndata: [DONE]\n\n");
  const Json prefill = Json::parse(prefiller.requests()[0].body);
  EXPECT_EQ(prefill["stream"], false);
  EXPECT_FALSE(prefill.contains("stream_options"));
  const Json decode = Json::parse(decoder.requests()[0].body);
  EXPECT_EQ(decode["stream"], true);
  EXPECT_EQ(decode["stream_options"], Json::parse(R"({"include_usage":true})"));
  EXPECT_FALSE(decode.contains("max_tokens"));
}

TEST(HttpProxyPdTest, APrefillAnswerWithoutParametersMeansThatTheDecoderComputes) {
  TestWorker prefiller(Says(200, "{}"));
  TestWorker decoder(Says(200, "{}"));
  ProxyBed bed(Pd());
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  EXPECT_EQ(bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})")).status, 200);
  EXPECT_EQ(Json::parse(decoder.requests()[0].body)["kv_transfer_params"], nullptr);
}

TEST(HttpProxyPdTest, APrefillErrorIsTheClientsAnswer) {
  TestWorker prefiller(Says(422, R"({"object":"error","message":"too long"})"));
  TestWorker decoder(Says(200, "{}"));
  ProxyBed bed({.pd = true, .prefill_retries = 3});
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  const Answer answer = bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})"));
  EXPECT_EQ(answer.status, 422);
  EXPECT_EQ(answer.body, R"({"object":"error","message":"too long"})");
  EXPECT_EQ(answer.Header("content-type"), "application/json");
  EXPECT_EQ(prefiller.requests().size(), 1u) << "only 502, 503 and 504 are tried again";
  EXPECT_EQ(decoder.requests().size(), 0u);
  EXPECT_EQ(bed.script->served[0], "") << "nobody is credited";
}

TEST(HttpProxyPdTest, PrefillIsTriedAgainAtTheSameHost) {
  for (const int status : {502, 503, 504}) {
    std::atomic<int> asked = 0;
    TestWorker prefiller([&](http::Request, http::Response& response) -> asio::awaitable<void> {
      const int code = asked++ < 2 ? status : 200;
      const std::string body = code == 200 ? kPrefillAnswer : "{}";
      co_await response.Send(code, http::ContentType("application/json"), body);
    });
    TestWorker decoder(Says(200, "{}"));
    ProxyBed bed({.pd = true, .prefill_retries = 2, .prefill_backoff = std::chrono::milliseconds(1)});
    bed.RouteTo({decoder.host_port()}, prefiller.host_port());
    EXPECT_EQ(bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})")).status, 200);
    EXPECT_EQ(asked, 3);
    asked = -10;
    EXPECT_EQ(bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})")).status, status);
    EXPECT_EQ(asked, -7);
    EXPECT_EQ(decoder.requests().size(), 1u);
  }
}

TEST(HttpProxyPdTest, APrefillerThatIsNotThereIsA502AndADecoderA503) {
  std::string dead;
  {
    TestWorker gone(Says(200, "{}"));
    dead = gone.host_port();
  }
  TestWorker worker(Says(200, kPrefillAnswer));
  ProxyBed bed(Pd());
  bed.RouteTo({worker.host_port()}, dead);
  const Answer no_prefill = bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})"));
  EXPECT_EQ(no_prefill.status, 502);
  EXPECT_EQ(Json::parse(no_prefill.body)["type"], "BadGateway");
  EXPECT_EQ(worker.requests().size(), 0u);
  bed.RouteTo({dead}, worker.host_port());
  const Answer no_decode = bed.Ask(Post("/v1/completions", R"({"model":"m","prompt":"x"})"));
  EXPECT_EQ(no_decode.status, 503);
  EXPECT_EQ(Json::parse(no_decode.body)["type"], "ServiceUnavailable");
}

TEST(HttpProxyPdTest, AClientThatLeavesEndsThePrefill) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  TestWorker prefiller([&](http::Request, http::Response&) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    co_await Sleep(std::chrono::hours(1));
  });
  TestWorker decoder(Says(200, "{}"));
  ProxyBed bed(Pd());
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  http::RawClient client(bed.proxy().port());
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 27\r\n\r\n"
      R"({"model":"m", "prompt":"x"})");
  ASSERT_TRUE(Eventually([&] { return begun == 1; }));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return released == 1 && bed.script->completed() == 1; }));
  EXPECT_EQ(decoder.requests().size(), 0u);
}

TEST(HttpProxyPdTest, WithoutAPrefillEndpointOrAnotherPathThereIsOneLeg) {
  TestWorker prefiller(Says(200, kPrefillAnswer));
  TestWorker decoder(Says(200, kDecodeAnswer));
  ProxyBed bed(Pd());
  const std::string body = R"({"model":"m", "prompt":"x", "max_tokens":20})";
  bed.RouteTo({decoder.host_port()});
  EXPECT_EQ(bed.Ask(Post("/v1/completions", body)).body, kDecodeAnswer);
  // What a client says about prefillers is nobody's decision.
  EXPECT_EQ(bed.Ask(Post("/v1/completions", body, {{"x-prefiller-host-port", prefiller.host_port()}})).body,
            kDecodeAnswer);
  bed.RouteTo({decoder.host_port()}, prefiller.host_port());
  EXPECT_EQ(bed.Ask(Post("/v1/embeddings", R"({"model":"m","input":"x"})")).body, kDecodeAnswer);
  EXPECT_EQ(prefiller.requests().size(), 0u);
  ASSERT_EQ(decoder.requests().size(), 3u);
  EXPECT_EQ(decoder.requests()[0].body, body) << "byte for byte";
  for (const http::Request& request : decoder.requests()) {
    EXPECT_EQ(http::FindHeader(request.headers, "x-prefiller-host-port"), nullptr);
  }
}

TEST(HttpProxyPdTest, WithoutTheOptionTheHeaderGoesToTheSidecar) {
  TestWorker decoder(Says(200, kDecodeAnswer));
  ProxyBed bed;
  bed.RouteTo({decoder.host_port()}, "10.0.0.1:8000");
  const std::string body = R"({"model":"m", "prompt":"x"})";
  EXPECT_EQ(bed.Ask(Post("/v1/completions", body)).body, kDecodeAnswer);
  EXPECT_EQ(*http::FindHeader(decoder.requests()[0].headers, "x-prefiller-host-port"), "10.0.0.1:8000");
  EXPECT_EQ(decoder.requests()[0].body, body);
}

}  // namespace
}  // namespace llmd::host
