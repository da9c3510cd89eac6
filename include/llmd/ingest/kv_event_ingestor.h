// From decoded KV events to the prefix index: what an indexer does with what engines publish.
//
//   KvEventIngestor ingestor(*index, {});
//   PublisherId pod = *ingestor.AddPublisher({.endpoint = "10.0.0.7:8000", .model = "Qwen/Qwen3-8B"});
//   ingestor.Apply(pod, batch);                                // one decoded batch
//   ContentKeys({.tokens = prompt, .block_size = 16}, chain);  // the same keys on the request's side
//   reader.Match(RequestNamespace("Qwen/Qwen3-8B", "", 16), chain, result);
//
// Meaning (spec: kv-events.md 8). A publisher is one endpoint; its data-parallel ranks and tiers become
// holders of the index when first heard of; those that the index already has for the endpoint (from a
// snapshot) are taken over. Content keys are computed from the tokens that events carry, so neither seed nor
// hash algorithm of an engine matters; the engine's own hashes only name blocks in later events. The
// effective model is the LoRA adapter's name, else the publisher's model; an adapter that an old engine knows
// by number alone goes by "<model>:lora:<number>". The cache salt and the identifiers of multimodal items are
// hashed into the blocks that carry them, since the wire does not tell one from the other.
//
// A stored event whose parent is unknown waits in a bounded table until the parent arrives; a parent is never
// invented. Events of KV-cache groups that plain prefix matching cannot use (sliding window, Mamba, ...) are
// counted and skipped; so are those of a group whose kind was never named.
//
// Threads: as the index's writer, one at a time. ContentKeys() and RequestNamespace() are free functions for
// any thread.
#ifndef LLMD_INGEST_KV_EVENT_INGESTOR_H_
#define LLMD_INGEST_KV_EVENT_INGESTOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/events/event.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"

namespace llmd::ingest {

// A multimodal item of a prompt: its placeholder covers tokens [offset, offset + length).
struct MultimodalItem {
  std::string_view identifier = {};
  std::uint32_t offset = 0;
  std::uint32_t length = 0;
};

struct PromptBlocks {
  TokenSpan tokens = {};
  std::uint32_t block_size = 16;     // tokens, the engine's; 0 yields no blocks
  std::string_view cache_salt = {};  // part of the first block
  std::span<const MultimodalItem> items = {};
};

// Replaces `out` with the content key of each full block of the prompt. Keys are local to a block (XXH3-64
// over its tokens and what else makes it different), so a prompt that grows only adds keys.
void ContentKeys(const PromptBlocks& prompt, std::vector<BlockKey>& out);

// The namespace in which Apply() files the blocks of this model; `lora` empty for the base model.
index::NamespaceId RequestNamespace(std::string_view model, std::string_view lora, std::uint32_t block_size);

struct PublisherOptions {
  std::string endpoint = {};  // "address:port", as the scheduler names it
  std::string model = {};     // the model part of the topic; requests must use the same text
  // vLLM announces each physical copy of a block and the removal of each, which kRefcount follows exactly;
  // one that also announces reused blocks (kv_cache_report_mode "full") never removes those, and needs kSet.
  // Other tiers count; holders that are taken over keep their policy.
  index::RemovalPolicy gpu_removal = index::RemovalPolicy::kSet;
};

// Handle of a publisher; never reused.
using PublisherId = std::uint64_t;

struct IngestOptions {
  std::size_t max_orphan_blocks = 4096;  // per publisher, waiting for a parent
  std::size_t max_publishers = 65535;
  std::size_t max_groups = 64;    // per publisher: KV-cache groups remembered, over all ranks
  std::size_t max_holders = 256;  // per publisher: ranks times tiers
};

struct IngestCounters {
  std::uint64_t batches = 0;
  std::uint64_t stored_events = 0;
  std::uint64_t removed_events = 0;
  std::uint64_t cleared_events = 0;
  std::uint64_t stored_blocks = 0;         // announced with tokens and filed, known ones included
  std::uint64_t removed_blocks = 0;        // that the holder had
  std::uint64_t tier_updates = 0;          // blocks filed under another tier by hash alone
  std::uint64_t tier_updates_unknown = 0;  // blocks of tier updates whose hash nobody has announced
  std::uint64_t skipped_groups = 0;        // events of groups that prefix matching cannot use
  std::uint64_t skipped_sparse = 0;        // stored events whose tokens do not fill the named blocks
  std::uint64_t skipped_malformed = 0;     // stored events without hashes, below a block of another model or
                                           // block size, or in a batch that was cut off before its rank
  std::uint64_t orphans_parked = 0;        // events
  std::uint64_t orphans_attached = 0;
  std::uint64_t orphans_dropped = 0;  // table full, removed or cleared while waiting
  std::uint64_t holders_refused = 0;  // events dropped: no room for another holder
};

class KvEventIngestor {
 public:
  // The index must outlive the ingestor, and nobody else may write to it meanwhile.
  KvEventIngestor(index::PrefixIndex& index, const IngestOptions& options);
  ~KvEventIngestor();
  KvEventIngestor(const KvEventIngestor&) = delete;
  KvEventIngestor& operator=(const KvEventIngestor&) = delete;

  // Hears of each holder as it appears, for a scheduler that maps holder slots to endpoints. Set it before
  // the first AddPublisher(); the callback must not call the ingestor.
  using HolderCallback = std::function<void(PublisherId, index::HolderId, const index::HolderOptions&)>;
  void SetHolderCallback(HolderCallback callback);

  // InvalidArgument for an empty endpoint, AlreadyExists for a known one and for one that has a holder in key
  // space 0, which somebody else made; ResourceExhausted over max_publishers.
  absl::StatusOr<PublisherId> AddPublisher(const PublisherOptions& options);

  // Applies the events of one batch in order, each at most once: a batch that is replayed must not be given
  // twice. True when an event named a parent nobody has heard of: a replay from the publisher would help.
  // NotFound for an unknown publisher. Of a batch that was cut off before its rank only removals count, for
  // every rank.
  absl::StatusOr<bool> Apply(PublisherId publisher, const events::EventBatch& batch);

  // The publisher has nothing any more (restart, loss of events). False when unknown.
  bool Clear(PublisherId publisher);
  // The endpoint is gone: its holders are retired. False when unknown.
  bool RemovePublisher(PublisherId publisher);

  const IngestCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::ingest

#endif  // LLMD_INGEST_KV_EVENT_INGESTOR_H_
