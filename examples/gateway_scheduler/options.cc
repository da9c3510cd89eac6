#include "examples/gateway_scheduler/options.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

// "grpc-port" -> "grpcPort".
std::string CamelCase(std::string_view kebab) {
  std::string camel;
  bool upper = false;
  for (const char c : kebab) {
    if (c == '-') {
      upper = true;
      continue;
    }
    camel.push_back(upper ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c);
    upper = false;
  }
  return camel;
}

// "--grpc-port,--grpcPort".
std::string BothSpellings(const std::string& kebab) {
  const std::string camel = CamelCase(kebab);
  return camel == kebab ? absl::StrCat("--", kebab) : absl::StrCat("--", kebab, ",--", camel);
}

CLI::Validator Duration() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        absl::Duration duration;
        if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration()) {
          return absl::StrCat("\"", text, "\" is not a duration such as 50ms or 2s");
        }
        return {};
      },
      "DURATION");
}

class Flags {
 public:
  explicit Flags(CLI::App& app) : app_(app) {}

  template <typename T>
  CLI::Option* Value(const std::string& name, T& value, const std::string& help) {
    return app_.add_option(BothSpellings(name), value, help)->capture_default_str();
  }
  void Time(const std::string& name, absl::Duration& value, const std::string& help) {
    app_.add_option_function<std::string>(
            BothSpellings(name), [&value](const std::string& text) { absl::ParseDuration(text, &value); },
            help)
        ->check(Duration())
        ->default_str(absl::FormatDuration(value));
  }
  void Switch(const std::string& name, bool& value, const std::string& help) {
    app_.add_flag(BothSpellings(name), value, help)->default_str(value ? "true" : "false");
    switches_.insert(name);
    switches_.insert(CamelCase(name));
  }
  // Accepted, so that llm-d's manifests run as they are.
  void Ignored(const std::string& name, const std::string& why) {
    app_.add_option_function<std::string>(
            BothSpellings(name),
            [this, name, why](const std::string&) {
              notes.push_back(absl::StrCat("--", name, " has no effect: ", why));
            },
            "No effect: " + why)
        ->group("Accepted for llm-d's manifests");
  }
  void IgnoredSwitch(const std::string& name, const std::string& why) {
    app_.add_flag_function(
            BothSpellings(name),
            [this, name, why](std::int64_t) {
              notes.push_back(absl::StrCat("--", name, " has no effect: ", why));
            },
            "No effect: " + why)
        ->group("Accepted for llm-d's manifests");
    switches_.insert(name);
    switches_.insert(CamelCase(name));
  }

  // As Go's flag package reads them: one dash or two, and for switches also "--name false".
  std::vector<std::string> Normalize(const std::vector<std::string>& arguments) const {
    std::vector<std::string> result;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      std::string argument = arguments[i];
      if (argument.size() > 2 && argument[0] == '-' && argument[1] != '-') argument.insert(0, 1, '-');
      if (argument.starts_with("--") && switches_.contains(argument.substr(2)) && i + 1 < arguments.size() &&
          (arguments[i + 1] == "true" || arguments[i + 1] == "false")) {
        argument += "=" + arguments[++i];
      }
      result.push_back(std::move(argument));
    }
    std::reverse(result.begin(), result.end());  // as CLI11 wants a vector
    return result;
  }

  std::vector<std::string> notes;

 private:
  CLI::App& app_;
  std::set<std::string> switches_;
};

std::string CheckTogether(const HostOptions& o) {
  if (!o.config_file.empty() && !o.config_text.empty()) {
    return "--config-file and --config-text exclude each other";
  }
  if (o.endpoints_file.empty() && o.pool_name.empty() && o.endpoint_selector.empty()) {
    return "no endpoints: give --endpoints-file, --pool-name or --endpoint-selector";
  }
  if (!o.endpoints_file.empty() && !o.endpoint_selector.empty()) {
    return "--endpoints-file and --endpoint-selector exclude each other";
  }
  if (!o.pool_name.empty() && !o.endpoint_selector.empty()) {
    return "--pool-name and --endpoint-selector exclude each other";
  }
  if (!o.endpoint_selector.empty() && o.endpoint_target_ports.empty()) {
    return "--endpoint-selector needs --endpoint-target-ports (1 to 8 ports)";
  }
  if (o.endpoint_target_ports.size() > 8) {
    return absl::StrCat("--endpoint-target-ports has ", o.endpoint_target_ports.size(),
                        " ports, expected 1 to 8");
  }
  if (o.refresh_metrics_interval < absl::Milliseconds(50)) {
    return absl::StrCat("--refresh-metrics-interval is ", absl::FormatDuration(o.refresh_metrics_interval),
                        ", expected 50ms or more");
  }
  return {};
}

}  // namespace

ParsedOptions ParseOptions(const std::vector<std::string>& arguments) {
  ParsedOptions parsed;
  HostOptions& o = parsed.options;
  CLI::App app(
      "Endpoint picker for Envoy (ext_proc): sends each LLM request to the worker that holds its prefix.\n"
      "Flags are llm-d's, as --kebab-case or --camelCase, with one dash or two.");
  app.get_formatter()->column_width(44);
  Flags flags(app);

  const CLI::Range port(0, 65535), optional_port(-1, 65535);
  flags.Value("bind-address", o.bind_address, "Address of all ports");
  flags.Value("grpc-port", o.grpc_port, "ext_proc; 0: any free port, as for all ports")->check(port);
  flags.Value("grpc-health-port", o.health_port, "gRPC health service, plaintext")->check(port);
  flags.Value("metrics-port", o.metrics_port, "Prometheus, /metrics")->check(port);
  flags.Value("status-port", o.status_port, "Status page; -1: off")->check(optional_port);
  flags.Value("proxy-port", o.proxy_port, "Standalone HTTP proxy; -1: off")->check(optional_port);

  flags.Switch("secure-serving", o.secure_serving, "TLS on the ext_proc port");
  flags.Value("cert-path", o.cert_path, "Folder with tls.crt and tls.key; without: self-signed");
  flags.Switch("enable-cert-reload", o.cert_reload, "Follow changes of the certificate files");
  flags.Switch("health-checking", o.health_checking, "Health service on the ext_proc port too");
  flags.Value("grpc-max-recv-msg-size", o.max_receive_bytes, "Bytes; 0: 4 MiB")
      ->check(CLI::NonNegativeNumber);
  flags.Value("grpc-max-send-msg-size", o.max_send_bytes, "Bytes; 0: no limit")
      ->check(CLI::NonNegativeNumber);
  flags.Value("threads", o.threads, "Of decisions; 0: one for each processor")->check(CLI::Range(0, 1024));
  flags.Time("drain-timeout", o.drain_timeout, "Time to go on serving after SIGTERM, not ready");

  flags.Value("config-file", o.config_file, "EndpointPickerConfig (YAML); reloaded on SIGHUP");
  flags.Value("config-text", o.config_text, "The same as text");
  flags.Switch("allow-experimental-plugins", o.allow_experimental, "Accept plugin types that are alpha");

  flags.Value("endpoints-file", o.endpoints_file, "Endpoints (YAML or JSON), followed while it changes");
  flags.Value("pool-name", o.pool_name,
              "InferencePool to serve; with --endpoints-file only its name, in metrics");
  flags.Value("pool-namespace", o.pool_namespace,
              "Its namespace; without: POD_NAMESPACE, the service account's, or default");
  flags.Value("pool-group", o.pool_group, "Its API group");
  flags.Value("endpoint-selector", o.endpoint_selector, "Labels of pods (a=b,c=d), instead of a pool");
  flags.Value("endpoint-target-ports", o.endpoint_target_ports, "Their ports, with --endpoint-selector")
      ->delimiter(',')
      ->check(CLI::Range(1, 65535));
  flags.Value("kube-api-url", o.kube_api_url, "Kubernetes API; without: in-cluster");
  flags.Value("kube-token-file", o.kube_token_file, "Bearer token; in-cluster: the service account's");
  flags.Value("kube-ca-file", o.kube_ca_file, "CA of the API; in-cluster: the service account's");

  flags.Time("refresh-metrics-interval", o.refresh_metrics_interval, "Of the engines' metrics");
  flags.Time("metrics-staleness-threshold", o.metrics_staleness_threshold,
             "Age at which a value counts as stale");
  flags.Value("model-server-metrics-path", o.model_server_metrics_path,
              "Without: as the configuration says, or /metrics");
  flags.Value("model-server-metrics-port", o.model_server_metrics_port, "0: the endpoint's")->check(port);
  flags.Value("total-queued-requests-metric", o.waiting_metric,
              "Name of the engines' metric, instead of the known ones");
  flags.Value("kv-cache-usage-percentage-metric", o.kv_usage_metric, "The same");
  flags.Value("lora-info-metric", o.lora_metric, "The same");

  flags.Value("metric-names", o.metric_names, "Generations of metric names")
      ->delimiter(',')
      ->check(CLI::IsMember({"current", "objective", "v0.2"}));
  flags.Switch("demo-metrics", o.demo_metrics, "Also the epp_* metrics that the demo's dashboards read");
  flags.Value("metrics-token-file", o.metrics_token_file, "Bearer token that /metrics asks for");
  flags.Switch("enable-grpc-stream-metrics", o.grpc_stream_metrics, "Metrics of ext_proc streams");
  flags.Value("log-format", o.log_format, "Of log lines")->check(CLI::IsMember({"text", "json"}));
  app.add_option_function<std::string>(
         "--zap-encoder",
         [&o](const std::string& encoder) { o.log_format = encoder == "json" ? "json" : "text"; },
         "json or console, as --log-format")
      ->check(CLI::IsMember({"json", "console"}));
  app.add_option("-v,--v", o.verbosity, "Verbosity of the log, 0 to 5")
      ->capture_default_str()
      ->check(CLI::Range(0, 10));
  flags.Value("decision-log", o.decision_log,
              "File for decisions, to be replayed by trace_replay --decisions");

  flags.Switch("emit-endpoint-scores", o.emit_scores, "Scores in the dynamic metadata");
  flags.Switch("disable-endpoint-subset-filter", o.ignore_subset, "Ignore the data plane's subset hint");
  flags.Value("max-body-bytes", o.max_body_bytes, "Of a request; longer ones get 413")
      ->check(CLI::Range(std::uint64_t{1024}, std::uint64_t{4} << 30));
  flags.Switch("proxy-pd", o.proxy_pd,
               "The standalone proxy runs the prefill stage itself, as a sidecar would");

  flags.Value("tokenizer", o.tokenizer, "estimate: from the text's bytes; engine: ask the workers")
      ->check(CLI::IsMember({"estimate", "engine"}));
  flags.Value("tokenizer-url", o.tokenizer_url, "Server to ask instead of the workers, http://host:port");
  flags.Value("seed", o.seed, "Of ties and request ids; 0: from the system");

  flags.IgnoredSwitch("metrics-endpoint-auth", "see --metrics-token-file");
  flags.IgnoredSwitch("enable-pprof", "this is no Go program");
  flags.IgnoredSwitch("tracing", "no traces are exported");
  flags.IgnoredSwitch("model-server-metrics-https-insecure-skip-verify", "metrics are read over http");
  flags.Ignored("refresh-prometheus-metrics-interval", "pool metrics are computed when they are read");
  flags.Ignored("pool-api-version", "both versions are understood");
  flags.Ignored("destination-endpoint-hint-key", "the names are fixed");
  app.add_option(
         "--destinationEndpointHintMetadataNamespace,--DestinationEndpointHintMetadataNamespace",
         [](const CLI::results_t&) { return true; }, "No effect: the names are fixed")
      ->group("Accepted for llm-d's manifests");
  bool leader_election = false;
  flags.Switch("ha-enable-leader-election", leader_election,
               "Not supported: replicas are active side by side");

  try {
    app.parse(flags.Normalize(arguments));
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    parsed.run = false;
    parsed.exit_code = app.exit(error, out, err) == 0 ? 0 : 2;
    parsed.text = out.str() + err.str();
    return parsed;
  }
  parsed.notes = flags.notes;
  std::string wrong = CheckTogether(o);
  if (leader_election) {
    wrong =
        "--ha-enable-leader-election is not supported: run replicas side by side, each with its own index";
  }
  if (!wrong.empty()) {
    parsed.run = false;
    parsed.exit_code = 2;
    parsed.text = wrong + "\nRun with --help for more information.\n";
  }
  return parsed;
}

}  // namespace llmd::host
