#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/index/prefix_index_impl.h"

namespace llmd::index {

absl::Status CheckIndexLimits(std::size_t max_bytes, std::size_t max_holders) {
  if (max_bytes < std::size_t{1} << 20) {
    return absl::InvalidArgumentError(absl::StrCat("max_bytes is ", max_bytes, ", must be at least 1048576"));
  }
  if (max_holders < 1 || max_holders > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("max_holders is ", max_holders, ", must be in 1..65535"));
  }
  return absl::OkStatus();
}

std::string HolderRegistry::NameOf(std::string_view endpoint, std::optional<std::uint32_t> dp_rank,
                                   std::string_view tier) {
  // Length-prefixed, so that no two triples share a name.
  return absl::StrCat(endpoint.size(), ":", ToAbsl(endpoint), "/",
                      dp_rank.has_value() ? absl::StrCat(*dp_rank) : "-", "/", ToAbsl(tier));
}

void HolderRegistry::Occupy(std::uint16_t slot, std::uint32_t generation, const HolderOptions& options) {
  HolderState& state = trie_.holders()[slot];
  state.generation = generation;
  state.live = true;
  state.refcount = options.removal == RemovalPolicy::kRefcount;
  state.key_space = options.key_space;
  options_[slot] = options;
  by_name_.emplace(NameOf(options.endpoint, options.dp_rank, options.tier), slot);
}

absl::StatusOr<HolderId> HolderRegistry::Add(const HolderOptions& options) {
  if (by_name_.contains(NameOf(options.endpoint, options.dp_rank, options.tier))) {
    return absl::AlreadyExistsError(absl::StrCat("holder ", options.endpoint, " tier ", options.tier,
                                                 " exists already; retire it first"));
  }
  std::uint16_t slot;
  if (!free_slots_.empty()) {
    // A reader that still has the former holder's rows in hand is waited for: one match.
    trie_.epochs().WaitUntilLeft(free_slots_.front().stamp);
    slot = free_slots_.front().slot;
    free_slots_.pop_front();
  } else if (next_slot_ < trie_.holders().size()) {
    slot = static_cast<std::uint16_t>(next_slot_++);
  } else {
    return absl::ResourceExhaustedError(absl::StrCat(
        "holder ", options.endpoint, " is one more than max_holders = ", trie_.holders().size() - 1));
  }
  const std::uint32_t generation = trie_.holders()[slot].generation + 1;
  Occupy(slot, generation, options);
  return HolderId{slot, generation};
}

absl::Status HolderRegistry::AddAt(std::uint16_t slot, std::uint32_t generation,
                                   const HolderOptions& options) {
  if (by_name_.contains(NameOf(options.endpoint, options.dp_rank, options.tier))) {
    return absl::DataLossError(absl::StrCat("snapshot is damaged: holder ", options.endpoint, " twice"));
  }
  if (absl::Status status = AddFree(slot, generation); !status.ok()) return status;
  free_slots_.pop_back();
  Occupy(slot, generation, options);
  return absl::OkStatus();
}

absl::Status HolderRegistry::AddFree(std::uint16_t slot, std::uint32_t generation) {
  if (slot >= trie_.holders().size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("holder slot ", slot, " is above max_holders = ", trie_.holders().size() - 1));
  }
  if (slot == 0 || generation == 0 || trie_.holders()[slot].generation != 0) {
    return absl::DataLossError(absl::StrCat("snapshot is damaged: holder slot ", slot));
  }
  trie_.holders()[slot].generation = generation;
  next_slot_ = std::max<std::uint32_t>(next_slot_, slot + 1u);
  free_slots_.push_back({slot, 0});
  return absl::OkStatus();
}

std::vector<HolderId> HolderRegistry::FreeSlots() const {
  std::vector<HolderId> slots;
  for (const FreeSlot& free : free_slots_)
    slots.push_back({free.slot, trie_.holders()[free.slot].generation});
  return slots;
}

std::optional<HolderId> HolderRegistry::Find(std::string_view endpoint, std::optional<std::uint32_t> dp_rank,
                                             std::string_view tier) const {
  const auto it = by_name_.find(NameOf(endpoint, dp_rank, tier));
  if (it == by_name_.end()) return std::nullopt;
  return HolderId{it->second, trie_.holders()[it->second].generation};
}

const HolderOptions* HolderRegistry::Get(HolderId holder) const {
  return Valid(holder) ? &options_[holder.slot] : nullptr;
}

void HolderRegistry::ForEach(const std::function<void(HolderId, const HolderOptions&)>& visit) const {
  for (std::uint32_t slot = 1; slot < next_slot_; ++slot) {
    const HolderState& state = trie_.holders()[slot];
    if (state.live) visit({static_cast<std::uint16_t>(slot), state.generation}, options_[slot]);
  }
}

void HolderRegistry::Retire(HolderId holder) {
  const HolderOptions& options = options_[holder.slot];
  by_name_.erase(NameOf(options.endpoint, options.dp_rank, options.tier));
  trie_.holders()[holder.slot].live = false;
  free_slots_.push_back({holder.slot, trie_.epochs().Advance()});
}

}  // namespace llmd::index
