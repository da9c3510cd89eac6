// Shared by the tests of llmd::ingest: events go through the encoder and the decoder, answers come from the
// index.
#ifndef TESTS_INGEST_INGEST_TEST_UTIL_H_
#define TESTS_INGEST_INGEST_TEST_UTIL_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::ingest {

inline constexpr std::uint32_t kBlock = 4;  // tokens per block in these tests
inline constexpr std::string_view kModel = "base-model";

using Keys = std::vector<std::uint64_t>;
using Tokens = std::vector<TokenId>;

// `blocks` blocks of tokens; equal `first` and position, equal tokens.
inline Tokens MakeTokens(TokenId first, std::size_t blocks, std::uint32_t block_size = kBlock) {
  Tokens tokens(blocks * block_size);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = first * 1000 + static_cast<TokenId>(i);
  return tokens;
}

inline events::ExtraKey Text(std::string_view text) {
  return {.kind = events::ExtraKey::Kind::kString, .text = text, .number = 0};
}
inline events::ExtraKey TextAt(std::string_view text, std::int64_t offset) {
  return {.kind = events::ExtraKey::Kind::kStringAt, .text = text, .number = offset};
}
inline events::ExtraKey Number(std::int64_t number) {
  return {.kind = events::ExtraKey::Kind::kInt, .text = {}, .number = number};
}
inline events::ExtraKey Bytes(std::string_view bytes) {
  return {.kind = events::ExtraKey::Kind::kBytes, .text = bytes, .number = 0};
}

// The fields of one stored event. The views of `rest` are kept by the caller until it is sent.
struct Stored {
  Keys hashes;
  std::optional<std::uint64_t> parent = std::nullopt;
  Tokens tokens = {};
  std::vector<std::vector<events::ExtraKey>> extra_keys = {};
  events::Event rest = {};
};

class IngestTest : public testing::Test {
 protected:
  IngestTest() { Restart({}); }

  void Restart(const IngestOptions& options,
               const index::PrefixIndexOptions& index_options = {.max_bytes = 64 << 20, .max_holders = 64}) {
    ingestor_.reset();
    index_ = *index::PrefixIndex::Create(index_options);
    ingestor_ = std::make_unique<KvEventIngestor>(*index_, options);
  }

  PublisherId Add(std::string_view endpoint, std::string_view model = kModel) {
    const auto id = ingestor_->AddPublisher({.endpoint = std::string(endpoint), .model = std::string(model)});
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or(0);
  }

  // Encodes, decodes and applies one batch. True when a replay would help.
  bool Send(PublisherId publisher, std::vector<events::Event> events,
            std::optional<std::uint32_t> rank = std::nullopt, events::Schema schema = events::Schema::kMap) {
    events::EncodeBatch(schema, 1.5, events, rank, payload_);
    return SendPayload(publisher, payload_);
  }
  bool SendPayload(PublisherId publisher, std::span<const std::byte> payload) {
    EXPECT_TRUE(decoder_.Decode(payload, batch_).ok());
    const absl::StatusOr<bool> replay = ingestor_->Apply(publisher, batch_);
    EXPECT_TRUE(replay.ok()) << replay.status();
    return replay.value_or(false);
  }
  bool Store(PublisherId publisher, const Stored& stored, std::optional<std::uint32_t> rank = std::nullopt,
             events::Schema schema = events::Schema::kMap) {
    std::vector<std::span<const events::ExtraKey>> extra(stored.extra_keys.begin(), stored.extra_keys.end());
    return Send(publisher, {StoredEvent(stored, extra)}, rank, schema);
  }
  // A stored event of `blocks` blocks of MakeTokens(first), from the root, with hashes key, key + 1, ...
  bool StoreRun(PublisherId publisher, std::uint64_t key, TokenId first, std::size_t blocks,
                std::optional<std::uint32_t> rank = std::nullopt) {
    return Store(publisher, {.hashes = Run(key, blocks), .tokens = MakeTokens(first, blocks)}, rank);
  }
  static Keys Run(std::uint64_t key, std::size_t blocks) {
    Keys keys(blocks);
    for (std::size_t i = 0; i < blocks; ++i) keys[i] = key + i;
    return keys;
  }
  static events::Event StoredEvent(const Stored& stored,
                                   const std::vector<std::span<const events::ExtraKey>>& extra) {
    events::Event event = stored.rest;
    event.kind = events::EventKind::kBlockStored;
    event.hashes = stored.hashes;
    event.parent = stored.parent;
    event.tokens = stored.tokens;
    if (event.block_size == 0) event.block_size = kBlock;
    event.extra_keys = extra;
    return event;
  }
  bool Remove(PublisherId publisher, const Keys& hashes, std::string_view medium = "GPU",
              std::optional<std::uint32_t> rank = std::nullopt) {
    events::Event event;
    event.kind = events::EventKind::kBlockRemoved;
    event.hashes = hashes;
    event.medium = medium;
    return Send(publisher, {event}, rank);
  }
  bool ClearAll(PublisherId publisher, std::optional<std::uint32_t> rank = std::nullopt) {
    return Send(publisher, {events::Event()}, rank);  // the default kind
  }

  // Depth per holder, named "endpoint/rank/tier" ("-" for no rank), of a prompt.
  using Depths = std::map<std::string, std::uint32_t>;
  Depths Match(const PromptBlocks& prompt, std::string_view model = kModel, std::string_view lora = "") {
    std::vector<BlockKey> chain;
    ContentKeys(prompt, chain);
    index::PrefixIndex::Reader reader(*index_);
    index::MatchResult result;
    reader.Match(RequestNamespace(model, lora, prompt.block_size), chain, result);
    std::map<std::uint32_t, std::string> names;
    index_->ForEachHolder([&](index::HolderId holder, const index::HolderOptions& options) {
      names[holder.slot] = options.endpoint + "/" +
                           (options.dp_rank ? std::to_string(*options.dp_rank) : "-") + "/" + options.tier;
    });
    Depths depths;
    for (const index::HolderDepth& row : result) depths[names.at(row.slot)] = row.depth;
    return depths;
  }
  Depths Match(TokenId first, std::size_t blocks) {
    const Tokens tokens = MakeTokens(first, blocks);
    return Match({.tokens = tokens, .block_size = kBlock});
  }
  const IngestCounters& counters() const { return ingestor_->counters(); }

  std::unique_ptr<index::PrefixIndex> index_;
  std::unique_ptr<KvEventIngestor> ingestor_;
  events::EventDecoder decoder_;
  events::EventBatch batch_;
  std::vector<std::byte> payload_;
};

}  // namespace llmd::ingest

#endif  // TESTS_INGEST_INGEST_TEST_UTIL_H_
