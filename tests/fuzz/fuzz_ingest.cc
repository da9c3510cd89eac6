// Any payloads from a few publishers that come and go, on a small index: no crash, and everything stays in
// its bounds.
//
// Input: steps of one byte of operation (low 2 bits: publisher; next 2: apply, apply, clear, replace), and
// for "apply" a 16-bit little-endian length with that many bytes of payload (or what is left).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "llmd/events/decoder.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace {

using namespace llmd;

void Require(bool condition) {
  if (!condition) std::abort();
}

class Harness {
 public:
  Harness()
      : index_(*index::PrefixIndex::Create({.max_bytes = 2 << 20, .max_holders = 12})),
        ingestor_(*index_, {.max_orphan_blocks = 16, .max_publishers = 4, .max_groups = 2, .max_holders = 5}),
        reader_(*index_) {
    for (std::size_t i = 0; i < 4; ++i) Add(i);
  }

  void Step(std::span<const std::uint8_t>& input) {
    const std::uint8_t operation = input[0];
    input = input.subspan(1);
    const std::size_t publisher = operation & 3;
    switch ((operation >> 2) & 3) {
      case 2:
        Require(ingestor_.Clear(publishers_[publisher]));
        return;
      case 3:
        Require(ingestor_.RemovePublisher(publishers_[publisher]));
        Require(!ingestor_.Clear(publishers_[publisher]));
        Add(publisher);
        return;
      default:
        break;
    }
    if (input.size() < 2) return;
    const std::size_t length = std::min<std::size_t>(input[0] + 256 * input[1], input.size() - 2);
    Apply(publishers_[publisher], std::as_bytes(input.subspan(2, length)));
    input = input.subspan(2 + length);
  }

 private:
  void Add(std::size_t i) {
    // Two publishers of one model, two of others.
    const auto id = ingestor_.AddPublisher(
        {.endpoint = "pod" + std::to_string(i), .model = "model" + std::to_string(i / 2 * i)});
    Require(id.ok());
    publishers_[i] = *id;
  }

  void Apply(ingest::PublisherId publisher, std::span<const std::byte> payload) {
    if (!decoder_.Decode(payload, batch_).ok()) return;
    const ingest::IngestCounters before = ingestor_.counters();
    const auto replay = ingestor_.Apply(publisher, batch_);
    Require(replay.ok());
    const ingest::IngestCounters& after = ingestor_.counters();
    Require(*replay == (after.orphans_parked > before.orphans_parked));
    Require(after.orphans_attached + after.orphans_dropped <= after.orphans_parked);
    Require(index_->stats().holders <= 12);
    for (const events::Event& event : batch_.events()) MatchEvent(event);
  }

  // The tokens of an event, as a prompt of their own.
  void MatchEvent(const events::Event& event) {
    if (event.hashes.empty() || event.tokens.size() < event.hashes.size()) return;
    const ingest::MultimodalItem item = {.identifier = event.medium, .offset = 1, .length = event.block_size};
    const auto block_size = static_cast<std::uint32_t>(event.tokens.size() / event.hashes.size());
    ingest::ContentKeys({.tokens = event.tokens, .block_size = block_size, .cache_salt = event.cache_salt},
                        keys_);
    Require(keys_.size() == event.tokens.size() / block_size);
    for (const std::string_view model : {"model0", "model2"}) {
      reader_.Match(ingest::RequestNamespace(model, event.lora_name, block_size), keys_, result_);
      for (const index::HolderDepth& row : result_) Require(row.depth >= 1 && row.depth <= keys_.size());
    }
    ingest::ContentKeys({.tokens = event.tokens, .block_size = block_size, .items = {&item, 1}}, keys_);
  }

  std::unique_ptr<index::PrefixIndex> index_;
  ingest::KvEventIngestor ingestor_;
  index::PrefixIndex::Reader reader_;
  ingest::PublisherId publishers_[4] = {};
  events::EventDecoder decoder_;
  events::EventBatch batch_;
  std::vector<BlockKey> keys_;
  index::MatchResult result_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Harness harness;
  std::span<const std::uint8_t> input(data, size);
  while (!input.empty()) harness.Step(input);
  return 0;
}
