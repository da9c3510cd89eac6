// How long one engine step takes: a roofline of a dense model on one GPU.
//
//   step = overhead + per_sequence * sequences                       scheduling, launches, sampling
//        + max(weight_read, tokens / prefill rate)                   matrix products: memory- or
//        compute-bound
//        + attention * pairs                                         prefill: compute-bound, quadratic
//        + kv_read * context tokens of decoding sequences            decode: memory-bound
//
// Defaults: Llama-3.1-8B in bf16 on one H200 (4.8 TB/s, 989 TFLOP/s dense), at the share of the peaks that
// engines reach: 60 % of the FLOP/s, 80 % of the bandwidth.
//   products   2 FLOP x 6.98e9 weights of the layers = 13.96 GFLOP a token           -> 42,500 tokens/s
//   weights    16.06e9 bytes a step                                                  -> 4.18 ms
//   attention  4 x 32 layers x 4096 = 524,288 FLOP for each (token, context token)   -> 0.884 ns
//   KV read    131,072 bytes for each context token                                  -> 34.1 ns
// A 12,000-token prompt alone takes 0.35 s (34,600 tokens/s), a decode step of 16 sequences at 8,000
// tokens 9.7 ms.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_LATENCY_MODEL_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_LATENCY_MODEL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "examples/trace_replay/workload.h"

namespace llmd::replay {

// KV capacity of the same model and GPU: (0.9 x 141 GB - 16.1 GB weights - 4 GB activations) / (128 KiB a
// token x 16).
inline constexpr std::uint32_t kDefaultCapacityBlocks = 50'926;

struct LatencyModel {
  double prefill_tokens_per_s = 42'500;
  double weight_read_ms = 4.18;
  double attention_ns = 0.884;
  double kv_read_ns = 34.1;
  double overhead_ms = 1.0;
  double per_sequence_us = 10;
};

// What one step does.
struct StepWork {
  std::uint64_t tokens = 0;  // computed, prefill and decode
  std::uint64_t sequences = 0;
  std::uint64_t prefill_pairs = 0;   // (token, context token) of prefill chunks
  std::uint64_t decode_context = 0;  // context tokens of sequences that decode

  // `count` tokens of one sequence behind `computed` earlier ones.
  void Add(std::uint64_t computed, std::uint64_t count) {
    tokens += count;
    ++sequences;
    if (count == 1) {
      decode_context += computed + 1;
    } else {
      prefill_pairs += count * computed + count * (count + 1) / 2;
    }
  }
};

inline Nanos StepTime(const LatencyModel& model, const StepWork& work) {
  const double products_ns = static_cast<double>(work.tokens) * 1e9 / model.prefill_tokens_per_s;
  const double ns = model.overhead_ms * 1e6 +
                    model.per_sequence_us * 1e3 * static_cast<double>(work.sequences) +
                    std::max(model.weight_read_ms * 1e6, products_ns) +
                    model.attention_ns * static_cast<double>(work.prefill_pairs) +
                    model.kv_read_ns * static_cast<double>(work.decode_context);
  return std::max<Nanos>(1, std::llround(ns));
}

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_LATENCY_MODEL_H_
