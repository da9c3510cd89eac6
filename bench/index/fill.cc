#include "bench/index/fill.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::bench {

index::NamespaceId BenchNamespace() {
  return index::MakeNamespace({.model = "bench", .lora = {}, .cache_salt = {}});
}

index::PrefixIndexOptions IndexOptions(const Workload& workload) {
  // Several times what the budgets allow, so that nothing is evicted.
  return {.max_bytes = (std::size_t{256} << 20) + 64 * workload.blocks.size(),
          .max_holders = workload.holders};
}

absl::StatusOr<FilledIndex> MakeIndex(const Workload& workload) {
  auto index = index::PrefixIndex::Create(IndexOptions(workload));
  if (!index.ok()) return index.status();
  FilledIndex made{*std::move(index), {}};
  for (std::uint32_t i = 0; i < workload.holders; ++i) {
    index::HolderOptions options;
    options.endpoint = absl::StrCat("10.0.", i / 256, ".", i % 256, ":8000");
    auto holder = made.index->AddHolder(options);
    if (!holder.ok()) return holder.status();
    made.handles.push_back(*holder);
  }
  return made;
}

void OpApplier::ApplyUntil(std::size_t end_op) {
  const index::NamespaceId ns = BenchNamespace();
  index::PrefixIndex& index = *target_.index;
  const std::span<const index::StoredBlock> blocks(workload_.blocks);
  const std::span<const index::EngineKey> keys(workload_.removed_keys);
  for (; op_ < end_op; ++op_) {
    const Op& op = workload_.ops[op_];
    if (op.kind == OpKind::kStore) {
      const auto parent = op.has_parent ? std::optional<index::EngineKey>(op.parent) : std::nullopt;
      index.Store(target_.handles[op.holder], ns, parent, blocks.subspan(block_, op.count));
      block_ += op.count;
    } else {
      index.Remove(target_.handles[op.holder], keys.subspan(key_, op.count));
      key_ += op.count;
    }
  }
}

absl::Status CheckFinalState(const Workload& workload, const index::PrefixIndex& index) {
  const index::IndexStats stats = index.stats();
  if (stats.holder_blocks == workload.live_holder_blocks && stats.unknown_parents == 0 &&
      stats.evicted_runs == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(workload.name, ": the index has ", stats.holder_blocks,
                                          " holder-blocks where the stream ends with ",
                                          workload.live_holder_blocks, "; ", stats.unknown_parents,
                                          " unknown parents, ", stats.evicted_runs, " evicted runs"));
}

void CopyChain(const Workload& workload, const Query& query, std::vector<BlockKey>& out) {
  const auto begin = workload.chain_keys.begin() + static_cast<std::ptrdiff_t>(query.first);
  out.assign(begin, begin + query.length);
  out.push_back(query.last);
}

absl::StatusOr<std::uint64_t> MatchChecksum(const Workload& workload, const FilledIndex& filled) {
  std::vector<std::uint32_t> holder_of_slot(65536, kMaxHolders);
  for (std::uint32_t i = 0; i < workload.holders; ++i) holder_of_slot[filled.handles[i].slot] = i;
  index::PrefixIndex::Reader reader(*filled.index);
  index::MatchResult result;
  std::vector<BlockKey> chain;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < workload.queries.size(); ++i) {
    const Query& query = workload.queries[i];
    CopyChain(workload, query, chain);
    reader.Match(BenchNamespace(), chain, result);
    const std::uint32_t deepest = workload.cells[query.cell].kind == CellKind::kMiss ? 0 : query.length;
    std::uint64_t rows = 0;
    for (const index::HolderDepth& row : result) {
      if (row.slot >= holder_of_slot.size() || holder_of_slot[row.slot] >= workload.holders ||
          row.depth < 1 || row.depth > deepest) {
        return absl::InternalError(absl::StrCat(workload.name, ": query ", i, ": depth ", row.depth,
                                                " in slot ", row.slot, ", at most ", deepest,
                                                " is possible"));
      }
      rows += MixBits(std::uint64_t{holder_of_slot[row.slot]} << 32 | row.depth);
    }
    sum = MixBits(sum + rows + 1);
  }
  return sum;
}

}  // namespace llmd::bench
