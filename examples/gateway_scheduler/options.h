// The command line of the host: llm-d's flags in both spellings, and our own.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_OPTIONS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace llmd::host {

struct HostOptions {
  // Ports; 0: any free one. A negative one: off, where that is said.
  std::string bind_address = "0.0.0.0";
  int grpc_port = 9002;
  int health_port = 9003;
  int metrics_port = 9090;
  int status_port = 9080;  // off
  int proxy_port = -1;     // off

  // gRPC
  bool secure_serving = true;
  std::string cert_path = {};
  bool cert_reload = false;
  bool health_checking = false;
  int max_receive_bytes = 0;
  int max_send_bytes = 0;
  int threads = 0;  // 0: one for each processor
  absl::Duration drain_timeout = absl::Seconds(30);

  // Configuration
  std::string config_file = {};
  std::string config_text = {};
  bool allow_experimental = false;

  // Endpoints: a file, or Kubernetes
  std::string endpoints_file = {};
  std::string pool_name = {};
  std::string pool_namespace = {};
  std::string pool_group = "inference.networking.k8s.io";
  std::string endpoint_selector = {};
  std::vector<int> endpoint_target_ports = {};
  std::string kube_api_url = {};     // empty: in-cluster
  std::string kube_token_file = {};  // empty: the service account's
  std::string kube_ca_file = {};

  // Metrics of the engines
  absl::Duration refresh_metrics_interval = absl::Milliseconds(50);
  absl::Duration metrics_staleness_threshold = absl::Seconds(2);
  std::string model_server_metrics_path = {};  // empty: as the configuration says
  int model_server_metrics_port = 0;           // 0: the endpoint's
  std::string waiting_metric = {};             // 0.2's names of metrics, empty: the engine's
  std::string kv_usage_metric = {};
  std::string lora_metric = {};

  // Our metrics, log and pages
  std::vector<std::string> metric_names = {"current"};
  bool demo_metrics = false;
  std::string metrics_token_file = {};  // Bearer token that /metrics asks for; empty: open
  bool grpc_stream_metrics = false;
  std::string log_format = "text";
  int verbosity = 1;
  std::string decision_log = {};

  // Protocol
  bool emit_scores = false;
  bool ignore_subset = false;
  std::uint64_t max_body_bytes = std::uint64_t{64} << 20;
  bool proxy_pd = false;

  // Tokens
  std::string tokenizer = "estimate";  // or engine
  std::string tokenizer_url = {};

  std::uint64_t seed = 0;  // 0: from the system
};

// What is to be done with a command line.
struct ParsedOptions {
  HostOptions options = {};
  bool run = true;  // else print `text` and exit with `exit_code`
  int exit_code = 0;
  std::string text = {};
  std::vector<std::string> notes = {};  // flags that were accepted and have no effect
};

ParsedOptions ParseOptions(const std::vector<std::string>& arguments);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_OPTIONS_H_
