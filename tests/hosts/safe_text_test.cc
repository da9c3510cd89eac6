#include "examples/gateway_scheduler/safe_text.h"

#include <gtest/gtest.h>

#include <string>

#include "nlohmann/json.hpp"

namespace llmd::host {
namespace {

std::string Quoted(std::string_view text, std::size_t max_bytes = 1024) {
  std::string out;
  AppendQuoted(text, out, max_bytes);
  return out;
}

TEST(SafeTextTest, KeepsWhatIsFineAndReplacesTheRest) {
  EXPECT_EQ(SafeText("Qwen/Qwen3-8B <b>"), "Qwen/Qwen3-8B <b>");
  EXPECT_EQ(SafeText("héllo 東京 😀"), "héllo 東京 😀");
  EXPECT_EQ(SafeText("a\nb\x1b[31m\x7f"), "a\uFFFDb\uFFFD[31m\uFFFD");
  EXPECT_EQ(SafeText("a\xff\xc3"), "a\uFFFD\uFFFD");
  EXPECT_EQ(SafeText("\xc0\xaf\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");  // overlong, surrogate
  EXPECT_EQ(SafeText("abc\u202Etxt"), "abc\uFFFDtxt");                            // right-to-left override
  EXPECT_EQ(SafeText(std::string_view("a\0b", 3)), "a\uFFFDb");
}

TEST(SafeTextTest, CutsBetweenCharacters) {
  EXPECT_EQ(SafeText("abcdef", 4), "abcd...");
  EXPECT_EQ(SafeText("abcé", 4), "abc...");
  EXPECT_EQ(SafeText("abcd", 4), "abcd");
}

TEST(SafeTextTest, KnowsSafeText) {
  EXPECT_TRUE(IsSafeText("gpt-4é"));
  EXPECT_FALSE(IsSafeText("a\n"));
  EXPECT_FALSE(IsSafeText("\xff"));
  EXPECT_FALSE(IsSafeText("abcd", 3));
}

TEST(SafeTextTest, QuotedIsJsonOnOneLine) {
  EXPECT_EQ(Quoted("a\"b\\c"), R"("a\"b\\c")");
  EXPECT_EQ(Quoted("a\nlevel=error \x1b[2J"), R"("a\nlevel=error \u001b[2J")");
  EXPECT_EQ(Quoted("\u2028\u009b"), R"("\u2028\u009b")");
  EXPECT_EQ(Quoted("\xff"), "\"\uFFFD\"");
  EXPECT_EQ(Quoted("abcdef", 3), R"("abc...")");
}

TEST(SafeTextTest, AnyBytesMakeValidJson) {
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  for (int i = 255; i >= 0; --i) all.push_back(static_cast<char>(i));
  EXPECT_TRUE(nlohmann::json::accept(Quoted(all, 1 << 20)));
  EXPECT_TRUE(IsSafeText(SafeText(all, 1 << 20), 1 << 20));
}

}  // namespace
}  // namespace llmd::host
