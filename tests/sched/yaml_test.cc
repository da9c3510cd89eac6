// Types, lines and limits of YAML text. The types are those of sigs.k8s.io/yaml.
#include "src/sched/yaml_value.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/sched/config_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::HasSubstr;

Value Parsed(std::string_view text) {
  const absl::StatusOr<Value> value = ParseYaml(text);
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *value : Value();
}
std::string Complaint(std::string_view text, const YamlLimits& limits = {}) {
  return std::string(ParseYaml(text, limits).status().message());
}

TEST(Yaml, PlainScalars) {
  const struct {
    const char* text;
    Value value;
  } kCases[] = {
      {"", {}},
      {"~", {}},
      {"null", {}},
      {"Null", {}},
      {"nul", "nul"},
      {"true", true},
      {"TRUE", true},
      {"tRUE", "tRUE"},
      {"yes", true},
      {"On", true},
      {"y", true},
      {"off", false},
      {"N", false},
      {"NO", false},
      {"nO", "nO"},
      {"0", 0},
      {"-0", 0},
      {"12", 12},
      {"+12", 12},
      {"-12", -12},
      {"1_000", 1000},
      {"0x1F", 31},
      {"0b101", 5},
      {"0o17", 15},
      {"017", 15},
      {"9223372036854775807", std::int64_t{9223372036854775807}},
      {"-9223372036854775808", std::numeric_limits<std::int64_t>::min()},
      {"9223372036854775808", 9223372036854775808.0},
      {"08", 8.0},
      {"1.5", 1.5},
      {".5", .5},
      {"5.", 5.0},
      {"-1e3", -1000.0},
      {"1E+2", 100.0},
      {"1e", "1e"},
      {".", "."},
      {"-", "-"},
      {"+", "+"},
      {"0x", "0x"},
      {"0xg", "0xg"},
      {"1.2.3", "1.2.3"},
      {"1 2", "1 2"},
      {"--1", "--1"},
      {"2s", "2s"},
      {"5k", "5k"},
      {"2001-01-01", "2001-01-01"},
      {"inf", "inf"},
      {"nan", "nan"},
      {".inf", std::numeric_limits<double>::infinity()},
      {"-.INF", -std::numeric_limits<double>::infinity()},
      {".nan", std::nan("")},
      {"localhost:80", "localhost:80"},
  };
  for (const auto& c : kCases) {
    const Value resolved = ResolvePlainScalar(c.text);
    EXPECT_TRUE(Same(resolved, c.value)) << c.text << " is " << resolved.kind();
    const std::string document = std::string("key: ") + c.text + "\n";
    if (std::string_view(c.text) == "-") continue;  // a list
    EXPECT_TRUE(Same(Parsed(document).AsMap()->front().second, c.value)) << document;
  }
}

TEST(Yaml, QuotedAndBlockScalarsAreStrings) {
  for (const char* text : {"key: \"5\"", "key: '5'", "key: |-\n  5", "key: >-\n  5", "key: !!str 5"}) {
    EXPECT_TRUE(Same(Parsed(text).AsMap()->front().second, Value("5"))) << text;
  }
  EXPECT_TRUE(Same(Parsed("key: !!float 5").AsMap()->front().second, Value(5.0)));
  EXPECT_THAT(Complaint("key: !!int x"), HasSubstr("line 1: key has the tag"));
}

TEST(Yaml, QuotesEnd) {
  EXPECT_TRUE(Same(Parsed("['it''s', \"a\\\"b\", '', '''', \"\\\\\"]"),
                   Value::MakeList({"it's", "a\"b", "", "'", "\\"})));
  for (const char* text :
       {"a: \"x", "a: 'x", "a: 'x''", "a: \"x\\\"", "a: &b \"x\n", "a: !!str 'x\n", "\"a", "a: '"}) {
    EXPECT_THAT(Complaint(text), HasSubstr("expected")) << text;
  }
}

TEST(Yaml, LinesAreThoseOfTheKeys) {
  const Value document = Parsed(
      "# comment\n"
      "a:\n"
      "  b: 1\n"
      "\n"
      "c:\n"
      "- x\n"
      "-\n"
      "  d: |\n"
      "    text\n"
      "e:\n"
      "f: {g: [1,\n"
      "  2]}\n");
  const Value::Map& map = *document.AsMap();
  EXPECT_EQ(map[0].second.line(), 2u);
  EXPECT_EQ((*map[0].second.AsMap())[0].second.line(), 3u);
  EXPECT_EQ(map[1].second.line(), 5u);
  EXPECT_EQ((*map[1].second.AsList())[0].line(), 6u);
  EXPECT_EQ((*(*map[1].second.AsList())[1].AsMap())[0].second.line(), 8u);
  EXPECT_EQ(map[2].second.line(), 10u);
  const Value& g = (*map[3].second.AsMap())[0].second;
  EXPECT_EQ(g.line(), 11u);
  EXPECT_EQ((*g.AsList())[1].line(), 12u);
}

TEST(Yaml, EmptyTexts) {
  for (const char* text : {"", "\n", "# nothing", "---", "---\n...\n", "\xEF\xBB\xBF", "~", "null"}) {
    EXPECT_TRUE(Parsed(text).is_null()) << text;
  }
  EXPECT_EQ(Parsed("\xEF\xBB\xBF{a: 1}\n").AsMap()->size(), 1u);
}

TEST(Yaml, KeysAreTexts) {
  const Value document = Parsed("5: a\ntrue: b\n\"x y\": c\n");
  EXPECT_EQ((*document.AsMap())[0].first, "5");
  EXPECT_EQ((*document.AsMap())[1].first, "true");
  EXPECT_EQ((*document.AsMap())[2].first, "x y");
}

TEST(Yaml, AliasesAndMerges) {
  const Value document = Parsed(
      "base: &b {x: 1, y: 2}\n"
      "more: &m {y: 3, z: 4}\n"
      "one: {<<: *b, y: 5}\n"
      "two: {y: 6, <<: [*b, *m]}\n"
      "quoted: {\"<<\": 7}\n");
  EXPECT_TRUE(Same(document.AsMap()->at(2).second, Parsed("{y: 5, x: 1}")));
  EXPECT_TRUE(Same(document.AsMap()->at(3).second, Parsed("{y: 6, x: 1, z: 4}")));
  EXPECT_TRUE(Same(document.AsMap()->at(4).second, Parsed("{'<<': 7}")));
}

TEST(Yaml, TabsAreFineWhereTheyAreNoIndentation) {
  EXPECT_TRUE(Same(Parsed("a:\tb\nc: [\n\t1,\n\t2]\nd: |\n  x\ty\n  \tz\n"),
                   Parsed("a: b\nc: [1, 2]\nd: \"x\\ty\\n\\tz\\n\"")));
}

TEST(Yaml, Limits) {
  EXPECT_TRUE(ParseYaml("[1, 2, 3]", {.nodes = 4}).ok());
  EXPECT_THAT(Complaint("[1,\n2, 3, 4]", {.nodes = 4}),
              HasSubstr("line 2: [3] is too much, expected at most 4 values"));
  EXPECT_TRUE(ParseYaml("[[[1]]]", {.depth = 3}).ok());
  EXPECT_THAT(Complaint("a: [[[1]]]", {.depth = 3}), HasSubstr("line 1: a[0][0] is nested too deeply"));
  EXPECT_THAT(Complaint("- &a [[1]]\n- [*a]", {.depth = 3}),
              HasSubstr("line 2: [1][0] is nested too deeply"));
  EXPECT_TRUE(ParseYaml("- &a [[1]]\n- *a", {.depth = 3}).ok());
  EXPECT_THAT(Complaint("- &a [1, 2]\n- *a", {.nodes = 6}), HasSubstr("line 2: [1] is too much"));
  EXPECT_TRUE(ParseYaml("- &a [1, 2]\n- *a", {.nodes = 7}).ok());
  EXPECT_THAT(Complaint("- &a abcd\n- [*a, *a]", {.value_bytes = 11}),
              HasSubstr("line 2: [1][1] is too much"));
  EXPECT_TRUE(ParseYaml("- &a abcd\n- [*a, *a]", {.value_bytes = 12}).ok());
  EXPECT_TRUE(ParseYaml("abcd", {.text_bytes = 4}).ok());
  EXPECT_THAT(Complaint("abcde", {.text_bytes = 4}), HasSubstr("has 5 bytes, expected at most 4"));
}

TEST(Yaml, Characters) {
  // Overlong, surrogate, beyond U+10FFFF, cut short, NUL, escape.
  for (const std::string_view bad :
       {std::string_view("\xC0\x80"), std::string_view("\xED\xA0\x80"), std::string_view("\xF4\x90\x80\x80"),
        std::string_view("\xE2\x82"), std::string_view("\0", 1), std::string_view("\x1B")}) {
    EXPECT_THAT(Complaint("a: 1\nb: " + std::string(bad)), HasSubstr("line 2: the document has the byte 0x"));
  }
  const std::string fine = "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"";
  EXPECT_TRUE(Same(Parsed("[" + fine + "]"), Value::MakeList({"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"})));
}

}  // namespace
}  // namespace llmd::sched
