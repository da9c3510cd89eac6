#include "llmd/gateway/response_body.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

Usage Read(bool stream, std::string_view body, std::size_t piece = 1 << 20) {
  UsageReader reader(stream);
  for (std::size_t at = 0; at < body.size(); at += piece) reader.Append(body.substr(at, piece));
  reader.Finish();
  EXPECT_EQ(reader.held_bytes(), 0u);
  return reader.usage();
}

Usage Of(std::uint64_t prompt, std::uint64_t completion, std::uint64_t total, std::uint64_t cached = 0) {
  return {.prompt_tokens = prompt,
          .completion_tokens = completion,
          .total_tokens = total,
          .cached_tokens = cached,
          .known = true};
}

TEST(Usage, PlainBodies) {
  EXPECT_EQ(Read(false, R"({"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}})"),
            Of(1, 2, 3));
  EXPECT_EQ(Read(false, R"({"usage":{"input_tokens":"5","output_tokens":"6",)"
                        R"("input_tokens_details":{"cached_tokens":"4"}}})"),
            Of(5, 6, 11, 4));
  EXPECT_EQ(Read(false, R"({"usage":{"prompt_tokens":-1,"completion_tokens":"x","total_tokens":[7]}})"),
            Of(0, 0, 0));
  EXPECT_EQ(Read(false, R"({"usage":{"prompt_tokens":1e30,"completion_tokens":2.5}})"), Of(0, 0, 0));
  EXPECT_EQ(Read(false, R"({"usage":null})"), Usage());
  EXPECT_EQ(Read(false, R"({"usage":{"prompt_tokens":1})"), Usage());  // not JSON
  EXPECT_EQ(Read(false, R"({"choices":[{"usage":{"prompt_tokens":1}}]})"), Usage());
  EXPECT_EQ(Read(false, R"({"response":{"usage":{"prompt_tokens":1}}})"), Of(1, 0, 1));
}

TEST(Usage, EventStreams) {
  constexpr std::string_view kVllm =
      "data: {\"choices\":[{}],\"usage\":null}\r\n\r\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,"
      "\"completion_tokens\":10,\"total_tokens\":17}}\r\n\r\ndata: [DONE]\r\n\r\n";
  constexpr std::string_view kAnthropic =
      "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,"
      "\"output_tokens\":1}}}\n\nevent: message_delta\ndata: "
      "{\"type\":\"message_delta\",\"usage\":{\"input_tokens\":0,"
      "\"output_tokens\":15}}\n\n";
  constexpr std::string_view kResponses =
      "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n"
      "data: "
      "{\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":4,"
      "\"total_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":2}}}}\n\n";
  constexpr std::string_view kGrowing =
      "data: {\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"total_tokens\":6}}\n\n"
      "data:{\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}";  // no line end
  for (std::size_t piece : {1, 2, 3, 7, 16, 1000}) {
    EXPECT_EQ(Read(true, kVllm, piece), Of(7, 10, 17));
    EXPECT_EQ(Read(true, kAnthropic, piece), Of(25, 15, 40));
    EXPECT_EQ(Read(true, kResponses, piece), Of(3, 4, 7, 2));
    EXPECT_EQ(Read(true, kGrowing, piece), Of(5, 2, 7));
  }
  EXPECT_EQ(Read(true, ": {\"usage\":{\"prompt_tokens\":5}}\nid: {\"usage\":{\"prompt_tokens\":5}}\n"),
            Usage());
}

TEST(Usage, LongLinesAreSkippedAndNotKept) {
  UsageReader reader(/*event_stream=*/true);
  const std::string piece(100'000, 'x');
  reader.Append("data: ");
  for (int i = 0; i < 30; ++i) {
    reader.Append(piece);
    ASSERT_LE(reader.held_bytes(), std::size_t{1} << 20);
  }
  reader.Append("\ndata: {\"usage\":{\"prompt_tokens\":5}}\n");
  reader.Finish();
  EXPECT_EQ(reader.usage(), Of(5, 0, 5));

  UsageReader plain(/*event_stream=*/false, /*max_bytes=*/10);
  plain.Append("{\"usage\":");
  plain.Append("{\"prompt_tokens\":5}}");
  EXPECT_EQ(plain.held_bytes(), 0u);
  plain.Finish();
  EXPECT_EQ(plain.usage(), Usage());
}

std::string Restore(std::string_view from, std::string_view to, std::string_view body, std::size_t piece) {
  ModelNameRestorer restorer(from, to);
  std::string out;
  for (std::size_t at = 0; at < body.size(); at += piece) {
    restorer.Append(body.substr(at, piece), out);
    EXPECT_LE(restorer.held_bytes(), from.size() + 11);
  }
  restorer.Finish(out);
  return out;
}

TEST(ModelName, IsRestoredHoweverTheBodyIsCut) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {R"({"model":"t1"})", R"({"model":"public"})"},
      {R"({"model": "t1"}{"model":"t1"})", R"({"model": "public"}{"model":"public"})"},
      {R"({"model":  "t1"})", R"({"model":  "t1"})"},
      {R"({"model":"t12","model":"t","model":"T1"})", R"({"model":"t12","model":"t","model":"T1"})"},
      {R"("\"model\":\"t1\"")", R"("\"model\":\"t1\"")"},
      {R"(""model":"t1"""model)", R"(""model":"public"""model)"},
      {R"("model":"model":"t1")", R"("model":"model":"public")"},
      {R"("model")", R"("model")"},
      {"", ""},
  };
  for (const auto& [body, expected] : cases) {
    for (std::size_t piece = 1; piece <= body.size() + 1; ++piece) {
      EXPECT_EQ(Restore("t1", "public", body, piece), expected) << piece;
    }
  }
  EXPECT_EQ(Restore("a\"b", "c\\d", R"("model":"a\"b")", 3), R"("model":"c\\d")");
}

TEST(ModelName, EqualsReplacingTheWholeText) {
  Random random(9);
  const std::string_view parts[] = {"\"model\":", "\"model\": ", "\"tt\"", "\"t\"", "\"",
                                    "model",      ":",           " ",      "x"};
  for (int round = 0; round < 3000; ++round) {
    std::string body;
    for (int i = 0; i < 12; ++i) body += parts[random.Below(9)];
    std::string expected;
    for (std::size_t at = 0; at < body.size();) {
      const std::string_view rest = std::string_view(body).substr(at);
      const std::string_view plain = "\"model\":\"tt\"", spaced = "\"model\": \"tt\"";
      if (rest.starts_with(plain)) {
        expected += "\"model\":\"name\"";
        at += plain.size();
      } else if (rest.starts_with(spaced)) {
        expected += "\"model\": \"name\"";
        at += spaced.size();
      } else {
        expected += rest[0];
        ++at;
      }
    }
    ASSERT_EQ(Restore("tt", "name", body, random.Between(1, 20)), expected) << body;
  }
}

TEST(ModelName, NothingToRestore) {
  EXPECT_FALSE(ModelNameRestorer("a", "a").active());
  EXPECT_FALSE(ModelNameRestorer("", "a").active());
  EXPECT_FALSE(ModelNameRestorer().active());
  EXPECT_EQ(Restore("a", "a", R"("model":"a")", 1), R"("model":"a")");
}

}  // namespace
}  // namespace llmd::gateway
