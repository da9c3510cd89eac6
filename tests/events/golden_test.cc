// The golden vectors: wire bytes of each schema generation and what an indexer must see.
#include <sstream>

#include "gmock/gmock.h"
#include "llmd/base/strings.h"
#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"
#include "llmd/events/frames.h"
#include "llmd/events/topic.h"
#include "tests/events/events_test_util.h"

namespace llmd::events {
namespace {

using nlohmann::json;

json TextOrNull(std::string_view text) { return text.empty() ? json() : json(text); }

json NumberOrNull(const auto& value) { return value ? json(*value) : json(); }

json VectorForm(const ExtraKey& key) {
  switch (key.kind) {
    case ExtraKey::Kind::kString:
      return key.text;
    case ExtraKey::Kind::kStringAt:
      return {key.text, key.number};
    case ExtraKey::Kind::kInt:
      return key.number;
    default:
      return {{"bytes_hex", HexExcerpt(AsBytes(key.text), key.text.size())}};
  }
}

// The event as the vector file writes it.
json VectorForm(const Event& event) {
  json out = {{"type", EventKindName(event.kind)}};
  if (event.kind == EventKind::kAllBlocksCleared) return out;
  out["block_hashes_u64"] = json::array();
  for (const std::uint64_t hash : event.hashes) out["block_hashes_u64"].push_back(std::to_string(hash));
  out["tier"] = event.tier;
  out["group_idx"] = NumberOrNull(event.group_idx);
  if (event.kind == EventKind::kBlockRemoved) return out;
  out["parent_u64"] = event.parent ? json(std::to_string(*event.parent)) : json();
  out["token_ids"] = event.tokens;
  out["block_size"] = event.block_size;
  out["lora_id"] = NumberOrNull(event.lora_id);
  out["lora_name"] = TextOrNull(event.lora_name);
  out["extra_keys"] = json();
  for (const auto keys : event.extra_keys) {
    json block;
    for (const ExtraKey& key : keys) block.push_back(VectorForm(key));
    out["extra_keys"].push_back(block);
  }
  out["kv_cache_spec_kind"] = TextOrNull(event.spec_kind);
  out["kv_cache_spec_sliding_window"] = NumberOrNull(event.sliding_window);
  out["locality"] = TextOrNull(event.locality);
  out["ownership"] = TextOrNull(event.ownership);
  out["session_id"] = TextOrNull(event.session_id);
  return out;
}

TEST(Golden, EveryDecodableCaseDecodesToItsNormalizedEvents) {
  const EventDecoder decoder(DecodeOptions{.limits = {}, .zero_parent_is_root = false});
  EventBatch batch;
  int cases = 0;
  for (const json& entry : GoldenVectors()["cases"]) {
    if (!entry["must_decode"].get<bool>()) continue;
    SCOPED_TRACE(entry["id"].get<std::string>());
    ++cases;
    const Bytes payload = FromHex(entry["payload_hex"].get<std::string>());
    ASSERT_TRUE(decoder.Decode(payload, batch).ok());
    EXPECT_TRUE(batch.first_error().ok()) << batch.first_error();
    EXPECT_EQ(batch.skipped_events(), 0u);
    EXPECT_FALSE(batch.truncated());
    EXPECT_EQ(batch.timestamp(), entry["ts"].get<double>());
    EXPECT_EQ(NumberOrNull(batch.data_parallel_rank()), entry["data_parallel_rank"]);
    json events = json::array();
    for (const Event& event : batch.events()) events.push_back(VectorForm(event));
    EXPECT_EQ(events, entry["events"]);
  }
  EXPECT_GE(cases, 24);
}

TEST(Golden, BadCasesGiveNothingOfTheBadEvent) {
  const EventDecoder decoder;
  EventBatch batch;
  const auto decode = [&](std::string_view id) {
    static Bytes payload;
    payload = FromHex(GoldenCase(id)["payload_hex"].get<std::string>());
    return decoder.Decode(payload, batch);
  };
  EXPECT_EQ(decode("bad/not_array").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(batch.events().empty());

  ASSERT_TRUE(decode("bad/no_tag").ok());
  EXPECT_TRUE(batch.events().empty());
  EXPECT_EQ(batch.skipped_events(), 1u);
  EXPECT_THAT(std::string(batch.first_error().message()), testing::HasSubstr("'type' is missing"));

  ASSERT_TRUE(decode("bad/short_stored").ok());
  EXPECT_TRUE(batch.events().empty());
  EXPECT_EQ(batch.data_parallel_rank(), 0u);
  EXPECT_THAT(std::string(batch.first_error().message()), testing::HasSubstr("'token_ids' is missing"));

  ASSERT_TRUE(decode("bad/unknown_tag").ok());
  ASSERT_EQ(batch.events().size(), 1u);
  EXPECT_EQ(batch.events()[0].kind, EventKind::kBlockRemoved);
  EXPECT_EQ(batch.skipped_events(), 1u);

  ASSERT_TRUE(decode("bad/truncated").ok());
  EXPECT_TRUE(batch.events().empty());
  EXPECT_TRUE(batch.truncated());
  EXPECT_EQ(batch.skipped_events(), 1u);
}

TEST(Golden, BinaryHashesKeepTheirBytes) {
  const Bytes payload = FromHex(GoldenCase("v0.11/bytes")["payload_hex"].get<std::string>());
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  const Event& stored = batch.events()[0];
  ASSERT_EQ(stored.hash_bytes.size(), 2u);
  EXPECT_EQ(stored.hash_bytes[1].size(), 32u);
  EXPECT_EQ(stored.hash_bytes[1][0], 32);
  EXPECT_EQ(stored.parent_bytes, stored.hash_bytes[0]);
}

TEST(Golden, LookaheadTokens) {
  const Bytes payload = FromHex(GoldenCase("v0.33/map_wide")["payload_hex"].get<std::string>());
  EventBatch batch;
  ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
  const Event& stored = batch.events()[0];
  ASSERT_EQ(stored.lookahead_tokens.size(), 2u);
  EXPECT_THAT(stored.lookahead_tokens[0], testing::ElementsAre(5, 70000));
  EXPECT_TRUE(stored.lookahead_tokens[1].empty());
  EXPECT_EQ(batch.events()[1].ownership, "fs-tier");
}

TEST(Golden, SaltOfBothSGLangForms) {
  for (const char* id : {"sglang/array_metadata", "sglang/map"}) {
    const Bytes payload = FromHex(GoldenCase(id)["payload_hex"].get<std::string>());
    EventBatch batch;
    ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
    EXPECT_EQ(batch.events()[0].cache_salt, "tenant-a") << id;
    EXPECT_EQ(batch.events()[0].lora_name, "") << id;
  }
}

TEST(Golden, ReencodingGivesTheSameBytes) {
  const std::pair<const char*, Schema> cases[] = {
      {"v0.9/stored", Schema::kArray6},           {"v0.9/removed", Schema::kArray6},
      {"v0.9/cleared", Schema::kArray6},          {"v0.9.2/stored_removed", Schema::kArray6},
      {"v0.11/stored", Schema::kArray7},          {"v0.11/removed", Schema::kArray7},
      {"v0.11/bytes", Schema::kArray7},           {"v0.15/stored_lora", Schema::kArray8},
      {"v0.18/extra_keys_bare", Schema::kArray9}, {"v0.20/array_full", Schema::kArray10},
      {"v0.22/array_spec", Schema::kArray12},     {"v0.26/map_stored", Schema::kMap},
      {"v0.26/map_mixed", Schema::kMap},          {"v0.30/map_locality", Schema::kMap},
      {"offload/cpu_no_tokens", Schema::kArray8}, {"empty_batch", Schema::kMap},
  };
  EventBatch batch;
  Bytes encoded;
  for (const auto& [id, schema] : cases) {
    const Bytes payload = FromHex(GoldenCase(id)["payload_hex"].get<std::string>());
    ASSERT_TRUE(EventDecoder().Decode(payload, batch).ok());
    EncodeBatch(schema, batch.timestamp(), batch.events(), batch.data_parallel_rank(), encoded);
    EXPECT_EQ(HexExcerpt(encoded, encoded.size()), GoldenCase(id)["payload_hex"].get<std::string>()) << id;
  }
}

std::vector<Bytes> HexFrames(const json& list) {
  std::vector<Bytes> frames;
  for (const json& hex : list) frames.push_back(FromHex(hex.get<std::string>()));
  return frames;
}

TEST(Golden, LiveFrames) {
  for (const json& entry : GoldenVectors()["cases"]) {
    if (!entry.contains("frames_hex")) continue;
    const std::vector<Bytes> bytes = HexFrames(entry["frames_hex"]);
    const std::vector<Frame> frames(bytes.begin(), bytes.end());
    const auto message = ParseLiveMessage(frames);
    ASSERT_TRUE(message.ok()) << message.status();
    EXPECT_EQ(message->topic, entry["topic"].get<std::string>());
    EXPECT_EQ(message->seq, entry["seq"].get<std::uint64_t>());
    EXPECT_EQ(message->payload.size(), bytes[2].size());
  }
}

TEST(Golden, ReplayFramesInBothLayouts) {
  const json& replay = GoldenVectors()["replay"];
  for (const char* layout : {"reply_with_topic_dealer_sees", "reply_without_topic_dealer_sees"}) {
    std::ostringstream seen;
    for (const json& message : replay[layout]) {
      const std::vector<Bytes> bytes = HexFrames(message);
      const std::vector<Frame> frames(bytes.begin(), bytes.end());
      const auto parsed = ParseReplayMessage(frames);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      if (parsed->end) {
        seen << "end";
      } else {
        seen << parsed->seq << ":" << parsed->payload.size() << " ";
        EXPECT_EQ(parsed->topic, std::string_view(layout).find("without") == std::string_view::npos
                                     ? "kv@10.0.0.7:8000@m"
                                     : "");
      }
    }
    EXPECT_EQ(seen.str(), "5:30 6:12 end") << layout;
  }
  const ReplayRequest request(5);
  const std::vector<Bytes> sent = HexFrames(replay["request_start_5_dealer_sends"]);
  ASSERT_EQ(sent.size(), request.frames().size());
  EXPECT_TRUE(request.frames()[0].empty());
  EXPECT_TRUE(std::ranges::equal(request.frames()[1], sent[1]));
  const std::vector<Bytes> seen = HexFrames(replay["request_start_5_router_sees"]);
  EXPECT_EQ(*ParseReplayRequest(std::vector<Frame>(seen.begin(), seen.end())), 5u);
}

TEST(Frames, EmptyTopicWithTopicLayoutLosesOneFrameOnly) {
  const Bytes seq = FromHex("0000000000000007"), payload = FromText("x");
  const std::vector<Frame> with_envelope = {Frame(), Frame(), seq, payload};
  const auto parsed = ParseReplayMessage(with_envelope);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->seq, 7u);
  EXPECT_EQ(parsed->topic, "");
  EXPECT_EQ(parsed->payload.size(), 1u);
}

TEST(Frames, AnEmptyPayloadAloneIsNotTheEnd) {
  const Bytes seq = FromHex("0000000000000007");
  const auto parsed = ParseReplayMessage(std::vector<Frame>{Frame(), seq, Frame()});
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->end);
}

TEST(Frames, MalformedMessagesNameWhatIsWrong) {
  const Bytes short_seq = FromHex("01"), end = FromHex("ffffffffffffffff"), payload = FromText("x");
  EXPECT_THAT(
      std::string(ParseLiveMessage(std::vector<Frame>{payload, short_seq, payload}).status().message()),
      testing::HasSubstr("'seq' has 1 bytes, expected 8"));
  EXPECT_FALSE(ParseLiveMessage(std::vector<Frame>{payload, end, payload}).ok());
  EXPECT_FALSE(ParseLiveMessage(std::vector<Frame>{payload}).ok());
  EXPECT_FALSE(ParseReplayMessage({}).ok());
  EXPECT_FALSE(ParseReplayMessage(std::vector<Frame>{Frame()}).ok());
  EXPECT_FALSE(ParseReplayMessage(std::vector<Frame>{Frame(), end, payload}).ok());
  EXPECT_FALSE(ParseReplayMessage(std::vector<Frame>{payload, payload, end, payload, payload}).ok());
  EXPECT_FALSE(ParseReplayRequest(std::vector<Frame>{payload, end}).ok());
}

TEST(TopicName, PodAndModel) {
  const Topic topic = ParseTopic("kv@10.0.0.1:8000@Qwen/Qwen3-8B");
  EXPECT_EQ(topic.pod, "10.0.0.1:8000");
  EXPECT_EQ(topic.model, "Qwen/Qwen3-8B");
  EXPECT_EQ(MakeTopic(topic.pod, topic.model), "kv@10.0.0.1:8000@Qwen/Qwen3-8B");
}

TEST(TopicName, OnlyTheFirstTwoSeparate) {
  EXPECT_EQ(ParseTopic("kv@pod@org/model@v2").model, "org/model@v2");
}

TEST(TopicName, OtherShapesAreAPod) {
  for (const char* text : {"", "kv-events", "kv@pod"}) {
    EXPECT_EQ(ParseTopic(text).pod, text);
    EXPECT_EQ(ParseTopic(text).model, "");
  }
  EXPECT_EQ(ParseTopic("@@").pod, "");
}

TEST(TopicName, PseudoPods) {
  EXPECT_TRUE(IsPseudoPod(ParseTopic("kv@SHARED_STORAGE@m").pod));
  EXPECT_TRUE(IsPseudoPod("OBJECT_STORE"));
  EXPECT_FALSE(IsPseudoPod("10.0.0.1:8000"));
}

}  // namespace
}  // namespace llmd::events
