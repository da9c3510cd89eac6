// Parsers, data sources, extractors, discoveries, tokenizers: the host carries them out, here their
// parameters are checked. (spec: scheduling.md 2.1, 2.8)
#include "src/sched/host_plugins.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

using Kind = HostPlugin::Kind;
using Made = absl::StatusOr<std::unique_ptr<Plugin>>;

std::string Quoted(std::string_view text) { return absl::StrCat("\"", ToAbsl(text), "\""); }

// A string that must be given.
std::string Required(ParameterReader& read, std::string_view field, std::string_view what) {
  std::string text;
  read.Optional(field, &text);
  if (text.empty()) read.Reject(field, "missing", what);
  return text;
}

void OneOf(ParameterReader& read, std::string_view field, std::initializer_list<std::string_view> values) {
  std::string text;
  read.Optional(field, &text);
  if (text.empty()) return;
  std::string expected;
  for (const std::string_view value : values) {
    if (text == value) return;
    absl::StrAppend(&expected, expected.empty() ? "" : " or ", ToAbsl(value));
  }
  read.Reject(field, Quoted(text), expected);
}

void PositiveDuration(ParameterReader& read, std::string_view field) {
  absl::Duration duration = absl::Seconds(1);
  read.Optional(field, &duration);
  if (duration <= absl::ZeroDuration())
    read.Reject(field, Quoted(absl::FormatDuration(duration)), "more than 0");
}

void HttpScheme(ParameterReader& read) { OneOf(read, "scheme", {"http", "https"}); }

void UrlPath(ParameterReader& read) {
  std::string path = "/";
  read.Optional("path", &path);
  if (!path.starts_with('/')) read.Reject("path", Quoted(path), "a path that begins with /");
}

Made FinishAs(PluginBuilder& builder, ParameterReader& read, Kind kind) {
  if (absl::Status s = read.Finish(); !s.ok()) return s;
  return MakeHostPlugin(builder, kind);
}

template <Kind kKind>
Made MakeWithoutParameters(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  return FinishAs(builder, read, kKind);
}

// metrics-data-source, models-data-source.
Made MakeHttpSource(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  HttpScheme(read);
  UrlPath(read);
  bool insecure = true;
  std::string authority;
  std::string certificate;
  std::string key;
  read.Optional("insecureSkipVerify", &insecure);
  read.Optional("caCertPath", &authority);
  read.Optional("clientCertPath", &certificate);
  read.Optional("clientKeyPath", &key);
  if (certificate.empty() != key.empty()) {
    const bool no_key = key.empty();
    read.Reject(no_key ? "clientKeyPath" : "clientCertPath", "missing",
                no_key ? "the key of clientCertPath" : "the certificate of clientKeyPath");
  }
  PositiveDuration(read, "interval");
  return FinishAs(builder, read, Kind::kDataSource);
}

Made MakeDcgmSource(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  HttpScheme(read);
  UrlPath(read);
  std::int64_t port = 9400;
  bool use_node_address = false;
  read.Optional("port", &port);
  read.Optional("useNodeAddress", &use_node_address);
  if (port < 1 || port > 65535) read.Reject("port", absl::StrCat(port), "1 to 65535");
  PositiveDuration(read, "interval");
  return FinishAs(builder, read, Kind::kDataSource);
}

// Objects of one kind, as Kubernetes names it.
Made MakeObjectSource(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string text;
  for (const std::string_view field : {"group", "version", "kind"}) read.Optional(field, &text);
  return FinishAs(builder, read, Kind::kDataSource);
}

Made MakeFileDiscovery(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  Required(read, "path", "the path of a file of endpoints");
  bool watch = false;
  read.Optional("watchFile", &watch);
  return FinishAs(builder, read, Kind::kDiscovery);
}

Made MakeTokenProducer(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string text;
  read.Optional("modelName", &text);
  ParameterReader vllm = read.Nested("vllm");
  std::string url = "http://localhost:8000";
  vllm.Optional("url", &url);
  if (!absl::StartsWith(url, "http://") && !absl::StartsWith(url, "https://")) {
    vllm.Reject("url", Quoted(url), "a URL of http or https");
  }
  PositiveDuration(vllm, "timeout");
  PositiveDuration(vllm, "mmTimeout");
  if (absl::Status s = vllm.Finish(); !s.ok()) return s;
  // What these two hold is for the host to check.
  const ParameterReader estimate = read.Nested("estimate");
  if (!estimate.Complaint().ok()) return estimate.Complaint();
  const ParameterReader socket = read.Nested("udsTokenizerConfig");
  if (!socket.Complaint().ok()) return socket.Complaint();
  if (read.Raw("udsTokenizerConfig") != nullptr) {
    builder.Warn(absl::StrCat("plugin \"", builder.name(), "\": udsTokenizerConfig is deprecated, use vllm"));
  }
  if (read.Raw("vllm") != nullptr && read.Raw("estimate") != nullptr) {
    read.Reject("estimate", "given beside vllm", "one of the two");
  }
  return FinishAs(builder, read, Kind::kOther);
}

void WarnHostsPart(PluginBuilder& builder) {
  builder.Warn(absl::StrCat("plugin \"", builder.name(), "\" of type ", builder.type(),
                            " does nothing unless the host carries it out"));
}

// Reports a number computed from the usage of a response.
Made MakeAttributeReporter(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  const Value::List* attributes = read.OptionalList("attributes");
  if (read.Complaint().ok() && (attributes == nullptr || attributes->size() != 1)) {
    read.Reject("attributes", absl::StrCat("a list of ", attributes == nullptr ? 0 : attributes->size()),
                "exactly 1 attribute");
  }
  if (!read.Complaint().ok()) return read.Complaint();
  ParameterReader attribute = read.NestedItem("attributes", 0, attributes->front());
  ParameterReader key = attribute.Nested("key");
  std::string text;
  key.Optional("namespace", &text);
  Required(key, "name", "the attribute's name");
  Required(attribute, "expression", "a CEL expression over usage");
  attribute.Optional("condition", &text);
  if (absl::Status s = key.Finish(); !s.ok()) return s;
  if (absl::Status s = attribute.Finish(); !s.ok()) return s;
  WarnHostsPart(builder);
  return FinishAs(builder, read, Kind::kOther);
}

Made MakeRolloutScreener(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string text;
  read.Optional("scope", &text);
  const Value::List* selectors = read.OptionalList("headerSelectors");
  ParameterReader gating = read.Nested("revisionGating");
  OneOf(gating, "mode", {"sum", "max-role", "disabled"});
  gating.Optional("revisionLabelKey", &text);
  gating.Optional("roleLabelKey", &text);
  ParameterReader roles = gating.Nested("requireRoles");
  std::vector<std::string> values;
  roles.Optional("values", &values);
  if (!read.Complaint().ok()) return read.Complaint();
  for (std::size_t i = 0; selectors != nullptr && i < selectors->size(); ++i) {
    ParameterReader selector = read.NestedItem("headerSelectors", i, (*selectors)[i]);
    if (!selector.Complaint().ok()) return selector.Complaint();
  }
  if (absl::Status s = roles.Finish(); !s.ok()) return s;
  if (absl::Status s = gating.Finish(); !s.ok()) return s;
  WarnHostsPart(builder);
  return FinishAs(builder, read, Kind::kOther);
}

}  // namespace

void RegisterHostPlugins(PluginRegistry& registry) {
  for (const std::string_view parser :
       {std::string_view("openai-parser"), std::string_view("anthropic-parser"),
        std::string_view("vllmhttp-parser"), std::string_view("sglanghttp-parser"),
        std::string_view("vllmgrpc-parser"), std::string_view("vertexai-parser"), kPassthroughParserType}) {
    MustRegister(registry, parser, MakeWithoutParameters<Kind::kParser>);
  }
  MustRegister(registry, kMetricsSourceType, MakeHttpSource);
  MustRegister(registry, kMetricsExtractorType, MakeMetricsExtractor);
  MustRegister(registry, "models-data-source", MakeHttpSource);
  MustRegister(registry, "models-data-extractor", MakeWithoutParameters<Kind::kExtractor>);
  MustRegister(registry, "dcgm-data-source", MakeDcgmSource, Stability::kExperimental);
  MustRegister(registry, "dcgm-extractor", MakeWithoutParameters<Kind::kExtractor>, Stability::kExperimental);
  MustRegister(registry, "endpoint-notification-source", MakeWithoutParameters<Kind::kDataSource>);
  MustRegister(registry, "k8s-notification-source", MakeObjectSource);
  MustRegister(registry, "file-discovery", MakeFileDiscovery);
  MustRegister(registry, "multicluster-file-discovery", MakeFileDiscovery, Stability::kExperimental);
  MustRegister(registry, "multicluster-metrics-data-source", MakeHttpSource, Stability::kExperimental);
  MustRegister(registry, "multicluster-metrics-extractor", MakeWithoutParameters<Kind::kExtractor>,
               Stability::kExperimental);
  MustRegister(registry, "token-producer", MakeTokenProducer);
  MustRegister(registry, "tokenizer", MakeTokenProducer, Stability::kDeprecated, "token-producer");
  MustRegister(registry, "request-attribute-reporter", MakeAttributeReporter);
  MustRegister(registry, "disaggregatedset-rollout-screener", MakeRolloutScreener, Stability::kExperimental);
}

// Endpoints are whole clusters then, with averages as their metrics; the plugins do not mind.
void RegisterMulticlusterAliases(PluginRegistry& registry) {
  for (const std::string_view plain :
       {std::string_view("session-affinity-filter"), std::string_view("queue-scorer"),
        std::string_view("kv-cache-utilization-scorer"), std::string_view("prefix-cache-scorer"),
        kApproxProducerType}) {
    const PluginRegistry::Entry* entry = registry.Find(plain);
    if (entry == nullptr) continue;
    MustRegister(registry, absl::StrCat("multicluster-", ToAbsl(plain)), entry->factory,
                 Stability::kExperimental);
  }
}

}  // namespace llmd::sched
