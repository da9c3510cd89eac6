// A warm parser reads without allocating, and without copying what needs no change.
#include <gtest/gtest.h>

#include <string>

#include "llmd/gateway/openai_request.h"
#include "tests/support/allocation_count.h"

namespace llmd::gateway {
namespace {

TEST(Allocation, NoneOnceWarm) {
  const std::pair<Api, std::string> bodies[] = {
      {Api::kCompletions, R"({"model":"m","prompt":"some text\nwith an escape"})"},
      {Api::kCompletions, R"({"model":"m","prompt":[1,2,3,40000]})"},
      {Api::kChatCompletions,
       R"({"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[)"
       R"({"type":"text","text":"t\u00e9"},{"type":"image_url","image_url":{"url":"u"}}]}],)"
       R"("tools":[{"a":[{}]}],"stream":true,"stream_options":{"include_usage":true}})"},
      {Api::kMessages, R"({"model":"m","system":"s","messages":[{"content":"x"}],"max_tokens":5})"},
  };
  OpenAiParser parser;
  OpenAiRequest request;
  for (int round = 0; round < 3; ++round) {
    for (const auto& [api, body] : bodies) {
      const std::size_t before = AllocationCount();
      ASSERT_TRUE(parser.Parse(api, body, request).ok());
      const std::size_t made = AllocationCount() - before;
      EXPECT_TRUE(round == 0 || made == 0) << made << " for " << body;
    }
  }
}

TEST(Copies, OnlyOfEscapedText) {
  OpenAiParser parser;
  OpenAiRequest request;
  const std::string body = R"({"model":"m","messages":[{"content":"plain"},{"content":"a\nb"}]})";
  ASSERT_TRUE(parser.Parse(Api::kChatCompletions, body, request).ok());
  const auto inside = [&](std::string_view piece) {
    return piece.data() >= body.data() && piece.data() < body.data() + body.size();
  };
  ASSERT_EQ(request.text.size(), 2u);
  EXPECT_TRUE(inside(request.model));
  EXPECT_TRUE(inside(request.text[0]));
  EXPECT_FALSE(inside(request.text[1]));
}

}  // namespace
}  // namespace llmd::gateway
