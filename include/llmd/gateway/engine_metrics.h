// What an engine's metrics page tells about an endpoint, as the scheduler wants it (spec: scheduling.md 4).
//
//   EngineMetricsReader reader(config);                     // one per engine and thread
//   MetricsReport report;
//   absl::Status status = reader.Read(page, now, metrics, attributes, report);
//
// A field that the page gives is set with the time `now`; one that is missing, or whose value has no meaning,
// keeps its old value and time and is named in the report, so that one renamed metric does not blind the
// scheduler to the others and an old value shows its age. A page that is refused as a whole changes nothing.
//
// Several series of one metric: of those that have the labels asked for, the one with the greatest timestamp
// counts, without timestamps the first. llm-d stops there. An engine with several data-parallel ranks behind
// one port writes a series for each, and the first one's queue says little about the port: a router in front
// of the ranks spreads what arrives, so what waits and runs behind the port is the sum over ranks, the use of
// the cache their mean (ranks have caches of one size), and the number of blocks the sum. This is done here
// for series that are alike in all labels but those of ranks, each value of the rank labels once;
// Compatibility::first_rank_alone brings llm-d's reading back. Adapters and attributes are never combined.
//
// Values are checked: NaN, infinities and negative numbers are no value; a cache use above 1 is 1.
//
// Nothing is allocated once warm, unless the set of adapters changed.
#ifndef LLMD_GATEWAY_ENGINE_METRICS_H_
#define LLMD_GATEWAY_ENGINE_METRICS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/gateway/engine_config.h"
#include "llmd/gateway/prometheus_text.h"
#include "llmd/sched/compatibility.h"
#include "llmd/sched/endpoint.h"

namespace llmd::gateway {

enum class MetricField : std::uint8_t {
  kWaiting,
  kRunning,
  kKvUsage,
  kAdapters,
  kCacheBlockSize,
  kCacheNumBlocks,
  kCustom,
};

struct FieldProblem {
  enum class Reason : std::uint8_t {
    kMissing,        // no series with that name and those labels
    kBadValue,       // not finite, negative, or too great
    kWrongType,      // a histogram or summary
    kBadLabel,       // a label that is absent or no number
    kTooManySeries,  // more than 256; those beyond were ignored
  };
  MetricField field = MetricField::kWaiting;
  std::uint32_t custom = 0;  // index into EngineConfig::custom
  Reason reason = Reason::kMissing;
  friend bool operator==(const FieldProblem&, const FieldProblem&) = default;
};

struct MetricsReport {
  std::vector<FieldProblem> problems = {};  // at most one of a field
  std::uint32_t updated = 0;                // fields set
  PrometheusReader::Stats page = {};

  // "waiting is missing; running has a value without meaning". Empty when there is no problem.
  std::string ToString(const EngineConfig& config) const;
};

struct EngineMetricsOptions {
  PrometheusLimits limits = {};
  // Labels that tell data-parallel ranks apart; the first four are read.
  std::vector<std::string> rank_labels = {"engine", "dp_rank"};
  // Labels in which series of one rank may differ; of those, the first counts.
  std::vector<std::string> shard_labels = {"tp_rank", "pp_rank", "moe_ep_rank"};
  sched::Compatibility compatibility = {};
};

class EngineMetricsReader {
 public:
  explicit EngineMetricsReader(EngineConfig config, EngineMetricsOptions options = {});

  // The error of a page that was refused. `attributes` gets the custom metrics by their keys.
  absl::Status Read(std::string_view page, absl::Time now, sched::Metrics& metrics,
                    std::vector<sched::Attribute>& attributes, MetricsReport& report);

  const EngineConfig& config() const { return config_; }

 private:
  // A series found on the page.
  struct Match {
    double value;
    double timestamp;
    std::string_view labels;
  };
  static constexpr std::size_t kMaxRankLabels = 4;
  struct Selected {
    const Match* match;
    std::array<std::string_view, kMaxRankLabels> ranks;
  };
  // One metric to look for.
  struct Wanted {
    MetricField field;
    std::uint32_t custom;       // index, for a custom metric
    std::uint32_t alternative;  // 0 is the preferred
    bool labels_only;           // of an info metric
    MetricSpec spec;
    std::vector<Match> matches = {};
    bool wrong_type = false;
    bool too_many = false;
  };
  enum class Combine : std::uint8_t { kFirst, kSum, kMean };

  void Want(MetricField field, const MetricSpecs& specs, bool labels_only = false);
  void Collect();
  bool Skipped(std::string_view label) const;
  // Whether the labels that the reader has are those of the group but for ranks.
  bool InGroup() const;
  // The matches that count: one per rank of the group of the newest one, that one first.
  void Select(const Wanted& wanted, Combine combine);
  // The metric of the field that counts; null when none has a match, with a problem reported.
  Wanted* Find(MetricField field, std::uint32_t custom, bool labels_only, FieldProblem& problem);
  bool Number(MetricField field, std::uint32_t custom, Combine combine, double most, double& out,
              FieldProblem& problem);
  bool LabelNumber(MetricField field, std::string_view label, Combine combine, std::uint64_t most,
                   std::uint64_t& out, FieldProblem& problem);
  bool Cache(MetricField field, std::string_view label, Combine combine, std::uint64_t most,
             std::uint64_t& out, MetricsReport& report);
  void Adapters(absl::Time now, sched::Metrics& metrics, MetricsReport& report);
  bool Wants(MetricField field) const;

  EngineConfig config_;
  EngineMetricsOptions options_;
  PrometheusReader reader_;
  std::vector<Wanted> wanted_;
  std::uint64_t lengths_ = 0;  // bit n: a wanted name has n characters, modulo 64
  std::vector<Selected> selected_;
  std::vector<PrometheusLabel> group_labels_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_ENGINE_METRICS_H_
