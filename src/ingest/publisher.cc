#include "src/ingest/publisher.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "src/ingest/block_extras.h"

namespace llmd::ingest {
namespace {

constexpr std::array<std::string_view, 3> kIndexableKinds = {"full_attention", "mla_attention",
                                                             "sink_full_attention"};

}  // namespace

std::uint32_t KeySpaceOf(std::string_view model) {
  return static_cast<std::uint32_t>(index::MakeNamespace({.model = model, .block_size = 0}).lo);
}

const index::HolderId* Owner::Find(std::string_view tier) const {
  const auto it = std::find(tiers.begin(), tiers.end(), tier);
  return it == tiers.end() ? nullptr : &holders[it - tiers.begin()];
}

Publisher::Publisher(const PublisherOptions& publisher_options, std::size_t max_orphan_blocks)
    : options(publisher_options), key_space(KeySpaceOf(options.model)), orphans(max_orphan_blocks) {}

Owner* Publisher::FindOwner(Rank rank) {
  const auto it = std::find_if(owners.begin(), owners.end(), [&](const Owner& o) { return o.rank == rank; });
  return it == owners.end() ? nullptr : &*it;
}

Owner& Publisher::AddHolder(Rank rank, std::string_view tier, index::HolderId holder) {
  Owner* owner = FindOwner(rank);
  if (owner == nullptr) owner = &owners.emplace_back(Owner{.rank = rank, .tiers = {}, .holders = {}});
  owner->tiers.emplace_back(tier);
  owner->holders.push_back(holder);
  return *owner;
}

std::size_t Publisher::num_holders() const {
  std::size_t count = 0;
  for (const Owner& owner : owners) count += owner.holders.size();
  return count;
}

bool Publisher::IsIndexable(Rank rank, const events::Event& event, std::size_t max_groups) {
  if (!event.group_idx.has_value()) return true;
  const auto same = [&](const Group& group) { return group.rank == rank && group.idx == *event.group_idx; };
  const auto known = std::find_if(groups.begin(), groups.end(), same);
  if (event.spec_kind.empty()) return known != groups.end() && known->indexable;
  const bool indexable =
      std::find(kIndexableKinds.begin(), kIndexableKinds.end(), event.spec_kind) != kIndexableKinds.end();
  if (known != groups.end()) {
    known->indexable = indexable;
  } else if (groups.size() < max_groups) {
    groups.push_back({rank, *event.group_idx, indexable});
  } else {
    return false;  // its removals could not be told from those of other groups
  }
  return indexable;
}

index::NamespaceId Publisher::NamespaceOf(const events::Event& event, std::uint32_t block_size) {
  if (last_.block_size == block_size && last_.lora_id == event.lora_id &&
      last_.lora_name == event.lora_name) {
    return last_.ns;
  }
  last_.lora_name.assign(event.lora_name);
  last_.lora_id = event.lora_id;
  last_.block_size = block_size;
  if (event.lora_name.empty() && HasAdapter(event)) {
    const std::string adapter = absl::StrCat(options.model, ":lora:", *event.lora_id);
    last_.ns = RequestNamespace(options.model, adapter, block_size);
  } else {
    last_.ns = RequestNamespace(options.model, event.lora_name, block_size);
  }
  return last_.ns;
}

}  // namespace llmd::ingest
