// What is read of each interface's requests. (spec: gateway.md 6.1 to 6.4)
#include "llmd/gateway/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <string>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"
#include "vllm/grpc/engine.pb.h"

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Parsed {
  OpenAiParser parser;
  OpenAiRequest request;
  absl::Status status;
  std::string body, scratch;

  Parsed(Api api, std::string text, const OpenAiLimits& limits = {}) : parser(limits), body(std::move(text)) {
    status = parser.Parse(api, body, request);
  }
  std::string Text() { return std::string(request.PromptText(scratch)); }
  std::string PieceText(const OpenAiRequest::Prompt& prompt) {
    std::string text;
    for (std::size_t i = 0; i < prompt.piece_count; ++i) text += request.text[prompt.first_piece + i];
    return text;
  }
  std::string Error() { return std::string(status.message()); }
};

TEST(Path, LongestSuffixOfWholeSegmentsWins) {
  const std::pair<std::string_view, Api> cases[] = {
      {"/v1/chat/completions", Api::kChatCompletions},
      {"/v1/chat/completions/render", Api::kChatCompletions},
      {"/prefix/v1/completions/", Api::kCompletions},
      {"/v1/completions/render?x=1", Api::kCompletions},
      {"/v1/responses", Api::kResponses},
      {"/v1/conversations", Api::kConversations},
      {"/v1/embeddings", Api::kEmbeddings},
      {"/v1/images/generations", Api::kImages},
      {"/v1/messages", Api::kMessages},
      {"/messages", Api::kNone},
      {"/inference/v1/generate", Api::kGenerate},
      {"/generate", Api::kSglangGenerate},
      {"generate", Api::kSglangGenerate},
      {"/vllm.grpc.engine.VllmEngine/Generate", Api::kGrpcGenerate},
      {"/vllm.grpc.engine.VllmEngine/Embed", Api::kGrpcEmbed},
      {"/v1/mycompletions", Api::kNone},
      {"/tokenize", Api::kNone},
      {"/v1/models", Api::kNone},
      {"/", Api::kNone},
      {"/v1/completions/other", Api::kNone},
      {"", Api::kCompletions},  // the default path
  };
  for (const auto& [path, api] : cases) EXPECT_EQ(ApiOfPath(path), api) << path;
}

TEST(Chat, ReadsMessagesAndOptions) {
  Parsed p(
      Api::kChatCompletions,
      R"({"model":"m","messages":[{"role":"system","content":"Be brief."},)"
      R"({"role":"user","content":[{"type":"text","text":"Hello"},{"text":"you","type":"text"},)"
      R"({"type":"unknown"}]},)"
      R"({"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},{"role":"tool"}],)"
      R"("tools":[ {"type":"function"} ],"documents":[1],"chat_template":"t",)"
      R"("chat_template_kwargs":{"a":1},)"
      R"("continue_final_message":true,"add_generation_prompt":false,"return_assistant_tokens_mask":true,)"
      R"("cache_salt":"salt","stream":true,"stream_options":{"include_usage":true},"max_tokens":5,)"
      R"("max_completion_tokens":9,"user":"u","prompt_cache_key":"k","session_id":"s",)"
      R"("metadata":{"x":"y"}})");
  ASSERT_TRUE(p.status.ok()) << p.status;
  const OpenAiRequest& r = p.request;
  EXPECT_EQ(r.model, "m");
  EXPECT_EQ(p.Text(), "Be brief.Hello you ");
  ASSERT_EQ(r.messages.size(), 4u);
  EXPECT_EQ(r.messages[1].role, "user");
  EXPECT_EQ(r.messages[1].first_piece, 1u);
  EXPECT_EQ(r.messages[1].piece_count, 4u);
  EXPECT_EQ(r.messages[3].piece_count, 0u);
  ASSERT_EQ(r.prompts.size(), 1u);
  EXPECT_EQ(r.prompts[0].piece_count, 5u);
  EXPECT_EQ(r.raw_tools, R"([ {"type":"function"} ])");
  EXPECT_EQ(r.raw_documents, "[1]");
  EXPECT_EQ(r.raw_chat_template, "\"t\"");
  EXPECT_EQ(r.raw_chat_template_kwargs, "{\"a\":1}");
  EXPECT_EQ(r.raw_metadata, "{\"x\":\"y\"}");
  EXPECT_TRUE(r.raw_messages.starts_with("[{\"role\":\"system\"") &&
              r.raw_messages.ends_with("{\"role\":\"tool\"}]"));
  EXPECT_TRUE(r.continue_final_message && r.return_assistant_tokens_mask && r.stream && r.include_usage);
  EXPECT_FALSE(r.add_generation_prompt);
  EXPECT_EQ(r.cache_salt, "salt");
  EXPECT_EQ(r.max_output_tokens, 9u);
  EXPECT_EQ(r.user, "u");
  EXPECT_EQ(r.prompt_cache_key, "k");
  EXPECT_EQ(r.session_id, "s");
}

TEST(Chat, MultimodalItems) {
  Parsed p(
      Api::kChatCompletions,
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"see"},)"
      R"({"type":"image_url","image_url":{"url":"http://a/b.png","detail":"low"}},)"
      R"({"type":"input_audio","input_audio":{"data":"QUJD","format":"wav"}},{"type":"text","text":"and"},)"
      R"({"type":"video_url","video_url":{"url":"http://a/v.mp4"}},{"type":"image_url",)"
      R"("image_url":{"url":"http:\/\/a/b.png"}}]}]})");
  ASSERT_TRUE(p.status.ok()) << p.status;
  ASSERT_EQ(p.request.media.size(), 4u);
  const auto& m = p.request.media;
  EXPECT_EQ(m[0].modality, "image");
  EXPECT_EQ(m[0].data, "http://a/b.png");
  EXPECT_EQ(m[0].piece, 2u);  // after "see" and " "
  EXPECT_EQ(m[1].modality, "audio");
  EXPECT_EQ(m[1].data, "QUJD");
  EXPECT_EQ(m[1].format, "wav");
  EXPECT_EQ(m[2].modality, "video");
  EXPECT_EQ(m[2].piece, 4u);
  EXPECT_EQ(m[0].hash.size(), 32u);
  EXPECT_EQ(m[3].hash, m[0].hash);  // the same content, written differently
  EXPECT_NE(m[1].hash, m[0].hash);
  EXPECT_EQ(p.Text(), "see and ");
}

TEST(Completions, StringsAndTokens) {
  Parsed one(Api::kCompletions, R"({"model":"m","prompt":"Once\nupon","max_tokens":7})");
  ASSERT_TRUE(one.status.ok());
  EXPECT_EQ(one.Text(), "Once\nupon");
  EXPECT_EQ(one.request.max_output_tokens, 7u);

  Parsed several(Api::kCompletions, R"({"prompt":["a","b\t","c"]})");
  ASSERT_TRUE(several.status.ok());
  EXPECT_EQ(several.Text(), "a b\t c");
  ASSERT_EQ(several.request.prompts.size(), 3u);
  EXPECT_EQ(several.PieceText(several.request.prompts[1]), "b\t");

  Parsed ids(Api::kCompletions, R"({"prompt":[1, 2.0,3e1 ,4294967295]})");
  ASSERT_TRUE(ids.status.ok()) << ids.status;
  EXPECT_THAT(ids.request.tokens, ElementsAre(1, 2, 30, 4294967295));
  ASSERT_EQ(ids.request.prompts.size(), 1u);
  EXPECT_EQ(ids.request.TokensOf(ids.request.prompts[0]).size(), 4u);
  EXPECT_EQ(ids.Text(), "");

  Parsed lists(Api::kCompletions, R"({"prompt":[[1,2],[3]]})");
  ASSERT_TRUE(lists.status.ok());
  ASSERT_EQ(lists.request.prompts.size(), 2u);
  EXPECT_THAT(lists.request.TokensOf(lists.request.prompts[1]), ElementsAre(3));
}

TEST(Completions, TokensOfAnyLengthAndSpacing) {
  Random random(13);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TokenId> expected;
    std::string body = "{\"prompt\":[";
    for (std::uint64_t n = random.Between(1, 12); n > 0; --n) {
      expected.push_back(static_cast<TokenId>(random.Next() >> random.Between(32, 63)));
      absl::StrAppend(&body, expected.size() > 1 ? "," : "", random.Below(8) == 0 ? " " : "", expected.back(),
                      random.Below(8) == 0 ? ".0" : "", random.Below(8) == 0 ? "\n" : "");
    }
    Parsed p(Api::kCompletions, body + "]}");
    ASSERT_TRUE(p.status.ok()) << p.status << body;
    ASSERT_EQ(p.request.tokens, expected) << body;
  }
  const std::pair<std::string_view, std::string_view> wrong[] = {
      {"[1,02,3]", "byte 13: not a number"},
      {"[1,2/,3]", "byte 13: not a number"},
      {"[1,2;3,4]", "byte 13: not a number"},
      {"[1,2a,3]", "byte 13: not a number"},
      {"[1,2:,3]", "byte 14: expected ',' or ']'"},
      {"[1,2,]", "byte 15: expected a value"},
      {"[1,:2,3]", "a token id must be a number (byte 13)"},
      {"[1,2,,3]", "a token id must be a number (byte 15)"},
      {"[1,2,\"3\"]", "a token id must be a number (byte 15)"},
      {"[1,2,-3,4]", "a token id must be a whole number from 0 to 4294967295"},
  };
  for (const auto& [list, message] : wrong) {
    Parsed p(Api::kCompletions, absl::StrCat("{\"prompt\":", ToAbsl(list), "}"));
    EXPECT_THAT(p.Error(), HasSubstr(std::string(message))) << list;
  }
}

TEST(Others, ReadTheirPrompts) {
  Parsed responses(
      Api::kResponses,
      R"({"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"hi"},)"
      R"({"type":"input_image","image_url":"http://i"}]},{"type":"function_call_output","output":"x"}],)"
      R"("instructions":"Be kind.","max_output_tokens":3,"previous_response_id":"r1",)"
      R"("conversation":{"id":"c1"}})");
  ASSERT_TRUE(responses.status.ok()) << responses.status;
  EXPECT_EQ(responses.Text(), "Be kind.hi ");
  EXPECT_EQ(responses.request.max_output_tokens, 3u);
  EXPECT_EQ(responses.request.previous_response_id, "r1");
  EXPECT_EQ(responses.request.conversation, "c1");
  ASSERT_EQ(responses.request.media.size(), 1u);
  EXPECT_EQ(responses.request.media[0].piece, 3u);
  EXPECT_EQ(responses.request.messages[0].first_piece, 1u);

  Parsed text(Api::kResponses, R"({"input":"hi","conversation":"c2"})");
  EXPECT_EQ(text.Text(), "hi");
  EXPECT_EQ(text.request.conversation, "c2");

  Parsed messages(
      Api::kMessages,
      R"({"model":"m","max_tokens":4,"system":[{"type":"text","text":"S"}],)"
      R"("messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"QQ=="}},)"
      R"({"type":"text","text":"T"}]}]})");
  ASSERT_TRUE(messages.status.ok());
  EXPECT_EQ(messages.Text(), "S T ");
  EXPECT_EQ(messages.request.max_output_tokens, 4u);
  ASSERT_EQ(messages.request.media.size(), 1u);
  EXPECT_EQ(messages.request.media[0].data, "QQ==");

  Parsed conversations(Api::kConversations,
                       R"({"items":[{"role":"user","content":"hi"}],"metadata":{"t":"1"}})");
  ASSERT_TRUE(conversations.status.ok());
  EXPECT_EQ(conversations.Text(), "hi");
  EXPECT_EQ(conversations.request.raw_metadata, R"({"t":"1"})");

  Parsed embeddings(Api::kEmbeddings, R"({"model":"m","input":["a","b"]})");
  EXPECT_EQ(embeddings.request.prompts.size(), 2u);
  Parsed ids(Api::kEmbeddings, R"({"model":"m","input":[5]})");
  EXPECT_THAT(ids.request.tokens, ElementsAre(5));
  Parsed images(Api::kImages, R"({"prompt":"a cat"})");
  EXPECT_EQ(images.Text(), "a cat");
  Parsed none(Api::kNone, "not json");
  EXPECT_TRUE(none.status.ok());
}

TEST(Generate, TokenIdsAndFeatures) {
  Parsed p(
      Api::kGenerate,
      R"({"model":"m","token_ids":[1,2,3],"features":{"mm_placeholders":{"image":[{"offset":4,"length":5},)"
      R"({"offset":20,"length":6}],"audio":[{"offset":1,"length":2}]},"mm_hashes":{"audio":["a1"],)"
      R"("image":["i1",null]}},)"
      R"("sampling_params":{"max_tokens":11},"cache_salt":"s","stream":true})");
  ASSERT_TRUE(p.status.ok()) << p.status;
  EXPECT_THAT(p.request.tokens, ElementsAre(1, 2, 3));
  EXPECT_EQ(p.request.max_output_tokens, 11u);
  EXPECT_TRUE(p.request.stream);
  ASSERT_EQ(p.request.media.size(), 3u);
  EXPECT_EQ(p.request.media[0].hash, "a1");
  EXPECT_EQ(p.request.media[0].offset, 1u);
  EXPECT_EQ(p.request.media[1].hash, "i1");
  EXPECT_EQ(p.request.media[1].offset, 4u);
  EXPECT_EQ(p.request.media[1].length, 5u);
  EXPECT_EQ(p.request.media[2].modality, "image");
  EXPECT_EQ(p.request.media[2].hash, "");
  EXPECT_EQ(p.request.media[2].offset, 20u);

  Parsed sglang(Api::kSglangGenerate, R"({"input_ids":[[1],[2,3]],)"
                                      R"("sampling_params":{"max_new_tokens":2}})");
  ASSERT_TRUE(sglang.status.ok());
  EXPECT_EQ(sglang.request.prompts.size(), 2u);
  EXPECT_EQ(sglang.request.max_output_tokens, 2u);
  Parsed text(Api::kSglangGenerate, R"({"text":"hi"})");
  EXPECT_EQ(text.Text(), "hi");
}

std::string Frame(const google::protobuf::Message& message) {
  const std::string bytes = message.SerializeAsString();
  std::string frame(5, '\0');
  frame[3] = static_cast<char>(bytes.size() >> 8);
  frame[4] = static_cast<char>(bytes.size());
  return frame + bytes;
}

TEST(Grpc, GenerateRequests) {
  vllm::grpc::engine::GenerateRequest message;
  for (const std::uint32_t id : {7u, 4294967295u}) message.mutable_tokenized()->add_input_ids(id);
  message.mutable_sampling_params()->set_max_tokens(12);
  message.set_stream(true);
  Parsed p(Api::kGrpcGenerate, Frame(message));
  ASSERT_TRUE(p.status.ok()) << p.status;
  EXPECT_THAT(p.request.tokens, ElementsAre(7, 4294967295));
  EXPECT_EQ(p.request.max_output_tokens, 12u);
  EXPECT_TRUE(p.request.stream);

  message.set_text("hello");
  EXPECT_EQ(Parsed(Api::kGrpcGenerate, Frame(message)).Text(), "hello");
  message.set_text("hell\xff");
  EXPECT_THAT(Parsed(Api::kGrpcGenerate, Frame(message)).Error(), HasSubstr("text is not UTF-8"));
  message.set_text("hello");

  EXPECT_THAT(Parsed(Api::kGrpcGenerate, "abc").Error(),
              HasSubstr("a gRPC frame has at least 5 bytes, not 3"));
  std::string wrong = Frame(message);
  wrong[4] = static_cast<char>(wrong[4] + 1);
  EXPECT_THAT(Parsed(Api::kGrpcGenerate, wrong).Error(), HasSubstr("the gRPC frame announces"));
  wrong = Frame(message);
  wrong[0] = 1;
  EXPECT_THAT(Parsed(Api::kGrpcGenerate, wrong).Error(), HasSubstr("compressed"));
  EXPECT_THAT(Parsed(Api::kGrpcGenerate, std::string("\0\0\0\0\2\x12\x7f", 7)).Error(),
              HasSubstr("malformed"));
  EXPECT_THAT(Parsed(Api::kGrpcGenerate, std::string(5, '\0')).Error(),
              HasSubstr("must have tokenized or text"));
}

TEST(Refused, WhatAnInterfaceDoesNotAllow) {
  struct Case {
    Api api;
    std::string_view body, message;
  };
  const Case cases[] = {
      {Api::kCompletions, R"({})", "invalid completions request: must have prompt field"},
      {Api::kCompletions, R"({"prompt":7})",
       "invalid completions request: prompt must be a string, a list of strings or a list of token ids (byte "
       "10)"},
      {Api::kCompletions, R"({"prompt":null})", "prompt must be a string"},
      {Api::kCompletions, R"({"prompt":[]})", "prompt must not be empty (byte 11)"},
      {Api::kCompletions, R"({"prompt":[[]]})", "a list of token ids must not be empty"},
      {Api::kCompletions, R"({"prompt":["a",1]})", "strings and other values in one prompt list (byte 15)"},
      {Api::kCompletions, R"({"prompt":[1,"a"]})", "a token id must be a number (byte 13)"},
      {Api::kCompletions, R"({"prompt":[1,1.5]})", "a token id must be a whole number from 0 to 4294967295"},
      {Api::kCompletions, R"({"prompt":[-1]})", "a token id must be a whole number"},
      {Api::kCompletions, R"({"prompt":[4294967296]})", "a token id must be a whole number"},
      {Api::kCompletions, R"({"prompt":[1e400]})", "a token id must be a whole number"},
      {Api::kCompletions, R"({"prompt":[{}]})", "a token id must be a number"},
      {Api::kChatCompletions, R"({"messages":"x"})", "messages must be a list (byte 12)"},
      {Api::kChatCompletions, R"({"messages":["x"]})", "messages must be a list of objects"},
      {Api::kChatCompletions, R"({"messages":[{"content":7}]})",
       "content must be a string or a list of blocks (byte 24)"},
      {Api::kChatCompletions, R"({"messages":[{"content":["x"]}]})", "a content block must be an object"},
      {Api::kChatCompletions, R"({"messages":[{"content":[{"type":"text"}]}]})",
       "a text block must have a text"},
      {Api::kGenerate, R"({"token_ids":"x"})", "token_ids must be a list of token ids"},
      {Api::kGenerate, R"({"token_ids":[]})", "token_ids must not be empty"},
      {Api::kGenerate, R"({"token_ids":[[1]]})", "a token id must be a number"},
      {Api::kGenerate, R"({"token_ids":[1],"features":{"mm_placeholders":{"image":[{"offset":-1}]}}})",
       "offset and length"},
      {Api::kSglangGenerate, R"({})", "must have input_ids field"},
      {Api::kResponses, R"({"model":"m"})", "must have input field"},
      {Api::kResponses, R"({"input":5})", "input must be a list"},
      {Api::kConversations, R"({})", "must have items field"},
      {Api::kImages, R"({"prompt":[1]})", "prompt must be a string"},
      {Api::kMessages, R"({})", "must have messages field"},
      {Api::kCompletions, R"([1])", "error unmarshaling request bodyMap: byte 0: expected an object"},
      {Api::kCompletions, R"({"prompt":"p","x":[1,2}})",
       "error unmarshaling request bodyMap: byte 22: expected ',' or ']'"},
      {Api::kCompletions, "{\"prompt\":\"p\xff\"}", "error unmarshaling request bodyMap: byte 12: not UTF-8"},
      {Api::kCompletions, R"({"prompt":["a\q"]})",
       "error unmarshaling request bodyMap: byte 13: unknown escape"},
      {Api::kCompletions, R"({"prompt":"a"} {)", "text after the document"},
  };
  for (const Case& one : cases) {
    Parsed p(one.api, std::string(one.body));
    EXPECT_EQ(p.status.code(), absl::StatusCode::kInvalidArgument) << one.body;
    EXPECT_THAT(p.Error(), HasSubstr(std::string(one.message))) << one.body;
  }
}

TEST(Vague, OfRepeatedKeysTheLastCounts) {
  Parsed p(Api::kChatCompletions,
           R"({"model":"a","messages":[{"content":"x"},{"content":[{"type":"image_url",)"
           R"("image_url":{"url":"u"}}]}],"stream":true,)"
           R"("max_tokens":1,"messages":[{"content":"first","content":"y"}],"model":"b","stream":1,)"
           R"("max_tokens":"x"})");
  ASSERT_TRUE(p.status.ok()) << p.status;
  EXPECT_EQ(p.request.model, "b");
  EXPECT_EQ(p.request.model_values.size(), 2u);
  EXPECT_EQ(p.Text(), "y");
  EXPECT_THAT(p.request.media, IsEmpty());
  EXPECT_FALSE(p.request.stream);
  EXPECT_EQ(p.request.max_output_tokens, std::nullopt);
}

TEST(Vague, KeysMayBeEscaped) {
  Parsed p(Api::kCompletions, R"({"\u006dodel":"x","pr\u006fmpt":"hi"})");
  ASSERT_TRUE(p.status.ok());
  EXPECT_EQ(p.request.model, "x");
  EXPECT_EQ(p.Text(), "hi");
}

TEST(Vague, StreamOnlyWhenTrueAndLimitsOnlyWhenSensible) {
  for (const std::string_view value : {"false", "1", "\"true\"", "null", "[true]"}) {
    Parsed p(Api::kCompletions, absl::StrCat(R"({"prompt":"p","stream":)", ToAbsl(value), "}"));
    ASSERT_TRUE(p.status.ok());
    EXPECT_FALSE(p.request.stream) << value;
  }
  const std::pair<std::string_view, std::optional<std::uint32_t>> limits[] = {{"5", 5},
                                                                              {"0", 0},
                                                                              {"5.0", 5},
                                                                              {"-1", std::nullopt},
                                                                              {"1.5", std::nullopt},
                                                                              {"\"5\"", std::nullopt},
                                                                              {"null", std::nullopt},
                                                                              {"99999999999", 4294967295u},
                                                                              {"1e300", std::nullopt}};
  for (const auto& [text, expected] : limits) {
    Parsed p(Api::kCompletions, absl::StrCat(R"({"prompt":"p","max_tokens":)", ToAbsl(text), "}"));
    ASSERT_TRUE(p.status.ok()) << text;
    EXPECT_EQ(p.request.max_output_tokens, expected) << text;
  }
}

TEST(Limits, DepthSizeAndMedia) {
  const std::string deep =
      absl::StrCat(R"({"prompt":"p","x":)", std::string(300, '['), std::string(300, ']'), "}");
  EXPECT_THAT(Parsed(Api::kCompletions, deep).Error(), HasSubstr("byte 273: nested too deeply"));  // 18 + 255
  EXPECT_TRUE(Parsed(Api::kCompletions, deep, {.max_depth = 301}).status.ok());
  EXPECT_EQ(Parsed(Api::kCompletions, deep, {.max_body_bytes = 100}).status.code(),
            absl::StatusCode::kResourceExhausted);
  std::string media = R"({"messages":[{"content":[)";
  for (int i = 0; i < 3; ++i) media += R"({"type":"image_url","image_url":"u"},)";
  media += R"({"type":"text","text":"t"}]}]})";
  EXPECT_THAT(Parsed(Api::kChatCompletions, media, {.max_media_items = 2}).Error(),
              HasSubstr("more than 2 images, sounds and videos"));
  EXPECT_TRUE(Parsed(Api::kChatCompletions, media, {.max_media_items = 3}).status.ok());
}

TEST(Reuse, NothingOfTheLastRequestStays) {
  OpenAiParser parser;
  OpenAiRequest request;
  const std::string big = absl::StrCat(R"({"model":"a","prompt":")", std::string(5 << 20, 'x'),
                                       R"(\n","stream":true,"max_tokens":1})");
  ASSERT_TRUE(parser.Parse(Api::kCompletions, big, request).ok());
  EXPECT_EQ(request.TextSize(), (5u << 20) + 1);
  ASSERT_TRUE(parser
                  .Parse(Api::kMessages,
                         R"({"messages":[{"content":"hi"}],)"
                         R"("system":"\n"})",
                         request)
                  .ok());
  EXPECT_EQ(request.model, "");
  EXPECT_FALSE(request.stream);
  EXPECT_EQ(request.max_output_tokens, std::nullopt);
  EXPECT_THAT(request.text, ElementsAre("\n", "hi"));
  ASSERT_TRUE(parser.Parse(Api::kMessages, R"({"messages":[{"content":"ho"}]})", request).ok());
  EXPECT_THAT(request.text, ElementsAre("ho"));
  EXPECT_FALSE(parser.Parse(Api::kMessages, R"({"messages":[{"content":"ho"}])", request).ok());
  ASSERT_TRUE(parser.Parse(Api::kNone, "", request).ok());
  EXPECT_THAT(request.text, IsEmpty());
}

TEST(Splice, TouchesNothingElse) {
  Random random(5);
  for (int round = 0; round < 500; ++round) {
    std::string body = "{";
    std::string expected = "{";
    const int fields = static_cast<int>(random.Between(1, 6));
    for (int i = 0; i < fields; ++i) {
      const std::string space(random.Below(3), ' ');
      if (random.Below(2)) {
        const std::string_view values[] = {"\"m\"", "\"m\\n\"", "12.50", "null", "{\"model\":\"inner\"}"};
        absl::StrAppend(&body, "\"model\"", space, ":", ToAbsl(values[random.Below(5)]), space, ",");
        absl::StrAppend(&expected, "\"model\"", space, ":\"q\\\"\\\\\\u0001\"", space, ",");
      } else {
        const std::string field = absl::StrCat("\"x", i, "\":", space, "[1.0, {\"model\":\"n\"}],");
        body += field;
        expected += field;
      }
    }
    body += "\"prompt\":\"p\"}";
    expected += "\"prompt\":\"p\"}";
    OpenAiParser parser;
    OpenAiRequest request;
    ASSERT_TRUE(parser.Parse(Api::kCompletions, body, request).ok());
    SpliceModel(request.model_values, "q\"\\\x01", body);
    ASSERT_EQ(body, expected);
  }
}

}  // namespace
}  // namespace llmd::gateway
