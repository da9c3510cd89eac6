#include "examples/gateway_scheduler/host.h"

#include <google/protobuf/stubs/logging.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/endpoints_file_watcher.h"
#include "examples/gateway_scheduler/ext_proc_server.h"
#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/pool_store.h"
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

class HostImpl final : public Host {
 public:
  explicit HostImpl(const HostOptions& options) : options_(options) {}
  ~HostImpl() override { Stop(); }

  absl::Status Run() {
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
    for (const std::string& warning : gateway_->warnings()) spdlog::warn("{}", warning);

    auto watcher = EndpointsFileWatcher::Start({.path = options_.endpoints_file}, pool_);
    if (!watcher.ok()) return watcher.status();
    endpoints_file_ = *std::move(watcher);

    ExtProcServerOptions server{
        .address = options_.bind_address,
        .port = options_.grpc_port,
        .health_port = options_.health_port,
        .health_on_both = options_.health_checking,
        .threads = options_.threads > 0 ? options_.threads
                                        : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())),
        .max_receive_bytes = options_.max_receive_bytes,
        .max_send_bytes = options_.max_send_bytes,
        .seed = options_.seed != 0 ? options_.seed
                                   : (std::uint64_t{std::random_device{}()} << 32) + std::random_device{}()};
    if (options_.secure_serving) {
      auto credentials =
          MakeServerCredentials({.cert_path = options_.cert_path, .reload = options_.cert_reload});
      if (!credentials.ok()) return credentials.status();
      server.credentials = *std::move(credentials);
    }
    auto started = ExtProcServer::Start(server, *gateway_, [this] { return pool_.synced() && !draining_; });
    if (!started.ok()) return started.status();
    server_ = *std::move(started);
    return absl::OkStatus();
  }

  std::string ReadyLine() const override {
    return absl::StrCat("ready ext_proc=", server_->port(), " health=", server_->health_port(), " metrics=0",
                        " status=0 proxy=0");
  }

  absl::Status Reload() override {
    if (endpoints_file_ != nullptr) endpoints_file_->Reload();
    std::string source;
    const absl::StatusOr<std::string> text = ConfigText(options_, source);
    if (!text.ok()) return text.status();
    std::vector<std::string> warnings;
    if (absl::Status s = gateway_->Reload(*text, &warnings); !s.ok()) return s;
    for (const std::string& warning : warnings) spdlog::warn("{}", warning);
    return absl::OkStatus();
  }

  void StartDraining() override { draining_ = true; }

  void Stop() override {
    if (stopped_) return;
    stopped_ = true;
    if (gateway_ != nullptr) gateway_->ShutDown();
    if (server_ != nullptr) server_->Shutdown(kStreamPatience);
  }

 private:
  const HostOptions options_;
  std::atomic<bool> draining_ = false;
  bool stopped_ = false;
  PoolStore pool_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<EndpointsFileWatcher> endpoints_file_;
  std::unique_ptr<ExtProcServer> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Host>> Host::Start(const HostOptions& options) {
  SetUpLog(options);
  auto host = std::make_unique<HostImpl>(options);
  if (absl::Status s = host->Run(); !s.ok()) return s;
  return host;
}

}  // namespace llmd::host
