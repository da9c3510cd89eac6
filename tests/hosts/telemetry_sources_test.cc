// What a scrape reads from the pool, flow control, the index and the tables of requests in flight.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "examples/gateway_scheduler/telemetry.h"
#include "llmd/sched/in_flight.h"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Lines(const Telemetry& telemetry) {
  return absl::StrSplit(telemetry.Expose(), '\n', absl::SkipEmpty());
}

TelemetryOptions Options() {
  return {.pool_name = "pool",
          .names = {.current = true, .objective = true, .v0_2 = true},
          .demo_metrics = true,
          .clock = [] { return kStart; }};
}

TEST(TelemetryPoolTest, AveragesSpreadsAndQueues) {
  ScriptedHost host(3);
  host.SetMetrics(0, 2, 1, 0.25, kStart);
  host.SetMetrics(1, 6, 5, 0.75, kStart - absl::Seconds(3));  // stale, but known
  // pod-2 was never read: no part of the averages.
  Telemetry telemetry(Options(), host.pool);
  const std::vector<std::string> lines = Lines(telemetry);
  for (const char* expected : {
           "llm_d_epp_average_kv_cache_utilization{name=\"pool\"} 0.5",
           "llm_d_epp_std_dev_kv_cache_utilization{name=\"pool\"} 0.25",
           "llm_d_epp_average_queue_size{name=\"pool\"} 4",
           "llm_d_epp_std_dev_queue_size{name=\"pool\"} 2",
           "llm_d_epp_average_running_requests{name=\"pool\"} 3",
           "inference_pool_average_kv_cache_utilization{name=\"pool\"} 0.5",
           "inference_pool_average_queue_size{name=\"pool\"} 4",
           "llm_d_epp_ready_endpoints{name=\"pool\"} 3",
           "inference_pool_ready_pods{name=\"pool\"} 3",
           "llm_d_epp_per_endpoint_queue_size{name=\"pool\",model_server_endpoint=\"pod-1\"} 6",
           "inference_pool_per_pod_queue_size{name=\"pool\",model_server_pod=\"pod-0\"} 2",
           "epp_backend_health{backend=\"10.0.0.1:8000\"} 1",
           "epp_backend_health{backend=\"10.0.0.2:8000\"} 0",
           "epp_backend_health{backend=\"10.0.0.3:8000\"} 0",
       }) {
    EXPECT_THAT(lines, Contains(std::string(expected)));
  }
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("model_server_endpoint=\"pod-2\"")));
}

TEST(TelemetryPoolTest, AnEmptyPoolHasNoAverages) {
  ScriptedHost host(0);
  Telemetry telemetry(Options(), host.pool);
  EXPECT_THAT(Lines(telemetry), Contains("inference_pool_ready_pods{name=\"pool\"} 0"));
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("average")));
}

TEST(TelemetryPoolTest, EndpointsThatLeftTakeTheirSeriesAlong) {
  ScriptedHost host(2);
  host.SetMetrics(1, 5, 0, 0, kStart);
  Telemetry telemetry(Options(), host.pool);
  host.Decide(telemetry, {.endpoint = 1});
  EXPECT_THAT(telemetry.Expose(), HasSubstr("endpoint_name=\"pod-1\""));
  host.SetEndpoints({"pod-0"});
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("pod-1")));
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("10.0.0.2")));
  host.SetEndpoints({"pod-0", "pod-1"});  // it begins anew
  host.Decide(telemetry, {.endpoint = 1});
  EXPECT_THAT(Lines(telemetry),
              Contains("llm_d_epp_scheduler_attempts_total{status=\"success\",target_model_name=\"m-target\","
                       "endpoint_name=\"pod-1\",namespace=\"default\",port=\"8000\"} 1"));
}

TEST(TelemetryPoolTest, EqualNamesInTwoNamespacesStayApart) {
  ScriptedHost host(0);
  ASSERT_TRUE(host.pool
                  .SetEndpoints(std::vector<sched::EndpointMetadata>{
                      {.name = "pod", .pod_namespace = "a", .address = "10.0.0.1", .port = 1},
                      {.name = "pod", .pod_namespace = "b", .address = "10.0.0.2", .port = 1}})
                  .ok());
  host.SetMetrics(0, 1, 0, 0, kStart);
  host.SetMetrics(1, 2, 0, 0, kStart);
  Telemetry telemetry(Options(), host.pool);
  EXPECT_THAT(Lines(telemetry),
              Contains("llm_d_epp_per_endpoint_queue_size{name=\"pool\",model_server_endpoint=\"a/pod\"} 1"));
  EXPECT_THAT(Lines(telemetry),
              Contains("llm_d_epp_per_endpoint_queue_size{name=\"pool\",model_server_endpoint=\"b/pod\"} 2"));
}

TEST(TelemetryPrefixTest, HitsOfTheApproximateIndex) {
  ScriptedHost host(1);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  telemetry.SetSources({.prefix_index_size = [] { return 42; }});
  host.Decide(telemetry, {.cached_blocks = 3, .total_blocks = 4});
  host.Decide(telemetry, {.cached_blocks = 0, .total_blocks = 0});  // not looked up
  const std::string plugin =
      "plugin_name=\"approx-prefix-cache-producer\",plugin_type=\"approx-prefix-cache-producer\"";
  const std::vector<std::string> lines = Lines(telemetry);
  EXPECT_THAT(lines, Contains("llm_d_epp_prefix_indexer_hit_ratio_sum{" + plugin + "} 0.75"));
  EXPECT_THAT(lines, Contains("llm_d_epp_prefix_indexer_hit_ratio_bucket{" + plugin + ",le=\"0.7\"} 0"));
  EXPECT_THAT(lines, Contains("llm_d_epp_prefix_indexer_hit_ratio_bucket{" + plugin + ",le=\"0.8\"} 1"));
  // 3 blocks of 64 tokens of 4 characters
  EXPECT_THAT(lines, Contains("inference_extension_prefix_indexer_hit_bytes_sum{" + plugin + "} 768"));
  EXPECT_THAT(lines, Contains("llm_d_epp_prefix_indexer_size{" + plugin + "} 42"));
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("kv_cache_index")));
}

constexpr char kPrecise[] = R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
- type: prefix-cache-scorer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
)";

TEST(TelemetryPrefixTest, TheExactIndexAndItsFeed) {
  ScriptedHost host(1, kPrecise);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  telemetry.SetSources({.kv_index = [] {
    return KvIndexCounts{
        .admissions = 10,
        .evictions = 2,
        .removals_forwarded = 7,
        .stores_skipped = {{"mamba", "unsupported_cache_kind", 5}},
        .removals_skipped = {{"unknown", "malformed", 1}},
        .active_subscribers = 1,
        .publishers = {{.pod = "10.0.0.1:8000", .messages = 9, .reconnections = 3, .errors = {{"recv", 4}}}},
        .queue_depth = 0,
        .queue_capacity = 1000};
  }});
  host.Decide(telemetry, {.cached_blocks = 3, .total_blocks = 4});
  host.Decide(telemetry, {.cached_blocks = 1, .total_blocks = 4});
  const std::vector<std::string> lines = Lines(telemetry);
  for (const char* expected : {
           "llm_d_epp_kv_cache_index_admissions_total 10",
           "kvcache_index_admissions_total 10",
           "llm_d_epp_kv_cache_index_evictions_total 2",
           "llm_d_epp_kv_cache_index_lookup_requests_total 2",
           "llm_d_epp_kv_cache_index_lookup_hits_total 4",
           "llm_d_epp_kv_cache_events_dedup_removed_hashes_forwarded_total 7",
           "llm_d_epp_kv_cache_events_stores_skipped_total{cache_kind=\"mamba\",reason=\"unsupported_cache_"
           "kind\"} 5",
           "llm_d_epp_kv_cache_events_removals_skipped_total{cache_kind=\"unknown\",reason=\"malformed\"} 1",
           "llm_d_epp_kv_cache_events_active_subscribers 1",
           "llm_d_epp_kv_cache_events_subscriber_reconnections_total{pod_identifier=\"10.0.0.1:8000\"} 3",
           "kvcache_events_messages_received_total{pod_identifier=\"10.0.0.1:8000\"} 9",
           "llm_d_epp_kv_cache_events_zmq_errors_total{pod_identifier=\"10.0.0.1:8000\",operation=\"recv\"} "
           "4",
           "llm_d_epp_kv_cache_events_pool_queue_depth 0",
           "llm_d_epp_kv_cache_events_pool_capacity 1000",
       }) {
    EXPECT_THAT(lines, Contains(std::string(expected)));
  }
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("hashes_suppressed")));  // nobody counts it
}

constexpr char kDisagg[] = R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  name: pd
- type: always-disagg-pd-decider
- type: inflight-load-producer
- type: queue-scorer
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: queue-scorer}]
- name: prefill
  plugins: [{pluginRef: queue-scorer}]
)";

TEST(TelemetryDisaggTest, DecisionsByStages) {
  ScriptedHost host(2, kDisagg);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  host.Decide(telemetry, {.split = true});
  host.Decide(telemetry, {.split = true});
  host.Decide(telemetry, {.split = false});
  host.Decide(telemetry, {.target_model = "", .split = false});
  const auto line = [](const std::string& name, const std::string& kind, const std::string& model,
                       int count) {
    return name + "{decision_type=\"" + kind + "\",model_name=\"" + model +
           "\",plugin_name=\"pd\",plugin_type=\"disagg-profile-handler\"} " + std::to_string(count);
  };
  const std::vector<std::string> lines = Lines(telemetry);
  EXPECT_THAT(lines, Contains(line("llm_d_epp_disagg_decision_total", "prefill-decode", "m-target", 2)));
  EXPECT_THAT(lines, Contains(line("llm_d_epp_disagg_decision_total", "decode-only", "m-target", 1)));
  EXPECT_THAT(lines, Contains(line("llm_d_epp_disagg_decision_total", "decode-only", "unknown", 1)));
  EXPECT_THAT(lines, Contains(line("llm_d_epp_pd_decision_total", "prefill-decode", "m-target", 2)));
  EXPECT_THAT(lines,
              Contains(line("llm_d_inference_scheduler_pd_decision_total", "decode-only", "m-target", 1)));
}

TEST(TelemetryDisaggTest, RequestsInFlight) {
  ScriptedHost host(2, kDisagg);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  telemetry.SetSources({.states = host.states});
  const auto table = host.states->GetOrMake<sched::InFlightTable>(
      "inflight-load-producer", [] { return std::make_shared<sched::InFlightTable>(); });
  table->Add((*host.pool.snapshot())[1].handle, {.requests = 2, .tokens = 300});
  const std::string rest =
      "{endpoint_name=\"pod-1\",namespace=\"default\",producer_name=\"inflight-load-producer\",fairness_id="
      "\"\","
      "priority=\"\"} ";
  EXPECT_THAT(Lines(telemetry), Contains("llm_d_epp_inflight_requests" + rest + "2"));
  EXPECT_THAT(Lines(telemetry), Contains("llm_d_epp_inflight_tokens" + rest + "300"));
}

constexpr char kFlowControl[] = R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
flowControl: {maxRequests: 100}
)";

TEST(TelemetryFlowControlTest, QueuesAndOutcomes) {
  ScriptedHost host(1, kFlowControl);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetScheduler(*host.scheduler);
  telemetry.SetSources({.flow_control = [] {
    sched::FlowControlStats stats{.queued_requests = 25, .queued_bytes = 1000, .saturation = 1.5};
    stats.unconfirmed_evictions = 1;
    stats.outcomes[static_cast<std::size_t>(sched::FlowOutcome::Kind::kEvictRunning)] = 3;
    return stats;
  }});
  using Kind = sched::FlowOutcome::Kind;
  const absl::Status no = absl::UnavailableError("no");
  host.Decide(telemetry, {.flow = Kind::kDispatched, .queued = absl::Milliseconds(20)});
  host.Decide(telemetry, {.flow = Kind::kRejectedCapacity, .status = no});
  host.Decide(telemetry, {.flow = Kind::kEvictedTtl, .queued = absl::Seconds(60), .status = no});
  host.Decide(telemetry, {.flow = Kind::kEvictedNoEndpoints, .queued = absl::Seconds(60), .status = no});
  host.Decide(telemetry, {.flow = Kind::kRejectedNoEndpoints, .status = no});
  host.Decide(telemetry, {.priority = -1, .status = absl::InvalidArgumentError("did not get there")});
  telemetry.OnDispatchCycle(absl::Microseconds(300));

  const std::string pool = "inference_pool=\"pool\"";
  const std::vector<std::string> lines = Lines(telemetry);
  for (const char* outcome :
       {"Dispatched", "RejectedCapacity", "EvictedTTL", "EvictedNoEndpoints", "RejectedNoEndpoints"}) {
    EXPECT_THAT(lines, Contains("llm_d_epp_flow_control_requests_total{" + pool + ",outcome=\"" + outcome +
                                "\",priority=\"0\"} 1"));
  }
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("priority=\"-1\"")));
  // The scheduler saw one that went well and one that did not; flow control refused the others.
  EXPECT_THAT(lines, Contains("llm_d_epp_scheduler_e2e_duration_seconds_count 2"));
  const std::string flow = "{fairness_id=\"default-flow\",inference_pool=\"pool\",model_name=\"m\",outcome=";
  const std::string rest = ",priority=\"0\",target_model_name=\"m-target\"} ";
  EXPECT_THAT(lines, Contains("llm_d_epp_flow_control_request_queue_duration_seconds_sum" + flow +
                              "\"Dispatched\"" + rest + "0.02"));
  EXPECT_THAT(lines, Contains("inference_extension_flow_control_request_queue_duration_seconds_sum" + flow +
                              "\"EvictedTTL\"" + rest + "60"));
  for (const std::string& expected : std::vector<std::string>{
           "llm_d_epp_flow_control_queue_size{fairness_id=\"\",priority=\"\",inference_pool=\"pool\",model_"
           "name="
           "\"\",target_model_name=\"\"} 25",
           "inference_extension_flow_control_queue_bytes{fairness_id=\"\",priority=\"\",inference_pool="
           "\"pool\","
           "model_name=\"\",target_model_name=\"\"} 1000",
           "llm_d_epp_flow_control_pool_saturation{inference_pool=\"pool\",stage=\"effective\"} 1.5",
           "llm_d_epp_flow_control_stale_endpoints{detector=\"utilization-detector\"} 1",
           "llm_d_epp_flow_control_global_capacity_utilization_requests{inference_pool=\"pool\"} 0.25",
           "llm_d_epp_flow_control_revocations_issued_total{priority=\"\",inference_pool=\"pool\"} 3",
           "llm_d_epp_flow_control_revocations_total{outcome=\"timed_out\",inference_pool=\"pool\"} 1",
           "llm_d_epp_flow_control_dispatch_cycle_duration_seconds_bucket{le=\"0.0002\"} 0",
           "llm_d_epp_flow_control_dispatch_cycle_duration_seconds_bucket{le=\"0.0005\"} 1"}) {
    EXPECT_THAT(lines, Contains(expected));
  }
  EXPECT_THAT(telemetry.Expose(), Not(HasSubstr("global_capacity_utilization_bytes")));  // no such limit
}

TEST(TelemetryDataLayerTest, Errors) {
  ScriptedHost host(0);
  Telemetry telemetry(Options(), host.pool);
  telemetry.SetSources({.data_layer = [] {
    return DataLayerErrors{.polls = {{"metrics-data-source", 3}},
                           .extracts = {{"metrics-data-source", "core-metrics-extractor", 2}}};
  }});
  const std::vector<std::string> lines = Lines(telemetry);
  EXPECT_THAT(lines,
              Contains("llm_d_epp_datalayer_poll_errors_total{source_type=\"metrics-data-source\"} 3"));
  EXPECT_THAT(
      lines,
      Contains("llm_d_inference_scheduler_datalayer_extract_errors_total{source_type=\"metrics-data-source\","
               "extractor_type=\"core-metrics-extractor\"} 2"));
}

}  // namespace
}  // namespace llmd::host
