// core-metrics-extractor: which metrics of which engine feed an endpoint. The host extracts; here the
// parameters are checked. (spec: scheduling.md 4.2)
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/host_plugins.h"

namespace llmd::sched {
namespace {

constexpr std::string_view kBuiltinEngines[] = {"vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm",
                                                "triton"};
constexpr std::string_view kReservedEngine = "default";

constexpr std::string_view kSpecExpected = "a metric such as name or name{label=value}";

bool IsNameCharacter(char c, bool first, bool colon) {
  const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colon && c == ':');
  return letter || (!first && c >= '0' && c <= '9');
}

bool IsName(std::string_view name, bool colon) {
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (!IsNameCharacter(name[i], i == 0, colon)) return false;
  }
  return !name.empty();
}

std::string_view Trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(' ');
  return begin == std::string_view::npos ? "" : text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

// label=value, where the value may be quoted and must be something.
bool IsLabel(std::string_view label) {
  const std::size_t equals = label.find('=');
  if (equals == std::string_view::npos || !IsName(Trim(label.substr(0, equals)), false)) return false;
  std::string_view value = Trim(label.substr(equals + 1));
  if (value.starts_with('"')) {
    if (value.size() < 2 || !value.ends_with('"')) return false;
    value = value.substr(1, value.size() - 2);
  }
  return value.find_first_of("\"{}") == std::string_view::npos;
}

// `name{label=value,...}`
bool IsMetricSpec(std::string_view spec) {
  spec = Trim(spec);
  const std::size_t brace = spec.find('{');
  if (!IsName(Trim(spec.substr(0, brace)), true)) return false;
  if (brace == std::string_view::npos) return true;
  if (!spec.ends_with('}')) return false;
  std::string_view labels = Trim(spec.substr(brace + 1, spec.size() - brace - 2));
  while (!labels.empty()) {
    const std::size_t comma = std::min(labels.find(','), labels.size());
    if (!IsLabel(labels.substr(0, comma))) return false;
    labels.remove_prefix(std::min(comma + 1, labels.size()));
  }
  return true;
}

// An empty one disables the metric.
void CheckSpec(ParameterReader& read, std::string_view field) {
  std::string spec;
  read.Optional(field, &spec);
  if (!spec.empty() && !IsMetricSpec(spec)) read.Reject(field, absl::StrCat("\"", spec, "\""), kSpecExpected);
}

absl::Status CheckCustomMetrics(ParameterReader& engine) {
  const Value::List* list = engine.OptionalList("customMetrics");
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    ParameterReader read = engine.NestedItem("customMetrics", i, (*list)[i]);
    std::string key;
    read.Optional("attributeKey", &key);
    if (key.empty()) read.Reject("attributeKey", "missing", "the attribute's name");
    CheckSpec(read, "metricSpec");
    if (read.Raw("metricSpec") == nullptr) read.Reject("metricSpec", "missing", kSpecExpected);
    if (absl::Status s = read.Finish(); !s.ok()) return s;
  }
  return engine.Complaint();
}

absl::Status CheckEngine(ParameterReader& read, std::vector<std::string>& names) {
  std::string name;
  read.Optional("name", &name);
  if (name.empty()) read.Reject("name", "missing", "the engine's name");
  if (name == kReservedEngine) read.Reject("name", "\"default\"", "another name, for this one is reserved");
  if (std::find(names.begin(), names.end(), name) != names.end()) {
    read.Reject("name", absl::StrCat("\"", name, "\""), "each engine once");
  }
  names.push_back(std::move(name));
  for (const std::string_view spec : {"queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec", "loraSpec",
                                      "cacheInfoSpec", "cacheBlockSizeSpec", "cacheNumBlocksSpec"}) {
    CheckSpec(read, spec);
  }
  std::string label;
  read.Optional("cacheBlockSizeLabelName", &label);
  read.Optional("cacheNumBlocksLabelName", &label);
  if (!read.Complaint().ok()) return read.Complaint();
  if (absl::Status s = CheckCustomMetrics(read); !s.ok()) return s;
  return read.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Plugin>> MakeMetricsExtractor(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string label = "llm-d.ai/engine-type";
  std::string default_engine = "vllm";
  read.Optional("engineLabelKey", &label);
  read.Optional("defaultEngine", &default_engine);
  std::vector<std::string> names;
  const Value::List* engines = read.OptionalList("engineConfigs");
  if (!read.Complaint().ok()) return read.Complaint();
  for (std::size_t i = 0; engines != nullptr && i < engines->size(); ++i) {
    ParameterReader engine = read.NestedItem("engineConfigs", i, (*engines)[i]);
    if (absl::Status s = CheckEngine(engine, names); !s.ok()) return s;
  }
  names.insert(names.end(), std::begin(kBuiltinEngines), std::end(kBuiltinEngines));
  if (!default_engine.empty() && std::find(names.begin(), names.end(), default_engine) == names.end()) {
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    std::string known;
    for (const std::string& name : names) absl::StrAppend(&known, known.empty() ? "one of " : ", ", name);
    read.Reject("defaultEngine", absl::StrCat("\"", default_engine, "\""), known);
  }
  if (absl::Status s = read.Finish(); !s.ok()) return s;
  return MakeHostPlugin(builder, HostPlugin::Kind::kExtractor);
}

}  // namespace llmd::sched
