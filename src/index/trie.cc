#include "src/index/trie.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <new>
#include <utility>

namespace llmd::index {

namespace {

// How many blocks a run makes room for when it has `length`: half as much again, since most growing runs grow
// on; the slack of those that stop is given back by Maintain().
std::uint32_t GrownCapacity(std::uint32_t length) {
  return std::min<std::uint32_t>(kMaxRunLength, (length + length / 2 + 7) & ~7u);
}

// Room for holders: exact for one, then doubling.
std::uint16_t GrownHolderCapacity(std::size_t holders) {
  return static_cast<std::uint16_t>(holders <= 2 ? 2 : std::min<std::size_t>(65535, std::bit_ceil(holders)));
}

std::size_t RunLimit(std::size_t max_bytes) {
  return std::clamp<std::size_t>(max_bytes / 160, 1024, (std::size_t{1} << 25) - 1) + 1;
}

int ShardBits(std::size_t max_bytes) {
  return std::clamp(static_cast<int>(std::bit_width(max_bytes >> 20)), 4, 12);
}

std::size_t PoolBytes(std::size_t max_bytes) {
  return std::clamp<std::size_t>(max_bytes / 16, std::size_t{64} << 10, std::size_t{32} << 20);
}

std::size_t BytesOf(const std::vector<RunId>& list) { return list.capacity() * sizeof(RunId); }
std::size_t BytesOf(const absl::flat_hash_map<EngineKey, NodeRef>& map) {
  return map.capacity() * (sizeof(EngineKey) + sizeof(NodeRef) + 1);
}

}  // namespace

Trie::Trie(const Options& options)
    : options_(options),
      soft_limit_(options.max_bytes / 8 * 7),
      arena_(PoolBytes(options.max_bytes)),
      retired_(arena_, epochs_),
      retired_runs_(epochs_),
      edges_(arena_, retired_),
      identity_(arena_, ShardBits(options.max_bytes)),
      bodies_(RunLimit(options.max_bytes)),
      metas_(RunLimit(options.max_bytes)),
      holders_(options.max_holders + 1) {}

// --- Structure

const Body* Trie::FindChildBody(const NamespaceId& ns, Cursor at, BlockKeySpan chain, RunId& child) const {
  const Body* found = nullptr;
  child = edges_.Find(EdgeHash(ns, at.run, at.offset, chain[0]), [&](RunId run) {
    const Body* body = bodies_[run].load(std::memory_order_acquire);
    if (body == nullptr) return false;
    // Header, coverage and keys lie in a row: ask for what the chain can reach at once instead of after the
    // header.
    const std::size_t ahead = std::min<std::size_t>(chain.size() * sizeof(BlockKey), 768);
    for (std::size_t byte = 0; byte <= ahead; byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(body) + byte);
    if (body->parent != at.run || body->parent_offset != at.offset || body->content()[0] != chain[0] ||
        !(body->ns == ns)) {
      return false;
    }
    found = body;
    return true;
  });
  return found;
}

RunId Trie::FindChild(const NamespaceId& ns, Cursor at, BlockKey key) const {
  RunId child = 0;
  FindChildBody(ns, at, {&key, 1}, child);
  return child;
}

NodeRef Trie::FindOwner(std::uint32_t key_space, EngineKey key) const {
  return identity_.Find(IdentityHash(key_space, key), [&](NodeRef node) {
    return metas_[node.run].key_space == key_space && body(node.run)->engine()[node.offset] == key;
  });
}

NodeRef Trie::Own(NodeRef node, std::uint32_t key_space, EngineKey key) {
  return identity_.FindOrInsert(IdentityHash(key_space, key), node, [&](NodeRef other) {
    return metas_[other.run].key_space == key_space && body(other.run)->engine()[other.offset] == key;
  });
}

bool Trie::OwnsKey(NodeRef node) const {
  const RunMeta& meta = metas_[node.run];
  if (!meta.unowned_keys) return true;
  const EngineKey key = body(node.run)->engine()[node.offset];
  return FindOwner(meta.key_space, key) == node;
}

Body* Trie::NewBody(std::uint32_t holder_capacity, std::uint32_t capacity) {
  Body* body = new (arena_.Allocate(Body::Bytes(holder_capacity, capacity, options_.engine_keys))) Body;
  body->holder_capacity = holder_capacity;
  body->capacity = capacity;
  return body;
}

// A copy of the run's body with its first `keep` blocks, published in place of the old one.
Body* Trie::Rebody(RunId run, std::uint32_t keep, std::uint32_t capacity, std::uint32_t holder_capacity) {
  Body* old = body(run);
  Body* fresh = NewBody(holder_capacity, capacity);
  std::uint32_t holders = 0;
  for (std::uint32_t i = 0; i < old->holders.load(std::memory_order_relaxed); ++i) {
    const Coverage word = old->coverage()[i].load(std::memory_order_relaxed);
    if (word != 0) new (&fresh->coverage()[holders++]) std::atomic<Coverage>(word);
  }
  std::memcpy(fresh->content(), old->content(), keep * sizeof(BlockKey));
  if (options_.engine_keys) std::memcpy(fresh->engine(), old->engine(), keep * sizeof(EngineKey));
  fresh->length.store(keep, std::memory_order_relaxed);
  fresh->published = keep;
  fresh->holders.store(holders, std::memory_order_relaxed);
  fresh->children.store(old->children.load(std::memory_order_relaxed), std::memory_order_relaxed);
  fresh->parent = old->parent;
  fresh->parent_offset = old->parent_offset;
  fresh->ns = old->ns;
  bodies_[run].store(fresh, std::memory_order_release);
  retired_.Retire(old);
  return fresh;
}

void Trie::ReserveRuns(std::size_t count) {
  const std::size_t limit = RunLimit(options_.max_bytes);
  while (limit - next_run_ + free_runs_.size() < count) {
    EvictRuns();
    ReclaimRunIds();
  }
}

bool Trie::HasRoomForRun() const { return !free_runs_.empty() || next_run_ < RunLimit(options_.max_bytes); }

void Trie::ReclaimRunIds() {
  retired_runs_.Reclaim([this](RunId id) { free_runs_.push_back(id); });
}

RunId Trie::AddRun(const NamespaceId& ns, std::uint32_t key_space, Cursor parent, BlockKeySpan content,
                   std::span<const EngineKey> engine) {
  RunId run;
  if (!free_runs_.empty()) {
    run = free_runs_.back();
    free_runs_.pop_back();
  } else {
    run = next_run_++;
  }
  const auto count = static_cast<std::uint32_t>(content.size());
  Body* body = NewBody(2, (count + 7) & ~7u);
  std::memcpy(body->content(), content.data(), content.size_bytes());
  if (options_.engine_keys) std::memcpy(body->engine(), engine.data(), engine.size_bytes());
  body->length.store(count, std::memory_order_relaxed);
  body->published = count;
  body->parent = parent.run;
  body->parent_offset = parent.offset;
  body->ns = ns;
  RunMeta& meta = metas_[run];
  meta = RunMeta{};
  meta.key_space = key_space;
  meta.growing = true;
  if (parent.run != kRoot) {
    RunMeta& above = metas_[parent.run];
    Body* parent_body = this->body(parent.run);
    meta.next_sibling = above.first_child;
    if (above.first_child != 0) metas_[above.first_child].previous_sibling = run;
    above.first_child = run;
    above.last_child_offset = std::max<std::uint16_t>(above.last_child_offset, parent.offset);
    parent_body->children.store(parent_body->children.load(std::memory_order_relaxed) + 1,
                                std::memory_order_release);
  }
  bodies_[run].store(body, std::memory_order_release);
  edges_.Insert(EdgeHash(ns, parent.run, parent.offset, content[0]), run);
  Enqueue(probation_, run);
  ++stats_.runs;
  stats_.nodes += count;
  return run;
}

void Trie::Append(RunId run, BlockKeySpan content, std::span<const EngineKey> engine) {
  Body* body = this->body(run);
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  const auto count = static_cast<std::uint32_t>(content.size());
  // Published keys are fixed: they come back to life as they are, or a new body replaces them.
  std::uint32_t fixed = std::min(body->published - length, count);
  if (!std::equal(content.begin(), content.begin() + fixed, body->content() + length) ||
      length + count > body->capacity) {
    body =
        Rebody(run, length, std::max(body->capacity, GrownCapacity(length + count)), body->holder_capacity);
    fixed = 0;
  }
  std::copy(content.begin() + fixed, content.end(), body->content() + length + fixed);
  if (options_.engine_keys) std::copy(engine.begin(), engine.end(), body->engine() + length);
  body->published = std::max(body->published, length + count);
  body->length.store(length + count, std::memory_order_release);
  metas_[run].growing = true;
  stats_.nodes += count;
}

// --- Coverage

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
  if (holder.runs.size() > 2 * std::size_t{holder.live_runs} + 64) {
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
  --holders_[SlotOf(word.load(std::memory_order_relaxed))].live_runs;
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

namespace {

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
    if (detail->EndOfHeld(new_lead) == new_lead) detail->held = {};
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
    if (detail->EndOfHeld(lead) == lead) detail->held = {};
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
  holder.foreign = {};
  holder.last_node = {};
  retired_.Reclaim();
}

// --- Foreign keys

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

// --- Giving back

std::uint32_t Trie::LiveEnd(RunId run) const {
  const Body* body = this->body(run);
  const RunMeta& meta = metas_[run];
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  std::uint32_t end = meta.last_child_offset;
  const std::uint32_t holders = body->holders.load(std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < holders && end < length; ++i) {
    const Coverage word = body->coverage()[i].load(std::memory_order_relaxed);
    if (word == 0) continue;
    const Detail* detail = FindDetail(static_cast<std::uint16_t>(SlotOf(word)), run);
    end = std::max(end, detail == nullptr ? LeadOf(word) : detail->EndOfHeld(LeadOf(word)));
  }
  return end;
}

void Trie::Settle(RunId run) {
  while (run != kRoot) {
    Body* body = this->body(run);
    const RunMeta& meta = metas_[run];
    const std::uint32_t length = body->length.load(std::memory_order_relaxed);
    const std::uint32_t end = LiveEnd(run);
    if (end >= length) return;
    if (options_.engine_keys) {
      for (std::uint32_t i = end; i < length; ++i) {
        identity_.Erase(IdentityHash(meta.key_space, body->engine()[i]), {run, i});
      }
    }
    body->length.store(end, std::memory_order_release);
    stats_.nodes -= length - end;
    if (end > 0) {
      if (body->capacity > 2 * end + 32) Rebody(run, end, (end + 7) & ~7u, body->holder_capacity);
      return;
    }
    run = FreeRun(run);
  }
}

// Unlinks a run without blocks; returns its parent.
RunId Trie::FreeRun(RunId run) {
  Body* body = this->body(run);
  RunMeta& meta = metas_[run];
  const RunId parent = body->parent;
  edges_.Erase(EdgeHash(body->ns, parent, body->parent_offset, body->content()[0]), run);
  if (parent != kRoot) {
    RunMeta& above = metas_[parent];
    if (meta.previous_sibling != 0) {
      metas_[meta.previous_sibling].next_sibling = meta.next_sibling;
    } else {
      above.first_child = meta.next_sibling;
    }
    if (meta.next_sibling != 0) metas_[meta.next_sibling].previous_sibling = meta.previous_sibling;
    Body* parent_body = this->body(parent);
    parent_body->children.store(parent_body->children.load(std::memory_order_relaxed) - 1,
                                std::memory_order_release);
    if (above.last_child_offset == body->parent_offset) {
      std::uint32_t last = 0;
      for (RunId child = above.first_child; child != 0 && last < body->parent_offset;
           child = metas_[child].next_sibling) {
        last = std::max(last, this->body(child)->parent_offset);
      }
      above.last_child_offset = static_cast<std::uint16_t>(last);
    }
  }
  Dequeue(run);
  bodies_[run].store(nullptr, std::memory_order_release);
  retired_.Retire(body);
  retired_runs_.Push(run);
  if (retired_runs_.due()) ReclaimRunIds();
  --stats_.runs;
  return parent;
}

void Trie::Enqueue(Queue& queue, RunId run) {
  RunMeta& meta = metas_[run];
  meta.is_protected = &queue == &protected_;
  meta.next_in_queue = 0;
  meta.previous_in_queue = queue.tail;
  if (queue.tail != 0) {
    metas_[queue.tail].next_in_queue = run;
  } else {
    queue.head = run;
  }
  queue.tail = run;
  ++queue.size;
}

void Trie::Dequeue(RunId run) {
  RunMeta& meta = metas_[run];
  Queue& queue = meta.is_protected ? protected_ : probation_;
  (meta.previous_in_queue != 0 ? metas_[meta.previous_in_queue].next_in_queue : queue.head) =
      meta.next_in_queue;
  (meta.next_in_queue != 0 ? metas_[meta.next_in_queue].previous_in_queue : queue.tail) =
      meta.previous_in_queue;
  --queue.size;
}

// Segmented LRU with one reference bit: a run that was stored to while on probation is protected, the
// protected segment keeps at most four fifths and hands its oldest back. Only runs without children go, so
// prefixes outlive their tails.
void Trie::EvictRuns() {
  retired_.Reclaim();
  std::size_t looks = 2 * (probation_.size + protected_.size) + 2;
  const std::size_t runs_before = stats_.runs;
  while (stats_.runs > 0 && looks-- > 0 && (used_bytes() > soft_limit_ || stats_.runs == runs_before)) {
    Queue& queue = probation_.size > 0 ? probation_ : protected_;
    const RunId run = queue.head;
    RunMeta& meta = metas_[run];
    if (meta.touched && !meta.is_protected) {
      meta.touched = false;
      Dequeue(run);
      Enqueue(protected_, run);
      if (protected_.size * 5 > (probation_.size + protected_.size) * 4) {
        const RunId oldest = protected_.head;
        Dequeue(oldest);
        Enqueue(probation_, oldest);
      }
      continue;
    }
    if (meta.first_child != 0 || meta.touched) {
      meta.touched = false;
      Dequeue(run);
      Enqueue(queue, run);
      continue;
    }
    const Body* body = this->body(run);
    for (std::uint32_t i = 0; i < body->holders.load(std::memory_order_relaxed); ++i) {
      const Coverage word = body->coverage()[i].load(std::memory_order_relaxed);
      if (word == 0) continue;
      const auto slot = static_cast<std::uint16_t>(SlotOf(word));
      stats_.evicted_holder_blocks += TakeOut(slot, run, i);
      if (on_evict_) on_evict_(slot, run);
    }
    ++stats_.evicted_runs;
    Settle(run);
    retired_.Reclaim();
  }
}

bool Trie::TrimSlack(RunId run) {
  Body* body = this->body(run);
  const std::uint32_t length = body->length.load(std::memory_order_relaxed);
  const std::uint32_t capacity = (length + 3) & ~3u;
  const std::uint32_t holders = std::max<std::uint32_t>(metas_[run].live_holders, 1);
  if (capacity + length / 16 >= body->capacity && holders * 2 > body->holder_capacity) return false;
  Rebody(run, length, capacity, GrownHolderCapacity(holders));
  return true;
}

void Trie::Maintain() {
  if (++trim_hand_ >= next_run_) trim_hand_ = 1;
  const Body* body = trim_hand_ < next_run_ ? this->body(trim_hand_) : nullptr;
  if (body == nullptr) return;
  RunMeta& meta = metas_[trim_hand_];
  if (meta.growing) {
    meta.growing = false;
  } else {
    TrimSlack(trim_hand_);
  }
}

void Trie::Compact() {
  for (RunId run = 1; run < next_run_; ++run) {
    if (body(run) != nullptr) TrimSlack(run);
  }
  retired_.Reclaim();
}

// --- Reports

std::size_t Trie::used_bytes() const {
  return arena_.used_bytes() + std::size_t{next_run_} * (sizeof(Body*) + sizeof(RunMeta)) +
         details_.capacity() * (sizeof(std::uint64_t) + sizeof(void*) + 1) + detail_bytes_ + foreign_bytes_ +
         holder_list_bytes_ + other_bytes_ + free_runs_.capacity() * sizeof(RunId);
}

MemoryUsage Trie::memory_usage() const {
  MemoryUsage usage;
  usage.budget_bytes = options_.max_bytes;
  const std::size_t tables = edges_.bytes() + identity_.bytes();
  const std::size_t bodies = arena_.used_bytes() - tables - retired_.bytes();
  std::size_t slack = 0;
  for (RunId run = 1; run < next_run_; ++run) {
    if (const Body* body = this->body(run); body != nullptr) {
      slack +=
          Arena::UsableBytes(body) - Body::Bytes(metas_[run].live_holders, length(run), options_.engine_keys);
    }
  }
  usage.causes = {
      {"run bodies", bodies - slack, retired_.bytes(), slack},
      {"edge table", edges_.bytes(), 0, 0},
      {"identity map", identity_.size() * 8, 0, identity_.bytes() - identity_.size() * 8},
      {"run table", stats_.runs * (sizeof(Body*) + sizeof(RunMeta)), 0,
       (next_run_ - stats_.runs) * (sizeof(Body*) + sizeof(RunMeta)) + free_runs_.capacity() * sizeof(RunId)},
      {"holes, references and foreign keys",
       detail_bytes_ + foreign_bytes_ + details_.capacity() * (sizeof(std::uint64_t) + sizeof(void*) + 1), 0,
       0},
      {"holder lists", holder_list_bytes_ + other_bytes_, 0, 0},
      {"pools", 0, 0, arena_.reserved_bytes() - arena_.used_bytes()},
  };
  return usage;
}

}  // namespace llmd::index
