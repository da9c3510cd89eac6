#include "llmd/gateway/engine_metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

using Reason = FieldProblem::Reason;

constexpr std::size_t kMaxSeries = 256;
constexpr std::size_t kMaxRankBytes = 64;
constexpr double kMostRequests = 0x1p53;

bool Meaningful(double value) { return std::isfinite(value) && value >= 0; }

// The next name of a comma list, blanks trimmed and empty ones skipped; false at the end.
bool NextName(std::string_view& list, std::string_view& name) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(','), list.size());
    name = list.substr(0, end);
    list.remove_prefix(std::min(end + 1, list.size()));
    name.remove_prefix(std::min(name.find_first_not_of(" \t"), name.size()));
    while (!name.empty() && (name.back() == ' ' || name.back() == '\t')) name.remove_suffix(1);
    if (!name.empty()) return true;
  }
  return false;
}

bool SameNames(std::string_view list, const std::vector<std::string>& names) {
  std::string_view name;
  std::size_t i = 0;
  while (NextName(list, name)) {
    if (i == names.size() || names[i] != name) return false;
    ++i;
  }
  return i == names.size();
}

std::vector<std::string> Names(std::string_view list) {
  std::vector<std::string> names;
  std::string_view name;
  while (NextName(list, name)) names.emplace_back(name);
  return names;
}

template <typename T>
bool ParseInteger(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

EngineMetricsReader::EngineMetricsReader(EngineConfig config, EngineMetricsOptions options)
    : config_(std::move(config)), options_(std::move(options)), reader_(options_.limits) {
  Want(MetricField::kWaiting, config_.queued_requests);
  Want(MetricField::kRunning, config_.running_requests);
  Want(MetricField::kKvUsage, config_.kv_usage);
  Want(MetricField::kAdapters, config_.lora);
  if (!config_.cache_block_size_label.empty()) {
    Want(MetricField::kCacheBlockSize, config_.cache_info, true);
  }
  if (!config_.cache_num_blocks_label.empty()) {
    Want(MetricField::kCacheNumBlocks, config_.cache_info, true);
  }
  Want(MetricField::kCacheBlockSize, config_.cache_block_size);
  Want(MetricField::kCacheNumBlocks, config_.cache_num_blocks);
  for (std::uint32_t i = 0; i < config_.custom.size(); ++i) {
    Want(MetricField::kCustom, {config_.custom[i].metric});
    wanted_.back().custom = i;
  }
}

void EngineMetricsReader::Want(MetricField field, const MetricSpecs& specs, bool labels_only) {
  for (std::uint32_t i = 0; i < specs.size(); ++i) {
    wanted_.push_back({field, 0, i, labels_only, specs[i]});
    // OpenMetrics gives the samples of the counter x the name x_total.
    lengths_ |= std::uint64_t{1} << (specs[i].name.size() % 64);
    lengths_ |= std::uint64_t{1} << ((specs[i].name.size() + 6) % 64);
  }
}

void EngineMetricsReader::Collect() {
  const std::string_view name = reader_.name();
  if ((lengths_ >> (name.size() % 64) & 1) == 0) return;
  enum { kNotYet, kGood, kBad } parsed = kNotYet;
  for (Wanted& wanted : wanted_) {
    if (wanted.spec.name != name) {
      if (name.size() != wanted.spec.name.size() + 6 || !name.ends_with("_total") ||
          !name.starts_with(wanted.spec.name) || reader_.type() != PrometheusType::kCounter) {
        continue;
      }
    }
    const PrometheusType type = reader_.type();
    if (type == PrometheusType::kHistogram || type == PrometheusType::kSummary) {
      wanted.wrong_type = true;
      continue;
    }
    if (parsed == kNotYet) parsed = reader_.Parse() ? kGood : kBad;
    if (parsed == kBad) return;
    const bool fits =
        std::all_of(wanted.spec.labels.begin(), wanted.spec.labels.end(), [&](const auto& label) {
          const PrometheusLabel* found = reader_.FindLabel(label.first);
          return found != nullptr && found->Is(label.second);
        });
    if (!fits) continue;
    if (wanted.matches.size() == kMaxSeries) {
      wanted.too_many = true;
    } else {
      wanted.matches.push_back({reader_.value(), reader_.timestamp().value_or(0), reader_.labels_text()});
    }
  }
}

bool EngineMetricsReader::Skipped(std::string_view label) const {
  const auto in = [&](const std::vector<std::string>& names) {
    return std::find(names.begin(), names.end(), label) != names.end();
  };
  return in(options_.rank_labels) || in(options_.shard_labels);
}

bool EngineMetricsReader::InGroup() const {
  std::size_t ours = 0, theirs = 0;
  for (const PrometheusLabel& label : reader_.labels()) ours += !Skipped(label.name);
  for (const PrometheusLabel& label : group_labels_) {
    if (Skipped(label.name)) continue;
    ++theirs;
    const PrometheusLabel* found = reader_.FindLabel(label.name);
    if (found == nullptr || found->raw != label.raw) return false;
  }
  return ours == theirs;
}

void EngineMetricsReader::Select(const Wanted& wanted, Combine combine) {
  // The first of those with the greatest timestamp; NaN is never greater.
  const Match* newest = &wanted.matches.front();
  for (const Match& match : wanted.matches) {
    if (match.timestamp > newest->timestamp) newest = &match;
  }
  selected_.clear();
  if (combine == Combine::kFirst || options_.compatibility.first_rank_alone || wanted.matches.size() == 1) {
    selected_.push_back({newest, {}});
    return;
  }
  reader_.ParseLabels(newest->labels);
  group_labels_.assign(reader_.labels().begin(), reader_.labels().end());
  const auto add = [&](const Match& match) {
    reader_.ParseLabels(match.labels);
    if (!InGroup()) return;
    Selected candidate{&match, {}};
    for (std::size_t i = 0; i < std::min(options_.rank_labels.size(), kMaxRankLabels); ++i) {
      const PrometheusLabel* rank = reader_.FindLabel(options_.rank_labels[i]);
      if (rank == nullptr) continue;
      if (rank->raw.size() > kMaxRankBytes) return;
      candidate.ranks[i] = rank->raw;
    }
    if (std::none_of(selected_.begin(), selected_.end(),
                     [&](const Selected& other) { return other.ranks == candidate.ranks; })) {
      selected_.push_back(candidate);
    }
  };
  add(*newest);
  for (const Match& match : wanted.matches) add(match);
  if (selected_.empty()) selected_.push_back({newest, {}});  // a rank's name is too long
}

EngineMetricsReader::Wanted* EngineMetricsReader::Find(MetricField field, std::uint32_t custom,
                                                       bool labels_only, FieldProblem& problem) {
  problem = {field, custom, Reason::kMissing};
  for (Wanted& wanted : wanted_) {
    if (wanted.field != field || wanted.custom != custom || wanted.labels_only != labels_only) continue;
    if (!wanted.matches.empty()) {
      if (wanted.too_many) problem.reason = Reason::kTooManySeries;
      return &wanted;
    }
    if (wanted.wrong_type) problem.reason = Reason::kWrongType;
  }
  return nullptr;
}

bool EngineMetricsReader::Number(MetricField field, std::uint32_t custom, Combine combine, double most,
                                 double& out, FieldProblem& problem) {
  const Wanted* wanted = Find(field, custom, false, problem);
  if (wanted == nullptr) return false;
  Select(*wanted, combine);
  double sum = 0;
  for (const Selected& selected : selected_) {
    const Match& match = *selected.match;
    if (field != MetricField::kCustom && !Meaningful(match.value)) {
      problem.reason = Reason::kBadValue;
      return false;
    }
    sum += field == MetricField::kKvUsage ? std::min(match.value, 1.0) : match.value;
  }
  if (combine == Combine::kMean) sum /= static_cast<double>(selected_.size());
  if (!std::isfinite(sum) || sum > most) {
    problem.reason = Reason::kBadValue;
    return false;
  }
  out = sum;
  return true;
}

bool EngineMetricsReader::LabelNumber(MetricField field, std::string_view label, Combine combine,
                                      std::uint64_t most, std::uint64_t& out, FieldProblem& problem) {
  const Wanted* wanted = Find(field, 0, true, problem);
  if (wanted == nullptr) return false;
  Select(*wanted, combine);
  std::uint64_t sum = 0;
  for (const Selected& selected : selected_) {
    const Match& match = *selected.match;
    reader_.ParseLabels(match.labels);
    const PrometheusLabel* found = reader_.FindLabel(label);
    std::uint64_t number = 0;
    if (found == nullptr || !ParseInteger(found->raw, number) || number > most - sum) {
      problem.reason = Reason::kBadLabel;
      return false;
    }
    sum += number;
  }
  out = sum;
  return true;
}

bool EngineMetricsReader::Cache(MetricField field, std::string_view label, Combine combine,
                                std::uint64_t most, std::uint64_t& out, MetricsReport& report) {
  if (!Wants(field)) return false;
  FieldProblem by_value, by_label;
  double value = 0;
  if (Number(field, 0, combine, static_cast<double>(most), value, by_value)) {
    out = static_cast<std::uint64_t>(value);
    return true;
  }
  if (LabelNumber(field, label, combine, most, out, by_label)) return true;
  report.problems.push_back(by_value.reason == Reason::kMissing ? by_label : by_value);
  return false;
}

bool EngineMetricsReader::Wants(MetricField field) const {
  return std::any_of(wanted_.begin(), wanted_.end(),
                     [&](const Wanted& wanted) { return wanted.field == field; });
}

// The family has a series for every combination of labels that ever was; its value is when it was made.
// (spec: scheduling.md 4.3)
void EngineMetricsReader::Adapters(absl::Time now, sched::Metrics& metrics, MetricsReport& report) {
  FieldProblem problem;
  const Wanted* wanted = Find(MetricField::kAdapters, 0, false, problem);
  if (wanted == nullptr) return;  // an engine without adapters
  const Match* newest = nullptr;
  for (const Match& match : wanted->matches) {
    if (std::isfinite(match.value) && (newest == nullptr || match.value > newest->value)) newest = &match;
  }
  if (newest == nullptr) {
    report.problems.push_back({MetricField::kAdapters, 0, Reason::kBadValue});
    return;
  }
  reader_.ParseLabels(newest->labels);
  const auto text = [&](std::string_view label, std::string& scratch) -> std::string_view {
    const PrometheusLabel* found = reader_.FindLabel(label);
    if (found == nullptr || !found->escaped()) return found == nullptr ? std::string_view() : found->raw;
    return scratch = found->Value();
  };
  std::string unescaped[2];
  std::int64_t max_active = 0;
  if (const std::string_view max = text("max_lora", unescaped[0]);
      !max.empty() && (!ParseInteger(max, max_active) || max_active < 0)) {
    report.problems.push_back({MetricField::kAdapters, 0, Reason::kBadLabel});
    return;
  }
  const std::string_view running = text("running_lora_adapters", unescaped[0]);
  const std::string_view waiting = text("waiting_lora_adapters", unescaped[1]);
  const sched::AdapterState* old = metrics.adapters.value.get();
  if (old == nullptr || old->max_active != max_active || !SameNames(running, old->active) ||
      !SameNames(waiting, old->waiting)) {
    metrics.adapters.value = std::make_shared<const sched::AdapterState>(
        sched::AdapterState{max_active, Names(running), Names(waiting)});
  }
  metrics.adapters.at = now;
  ++report.updated;
}

absl::Status EngineMetricsReader::Read(std::string_view page, absl::Time now, sched::Metrics& metrics,
                                       std::vector<sched::Attribute>& attributes, MetricsReport& report) {
  report.problems.clear();
  report.updated = 0;
  report.page = {};
  for (Wanted& wanted : wanted_) {
    wanted.matches.clear();
    wanted.wrong_type = wanted.too_many = false;
  }
  if (absl::Status status = reader_.Start(page); !status.ok()) return status;
  while (reader_.Next()) Collect();
  report.page = reader_.stats();
  if (!reader_.status().ok()) return reader_.status();

  const auto number = [&](MetricField field, std::uint32_t custom, Combine combine, double most,
                          double& value) {
    if (!Wants(field)) return false;
    FieldProblem problem;
    const bool good = Number(field, custom, combine, most, value, problem);
    if (!good || problem.reason == Reason::kTooManySeries) report.problems.push_back(problem);
    report.updated += good;
    return good;
  };
  double value = 0;
  if (number(MetricField::kWaiting, 0, Combine::kSum, kMostRequests, value)) {
    metrics.waiting_requests = {static_cast<std::int64_t>(value), now};
  }
  if (number(MetricField::kRunning, 0, Combine::kSum, kMostRequests, value)) {
    metrics.running_requests = {static_cast<std::int64_t>(value), now};
  }
  if (number(MetricField::kKvUsage, 0, Combine::kMean, 1, value)) metrics.kv_cache_usage = {value, now};
  Adapters(now, metrics, report);
  std::uint64_t cache = 0;
  if (Cache(MetricField::kCacheBlockSize, config_.cache_block_size_label, Combine::kFirst, 0xffffffff, cache,
            report)) {
    metrics.cache_block_size = static_cast<std::uint32_t>(cache);
    ++report.updated;
  }
  if (Cache(MetricField::kCacheNumBlocks, config_.cache_num_blocks_label, Combine::kSum,
            std::uint64_t{1} << 53, cache, report)) {
    metrics.cache_num_blocks = cache;
    ++report.updated;
  }
  for (std::uint32_t i = 0; i < config_.custom.size(); ++i) {
    if (!number(MetricField::kCustom, i, Combine::kFirst, HUGE_VAL, value)) continue;
    const std::string& key = config_.custom[i].attribute_key;
    auto attribute = std::find_if(attributes.begin(), attributes.end(),
                                  [&](const sched::Attribute& candidate) { return candidate.name == key; });
    if (attribute == attributes.end()) {
      attribute = attributes.insert(attributes.end(), sched::Attribute{.name = key, .sample = {}});
    }
    attribute->sample = {value, now};
  }
  return absl::OkStatus();
}

std::string MetricsReport::ToString(const EngineConfig& config) const {
  static constexpr std::string_view kFields[] = {"waiting requests", "running requests",
                                                 "cache use",        "adapters",
                                                 "cache block size", "number of cache blocks"};
  static constexpr std::string_view kReasons[] = {
      "is missing", "has a value without meaning", "is a histogram or summary",
      "lacks a label, or the label is no number", "has more series than are read"};
  std::string text;
  for (const FieldProblem& problem : problems) {
    absl::StrAppend(&text, text.empty() ? "" : "; ",
                    problem.field == MetricField::kCustom
                        ? ToAbsl(config.custom[problem.custom].attribute_key)
                        : ToAbsl(kFields[static_cast<std::size_t>(problem.field)]),
                    " ", ToAbsl(kReasons[static_cast<std::size_t>(problem.reason)]));
  }
  return text;
}

}  // namespace llmd::gateway
