#include "examples/gateway_scheduler/observability.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/activity.h"
#include "examples/gateway_scheduler/decision_history.h"
#include "examples/gateway_scheduler/decision_log.h"
#include "examples/gateway_scheduler/flow_gate.h"
#include "examples/gateway_scheduler/metrics_endpoint.h"
#include "examples/gateway_scheduler/status_page.h"
#include "examples/gateway_scheduler/telemetry.h"
#include "examples/http/server.h"

namespace llmd::host {
namespace {

// What the feed counts, in the words of gateway.md 3.4.
KvIndexCounts CountsOf(const KvFeedStats& feed) {
  KvIndexCounts counts{.admissions = feed.ingest.stored_blocks,
                       .evictions = feed.index.evicted_holder_blocks,
                       .active_subscribers = feed.subscribers};
  const auto skipped = [&](const char* kind, const char* reason, std::uint64_t count) {
    if (count > 0) counts.stores_skipped.push_back({.cache_kind = kind, .reason = reason, .count = count});
  };
  skipped("other", "group_kind", feed.ingest.skipped_groups);
  skipped("full_attention", "sparse", feed.ingest.skipped_sparse);
  skipped("full_attention", "malformed", feed.ingest.skipped_malformed);
  skipped("full_attention", "parent_missing", feed.ingest.orphans_dropped);
  skipped("full_attention", "no_holder", feed.ingest.holders_refused);
  for (const KvPublisherStats& publisher : feed.publishers) {
    counts.publishers.push_back(
        {.pod = publisher.endpoint_id,
         .messages = publisher.live_messages + publisher.replay_messages,
         .reconnections = publisher.reconnections,
         .errors = {{"receive", publisher.malformed}, {"decode", publisher.bad_batches}}});
  }
  return counts;
}

class ObservabilityImpl final : public Observability {
 public:
  ObservabilityImpl(const HostOptions& options, Gateway& gateway, const TelemetryOptions& telemetry)
      : options_(options),
        gateway_(gateway),
        telemetry_(telemetry, gateway.pool()),
        log_({.json = options.log_format == "json", .verbosity = options.verbosity}, nullptr),
        work_(io_.get_executor()) {
    const std::shared_ptr<sched::Scheduler> scheduler = gateway.schedulers().Current().scheduler;
    telemetry_.SetScheduler(*scheduler);
    gateway.AddObserver(&telemetry_);
    gateway.AddObserver(&log_);
    gateway.AddObserver(&activity_);
    if (options.status_port >= 0) gateway.AddObserver(&history_);
  }
  ~ObservabilityImpl() override { Stop(); }

  absl::Status Listen(const ObservedParts& parts) override {
    parts_ = parts;
    telemetry_.SetSources({.flow_control = [this]() -> std::optional<sched::FlowControlStats> {
                             if (!gateway_.flow().enabled()) return std::nullopt;
                             return gateway_.flow().stats();
                           },
                           .kv_index = [this]() -> std::optional<KvIndexCounts> {
                             if (parts_.events == nullptr) return std::nullopt;
                             return CountsOf(*parts_.events->stats());
                           },
                           .data_layer = [this] { return DataLayer(); },
                           .prefix_index_size =
                               [this] {
                                 return parts_.events != nullptr
                                            ? parts_.events->stats()->index.holder_blocks
                                            : gateway_.approx_stats().index.holder_blocks;
                               },
                           .states = gateway_.plugin_states()});
    auto metrics =
        http::Server::Create(io_,
                             {.address = options_.bind_address,
                              .port = static_cast<std::uint16_t>(options_.metrics_port),
                              .max_body_bytes = 1 << 16,
                              .max_connections = 256},
                             MetricsHandler(telemetry_, {.token_file = options_.metrics_token_file}));
    if (!metrics.ok()) return Named(metrics.status(), "--metrics-port");
    metrics_ = *std::move(metrics);
    if (options_.status_port >= 0) {
      auto page = StatusPage::Create(
          io_, {.address = options_.bind_address, .port = static_cast<std::uint16_t>(options_.status_port)},
          [this] { return Collect(); }, &history_);
      if (!page.ok()) return Named(page.status(), "--status-port");
      page_ = *std::move(page);
    }
    thread_ = std::thread([this] { io_.run(); });
    return absl::OkStatus();
  }

  int metrics_port() const override { return metrics_ == nullptr ? 0 : metrics_->port(); }
  int status_port() const override { return page_ == nullptr ? 0 : page_->port(); }
  void AddListener(std::string name, int port) override {
    const std::lock_guard lock(mutex_);
    listeners_.push_back({.name = std::move(name), .port = static_cast<std::uint16_t>(port)});
  }
  void SetScheduler(const sched::Scheduler& scheduler) override { telemetry_.SetScheduler(scheduler); }

  void Stop() override {
    if (!thread_.joinable()) return;
    if (page_ != nullptr) page_->Stop();
    if (metrics_ != nullptr) metrics_->Stop();
    work_.reset();
    io_.stop();
    thread_.join();
  }

 private:
  static absl::Status Named(const absl::Status& status, const char* flag) {
    return absl::Status(status.code(), absl::StrCat(status.message(), " (", flag, ")"));
  }

  DataLayerErrors DataLayer() const {
    if (parts_.scraper == nullptr) return {};
    const ScraperCounters counters = parts_.scraper->counters();
    return {.polls = {{.source_type = "metrics-data-source", .count = counters.poll_errors()}},
            .extracts = {{.source_type = "metrics-data-source",
                          .extractor_type = "core-metrics-extractor",
                          .count = counters.extract_errors()}}};
  }

  HostState Collect() {
    const absl::Time now = absl::Now();
    HostState state{.now = now,
                    .started = started_,
                    .version = LLMD_VERSION,
                    .pool = options_.pool_name.empty() ? "default" : options_.pool_name,
                    .condition = parts_.condition(),
                    .traffic = activity_.Traffic(now)};
    {
      const std::lock_guard lock(mutex_);
      state.listeners = listeners_;
    }
    const PoolStore::Snapshot pool = gateway_.pool().snapshot();
    FillEndpoints(*pool, now, options_.metrics_staleness_threshold, state);
    activity_.FillEndpoints(*pool, state);
    if (parts_.events != nullptr) {
      const std::shared_ptr<const KvFeedStats> feed = parts_.events->stats();
      state.indexes.push_back(DescribeIndex("exact", feed->index, feed->memory));
    }
    const Gateway::ApproxStats approx = gateway_.approx_stats();
    state.indexes.push_back(DescribeIndex("approximate", approx.index, approx.memory));
    if (gateway_.flow().enabled()) state.flow_control = DescribeFlowControl(gateway_.flow().stats());
    FillConfiguration(*gateway_.schedulers().Current().scheduler, state);
    state.warnings = gateway_.warnings();  // the file's as well
    return state;
  }

  const HostOptions options_;
  Gateway& gateway_;
  ObservedParts parts_;
  const absl::Time started_ = absl::Now();
  Telemetry telemetry_;
  DecisionLog log_;
  Activity activity_;
  DecisionHistory history_;
  std::mutex mutex_;
  std::vector<HostState::Listener> listeners_;
  http::asio::io_context io_;
  http::asio::executor_work_guard<http::asio::io_context::executor_type> work_;
  std::unique_ptr<http::Server> metrics_;
  std::unique_ptr<StatusPage> page_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Observability>> Observability::Create(const HostOptions& options,
                                                                     Gateway& gateway) {
  const absl::StatusOr<MetricNames> names = ParseMetricNames(absl::StrJoin(options.metric_names, ","));
  if (!names.ok()) return names.status();
  TelemetryOptions telemetry{.pool_name = options.pool_name.empty() ? "default" : options.pool_name,
                             .names = *names,
                             .demo_metrics = options.demo_metrics,
                             .stream_metrics = options.grpc_stream_metrics,
                             .build_ref = "v" LLMD_VERSION,
                             .metrics_staleness = options.metrics_staleness_threshold};
  return std::make_unique<ObservabilityImpl>(options, gateway, telemetry);
}

}  // namespace llmd::host
