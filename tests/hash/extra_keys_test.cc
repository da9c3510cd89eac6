#include "llmd/hash/extra_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "llmd/base/random.h"
#include "llmd/hash/request_keys.h"

namespace llmd::hash {
namespace {

using testing::ElementsAre;

RequestExtras Example() {
  RequestExtras extras;
  extras.lora_name = "sql-adapter";
  extras.lora_int_id = 7;
  extras.lora_path = "/adapters/sql";
  extras.multimodal = {{"f9a3", 5, 30}};
  extras.cache_salt = "tenant-a";
  return extras;
}

TEST(ExtraKeys, StylesOfOneRequest) {
  const auto text = [](ExtraKeyStyle style, std::uint64_t block) {
    return ToString(ExtraKeyBuilder(Example(), style, 16).ForBlock(block));
  };
  EXPECT_EQ(text(ExtraKeyStyle::kIntLora, 0), R"((7, "f9a3", "tenant-a"))");
  EXPECT_EQ(text(ExtraKeyStyle::kBare, 0), R"(("sql-adapter", "f9a3", "tenant-a"))");
  EXPECT_EQ(text(ExtraKeyStyle::kOffset, 0), R"(("sql-adapter", ("f9a3", 5), "tenant-a"))");
  EXPECT_EQ(text(ExtraKeyStyle::kOffset, 1), R"(("sql-adapter", ("f9a3", -11)))");
  EXPECT_EQ(text(ExtraKeyStyle::kOffset, 2), R"(("sql-adapter", ("f9a3", -27)))");
  EXPECT_EQ(text(ExtraKeyStyle::kOffset, 3), R"(("sql-adapter",))");
  EXPECT_EQ(text(ExtraKeyStyle::kTagged, 0),
            R"((("lora", "sql-adapter", "/adapters/sql"), ("mm", "f9a3", 5), ("cache_salt", "tenant-a")))");
  EXPECT_EQ(ToString(ExtraKeyBuilder().ForBlock(0)), "None");
  EXPECT_TRUE(ExtraKeyBuilder({}, ExtraKeyStyle::kOffset, 16).empty());
}

TEST(ExtraKeys, RandomItemsEqualAFullScan) {
  Random random(5);
  for (int round = 0; round < 300; ++round) {
    RequestExtras extras;
    for (std::uint64_t n = random.Below(8); n > 0; --n) {
      extras.multimodal.push_back({"id" + std::to_string(n), static_cast<std::int64_t>(random.Below(100)),
                                   static_cast<std::int64_t>(random.Below(40))});
    }
    const ExtraKeyBuilder builder(extras, ExtraKeyStyle::kOffset, 8);
    std::vector<MultimodalItem> sorted = extras.multimodal;
    std::stable_sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
    for (std::int64_t block = 0; block < 20; ++block) {
      ExtraKeys expected;
      for (const MultimodalItem& item : sorted) {
        if (item.offset < (block + 1) * 8 && item.offset + item.length > block * 8) {
          expected.push_back(
              ExtraKey::Tuple({ExtraKey::Text(item.identifier), ExtraKey::Int(item.offset - block * 8)}));
        }
      }
      ASSERT_EQ(builder.ForBlock(block), expected);
    }
  }
}

TEST(ExtraKeys, AbsurdPositionsAreHarmless) {
  RequestExtras extras;
  const auto max = std::numeric_limits<std::int64_t>::max(), min = std::numeric_limits<std::int64_t>::min();
  extras.multimodal = {{"a", max, max}, {"b", min, max}, {"c", min, min}, {"d", 3, max}, {"e", 0, -5}};
  const ExtraKeyBuilder builder(extras, ExtraKeyStyle::kOffset, 16);
  EXPECT_EQ(ToString(builder.ForBlock(0)), R"((("d", 3),))");
  builder.ForBlock(std::numeric_limits<std::uint64_t>::max() / 16);
}

TEST(ExtraKeys, RequestKeyStrings) {
  EXPECT_THAT(
      ExtraStringsOfRequest(Example(), 16, 4),
      ElementsAre(ElementsAre("f9a3", "tenant-a"), ElementsAre("f9a3"), ElementsAre("f9a3"), ElementsAre()));
  // The event side sees the adapter as a bare string and must not count it.
  const ExtraKeys event = ExtraKeyBuilder(Example(), ExtraKeyStyle::kOffset, 16).ForBlock(0);
  EXPECT_THAT(ExtraStringsOfEvent(event, "sql-adapter"), ElementsAre("f9a3", "tenant-a"));
  EXPECT_THAT(ExtraStringsOfEvent(event, ""), ElementsAre("sql-adapter", "f9a3", "tenant-a"));
  // A salt that equals the adapter's name survives.
  EXPECT_THAT(ExtraStringsOfEvent({ExtraKey::Text("x"), ExtraKey::Text("x")}, "x"), ElementsAre("x"));
  EXPECT_THAT(ExtraStringsOfEvent({ExtraKey::Int(1), ExtraKey::Bytes("b"), ExtraKey::None(),
                                   ExtraKey::Tuple({ExtraKey::Int(1), ExtraKey::Text("t")})},
                                  "x"),
              ElementsAre());
}

TEST(ExtraKeys, Realign) {
  const std::vector<ExtraStrings> from = {{"a"}, {"b", "c"}};
  EXPECT_THAT(RealignExtraStrings(from, 4),
              ElementsAre(ElementsAre("a"), ElementsAre("a"), ElementsAre("b", "c"), ElementsAre("b", "c")));
  EXPECT_THAT(RealignExtraStrings(from, 1), ElementsAre(ElementsAre("a", "b", "c")));
  EXPECT_THAT(RealignExtraStrings(from, 2), testing::ElementsAreArray(from));
  EXPECT_THAT(RealignExtraStrings({}, 2), ElementsAre(ElementsAre(), ElementsAre()));
}

}  // namespace
}  // namespace llmd::hash
