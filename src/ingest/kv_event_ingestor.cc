#include "llmd/ingest/kv_event_ingestor.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/hash/dynamo.h"
#include "src/ingest/block_extras.h"
#include "src/ingest/orphan_table.h"
#include "src/ingest/publisher.h"

namespace llmd::ingest {

using events::Event;
using events::EventBatch;
using events::EventKind;
using index::HolderId;
using index::StoreOutcome;

struct KvEventIngestor::Impl {
  // The publisher of the events at hand. A batch that was cut off has lost its rank, which comes last on the
  // wire.
  struct Source {
    PublisherId id;
    Publisher& publisher;
    Rank rank;
    bool rank_lost;
  };

  Impl(index::PrefixIndex& prefix_index, const IngestOptions& ingest_options)
      : index(prefix_index), options(ingest_options) {}

  // One made by hand, with keys of its own: the ingestor's have a key space of their model.
  bool HasForeignHolder(std::string_view endpoint) const;
  void AdoptHolders(PublisherId id, Publisher& publisher);
  // Finds the holder or makes it; null when there is no room for it. `owner` is its owner then.
  std::optional<HolderId> HolderFor(const Source& source, std::string_view tier, const Owner*& owner);
  void ClearOwner(Publisher& publisher, const Owner& owner);

  // True when the parent is unknown.
  bool ApplyStored(const Source& source, const Event& event);
  void UpdateTier(HolderId holder, const Owner& owner, const Event& event);
  void ApplyRemoved(const Source& source, const Event& event);
  void ApplyCleared(const Source& source);
  // Stores the orphans that waited for the blocks just stored, and those that waited for them.
  void AttachOrphans(Publisher& publisher, const Owner& owner);
  void Park(Publisher& publisher, const Owner& owner, HolderId holder, const index::NamespaceId& ns,
            const Event& event);

  index::PrefixIndex& index;
  const IngestOptions options;
  HolderCallback on_holder;
  IngestCounters counters;
  PublisherId next_id = 1;
  absl::flat_hash_map<PublisherId, std::unique_ptr<Publisher>> publishers;
  absl::flat_hash_map<std::string, PublisherId> ids_by_endpoint;

  // Scratch of one event.
  BlockExtras extras;
  std::vector<BlockKey> contents;
  std::vector<index::StoredBlock> blocks;
  std::vector<index::EngineKey> stored_keys;
  std::vector<Orphan> taken;
};

std::optional<HolderId> KvEventIngestor::Impl::HolderFor(const Source& source, std::string_view tier,
                                                         const Owner*& owner) {
  Publisher& publisher = source.publisher;
  owner = publisher.FindOwner(source.rank);
  if (owner != nullptr) {
    if (const HolderId* holder = owner->Find(tier)) return *holder;
  }
  if (publisher.num_holders() >= options.max_holders) {
    ++counters.holders_refused;
    return std::nullopt;
  }
  const index::HolderOptions holder_options{
      .endpoint = publisher.options.endpoint,
      .dp_rank = source.rank,
      .tier = std::string(tier),
      .removal = tier == "gpu" ? publisher.options.gpu_removal : index::RemovalPolicy::kRefcount,
      .key_space = publisher.key_space};
  const absl::StatusOr<HolderId> holder = index.AddHolder(holder_options);
  if (!holder.ok()) {
    ++counters.holders_refused;
    return std::nullopt;
  }
  owner = &publisher.AddHolder(source.rank, tier, *holder);
  if (on_holder) on_holder(source.id, *holder, holder_options);
  return *holder;
}

bool KvEventIngestor::Impl::ApplyStored(const Source& source, const Event& event) {
  ++counters.stored_events;
  Publisher& publisher = source.publisher;
  if (source.rank_lost || event.hashes.empty()) {
    ++counters.skipped_malformed;
    return false;
  }
  if (!publisher.IsIndexable(source.rank, event, options.max_groups)) {
    ++counters.skipped_groups;
    return false;
  }
  // The offload connector's block_size is not that of the tokens; that of a group is, and shows sparse spans.
  const std::size_t block_size = event.tokens.size() / event.hashes.size();
  if (!event.tokens.empty()) {
    const bool dense = block_size > 0 && event.tokens.size() == block_size * event.hashes.size();
    if (!dense || (event.group_idx.has_value() && event.block_size != block_size)) {
      ++counters.skipped_sparse;
      return false;
    }
  }

  const Owner* owner = nullptr;
  const std::optional<HolderId> holder = HolderFor(source, event.tier, owner);
  if (!holder.has_value()) return false;
  if (event.tokens.empty()) {
    UpdateTier(*holder, *owner, event);
    return false;
  }

  extras.Clear();
  extras.AddEvent(event);
  contents.clear();
  const auto tokens_per_block = static_cast<std::uint32_t>(block_size);
  hash::DynamoLocalHashes(event.tokens, {.block_size = tokens_per_block}, contents, extras.values());
  blocks.clear();
  for (std::size_t i = 0; i < event.hashes.size(); ++i) blocks.push_back({event.hashes[i], contents[i]});

  const index::NamespaceId ns = publisher.NamespaceOf(event, tokens_per_block);
  switch (index.Store(*holder, ns, event.parent, blocks, owner->holders).outcome) {
    case StoreOutcome::kApplied:
      counters.stored_blocks += blocks.size();
      if (!publisher.orphans.empty()) AttachOrphans(publisher, *owner);
      return false;
    case StoreOutcome::kUnknownParent:
      Park(publisher, *owner, *holder, ns, event);
      return true;
    case StoreOutcome::kOtherNamespace:
    case StoreOutcome::kStaleHolder:
      ++counters.skipped_malformed;
      return false;
  }
  return false;
}

void KvEventIngestor::Impl::UpdateTier(HolderId holder, const Owner& owner, const Event& event) {
  const std::size_t known = index.StoreKnown(holder, event.hashes, owner.holders);
  counters.tier_updates += known;
  counters.tier_updates_unknown += event.hashes.size() - known;
}

void KvEventIngestor::Impl::Park(Publisher& publisher, const Owner& owner, HolderId holder,
                                 const index::NamespaceId& ns, const Event& event) {
  ++counters.orphans_parked;
  counters.orphans_dropped += publisher.orphans.Park(
      {.holder = holder, .rank = owner.rank, .ns = ns, .parent = *event.parent, .blocks = blocks});
}

void KvEventIngestor::Impl::AttachOrphans(Publisher& publisher, const Owner& owner) {
  stored_keys.clear();
  for (const index::StoredBlock& block : blocks) stored_keys.push_back(block.engine);
  for (std::size_t i = 0; i < stored_keys.size() && !publisher.orphans.empty(); ++i) {
    taken.clear();
    publisher.orphans.Take(owner.rank, stored_keys[i], taken);
    for (const Orphan& orphan : taken) {
      const index::StoreResult result =
          index.Store(orphan.holder, orphan.ns, orphan.parent, orphan.blocks, owner.holders);
      if (result.outcome != StoreOutcome::kApplied) {
        ++counters.orphans_dropped;
        continue;
      }
      ++counters.orphans_attached;
      counters.stored_blocks += orphan.blocks.size();
      for (const index::StoredBlock& block : orphan.blocks) stored_keys.push_back(block.engine);
    }
  }
}

void KvEventIngestor::Impl::ApplyRemoved(const Source& source, const Event& event) {
  ++counters.removed_events;
  Publisher& publisher = source.publisher;
  for (const Owner& owner : publisher.owners) {
    if (owner.rank != source.rank && !source.rank_lost) continue;
    if (!publisher.IsIndexable(owner.rank, event, options.max_groups)) {
      ++counters.skipped_groups;
      continue;
    }
    const HolderId* holder = owner.Find(event.tier);
    if (holder == nullptr) continue;
    counters.removed_blocks += index.Remove(*holder, event.hashes);
    if (!publisher.orphans.empty()) {
      counters.orphans_dropped += publisher.orphans.Remove(*holder, event.hashes);
    }
  }
}

void KvEventIngestor::Impl::ApplyCleared(const Source& source) {
  ++counters.cleared_events;
  for (const Owner& owner : source.publisher.owners) {
    if (owner.rank == source.rank || source.rank_lost) ClearOwner(source.publisher, owner);
  }
}

void KvEventIngestor::Impl::ClearOwner(Publisher& publisher, const Owner& owner) {
  for (const HolderId holder : owner.holders) index.Clear(holder);
  counters.orphans_dropped += publisher.orphans.DropRank(owner.rank);
}

bool KvEventIngestor::Impl::HasForeignHolder(std::string_view endpoint) const {
  bool found = false;
  index.ForEachHolder([&](HolderId, const index::HolderOptions& holder) {
    found |= holder.endpoint == endpoint && holder.key_space == 0;
  });
  return found;
}

void KvEventIngestor::Impl::AdoptHolders(PublisherId id, Publisher& publisher) {
  std::vector<std::pair<HolderId, index::HolderOptions>> found;
  index.ForEachHolder([&](HolderId holder, const index::HolderOptions& holder_options) {
    if (holder_options.endpoint == publisher.options.endpoint) found.emplace_back(holder, holder_options);
  });
  for (const auto& [holder, holder_options] : found) {
    if (holder_options.key_space != publisher.key_space) {
      index.Retire(holder);  // it served another model
      continue;
    }
    publisher.AddHolder(holder_options.dp_rank, holder_options.tier, holder);
    if (on_holder) on_holder(id, holder, holder_options);
  }
}

KvEventIngestor::KvEventIngestor(index::PrefixIndex& index, const IngestOptions& options)
    : impl_(std::make_unique<Impl>(index, options)) {}
KvEventIngestor::~KvEventIngestor() = default;

void KvEventIngestor::SetHolderCallback(HolderCallback callback) { impl_->on_holder = std::move(callback); }

absl::StatusOr<PublisherId> KvEventIngestor::AddPublisher(const PublisherOptions& options) {
  if (options.endpoint.empty()) return absl::InvalidArgumentError("publisher: endpoint is empty");
  if (impl_->ids_by_endpoint.contains(options.endpoint)) {
    return absl::AlreadyExistsError(absl::StrCat("publisher: endpoint \"", options.endpoint, "\" is known"));
  }
  if (impl_->publishers.size() >= impl_->options.max_publishers) {
    return absl::ResourceExhaustedError(absl::StrCat("publisher: endpoint \"", options.endpoint,
                                                     "\" would exceed max_publishers ",
                                                     impl_->options.max_publishers));
  }
  if (impl_->HasForeignHolder(options.endpoint)) {
    return absl::AlreadyExistsError(absl::StrCat("publisher: endpoint \"", options.endpoint,
                                                 "\" has a holder that no ingestor made; retire it first"));
  }
  const PublisherId id = impl_->next_id++;
  auto publisher = std::make_unique<Publisher>(options, impl_->options.max_orphan_blocks);
  impl_->AdoptHolders(id, *publisher);
  impl_->publishers.emplace(id, std::move(publisher));
  impl_->ids_by_endpoint.emplace(options.endpoint, id);
  return id;
}

absl::StatusOr<bool> KvEventIngestor::Apply(PublisherId publisher, const EventBatch& batch) {
  const auto it = impl_->publishers.find(publisher);
  if (it == impl_->publishers.end()) {
    return absl::NotFoundError(absl::StrCat("publisher: ", publisher, " is unknown"));
  }
  ++impl_->counters.batches;
  const Rank rank = batch.data_parallel_rank();
  const Impl::Source source{publisher, *it->second, rank, batch.truncated() && !rank.has_value()};
  bool parent_unknown = false;
  for (const Event& event : batch.events()) {
    switch (event.kind) {
      case EventKind::kBlockStored:
        parent_unknown |= impl_->ApplyStored(source, event);
        break;
      case EventKind::kBlockRemoved:
        impl_->ApplyRemoved(source, event);
        break;
      case EventKind::kAllBlocksCleared:
        impl_->ApplyCleared(source);
        break;
    }
  }
  return parent_unknown;
}

bool KvEventIngestor::Clear(PublisherId publisher) {
  const auto it = impl_->publishers.find(publisher);
  if (it == impl_->publishers.end()) return false;
  for (const Owner& owner : it->second->owners) impl_->ClearOwner(*it->second, owner);
  it->second->groups.clear();
  return true;
}

bool KvEventIngestor::RemovePublisher(PublisherId publisher) {
  const auto it = impl_->publishers.find(publisher);
  if (it == impl_->publishers.end()) return false;
  for (const Owner& owner : it->second->owners) {
    for (const HolderId holder : owner.holders) impl_->index.Retire(holder);
  }
  impl_->counters.orphans_dropped += it->second->orphans.Clear();
  impl_->ids_by_endpoint.erase(it->second->options.endpoint);
  impl_->publishers.erase(it);
  return true;
}

const IngestCounters& KvEventIngestor::counters() const { return impl_->counters; }

}  // namespace llmd::ingest
