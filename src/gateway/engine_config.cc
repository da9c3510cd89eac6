#include "llmd/gateway/engine_config.h"

#include <algorithm>
#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

constexpr std::string_view kSpecSyntax = "name or name{label=value,...}";

std::string_view Strip(std::string_view text) {
  const absl::string_view stripped = absl::StripAsciiWhitespace(ToAbsl(text));
  return {stripped.data(), stripped.size()};
}

bool IsName(std::string_view text, bool colons) {
  if (text.empty() || absl::ascii_isdigit(text.front())) return false;
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return absl::ascii_isalnum(c) || c == '_' || (colons && c == ':'); });
}

// Takes a label's value, in quotes or up to ',' or the end. False when a quote is not closed.
bool TakeValue(std::string_view& rest, std::string& out) {
  rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
  if (!rest.starts_with('"')) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    out = Strip(rest.substr(0, end));
    rest.remove_prefix(end);
    return out.find('"') == std::string::npos;
  }
  for (std::size_t i = 1; i < rest.size(); ++i) {
    char c = rest[i];
    if (c == '"') {
      rest.remove_prefix(i + 1);
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
      return true;
    }
    if (c == '\\') {
      if (++i == rest.size()) return false;
      c = rest[i] == 'n' ? '\n' : rest[i];
    }
    out.push_back(c);
  }
  return false;
}

bool ParseSpec(std::string_view text, MetricSpec& spec) {
  text = Strip(text);
  const std::size_t brace = std::min(text.find('{'), text.size());
  spec.name = Strip(text.substr(0, brace));
  if (!IsName(spec.name, true)) return false;
  if (brace == text.size()) return true;
  if (!text.ends_with('}')) return false;
  std::string_view rest = Strip(text.substr(brace + 1, text.size() - brace - 2));
  while (!rest.empty()) {
    const std::size_t equals = rest.find('=');
    if (equals == std::string_view::npos) return false;
    const std::string_view name = Strip(rest.substr(0, equals));
    rest.remove_prefix(equals + 1);
    std::string value;
    if (!IsName(name, false) || !TakeValue(rest, value)) return false;
    spec.labels.emplace_back(name, std::move(value));
    if (rest.empty()) break;
    if (!rest.starts_with(',')) return false;
    rest = Strip(rest.substr(1));
  }
  return true;
}

void ReadSpec(sched::ParameterReader& read, std::string_view field, MetricSpecs& out) {
  std::string text;
  read.Optional(field, &text);
  if (Strip(text).empty()) return;
  MetricSpec spec;
  if (ParseSpec(text, spec)) {
    out = {std::move(spec)};
  } else {
    read.Reject(field, text, kSpecSyntax);
  }
}

void ReadCustom(sched::ParameterReader& read, std::vector<CustomMetric>& out) {
  const sched::Value::List* list = read.OptionalList("customMetrics");
  if (list == nullptr) return;
  for (std::size_t i = 0; i < list->size(); ++i) {
    CustomMetric custom;
    std::string spec;
    sched::ParameterReader item = read.NestedItem("customMetrics", i, (*list)[i]);
    item.Optional("attributeKey", &custom.attribute_key);
    item.Optional("metricSpec", &spec);
    if (custom.attribute_key.empty()) item.Reject("attributeKey", "empty", "a name");
    if (!ParseSpec(spec, custom.metric))
      item.Reject("metricSpec", spec.empty() ? "empty" : spec, kSpecSyntax);
    if (absl::Status status = item.Finish(); !status.ok()) {
      read.Reject("customMetrics", absl::StrCat("wrong: ", status.message()), "a list of metrics");
      return;
    }
    out.push_back(std::move(custom));
  }
}

}  // namespace

absl::StatusOr<MetricSpec> MetricSpec::Parse(std::string_view text) {
  MetricSpec spec;
  if (ParseSpec(text, spec)) return spec;
  return absl::InvalidArgumentError(
      absl::StrCat("\"", ToAbsl(text), "\" is no metric, expected ", ToAbsl(kSpecSyntax)));
}

absl::StatusOr<EngineConfig> EngineConfig::FromValue(std::string_view path, const sched::Value& value) {
  EngineConfig engine;
  sched::ParameterReader read = sched::ParameterReader::At(path, value);
  read.Optional("name", &engine.name);
  ReadSpec(read, "queuedRequestsSpec", engine.queued_requests);
  ReadSpec(read, "runningRequestsSpec", engine.running_requests);
  ReadSpec(read, "kvUsageSpec", engine.kv_usage);
  ReadSpec(read, "loraSpec", engine.lora);
  ReadSpec(read, "cacheInfoSpec", engine.cache_info);
  std::string label;
  read.Optional("cacheBlockSizeLabelName", &label);
  if (!label.empty()) engine.cache_block_size_label = label;
  label.clear();
  read.Optional("cacheNumBlocksLabelName", &label);
  if (!label.empty()) engine.cache_num_blocks_label = label;
  ReadSpec(read, "cacheBlockSizeSpec", engine.cache_block_size);
  ReadSpec(read, "cacheNumBlocksSpec", engine.cache_num_blocks);
  ReadCustom(read, engine.custom);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return engine;
}

std::vector<EngineConfig> BuiltinEngines() {
  const auto triton_requests = [](const char* type) {
    return MetricSpecs{{"nv_trt_llm_request_metrics", {{"request_type", type}}}};
  };
  const auto triton_blocks = [](const char* type) {
    return MetricSpecs{{"nv_trt_llm_kv_cache_block_metrics", {{"kv_cache_block_type", type}}}};
  };
  return {
      {.name = "vllm",
       .queued_requests = {{"vllm:num_requests_waiting"}},
       .running_requests = {{"vllm:num_requests_running"}},
       .kv_usage = {{"vllm:kv_cache_usage_perc"}, {"vllm:gpu_cache_usage_perc"}},  // the second until 2025
       .lora = {{"vllm:lora_requests_info"}},
       .cache_info = {{"vllm:cache_config_info"}}},
      {.name = "sglang",
       .queued_requests = {{"sglang:num_queue_reqs"}},
       .running_requests = {{"sglang:num_running_reqs"}},
       .kv_usage = {{"sglang:token_usage"}},
       .cache_info = {{"sglang:cache_config_info"}},
       .cache_block_size_label = "page_size",
       .cache_num_blocks_label = "num_pages",
       .cache_block_size = {{"sglang:page_size"}},  // newer versions have them as values
       .cache_num_blocks = {{"sglang:num_pages"}}},
      {.name = "trtllm-serve",
       .queued_requests = {{"trtllm_num_requests_waiting"}},
       .running_requests = {{"trtllm_num_requests_running"}},
       .kv_usage = {{"trtllm_kv_cache_utilization"}},
       .cache_block_size = {{"trtllm_kv_cache_tokens_per_block"}},
       .cache_num_blocks = {{"trtllm_kv_cache_max_blocks"}}},
      {.name = "triton-tensorrt-llm",
       .queued_requests = triton_requests("waiting"),
       .running_requests = triton_requests("scheduled"),
       .kv_usage = triton_blocks("fraction"),
       .cache_block_size = triton_blocks("tokens_per"),
       .cache_num_blocks = triton_blocks("max")},
      {.name = "triton",
       .queued_requests = {{"nv_inference_pending_request_count"}},
       .running_requests = {{"nv_inference_exec_count"}}},
  };
}

absl::StatusOr<EngineCatalog> EngineCatalog::FromParameters(const sched::Value& parameters) {
  EngineCatalogOptions options;
  sched::ParameterReader read("core-metrics-extractor", parameters);
  std::string label_key, default_engine;
  read.Optional("engineLabelKey", &label_key);
  read.Optional("defaultEngine", &default_engine);
  if (!label_key.empty()) options.label_key = std::move(label_key);
  if (!default_engine.empty()) options.default_engine = std::move(default_engine);
  const sched::Value::List* list = read.OptionalList("engineConfigs");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    auto engine =
        EngineConfig::FromValue(absl::StrCat("core-metrics-extractor: engineConfigs[", i, "]"), (*list)[i]);
    if (!engine.ok()) return engine.status();
    options.engines.push_back(*std::move(engine));
  }
  return Create(std::move(options));
}

absl::StatusOr<EngineCatalog> EngineCatalog::Create(EngineCatalogOptions options) {
  for (std::size_t i = 0; i < options.engines.size(); ++i) {
    const std::string& name = options.engines[i].name;
    if (name.empty() || name == "default") {
      return absl::InvalidArgumentError(absl::StrCat("engineConfigs[", i, "].name is \"", name,
                                                     "\", expected a name other than \"default\""));
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (options.engines[j].name == name) {
        return absl::InvalidArgumentError(
            absl::StrCat("engineConfigs[", i, "].name is \"", name, "\" again, expected distinct names"));
      }
    }
  }
  EngineCatalog catalog(std::move(options));
  for (EngineConfig& engine : BuiltinEngines()) {
    if (catalog.Find(engine.name) == nullptr) catalog.options_.engines.push_back(std::move(engine));
  }
  if (catalog.Find(catalog.options_.default_engine) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("defaultEngine is \"", catalog.options_.default_engine,
                                                   "\", expected the name of an engine"));
  }
  return catalog;
}

const EngineConfig* EngineCatalog::Find(std::string_view name) const {
  for (const EngineConfig& engine : options_.engines) {
    if (engine.name == name) return &engine;
  }
  return nullptr;
}

const EngineConfig& EngineCatalog::For(const sched::Labels& labels) const {
  for (const std::string& key : {options_.label_key, options_.legacy_label_key}) {
    const auto it = labels.find(key);
    if (it == labels.end() || it->second.empty()) continue;
    if (const EngineConfig* engine = Find(it->second)) return *engine;
    break;
  }
  return *Find(options_.default_engine);
}

}  // namespace llmd::gateway
