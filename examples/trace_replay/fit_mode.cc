#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/trace_replay/config_policy.h"
#include "examples/trace_replay/fit.h"
#include "examples/trace_replay/modes.h"
#include "examples/trace_replay/progress.h"
#include "llmd/sched/config_file.h"

namespace llmd::replay {
namespace {

// The printed configuration is for llm-d too, so without this program's own probe.
std::string ConfigOf(const Policy& policy) {
  sched::SchedulerConfig config = policy.config;
  std::erase_if(config.plugins, [](const sched::PluginSpec& spec) { return spec.type == kProbe; });
  return sched::PrintConfig(config);
}

void AppendRow(const std::string& name, const std::vector<FitFigures>& runs, std::string& out) {
  const auto cell = [&](double FitFigures::*member, double factor, int digits) {
    const Spread spread = SpreadOf(runs, member);
    return absl::StrFormat("%.*f (%.*f)", digits, factor * spread.mean, digits, factor * spread.sd);
  };
  absl::StrAppendFormat(&out, "%-20s  %15s  %15s  %15s  %15s  %15s\n", name,
                        cell(&FitFigures::objective, 1, 4), cell(&FitFigures::ttft_p90_s, 1, 4),
                        cell(&FitFigures::ttft_mean_s, 1, 4), cell(&FitFigures::imbalance, 1, 3),
                        cell(&FitFigures::hit_rate, 100, 2));
}

// Seed by seed.
std::string Paired(const std::vector<FitFigures>& before, const std::vector<FitFigures>& after) {
  std::vector<FitFigures> change(before.size());
  std::size_t better = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    change[i].objective = after[i].objective / before[i].objective - 1;
    better += after[i].objective < before[i].objective;
  }
  const Spread spread = SpreadOf(change, &FitFigures::objective);
  return absl::StrFormat("%+.2f %% (%.2f), lower with %d of %d seeds", 100 * spread.mean, 100 * spread.sd,
                         better, before.size());
}

std::string Text(const FitResult& result, const Options& options, const std::string& workload) {
  const FitOptions& fit = options.fitting;
  std::string out;
  absl::StrAppendFormat(&out, "%-12s %s%s, %d endpoints\n", "workload", workload,
                        options.speed != 1 ? absl::StrCat(", arrivals ", options.speed, " x as fast") : "",
                        options.simulation.endpoints);
  absl::StrAppendFormat(&out, "%-12s first %.0f %% of the time, %s requests, %d seeds\n", "fitted on",
                        100 * fit.share, WithCommas(result.fit_requests), fit.seeds);
  absl::StrAppendFormat(&out, "%-12s the rest, %s requests, caches warm, %d other seeds\n", "held out",
                        WithCommas(result.held_out_requests), fit.held_out_seeds);
  absl::StrAppendFormat(
      &out, "%-12s p90 time to first token x (1 + %g x excess of busiest / mean tokens over %g)\n",
      "objective", fit.penalty, fit.max_imbalance);
  absl::StrAppendFormat(&out, "%-12s DIRECT-L, then Subplex; %d settings tried\n\n", "search",
                        result.evaluations);
  absl::StrAppendFormat(&out, "%-20s  %15s  %15s  %15s  %15s  %15s\n", "mean (sd) over seeds", "objective",
                        "p90 TTFT, s", "mean TTFT, s", "imbalance", "hit rate, %");
  AppendRow("fit part, default", result.default_fit, out);
  AppendRow("fit part, fitted", result.fitted_fit, out);
  AppendRow("held out, default", result.default_held_out, out);
  AppendRow("held out, fitted", result.fitted_held_out, out);
  absl::StrAppend(&out, "\nobjective, fit part:  ", Paired(result.default_fit, result.fitted_fit), "\n");
  absl::StrAppend(&out, "objective, held out:  ", Paired(result.default_held_out, result.fitted_held_out),
                  "\n\n");
  absl::StrAppend(&out, "# ", result.fitted.description, "\n", ConfigOf(result.fitted));
  return out;
}

nlohmann::ordered_json Json(const std::vector<FitFigures>& runs) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const FitFigures& run : runs) {
    json.push_back({{"objective", run.objective},
                    {"ttft_p90_s", run.ttft_p90_s},
                    {"ttft_mean_s", run.ttft_mean_s},
                    {"token_imbalance", run.imbalance},
                    {"token_hit_rate", run.hit_rate}});
  }
  return json;
}

std::string JsonText(const FitResult& result, const Options& options, const std::string& workload) {
  nlohmann::ordered_json json = {{"command", options.command},
                                 {"workload", workload},
                                 {"fit_requests", result.fit_requests},
                                 {"held_out_requests", result.held_out_requests},
                                 {"evaluations", result.evaluations}};
  for (std::size_t i = 0; i < result.values.size(); ++i) {
    json["parameters"][result.parameters[i].name] = result.values[i];
  }
  json["fit"] = {{"default", Json(result.default_fit)}, {"fitted", Json(result.fitted_fit)}};
  json["held_out"] = {{"default", Json(result.default_held_out)}, {"fitted", Json(result.fitted_held_out)}};
  json["config"] = ConfigOf(result.fitted);
  return json.dump(2) + "\n";
}

}  // namespace

absl::Status RunFit(const Options& options) {
  ReportSettings settings;
  absl::StatusOr<Workload> workload = LoadWorkload(options, settings);
  if (!workload.ok()) return workload.status();
  absl::StatusOr<FitResult> result = absl::UnknownError("");
  {
    ProgressBar progress(options.fitting.evaluations);
    result = Fit(*workload, options.simulation, options.fitting, [&](const FitProgress& p) {
      progress.Update(p.done, absl::StrFormat("best objective %.4f, default %.4f", p.best, p.first));
    });
  }
  if (!result.ok()) return result.status();
  std::cout << (options.json ? JsonText(*result, options, settings.workload)
                             : Text(*result, options, settings.workload));
  std::cout.flush();
  return absl::OkStatus();
}

}  // namespace llmd::replay
