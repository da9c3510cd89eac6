// The decoder against the literal reference: random batches in every schema, and damaged ones.
#include "llmd/base/strings.h"
#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"
#include "tests/events/events_test_util.h"
#include "tests/events/reference_decoder.h"

namespace llmd::events {
namespace {

using nlohmann::json;

constexpr Schema kSchemas[] = {Schema::kArray6,  Schema::kArray7,  Schema::kArray8, Schema::kArray9,
                               Schema::kArray10, Schema::kArray12, Schema::kMap,    Schema::kMapWide};

// Decodes into `batch` and compares with the reference.
void ExpectLikeReference(const Bytes& payload, EventBatch& batch) {
  const ReferenceBatch expected = ReferenceDecode(payload);
  const absl::Status status = EventDecoder().Decode(payload, batch);
  const std::string hex = HexExcerpt(payload, 400);
  ASSERT_EQ(status.ok(), expected.usable) << status << "\n" << hex;
  if (!status.ok()) return;
  EXPECT_EQ(batch.skipped_events(), expected.skipped) << batch.first_error() << "\n" << hex;
  EXPECT_EQ(batch.truncated(), expected.truncated) << hex;
  EXPECT_EQ(batch.first_error().ok(), expected.skipped == 0 && !expected.truncated);
  const bool not_a_number = expected.timestamp != expected.timestamp;
  EXPECT_TRUE(not_a_number || batch.timestamp() == expected.timestamp) << hex;
  const auto rank = batch.data_parallel_rank();
  EXPECT_EQ(rank ? json(*rank) : json(), expected.rank);
  EXPECT_EQ(ToJson(batch.events()), expected.events) << hex;
}

TEST(RandomBatches, MapFormGivesBackWhatWasEncoded) {
  RandomEvents source(11);
  EventBatch batch;
  Bytes payload;
  for (int i = 0; i < 500; ++i) {
    const std::vector<Event> events = source.Batch(/*binary_hashes=*/i % 2);
    EncodeBatch(Schema::kMapWide, i, events, i, payload);
    ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
    ASSERT_TRUE(batch.first_error().ok()) << batch.first_error();
    json expected = ToJson(events), got = ToJson(batch.events());
    // The tier is the decoder's own; keys of no block at all cannot be told from no keys.
    for (json* list : {&expected, &got}) {
      for (json& event : *list) event.erase("tier");
    }
    for (json& event : expected) {
      if (event["kind"] == "BlockRemoved") event["block_size"] = 0;
    }
    ASSERT_EQ(got, expected);
    ASSERT_EQ(batch.data_parallel_rank(), static_cast<std::uint32_t>(i));
  }
}

TEST(RandomBatches, EverySchemaDecodesLikeTheReferenceAndReencodesTheSame) {
  RandomEvents source(12);
  EventBatch batch;
  Bytes payload, again;
  for (int i = 0; i < 100; ++i) {
    for (const Schema schema : kSchemas) {
      const std::vector<Event> events = source.Batch(i % 2);
      EncodeBatch(schema, 0.5 * i, events, std::nullopt, payload);
      ExpectLikeReference(payload, batch);
      EXPECT_EQ(batch.skipped_events(), 0u);
      EncodeBatch(schema, batch.timestamp(), batch.events(), std::nullopt, again);
      ASSERT_EQ(HexExcerpt(again, 9999), HexExcerpt(payload, 9999));
    }
  }
}

TEST(RandomBatches, DamagedPayloadsDecodeLikeTheReference) {
  RandomEvents source(13);
  Random& random = source.random();
  std::vector<Bytes> seeds;
  for (const json& entry : GoldenVectors()["cases"]) {
    seeds.push_back(FromHex(entry["payload_hex"].get<std::string>()));
  }
  // Bytes that begin something, more often than bytes at large.
  constexpr unsigned kHeads[] = {0x00, 0x7f, 0x80, 0x81, 0x90, 0x91, 0x92, 0x9c, 0xa0, 0xa4, 0xc0, 0xc1,
                                 0xc2, 0xc4, 0xc5, 0xc6, 0xc7, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf, 0xd0,
                                 0xd1, 0xd3, 0xd4, 0xd8, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff};
  EventBatch batch;
  int usable = 0;
  for (int i = 0; i < 10000; ++i) {
    Bytes payload;
    if (random.Chance(0.5)) {
      payload = seeds[random.Below(seeds.size())];
    } else {
      EncodeBatch(kSchemas[random.Below(8)], i, source.Batch(i % 2), 0, payload);
    }
    for (std::uint64_t n = random.Between(1, 4); n > 0; --n) {
      const std::size_t at = random.Below(payload.size());
      switch (random.Below(5)) {
        case 0:
          payload[at] = static_cast<std::byte>(random.Next());
          break;
        case 1:
          payload[at] = static_cast<std::byte>(kHeads[random.Below(std::size(kHeads))]);
          break;
        case 2:
          payload.erase(payload.begin() + at);
          break;
        case 3:
          payload.insert(payload.begin() + at,
                         static_cast<std::byte>(kHeads[random.Below(std::size(kHeads))]));
          break;
        case 4:
          if (random.Chance(0.2)) payload.resize(at);
          break;
      }
      if (payload.empty()) break;
    }
    ExpectLikeReference(payload, batch);
    usable += !batch.events().empty();
    if (testing::Test::HasFailure()) FAIL() << "at iteration " << i;
  }
  EXPECT_GT(usable, 1000);  // the damage leaves enough to compare
}

}  // namespace
}  // namespace llmd::events
