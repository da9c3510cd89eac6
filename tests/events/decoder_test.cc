// What the decoder accepts, refuses and reports, and that it does not allocate once warm.
#include "llmd/events/decoder.h"

#include "gmock/gmock.h"
#include "llmd/events/encoder.h"
#include "src/events/msgpack_writer.h"
#include "tests/events/events_test_util.h"
#include "tests/support/allocation_count.h"

namespace llmd::events {
namespace {

using msgpack::Writer;
using testing::ElementsAre;
using testing::HasSubstr;

// A batch whose events `write` puts down.
template <typename Write>
Bytes MakeBatch(std::size_t events, const Write& write) {
  Bytes payload;
  Writer out(payload);
  out.Array(3);
  out.Double(1.5);
  out.Array(events);
  write(out);
  out.Uint(0);
  return payload;
}

// An array-form BlockStored of hash 7 with `tokens` written by `write`.
template <typename Write>
Bytes StoredWithTokens(const Write& write) {
  return MakeBatch(1, [&](Writer& out) {
    out.Array(5);
    out.String("BlockStored");
    out.Array(1);
    out.Uint(7);
    out.Nil();
    write(out);
    out.Uint(1);
  });
}

std::string FirstError(const EventBatch& batch) { return std::string(batch.first_error().message()); }

TEST(Decode, TokensOfEveryWidth) {
  const Bytes payload = StoredWithTokens([](Writer& out) {
    out.Array(8);
    for (const std::uint64_t token : {0u, 127u, 128u, 255u, 256u, 65535u, 65536u}) out.Uint(token);
    out.Uint(4294967295u);
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  EXPECT_THAT(batch.events()[0].tokens, ElementsAre(0, 127, 128, 255, 256, 65535, 65536, 4294967295u));
}

TEST(Decode, TokensInNeedlesslyWideForms) {
  const Bytes tokens = FromHex("95cc05cd0006ce00000007cf0000000000000008d009");
  const Bytes payload = StoredWithTokens([&](Writer& out) {
    out.Raw({reinterpret_cast<const char*>(tokens.data()), tokens.size()});
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  EXPECT_THAT(batch.events()[0].tokens, ElementsAre(5, 6, 7, 8, 9));
}

TEST(Decode, TokensBeyond32BitsOrNegativeAreRefusedWithTheirValue) {
  EventBatch batch;
  const Bytes wide = StoredWithTokens([](Writer& out) {
    out.Array(1);
    out.Uint(4294967296u);
  });
  ASSERT_TRUE(EventDecoder().Decode(wide, batch).ok());
  EXPECT_TRUE(batch.events().empty());
  EXPECT_THAT(FirstError(batch),
              HasSubstr("event 0: field 'token_ids': value 4294967296 is outside 0..4294967295"));
  EXPECT_THAT(FirstError(batch), HasSubstr("event begins 95ab426c6f636b53746f726564"));
  const Bytes negative = StoredWithTokens([](Writer& out) {
    out.Array(1);
    out.Int(-5);
  });
  ASSERT_TRUE(EventDecoder().Decode(negative, batch).ok());
  EXPECT_THAT(FirstError(batch), HasSubstr("value -5 is outside"));
}

TEST(Decode, BigramPairsBecomeTwoRuns) {
  const Bytes payload = StoredWithTokens([](Writer& out) {
    out.Array(2);
    for (const std::uint64_t first : {10u, 70000u}) {
      out.Array(2);
      out.Uint(first);
      out.Uint(first + 1);
    }
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  EXPECT_THAT(batch.events()[0].tokens, ElementsAre(10, 70000));
  EXPECT_THAT(batch.events()[0].bigram_tokens, ElementsAre(11, 70001));
}

TEST(Decode, ZeroParentIsTheRootUnlessToldOtherwise) {
  const Bytes payload = FromHex(GoldenCase("llmd_fs/storage")["payload_hex"].get<std::string>());
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  EXPECT_EQ(batch.events()[0].parent, std::nullopt);
  const EventDecoder literal(DecodeOptions{.limits = {}, .zero_parent_is_root = false});
  ASSERT_TRUE(literal.Decode(payload, batch).ok());
  EXPECT_EQ(batch.events()[0].parent, 0u);
}

TEST(Decode, MooncakeEvents) {
  const Bytes payload = MakeBatch(1, [](Writer& out) {
    out.Map(11, false);
    out.String("event_id");
    out.Uint(3);
    out.String("event_type");
    out.String("stored");
    out.String("model_name");
    out.String("m");
    out.String("block_size");
    out.Nil();
    out.String("tenant_id");
    out.String("default");
    out.String("medium");
    out.String("cpu");
    out.String("seq_hashes");
    out.Array(1);
    out.Int(-1);
    out.String("parent_hash");
    out.Uint(9);
    out.String("token_ids");
    out.Nil();
    out.String("object_key");
    out.String("key");
    out.String("base_block_idx");
    out.Uint(4);
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  ASSERT_EQ(batch.events().size(), 1u) << batch.first_error();
  const Event& event = batch.events()[0];
  EXPECT_EQ(event.kind, EventKind::kBlockStored);
  EXPECT_THAT(event.hashes, ElementsAre(~std::uint64_t{0}));
  EXPECT_EQ(event.parent, 9u);
  EXPECT_TRUE(event.tokens.empty());
  EXPECT_EQ(event.tier, "cpu");
  EXPECT_EQ(event.tenant_id, "default");
  EXPECT_EQ(event.object_key, "key");
  EXPECT_EQ(event.first_block, 4u);
}

TEST(Decode, ExtraKeysOfEveryShape) {
  const Bytes payload = MakeBatch(1, [](Writer& out) {
    out.Array(9);
    out.String("BlockStored");
    out.Array(2);
    out.Uint(1);
    out.Uint(2);
    out.Nil();
    out.Array(0);
    out.Uint(16);
    for (int i = 0; i < 3; ++i) out.Nil();
    out.Array(2);
    out.Array(5);
    out.String("salt");
    out.Array(2);
    out.String("image");
    out.Int(-11);
    out.Int(7);
    out.Binary("digest");
    out.Array(3);
    for (int i = 0; i < 3; ++i) out.Nil();
    out.Nil();
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  ASSERT_EQ(batch.events().size(), 1u) << batch.first_error();
  const Event& event = batch.events()[0];
  using Kind = ExtraKey::Kind;
  EXPECT_THAT(event.ExtraKeysOf(0),
              ElementsAre(ExtraKey{Kind::kString, "salt", 0}, ExtraKey{Kind::kStringAt, "image", -11},
                          ExtraKey{Kind::kInt, {}, 7}, ExtraKey{Kind::kBytes, "digest", 0},
                          ExtraKey{Kind::kOther, "\x93\xc0\xc0\xc0", 0}));
  EXPECT_TRUE(event.ExtraKeysOf(1).empty());
  EXPECT_TRUE(event.ExtraKeysOf(2).empty());
}

TEST(Decode, ABadEventInsideABinaryDoesNotTouchItsNeighbours) {
  const Bytes payload = MakeBatch(3, [](Writer& out) {
    out.Binary("\x95\xab");  // cut off inside
    out.Binary(
        "\x91\xb0"
        "AllBlocksCleared");
    out.Binary("\xc4\x01x");  // packed once too often
  });
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  EXPECT_EQ(batch.events().size(), 1u);
  EXPECT_EQ(batch.skipped_events(), 2u);
  EXPECT_FALSE(batch.truncated());
  EXPECT_EQ(batch.data_parallel_rank(), 0u);
}

TEST(Decode, TruncationAtEveryByteKeepsTheEventsBeforeIt) {
  const Bytes payload = FromHex(GoldenCase("v0.22/array_spec")["payload_hex"].get<std::string>());
  EventBatch batch;
  std::size_t most = 0;
  for (std::size_t size = 0; size < payload.size(); ++size) {
    const Bytes cut(payload.begin(),
                    payload.begin() + size);  // its own allocation, for the address sanitizer
    const absl::Status status = EventDecoder().Decode(cut, batch);
    if (!status.ok()) {
      EXPECT_LT(size, 11u);
      continue;
    }
    EXPECT_TRUE(batch.truncated());
    EXPECT_EQ(batch.events().size() + batch.skipped_events(), 3u);
    EXPECT_GE(batch.events().size(), most);
    most = batch.events().size();
  }
  EXPECT_EQ(most, 3u);
}

TEST(Decode, BatchesThatMakeNoSense) {
  EventBatch batch;
  const auto message = [&](std::string_view hex) {
    const absl::Status status = EventDecoder().Decode(FromHex(hex), batch);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(""), HasSubstr("'batch'"));
  EXPECT_THAT(message("c1"), HasSubstr("'batch'"));
  EXPECT_THAT(message("9101"), HasSubstr("'batch': expected array of 2 or more"));
  EXPECT_THAT(message("92a16190"), HasSubstr("'ts': expected number, got string"));
  EXPECT_THAT(message("920180"), HasSubstr("'events': expected array, got map"));
  EXPECT_THAT(message("930190a130"), HasSubstr("'data_parallel_rank'"));
  EXPECT_THAT(message("930190ff"), HasSubstr("'data_parallel_rank'"));
  EXPECT_TRUE(batch.events().empty());
}

TEST(Limits, EachNamesFieldValueAndLimit) {
  const Bytes payload = FromHex(GoldenCase("v0.20/array_full")["payload_hex"].get<std::string>());
  EventBatch batch;
  const auto skipped = [&](const DecodeLimits& limits) {
    EXPECT_TRUE(EventDecoder(limits).Decode(payload, batch).ok());
    EXPECT_EQ(batch.events().size(), 1u);  // the removal behind it
    return FirstError(batch);
  };
  EXPECT_EQ(EventDecoder(DecodeLimits{.max_payload_bytes = 292}).Decode(payload, batch).message(),
            "event batch: payload bytes 293 exceeds the limit 292");
  const absl::Status too_many = EventDecoder(DecodeLimits{.max_events = 1}).Decode(payload, batch);
  EXPECT_EQ(too_many.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(too_many.message(), "event batch: events 2 exceeds the limit 1");
  EXPECT_THAT(skipped({.max_hashes = 1}), HasSubstr("'block_hashes': size 2 exceeds the limit 1"));
  EXPECT_THAT(skipped({.max_tokens = 31}), HasSubstr("'token_ids': size 32 exceeds the limit 31"));
  EXPECT_THAT(skipped({.max_string_bytes = 63}), HasSubstr("'extra_keys'"));
  EXPECT_THAT(skipped({.max_extra_keys_per_block = 0}),
              HasSubstr("'extra_keys': size 1 exceeds the limit 0"));
  EXPECT_THAT(skipped({.max_decoded_bytes = 100}), HasSubstr("'token_ids': size 144 exceeds the limit 100"));
}

TEST(Limits, NestingOfUninterpretedValues) {
  const auto with_key_nested = [](int depth) {
    return MakeBatch(1, [&](Writer& out) {
      out.Map(3, false);
      out.String("type");
      out.String("BlockStored");
      out.String("block_hashes");
      out.Array(0);
      out.String("extra_keys");
      out.Array(1);
      out.Array(1);
      for (int i = 0; i < depth; ++i) out.Array(1);
      out.Nil();
    });
  };
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(with_key_nested(16), batch).ok());
  EXPECT_EQ(batch.events().size(), 1u) << batch.first_error();
  for (const int depth : {17, 64, 65, 66, 1'000'000}) {
    ASSERT_TRUE(EventDecoder().Decode(with_key_nested(depth), batch).ok());
    EXPECT_EQ(batch.events().size(), 0u);
    EXPECT_THAT(FirstError(batch), HasSubstr("(nesting)': size " + std::to_string(std::min(depth, 65))));
    EXPECT_EQ(batch.data_parallel_rank(), 0u);  // the rest of the batch is still found
  }
}

TEST(Limits, HugeCountsCostNothing) {
  EventBatch batch;
  // Arrays that claim 2^32-1 elements: of events, hashes, tokens; and a map of as many pairs.
  for (const char* hex : {"9201ddffffffff", "92019196ab426c6f636b53746f726564ddffffffff",
                          "92019196ab426c6f636b53746f7265649101c0ddffffffff01", "920191dfffffffff"}) {
    const Bytes payload = FromHex(hex);
    const DecodeLimits unlimited{
        .max_events = UINT32_MAX, .max_hashes = UINT32_MAX, .max_tokens = UINT32_MAX};
    ASSERT_TRUE(EventDecoder(unlimited).Decode(payload, batch).ok());
    EXPECT_TRUE(batch.truncated());
    EXPECT_LT(batch.capacity_bytes(), 40'000u);
  }
}

TEST(Reuse, NoAllocationOnceWarm) {
  RandomEvents source(5);
  std::vector<Bytes> payloads(200);
  std::vector<std::vector<Event>> batches;
  for (Bytes& payload : payloads) {
    batches.push_back(source.Batch(true));
    EncodeBatch(Schema::kMapWide, 1, batches.back(), 0, payload);
  }
  const EventDecoder decoder;
  EventBatch batch;
  Bytes encoded;
  std::size_t events = 0;
  const auto run = [&] {
    for (std::size_t i = 0; i < payloads.size(); ++i) {
      ASSERT_TRUE(decoder.Decode(payloads[i], batch).ok());
      events += batch.events().size();
      EncodeBatch(Schema::kMapWide, 1, batches[i], 0, encoded);
    }
  };
  run();
  run();
  const std::size_t before = AllocationCount();
  const std::size_t capacity = batch.capacity_bytes();
  run();
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_EQ(batch.capacity_bytes(), capacity);
  EXPECT_GT(events, 600u);
}

TEST(Reuse, AMovedBatchKeepsItsEventsValid) {
  const Bytes payload = FromHex(GoldenCase("v0.11/bytes")["payload_hex"].get<std::string>());
  EventBatch first;
  ASSERT_TRUE(EventDecoder().Decode(payload, first).ok());
  const nlohmann::json events = ToJson(first.events());
  const EventBatch second = std::move(first);
  EXPECT_EQ(ToJson(second.events()), events);
}

}  // namespace
}  // namespace llmd::events
