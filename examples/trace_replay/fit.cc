#include "examples/trace_replay/fit.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <nlopt.hpp>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/trace_replay/config_policy.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/report.h"
#include "llmd/base/random.h"

namespace llmd::replay {
namespace {

constexpr double kPrefixWeight = 3;
constexpr double kDirectShare = 0.6;  // of the evaluations
constexpr double kLocalStep = 0.12;   // first step of Subplex, of a parameter's range
constexpr double kJitterGaps = 4;     // most that an arrival is moved by, in mean gaps between arrivals
constexpr std::uint64_t kHeldOutSeeds = 1'000'000;  // far from those of the fit

double Round3(double value) {
  if (value == 0) return 0;
  const double scale = std::pow(10, 2 - std::floor(std::log10(std::fabs(value))));
  return std::round(value * scale) / scale;
}

double FromUnit(const FitParameter& p, double u) {
  u = std::clamp(u, 0.0, 1.0);
  if (u == 0 || u == 1) return u == 0 ? p.low : p.high;
  return p.logarithmic ? p.low * std::pow(p.high / p.low, u) : p.low + (p.high - p.low) * u;
}
double ToUnit(const FitParameter& p, double value) {
  return p.logarithmic ? std::log(value / p.low) / std::log(p.high / p.low)
                       : (value - p.low) / (p.high - p.low);
}

// Simulates settings on the workload, whose requests are made once.
class Simulator {
 public:
  Simulator(const Workload& workload, const SimulationOptions& simulation, const FitOptions& options)
      : simulation_(simulation), options_(options) {
    const Nanos begin = workload.front().arrival;
    const auto span = static_cast<double>(workload.back().arrival - begin);
    boundary_ = begin + std::llround(span * options.share);
    for (const WorkloadRequest& request : workload) fit_size_ += request.arrival < boundary_;
  }

  absl::Status Prepare(const Workload& workload) {
    absl::StatusOr<PromptMaker> maker = PromptMaker::Create({.exact_keys = true});
    if (!maker.ok()) return maker.status();
    for (std::size_t i = 0; i < workload.size(); ++i) requests_.push_back(maker->Make(i, workload[i]));
    return absl::OkStatus();
  }

  std::size_t fit_size() const { return fit_size_; }
  std::size_t held_out_size() const { return requests_.size() - fit_size_; }

  // By seed, on as many threads as allowed.
  absl::StatusOr<std::vector<FitFigures>> Run(const Policy& policy, bool held_out, bool event_path) const {
    const std::size_t seeds = held_out ? options_.held_out_seeds : options_.seeds;
    std::vector<FitFigures> runs(seeds);
    std::vector<absl::Status> statuses(seeds);
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < seeds; i = next++) {
        const std::uint64_t seed = simulation_.seed + i + (held_out ? kHeldOutSeeds : 0);
        absl::StatusOr<FitFigures> figures = Simulate(policy, seed, held_out, event_path);
        statuses[i] = figures.status();
        if (figures.ok()) runs[i] = *figures;
      }
    };
    std::vector<std::thread> threads;
    for (std::size_t i = 1; i < std::min(options_.threads, seeds); ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return runs;
  }

 private:
  absl::StatusOr<FitFigures> Simulate(const Policy& policy, std::uint64_t seed, bool held_out,
                                      bool event_path) const {
    SimulationOptions options = simulation_;
    options.seed = seed;
    options.explain = 0;
    options.event_path = event_path;
    auto simulation = Simulation::Create(options, policy, requests_.size());
    if (!simulation.ok()) return simulation.status();
    const std::size_t end = held_out ? requests_.size() : fit_size_;
    const std::vector<Nanos> arrivals = Arrivals(seed);
    for (std::size_t i = 0; i < end; ++i) {
      if (absl::Status s = (*simulation)->Arrive(requests_[i], arrivals[i]); !s.ok()) return s;
    }
    if (absl::Status s = (*simulation)->Finish(); !s.ok()) return s;
    return Figures((*simulation)->result(), held_out ? fit_size_ : 0, end);
  }

  // A seed moves arrivals as well as it breaks ties, since a setting that knows no ties would otherwise be
  // judged by a single course of events. The order of requests stays.
  std::vector<Nanos> Arrivals(std::uint64_t seed) const {
    std::vector<Nanos> arrivals;
    for (const auto& request : requests_) arrivals.push_back(request->arrival);
    const auto gap =
        static_cast<double>(arrivals.back() - arrivals.front()) / static_cast<double>(arrivals.size());
    Random random(seed);
    for (Nanos& arrival : arrivals) arrival += std::llround((2 * random.Uniform() - 1) * kJitterGaps * gap);
    std::sort(arrivals.begin(), arrivals.end());
    const Nanos first = std::min<Nanos>(arrivals.front(), 0);
    for (Nanos& arrival : arrivals) arrival -= first;
    return arrivals;
  }

  FitFigures Figures(const PolicyResult& result, std::size_t begin, std::size_t end) const {
    std::vector<double> ttft, tokens(result.endpoints.size(), 0);
    std::uint64_t hits = 0, prompt = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const RequestResult& request = result.requests[i];
      ttft.push_back(Seconds(request.first_token - request.arrival));
      tokens[request.endpoint] += static_cast<double>(requests_[i]->tokens.size());
      hits += request.hit_tokens;
      prompt += request.prompt_tokens;
    }
    const Distribution distribution = Describe(ttft);
    FitFigures figures;
    figures.ttft_p90_s = distribution.p90;
    figures.ttft_mean_s = distribution.mean;
    figures.imbalance = MaxOverMean(tokens);
    figures.hit_rate = prompt > 0 ? static_cast<double>(hits) / static_cast<double>(prompt) : 0;
    const double excess = std::max(0.0, figures.imbalance / options_.max_imbalance - 1);
    figures.objective = figures.ttft_p90_s * (1 + options_.penalty * excess);
    return figures;
  }

  SimulationOptions simulation_;
  FitOptions options_;
  Nanos boundary_ = 0;
  std::size_t fit_size_ = 0;
  std::vector<std::shared_ptr<const PreparedRequest>> requests_;
};

// The best setting so far, and the budget.
class Search {
 public:
  Search(const Simulator& simulator, std::vector<FitParameter> parameters, const FitOptions& options,
         const std::function<void(const FitProgress&)>& progress)
      : simulator_(simulator), parameters_(std::move(parameters)), options_(options), progress_(progress) {}

  absl::Status Run() {
    std::vector<double> start;
    for (const FitParameter& p : parameters_) start.push_back(std::clamp(ToUnit(p, p.start), 0.0, 1.0));
    Evaluate(start);
    const auto global = static_cast<std::size_t>(kDirectShare * static_cast<double>(options_.evaluations));
    Minimize(nlopt::GN_DIRECT_L, std::vector<double>(parameters_.size(), 0.5),
             std::max<std::size_t>(global, 2));
    Minimize(nlopt::LN_SBPLX, best_, options_.evaluations);
    return status_;
  }

  std::size_t done() const { return done_; }
  std::vector<double> BestValues() const { return Values(best_); }

 private:
  std::vector<double> Values(const std::vector<double>& unit) const {
    std::vector<double> values;
    for (std::size_t i = 0; i < unit.size(); ++i) values.push_back(Round3(FromUnit(parameters_[i], unit[i])));
    return values;
  }

  double Evaluate(const std::vector<double>& unit) {
    const absl::StatusOr<std::vector<FitFigures>> runs =
        simulator_.Run(MakeFitPolicy("candidate", parameters_, Values(unit)), false, false);
    if (!runs.ok()) {
      status_ = runs.status();
      return HUGE_VAL;
    }
    const double objective = SpreadOf(*runs, &FitFigures::objective).mean;
    if (done_ == 0) first_ = objective;
    if (done_ == 0 || objective < best_objective_) {
      best_objective_ = objective;
      best_ = unit;
    }
    ++done_;
    if (progress_) progress_({done_, options_.evaluations, best_objective_, first_});
    return objective;
  }

  // Until `limit` settings were evaluated in all.
  void Minimize(nlopt::algorithm algorithm, std::vector<double> from, std::size_t limit) {
    if (!status_.ok() || done_ >= limit) return;
    limit_ = limit;
    nlopt::opt search(algorithm, static_cast<unsigned>(parameters_.size()));
    search.set_lower_bounds(0);
    search.set_upper_bounds(1);
    search.set_initial_step(kLocalStep);
    search.set_xtol_abs(1e-3);
    search.set_min_objective(
        [](const std::vector<double>& unit, std::vector<double>&, void* self) {
          auto& search = *static_cast<Search*>(self);
          if (search.done_ >= search.limit_ || !search.status_.ok()) throw nlopt::forced_stop();
          return search.Evaluate(unit);
        },
        this);
    double objective = 0;
    try {
      search.optimize(from, objective);
    } catch (const nlopt::forced_stop&) {
      // The budget is spent; best_ has the result.
    } catch (const std::exception& e) {
      status_ = absl::InternalError(absl::StrCat("fit: ", e.what()));
    }
  }

  const Simulator& simulator_;
  std::vector<FitParameter> parameters_;
  const FitOptions& options_;
  const std::function<void(const FitProgress&)>& progress_;
  std::size_t done_ = 0;
  std::size_t limit_ = 0;
  double first_ = 0;
  double best_objective_ = 0;
  std::vector<double> best_;
  absl::Status status_;
};

}  // namespace

std::vector<FitParameter> FitParameters() {
  const auto weight = [](std::string name, double start) {
    return FitParameter{std::move(name), 0.05, 50, true, start, 0.05};
  };
  std::vector<FitParameter> parameters = {weight("queue", 2), weight("kv", 2), weight("running", 0.05)};
  if (sched::PluginRegistry::Builtin().Find("active-request-scorer") != nullptr) {
    parameters.push_back(weight("active", 0.05));
  }
  parameters.push_back({"matchLengthWeight", 0, 1, false, 0, 0});
  parameters.push_back({"queueDepthThreshold", 1, 64, true, 64, 64});
  return parameters;
}

Policy MakeFitPolicy(std::string name, std::span<const FitParameter> parameters,
                     std::span<const double> values) {
  std::string weights = absl::StrCat("exact-prefix=", kPrefixWeight);
  double length_weight = 0, queue_depth = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const bool off = values[i] == parameters[i].off;
    const double value = Round3(values[i]);
    if (parameters[i].name == "matchLengthWeight") {
      length_weight = value;
    } else if (parameters[i].name == "queueDepthThreshold") {
      queue_depth = off ? 0 : value;
    } else if (!off) {
      absl::StrAppend(&weights, ",", parameters[i].name, "=", value);
    }
  }
  Policy policy = *MakeMix(weights);  // of known scorers and finite weights
  policy.name = std::move(name);
  if (length_weight > 0) {
    for (sched::PluginSpec& spec : policy.config.plugins) {
      if (spec.name != "exact-prefix") continue;
      spec.parameters = sched::Parameters(
          {{"prefixMatchInfoProducerName", kExactProducer}, {"matchLengthWeight", length_weight}});
    }
    absl::StrAppend(&policy.description, ", matchLengthWeight ", length_weight);
  }
  if (queue_depth > 0) {
    policy.config.plugins.push_back({.name = "short-queue",
                                     .type = "utilization-detector",
                                     .parameters = sched::Parameters({{"queueDepthThreshold", queue_depth},
                                                                      {"kvCacheUtilThreshold", 1.0},
                                                                      {"metricsStalenessThreshold", "2s"}})});
    auto& steps = policy.config.profiles.front().plugins;
    steps.insert(steps.begin(), {.plugin = "short-queue"});
    absl::StrAppend(&policy.description, ", filter: queue below ", queue_depth);
  }
  return policy;
}

Spread SpreadOf(std::span<const FitFigures> runs, double FitFigures::*member) {
  Spread spread;
  for (const FitFigures& run : runs) spread.mean += run.*member / static_cast<double>(runs.size());
  for (const FitFigures& run : runs) spread.sd += (run.*member - spread.mean) * (run.*member - spread.mean);
  spread.sd = runs.size() > 1 ? std::sqrt(spread.sd / static_cast<double>(runs.size() - 1)) : 0;
  return spread;
}

absl::StatusOr<FitResult> Fit(const Workload& workload, const SimulationOptions& simulation,
                              const FitOptions& options,
                              const std::function<void(const FitProgress&)>& progress) {
  if (workload.empty()) return absl::InvalidArgumentError("--fit: the workload is empty");
  Simulator simulator(workload, simulation, options);
  if (absl::Status s = simulator.Prepare(workload); !s.ok()) return s;
  if (simulator.fit_size() == 0 || simulator.held_out_size() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--fit-share: is ", options.share,
                                                   ", expected one that leaves requests in both parts, not ",
                                                   simulator.fit_size(), " and ", simulator.held_out_size()));
  }
  FitResult result;
  result.parameters = FitParameters();
  Search search(simulator, result.parameters, options, progress);
  if (absl::Status s = search.Run(); !s.ok()) return s;
  result.evaluations = search.done();
  result.fit_requests = simulator.fit_size();
  result.held_out_requests = simulator.held_out_size();
  result.values = search.BestValues();
  result.fitted = MakeFitPolicy("fitted", result.parameters, result.values);
  std::vector<double> start;
  for (const FitParameter& p : result.parameters) start.push_back(p.start);
  const Policy before = MakeFitPolicy("default", result.parameters, start);
  struct Comparison {
    const Policy& policy;
    bool held_out;
    std::vector<FitFigures>& runs;
  };
  for (const Comparison& comparison :
       {Comparison{before, false, result.default_fit}, Comparison{result.fitted, false, result.fitted_fit},
        Comparison{before, true, result.default_held_out},
        Comparison{result.fitted, true, result.fitted_held_out}}) {
    absl::StatusOr<std::vector<FitFigures>> runs =
        simulator.Run(comparison.policy, comparison.held_out, true);
    if (!runs.ok()) return runs.status();
    comparison.runs = *std::move(runs);
  }
  return result;
}

}  // namespace llmd::replay
