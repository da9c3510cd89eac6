// Any page: no crash, every view inside the page, limits hold, and the scheduler gets no number without
// meaning.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/gateway/engine_config.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/gateway/prometheus_text.h"

namespace {

using namespace llmd::gateway;

void Require(bool condition) {
  if (!condition) std::abort();
}

void Inside(std::string_view page, std::string_view part) {
  Require(part.empty() ||
          (part.data() >= page.data() && part.data() + part.size() <= page.data() + page.size()));
}

void Walk(std::string_view page, const PrometheusLimits& limits) {
  PrometheusReader reader(limits);
  if (!reader.Start(page).ok()) {
    Require(page.size() > limits.max_bytes && !reader.Next());
    return;
  }
  std::size_t samples = 0;
  while (reader.Next()) {
    ++samples;
    Require(!reader.name().empty());
    Inside(page, reader.name());
    (void)reader.type();
    if (!reader.Parse()) continue;
    Require(reader.labels().size() <= limits.max_labels);
    std::vector<std::string> values;
    for (const PrometheusLabel& label : reader.labels()) {
      Inside(page, label.name);
      Inside(page, label.raw);
      values.push_back(label.Value());
      Require(label.Is(values.back()) && !label.Is(values.back() + "x"));
      Require(label.escaped() || values.back() == label.raw);
    }
    const std::string_view text = reader.labels_text();
    Inside(page, text);
    reader.ParseLabels(text);
    Require(reader.labels().size() == values.size());
    for (std::size_t i = 0; i < values.size(); ++i) Require(reader.labels()[i].Is(values[i]));
  }
  Require(samples == reader.stats().samples);
  Require(reader.stats().lines <= limits.max_lines);
  Require(reader.stats().malformed <= limits.max_malformed || !reader.status().ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A copy of exactly this size, for the address sanitizer.
  const std::vector<char> copy(data, data + size);
  const std::string_view page(copy.data(), copy.size());
  Walk(page, {});
  Walk(page, {.max_bytes = 4096, .max_lines = 5, .max_line_bytes = 64, .max_labels = 2, .max_malformed = 2});

  static std::vector<EngineMetricsReader>& readers = *[] {
    auto* all = new std::vector<EngineMetricsReader>;
    for (EngineConfig& engine : BuiltinEngines()) {
      engine.custom = {{"a", {"vllm:num_requests_waiting", {{"x", "y"}}}}, {"b", {"b"}}};
      all->emplace_back(engine);
    }
    return all;
  }();
  for (EngineMetricsReader& reader : readers) {
    llmd::sched::Metrics metrics;
    std::vector<llmd::sched::Attribute> attributes;
    MetricsReport report;
    const absl::Status status = reader.Read(page, absl::UnixEpoch(), metrics, attributes, report);
    Require(metrics.waiting_requests.value >= 0 && metrics.running_requests.value >= 0);
    Require(metrics.kv_cache_usage.value >= 0 && metrics.kv_cache_usage.value <= 1);
    for (const auto& attribute : attributes) Require(std::isfinite(attribute.sample.value));
    if (const auto& adapters = metrics.adapters.value) {
      Require(adapters->max_active >= 0);
      for (const auto& name : adapters->active) Require(!name.empty());
    }
    Require(status.ok() || report.updated == 0);
    (void)report.ToString(reader.config());
  }
  (void)MetricSpec::Parse(page);
  return 0;
}
