#include "examples/gateway_scheduler/telemetry.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "absl/container/flat_hash_map.h"
#include "examples/gateway_scheduler/endpoint_table.h"
#include "examples/gateway_scheduler/metric_fan.h"
#include "examples/gateway_scheduler/request_metrics.h"
#include "examples/gateway_scheduler/scrape_metrics.h"
#include "examples/gateway_scheduler/scrape_page.h"
#include "llmd/gateway/headers.h"

namespace llmd::host {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;

// Decisions for one endpoint, by target model.
struct Attempts {
  std::shared_mutex mutex;
  absl::flat_hash_map<std::string, std::unique_ptr<std::atomic<std::uint64_t>>> by_model;

  void Count(const std::string& model) {
    {
      const std::shared_lock<std::shared_mutex> lock(mutex);
      if (const auto it = by_model.find(model); it != by_model.end()) {
        it->second->fetch_add(1, std::memory_order_relaxed);
        return;
      }
    }
    const std::unique_lock<std::shared_mutex> lock(mutex);
    auto& count = by_model[model];
    if (count == nullptr) count = std::make_unique<std::atomic<std::uint64_t>>(0);
    count->fetch_add(1, std::memory_order_relaxed);
  }
};

template <typename T>
struct Single {
  FanFamily<T> family;
  Fan<T> fan;
};

// llm-d's word for it. (spec: gateway.md 3.3)
std::string_view FlowOutcomeName(sched::FlowOutcome::Kind kind) {
  using Kind = sched::FlowOutcome::Kind;
  switch (kind) {
    case Kind::kDispatched:
      return "Dispatched";
    case Kind::kRejectedCapacity:
      return "RejectedCapacity";
    case Kind::kRejectedNoEndpoints:
      return "RejectedNoEndpoints";
    case Kind::kRejectedShuttingDown:
      return "RejectedOther";
    case Kind::kEvictedTtl:
      return "EvictedTTL";
    case Kind::kEvictedNoEndpoints:
      return "EvictedNoEndpoints";
    case Kind::kEvictedCancelled:
      return "EvictedContextCancelled";
    default:
      return "EvictedOther";
  }
}

// Whether the scheduler was asked.
bool Scheduled(const DecisionReport& report) {
  return !report.flow || *report.flow == sched::FlowOutcome::Kind::kDispatched;
}

double Seconds(absl::Duration duration) { return std::max(0.0, absl::ToDoubleSeconds(duration)); }

}  // namespace

struct Telemetry::Impl {
  // What belongs to a scheduler's plugins.
  struct Current {
    explicit Current(const sched::Scheduler& scheduler) : facts(scheduler) {}
    SchedulerFacts facts;
    LazyFan<Histogram> hit_ratio;
    LazyFan<Histogram> hit_bytes;
  };

  Impl(const TelemetryOptions& o, const PoolStore& p);

  std::shared_ptr<Current> CurrentOf(const sched::Scheduler& scheduler) const {
    const std::shared_lock<std::shared_mutex> lock(mutex);
    return current != nullptr && current->facts.scheduler == &scheduler ? current : nullptr;
  }
  void ObservePrefix(const DecisionReport& report, const sched::Endpoint* target, Current& of);
  void ObserveFlow(const DecisionReport& report, RequestSeries& series);
  void CountDisagg(const DecisionReport& report, const SchedulerFacts& facts, const std::string& model);
  void AddAttempts(const sched::EndpointPool& pool, ScrapePage& page);
  void AddLookups(ScrapePage& page) const;

  const TelemetryOptions options;
  const PoolStore& pool;
  prometheus::Registry registry;
  RequestMetrics requests;
  EndpointTable<Attempts> attempts;
  Attempts failures;

  mutable std::shared_mutex mutex;  // of the two below
  std::shared_ptr<Current> current;
  TelemetrySources sources;

  Single<Histogram> scheduling, request_processing, response_processing, dispatch_cycle;
  FanFamily<Histogram> hit_ratio, hit_bytes;
  FanFamily<Counter> disagg, pd, flow_requests;
  Single<Gauge> streams_open;
  Single<Histogram> stream_duration;
  FanFamily<Counter> streams;
  Single<Counter> demo_requests, demo_cache_hits, demo_cache_requests, demo_by_hit, demo_by_load;
  Single<Histogram> demo_duration;
  // Of the exact index: lookups, and blocks that the chosen endpoint had.
  std::atomic<std::uint64_t> lookups = 0, lookup_hits = 0;
};

Telemetry::Impl::Impl(const TelemetryOptions& o, const PoolStore& p)
    : options(o), pool(p), requests(registry, o.names, o.limits) {
  const MetricNames& names = options.names;
  constexpr LabelStyle kNone = LabelStyle::kNone;
  const auto histogram = [&](Single<Histogram>& single, bool on, Buckets buckets, const std::string& name,
                             const std::string& help, const std::string& twin = "", bool twin_on = false) {
    single.family = FanFamily<Histogram>(std::move(buckets));
    single.family.Name(on, registry, name, help, kNone);
    if (!twin.empty()) single.family.Name(twin_on, registry, twin, help, kNone);
    single.fan = single.family.Find({});
  };
  histogram(scheduling, names.current, SchedulerBuckets(), "llm_d_epp_scheduler_e2e_duration_seconds",
            "Seconds that scheduling took.", "inference_extension_scheduler_e2e_duration_seconds",
            names.older());
  histogram(request_processing, names.current,
            {0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
            "llm_d_epp_request_processing_duration_seconds",
            "Seconds from the request's headers to its decision, waiting included.");
  histogram(response_processing, names.current,
            {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
            "llm_d_epp_response_processing_duration_seconds", "Seconds spent on the pieces of a response.");
  histogram(dispatch_cycle, names.current, SchedulerBuckets(),
            "llm_d_epp_flow_control_dispatch_cycle_duration_seconds", "Seconds of a cycle of flow control.",
            "inference_extension_flow_control_dispatch_cycle_duration_seconds", names.objective);

  hit_ratio = FanFamily<Histogram>({0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1});
  hit_bytes =
      FanFamily<Histogram>({0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536});
  const auto twins = [&](auto& family, const std::string& what, const std::string& help, bool older) {
    family.Name(names.current, registry, "llm_d_epp_" + what, help, kNone)
        .Name(older, registry, "inference_extension_" + what, help, kNone);
  };
  twins(hit_ratio, "prefix_indexer_hit_ratio", "Part of the prompt's blocks that the endpoint had.",
        names.older());
  twins(hit_bytes, "prefix_indexer_hit_bytes", "Bytes of the prompt that the endpoint had, estimated.",
        names.older());
  const std::string disagg_help = "Decisions by the stages that were split off.";
  disagg.Name(names.current, registry, "llm_d_epp_disagg_decision_total", disagg_help, kNone)
      .Name(names.objective, registry, "llm_d_inference_scheduler_disagg_decision_total", disagg_help, kNone);
  pd.Name(names.current, registry, "llm_d_epp_pd_decision_total", disagg_help, kNone)
      .Name(names.objective, registry, "llm_d_inference_scheduler_pd_decision_total", disagg_help, kNone);
  flow_requests.Name(names.current, registry, "llm_d_epp_flow_control_requests_total",
                     "Requests that came to flow control, by outcome.", kNone);

  if (options.stream_metrics) {
    streams_open.family.Name(true, registry, "llm_d_epp_extproc_streams_inflight", "Open ext_proc streams.",
                             kNone);
    streams_open.fan = streams_open.family.Find({});
    histogram(stream_duration, true, {0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600},
              "llm_d_epp_extproc_stream_duration_seconds", "Seconds that ext_proc streams were open.");
    streams.Name(true, registry, "llm_d_epp_extproc_streams_total",
                 "Finished ext_proc streams, by gRPC code.", kNone);
  }
  if (options.demo_metrics) {
    const auto counter = [&](Single<Counter>& single, const std::string& name, const std::string& help,
                             const prometheus::Labels& labels = {}) {
      single.family.Name(true, registry, name, help, kNone);
      single.fan = single.family.Find({}, labels);
    };
    const std::string decisions = "Decisions, by whether the endpoint had a part of the prompt.";
    counter(demo_requests, "epp_requests_total", "Requests that came to a decision.");
    counter(demo_cache_hits, "epp_cache_hits_total",
            "Decisions for an endpoint that had a part of the prompt.");
    counter(demo_cache_requests, "epp_cache_requests_total", "Decisions on prompts that were looked up.");
    counter(demo_by_hit, "epp_routing_decisions_total", decisions, {{"decision_type", "cache_hit"}});
    counter(demo_by_load, "epp_routing_decisions_total", decisions, {{"decision_type", "load_balance"}});
    histogram(demo_duration, true, LatencyBuckets(), "epp_request_duration_seconds",
              "Seconds from the request's headers to the end of the response.");
  }
}

namespace {

template <typename T>
void Increment(const Fan<T>& fan) {
  fan.Each([](T& metric) { metric.Increment(); });
}

void Observe(const Fan<Histogram>& fan, double value) {
  fan.Each([value](Histogram& histogram) { histogram.Observe(value); });
}

}  // namespace

Telemetry::Telemetry(const TelemetryOptions& options, const PoolStore& pool)
    : impl_(std::make_unique<Impl>(options, pool)) {}

Telemetry::~Telemetry() = default;

void Telemetry::SetScheduler(const sched::Scheduler& scheduler) {
  auto current = std::make_shared<Impl::Current>(scheduler);
  const std::unique_lock<std::shared_mutex> lock(impl_->mutex);
  impl_->current = std::move(current);
}

void Telemetry::SetSources(TelemetrySources sources) {
  const std::unique_lock<std::shared_mutex> lock(impl_->mutex);
  impl_->sources = std::move(sources);
}

void Telemetry::Impl::ObservePrefix(const DecisionReport& report, const sched::Endpoint* target,
                                    Current& of) {
  if (!of.facts.prefix_producer || report.total_blocks == 0) return;
  if (of.facts.precise) {
    lookups.fetch_add(1, std::memory_order_relaxed);
    lookup_hits.fetch_add(report.cached_blocks, std::memory_order_relaxed);
  }
  const prometheus::Labels plugin = {{"plugin_name", of.facts.prefix_producer->name},
                                     {"plugin_type", of.facts.prefix_producer->type}};
  const double blocks = report.cached_blocks;
  Observe(of.hit_ratio.Get(hit_ratio, {}, plugin), blocks / report.total_blocks);
  const std::uint32_t reported = target != nullptr ? target->metrics.cache_block_size : 0;
  Observe(of.hit_bytes.Get(hit_bytes, {}, plugin), blocks * of.facts.BlockBytes(reported));
}

void Telemetry::Impl::ObserveFlow(const DecisionReport& report, RequestSeries& series) {
  const std::string_view outcome = FlowOutcomeName(*report.flow);
  Increment(flow_requests.Find({}, {{"outcome", std::string(outcome)},
                                    {"priority", series.labels.priority},
                                    {"inference_pool", options.pool_name}}));
  requests.ObserveQueued(series, outcome, options.pool_name, Seconds(report.queued));
}

void Telemetry::Impl::CountDisagg(const DecisionReport& report, const SchedulerFacts& facts,
                                  const std::string& model) {
  if (report.decision == nullptr) return;
  const std::optional<sched::DisaggKind> kind = facts.Kind(*report.decision);
  if (!kind) return;
  const prometheus::Labels labels = {{"plugin_name", facts.disagg_handler->name},
                                     {"plugin_type", facts.disagg_handler->type},
                                     {"model_name", model.empty() ? "unknown" : model},
                                     {"decision_type", std::string(sched::ToString(*kind))}};
  Increment(disagg.Find({}, labels));
  const bool encodes =
      *kind == sched::DisaggKind::kEncodeDecode || *kind == sched::DisaggKind::kEncodePrefillDecode;
  if (!encodes) Increment(pd.Find({}, labels));
}

void Telemetry::OnDecision(const DecisionReport& report) {
  Impl& impl = *impl_;
  RequestSeries& series = impl.requests.Find(report.request);
  const sched::Endpoint* target = nullptr;
  if (report.status.ok()) {
    impl.requests.CountRequest(series);
    impl.requests.Observe(series, RequestHistogram::kRequestSize,
                          static_cast<double>(report.request.request_bytes));
    impl.requests.AddRunning(series, 1);
    Observe(impl.request_processing.fan, Seconds(report.now - report.request.received));
    if (report.decision != nullptr) {
      target = &report.pool[report.decision->target()];
      impl.attempts.With(*target, report.pool,
                         [&](Attempts& attempts) { attempts.Count(series.labels.target_model); });
    }
  } else if (Scheduled(report)) {
    impl.failures.Count(series.labels.target_model);
  }
  if (Scheduled(report)) Observe(impl.scheduling.fan, Seconds(report.deciding));

  std::shared_ptr<Impl::Current> current = impl.CurrentOf(report.scheduler);
  if (current == nullptr) current = std::make_shared<Impl::Current>(report.scheduler);  // one on its way out
  if (report.flow) impl.ObserveFlow(report, series);
  if (report.status.ok()) {
    impl.ObservePrefix(report, target, *current);
    impl.CountDisagg(report, current->facts, series.labels.target_model);
  }

  if (!impl.options.demo_metrics) return;
  Increment(impl.demo_requests.fan);
  if (!report.status.ok()) return;
  const bool hit = report.cached_blocks > 0;
  if (report.total_blocks > 0) Increment(impl.demo_cache_requests.fan);
  if (hit) Increment(impl.demo_cache_hits.fan);
  Increment(hit ? impl.demo_by_hit.fan : impl.demo_by_load.fan);
}

void Telemetry::OnResponseChunk(const RequestInfo& request, absl::Duration since_last) {
  if (since_last == absl::InfiniteDuration()) return;
  impl_->requests.Observe(impl_->requests.Find(request), RequestHistogram::kStreamingItl,
                          Seconds(since_last));
}

void Telemetry::OnFinished(const FinishReport& report) {
  Impl& impl = *impl_;
  RequestSeries& series = impl.requests.Find(report.request);
  const gateway::ResponseFacts& response = report.response;
  const gateway::Completion& completion = report.completion;
  if (report.decided) impl.requests.AddRunning(series, -1);

  if (completion.refused_with != 0) {
    impl.requests.CountError(series, gateway::CodeWord(completion.refused_with));
  } else if (response.status != 0 && (response.status < 200 || response.status > 299)) {
    impl.requests.CountError(series, "ModelServerError");
  } else if (completion.cause == gateway::CompletionCause::kError) {
    impl.requests.CountError(series, "Unknown");
  }

  using H = RequestHistogram;
  const absl::Time received = report.request.received;
  const bool answered = response.first_byte != absl::InfiniteFuture();
  if (report.response_processing > absl::ZeroDuration()) {
    Observe(impl.response_processing.fan, Seconds(report.response_processing));
  }
  const double ttft = Seconds(response.first_byte - received);
  if (answered) impl.requests.Observe(series, response.streaming ? H::kTtftStreaming : H::kTtft, ttft);
  if (!response.ended) return;  // broken off: how long it would have taken is not known
  const double duration =
      Seconds((response.last_byte != absl::InfinitePast() ? response.last_byte : report.now) - received);
  impl.requests.Observe(series, H::kDuration, duration);
  if (impl.options.demo_metrics) Observe(impl.demo_duration.fan, duration);
  impl.requests.Observe(series, H::kResponseSize, static_cast<double>(response.body_bytes));
  if (!response.usage.known) return;
  impl.requests.Observe(series, H::kInputTokens, static_cast<double>(response.usage.prompt_tokens));
  impl.requests.Observe(series, H::kOutputTokens, static_cast<double>(response.usage.completion_tokens));
  impl.requests.Observe(series, H::kCachedTokens, static_cast<double>(response.usage.cached_tokens));
  const double tokens = static_cast<double>(response.usage.completion_tokens);
  if (tokens > 0) impl.requests.Observe(series, H::kNtpot, duration / tokens);
  if (response.streaming && answered && tokens > 1) {
    impl.requests.Observe(series, H::kStreamingTpot, std::max(0.0, duration - ttft) / (tokens - 1));
  }
}

void Telemetry::OnStreamStarted() { Increment(impl_->streams_open.fan); }

void Telemetry::OnStreamEnded(std::string_view code, absl::Duration open) {
  impl_->streams_open.fan.Each([](Gauge& gauge) { gauge.Decrement(); });
  Observe(impl_->stream_duration.fan, Seconds(open));
  Increment(impl_->streams.Find({}, {{"code", std::string(code)}}));
}

void Telemetry::OnDispatchCycle(absl::Duration duration) {
  Observe(impl_->dispatch_cycle.fan, Seconds(duration));
}

void Telemetry::Impl::AddAttempts(const sched::EndpointPool& now_in_pool, ScrapePage& page) {
  const auto add = [&](const std::string& status, Attempts& counts, const std::string& name,
                       const std::string& ns, const std::string& port) {
    const std::shared_lock<std::shared_mutex> lock(counts.mutex);
    for (const auto& [model, count] : counts.by_model) {
      const double value = static_cast<double>(count->load(std::memory_order_relaxed));
      const auto labels = [&](const char* endpoint) {
        return ScrapePage::Labels{{"status", status},
                                  {"target_model_name", model},
                                  {endpoint, name},
                                  {"namespace", ns},
                                  {"port", port}};
      };
      const std::string help = "Decisions, by outcome and endpoint.";
      if (options.names.current) {
        page.Counter("llm_d_epp_scheduler_attempts_total", help, labels("endpoint_name"), value);
      }
      if (options.names.objective) {
        page.Counter("inference_extension_scheduler_attempts_total", help, labels("pod_name"), value);
      }
    }
  };
  attempts.Visit(now_in_pool, [&](const sched::Endpoint& endpoint, Attempts& counts) {
    add("success", counts, endpoint.metadata().name, endpoint.metadata().pod_namespace,
        std::to_string(endpoint.metadata().port));
  });
  add("failure", failures, "", "", "");
}

void Telemetry::Impl::AddLookups(ScrapePage& page) const {
  const auto add = [&](const std::string& what, const std::string& help, double value) {
    if (options.names.current) page.Counter("llm_d_epp_kv_cache_" + what, help, {}, value);
    if (options.names.objective) page.Counter("kvcache_" + what, help, {}, value);
  };
  add("index_lookup_requests_total", "Prompts that were looked up in the index.",
      static_cast<double>(lookups.load(std::memory_order_relaxed)));
  add("index_lookup_hits_total", "Blocks of the prompts that the chosen endpoints had.",
      static_cast<double>(lookup_hits.load(std::memory_order_relaxed)));
}

std::string Telemetry::Expose() const {
  Impl& impl = *impl_;
  std::shared_ptr<Impl::Current> current;
  TelemetrySources sources;
  {
    const std::shared_lock<std::shared_mutex> lock(impl.mutex);
    current = impl.current;
    sources = impl.sources;
  }
  const absl::Time now = impl.options.clock();
  const PoolStore::Snapshot pool = impl.pool.snapshot();
  const MetricNames& names = impl.options.names;

  ScrapePage page;
  const auto info = [&](const std::string& name) {
    page.Gauge(name, "1, with the build in the labels.",
               {{"commit", impl.options.commit}, {"build_ref", impl.options.build_ref}}, 1);
  };
  if (names.current) info("llm_d_epp_info");
  if (names.older()) info("inference_extension_info");
  AddPoolMetrics(impl.options, *pool, now, page);
  impl.AddAttempts(*pool, page);
  if (sources.data_layer) AddDataLayerMetrics(impl.options, sources.data_layer(), page);
  if (sources.kv_index) {
    if (const auto counts = sources.kv_index()) {
      AddKvIndexMetrics(impl.options, *counts, page);
      impl.AddLookups(page);
    }
  }
  if (current != nullptr) {
    const SchedulerFacts& facts = current->facts;
    if (sources.states != nullptr) AddInFlightMetrics(impl.options, *sources.states, facts, *pool, page);
    if (sources.flow_control) {
      if (const auto stats = sources.flow_control()) {
        const std::span<const sched::Endpoint> all = pool->endpoints();
        const auto stale = std::count_if(all.begin(), all.end(), [&](const sched::Endpoint& endpoint) {
          return !MetricsFresh(endpoint, now, impl.options.metrics_staleness);
        });
        AddFlowControlMetrics(impl.options, *stats, facts, static_cast<std::size_t>(stale), page);
      }
    }
    if (sources.prefix_index_size && facts.prefix_producer) {
      const double size = static_cast<double>(sources.prefix_index_size());
      const auto add = [&](const std::string& name) {
        page.Gauge(
            name, "Entries of the prefix index.",
            {{"plugin_name", facts.prefix_producer->name}, {"plugin_type", facts.prefix_producer->type}},
            size);
      };
      if (names.current) add("llm_d_epp_prefix_indexer_size");
      if (names.older()) add("inference_extension_prefix_indexer_size");
    }
  }
  std::vector<prometheus::MetricFamily> families = impl.registry.Collect();
  std::vector<prometheus::MetricFamily> read = page.Take();
  families.insert(families.end(), std::make_move_iterator(read.begin()), std::make_move_iterator(read.end()));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace llmd::host
