// Metrics that are read from their owners when a scrape asks. (spec: gateway.md 3.2 to 3.4)
#ifndef EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_METRICS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_METRICS_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "examples/gateway_scheduler/scheduler_facts.h"
#include "examples/gateway_scheduler/scrape_page.h"
#include "examples/gateway_scheduler/telemetry.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/flow_control.h"
#include "llmd/sched/plugin_states.h"

namespace llmd::host {

// Averages, spreads and queues of the pool, and epp_backend_health. An average is over the endpoints where
// the value was read; without any there is no series.
void AddPoolMetrics(const TelemetryOptions& options, const sched::EndpointPool& pool, absl::Time now,
                    ScrapePage& page);
// `pool_metrics_stale`: endpoints whose metrics were never read or are too old.
void AddFlowControlMetrics(const TelemetryOptions& options, const sched::FlowControlStats& stats,
                           const SchedulerFacts& facts, std::size_t stale_endpoints, ScrapePage& page);
void AddInFlightMetrics(const TelemetryOptions& options, sched::PluginStates& states,
                        const SchedulerFacts& facts, const sched::EndpointPool& pool, ScrapePage& page);
void AddKvIndexMetrics(const TelemetryOptions& options, const KvIndexCounts& counts, ScrapePage& page);
void AddDataLayerMetrics(const TelemetryOptions& options, const DataLayerErrors& errors, ScrapePage& page);

bool MetricsFresh(const sched::Endpoint& endpoint, absl::Time now, absl::Duration staleness);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_METRICS_H_
