// Which series of an engine's metrics page mean what: llm-d's engineConfigs as plain values.
//
// An endpoint's engine is named by a label of its pod; engines that the library knows are vllm, sglang,
// trtllm-serve, triton-tensorrt-llm and triton (spec: scheduling.md 4.2). Plain values, no threads.
#ifndef LLMD_GATEWAY_ENGINE_CONFIG_H_
#define LLMD_GATEWAY_ENGINE_CONFIG_H_

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/parameters.h"

namespace llmd::gateway {

// A metric's name and the labels that a series must have, each with exactly this value.
struct MetricSpec {
  std::string name = {};
  std::vector<std::pair<std::string, std::string>> labels = {};

  // `name`, or `name{label=value,...}` with quotes around values or not. InvalidArgument for anything else,
  // an empty text included.
  static absl::StatusOr<MetricSpec> Parse(std::string_view text);
};

// Names of one metric in order of preference; the first that has a series counts. Empty: not read.
using MetricSpecs = std::vector<MetricSpec>;

struct CustomMetric {
  std::string attribute_key = {};
  MetricSpec metric = {};
};

struct EngineConfig {
  std::string name = {};
  MetricSpecs queued_requests = {};
  MetricSpecs running_requests = {};
  MetricSpecs kv_usage = {};
  MetricSpecs lora = {};
  // The cache's geometry: two labels of one series, or the values of two series. A value goes before a label,
  // and one of the two ways is enough.
  MetricSpecs cache_info = {};
  std::string cache_block_size_label = "block_size";
  std::string cache_num_blocks_label = "num_gpu_blocks";
  MetricSpecs cache_block_size = {};
  MetricSpecs cache_num_blocks = {};
  std::vector<CustomMetric> custom = {};

  // One entry of `engineConfigs`, named as by ParameterReader::NestedItem.
  static absl::StatusOr<EngineConfig> FromValue(std::string_view path, const sched::Value& value);
};

std::vector<EngineConfig> BuiltinEngines();

struct EngineCatalogOptions {
  std::vector<EngineConfig> engines = {};  // before the built-in ones, which they replace by name
  std::string default_engine = "vllm";
  std::string label_key = "llm-d.ai/engine-type";
  std::string legacy_label_key = "inference.networking.k8s.io/engine-type";
};

// The engines of a deployment, by the label of an endpoint.
class EngineCatalog {
 public:
  // From the parameters of core-metrics-extractor: engineLabelKey, defaultEngine, engineConfigs.
  static absl::StatusOr<EngineCatalog> FromParameters(const sched::Value& parameters);
  // InvalidArgument for a repeated name, the name "default" or none, and an unknown default engine.
  static absl::StatusOr<EngineCatalog> Create(EngineCatalogOptions options = {});

  std::span<const EngineConfig> engines() const { return options_.engines; }
  // The engine that the labels name; the default engine when they name none or one that is not known.
  const EngineConfig& For(const sched::Labels& labels) const;

 private:
  explicit EngineCatalog(EngineCatalogOptions options) : options_(std::move(options)) {}
  const EngineConfig* Find(std::string_view name) const;

  EngineCatalogOptions options_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_ENGINE_CONFIG_H_
