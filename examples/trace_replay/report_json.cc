#include <nlohmann/json.hpp>

#include "examples/trace_replay/report.h"

namespace llmd::replay {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const HitCount& hits) {
  return {{"hit_blocks", hits.hit_blocks}, {"blocks", hits.blocks}, {"block_hit_rate", hits.block_rate()},
          {"hit_tokens", hits.hit_tokens}, {"tokens", hits.tokens}, {"token_hit_rate", hits.token_rate()}};
}

Json ToJson(const Distribution& d) {
  return {{"mean", d.mean}, {"p50", d.p50}, {"p90", d.p90}, {"p99", d.p99}};
}

Json ToJson(const EndpointResult& endpoint) {
  const EngineTotals& t = endpoint.totals;
  return {{"requests", endpoint.routed_requests},
          {"busy_s", Seconds(t.busy)},
          {"steps", t.steps},
          {"prompt_tokens", t.prompt_tokens},
          {"hit_tokens", t.hit_tokens},
          {"output_tokens", t.output_tokens},
          {"computed_tokens", t.computed_tokens},
          {"preemptions", t.preemptions}};
}

Json ToJson(const EventFigures& events) {
  return {{"batches", events.batches},
          {"bytes", events.bytes},
          {"stored_blocks", events.ingest.stored_blocks},
          {"removed_blocks", events.ingest.removed_blocks},
          {"orphans_parked", events.ingest.orphans_parked},
          {"orphans_dropped", events.ingest.orphans_dropped}};
}

Json PolicyJson(const PolicyResult& result, const PolicySummary& summary, bool timing) {
  Json json = {{"policy", result.policy},
               {"description", result.description},
               {"hits", ToJson(summary.hits)},
               {"ttft_s", ToJson(summary.ttft_s)},
               {"busy_imbalance", summary.busy_imbalance},
               {"token_imbalance", summary.token_imbalance},
               {"preemptions", summary.preemptions},
               {"makespan_s", summary.makespan_s}};
  if (result.has_expectation) json["expected_token_hit_rate"] = summary.expected_token_rate;
  if (result.events.batches > 0) json["kv_events"] = ToJson(result.events);
  json["endpoints"] = Json::array();
  for (const EndpointResult& endpoint : result.endpoints) json["endpoints"].push_back(ToJson(endpoint));
  if (timing) {
    json["wall_decisions_per_s"] = summary.wall.decisions_per_s;
    json["wall_decision_p50_us"] = summary.wall.decision_p50_us;
    json["wall_decision_p99_us"] = summary.wall.decision_p99_us;
  }
  if (!result.explanations.empty()) json["explanations"] = result.explanations;
  return json;
}

Json SettingsJson(const ReportSettings& settings) {
  const EngineOptions& engine = settings.simulation.engine;
  return {{"workload", settings.workload},
          {"speed", settings.speed},
          {"seed", settings.simulation.seed},
          {"skipped_lines", settings.skipped_lines},
          {"endpoints", settings.simulation.endpoints},
          {"capacity_blocks", engine.capacity_blocks},
          {"block_tokens", kBlockTokens},
          {"max_running", engine.max_running},
          {"max_batched_tokens", engine.max_batched_tokens},
          {"scrape_interval_ms", settings.simulation.scrape_interval / 1'000'000},
          {"prefill_tokens_per_s", engine.latency.prefill_tokens_per_s},
          {"weight_read_ms", engine.latency.weight_read_ms},
          {"attention_ns", engine.latency.attention_ns},
          {"kv_read_ns", engine.latency.kv_read_ns},
          {"overhead_ms", engine.latency.overhead_ms},
          {"per_sequence_us", engine.latency.per_sequence_us}};
}

}  // namespace

std::string JsonReport(const Report& report) {
  Json json = {{"settings", SettingsJson(report.settings)},
               {"requests", report.num_requests()},
               {"span_s", report.span_s()},
               {"output_tokens", report.output_tokens},
               {"infinite_cache", ToJson(report.bound->engine_blocks())}};
  if (report.bound->trace_blocks().blocks > 0) {
    json["infinite_cache_trace_blocks"] = ToJson(report.bound->trace_blocks());
  }
  json["policies"] = Json::array();
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    json["policies"].push_back(PolicyJson(*report.results[i], report.summaries[i], report.settings.timing));
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace llmd::replay
