// From options to policies and requests.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "examples/trace_replay/config_policy.h"
#include "examples/trace_replay/generator.h"
#include "examples/trace_replay/options.h"
#include "examples/trace_replay/trace_reader.h"

namespace llmd::replay {
namespace {

absl::Status Refuse(const std::string& option, const std::string& value, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat(option, ": is ", value, ", expected ", expected));
}

}  // namespace

absl::Status Check(Options& o) {
  o.simulation.scrape_interval = o.scrape_ms * 1'000'000;
  const bool workload = !o.trace.empty() || !o.generate.empty();
  if (!o.versus.empty() && o.config.empty()) return Refuse("--versus", o.versus, "--config beside it");
  if (!o.decisions.empty()) {
    if (workload) {
      return Refuse("--decisions", o.decisions, "no --trace or --generate: the requests are in the log");
    }
    if (o.fit) return Refuse("--decisions", o.decisions, "no --fit");
    if (!o.record.empty()) return Refuse("--record", o.record, "a trace or generated requests to decide for");
    if (!o.report.empty()) return Refuse("--report", o.report, "no --decisions");
    return absl::OkStatus();
  }
  if (!workload) {
    return absl::InvalidArgumentError(
        "nothing to replay: give --trace FILE, --generate KIND or both, or --decisions LOG");
  }
  if (o.fit) {
    if (!o.record.empty()) return Refuse("--record", o.record, "no --fit");
    if (!o.report.empty()) return Refuse("--report", o.report, "no --fit");
    if (!o.config.empty() || !o.policies.empty() || !o.weights.empty()) {
      return Refuse("--fit", "given with policies", "none: it compares with the policy exact");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Policy>> ChoosePolicies(const Options& options,
                                                   const std::vector<std::string>& fallback) {
  std::vector<std::string> names;
  for (const std::string& name : options.policies) {
    if (name == "all") {
      names.insert(names.end(), PolicyNames().begin(), PolicyNames().end());
    } else {
      names.push_back(name);
    }
  }
  if (names.empty() && options.weights.empty() && options.config.empty()) names = fallback;
  std::vector<Policy> policies;
  for (const std::string& name : names) {
    absl::StatusOr<Policy> policy = MakePolicy(name);
    if (!policy.ok()) return policy.status();
    policies.push_back(*std::move(policy));
  }
  for (std::size_t i = 0; i < options.weights.size(); ++i) {
    absl::StatusOr<Policy> policy = MakeMix(options.weights[i]);
    if (!policy.ok()) return policy.status();
    if (options.weights.size() > 1) absl::StrAppend(&policy->name, "-", i + 1);
    policies.push_back(*std::move(policy));
  }
  for (const std::string& path : {options.config, options.versus}) {
    if (path.empty()) continue;
    absl::StatusOr<Policy> policy = ReadConfigPolicy(path);
    if (!policy.ok()) return policy.status();
    policies.push_back(*std::move(policy));
  }
  return policies;
}

absl::StatusOr<Workload> LoadWorkload(const Options& options, ReportSettings& settings) {
  Workload workload;
  std::vector<std::string> sources;
  if (!options.trace.empty()) {
    absl::StatusOr<Trace> trace =
        ReadTraceFile(options.trace, {.skip_bad = options.skip_bad, .limit = options.limit, .limits = {}});
    if (!trace.ok()) return trace.status();
    settings.skipped_lines = trace->skipped_lines;
    if (trace->skipped_lines > 0) {
      absl::FPrintF(stderr, "skipped %d bad lines, the first: %s\n", trace->skipped_lines,
                    std::string(trace->first_skipped.message()));
    }
    workload = std::move(trace->requests);
    SpreadEqualArrivals(workload);
    sources.push_back(options.trace.substr(options.trace.find_last_of('/') + 1));
  }
  if (!options.generate.empty()) {
    absl::StatusOr<WorkloadKind> kind = ParseWorkloadKind(options.generate);
    if (!kind.ok()) return kind.status();
    workload = Merge(std::move(workload), Generate({.kind = *kind,
                                                    .requests = options.requests,
                                                    .rate = options.rate,
                                                    .seed = options.simulation.seed}));
    sources.push_back(absl::StrCat("generated ", options.generate));
  }
  CompressAndCut(options.speed, options.limit, workload);
  settings.workload = absl::StrJoin(sources, " and ");
  return workload;
}

}  // namespace llmd::replay
