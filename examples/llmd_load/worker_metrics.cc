#include "examples/llmd_load/worker_metrics.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "llmd/gateway/prometheus_text.h"

namespace llmd::load {

absl::StatusOr<WorkerCounters> ReadCounters(std::string_view page) {
  gateway::PrometheusReader reader({.max_bytes = std::size_t{16} << 20});
  if (absl::Status status = reader.Start(page); !status.ok()) return status;
  std::optional<double> queries, hits, old_queries, old_hits;
  const auto add = [&](std::optional<double>& sum) {
    if (reader.Parse()) sum = sum.value_or(0) + reader.value();
  };
  while (reader.Next()) {
    if (reader.name() == "vllm:prefix_cache_queries_total") add(queries);
    if (reader.name() == "vllm:prefix_cache_hits_total") add(hits);
    if (reader.name() == "vllm:gpu_prefix_cache_queries_total") add(old_queries);
    if (reader.name() == "vllm:gpu_prefix_cache_hits_total") add(old_hits);
  }
  if (!reader.status().ok()) return reader.status();
  WorkerCounters counters;
  counters.queries = queries ? queries : old_queries;
  counters.hits = queries ? hits : old_hits;
  if (!counters.queries || !counters.hits) {
    return absl::NotFoundError("no vllm:prefix_cache_queries_total and _hits_total");
  }
  return counters;
}

absl::StatusOr<std::vector<std::pair<std::string, double>>> ReadQueryAnswer(std::string_view body) {
  using nlohmann::json;
  const absl::Status bad = absl::InvalidArgumentError("not an answer of Prometheus to a query");
  const json root = json::parse(body, nullptr, false);
  if (!root.is_object() || root.value("status", json()) != "success") return bad;
  const json result = root.value("data", json::object()).value("result", json());
  if (!result.is_array()) return bad;
  std::vector<std::pair<std::string, double>> out;
  for (const json& series : result) {
    if (!series.is_object()) return bad;
    const json metric = series.value("metric", json::object()), value = series.value("value", json());
    double number = 0;
    if (!value.is_array() || value.size() != 2 || !value[1].is_string() ||
        !absl::SimpleAtod(value[1].get_ref<const std::string&>(), &number)) {
      return bad;
    }
    const json instance = metric.value("instance", json());
    out.emplace_back(instance.is_string() ? instance.get<std::string>() : "", number);
  }
  return out;
}

std::vector<WorkerCounters> FetchWorkers(const std::vector<Target>& workers,
                                         std::chrono::milliseconds timeout) {
  std::vector<WorkerCounters> out;
  for (const Target& worker : workers) {
    WorkerCounters counters;
    const absl::StatusOr<std::string> page = Get(worker, "/metrics", timeout);
    absl::StatusOr<WorkerCounters> read = page.ok() ? ReadCounters(*page) : page.status();
    if (read.ok()) {
      counters = *std::move(read);
    } else {
      counters.error = std::string(read.status().message());
    }
    counters.worker = worker.host_port;
    out.push_back(std::move(counters));
  }
  return out;
}

absl::StatusOr<std::vector<WorkerCounters>> FetchPrometheus(const Target& prometheus,
                                                            std::chrono::milliseconds timeout) {
  std::map<std::string, WorkerCounters> workers;
  for (const bool hits : {false, true}) {
    // sum by (instance) (vllm:prefix_cache_..._total)
    const std::string query =
        absl::StrCat("/api/v1/query?query=sum%20by%20(instance)%20(vllm%3Aprefix_cache_",
                     hits ? "hits" : "queries", "_total)");
    const absl::StatusOr<std::string> body = Get(prometheus, query, timeout);
    if (!body.ok()) return body.status();
    const auto values = ReadQueryAnswer(*body);
    if (!values.ok()) return values.status();
    for (const auto& [instance, value] : *values) {
      WorkerCounters& worker = workers[instance];
      worker.worker = instance;
      (hits ? worker.hits : worker.queries) = value;
    }
  }
  std::vector<WorkerCounters> out;
  for (auto& [instance, worker] : workers) out.push_back(std::move(worker));
  return out;
}

}  // namespace llmd::load
