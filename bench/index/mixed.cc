// One writer with readers beside it.
#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/index/fill.h"
#include "bench/index/measure.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

constexpr std::int64_t kIdleNs = 300'000'000;  // how long readers run beside an idle writer
constexpr std::uint64_t kQueriesPerTurn = 64;  // between two looks at the stop flag
constexpr double kMissFraction = 0.2;

// What a reader thread shares; a cache line of its own.
struct alignas(128) ReaderThread {
  std::thread thread;
  std::atomic<std::uint64_t> reads{0};
};

class MixedRun {
 public:
  MixedRun(const Workload& workload, const FilledIndex& filled, int readers, std::uint64_t seed)
      : workload_(workload), filled_(filled), readers_(static_cast<std::size_t>(readers)) {
    for (const Query& query : workload.queries) {
      (workload.cells[query.cell].kind == CellKind::kMiss ? misses_ : hits_).push_back(&query);
    }
    for (std::size_t i = 0; i < readers_.size(); ++i) {
      readers_[i].thread = std::thread([this, i, seed] { Read(readers_[i], seed + 1 + i); });
    }
    while (ready_.load() < readers) std::this_thread::yield();
  }
  ~MixedRun() {
    stop_.store(true);
    for (ReaderThread& reader : readers_) reader.thread.join();
  }

  std::uint64_t reads() const {
    std::uint64_t sum = 0;
    for (const ReaderThread& reader : readers_) sum += reader.reads.load(std::memory_order_relaxed);
    return sum;
  }

 private:
  void Read(ReaderThread& self, std::uint64_t seed) {
    index::PrefixIndex::Reader reader(*filled_.index);
    const index::NamespaceId ns = BenchNamespace();
    index::MatchResult result;
    std::vector<BlockKey> chain;
    Random random(seed);
    ready_.fetch_add(1);
    while (!stop_.load(std::memory_order_relaxed)) {
      for (std::uint64_t i = 0; i < kQueriesPerTurn; ++i) {
        const bool miss = hits_.empty() || (!misses_.empty() && random.Chance(kMissFraction));
        const auto& pool = miss ? misses_ : hits_;
        CopyChain(workload_, *pool[random.Below(pool.size())], chain);
        reader.Match(ns, chain, result);
        KeepAlive(result.size());
      }
      self.reads.store(self.reads.load(std::memory_order_relaxed) + kQueriesPerTurn,
                       std::memory_order_relaxed);
    }
  }

  const Workload& workload_;
  const FilledIndex& filled_;
  std::vector<const Query*> hits_, misses_;
  std::atomic<int> ready_{0};
  std::atomic<bool> stop_{false};
  std::vector<ReaderThread> readers_;
};

struct Rates {
  std::vector<double> writes, reads, idle_reads;
};

double Seconds(std::int64_t since) { return std::max(static_cast<double>(NowNs() - since) * 1e-9, 1e-9); }

absl::Status RunOnce(const Bench& bench, const Workload& workload, int readers, Rates& rates,
                     std::uint64_t& checksum) {
  auto made = MakeIndex(workload);
  if (!made.ok()) return made.status();
  const FilledIndex filled = *std::move(made);
  OpApplier applier(workload, filled);
  applier.ApplyUntil(workload.ops.size() / 2);
  const std::uint64_t written_before = applier.written_blocks();
  {
    MixedRun run(workload, filled, readers, bench.options.seed);
    if (readers > 0) {
      const std::int64_t begin = NowNs();
      const std::uint64_t reads_before = run.reads();
      std::this_thread::sleep_for(std::chrono::nanoseconds(kIdleNs));
      rates.idle_reads.push_back(static_cast<double>(run.reads() - reads_before) / Seconds(begin));
    }
    const std::uint64_t reads_before = run.reads();
    const std::int64_t begin = NowNs();
    applier.ApplyUntil(workload.ops.size());
    const double seconds = Seconds(begin);
    rates.reads.push_back(static_cast<double>(run.reads() - reads_before) / seconds);
    rates.writes.push_back(static_cast<double>(applier.written_blocks() - written_before) / seconds);
  }
  if (absl::Status status = CheckFinalState(workload, *filled.index); !status.ok()) return status;
  const auto found = MatchChecksum(workload, filled);
  if (!found.ok()) return found.status();
  checksum = *found;
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureMixed(const Bench& bench, const Workload& workload) {
  if (workload.queries.empty()) return absl::InvalidArgumentError("queries: readers need at least one");
  std::uint64_t alone = 0;  // what the index answers after a run without readers
  for (int readers = 0; readers <= bench.options.threads; ++readers) {
    Rates rates;
    for (int i = 0; i < bench.options.repeat; ++i) {
      bench.progress.Show(
          absl::StrCat(workload.name, ": ", readers, " readers, ", i + 1, " of ", bench.options.repeat));
      std::uint64_t checksum = 0;
      if (absl::Status status = RunOnce(bench, workload, readers, rates, checksum); !status.ok())
        return status;
      if (readers == 0) alone = checksum;
      if (checksum != alone) {
        return absl::InternalError(absl::StrCat(workload.name, ": with ", readers,
                                                " readers the index ends in another state than alone"));
      }
    }
    bench.progress.Clear();
    const auto report = [&](const std::string& suffix) {
      bench.reporter.Report(workload.name, "writes_per_s" + suffix, Median(rates.writes), "blocks/s", false);
      if (readers == 0) return;
      bench.reporter.Report(workload.name, "reads_per_s" + suffix, Median(rates.reads), "matches/s", false);
      bench.reporter.Report(workload.name, "idle_reads_per_s" + suffix, Median(rates.idle_reads), "matches/s",
                            false);
    };
    report(absl::StrCat("_r", readers));
    if (readers == bench.options.threads) report("");
  }
  return absl::OkStatus();
}

}  // namespace llmd::bench
