// Weights and thresholds fitted to a workload by simulation.
//
// The workload is split by time. The first part is fitted: each setting is simulated on it with several
// seeds, and its objective is the mean over these of
//
//   p90 time to first token * (1 + penalty * max(0, imbalance / limit - 1))
//
// where imbalance is the busiest endpoint's tokens over the mean. The rest is held out: default and fitted
// setting are simulated on the whole workload with other seeds, so that caches and queues are what the same
// setting made of them, and only requests that arrive in the held-out part count.
//
// During the search matches are looked up in the pools (SimulationOptions::event_path), which is faster and
// nearly the same; both comparisons play the whole loop.
//
// The search. A decision is an argmax, so the objective is a step function of the weights, and a small change
// of one decision changes all later ones, which looks like noise. So no derivatives and no quadratic models:
// DIRECT-L, which divides the box, spends 60 % of the evaluations; Subplex, a Nelder-Mead made for noisy
// objectives, starts from the best so far and spends the rest (both NLopt's). The seeds are the same for
// every setting, so settings are compared on the same random numbers. Deterministic: the result does not
// depend on the number of threads.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_FIT_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_FIT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "examples/trace_replay/policy.h"
#include "examples/trace_replay/simulation.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

struct FitOptions {
  std::size_t evaluations = 60;  // of settings, the default one included
  std::size_t seeds = 3;         // simulations of a setting
  std::size_t held_out_seeds = 5;
  double share = 0.6;           // of the time; the rest is held out
  double max_imbalance = 1.25;  // busiest / mean tokens
  double penalty = 10;
  std::size_t threads = 2;
};

// One dimension of the search.
struct FitParameter {
  std::string name;
  double low = 0;
  double high = 1;
  bool logarithmic = false;
  double start = 0;  // the default setting's
  double off = 0;    // the end of the range at which it has no effect
};

// The weight of exact-prefix is 3 throughout, since a common factor of all weights changes nothing. Scorers
// that the library does not have are left out.
std::vector<FitParameter> FitParameters();
// The setting's policy, numbers rounded to three digits.
Policy MakeFitPolicy(std::string name, std::span<const FitParameter> parameters,
                     std::span<const double> values);

// One simulation.
struct FitFigures {
  double ttft_p90_s = 0;
  double ttft_mean_s = 0;
  double imbalance = 0;
  double hit_rate = 0;
  double objective = 0;
};
// Mean and sample standard deviation of a member.
struct Spread {
  double mean = 0;
  double sd = 0;
};
Spread SpreadOf(std::span<const FitFigures> runs, double FitFigures::*member);

struct FitResult {
  std::vector<FitParameter> parameters;
  std::vector<double> values;  // fitted
  Policy fitted;
  std::size_t evaluations = 0;
  std::size_t fit_requests = 0;
  std::size_t held_out_requests = 0;
  // By seed.
  std::vector<FitFigures> default_fit, fitted_fit, default_held_out, fitted_held_out;
};

struct FitProgress {
  std::size_t done = 0;
  std::size_t total = 0;
  double best = 0;  // objective
  double first = 0;
};

// InvalidArgument when a part of the workload has no request.
absl::StatusOr<FitResult> Fit(const Workload& workload, const SimulationOptions& simulation,
                              const FitOptions& options,
                              const std::function<void(const FitProgress&)>& progress = {});

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_FIT_H_
