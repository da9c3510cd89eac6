#include "examples/gateway_scheduler/host_state.h"

#include <utility>

#include "absl/hash/hash.h"
#include "llmd/sched/config_file.h"
#include "nlohmann/json.hpp"

namespace llmd::host {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

template <typename T>
Json Maybe(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

std::string RoleText(std::uint8_t roles) {
  std::string text;
  const auto add = [&](std::uint8_t role, const char* word) {
    if ((roles & role) == 0) return;
    if (!text.empty()) text += ", ";
    text += word;
  };
  add(sched::kRoleEncode, "encode");
  add(sched::kRolePrefill, "prefill");
  add(sched::kRoleDecode, "decode");
  return text.empty() ? "none" : text;
}

// Changes when the configuration's text or the warnings do; small enough for a JavaScript number.
std::uint32_t ConfigurationVersion(const HostState& state) {
  return static_cast<std::uint32_t>(absl::HashOf(state.config, state.warnings));
}

Json ToJson(const HostState::Quantiles& quantiles) {
  return {{"p50", Maybe(quantiles.p50)}, {"p95", Maybe(quantiles.p95)}, {"p99", Maybe(quantiles.p99)}};
}

}  // namespace

void FillEndpoints(const sched::EndpointPool& pool, absl::Time now, absl::Duration staleness,
                   HostState& state) {
  for (const sched::Endpoint& endpoint : pool.endpoints()) {
    HostState::Endpoint shown{.id = endpoint.id(), .address = endpoint.host_port()};
    shown.role = RoleText(endpoint.identity->roles);
    const sched::Metrics& metrics = endpoint.metrics;
    if (metrics.scraped()) shown.metrics_age = absl::ToDoubleSeconds(now - metrics.updated());
    shown.healthy = metrics.scraped() && now - metrics.updated() <= staleness;
    if (metrics.kv_cache_usage.known()) shown.kv_usage = metrics.kv_cache_usage.value;
    if (metrics.waiting_requests.known()) shown.waiting = metrics.waiting_requests.value;
    if (metrics.running_requests.known()) shown.running = metrics.running_requests.value;
    state.endpoints.push_back(std::move(shown));
  }
}

HostState::Index DescribeIndex(std::string name, const index::IndexStats& stats, const MemoryUsage& memory) {
  HostState::Index index{.name = std::move(name),
                         .holders = stats.holders,
                         .holder_blocks = stats.holder_blocks,
                         .evicted_blocks = stats.evicted_holder_blocks,
                         .bytes = memory.total_bytes(),
                         .budget_bytes = memory.budget_bytes};
  for (const MemoryUsage::Cause& cause : memory.causes) {
    index.causes.push_back({cause.name, cause.live_bytes + cause.dead_bytes + cause.free_bytes});
  }
  return index;
}

HostState::FlowControl DescribeFlowControl(const sched::FlowControlStats& stats) {
  HostState::FlowControl flow{.queued = stats.queued_requests,
                              .queued_bytes = stats.queued_bytes,
                              .running = stats.running,
                              .saturation = stats.saturation};
  for (std::size_t i = 0; i < stats.outcomes.size(); ++i) {
    if (stats.outcomes[i] == 0) continue;
    flow.outcomes.push_back(
        {std::string(sched::ToString(static_cast<sched::FlowOutcome::Kind>(i))), stats.outcomes[i]});
  }
  return flow;
}

void FillConfiguration(const sched::Scheduler& scheduler, HostState& state) {
  state.config = sched::PrintConfig(scheduler.config());
  state.warnings = scheduler.warnings();
}

std::string ToJson(const HostState& state) {
  Json json = {{"now", absl::ToUnixMillis(state.now)},
               {"started", absl::ToUnixMillis(state.started)},
               {"version", state.version},
               {"pool", state.pool},
               {"condition", state.condition},
               {"configuration", ConfigurationVersion(state)}};
  json["listeners"] = Json::array();
  for (const HostState::Listener& listener : state.listeners) {
    json["listeners"].push_back({{"name", listener.name}, {"port", listener.port}});
  }
  const HostState::Traffic& traffic = state.traffic;
  json["traffic"] = {{"decided_per_second", traffic.decided_per_second},
                     {"decided_rate", traffic.decided_rate},
                     {"refused_rate", traffic.refused_rate},
                     {"failed_rate", traffic.failed_rate},
                     {"decided", traffic.decided},
                     {"refused", traffic.refused},
                     {"failed", traffic.failed},
                     {"running", traffic.running},
                     {"hit_ratio", Maybe(traffic.hit_ratio)},
                     {"deciding", ToJson(traffic.deciding)},
                     {"ttft", ToJson(traffic.ttft)},
                     {"duration", ToJson(traffic.duration)}};
  json["endpoints"] = Json::array();
  for (const HostState::Endpoint& endpoint : state.endpoints) {
    json["endpoints"].push_back({{"id", endpoint.id},
                                 {"address", endpoint.address},
                                 {"role", endpoint.role},
                                 {"healthy", endpoint.healthy},
                                 {"metrics_age", Maybe(endpoint.metrics_age)},
                                 {"kv_usage", Maybe(endpoint.kv_usage)},
                                 {"waiting", Maybe(endpoint.waiting)},
                                 {"running", Maybe(endpoint.running)},
                                 {"decisions", endpoint.decisions},
                                 {"cached_blocks", endpoint.cached_blocks},
                                 {"total_blocks", endpoint.total_blocks}});
  }
  json["indexes"] = Json::array();
  for (const HostState::Index& index : state.indexes) {
    Json causes = Json::array();
    for (const HostState::MemoryCause& cause : index.causes) {
      causes.push_back({{"name", cause.name}, {"bytes", cause.bytes}});
    }
    json["indexes"].push_back({{"name", index.name},
                               {"holders", index.holders},
                               {"holder_blocks", index.holder_blocks},
                               {"evicted_blocks", index.evicted_blocks},
                               {"bytes", index.bytes},
                               {"budget_bytes", index.budget_bytes},
                               {"causes", std::move(causes)}});
  }
  json["flow_control"] = nullptr;
  if (state.flow_control) {
    Json outcomes = Json::array();
    for (const HostState::Outcome& outcome : state.flow_control->outcomes) {
      outcomes.push_back({{"name", outcome.name}, {"count", outcome.count}});
    }
    json["flow_control"] = {{"queued", state.flow_control->queued},
                            {"queued_bytes", state.flow_control->queued_bytes},
                            {"running", state.flow_control->running},
                            {"saturation", state.flow_control->saturation},
                            {"outcomes", std::move(outcomes)}};
  }
  return Dump(json);
}

std::string ConfigurationJson(const HostState& state) {
  return Dump(
      {{"configuration", ConfigurationVersion(state)}, {"text", state.config}, {"warnings", state.warnings}});
}

}  // namespace llmd::host
