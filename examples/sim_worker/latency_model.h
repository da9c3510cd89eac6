// How long an engine step and a transfer of KV between workers take.
//
//   step     = prefill_us * (prompt tokens computed)
//            + decode_us + decode_us_per_sequence * (sequences that decode - 1)      when any decodes
//   transfer = transfer_us + transfer_us_per_token * tokens
//
// each times a factor of mean 1 that `jitter` spreads: 1 + jitter * u with u uniform in [-1, 1]. Defaults: an
// 8-billion-parameter model on a large GPU, rounded. Plain values; the caller owns the random source.
#ifndef EXAMPLES_SIM_WORKER_LATENCY_MODEL_H_
#define EXAMPLES_SIM_WORKER_LATENCY_MODEL_H_

#include <algorithm>
#include <cstdint>

#include "llmd/base/random.h"

namespace llmd::sim {

struct LatencyModel {
  double prefill_us_per_token = 30;
  double decode_us_per_token = 8000;  // of a step in which one sequence decodes
  double decode_us_per_sequence = 25;
  double transfer_us = 2000;
  double transfer_us_per_token = 2;
  double jitter = 0.05;  // 0 .. 1

  double StepSeconds(std::uint64_t prefill_tokens, std::uint64_t decoding, Random& random) const {
    double us = prefill_us_per_token * static_cast<double>(prefill_tokens);
    if (decoding > 0) us += decode_us_per_token + decode_us_per_sequence * static_cast<double>(decoding - 1);
    return Spread(us, random);
  }
  double TransferSeconds(std::uint64_t tokens, Random& random) const {
    return Spread(transfer_us + transfer_us_per_token * static_cast<double>(tokens), random);
  }

 private:
  double Spread(double us, Random& random) const {
    const double factor = jitter == 0 ? 1.0 : 1.0 + jitter * (2 * random.Uniform() - 1);
    return std::max(us * factor, 1.0) * 1e-6;
  }
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_LATENCY_MODEL_H_
