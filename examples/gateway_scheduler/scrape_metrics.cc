#include "examples/gateway_scheduler/scrape_metrics.h"

#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"

namespace llmd::host {
namespace {

using Labels = ScrapePage::Labels;

struct Moments {
  double mean = 0;
  double deviation = 0;  // of the population
};

std::optional<Moments> MomentsOf(const std::vector<double>& values) {
  if (values.empty()) return std::nullopt;
  Moments moments;
  for (const double value : values) moments.mean += value;
  moments.mean /= static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - moments.mean) * (value - moments.mean);
  moments.deviation = std::sqrt(squares / static_cast<double>(values.size()));
  return moments;
}

// The endpoints' names, or their ids where two share a name.
std::vector<std::string> EndpointNames(const sched::EndpointPool& pool) {
  absl::flat_hash_map<std::string, int> uses;
  for (const sched::Endpoint& endpoint : pool.endpoints()) ++uses[endpoint.metadata().name];
  std::vector<std::string> names;
  for (const sched::Endpoint& endpoint : pool.endpoints()) {
    const std::string& name = endpoint.metadata().name;
    names.push_back(uses[name] == 1 ? name : endpoint.id());
  }
  return names;
}

}  // namespace

bool MetricsFresh(const sched::Endpoint& endpoint, absl::Time now, absl::Duration staleness) {
  return endpoint.metrics.scraped() && now - endpoint.metrics.updated() <= staleness;
}

void AddPoolMetrics(const TelemetryOptions& options, const sched::EndpointPool& pool, absl::Time now,
                    ScrapePage& page) {
  const Labels name = {{"name", options.pool_name}};
  const auto add = [&](const std::string& what, const std::string& help, const std::vector<double>& values) {
    const std::optional<Moments> moments = MomentsOf(values);
    if (!moments) return;
    const std::string average = "Average of the pool's endpoints: " + help;
    if (options.names.current) {
      page.Gauge("llm_d_epp_average_" + what, average, name, moments->mean);
      page.Gauge("llm_d_epp_std_dev_" + what, "Standard deviation over the pool's endpoints: " + help, name,
                 moments->deviation);
    }
    if (options.names.older()) page.Gauge("inference_pool_average_" + what, average, name, moments->mean);
  };
  std::vector<double> kv, queue, running;
  for (const sched::Endpoint& endpoint : pool.endpoints()) {
    const sched::Metrics& metrics = endpoint.metrics;
    if (metrics.kv_cache_usage.known()) kv.push_back(metrics.kv_cache_usage.value);
    if (metrics.waiting_requests.known())
      queue.push_back(static_cast<double>(metrics.waiting_requests.value));
    if (metrics.running_requests.known())
      running.push_back(static_cast<double>(metrics.running_requests.value));
  }
  add("kv_cache_utilization", "fraction of the KV cache in use.", kv);
  add("queue_size", "requests waiting.", queue);
  add("running_requests", "requests running.", running);

  const double ready = static_cast<double>(pool.size());
  if (options.names.current) {
    page.Gauge("llm_d_epp_ready_endpoints", "Endpoints in the pool.", name, ready);
  }
  if (options.names.older()) page.Gauge("inference_pool_ready_pods", "Endpoints in the pool.", name, ready);

  const std::vector<std::string> names = EndpointNames(pool);
  for (std::size_t i = 0; i < pool.size(); ++i) {
    const sched::Endpoint& endpoint = pool.endpoints()[i];
    if (options.demo_metrics) {
      page.Gauge("epp_backend_health", "1 while the endpoint's metrics are fresh.",
                 {{"backend", endpoint.host_port()}},
                 MetricsFresh(endpoint, now, options.metrics_staleness) ? 1 : 0);
    }
    if (!endpoint.metrics.waiting_requests.known()) continue;
    const double waiting = static_cast<double>(endpoint.metrics.waiting_requests.value);
    if (options.names.current) {
      page.Gauge("llm_d_epp_per_endpoint_queue_size", "Requests waiting at the endpoint.",
                 {{"name", options.pool_name}, {"model_server_endpoint", names[i]}}, waiting);
    }
    if (options.names.older()) {
      page.Gauge("inference_pool_per_pod_queue_size", "Requests waiting at the endpoint.",
                 {{"name", options.pool_name}, {"model_server_pod", names[i]}}, waiting);
    }
  }
}

void AddFlowControlMetrics(const TelemetryOptions& options, const sched::FlowControlStats& stats,
                           const SchedulerFacts& facts, std::size_t stale_endpoints, ScrapePage& page) {
  const auto add = [&](bool twin, const std::string& what, const std::string& help, const Labels& labels,
                       double value) {
    if (options.names.current) page.Gauge("llm_d_epp_flow_control_" + what, help, labels, value);
    if (twin && options.names.objective) {
      page.Gauge("inference_extension_flow_control_" + what, help, labels, value);
    }
  };
  const Labels pool = {{"inference_pool", options.pool_name}};
  // The controller counts over all flows: labels that would tell them apart are empty.
  const Labels flow = {{"fairness_id", ""},
                       {"priority", ""},
                       {"inference_pool", options.pool_name},
                       {"model_name", ""},
                       {"target_model_name", ""}};
  add(true, "queue_size", "Requests waiting in flow control.", flow,
      static_cast<double>(stats.queued_requests));
  add(true, "queue_bytes", "Bytes of the requests waiting in flow control.", flow,
      static_cast<double>(stats.queued_bytes));
  add(true, "pool_saturation", "Saturation that gates dispatch; 1 is the gate.",
      {{"inference_pool", options.pool_name}, {"stage", "effective"}}, stats.saturation);
  add(false, "stale_endpoints", "Endpoints whose metrics are missing or too old.",
      {{"detector", facts.saturation_detector}}, static_cast<double>(stale_endpoints));
  if (facts.max_queued_requests > 0) {
    add(false, "global_capacity_utilization_requests", "Part of the capacity for waiting requests in use.",
        pool, static_cast<double>(stats.queued_requests) / static_cast<double>(facts.max_queued_requests));
  }
  if (facts.max_queued_bytes > 0) {
    add(false, "global_capacity_utilization_bytes", "Part of the capacity for waiting bytes in use.", pool,
        static_cast<double>(stats.queued_bytes) / static_cast<double>(facts.max_queued_bytes));
  }
  if (!options.names.current) return;
  const auto evicted = stats.outcomes[static_cast<std::size_t>(sched::FlowOutcome::Kind::kEvictRunning)];
  page.Counter("llm_d_epp_flow_control_revocations_issued_total", "Running requests that were told to stop.",
               {{"priority", ""}, {"inference_pool", options.pool_name}}, static_cast<double>(evicted));
  page.Counter("llm_d_epp_flow_control_revocations_total",
               "Running requests that were told to stop, by outcome.",
               {{"outcome", "timed_out"}, {"inference_pool", options.pool_name}},
               static_cast<double>(stats.unconfirmed_evictions));
}

void AddInFlightMetrics(const TelemetryOptions& options, sched::PluginStates& states,
                        const SchedulerFacts& facts, const sched::EndpointPool& pool, ScrapePage& page) {
  if (!options.names.current) return;
  for (const std::string& producer : facts.in_flight_producers) {
    const auto table = states.GetOrMake<sched::InFlightTable>(
        producer, [] { return std::make_shared<sched::InFlightTable>(); });
    for (const sched::Endpoint& endpoint : pool.endpoints()) {
      const sched::InFlightLoad load = table->Get(endpoint.handle);
      // The table counts over all flows.
      const Labels labels = {{"endpoint_name", endpoint.metadata().name},
                             {"namespace", endpoint.metadata().pod_namespace},
                             {"producer_name", producer},
                             {"fairness_id", ""},
                             {"priority", ""}};
      page.Gauge("llm_d_epp_inflight_requests", "Requests sent to the endpoint and not finished.", labels,
                 static_cast<double>(load.requests));
      page.Gauge("llm_d_epp_inflight_tokens", "Tokens of the requests sent to the endpoint and not finished.",
                 labels, static_cast<double>(load.tokens));
    }
  }
}

void AddKvIndexMetrics(const TelemetryOptions& options, const KvIndexCounts& counts, ScrapePage& page) {
  std::vector<std::string> prefixes;
  if (options.names.current) prefixes.push_back("llm_d_epp_kv_cache_");
  if (options.names.objective) prefixes.push_back("kvcache_");
  for (const std::string& prefix : prefixes) {
    const auto counter = [&](const std::string& what, const std::string& help, const Labels& labels,
                             std::uint64_t value) {
      page.Counter(prefix + what, help, labels, static_cast<double>(value));
    };
    const auto gauge = [&](const std::string& what, const std::string& help, std::uint64_t value) {
      page.Gauge(prefix + what, help, {}, static_cast<double>(value));
    };
    counter("index_admissions_total", "Blocks taken into the index.", {}, counts.admissions);
    counter("index_evictions_total", "Blocks that the index dropped for room.", {}, counts.evictions);
    if (counts.removals_suppressed) {
      counter("events_dedup_removed_hashes_suppressed_total", "Removals that were announced twice.", {},
              *counts.removals_suppressed);
    }
    if (counts.removals_forwarded) {
      counter("events_dedup_removed_hashes_forwarded_total", "Removals that were applied.", {},
              *counts.removals_forwarded);
    }
    for (const KvIndexCounts::Skipped& skipped : counts.stores_skipped) {
      counter("events_stores_skipped_total", "Stored events that were not indexed.",
              {{"cache_kind", skipped.cache_kind}, {"reason", skipped.reason}}, skipped.count);
    }
    for (const KvIndexCounts::Skipped& skipped : counts.removals_skipped) {
      counter("events_removals_skipped_total", "Removed events that were not applied.",
              {{"cache_kind", skipped.cache_kind}, {"reason", skipped.reason}}, skipped.count);
    }
    gauge("events_active_subscribers", "Publishers of KV events that are subscribed to.",
          counts.active_subscribers);
    for (const KvIndexCounts::Publisher& publisher : counts.publishers) {
      const Labels pod = {{"pod_identifier", publisher.pod}};
      counter("events_subscriber_reconnections_total", "Connections to the publisher that were made again.",
              pod, publisher.reconnections);
      counter("events_messages_received_total", "Messages from the publisher.", pod, publisher.messages);
      for (const KvIndexCounts::Errors& errors : publisher.errors) {
        counter("events_zmq_errors_total", "Errors of the connection to the publisher.",
                {{"pod_identifier", publisher.pod}, {"operation", errors.operation}}, errors.count);
      }
    }
    if (counts.queue_depth)
      gauge("events_pool_queue_depth", "Messages waiting to be applied.", *counts.queue_depth);
    if (counts.queue_capacity)
      gauge("events_pool_capacity", "Messages that may wait.", *counts.queue_capacity);
  }
}

void AddDataLayerMetrics(const TelemetryOptions& options, const DataLayerErrors& errors, ScrapePage& page) {
  std::vector<std::string> prefixes;
  if (options.names.current) prefixes.push_back("llm_d_epp_");
  if (options.names.objective) prefixes.push_back("llm_d_inference_scheduler_");
  for (const std::string& prefix : prefixes) {
    for (const DataLayerErrors::Poll& poll : errors.polls) {
      page.Counter(prefix + "datalayer_poll_errors_total", "Polls of a data source that failed.",
                   {{"source_type", poll.source_type}}, static_cast<double>(poll.count));
    }
    for (const DataLayerErrors::Extract& extract : errors.extracts) {
      page.Counter(prefix + "datalayer_extract_errors_total",
                   "Answers of a data source that were not understood.",
                   {{"source_type", extract.source_type}, {"extractor_type", extract.extractor_type}},
                   static_cast<double>(extract.count));
    }
  }
}

}  // namespace llmd::host
