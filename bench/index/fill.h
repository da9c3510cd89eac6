// Applying a workload to an index, and a checksum over what it then matches.
#ifndef BENCH_INDEX_FILL_H_
#define BENCH_INDEX_FILL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/index/measure.h"
#include "bench/index/workload.h"
#include "llmd/index/prefix_index.h"

namespace llmd::bench {

index::NamespaceId BenchNamespace();

// An empty index with the workload's holders and a byte budget that the workload does not reach.
absl::StatusOr<FilledIndex> MakeIndex(const Workload& workload);
index::PrefixIndexOptions IndexOptions(const Workload& workload);

// Applies the ops in order; can be stopped and resumed.
class OpApplier {
 public:
  OpApplier(const Workload& workload, const FilledIndex& target) : workload_(workload), target_(target) {}
  void ApplyUntil(std::size_t end_op);
  std::uint64_t written_blocks() const { return block_ + key_; }

 private:
  const Workload& workload_;
  const FilledIndex& target_;
  std::size_t op_ = 0, block_ = 0, key_ = 0;
};

// Internal unless the index has exactly the holder-blocks that the workload ends with, and dropped nothing.
absl::Status CheckFinalState(const Workload& workload, const index::PrefixIndex& index);

// Copies a query's chain to `out`.
void CopyChain(const Workload& workload, const Query& query, std::vector<BlockKey>& out);

// Folds the results of all queries, in order, into 64 bits that do not depend on the order of a result's
// rows. Internal when a chain of unknown keys matches, or a row is deeper than its chain has known blocks.
absl::StatusOr<std::uint64_t> MatchChecksum(const Workload& workload, const FilledIndex& filled);

}  // namespace llmd::bench

#endif  // BENCH_INDEX_FILL_H_
