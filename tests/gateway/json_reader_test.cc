// The JSON reader against a list of errors and their bytes, and against another parser on mutated documents.
#include "src/gateway/json_reader.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

bool Accepts(JsonReader& reader, std::string_view text) {
  TextArena arena;
  return reader.Open(text, &arena) && reader.Skip() && reader.Close();
}

struct Wrong {
  std::string_view text;
  std::size_t byte;
  std::string_view reason;
};

TEST(JsonReader, SaysWhereAndWhy) {
  const Wrong cases[] = {
      {"", 0, "the document is empty"},
      {"  \n", 0, "the document is empty"},
      {"{", 1, "expected a key"},
      {"[1,", 3, "unexpected end"},
      {"[1,]", 3, "expected a value"},
      {"[,1]", 1, "expected a value"},
      {"{\"a\":1,}", 7, "expected a key"},
      {"{\"a\" 1}", 5, "expected ':' after a key"},
      {"{\"a\":}", 5, "expected a value"},
      {"{\"a\":1 \"b\":2}", 7, "expected ',' or '}'"},
      {"[1 2]", 3, "expected ',' or ']'"},
      {"{\"a\":1]", 6, "expected ',' or '}'"},
      {"{a:1}", 1, "expected a key"},
      {"{\"a\":1}x", 7, "text after the document"},
      {"{\"a\":1}{}", 7, "text after the document"},
      {"[tru]", 1, "unknown literal"},
      {"[truex]", 1, "unknown literal"},
      {"[01]", 1, "not a number"},
      {"[1.]", 1, "not a number"},
      {"[-]", 1, "not a number"},
      {"[1e]", 1, "not a number"},
      {"[+1]", 1, "unexpected value"},
      {"[NaN]", 1, "unexpected value"},
      {"['a']", 1, "unexpected value"},
      {"[\"abc]", 1, "string without an end"},
      {"[\"a\tb\"]", 3, "control character in a string"},
      {"[\"ab\\x\"]", 4, "unknown escape in a string"},
      {"[\"\\u12g4\"]", 2, "\\u needs four hexadecimal digits"},
      {"[\"\\u12\"]", 2, "\\u needs four hexadecimal digits"},
      {"[\"a\xff\"]", 3, "not UTF-8"},
      {"[\"\xc0\x80\"]", 2, "not UTF-8"},
      {"[\"\xed\xa0\x80\"]", 2, "not UTF-8"},
      {"[\"\xf4\x90\x80\x80\"]", 2, "not UTF-8"},
      {"[\"\xe2\x82\"]", 2, "not UTF-8"},
      {std::string_view("[\0]", 3), 1, "unexpected character"},
  };
  JsonReader reader;
  for (const Wrong& one : cases) {
    EXPECT_FALSE(Accepts(reader, one.text)) << one.text;
    EXPECT_EQ(std::string(reader.error().message()),
              absl::StrCat("byte ", one.byte, ": ", ToAbsl(one.reason)))
        << one.text;
  }
}

TEST(JsonReader, AcceptsWhatIsJson) {
  JsonReader reader;
  for (const std::string_view text :
       {"{}", "[]", " [ ] ", "null", "1", "\"a\"", "-0.5e-3",
        "[1e999,-1E+400,123456789012345678901234567890]",
        "{\"a\":{\"b\":[true,false,null]},\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\\ud800\"}",
        "[\"\x7f\"]", "[\"\xf0\x9f\x98\x80\"]"}) {
    EXPECT_TRUE(Accepts(reader, text)) << text << " " << reader.error();
  }
}

TEST(JsonReader, NestingIsLimited) {
  JsonReader reader(/*max_depth=*/4);
  EXPECT_TRUE(Accepts(reader, "[[[[1]]]]"));
  EXPECT_FALSE(Accepts(reader, "[[[[[1]]]]]"));
  EXPECT_EQ(reader.error().message(), "byte 4: nested too deeply");
  EXPECT_FALSE(Accepts(reader, "{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}"));
  EXPECT_TRUE(Accepts(reader, "[[],[],[[[]]],{}]"));  // the depth goes down again
  const std::string deep(1'000'000, '[');
  EXPECT_FALSE(Accepts(reader, deep));
}

TEST(JsonReader, StringsAreViewsOrUnescaped) {
  JsonReader reader;
  TextArena arena;
  const std::string text = R"(["plain","a\n\u00e9\ud83d\ude00\ud800x\udc00\"" , ""])";
  std::string_view value;
  ASSERT_TRUE(reader.Open(text, &arena) && reader.BeginArray());
  bool first = true;
  ASSERT_TRUE(reader.NextElement(first) && reader.ReadString(value));
  EXPECT_EQ(value, "plain");
  EXPECT_EQ(value.data(), text.data() + 2);
  ASSERT_TRUE(reader.NextElement(first) && reader.ReadString(value));
  EXPECT_EQ(value, "a\n\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbdx\xef\xbf\xbd\"");
  ASSERT_TRUE(reader.NextElement(first) && reader.ReadString(value));
  EXPECT_EQ(value, "");
  EXPECT_FALSE(reader.NextElement(first));
  EXPECT_TRUE(reader.Close());
}

TEST(JsonReader, WholeNumbers) {
  struct Case {
    std::string_view text;
    bool whole;
    std::uint64_t value;
  };
  const Case cases[] = {{"0", true, 0},
                        {"4294967295", true, 4294967295u},
                        {"4294967296", false, 0},
                        {"7.0", true, 7},
                        {"3e2", true, 300},
                        {"-0", true, 0},
                        {"-1", false, 0},
                        {"1.5", false, 0},
                        {"1e999", false, 0},
                        {"1e-999", true, 0},  // zero, as a double
                        {"99999999999999999999999", false, 0}};
  for (const Case& one : cases) {
    JsonReader reader;
    TextArena arena;
    std::uint64_t value = 0;
    ASSERT_TRUE(reader.Open(one.text, &arena));
    EXPECT_EQ(reader.ReadUint(4294967295u, value), one.whole) << one.text;
    EXPECT_TRUE(!one.whole || value == one.value) << one.text;
    EXPECT_TRUE(reader.Close()) << one.text;
  }
}

TEST(JsonReader, AgreesWithAnotherParserOnMutatedDocuments) {
  const std::string seed =
      R"({"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"h\u00e9\n"}]}],)"
      R"("n":-1.5e+3,"t":[true,)"
      R"(false,null,{},[]], "s" : "é😀" })";
  constexpr std::string_view kBytes = "{}[]\",:\\ntu0123456789eE+-. \t\n\xc3\xa9\xff/x";
  Random random(3);
  JsonReader reader;
  int accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    std::string text = seed;
    for (std::uint64_t edits = random.Between(1, 3); edits > 0; --edits) {
      const std::size_t at = random.Below(text.size());
      switch (random.Below(3)) {
        case 0:
          text.erase(at, random.Between(1, 4));
          break;
        case 1:
          text.insert(at, 1, kBytes[random.Below(kBytes.size())]);
          break;
        default:
          text[at] = kBytes[random.Below(kBytes.size())];
      }
      if (text.empty()) break;
    }
    // Halves of surrogate pairs and numbers beyond a double are accepted here only.
    const nlohmann::json other = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    const bool ours = Accepts(reader, text);
    accepted += ours;
    if (ours && other.is_discarded() && (text.find("e+3") != text.npos || text.find("\\u") != text.npos)) {
      nlohmann::json again;
      try {
        again = nlohmann::json::parse(text);
        FAIL();
      } catch (const nlohmann::json::exception& e) {
        const std::string why = e.what();
        ASSERT_TRUE(why.find("surrogate") != why.npos || why.find("number overflow") != why.npos)
            << why << "\n"
            << text;
        continue;
      }
    }
    ASSERT_EQ(ours, !other.is_discarded()) << text << " " << reader.error();
    ASSERT_TRUE(ours || reader.error_offset() <= text.size());
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace llmd::gateway
