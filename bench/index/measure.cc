#include "bench/index/measure.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/index/fill.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

constexpr std::size_t kEvictBytes = std::size_t{64} << 20;
constexpr std::size_t kUncounted = 8;  // first matches of a pass: they bring the code back into the caches
constexpr double kMissFraction = 0.2;

double ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long long size = 0, resident = 0;
  if (std::fscanf(file, "%lld %lld", &size, &resident) != 2) resident = 0;
  std::fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// Replaces what the caches hold, and the translations of its addresses, by walking a buffer.
class CacheEvicter {
 public:
  CacheEvicter() : buffer_(kEvictBytes / sizeof(std::uint64_t), 1) {}
  void Evict() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < buffer_.size(); i += 8) sum += buffer_[i];
    KeepAlive(sum);
  }

 private:
  std::vector<std::uint64_t> buffer_;
};

// Measures the queries of one cell at a time, in passes: evict, then visit queries in random order, none
// twice.
class CellRunner {
 public:
  CellRunner(const Bench& bench, const Workload& workload, const FilledIndex& filled)
      : options_(bench.options), workload_(workload), reader_(*filled.index), random_(bench.options.seed) {
    queries_.resize(workload.cells.size());
    std::size_t longest = 0;
    for (std::uint32_t i = 0; i < workload.queries.size(); ++i) {
      const Query& query = workload.queries[i];
      longest = std::max<std::size_t>(longest, query.length);
      if (workload.cells[query.cell].kind == CellKind::kMiss) misses_.push_back(i);
      queries_[query.cell].push_back(i);
    }
    chain_.reserve(longest + 1);
    result_.reserve(workload.holders);
  }

  // Nanoseconds of each match of the cell in one repetition. `warm` gets those of asking the same again at
  // once, `miss` those of the misses between.
  std::vector<double> Run(std::uint32_t cell, std::vector<double>& warm, std::vector<double>& miss) {
    std::vector<double> samples;
    std::vector<std::uint32_t>& order = queries_[cell];
    const double misses_per_hit = misses_.empty() ? 0 : kMissFraction / (1 - kMissFraction);
    const std::size_t uncounted = std::min(kUncounted, order.size() / 2);
    for (std::size_t pass = 0; pass < options_.max_passes && samples.size() < options_.samples; ++pass) {
      random_.Shuffle(order);
      evicter_.Evict();
      double misses_due = 0;
      for (std::size_t i = 0; i < order.size() && samples.size() < options_.samples; ++i) {
        CopyChain(workload_, workload_.queries[order[i]], chain_);
        const double cold_ns = TimeMatch();
        if (i < uncounted) continue;
        samples.push_back(cold_ns);
        warm.push_back(TimeMatch());
        for (misses_due += misses_per_hit; misses_due >= 1; misses_due -= 1) {
          CopyChain(workload_, workload_.queries[misses_[random_.Below(misses_.size())]], chain_);
          miss.push_back(TimeMatch());
        }
      }
    }
    return samples;
  }

 private:
  double TimeMatch() {
    const std::int64_t begin = NowNs();
    reader_.Match(ns_, chain_, result_);
    const std::int64_t end = NowNs();
    KeepAlive(result_.size());
    return static_cast<double>(end - begin);
  }

  const MeasureOptions& options_;
  const Workload& workload_;
  index::PrefixIndex::Reader reader_;
  Random random_;
  CacheEvicter evicter_;
  const index::NamespaceId ns_ = BenchNamespace();
  std::vector<std::vector<std::uint32_t>> queries_;  // by cell
  std::vector<std::uint32_t> misses_;
  std::vector<BlockKey> chain_;
  index::MatchResult result_;
};

std::string WithoutSuffix(const std::string& text, const std::string& suffix) {
  const bool has = text.size() > suffix.size() && text.ends_with(suffix);
  return has ? text.substr(0, text.size() - suffix.size()) : text;
}

// The quantiles of each repetition of one metric.
struct Quantiles {
  std::vector<double> p50, p99;
  void Add(std::vector<double>& samples) {
    if (samples.empty()) return;
    p50.push_back(Quantile(samples, 0.50));
    p99.push_back(Quantile(samples, 0.99));
  }
  void ReportMedian(const Bench& bench, const Workload& workload, const std::string& metric) const {
    if (p50.empty()) return;
    bench.reporter.Report(workload.name, metric + "_p50_ns", Median(p50), "ns", true);
  }
  void Report(const Bench& bench, const Workload& workload, const std::string& metric) const {
    if (p50.empty()) return;
    ReportMedian(bench, workload, metric);
    bench.reporter.Report(workload.name, metric + "_p99_ns", Median(p99), "ns", true);
  }
};

}  // namespace

double TimerOverheadNs() {
  std::vector<double> samples;
  for (int i = 0; i < 10001; ++i) {
    const std::int64_t begin = NowNs();
    samples.push_back(static_cast<double>(NowNs() - begin));
  }
  return Median(std::move(samples));
}

absl::StatusOr<FilledIndex> MeasureFill(const Bench& bench, const Workload& workload) {
  std::vector<double> rates, bytes;
  FilledIndex filled;
  for (int i = 0; i < bench.options.repeat; ++i) {
    bench.progress.Show(absl::StrCat(workload.name, ": writes, ", i + 1, " of ", bench.options.repeat));
    filled = {};
    malloc_trim(0);  // gives the last index's pages back, so that they count again
    const double before = ResidentBytes();
    auto made = MakeIndex(workload);
    if (!made.ok()) return made.status();
    filled = *std::move(made);
    OpApplier applier(workload, filled);
    const std::int64_t begin = NowNs();
    applier.ApplyUntil(workload.ops.size());
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    bytes.push_back(ResidentBytes() - before);
    rates.push_back(static_cast<double>(applier.written_blocks()) / seconds);
    if (absl::Status status = CheckFinalState(workload, *filled.index); !status.ok()) return status;
  }
  const auto live = static_cast<double>(std::max<std::uint64_t>(workload.live_holder_blocks, 1));
  const MemoryUsage usage = filled.index->memory_usage();
  bench.progress.Clear();
  const Reporter& reporter = bench.reporter;
  reporter.Report(workload.name, "write_blocks_per_s", Median(rates), "blocks/s", false);
  reporter.Report(workload.name, "bytes_per_holder_block",
                  *std::max_element(bytes.begin(), bytes.end()) / live, "bytes", true);
  reporter.Report(workload.name, "usage_bytes_per_holder_block",
                  static_cast<double>(usage.total_bytes()) / live, "bytes", true);
  reporter.Report(workload.name, "holder_blocks", live, "blocks", false);
  return filled;
}

absl::Status MeasureMatches(const Bench& bench, const Workload& workload, const FilledIndex& filled) {
  bench.progress.Show(absl::StrCat(workload.name, ": checksum"));
  const auto checksum = MatchChecksum(workload, filled);
  if (!checksum.ok()) return checksum.status();
  CellRunner runner(bench, workload, filled);
  std::vector<Quantiles> cells(workload.cells.size()), warm_cells(workload.cells.size());
  Quantiles misses;
  for (int i = 0; i < bench.options.repeat; ++i) {
    std::vector<double> miss_samples;
    for (std::uint32_t cell = 0; cell < cells.size(); ++cell) {
      if (workload.cells[cell].kind == CellKind::kMiss) continue;
      bench.progress.Show(absl::StrCat(workload.name, ": ", workload.cells[cell].metric, ", ", i + 1, " of ",
                                       bench.options.repeat));
      std::vector<double> warm;
      std::vector<double> cold = runner.Run(cell, warm, miss_samples);
      cells[cell].Add(cold);
      warm_cells[cell].Add(warm);
    }
    misses.Add(miss_samples);
  }
  bench.progress.Clear();
  for (std::size_t cell = 0; cell < cells.size(); ++cell) {
    const std::string& metric = workload.cells[cell].metric;
    cells[cell].Report(bench, workload, metric);
    warm_cells[cell].ReportMedian(bench, workload, absl::StrCat(WithoutSuffix(metric, "_cold"), "_warm"));
  }
  misses.Report(bench, workload, "match_miss");
  // Six digits, which every printer of numbers keeps.
  bench.reporter.Report(workload.name, "match_checksum", static_cast<double>(*checksum % 1000000), "", true);
  return absl::OkStatus();
}

absl::Status MeasureSnapshot(const Bench& bench, const Workload& workload, const FilledIndex& filled) {
  const auto expected = MatchChecksum(workload, filled);
  if (!expected.ok()) return expected.status();
  std::vector<std::byte> buffer;
  const auto sink = [&](std::span<const std::byte> piece) {
    buffer.insert(buffer.end(), piece.begin(), piece.end());
    return absl::OkStatus();
  };
  std::vector<double> snapshot_s, restore_s;
  // The first snapshot grows the buffer and is not counted.
  for (int i = 0; i <= bench.options.repeat; ++i) {
    bench.progress.Show(absl::StrCat(workload.name, ": snapshot, ", i, " of ", bench.options.repeat));
    buffer.clear();
    std::int64_t begin = NowNs();
    if (absl::Status status = filled.index->Snapshot(sink); !status.ok()) return status;
    if (i == 0) continue;
    snapshot_s.push_back(static_cast<double>(NowNs() - begin) * 1e-9);
    begin = NowNs();
    auto restored = index::PrefixIndex::Restore(buffer, IndexOptions(workload));
    restore_s.push_back(static_cast<double>(NowNs() - begin) * 1e-9);
    if (!restored.ok()) return restored.status();
    // Handles stay valid across a restore.
    const FilledIndex copy{*std::move(restored), filled.handles};
    const auto checksum = MatchChecksum(workload, copy);
    if (!checksum.ok()) return checksum.status();
    if (*checksum != *expected || copy.index->stats().holder_blocks != workload.live_holder_blocks) {
      return absl::InternalError(absl::StrCat(workload.name, ": the restored index answers differently"));
    }
  }
  bench.progress.Clear();
  bench.reporter.Report(workload.name, "snapshot_s", Median(snapshot_s), "s", true);
  bench.reporter.Report(workload.name, "restore_s", Median(restore_s), "s", true);
  bench.reporter.Report(workload.name, "snapshot_bytes_per_holder_block",
                        static_cast<double>(buffer.size()) / static_cast<double>(workload.live_holder_blocks),
                        "bytes", true);
  return absl::OkStatus();
}

}  // namespace llmd::bench
