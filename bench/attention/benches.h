// The three groups of measurements and what they share.
#ifndef BENCH_ATTENTION_BENCHES_H_
#define BENCH_ATTENTION_BENCHES_H_

#include <cstdint>

#include "bench/attention/cases.h"
#include "bench/attention/device.h"
#include "bench/attention/report.h"

namespace llmd::bench {

// Rates of this run, in GB/s (10^9): every share in the results is against these.
struct Ceilings {
  double read = 0;      // of 8 GiB, the best launch shape
  double copy = 0;      // of 1 GiB, bytes read and written, the better of kernel and copy engine
  double copy_64m = 0;  // the same of 64 MiB, cold, back to back in a graph
  double copy_32m = 0;  // of 32 MiB
};

// Random memory that all cases read their caches from: normal bf16 values in `bf16`, normal e4m3 ones in
// `fp8`.
struct Arena {
  DeviceBuffer bf16;
  DeviceBuffer fp8;
};

Ceilings MeasureCeilings(const Device& device, const Arena& arena, double seconds, const Report& report);

// Decode, sweeps, mixes and prefill. False if the backend has no kernel for the case (reported, not fatal).
bool MeasureAttention(const Device& device, const Arena& arena, const Ceilings& ceilings,
                      const AttentionCase& c, double seconds, bool cross_check, const Report& report);

// append, copy, gather, scatter, rope, rope_append, rms_norm, silu, sample; only cases whose name contains
// `filter`.
void MeasureElementwise(const Device& device, const Arena& arena, const Ceilings& ceilings,
                        const std::string& filter, double seconds, const Report& report);

}  // namespace llmd::bench

#endif  // BENCH_ATTENTION_BENCHES_H_
