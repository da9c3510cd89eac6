#include "llmd/sched/burst_placement.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace llmd::sched {
namespace {

constexpr BlockKey kEndOfPrompt = 0;  // no block has this key

struct Unit {
  std::vector<std::size_t> members;  // indexes into the batch
  std::vector<BlockKey> keys;        // of all prompts, each followed by kEndOfPrompt
  std::size_t blocks = 0;
};

// The keys of a request in one list.
Unit Flatten(const BurstRequest& request, std::size_t max_blocks) {
  Unit unit;
  for (const BlockKeySpan prompt : request.prompts) {
    const BlockKeySpan keys = prompt.first(std::min(prompt.size(), max_blocks));
    unit.keys.insert(unit.keys.end(), keys.begin(), keys.end());
    unit.keys.push_back(kEndOfPrompt);
    unit.blocks += keys.size();
  }
  return unit;
}

// The list up to its `blocks`-th block.
std::vector<BlockKey> Lead(const Unit& unit, std::size_t blocks) {
  std::vector<BlockKey> lead;
  for (const BlockKey key : unit.keys) {
    if (blocks == 0) break;
    lead.push_back(key);
    if (key != kEndOfPrompt) --blocks;
  }
  return lead;
}

// Requests with the same keys together, in order of the first of each; none without keys.
std::vector<Unit> Group(std::span<const BurstRequest> batch, std::size_t max_blocks) {
  std::vector<Unit> units;
  absl::flat_hash_map<std::vector<BlockKey>, std::size_t> known;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Unit unit = Flatten(batch[i], max_blocks);
    if (unit.blocks == 0) continue;
    const auto [it, is_new] = known.emplace(unit.keys, units.size());
    if (is_new) units.push_back(std::move(unit));
    units[it->second].members.push_back(i);
  }
  return units;
}

// Removes single requests that share no prefix with another, and puts the rest in order of placement.
void Select(std::vector<Unit>& units, std::size_t min_colocate) {
  absl::flat_hash_map<std::vector<BlockKey>, std::size_t> sharers;
  for (const Unit& unit : units) {
    if (min_colocate > 0 && unit.blocks >= min_colocate) {
      sharers[Lead(unit, min_colocate)] += unit.members.size();
    }
  }
  std::erase_if(units, [&](const Unit& unit) {
    if (unit.members.size() > 1) return false;
    return min_colocate == 0 || unit.blocks < min_colocate || sharers[Lead(unit, min_colocate)] < 2;
  });
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) {
    const bool a_group = a.members.size() > 1;
    const bool b_group = b.members.size() > 1;
    return a_group != b_group ? a_group : a.blocks > b.blocks;
  });
}

class Placement {
 public:
  Placement(std::span<const BurstReplica> replicas, const BurstOptions& options, std::span<const Unit> units)
      : replicas_(replicas), options_(options), load_(replicas.size()) {
    std::uint64_t total = 0;
    for (const Unit& unit : units) total += unit.members.size() * Load(unit);
    fair_share_ = (total + replicas.size() - 1) / replicas.size();
  }

  void Place(const Unit& unit, std::vector<std::optional<std::size_t>>& places) {
    of_unit_.assign(replicas_.size(), 0);
    std::size_t target = MostShared(unit).value_or(LeastLoaded());
    for (std::size_t i = 0; i < unit.members.size(); target = LeastLoaded()) {
      const std::size_t run = std::min(unit.members.size() - i, Room(target));
      for (std::size_t j = 0; j < run; ++j) places[unit.members[i + j]] = target;
      of_unit_[target] += run;
      load_[target] += run * Load(unit);
      i += run;
    }
    for (std::size_t r = 0; r < replicas_.size(); ++r) {
      if (of_unit_[r] > 0) Remember(unit, static_cast<std::uint32_t>(r));
    }
  }

 private:
  bool limited() const { return options_.max_per_replica >= 0; }
  bool Full(std::size_t replica) const {
    return limited() && of_unit_[replica] >= static_cast<std::size_t>(options_.max_per_replica);
  }
  // Requests of the unit that the replica takes at once. One when all are full.
  std::size_t Room(std::size_t replica) const {
    if (!limited()) return std::numeric_limits<std::size_t>::max();
    return Full(replica) ? 1 : static_cast<std::size_t>(options_.max_per_replica) - of_unit_[replica];
  }
  std::uint64_t Load(const Unit& unit) const { return options_.balance_by_tokens ? unit.blocks : 1; }

  bool Less(std::size_t a, std::size_t b) const {
    if (load_[a] != load_[b]) return load_[a] < load_[b];
    if (replicas_[a].running_requests != replicas_[b].running_requests) {
      return replicas_[a].running_requests < replicas_[b].running_requests;
    }
    return replicas_[a].name < replicas_[b].name;
  }

  std::size_t LeastLoaded() const {
    std::optional<std::size_t> best;
    for (const bool any : {false, true}) {
      for (std::size_t r = 0; r < replicas_.size(); ++r) {
        if ((any || !Full(r)) && (!best || Less(r, *best))) best = r;
      }
      if (best) break;
    }
    return *best;
  }

  // The replica with the longest prefix of the unit, if some one qualifies.
  std::optional<std::size_t> MostShared(const Unit& unit) const {
    const auto least = static_cast<std::uint64_t>(options_.min_colocate_blocks);
    if (least == 0) return std::nullopt;
    std::vector<std::uint64_t> shared(replicas_.size());
    std::uint64_t depth = 0;
    for (const BlockKey key : unit.keys) {
      if (key == kEndOfPrompt) continue;
      const auto it = holders_.find(key);
      if (it == holders_.end()) break;
      for (const std::uint32_t r : it->second) {
        if (shared[r] == depth) ++shared[r];
      }
      ++depth;
    }
    std::optional<std::size_t> best;
    for (std::size_t r = 0; r < replicas_.size(); ++r) {
      if (Full(r) || load_[r] >= fair_share_ || shared[r] < least) continue;
      if (!best || shared[r] > shared[*best] || (shared[r] == shared[*best] && Less(r, *best))) best = r;
    }
    return best;
  }

  void Remember(const Unit& unit, std::uint32_t replica) {
    for (const BlockKey key : unit.keys) {
      if (key == kEndOfPrompt) continue;
      std::vector<std::uint32_t>& holders = holders_[key];
      if (std::find(holders.begin(), holders.end(), replica) == holders.end()) holders.push_back(replica);
    }
  }

  std::span<const BurstReplica> replicas_;
  const BurstOptions& options_;
  std::vector<std::uint64_t> load_;
  std::uint64_t fair_share_ = 0;
  std::vector<std::size_t> of_unit_;  // requests of the unit at hand
  absl::flat_hash_map<BlockKey, std::vector<std::uint32_t>> holders_;
};

}  // namespace

std::size_t BurstOptions::MaxBlocks() const {
  return max_prefix_tokens > 0
             ? static_cast<std::size_t>(max_prefix_tokens / std::max<std::int64_t>(1, block_size))
             : std::numeric_limits<std::size_t>::max();
}

std::vector<std::optional<std::size_t>> PlaceBurst(std::span<const BurstRequest> batch,
                                                   std::span<const BurstReplica> replicas,
                                                   const BurstOptions& options) {
  std::vector<std::optional<std::size_t>> places(batch.size());
  if (replicas.empty()) return places;
  std::vector<Unit> units = Group(batch, options.MaxBlocks());
  Select(units, static_cast<std::size_t>(std::max<std::int64_t>(0, options.min_colocate_blocks)));
  Placement placement(replicas, options, units);
  for (const Unit& unit : units) placement.Place(unit, places);
  return places;
}

}  // namespace llmd::sched
