// Who has which blocks of a run, and under which keys.
#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "src/index/trie.h"

namespace llmd::index {

namespace {

std::size_t BytesOf(const std::vector<RunId>& list) { return list.capacity() * sizeof(RunId); }
std::size_t BytesOf(const absl::flat_hash_map<EngineKey, NodeRef>& map) {
  return map.capacity() * (sizeof(EngineKey) + sizeof(NodeRef) + 1);
}

std::uint32_t LeadOfBits(const std::vector<std::uint64_t>& bits) {
  for (std::size_t i = 0; i < bits.size(); ++i) {
    if (bits[i] != ~std::uint64_t{0}) return static_cast<std::uint32_t>(i * 64 + std::countr_one(bits[i]));
  }
  return static_cast<std::uint32_t>(bits.size() * 64);
}

std::vector<std::uint64_t> FirstBits(std::uint32_t count) {
  std::vector<std::uint64_t> bits(count / 64, ~std::uint64_t{0});
  if (count % 64 != 0) bits.push_back((std::uint64_t{1} << (count % 64)) - 1);
  return bits;
}

}  // namespace

std::size_t Trie::FindWord(const Body& body, std::uint32_t slot) {
  const std::uint32_t holders = body.holders.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < holders; ++i) {
    if (SlotOf(body.coverage()[i].load(std::memory_order_relaxed)) == slot) return i;
  }
  return kNone;
}

void Trie::AddWord(std::uint16_t slot, RunId run, std::uint32_t lead) {
  Body* body = this->body(run);
  RunMeta& meta = metas_[run];
  const std::uint32_t holders = body->holders.load(std::memory_order_relaxed);
  body->moves.store(body->moves.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  if (meta.live_holders < holders) {
    const std::size_t unused = FindWord(*body, 0);
    body->coverage()[unused].store(MakeCoverage(slot, lead), std::memory_order_release);
  } else {
    if (holders == body->holder_capacity) {
      const std::uint32_t length = body->length.load(std::memory_order_relaxed);
      body = Rebody(run, length, std::max(length, body->capacity), GrownHolderCapacity(holders + 1));
    }
    new (&body->coverage()[holders]) std::atomic<Coverage>(MakeCoverage(slot, lead));
    body->holders.store(holders + 1, std::memory_order_release);
  }
  ++meta.live_holders;
  HolderState& holder = holders_[slot];
  ++holder.live_runs;
  if (holder.runs.size() > 2 * std::size_t{holder.live_runs} + 8) {
    std::sort(holder.runs.begin(), holder.runs.end());
    holder.runs.erase(std::unique(holder.runs.begin(), holder.runs.end()), holder.runs.end());
    std::erase_if(holder.runs, [&](RunId id) {
      const Body* other = this->body(id);
      return id != run && (other == nullptr || FindWord(*other, slot) == kNone);
    });
  }
  holder_list_bytes_ -= BytesOf(holder.runs);
  holder.runs.push_back(run);
  holder_list_bytes_ += BytesOf(holder.runs);
}

void Trie::RemoveWord(RunId run, std::size_t index) {
  std::atomic<Coverage>& word = body(run)->coverage()[index];
  HolderState& holder = holders_[SlotOf(word.load(std::memory_order_relaxed))];
  if (--holder.live_runs == 0) {
    holder_list_bytes_ -= BytesOf(holder.runs);
    holder.runs = std::vector<RunId>();  // gives the memory back, which {} does not
  }
  word.store(0, std::memory_order_release);
  --metas_[run].live_holders;
}

const Detail* Trie::FindDetail(std::uint16_t slot, RunId run) const {
  if (!metas_[run].has_details) return nullptr;
  const auto it = details_.find(DetailKey(slot, run));
  return it == details_.end() ? nullptr : it->second.get();
}

Detail* Trie::MutableDetail(std::uint16_t slot, RunId run) {
  std::unique_ptr<Detail>& detail = details_[DetailKey(slot, run)];
  if (detail == nullptr) {
    detail = std::make_unique<Detail>();
    detail_bytes_ += detail->bytes();
    metas_[run].has_details = true;
  }
  return detail.get();
}

void Trie::EraseDetail(std::uint16_t slot, RunId run) {
  const auto it = details_.find(DetailKey(slot, run));
  if (it == details_.end()) return;
  detail_bytes_ -= it->second->bytes();
  details_.erase(it);
  if (details_.empty()) details_ = decltype(details_)();  // an emptied table keeps its memory
}

void Trie::DropTrivialDetail(std::uint16_t slot, RunId run) {
  const Detail* detail = FindDetail(slot, run);
  if (detail == nullptr || !detail->held.empty()) return;
  const auto zero = [](auto value) { return value == 0; };
  if (std::all_of(detail->counts.begin(), detail->counts.end(), zero) &&
      std::all_of(detail->is_foreign.begin(), detail->is_foreign.end(), zero)) {
    EraseDetail(slot, run);
  }
}

// One more reference to each block of [from, to) that the holder has. `counts` holds those beyond the first.
void Trie::AddReferences(std::uint16_t slot, RunId run, std::uint32_t from, std::uint32_t to,
                         std::uint32_t lead) {
  const Detail* known = FindDetail(slot, run);
  for (std::uint32_t i = from; i < to; ++i) {
    if (i >= lead && (known == nullptr || !Detail::Bit(known->held, i))) continue;
    Detail* detail = MutableDetail(slot, run);
    known = detail;
    if (detail->counts.size() < to) {
      detail_bytes_ -= detail->bytes();
      detail->counts.resize(to);
      detail_bytes_ += detail->bytes();
    }
    if (detail->counts[i] < kMaxReferences - 1) ++detail->counts[i];
  }
}

Trie::CoverCount Trie::Cover(std::uint16_t slot, RunId run, std::uint32_t from, std::uint32_t to) {
  HolderState& holder = holders_[slot];
  RunMeta& meta = metas_[run];
  meta.touched = true;
  std::size_t index = FindWord(*body(run), slot);
  if (index == kNone) {
    AddWord(slot, run, 0);
    index = FindWord(*body(run), slot);
  }
  std::atomic<Coverage>& word = body(run)->coverage()[index];
  const std::uint32_t lead = LeadOf(word.load(std::memory_order_relaxed));
  if (holder.refcount) AddReferences(slot, run, from, to, lead);
  const Detail* known = FindDetail(slot, run);
  CoverCount count;
  std::uint32_t new_lead = lead;
  if ((known == nullptr || known->held.empty()) && from <= lead) {
    new_lead = std::max(lead, to);
    count.added = new_lead - lead;
  } else {
    Detail* detail = MutableDetail(slot, run);
    detail_bytes_ -= detail->bytes();
    if (detail->held.empty()) detail->held = FirstBits(lead);
    for (std::uint32_t i = from; i < to; ++i) {
      if (!Detail::Bit(detail->held, i)) ++count.added;
      Detail::SetBit(detail->held, i);
    }
    new_lead = LeadOfBits(detail->held);
    if (detail->EndOfHeld(new_lead) == new_lead) detail->held = std::vector<std::uint64_t>();
    detail_bytes_ += detail->bytes();
  }
  count.duplicates = to - from - count.added;
  if (new_lead != lead) word.store(MakeCoverage(slot, new_lead), std::memory_order_release);
  if (known != nullptr) DropTrivialDetail(slot, run);
  holder.blocks += count.added;
  stats_.holder_blocks += count.added;
  return count;
}

bool Trie::Holds(std::uint16_t slot, NodeRef node) const {
  const Body* body = this->body(node.run);
  const std::size_t index = FindWord(*body, slot);
  if (index == kNone) return false;
  if (node.offset < LeadOf(body->coverage()[index].load(std::memory_order_relaxed))) return true;
  const Detail* detail = FindDetail(slot, node.run);
  return detail != nullptr && Detail::Bit(detail->held, node.offset);
}

bool Trie::Release(std::uint16_t slot, NodeRef node) {
  if (holders_[slot].refcount && metas_[node.run].has_details) {
    const auto it = details_.find(DetailKey(slot, node.run));
    if (it != details_.end() && node.offset < it->second->counts.size() &&
        it->second->counts[node.offset] > 0) {
      --it->second->counts[node.offset];
      DropTrivialDetail(slot, node.run);
      return false;
    }
  }
  Uncover(slot, node);
  return true;
}

void Trie::Uncover(std::uint16_t slot, NodeRef node) {
  Body* body = this->body(node.run);
  const std::size_t index = FindWord(*body, slot);
  std::atomic<Coverage>& word = body->coverage()[index];
  std::uint32_t lead = LeadOf(word.load(std::memory_order_relaxed));
  const Detail* known = FindDetail(slot, node.run);
  const bool has_holes = known != nullptr && !known->held.empty();
  if (!has_holes && node.offset + 1 == lead) {
    --lead;
  } else {
    Detail* detail = MutableDetail(slot, node.run);
    detail_bytes_ -= detail->bytes();
    if (!has_holes) detail->held = FirstBits(lead);
    Detail::ClearBit(detail->held, node.offset);
    lead = std::min(lead, node.offset);
    if (detail->EndOfHeld(lead) == lead) detail->held = std::vector<std::uint64_t>();
    detail_bytes_ += detail->bytes();
    known = detail;
  }
  if (known != nullptr) {
    Detail* detail = MutableDetail(slot, node.run);
    if (node.offset < detail->counts.size()) detail->counts[node.offset] = 0;
    DropTrivialDetail(slot, node.run);
    ClearForeignKey(slot, node);
    known = FindDetail(slot, node.run);
  }
  word.store(MakeCoverage(slot, lead), std::memory_order_release);
  if (lead == 0 && known == nullptr) RemoveWord(node.run, index);
  --holders_[slot].blocks;
  --stats_.holder_blocks;
  if (node.offset + 1 == body->length.load(std::memory_order_relaxed)) Settle(node.run);
}

void Trie::TruncateCover(std::uint16_t slot, RunId run, std::uint32_t lead) {
  Body* body = this->body(run);
  const std::size_t index = FindWord(*body, slot);
  std::atomic<Coverage>& word = body->coverage()[index];
  const std::uint32_t old_lead = LeadOf(word.load(std::memory_order_relaxed));
  holders_[slot].blocks -= old_lead - lead;
  stats_.holder_blocks -= old_lead - lead;
  word.store(MakeCoverage(slot, lead), std::memory_order_release);
  if (lead == 0) RemoveWord(run, index);
  if (old_lead == body->length.load(std::memory_order_relaxed)) Settle(run);
}

std::uint32_t Trie::TakeOut(std::uint16_t slot, RunId run, std::size_t index) {
  std::uint32_t blocks = LeadOf(body(run)->coverage()[index].load(std::memory_order_relaxed));
  HolderState& holder = holders_[slot];
  if (const Detail* detail = FindDetail(slot, run); detail != nullptr) {
    blocks = detail->CountHeld(blocks);
    for (std::uint32_t i = 0; i < detail->foreign_keys.size(); ++i) {
      if (Detail::Bit(detail->is_foreign, i)) ForgetForeignKey(holder, detail->foreign_keys[i]);
    }
    EraseDetail(slot, run);
  }
  RemoveWord(run, index);
  holder.blocks -= blocks;
  stats_.holder_blocks -= blocks;
  return blocks;
}

void Trie::DropHolder(std::uint16_t slot) {
  HolderState& holder = holders_[slot];
  holder_list_bytes_ -= BytesOf(holder.runs);
  const std::vector<RunId> runs = std::exchange(holder.runs, {});
  for (const RunId run : runs) {
    const Body* body = this->body(run);
    if (body == nullptr) continue;
    const std::size_t index = FindWord(*body, slot);
    if (index == kNone) continue;
    TakeOut(slot, run, index);
    Settle(run);
  }
  foreign_bytes_ -= BytesOf(holder.foreign);
  holder.foreign = decltype(holder.foreign)();
  holder.last_node = {};
  FlushRetired();
}

std::optional<EngineKey> Trie::ForeignKey(std::uint16_t slot, NodeRef node) const {
  const Detail* detail = FindDetail(slot, node.run);
  if (detail == nullptr || !Detail::Bit(detail->is_foreign, node.offset)) return std::nullopt;
  return detail->foreign_keys[node.offset];
}

void Trie::SetForeignKey(std::uint16_t slot, NodeRef node, EngineKey key) {
  ClearForeignKey(slot, node);
  Detail* detail = MutableDetail(slot, node.run);
  detail_bytes_ -= detail->bytes();
  Detail::SetBit(detail->is_foreign, node.offset);
  if (detail->foreign_keys.size() <= node.offset) detail->foreign_keys.resize(node.offset + 1);
  detail->foreign_keys[node.offset] = key;
  detail_bytes_ += detail->bytes();
  HolderState& holder = holders_[slot];
  foreign_bytes_ -= BytesOf(holder.foreign);
  holder.foreign.insert_or_assign(key, node);
  foreign_bytes_ += BytesOf(holder.foreign);
  ++stats_.foreign_keys;
}

void Trie::ClearForeignKey(std::uint16_t slot, NodeRef node) {
  const std::optional<EngineKey> key = ForeignKey(slot, node);
  if (!key.has_value()) return;
  Detail::ClearBit(MutableDetail(slot, node.run)->is_foreign, node.offset);
  ForgetForeignKey(holders_[slot], *key);
  DropTrivialDetail(slot, node.run);
}

void Trie::ForgetForeignKey(HolderState& holder, EngineKey key) {
  holder.foreign.erase(key);
  --stats_.foreign_keys;
  if (holder.foreign.empty()) {
    foreign_bytes_ -= BytesOf(holder.foreign);
    holder.foreign = decltype(holder.foreign)();
  }
}

void Trie::RestoreCover(std::uint16_t slot, RunId run, std::uint32_t lead, Detail detail) {
  AddWord(slot, run, lead);
  HolderState& holder = holders_[slot];
  const std::uint32_t blocks = detail.CountHeld(lead);
  holder.blocks += blocks;
  stats_.holder_blocks += blocks;
  foreign_bytes_ -= BytesOf(holder.foreign);
  for (std::uint32_t i = 0; i < detail.foreign_keys.size(); ++i) {
    if (!Detail::Bit(detail.is_foreign, i)) continue;
    holder.foreign.emplace(detail.foreign_keys[i], NodeRef{run, i});
    ++stats_.foreign_keys;
  }
  foreign_bytes_ += BytesOf(holder.foreign);
  Detail* mine = MutableDetail(slot, run);
  detail_bytes_ -= mine->bytes();
  *mine = std::move(detail);
  detail_bytes_ += mine->bytes();
  DropTrivialDetail(slot, run);
}

}  // namespace llmd::index
