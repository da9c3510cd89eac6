// The worker over HTTP: what clients, gateways and sidecars rely on.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/gateway/engine_config.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/hash/digest.h"
#include "tests/hosts/sim_worker_bed.h"

namespace llmd::sim {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

const std::string kText =
    "A paragraph that is long enough to fill several blocks of the cache, so that the second request for it "
    "finds something there, which is the whole point of routing by prefix in the first place.";

Json Prompt(const std::string& text, int max_tokens) {
  return {{"prompt", text}, {"max_tokens", max_tokens}};
}
Json Chat(const std::string& text, int max_tokens) {
  return {{"model", "m"}, {"messages", {{{"role", "user"}, {"content", text}}}}, {"max_tokens", max_tokens}};
}

TEST(SimApiTest, Completion) {
  WorkerBed bed;
  const Reply reply = bed.Post("/v1/completions", Prompt(kText, 12));
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.header("content-type"), "application/json");
  const Json json = reply.json();
  EXPECT_THAT(json["id"].get<std::string>(), StartsWith("cmpl-"));
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["model"], "m");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["completion_tokens"], 12);
  EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  const int prompt_tokens = json["usage"]["prompt_tokens"];
  ASSERT_GT(prompt_tokens, 33);
  const Json again = bed.Post("/v1/completions", Prompt(kText, 12)).json();
  EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"], (prompt_tokens - 1) / 16 * 16);
  EXPECT_EQ(again["choices"][0]["text"], json["choices"][0]["text"]);
  EXPECT_EQ(bed.num_held(), 0);
}

TEST(SimApiTest, StreamsSayTheSameAsWholeAnswers) {
  WorkerBed bed;
  for (const bool chat : {true, false}) {
    const std::string path = chat ? "/v1/chat/completions" : "/v1/completions";
    Json body = chat ? Chat(kText, 20) : Prompt(kText, 20);
    const Json whole = bed.Post(path, body).json();
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    const Reply reply = bed.Post(path, body);
    ASSERT_EQ(reply.status, 200);
    EXPECT_THAT(reply.header("content-type"), StartsWith("text/event-stream"));
    const std::vector<std::string> events = EventsOf(reply.body);
    ASSERT_GT(events.size(), 3);
    EXPECT_EQ(events.back(), "[DONE]");
    std::string text;
    int finishes = 0;
    for (std::size_t i = 0; i + 2 < events.size(); ++i) {
      const Json event = Json::parse(events[i]);
      const Json& choice = event["choices"][0];
      if (chat && i == 0) {
        EXPECT_EQ(choice["delta"]["role"], "assistant");
      }
      text += chat ? choice["delta"]["content"].get<std::string>() : choice["text"].get<std::string>();
      finishes += choice["finish_reason"] == "length";
      EXPECT_FALSE(event.contains("usage"));
    }
    EXPECT_EQ(finishes, 1);
    EXPECT_EQ(text, chat ? whole["choices"][0]["message"]["content"] : whole["choices"][0]["text"]);
    const Json usage = Json::parse(events[events.size() - 2]);
    EXPECT_TRUE(usage["choices"].empty());
    EXPECT_EQ(usage["usage"]["completion_tokens"], 20);
    EXPECT_EQ(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
  }
}

TEST(SimApiTest, AConversationHitsWhatWasGenerated) {
  WorkerBed bed;
  Json body = Chat(kText, 40);
  const Json first = bed.Post("/v1/chat/completions", body).json();
  body["messages"].push_back(first["choices"][0]["message"]);
  body["messages"].push_back({{"role", "user"}, {"content", "go on"}});
  const Json second = bed.Post("/v1/chat/completions", body).json();
  const int known = first["usage"]["total_tokens"].get<int>() - 1;
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], known / 16 * 16);
}

TEST(SimApiTest, SeveralPromptsAndChoices) {
  WorkerBed bed;
  const Json json =
      bed.Post("/v1/completions", {{"prompt", {"one", "two"}}, {"n", 2}, {"max_tokens", 5}}).json();
  ASSERT_EQ(json["choices"].size(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(json["choices"][i]["index"], i);
  EXPECT_EQ(json["usage"]["completion_tokens"], 20);
  EXPECT_NE(json["choices"][0]["text"], json["choices"][1]["text"]);
  const Json ids = bed.Post("/v1/completions", {{"prompt", {1, 2, 3}}, {"return_token_ids", true}}).json();
  EXPECT_EQ(ids["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(ids["choices"][0]["prompt_token_ids"], Json({1, 2, 3}));
  EXPECT_EQ(ids["choices"][0]["token_ids"].size(), 16);
  const Json echo =
      bed.Post("/v1/completions", {{"prompt", "say it"}, {"echo", true}, {"max_tokens", 1}}).json();
  EXPECT_THAT(echo["choices"][0]["text"].get<std::string>(), StartsWith("say it "));
}

TEST(SimApiTest, StopStringsEndTheTextAndTheRequest) {
  WorkerBed bed;
  const std::string text = bed.Post("/v1/completions", Prompt("x", 30)).json()["choices"][0]["text"];
  const std::string stop = text.substr(41, 7);  // across two words
  for (const bool stream : {false, true}) {
    Json body = Prompt("x", 2000);
    body["stop"] = {stop, "never"};
    body["stream"] = stream;
    const Reply reply = bed.Post("/v1/completions", body);
    std::string got;
    std::string reason;
    for (const std::string& event : stream ? EventsOf(reply.body) : std::vector<std::string>{reply.body}) {
      if (event == "[DONE]") break;
      const Json choice = Json::parse(event)["choices"][0];
      got += choice["text"].get<std::string>();
      if (choice["finish_reason"] == "stop") reason = choice["stop_reason"];
    }
    EXPECT_EQ(got, text.substr(0, text.find(stop)));
    EXPECT_EQ(reason, stop);
  }
  EXPECT_TRUE(http::Eventually([&] { return bed.num_held() == 0; }));
}

TEST(SimApiTest, TokensAreThoseOfTheEngine) {
  WorkerBed bed;
  const Json chat = Chat(kText, 1);
  const Json tokens = bed.Post("/tokenize", {{"messages", chat["messages"]}}).json();
  EXPECT_EQ(tokens["max_model_len"], 4096);
  EXPECT_EQ(tokens["tokens"].size(), tokens["count"]);
  EXPECT_EQ(bed.Post("/v1/chat/completions/render", chat).json()["token_ids"], tokens["tokens"]);
  EXPECT_EQ(bed.Post("/v1/chat/completions", chat).json()["usage"]["prompt_tokens"], tokens["count"]);
  // The same prompt by its ids is the same prefix.
  const Json generated = bed.Post("/inference/v1/generate",
                                  {{"token_ids", tokens["tokens"]}, {"sampling_params", {{"max_tokens", 2}}}})
                             .json();
  EXPECT_EQ(generated["choices"][0]["token_ids"].size(), 2);
  EXPECT_EQ(generated["usage"]["prompt_tokens_details"]["cached_tokens"],
            (tokens["count"].get<int>() - 1) / 16 * 16);

  const Json plain = bed.Post("/tokenize", {{"prompt", kText}, {"return_token_strs", true}}).json();
  EXPECT_EQ(plain["tokens"][0], Tokenizer::kBos);
  EXPECT_EQ(plain["token_strs"].size(), plain["count"]);
  const Json render = bed.Post("/v1/completions/render", {{"prompt", {kText, "b"}}}).json();
  ASSERT_EQ(render.size(), 2);
  EXPECT_EQ(render[0]["token_ids"], plain["tokens"]);
  Json ids = plain["tokens"];
  ids.erase(0);
  EXPECT_EQ(bed.Post("/detokenize", {{"tokens", ids}}).json()["prompt"], kText);
  for (const Json& bad :
       std::vector<Json>{Json::object(), {{"prompt", 1}}, {{"prompt", "a"}, {"messages", 1}}}) {
    EXPECT_EQ(bed.Post("/tokenize", bad).status, 400) << bad;
  }
  EXPECT_EQ(bed.Post("/detokenize", {{"tokens", {-1}}}).status, 400);
}

TEST(SimApiTest, PrefillAndDecodeAsTheSidecarDoesIt) {
  WorkerOptions options = WorkerBed::Quick();
  options.role = "prefill";
  options.transfer_port = 5700;
  WorkerBed prefiller(options);
  options.role = "decode";
  WorkerBed decoder(options);
  Json body = Chat(kText, 1);
  body["kv_transfer_params"] = {{"do_remote_decode", true},    {"do_remote_prefill", false},
                                {"remote_engine_id", nullptr}, {"remote_block_ids", nullptr},
                                {"remote_host", nullptr},      {"remote_port", nullptr}};
  const Json prefilled = prefiller.Post("/v1/chat/completions", body).json();
  const Json params = prefilled["kv_transfer_params"];
  EXPECT_EQ(params["do_remote_prefill"], true);
  EXPECT_EQ(params["remote_host"], "127.0.0.1");
  EXPECT_EQ(params["remote_port"], 5700);
  const int prompt_tokens = prefilled["usage"]["prompt_tokens"];
  EXPECT_EQ(params["remote_block_ids"].size(), prompt_tokens / 16);
  body = Chat(kText, 10);
  body["kv_transfer_params"] = params;
  const Json decoded = decoder.Post("/v1/chat/completions", body).json();
  EXPECT_EQ(decoded["usage"]["prompt_tokens_details"]["cached_tokens"], prompt_tokens - 1);
  EXPECT_EQ(decoded["kv_transfer_params"], nullptr);
  EXPECT_EQ(decoder.worker().metrics().external_hits.value(), prompt_tokens);
  EXPECT_EQ(decoded["choices"], prefiller.Post("/v1/chat/completions", Chat(kText, 10)).json()["choices"]);
  EXPECT_TRUE(http::Eventually([&] { return prefiller.num_held() == 0; }));
}

TEST(SimApiTest, MetricsAreWhatTheGatewayReads) {
  WorkerOptions options = WorkerBed::Quick();
  options.engine.max_num_seqs = 1;
  options.engine.latency.decode_us_per_token = 20'000;
  options.loras = {"sql"};
  options.max_loras = 4;
  WorkerBed bed(options);
  bed.Post("/v1/completions", Prompt(kText, 2));
  bed.Post("/v1/completions", Prompt(kText, 2));
  const Reply page = bed.Get("/metrics");
  EXPECT_EQ(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  gateway::EngineMetricsReader reader(gateway::BuiltinEngines().front());
  sched::Metrics metrics;
  std::vector<sched::Attribute> attributes;
  gateway::MetricsReport report;
  ASSERT_TRUE(reader.Read(page.body, absl::Now(), metrics, attributes, report).ok());
  EXPECT_TRUE(report.problems.empty()) << report.ToString(reader.config());
  EXPECT_EQ(report.page.malformed, 0);
  EXPECT_EQ(metrics.cache_block_size, 16);
  EXPECT_EQ(metrics.cache_num_blocks, 512);
  const auto value = [&](const std::string& name) {
    const std::size_t at = page.body.find("\n" + name + "{");
    if (at == std::string::npos) return std::string("missing");
    const std::size_t space = page.body.find("} ", at) + 2;
    return page.body.substr(space, page.body.find('\n', space) - space);
  };
  EXPECT_EQ(value("vllm:generation_tokens_total"), "4.0");
  EXPECT_EQ(value("vllm:e2e_request_latency_seconds_count"), "2.0");
  EXPECT_NE(value("vllm:prefix_cache_hits_total"), "0.0");
  EXPECT_EQ(value("vllm:gpu_prefix_cache_hits_total"), value("vllm:prefix_cache_hits_total"));
  EXPECT_EQ(value("vllm:gpu_prefix_cache_queries_total"), value("vllm:prefix_cache_queries_total"));
  for (const char* name :
       {"vllm:time_to_first_token_seconds_bucket", "vllm:time_per_output_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_sum", "vllm:num_requests_waiting_by_reason",
        "vllm:prompt_tokens_by_source_total", "vllm:request_success_total",
        "vllm:iteration_tokens_total_bucket", "vllm:engine_sleep_state"}) {
    EXPECT_NE(value(name), "missing") << name;
  }
  // One series for each name and label set.
  std::set<std::string> seen;
  for (std::size_t begin = 0; begin < page.body.size();) {
    const std::size_t end = page.body.find('\n', begin);
    const std::string line = page.body.substr(begin, end - begin);
    begin = end + 1;
    EXPECT_TRUE(line[0] == '#' || seen.insert(line.substr(0, line.rfind(' '))).second) << line;
  }
}

TEST(SimApiTest, TellsOfTheRequestWhenAsked) {
  WorkerBed bed;
  const std::string body = Prompt("bytes \x01 \t", 1).dump() + "\n  ";
  http::Headers headers;
  headers.emplace_back("x-sim-echo", "1");
  headers.emplace_back("x-session-id", "abc");
  headers.emplace_back("x-request-id", "req-7");
  const Reply reply = bed.Call("POST", "/v1/completions", body, headers);
  EXPECT_EQ(reply.header("x-sim-body-sha256"), hash::Sha256(body).hex());
  EXPECT_EQ(reply.header("x-sim-received-x-session-id"), "abc");
  EXPECT_EQ(reply.header("x-sim-worker"), bed.worker().name());
  EXPECT_EQ(reply.header("x-request-id"), "req-7");
  EXPECT_EQ(reply.json()["id"], "cmpl-req-7");
  EXPECT_EQ(bed.Post("/v1/completions", Prompt("a", 1)).header("x-sim-body-sha256"), "");
}

TEST(SimApiTest, LargeBodiesAndTheirLimit) {
  WorkerOptions options = WorkerBed::Quick();
  options.max_body_bytes = std::size_t{64} << 20;
  WorkerBed bed(options);
  http::Headers echo;
  echo.emplace_back("x-sim-echo", "1");
  Json body = Prompt("a", 1);
  body["user"] = std::string(std::size_t{63} << 20, 'u');
  const std::string text = body.dump();
  const Reply large = bed.Call("POST", "/v1/completions", text, echo);
  EXPECT_EQ(large.status, 200);
  EXPECT_EQ(large.header("x-sim-body-sha256"), hash::Sha256(text).hex());

  // Small in bytes, large as a tree.
  std::string lists = R"({"prompt":"a","x":[)";
  for (int i = 0; i < 300'000; ++i) lists += "[],";
  const Reply tree = bed.Call("POST", "/v1/completions", lists + "[]]}");
  EXPECT_EQ(tree.status, 400);
  EXPECT_THAT(tree.body, HasSubstr("objects and lists"));
  // A prompt beyond the model's length.
  const Reply too_long = bed.Post("/v1/completions", Prompt(std::string(1 << 20, '.'), 1));
  EXPECT_EQ(too_long.status, 400);
  EXPECT_THAT(too_long.body, HasSubstr("maximum context length is 4096 tokens"));

  options.max_body_bytes = 1000;
  WorkerBed small(options);
  EXPECT_EQ(small.Post("/v1/completions", Prompt(std::string(2000, 'a'), 1)).status, 413);
  EXPECT_EQ(small.Post("/v1/completions", Prompt("a", 1)).status, 200);
}

TEST(SimApiTest, Errors) {
  WorkerBed bed;
  const Reply bad = bed.Call("POST", "/v1/completions", "{");
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.json()["object"], "error");
  EXPECT_EQ(bad.json()["type"], "BadRequestError");
  EXPECT_EQ(bad.json()["code"], 400);
  const Reply model = bed.Post("/v1/chat/completions", {{"model", "x\"y"}, {"messages", 1}});
  EXPECT_EQ(model.status, 404);
  EXPECT_EQ(model.json()["type"], "NotFoundError");
  EXPECT_EQ(bed.Get("/nothing").status, 404);
  EXPECT_EQ(bed.Get("/v1/completions").status, 405);
  EXPECT_EQ(bed.Call("POST", "/metrics").status, 405);
  EXPECT_EQ(bed.Get("/health").body, "");
  EXPECT_EQ(bed.Get("/v1/models?x=1").json()["data"][0]["id"], "m");
}

TEST(SimApiTest, ResetAndTheQueueLimit) {
  WorkerOptions options = WorkerBed::Quick();
  options.engine.max_num_seqs = 1;
  options.max_waiting = 1;
  options.engine.latency.decode_us_per_token = 5000;
  WorkerBed bed(options);
  bed.Post("/v1/completions", Prompt(kText, 1));
  EXPECT_EQ(bed.Call("POST", "/reset_prefix_cache").status, 200);
  EXPECT_EQ(bed.Look([](const Engine& engine) { return engine.pool().num_cached_keys(); }), 0);

  // Two that stay, one of them waiting.
  std::vector<std::unique_ptr<http::RawClient>> clients;
  const std::string body = Prompt("a", 4000).dump();
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<http::RawClient>(bed.worker().port()));
    clients.back()->Send(absl::StrCat(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", body.size(), "\r\n\r\n", body));
  }
  ASSERT_TRUE(http::Eventually([&] { return bed.worker().metrics().waiting.value() == 1; }));
  EXPECT_EQ(bed.Call("POST", "/reset_prefix_cache").status, 503);
  const Reply refused = bed.Post("/v1/completions", Prompt("a", 1));
  EXPECT_EQ(refused.status, 429);
  // Clients that go away take their requests with them.
  for (auto& client : clients) client->Close();
  EXPECT_TRUE(http::Eventually([&] {
    return bed.Look([](const Engine& engine) { return engine.num_requests(); }) == 0 && bed.num_held() == 0;
  }));
  EXPECT_EQ(bed.worker().metrics().success[static_cast<std::size_t>(FinishReason::kAbort)].value(), 2);
}

TEST(SimApiTest, AStreamThatIsDroppedFreesItsBlocks) {
  WorkerOptions options = WorkerBed::Quick();
  options.engine.latency.decode_us_per_token = 2000;
  WorkerBed bed(options, 2);
  Json body = Prompt(kText, 3000);
  body["stream"] = true;
  const std::string text = body.dump();
  std::vector<std::unique_ptr<http::RawClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<http::RawClient>(bed.worker().port()));
    clients.back()->Send(absl::StrCat(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", text.size(), "\r\n\r\n", text));
  }
  for (auto& client : clients) EXPECT_THAT(client->ReadUntil("data: "), HasSubstr("200 OK"));
  EXPECT_GT(bed.num_held(), 0);
  for (auto& client : clients) client->Close();
  EXPECT_TRUE(http::Eventually([&] { return bed.num_held() == 0; }));
  EXPECT_EQ(bed.Post("/v1/completions", Prompt("a", 1)).status, 200);
}

TEST(SimFaultTest, EachMode) {
  WorkerOptions options = WorkerBed::Quick();
  bool crashed = false;
  options.on_crash = [&] { crashed = true; };
  WorkerBed bed(options);
  const auto set = [&](const Json& fault) { return bed.Post("/sim/fault", fault).status; };
  const auto ask = [&] { return bed.Post("/v1/completions", Prompt("a", 3)); };
  const Json before = bed.Get("/sim/fault").json();
  EXPECT_EQ(before["mode"], "none");

  ASSERT_EQ(set({{"mode", "error"}, {"status", 503}, {"count", 2}}), 200);
  EXPECT_EQ(bed.Get("/health").status, 200);
  EXPECT_EQ(ask().status, 503);
  EXPECT_EQ(ask().json()["type"], "ServiceUnavailable");
  EXPECT_EQ(ask().status, 200);  // only two were to fail
  ASSERT_EQ(set({{"mode", "error"}, {"rate", 0}}), 200);
  EXPECT_EQ(ask().status, 200);
  ASSERT_EQ(set({{"mode", "error"}, {"scope", "all"}}), 200);
  EXPECT_EQ(bed.Get("/health").status, 500);
  EXPECT_EQ(bed.Get("/metrics").status, 500);
  ASSERT_EQ(set({{"mode", "slow"}, {"delay_ms", 30}}), 200);
  EXPECT_EQ(ask().status, 200);

  ASSERT_EQ(set({{"mode", "disconnect"}}), 200);
  EXPECT_THROW(ask(), std::exception);
  Json stream = Prompt("a", 500);
  stream["stream"] = true;
  EXPECT_THROW(bed.Post("/v1/completions", stream), std::exception);
  EXPECT_TRUE(http::Eventually([&] { return bed.num_held() == 0; }));

  ASSERT_EQ(set({{"mode", "hang"}, {"count", 1}}), 200);
  const std::string body = Prompt("a", 1).dump();
  http::RawClient hung(bed.worker().port());
  hung.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", body.size(),
                         "\r\n\r\n", body));
  EXPECT_TRUE(http::Eventually([&] { return bed.Get("/sim/fault").json()["count"] == 0; }));
  EXPECT_EQ(ask().status, 200);  // the others go on

  ASSERT_EQ(set({{"mode", "crash"}}), 200);
  EXPECT_THROW(ask(), std::exception);
  EXPECT_TRUE(crashed);
  ASSERT_EQ(set({{"mode", "none"}}), 200);
  EXPECT_EQ(ask().status, 200);
  EXPECT_GE(bed.worker().metrics().faults.value(), 8);
}

TEST(SimFaultTest, RefusesBadSwitches) {
  WorkerBed bed;
  for (const char* bad :
       {"", "[]", R"({"mode":"nova"})", R"({"mode":"slow","rate":2})", R"({"rate":"x"})",
        R"({"delay_ms":-1})", R"({"status":200})", R"({"scope":"x"})", R"({"mod":"slow"})"}) {
    EXPECT_EQ(bed.Call("POST", "/sim/fault", bad).status, 400) << bad;
  }
  EXPECT_EQ(bed.Get("/sim/fault").json()["mode"], "none");
}

}  // namespace
}  // namespace llmd::sim
