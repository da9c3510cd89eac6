// Families of metrics whose values are read when a scrape asks for them.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_PAGE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_PAGE_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/metric_family.h>

#include "absl/container/flat_hash_map.h"

namespace llmd::host {

class ScrapePage {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  void Gauge(const std::string& name, const std::string& help, Labels labels, double value) {
    Add(prometheus::MetricType::Gauge, name, help, std::move(labels)).gauge.value = value;
  }
  void Counter(const std::string& name, const std::string& help, Labels labels, double value) {
    Add(prometheus::MetricType::Counter, name, help, std::move(labels)).counter.value = value;
  }

  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(prometheus::MetricType type, const std::string& name, const std::string& help,
                                Labels labels) {
    const auto [it, added] = index_.try_emplace(name, families_.size());
    if (added) families_.push_back({.name = name, .help = "[ALPHA] " + help, .type = type, .metric = {}});
    prometheus::ClientMetric& metric = families_[it->second].metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }

  std::vector<prometheus::MetricFamily> families_;
  absl::flat_hash_map<std::string, std::size_t> index_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_SCRAPE_PAGE_H_
