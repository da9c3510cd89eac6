#include "examples/gateway_scheduler/host.h"

#include <google/protobuf/stubs/logging.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/caching_token_source.h"
#include "examples/gateway_scheduler/curl_loop.h"
#include "examples/gateway_scheduler/decision_recorder.h"
#include "examples/gateway_scheduler/endpoints_file_watcher.h"
#include "examples/gateway_scheduler/engine_token_source.h"
#include "examples/gateway_scheduler/estimate_token_source.h"
#include "examples/gateway_scheduler/ext_proc_server.h"
#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/http_proxy.h"
#include "examples/gateway_scheduler/kubernetes_discovery.h"
#include "examples/gateway_scheduler/kv_event_feed.h"
#include "examples/gateway_scheduler/metrics_scraper.h"
#include "examples/gateway_scheduler/observability.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "examples/gateway_scheduler/prefix_plan.h"
#include "examples/gateway_scheduler/tls.h"
#include "llmd/sched/config_env.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

extern char** environ;

namespace llmd::host {
namespace {

// How long open streams may go on after the drain.
constexpr absl::Duration kStreamPatience = absl::Seconds(30);

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return absl::NotFoundError(absl::StrCat("--config-file: cannot read ", path));
  return text;
}

// The configuration's text: from the file, the flag, the environment of llm-d's first releases, or none.
absl::StatusOr<std::string> ConfigText(const HostOptions& options, std::string& source) {
  if (!options.config_file.empty()) {
    source = options.config_file;
    return ReadFile(options.config_file);
  }
  if (!options.config_text.empty()) {
    source = "--config-text";
    return options.config_text;
  }
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (const std::size_t at = text.find('='); at != std::string::npos) {
      variables[text.substr(0, at)] = text.substr(at + 1);
    }
  }
  const bool from_environment = variables.contains("PD_ENABLED") || [&] {
    for (const auto& [name, value] : variables) {
      if (name.starts_with("ENABLE_") && name.ends_with("_SCORER")) return true;
    }
    return false;
  }();
  source = from_environment ? "environment" : "default";
  if (!from_environment) return std::string();
  std::vector<std::string> warnings;
  const std::string text = sched::PrintConfig(sched::ConfigFromEnvironment(variables, &warnings));
  for (const std::string& warning : warnings) spdlog::warn("{}", warning);
  return text;
}

void SetUpLog(const HostOptions& options) {
  // On stderr: stdout has the line that says that all is ready.
  auto logger =
      std::make_shared<spdlog::logger>("gateway", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  spdlog::set_default_logger(std::move(logger));
  if (options.log_format == "json") {
    spdlog::set_pattern(R"({"ts":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","msg":"%v"})");
  } else {
    spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%L%$ %v");
  }
  spdlog::set_level(options.verbosity >= 4 ? spdlog::level::debug : spdlog::level::info);
  // What peers send is no news for stderr.
  google::protobuf::SetLogHandler(nullptr);
}

// The engine that 0.2's flags describe: vLLM, with other names for some metrics.
absl::StatusOr<std::shared_ptr<const gateway::EngineCatalog>> EnginesWithOtherNames(
    const HostOptions& options) {
  gateway::EngineConfig engine;
  for (gateway::EngineConfig& known : gateway::BuiltinEngines()) {
    if (known.name == "vllm") engine = std::move(known);
  }
  const auto rename = [](const std::string& flag, const std::string& text,
                         gateway::MetricSpecs& specs) -> absl::Status {
    if (text.empty()) return absl::OkStatus();
    absl::StatusOr<gateway::MetricSpec> spec = gateway::MetricSpec::Parse(text);
    if (!spec.ok()) return absl::InvalidArgumentError(absl::StrCat(flag, ": ", spec.status().message()));
    specs = {*std::move(spec)};
    return absl::OkStatus();
  };
  absl::Status s = rename("--total-queued-requests-metric", options.waiting_metric, engine.queued_requests);
  if (s.ok()) s = rename("--kv-cache-usage-percentage-metric", options.kv_usage_metric, engine.kv_usage);
  if (s.ok()) s = rename("--lora-info-metric", options.lora_metric, engine.lora);
  if (!s.ok()) return s;
  absl::StatusOr<gateway::EngineCatalog> catalog =
      gateway::EngineCatalog::Create({.engines = {std::move(engine)}});
  if (!catalog.ok()) return catalog.status();
  return std::make_shared<const gateway::EngineCatalog>(*std::move(catalog));
}

std::uint64_t SeedOf(const HostOptions& options) {
  if (options.seed != 0) return options.seed;
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

class HostImpl final : public Host {
 public:
  explicit HostImpl(const HostOptions& options) : options_(options) {}
  ~HostImpl() override { Stop(); }

  absl::Status Run() {
    absl::Status s = MakeGateway();
    if (s.ok()) s = StartTokens();
    if (s.ok()) s = StartEvents();
    if (s.ok()) s = StartDiscovery();
    if (s.ok()) s = StartScraper();
    if (s.ok()) s = StartServer();
    if (s.ok()) s = StartProxy();
    if (s.ok()) s = ListenForWatchers();
    return s;
  }

  std::string ReadyLine() const override {
    return absl::StrCat("ready ext_proc=", server_->port(), " health=", server_->health_port(),
                        " metrics=", watch_->metrics_port(), " status=", watch_->status_port(),
                        " proxy=", proxy_ == nullptr ? 0 : proxy_->port());
  }

  absl::Status Reload() override {
    if (endpoints_file_ != nullptr) endpoints_file_->Reload();
    std::string source;
    const absl::StatusOr<std::string> text = ConfigText(options_, source);
    if (!text.ok()) return text.status();
    std::vector<std::string> warnings;
    if (absl::Status s = gateway_->Reload(*text, &warnings); !s.ok()) return s;
    for (const std::string& warning : warnings) spdlog::warn("{}", warning);
    watch_->SetScheduler(*gateway_->schedulers().Current().scheduler);
    return absl::OkStatus();
  }

  void StartDraining() override { draining_ = true; }

  void Stop() override {
    if (stopped_) return;
    stopped_ = true;
    if (gateway_ != nullptr) gateway_->ShutDown();
    if (proxy_ != nullptr) {
      proxy_->Drain();
      const absl::Time limit = absl::Now() + kStreamPatience;
      while (proxy_->connections() > 0 && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(10));
      proxy_->Stop();
    }
    if (server_ != nullptr) server_->Shutdown(kStreamPatience);
    if (watch_ != nullptr) watch_->Stop();
  }

 private:
  bool Ready() const {
    return pool_.synced() && !draining_ && (kubernetes_ == nullptr || kubernetes_->pool_synced());
  }

  absl::Status MakeGateway() {
    GatewayOptions gateway{.config = {.allow_experimental = options_.allow_experimental},
                           .emit_scores = options_.emit_scores,
                           .ignore_subset = options_.ignore_subset};
    gateway.ext_proc.max_body_bytes = options_.max_body_bytes;
    absl::StatusOr<std::string> text = ConfigText(options_, gateway.config.source);
    if (!text.ok()) return text.status();
    gateway.config_text = *std::move(text);
    if (gateway.config.source == "environment") gateway.config.allow_experimental = true;
    auto made = Gateway::Create(std::move(gateway), pool_);
    if (!made.ok()) return made.status();
    gateway_ = *std::move(made);
    scheduler_ = gateway_->schedulers().Current().scheduler;
    for (const std::string& warning : gateway_->warnings()) spdlog::warn("{}", warning);
    auto watch = Observability::Create(options_, *gateway_);
    if (!watch.ok()) return watch.status();
    watch_ = *std::move(watch);
    if (!options_.decision_log.empty()) {
      auto recorder = DecisionRecorder::Create(options_.decision_log);
      if (!recorder.ok()) return recorder.status();
      gateway_->SetRecorder(*std::move(recorder));
    }
    return absl::OkStatus();
  }

  absl::Status StartTokens() {
    if (options_.tokenizer == "estimate") {
      const absl::StatusOr<MediaEstimate> media = MediaEstimateOf(*scheduler_);
      if (!media.ok()) return media.status();
      gateway_->SetTokenSource(std::make_unique<EstimateTokenSource>(*media));
      return absl::OkStatus();
    }
    absl::StatusOr<EngineTokenOptions> engine = EngineTokenOptionsOf(*scheduler_);
    if (!engine.ok()) return engine.status();
    if (!options_.tokenizer_url.empty()) engine->url = options_.tokenizer_url;
    gateway_->SetTokenSource(std::make_unique<CachingTokenSource>(
        CachingTokenOptions{}, std::make_unique<EngineTokenSource>(*engine, curl_, &pool_)));
    return absl::OkStatus();
  }

  absl::Status StartEvents() {
    const absl::StatusOr<PrefixPlan> plan = PrefixPlan::From(scheduler_->config());
    if (!plan.ok()) return plan.status();
    if (!plan->precise) return absl::OkStatus();
    auto feed = KvEventFeed::Start({.precise = *plan->precise}, pool_, gateway_->exact_index());
    if (!feed.ok()) return feed.status();
    events_ = *std::move(feed);
    return absl::OkStatus();
  }

  absl::Status StartDiscovery() {
    if (!options_.endpoints_file.empty()) {
      auto watcher = EndpointsFileWatcher::Start({.path = options_.endpoints_file}, pool_);
      if (!watcher.ok()) return watcher.status();
      endpoints_file_ = *std::move(watcher);
      return absl::OkStatus();
    }
    absl::StatusOr<KubernetesConfig> cluster =
        ResolveKubernetesConfig({.api_url = options_.kube_api_url,
                                 .token_file = options_.kube_token_file,
                                 .ca_file = options_.kube_ca_file},
                                [](const char* name) -> const char* { return std::getenv(name); });
    if (!cluster.ok()) return cluster.status();
    auto started = KubernetesDiscovery::Start(*cluster,
                                              {.pool_name = options_.pool_name,
                                               .pool_namespace = options_.pool_namespace,
                                               .pool_group = options_.pool_group,
                                               .endpoint_selector = options_.endpoint_selector,
                                               .endpoint_target_ports = options_.endpoint_target_ports},
                                              pool_);
    if (!started.ok()) return started.status();
    kubernetes_ = *std::move(started);
    gateway_->SetObjectives(
        [this](std::string_view name) { return kubernetes_->objectives()->Priority(name); });
    gateway_->SetRewrites([this](std::string_view model, Random& random) -> std::optional<std::string> {
      const std::shared_ptr<const RewriteTable> table = kubernetes_->rewrites();
      const std::optional<RewriteTable::Choice> choice = table->Choose(model, random);
      if (!choice) return std::nullopt;
      return std::string(choice->model);
    });
    return absl::OkStatus();
  }

  absl::Status StartScraper() {
    absl::StatusOr<std::optional<ScraperOptions>> made =
        ScraperOptionsOf(*scheduler_, options_.refresh_metrics_interval);
    if (!made.ok()) return made.status();
    if (!*made) return absl::OkStatus();
    ScraperOptions& scraper = **made;
    if (!options_.model_server_metrics_path.empty()) scraper.path = options_.model_server_metrics_path;
    if (options_.model_server_metrics_port != 0) {
      scraper.port = static_cast<std::uint16_t>(options_.model_server_metrics_port);
    }
    if (!options_.waiting_metric.empty() || !options_.kv_usage_metric.empty() ||
        !options_.lora_metric.empty()) {
      auto engines = EnginesWithOtherNames(options_);
      if (!engines.ok()) return engines.status();
      scraper.engines = *std::move(engines);
    }
    scraper_.emplace(scraper, pool_, curl_);
    return absl::OkStatus();
  }

  absl::Status StartServer() {
    ExtProcServerOptions server{.address = options_.bind_address,
                                .port = options_.grpc_port,
                                .health_port = options_.health_port,
                                .health_on_both = options_.health_checking,
                                .threads = Threads(),
                                .max_receive_bytes = options_.max_receive_bytes,
                                .max_send_bytes = options_.max_send_bytes,
                                .seed = SeedOf(options_)};
    if (options_.secure_serving) {
      auto credentials =
          MakeServerCredentials({.cert_path = options_.cert_path, .reload = options_.cert_reload});
      if (!credentials.ok()) return credentials.status();
      server.credentials = *std::move(credentials);
    }
    auto started = ExtProcServer::Start(server, *gateway_, [this] { return Ready(); });
    if (!started.ok()) return started.status();
    server_ = *std::move(started);
    return absl::OkStatus();
  }

  absl::Status StartProxy() {
    if (options_.proxy_port < 0) return absl::OkStatus();
    auto proxy = HttpProxy::Create({.address = options_.bind_address,
                                    .port = static_cast<std::uint16_t>(options_.proxy_port),
                                    .threads = Threads(),
                                    .max_body_bytes = options_.max_body_bytes,
                                    .pd = options_.proxy_pd},
                                   *gateway_);
    if (!proxy.ok()) {
      return absl::Status(proxy.status().code(), absl::StrCat(proxy.status().message(), " (--proxy-port)"));
    }
    proxy_ = *std::move(proxy);
    return absl::OkStatus();
  }

  absl::Status ListenForWatchers() {
    watch_->AddListener("ext_proc", server_->port());
    watch_->AddListener("health", server_->health_port());
    if (proxy_ != nullptr) watch_->AddListener("proxy", proxy_->port());
    absl::Status s = watch_->Listen(
        {.gateway = gateway_.get(),
         .events = events_.get(),
         .scraper = scraper_ ? &*scraper_ : nullptr,
         .condition = [this] {
           return std::string(draining_ ? "draining" : Ready() ? "ready" : "waiting for endpoints");
         }});
    if (s.ok()) watch_->AddListener("metrics", watch_->metrics_port());
    return s;
  }

  int Threads() const {
    return options_.threads > 0 ? options_.threads
                                : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }

  const HostOptions options_;
  std::atomic<bool> draining_ = false;
  bool stopped_ = false;
  // In the order in which they need each other; the last is the first to go.
  PoolStore pool_;
  CurlLoop curl_;
  std::unique_ptr<Gateway> gateway_;
  std::shared_ptr<sched::Scheduler>
      scheduler_;  // of the start: what is read from the configuration only once
  std::unique_ptr<KvEventFeed> events_;
  std::unique_ptr<EndpointsFileWatcher> endpoints_file_;
  std::unique_ptr<KubernetesDiscovery> kubernetes_;
  std::optional<MetricsScraper> scraper_;
  std::unique_ptr<Observability> watch_;
  std::unique_ptr<ExtProcServer> server_;
  std::unique_ptr<HttpProxy> proxy_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Host>> Host::Start(const HostOptions& options) {
  SetUpLog(options);
  auto host = std::make_unique<HostImpl>(options);
  if (absl::Status s = host->Run(); !s.ok()) return s;
  return host;
}

}  // namespace llmd::host
