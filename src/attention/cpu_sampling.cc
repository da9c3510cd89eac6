#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/attention/check.h"
#include "src/attention/cpu.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/cpu_pool.h"
#include "src/attention/philox.h"

namespace llmd::attention::cpu {
namespace {

// A thread's memory for one row; it grows to the largest vocabulary seen.
struct Scratch {
  std::vector<float> logits;
  std::vector<float> weights;  // probability times an unimportant factor
  std::vector<int32_t> kept;
};

// What is left after min_p, top_k and top_p, in the order of ids.
void Filter(float min_p, int32_t top_k, float top_p, Scratch& row) {
  std::vector<int32_t>& kept = row.kept;
  kept.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(row.weights.size()); ++i) {
    if (!(row.weights[i] < min_p)) kept.push_back(i);
  }
  const auto before = [&](int32_t a, int32_t b) {
    return row.logits[a] > row.logits[b] || (row.logits[a] == row.logits[b] && a < b);
  };
  if (top_k > 0 && kept.size() > static_cast<size_t>(top_k)) {
    std::nth_element(kept.begin(), kept.begin() + top_k, kept.end(), before);
    kept.resize(top_k);
  }
  if (top_p < 1) {
    double total = 0;
    for (const int32_t i : kept) total += row.weights[i];
    double sum = 0;
    size_t sorted = 0, count = 0;
    do {
      if (count == sorted) {  // sorted only as far as it is needed
        sorted = std::min(kept.size(), std::max<size_t>(256, 4 * sorted));
        std::partial_sort(kept.begin() + count, kept.begin() + sorted, kept.end(), before);
      }
      sum += row.weights[kept[count++]];
    } while (count < kept.size() && sum < top_p * total);
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end());
}

int32_t Draw(const Scratch& row, float u) {
  double total = 0;
  for (const int32_t i : row.kept) total += row.weights[i];
  double sum = 0;
  for (const int32_t i : row.kept) {
    sum += row.weights[i];
    if (sum > u * total) return i;
  }
  return row.kept.back();
}

void SampleRow(const llmd_sample_args& args, int64_t b) {
  thread_local Scratch row;
  const auto of = [b](const auto* array, auto neutral) { return array != nullptr ? array[b] : neutral; };
  const float temperature = of(args.temperature, 1.0f);
  const bool greedy = !(temperature > 0);
  row.logits.resize(args.vocab);
  Kernels().to_floats(
      args.dtype,
      static_cast<const char*>(args.logits) + b * args.row_stride * static_cast<int64_t>(SizeOf(args.dtype)),
      args.vocab, row.logits.data());
  int32_t best = 0;
  for (int32_t i = 0; i < args.vocab; ++i) {
    if (std::isnan(row.logits[i])) row.logits[i] = -std::numeric_limits<float>::infinity();
    if (row.logits[i] > row.logits[best]) best = i;
  }
  const float top = row.logits[best];
  if (!std::isfinite(top)) {
    args.tokens[b] = -1;
    if (args.logprobs != nullptr) args.logprobs[b] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  args.tokens[b] = best;
  if (greedy && args.logprobs == nullptr) return;

  const float by = greedy ? 1.0f : temperature;
  double total = 0;
  row.weights.resize(args.vocab);
  for (int32_t i = 0; i < args.vocab; ++i) {
    const bool none = row.logits[i] == -std::numeric_limits<float>::infinity();  // at any temperature
    row.weights[i] = none ? 0.0f : std::exp((row.logits[i] - top) / by);
    total += row.weights[i];
  }
  if (!greedy) {
    Filter(std::min(of(args.min_p, 0.0f), 1.0f), of(args.top_k, int32_t{0}), of(args.top_p, 1.0f), row);
    args.tokens[b] = Draw(row, UniformDraw(args.seed, of(args.request_ids, static_cast<uint64_t>(b)),
                                           of(args.steps, uint64_t{0})));
  }
  if (args.logprobs != nullptr) {
    args.logprobs[b] = static_cast<float>((row.logits[args.tokens[b]] - top) / by - std::log(total));
  }
}

}  // namespace

void Sample(const llmd_sample_args& args) {
  Parallel(args.batch, [&](int64_t b, int) { SampleRow(args, b); });
}

}  // namespace llmd::attention::cpu
