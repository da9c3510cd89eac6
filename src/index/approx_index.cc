#include "llmd/index/approx_index.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "src/index/prefix_index_impl.h"
#include "src/index/trie.h"

namespace llmd::index {

namespace {

// Blocks [from, to) of a run that a holder was last predicted to have in one Predict(). Along a chain a
// holder's blocks only get older, so the segments of a run lie in order of age, and the oldest segment of a
// holder ends its run's coverage.
struct Segment {
  absl::Time time;
  RunId run = 0;
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  std::uint32_t older = 0;  // by recency; 0 ends a list
  std::uint32_t newer = 0;
  std::uint32_t shallower = 0;  // in the same run
  std::uint32_t deeper = 0;
};

struct Recency {
  std::size_t capacity = 0;
  std::uint32_t oldest = 0;
  std::uint32_t newest = 0;
  absl::flat_hash_map<RunId, std::uint32_t> first_of_run;  // its shallowest segment
};

}  // namespace

struct ApproxIndex::Impl {
  explicit Impl(const ApproxIndexOptions& o)
      : options(o),
        trie({o.max_bytes, o.max_holders, false}),
        registry(trie),
        recency(o.max_holders + 1),
        segments(1) {
    trie.SetEvictionObserver([this](std::uint16_t slot, RunId run) {
      const auto it = recency[slot].first_of_run.find(run);
      if (it == recency[slot].first_of_run.end()) return;
      for (std::uint32_t segment = it->second; segment != 0;) {
        const std::uint32_t next = segments[segment].deeper;
        UnlinkAge(recency[slot], segment);
        free_segments.push_back(segment);
        segment = next;
      }
      recency[slot].first_of_run.erase(it);
    });
  }

  std::uint32_t NewSegment(const Segment& value) {
    if (free_segments.empty()) {
      segments.push_back(value);
      return static_cast<std::uint32_t>(segments.size() - 1);
    }
    const std::uint32_t id = free_segments.back();
    free_segments.pop_back();
    segments[id] = value;
    return id;
  }

  void UnlinkAge(Recency& holder, std::uint32_t id) {
    const Segment& segment = segments[id];
    (segment.older != 0 ? segments[segment.older].newer : holder.oldest) = segment.newer;
    (segment.newer != 0 ? segments[segment.newer].older : holder.newest) = segment.older;
  }

  // The first `to` blocks of the run are the holder's most recent ones now.
  void Restamp(Recency& holder, RunId run, std::uint32_t to, absl::Time now) {
    std::uint32_t& first = holder.first_of_run[run];
    std::uint32_t old = first;
    while (old != 0 && segments[old].to <= to) {
      const std::uint32_t next = segments[old].deeper;
      UnlinkAge(holder, old);
      free_segments.push_back(old);
      old = next;
    }
    if (old != 0) segments[old].from = std::max(segments[old].from, to);
    const std::uint32_t fresh =
        NewSegment({.time = now, .run = run, .to = to, .older = holder.newest, .deeper = old});
    if (old != 0) segments[old].shallower = fresh;
    (holder.newest != 0 ? segments[holder.newest].newer : holder.oldest) = fresh;
    holder.newest = fresh;
    first = fresh;
  }

  // Forgets the last `count` blocks of the holder's oldest segment.
  void ForgetOldest(std::uint16_t slot, std::uint32_t count) {
    Recency& holder = recency[slot];
    const std::uint32_t id = holder.oldest;
    Segment& segment = segments[id];
    segment.to -= count;
    const RunId run = segment.run;
    const std::uint32_t lead = segment.to;
    if (segment.to == segment.from) {
      if (segment.shallower != 0) {
        segments[segment.shallower].deeper = 0;
      } else {
        holder.first_of_run.erase(run);
      }
      UnlinkAge(holder, id);
      free_segments.push_back(id);
    }
    trie.TruncateCover(slot, run, lead);
  }

  void SetCapacity(std::uint16_t slot, std::size_t blocks) {
    recency[slot].capacity = blocks != 0 ? blocks : options.capacity_blocks;
  }

  // Forgets what is beyond the holder's capacity.
  void Trim(std::uint16_t slot) {
    const HolderState& state = trie.holders()[slot];
    while (state.blocks > recency[slot].capacity) {
      const Segment& oldest = segments[recency[slot].oldest];
      ForgetOldest(slot, static_cast<std::uint32_t>(std::min<std::uint64_t>(
                             state.blocks - recency[slot].capacity, oldest.to - oldest.from)));
    }
  }

  void ExpireHolder(std::uint16_t slot, absl::Time now) {
    Recency& holder = recency[slot];
    while (holder.oldest != 0 && segments[holder.oldest].time + options.ttl <= now) {
      ForgetOldest(slot, segments[holder.oldest].to - segments[holder.oldest].from);
    }
  }

  void Predict(std::uint16_t slot, const NamespaceId& ns, BlockKeySpan chain, absl::Time now);
  void ForgetAll(std::uint16_t slot);
  std::size_t RecencyBytes() const {
    return segments.capacity() * sizeof(Segment) + free_segments.capacity() * sizeof(std::uint32_t);
  }

  ApproxIndexOptions options;
  Trie trie;
  HolderRegistry registry;
  std::vector<Recency> recency;   // by slot
  std::vector<Segment> segments;  // [0] is unused
  std::vector<std::uint32_t> free_segments;
  std::vector<std::pair<RunId, std::uint32_t>>
      path;  // scratch of Predict(): runs from the root, blocks in each
};

void ApproxIndex::Impl::Predict(std::uint16_t slot, const NamespaceId& ns, BlockKeySpan chain,
                                absl::Time now) {
  path.clear();
  Trie::Cursor at;
  while (!chain.empty()) {
    const bool may_have_children = at.run == kRoot || trie.meta(at.run).first_child != 0;
    const RunId child = may_have_children ? trie.FindChild(ns, at, chain[0]) : 0;
    std::uint32_t count;
    if (child != 0) {
      const BlockKey* content = trie.body(child)->content();
      const std::size_t limit = std::min<std::size_t>(trie.length(child), chain.size());
      count =
          static_cast<std::uint32_t>(std::mismatch(content, content + limit, chain.begin()).first - content);
      trie.Cover(slot, child, 0, count);
      at = {child, count};
      path.emplace_back(child, count);
    } else if (at.run != kRoot && at.offset == trie.length(at.run) && at.offset < kMaxRunLength) {
      count = static_cast<std::uint32_t>(std::min<std::size_t>(chain.size(), kMaxRunLength - at.offset));
      trie.Append(at.run, chain.first(count), {});
      trie.Cover(slot, at.run, at.offset, at.offset + count);
      at.offset += count;
      path.back().second = at.offset;
    } else {
      count = static_cast<std::uint32_t>(std::min<std::size_t>(chain.size(), kMaxRunLength));
      at = {trie.AddRun(ns, 0, at, chain.first(count), {}), count};
      trie.Cover(slot, at.run, 0, count);
      path.emplace_back(at.run, count);
    }
    chain = chain.subspan(count);
  }
  // The chain's end becomes the least recent of its blocks, so that tails go before their prefixes.
  for (auto step = path.rbegin(); step != path.rend(); ++step)
    Restamp(recency[slot], step->first, step->second, now);
}

void ApproxIndex::Impl::ForgetAll(std::uint16_t slot) {
  Recency& holder = recency[slot];
  for (std::uint32_t id = holder.oldest; id != 0; id = segments[id].newer) free_segments.push_back(id);
  holder.oldest = 0;
  holder.newest = 0;
  holder.first_of_run = {};
  trie.DropHolder(slot);
}

ApproxIndex::ApproxIndex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ApproxIndex::~ApproxIndex() = default;

absl::StatusOr<std::unique_ptr<ApproxIndex>> ApproxIndex::Create(const ApproxIndexOptions& options) {
  if (absl::Status status = CheckIndexLimits(options.max_bytes, options.max_holders); !status.ok())
    return status;
  if (options.capacity_blocks < 1) {
    return absl::InvalidArgumentError("capacity_blocks is 0, must be at least 1");
  }
  if (options.ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ttl is ", absl::FormatDuration(options.ttl), ", must be positive"));
  }
  return std::unique_ptr<ApproxIndex>(new ApproxIndex(std::make_unique<Impl>(options)));
}

absl::StatusOr<HolderId> ApproxIndex::AddHolder(std::string_view endpoint, std::size_t capacity_blocks) {
  auto holder = impl_->registry.Add({.endpoint = std::string(endpoint)});
  if (holder.ok()) impl_->SetCapacity(holder->slot, capacity_blocks);
  return holder;
}

bool ApproxIndex::Resize(HolderId holder, std::size_t capacity_blocks) {
  if (!impl_->registry.Valid(holder)) {
    ++impl_->trie.stats().stale_holder_calls;
    return false;
  }
  impl_->SetCapacity(holder.slot, capacity_blocks);
  impl_->Trim(holder.slot);
  return true;
}

bool ApproxIndex::Predict(HolderId holder, const NamespaceId& ns, BlockKeySpan chain, absl::Time now) {
  if (!impl_->registry.Valid(holder)) {
    ++impl_->trie.stats().stale_holder_calls;
    return false;
  }
  const std::size_t capacity = impl_->recency[holder.slot].capacity;
  chain = chain.first(std::min(chain.size(), capacity));
  impl_->trie.ReserveRuns(2 + chain.size() / kMaxRunLength);
  impl_->Predict(holder.slot, ns, chain, now);
  impl_->ExpireHolder(holder.slot, now);
  impl_->Trim(holder.slot);
  impl_->trie.SetOtherBytes(impl_->RecencyBytes());
  impl_->trie.Maintain();
  impl_->trie.EnforceBudget();
  return true;
}

void ApproxIndex::Expire(absl::Time now) {
  for (std::size_t slot = 1; slot < impl_->recency.size(); ++slot) {
    impl_->ExpireHolder(static_cast<std::uint16_t>(slot), now);
  }
}

bool ApproxIndex::Clear(HolderId holder) {
  if (!impl_->registry.Valid(holder)) {
    ++impl_->trie.stats().stale_holder_calls;
    return false;
  }
  impl_->ForgetAll(holder.slot);
  return true;
}

bool ApproxIndex::Retire(HolderId holder) {
  if (!Clear(holder)) return false;
  impl_->registry.Retire(holder);
  return true;
}

std::size_t ApproxIndex::size(HolderId holder) const {
  return impl_->registry.Valid(holder) ? impl_->trie.holders()[holder.slot].blocks : 0;
}

MemoryUsage ApproxIndex::memory_usage() const { return impl_->trie.memory_usage(); }

IndexStats ApproxIndex::stats() const {
  IndexStats stats = impl_->trie.stats();
  stats.holders = impl_->registry.size();
  return stats;
}

ApproxIndex::Reader::Reader(const ApproxIndex& index) : reader_(index.impl_->trie) {}

}  // namespace llmd::index
