#include "src/ingest/orphan_table.h"

#include <utility>

namespace llmd::ingest {

std::size_t OrphanTable::Park(Orphan orphan) {
  if (orphan.blocks.size() > max_blocks_) return 1;
  std::size_t dropped = 0;
  for (; blocks_ + orphan.blocks.size() > max_blocks_; ++dropped) Drop(orphans_.begin());
  blocks_ += orphan.blocks.size();
  for (std::size_t i = 0; i < orphan.blocks.size(); ++i) {
    places_.try_emplace({orphan.holder.slot, orphan.blocks[i].engine, next_ticket_}, i);
  }
  waiting_[WaitKeyOf(orphan.rank, orphan.parent)].push_back(next_ticket_);
  orphans_.emplace_hint(orphans_.end(), next_ticket_++, std::move(orphan));
  return dropped;
}

void OrphanTable::Take(std::optional<std::uint32_t> rank, index::EngineKey parent, std::vector<Orphan>& out) {
  const auto it = waiting_.find(WaitKeyOf(rank, parent));
  if (it == waiting_.end()) return;
  for (const Ticket ticket : it->second) {
    const auto orphan = orphans_.find(ticket);
    Forget(ticket, orphan->second, 0);
    out.push_back(std::move(orphan->second));
    orphans_.erase(orphan);
  }
  waiting_.erase(it);
}

std::size_t OrphanTable::Remove(index::HolderId holder, std::span<const index::EngineKey> keys) {
  std::size_t dropped = 0;
  for (const index::EngineKey key : keys) {
    while (true) {
      const auto place = places_.lower_bound({holder.slot, key, 0});
      if (place == places_.end()) break;
      const auto [slot, engine, ticket] = place->first;
      if (slot != holder.slot || engine != key) break;
      const std::size_t keep = place->second;
      const auto it = orphans_.find(ticket);
      if (keep == 0) {
        Drop(it);
        ++dropped;
      } else {
        Forget(it->first, it->second, keep);
        it->second.blocks.resize(keep);
      }
    }
  }
  return dropped;
}

std::size_t OrphanTable::DropRank(std::optional<std::uint32_t> rank) {
  std::size_t dropped = 0;
  for (auto it = orphans_.begin(); it != orphans_.end();) {
    if (it->second.rank == rank) {
      it = Drop(it);
      ++dropped;
    } else {
      ++it;
    }
  }
  return dropped;
}

std::size_t OrphanTable::Clear() {
  const std::size_t dropped = orphans_.size();
  orphans_.clear();
  waiting_.clear();
  places_.clear();
  blocks_ = 0;
  return dropped;
}

void OrphanTable::Forget(Ticket ticket, const Orphan& orphan, std::size_t first) {
  blocks_ -= orphan.blocks.size() - first;
  for (std::size_t i = first; i < orphan.blocks.size(); ++i) {
    const auto place = places_.find({orphan.holder.slot, orphan.blocks[i].engine, ticket});
    if (place != places_.end() && place->second >= first) places_.erase(place);
  }
}

OrphanTable::Orphans::iterator OrphanTable::Drop(Orphans::iterator at) {
  const auto it = waiting_.find(WaitKeyOf(at->second.rank, at->second.parent));
  std::erase(it->second, at->first);
  if (it->second.empty()) waiting_.erase(it);
  Forget(at->first, at->second, 0);
  return orphans_.erase(at);
}

}  // namespace llmd::ingest
