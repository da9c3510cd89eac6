#include "examples/gateway_scheduler/decision_history.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/time/clock.h"
#include "nlohmann/json.hpp"

namespace llmd::host {
namespace {

using Json = nlohmann::ordered_json;

const char* StateWord(sched::ProfileState state) {
  switch (state) {
    case sched::ProfileState::kDone:
      return "done";
    case sched::ProfileState::kFailed:
      return "failed";
    case sched::ProfileState::kSkipped:
      return "skipped";
    default:
      return "not run";
  }
}

DecisionEntry::Profile MakeProfile(const sched::Explanation::Profile& of, const sched::EndpointPool& pool,
                                   const sched::ProfileResult* result, std::size_t max_rows) {
  DecisionEntry::Profile profile{.name = std::string(of.name), .state = StateWord(of.state)};
  if (result != nullptr && result->skip_reason != nullptr) profile.skip_reason = result->skip_reason;
  for (const auto& scorer : of.scorers) profile.scorers.push_back({std::string(scorer.name), scorer.weight});
  const auto rank = [&](sched::Position position) -> std::size_t {
    const auto it = std::find(of.picked.begin(), of.picked.end(), position);
    return it == of.picked.end() ? 0 : static_cast<std::size_t>(it - of.picked.begin()) + 1;
  };
  // Picked ones first, in their order; then by score.
  std::vector<std::pair<std::size_t, std::size_t>> order;  // rank or a large number, index
  for (std::size_t e = 0; e < of.totals.size(); ++e) {
    const std::size_t picked = rank(of.totals[e].position);
    order.emplace_back(picked == 0 ? ~std::size_t{0} : picked, e);
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    const double left = of.totals[a.second].score, right = of.totals[b.second].score;
    return left != right ? left > right : a.second < b.second;
  });
  for (std::size_t i = 0; i < order.size() && i < max_rows; ++i) {
    const std::size_t e = order[i].second;
    DecisionEntry::Row row{.endpoint = pool[of.totals[e].position].id(), .total = of.totals[e].score};
    row.rank = rank(of.totals[e].position);
    for (std::size_t s = 0; s < of.scorers.size(); ++s) {
      row.raw.push_back(of.raw_at(s, e));
      row.weighted.push_back(of.weighted_at(s, e));
    }
    profile.rows.push_back(std::move(row));
  }
  profile.more_rows = order.size() - profile.rows.size();
  for (std::size_t i = 0; i < of.drops.size() && i < max_rows; ++i) {
    const sched::Explanation::Drop& drop = of.drops[i];
    profile.drops.push_back({pool[drop.position].id(), std::string(drop.filter),
                             drop.reason != nullptr ? drop.reason : std::string()});
  }
  profile.more_drops = of.drops.size() - profile.drops.size();
  return profile;
}

// Bytes that are no UTF-8 are replaced; numbers that are none become null.
std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json Summary(const DecisionEntry& entry) {
  return {{"sequence", entry.sequence},
          {"time", absl::ToUnixMillis(entry.time)},
          {"request_id", entry.request_id},
          {"model", entry.model},
          {"target_model", entry.target_model},
          {"fairness_id", entry.fairness_id},
          {"priority", entry.priority},
          {"error", entry.error},
          {"endpoint", entry.endpoint},
          {"prefill_endpoint", entry.prefill_endpoint},
          {"prompt_tokens", entry.prompt_tokens},
          {"cached_blocks", entry.cached_blocks},
          {"total_blocks", entry.total_blocks},
          {"deciding_us", absl::ToInt64Microseconds(entry.deciding)},
          {"queued_us", absl::ToInt64Microseconds(entry.queued)}};
}

}  // namespace

DecisionHistory::DecisionHistory(const DecisionHistoryOptions& options)
    : options_(options),
      interval_nanos_(static_cast<std::int64_t>(1e9 / options.per_second)),
      burst_nanos_(interval_nanos_ * (static_cast<std::int64_t>(options.size) - 1)) {}

// A bucket of as many as are kept, which fills evenly: `next_nanos_` is when it will be full.
bool DecisionHistory::wants_explanations() const {
  return next_nanos_.load(std::memory_order_relaxed) - absl::GetCurrentTimeNanos() <= burst_nanos_;
}

bool DecisionHistory::Take() {
  const std::int64_t now = absl::GetCurrentTimeNanos();
  std::int64_t next = next_nanos_.load(std::memory_order_relaxed);
  while (next - now <= burst_nanos_) {
    if (next_nanos_.compare_exchange_weak(next, std::max(next, now) + interval_nanos_,
                                          std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

void DecisionHistory::OnDecision(const DecisionReport& report) {
  seen_.fetch_add(1, std::memory_order_relaxed);
  if (report.status.ok() && report.decision != nullptr && report.explanation == nullptr) return;
  if (!Take()) return;
  const RequestInfo& request = report.request;
  auto entry = std::make_shared<DecisionEntry>();
  entry->time = report.now;
  // Clients' texts may be long: what does not fit a line is cut.
  const auto cut = [](const std::string& text) { return text.substr(0, 512); };
  entry->request_id = cut(request.request_id);
  entry->model = cut(request.model);
  entry->target_model = cut(request.target_model);
  entry->fairness_id = cut(request.fairness_id);
  entry->path = cut(request.path);
  entry->priority = request.priority;
  if (!report.status.ok()) entry->error = cut(std::string(report.status.message()));
  entry->endpoint = report.endpoint;
  entry->prefill_endpoint = report.prefill_endpoint;
  entry->prompt_tokens = report.prompt_tokens;
  entry->cached_blocks = report.cached_blocks;
  entry->total_blocks = report.total_blocks;
  entry->tokenizing = report.tokenizing;
  entry->queued = report.queued;
  entry->deciding = report.deciding;
  if (report.explanation != nullptr) {
    entry->seed = report.explanation->seed;
    entry->candidates = report.explanation->candidates;
    entry->refused_by = std::string(report.explanation->refused_by);
    for (std::size_t i = 0; i < report.explanation->profiles.size(); ++i) {
      const bool known = report.decision != nullptr && i < report.decision->profiles.size();
      entry->profiles.push_back(MakeProfile(report.explanation->profiles[i], report.pool,
                                            known ? &report.decision->profiles[i] : nullptr,
                                            options_.max_rows));
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  entry->sequence = ++sequence_;
  entries_.push_back(std::move(entry));
  if (entries_.size() > options_.size) entries_.pop_front();
}

std::vector<DecisionHistory::Entry> DecisionHistory::Recent() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {entries_.rbegin(), entries_.rend()};
}

DecisionHistory::Entry DecisionHistory::Find(std::uint64_t sequence) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry->sequence == sequence) return entry;
  }
  return nullptr;
}

std::string SummaryJson(const DecisionEntry& entry) { return Dump(Summary(entry)); }

std::string DetailJson(const DecisionEntry& entry) {
  Json json = Summary(entry);
  json["path"] = entry.path;
  json["tokenizing_us"] = absl::ToInt64Microseconds(entry.tokenizing);
  json["seed"] = std::to_string(entry.seed);  // more bits than a JavaScript number has
  json["candidates"] = entry.candidates;
  json["refused_by"] = entry.refused_by;
  json["profiles"] = Json::array();
  for (const DecisionEntry::Profile& profile : entry.profiles) {
    Json out = {{"name", profile.name}, {"state", profile.state}, {"skip_reason", profile.skip_reason}};
    out["scorers"] = Json::array();
    for (const auto& scorer : profile.scorers) {
      out["scorers"].push_back({{"name", scorer.name}, {"weight", scorer.weight}});
    }
    out["rows"] = Json::array();
    for (const DecisionEntry::Row& row : profile.rows) {
      out["rows"].push_back({{"endpoint", row.endpoint},
                             {"total", row.total},
                             {"rank", row.rank},
                             {"raw", row.raw},
                             {"weighted", row.weighted}});
    }
    out["drops"] = Json::array();
    for (const DecisionEntry::Drop& drop : profile.drops) {
      out["drops"].push_back({{"endpoint", drop.endpoint}, {"filter", drop.filter}, {"reason", drop.reason}});
    }
    out["more_rows"] = profile.more_rows;
    out["more_drops"] = profile.more_drops;
    json["profiles"].push_back(std::move(out));
  }
  return Dump(json);
}

}  // namespace llmd::host
