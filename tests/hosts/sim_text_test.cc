// Tokens of text and chat, and requests as strangers send them.
#include <string>
#include <vector>

#include "examples/sim_worker/api_request.h"
#include "examples/sim_worker/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"

namespace llmd::sim {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Tokens = std::vector<TokenId>;

class SimTextTest : public testing::Test {
 protected:
  Tokens Encode(std::string_view text) {
    Tokens tokens;
    tokenizer_.Encode(text, tokens);
    return tokens;
  }
  std::string Text(const Tokens& tokens) {
    std::string text;
    for (const TokenId token : tokens) tokenizer_.AppendText(token, text);
    return text;
  }
  Tokens Chat(const std::string& body) {
    Tokens tokens;
    const absl::Status status = RenderChat(Json::parse(body), tokenizer_, tokens);
    EXPECT_TRUE(status.ok()) << status;
    return tokens;
  }
  std::string Error(Api api, const std::string& body) {
    const auto request = ParseApiRequest(api, body, model_, tokenizer_);
    EXPECT_FALSE(request.ok()) << body;
    return request.ok() ? "" : std::string(request.status().message());
  }
  ApiRequest Parse(Api api, const std::string& body) {
    auto request = ParseApiRequest(api, body, model_, tokenizer_);
    EXPECT_TRUE(request.ok()) << request.status() << " for " << body;
    return request.ok() ? *std::move(request) : ApiRequest();
  }

  Tokenizer tokenizer_;
  ApiModel model_ = {.names = {"m", "alias"}, .loras = {"sql"}, .max_model_len = 100};
};

std::string RandomText(Random& random, std::size_t size) {
  static const std::vector<std::string> kPieces = {"a",  "b",    "Z",     "_",      " ",   " ", "\n",
                                                   "\t", "1",    "9",     ".",      "-",   "é", "日",
                                                   "😀",  "bado", " bado", "baduki", "\r\n"};
  std::string text;
  for (std::size_t i = 0; i < size; ++i) text += kPieces[random.Below(kPieces.size())];
  return text;
}

TEST_F(SimTextTest, GrowingTextOnlyAddsTokens) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = RandomText(random, random.Below(20));
    const std::string more = text + RandomText(random, 1 + random.Below(5));
    const Tokens before = Encode(text);
    const Tokens after = Encode(more);
    ASSERT_GE(after.size(), before.size()) << text << "|" << more;
    for (std::size_t i = 0; i + 1 < before.size(); ++i) ASSERT_EQ(before[i], after[i]) << text << "|" << more;
  }
  // By whole words, even the last token stays.
  Tokens before = Encode("The quick");
  const Tokens after = Encode("The quick brown fox");
  ASSERT_LT(before.size(), after.size());
  EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin()));
}

TEST_F(SimTextTest, TextComesBack) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    const std::string text = RandomText(random, random.Below(12));
    EXPECT_EQ(Text(Encode(text)), text);
  }
  for (const TokenId token : Encode("a 😀\xff\x80\x80\x80\x80\x80\x80\x80\x80 \xc3")) {
    EXPECT_LT(token, Tokenizer::kBos);  // no special tokens, whatever the bytes
  }
}

TEST_F(SimTextTest, WhatIsGeneratedIsReadBackAsTheSameTokens) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    Tokens generated;
    std::string text;
    for (int i = 0; i < 30; ++i) {
      // Any id with a word, not only those that the engine makes.
      generated.push_back(static_cast<TokenId>(Tokenizer::kFirstWord +
                                               random.Below(Tokenizer::kBos - Tokenizer::kFirstWord)));
      Tokenizer::AppendCanonical(generated.back(), text);
    }
    ASSERT_EQ(Encode(text), generated) << text;
  }
}

TEST_F(SimTextTest, AConversationOnlyAddsTokens) {
  const std::string first = R"({"role":"system","content":"Be brief."},{"role":"user","content":"Hello"})";
  const std::string answer = R"({"role":"assistant","content":" bado dina"})";
  const Tokens one = Chat(R"({"messages":[)" + first + "]}");
  const Tokens two =
      Chat(R"({"messages":[)" + first + "," + answer + R"(,{"role":"user","content":"More"}]})");
  ASSERT_LT(one.size(), two.size());
  EXPECT_TRUE(std::equal(one.begin(), one.end(), two.begin()));
  Tokens answered = one;
  for (const TokenId token : Encode(" bado dina")) answered.push_back(token);
  EXPECT_TRUE(std::equal(answered.begin(), answered.end(), two.begin()));

  const Tokens go_on = Chat(R"({"continue_final_message":true,"messages":[)" + first + "," + answer + "]}");
  EXPECT_EQ(go_on, answered);
  EXPECT_NE(Chat(R"({"messages":[)" + first + R"(],"tools":[{"name":"f"}]})"), one);
  EXPECT_EQ(Chat(R"({"messages":[{"role":"user","content":[{"type":"text","text":"Hello"}]}]})"),
            Chat(R"({"messages":[{"role":"user","content":"Hello"}]})"));
  EXPECT_NE(
      Chat(R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"a"}}]}]})"),
      Chat(R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"b"}}]}]})"));
}

TEST_F(SimTextTest, PromptsInEveryForm) {
  EXPECT_EQ(Parse(Api::kCompletions, R"({"prompt":"Hello there"})").prompts[0].front(), Tokenizer::kBos);
  EXPECT_THAT(Parse(Api::kCompletions, R"({"prompt":[1,2,3]})").prompts, ElementsAre(Tokens{1, 2, 3}));
  EXPECT_THAT(Parse(Api::kCompletions, R"({"prompt":[[1],[2,3]]})").prompts,
              ElementsAre(Tokens{1}, Tokens{2, 3}));
  EXPECT_EQ(Parse(Api::kCompletions, R"({"prompt":["a","b"]})").prompts.size(), 2);
  const ApiRequest bare = Parse(Api::kCompletions, R"({"prompt":"a","add_special_tokens":false})");
  EXPECT_THAT(bare.prompts, ElementsAre(Tokens{'a'}));
  EXPECT_EQ(bare.max_tokens[0], 16);
  EXPECT_EQ(bare.model, "m");
  EXPECT_EQ(Parse(Api::kGenerate, R"({"token_ids":[5],"sampling_params":{"max_tokens":7}})").max_tokens[0],
            7);
  const std::string chat = R"({"messages":[{"role":"user","content":"a"}])";
  const ApiRequest open = Parse(Api::kChat, chat + "}");
  EXPECT_EQ(open.max_tokens[0] + open.prompts[0].size(), 100);  // all the room
  EXPECT_EQ(Parse(Api::kChat, chat + R"(,"max_tokens":9,"max_completion_tokens":4})").max_tokens[0], 4);
  EXPECT_EQ(Parse(Api::kCompletions, R"({"prompt":"a","model":"sql"})").params.lora_name, "sql");
  EXPECT_EQ(Parse(Api::kCompletions, R"({"prompt":"a","max_tokens":null,"stop":null})").max_tokens[0], 16);

  Tokens long_prompt(90, 7);
  const std::string ids = Json(long_prompt).dump();
  EXPECT_EQ(Parse(Api::kCompletions, R"({"prompt":)" + ids + "}").max_tokens[0],
            10);  // the default is clipped
}

TEST_F(SimTextTest, TransferParameters) {
  const auto parse = [&](const std::string& params) {
    return Parse(Api::kCompletions, R"({"prompt":"a","kv_transfer_params":)" + params + "}").params;
  };
  EXPECT_TRUE(
      parse(R"({"do_remote_decode":true,"do_remote_prefill":false,"remote_block_ids":null})").remote_decode);
  EXPECT_TRUE(parse(R"({"do_remote_prefill":true,"remote_block_ids":[1]})").remote_prefill);
  EXPECT_TRUE(parse(R"({"do_remote_prefill":true,"remote_block_ids":[[1],[2]]})").remote_prefill);
  EXPECT_FALSE(parse(R"({"do_remote_prefill":true,"remote_block_ids":[]})").remote_prefill);
  EXPECT_FALSE(parse(R"({"do_remote_prefill":true})").remote_prefill);
  EXPECT_FALSE(parse("null").remote_prefill);
}

TEST_F(SimTextTest, RefusesWithTheFieldNamed) {
  const std::string chat = R"({"messages":[{"role":"user","content":"a"}],)";
  struct Case {
    Api api;
    std::string body;
    std::string message;
  };
  const std::vector<Case> cases = {
      {Api::kCompletions, "", "parse error"},
      {Api::kCompletions, "[]", "must be a JSON object"},
      {Api::kCompletions, R"({"prompt":"a" x})", "column"},
      {Api::kCompletions, "{\"prompt\":\"\xff\"}", "UTF-8"},
      {Api::kCompletions, std::string(100, '[') + std::string(100, ']'), "nested deeper than 64"},
      {Api::kCompletions, R"({"prompt":""})", "prompt must be"},
      {Api::kCompletions, R"({"prompt":[]})", "prompt must be"},
      {Api::kCompletions, R"({"prompt":[[]]})", "prompt must be"},
      {Api::kCompletions, R"({"prompt":["a",1]})", "prompt must be"},
      {Api::kCompletions, R"({"prompt":[1,"a"]})", "prompt[1] must be a token id"},
      {Api::kCompletions, R"({"prompt":[1,-1]})", "prompt[1] must be a token id"},
      {Api::kCompletions, R"({"prompt":[128256]})", "prompt[0] must be a token id"},
      {Api::kCompletions, R"({"prompt":[1.5]})", "prompt[0] must be a token id"},
      {Api::kCompletions, R"({"prompt":{}})", "prompt must be"},
      {Api::kCompletions, "{}", "prompt is missing"},
      {Api::kCompletions, R"({"prompt":"a","max_tokens":0})", "max_tokens must be an integer from 1"},
      {Api::kCompletions, R"({"prompt":"a","max_tokens":1e300})", "max_tokens must be an integer"},
      {Api::kCompletions, R"({"prompt":"a","max_tokens":99})", "maximum context length is 100 tokens"},
      {Api::kCompletions, R"({"prompt":"a","max_tokens":2,"min_tokens":3})", "min_tokens is 3"},
      {Api::kCompletions, R"({"prompt":"a","min_tokens":101})", "maximum context length"},
      {Api::kCompletions, R"({"prompt":"a","temperature":3})", "temperature must be a number from 0 to 2"},
      {Api::kCompletions, R"({"prompt":"a","n":0})", "n must be"},
      {Api::kCompletions, R"({"prompt":["a","b"],"n":100})", "prompts times n is 200"},
      {Api::kCompletions, R"({"prompt":"a","stop":""})", "stop must be"},
      {Api::kCompletions, R"({"prompt":"a","stream":"yes"})", "stream must be true or false"},
      {Api::kCompletions, R"({"prompt":"a","stream_options":{}})",
       "stream_options is allowed with stream only"},
      {Api::kCompletions, R"({"prompt":"a","cache_salt":""})", "cache_salt must not be empty"},
      {Api::kCompletions, R"({"prompt":"a","kv_transfer_params":3})", "kv_transfer_params must be an object"},
      {Api::kCompletions, R"({"prompt":"a","model":7})", "model must be a string"},
      {Api::kCompletions, R"({"prompt":"a","model":"other"})", "The model `other` does not exist."},
      {Api::kChat, "{}", "messages must be a list"},
      {Api::kChat, R"({"messages":[]})", "messages must be a list"},
      {Api::kChat, R"({"messages":[1]})", "messages[0].role"},
      {Api::kChat, R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {Api::kChat, R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "content[0].text"},
      {Api::kChat, R"({"messages":[{"role":"user","content":["a"]}]})", "content[0]"},
      {Api::kChat, chat + R"("tools":[]})", "tools must be"},
      {Api::kChat, chat + R"("add_generation_prompt":true,"continue_final_message":true})", "must not both"},
      {Api::kGenerate, R"({"token_ids":[]})", "token_ids must be"},
      {Api::kGenerate, R"({"token_ids":["a"]})", "token_ids[0]"},
      {Api::kGenerate, R"({"token_ids":[1],"sampling_params":[]})", "sampling_params must be an object"},
  };
  for (const Case& one : cases) EXPECT_THAT(Error(one.api, one.body), HasSubstr(one.message)) << one.body;
}

}  // namespace
}  // namespace llmd::sim
