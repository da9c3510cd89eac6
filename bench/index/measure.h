// What bench_index measures on a workload; docs/bench-index-format.md says what lies inside each clock.
//
// All functions run on the calling thread except MeasureMixed(). Each checks what it measures against the
// workload and returns Internal when the index has lost a write or invented a match.
#ifndef BENCH_INDEX_MEASURE_H_
#define BENCH_INDEX_MEASURE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/bench_util.h"
#include "bench/index/progress.h"
#include "bench/index/workload.h"
#include "llmd/index/prefix_index.h"

namespace llmd::bench {

struct MeasureOptions {
  int repeat = 5;                // repetitions of each measurement; the median is reported
  std::size_t samples = 20000;   // matches of a cell in a repetition, at least,
  std::size_t max_passes = 256;  // unless the cell has so few families that this many passes are not enough
  std::uint64_t seed = 1;        // order in which queries are visited
  int threads = 1;               // readers, at most (MeasureMixed)
};

struct Bench {
  const Reporter& reporter;
  const Progress& progress;
  MeasureOptions options;
};

// An index with the workload's holders; handles[i] is holder i.
struct FilledIndex {
  std::unique_ptr<index::PrefixIndex> index;
  std::vector<index::HolderId> handles;
};

// Writes and memory: write_blocks_per_s, bytes_per_holder_block, usage_bytes_per_holder_block. Returns the
// last index.
absl::StatusOr<FilledIndex> MeasureFill(const Bench& bench, const Workload& workload);

// The cells' quantiles, match_miss and match_checksum.
absl::Status MeasureMatches(const Bench& bench, const Workload& workload, const FilledIndex& filled);

// snapshot_s, restore_s, snapshot_bytes.
absl::Status MeasureSnapshot(const Bench& bench, const Workload& workload, const FilledIndex& filled);

// One writer with 0 .. threads readers: writes_per_s and reads_per_s by reader count.
absl::Status MeasureMixed(const Bench& bench, const Workload& workload);

// Median of what two readings of the clock with nothing between them are apart.
double TimerOverheadNs();

}  // namespace llmd::bench

#endif  // BENCH_INDEX_MEASURE_H_
