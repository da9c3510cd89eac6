#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/attention/frequencies.h"
#include "src/attention/numeric.h"
#include "src/attention/philox.h"
#include "src/attention/reference.h"

namespace llmd::attention::reference {
namespace {

// Rotates one head's vector of `dim` elements.
void Rotate(const llmd_rope& rope, double position, std::vector<double>& x) {
  for (int32_t i = 0; i < rope.rotary_dim / 2; ++i) {
    const double angle = position * Frequency(rope, i);
    double& a = x[rope.interleaved != 0 ? 2 * i : i];
    double& b = x[rope.interleaved != 0 ? 2 * i + 1 : i + rope.rotary_dim / 2];
    const double rotated_a = a * std::cos(angle) - b * std::sin(angle);
    const double rotated_b = b * std::cos(angle) + a * std::sin(angle);
    a = rotated_a;
    b = rotated_b;
  }
}

void RotateAll(const llmd_rope& rope, llmd_dtype dtype, const int32_t* positions, int32_t tokens,
               int32_t heads, int32_t dim, const void* in, llmd_token_strides in_strides, void* out,
               llmd_dtype out_dtype, llmd_token_strides out_strides) {
  std::vector<double> x(dim);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int32_t d = 0; d < dim; ++d) {
        x[d] = LoadElement(dtype, in, t * in_strides.token + h * in_strides.head + d);
      }
      Rotate(rope, positions[t], x);
      for (int32_t d = 0; d < dim; ++d) {
        StoreElement(out_dtype, out, t * out_strides.token + h * out_strides.head + d,
                     static_cast<float>(x[d]));
      }
    }
  }
}

}  // namespace

void Rope(const llmd_rope_args& args) {
  RotateAll(args.rope, args.dtype, args.positions, args.num_tokens, args.num_q_heads, args.head_dim, args.q,
            args.q_strides, args.q_out, args.dtype, args.q_out_strides);
  if (args.k == nullptr) return;
  RotateAll(args.rope, args.dtype, args.positions, args.num_tokens, args.num_kv_heads, args.head_dim, args.k,
            args.k_strides, args.k_out, args.dtype, args.k_out_strides);
}

void RopeAppend(const llmd_rope_append_args& args) {
  const llmd_append_kv_args& append = args.append;
  const int32_t dim = append.cache.head_dim;
  const int32_t heads = append.cache.num_kv_heads;
  if (append.num_tokens == 0) return;
  RotateAll(args.rope, append.dtype, append.positions, append.num_tokens, args.num_q_heads, dim, args.q,
            args.q_strides, args.q_out, append.dtype, args.q_out_strides);
  // The rotated k goes to the cache without being rounded to its own type.
  std::vector<float> k(int64_t{append.num_tokens} * heads * dim);
  std::vector<float> v(k.size());
  const llmd_token_strides packed = {int64_t{heads} * dim, dim};
  RotateAll(args.rope, append.dtype, append.positions, append.num_tokens, heads, dim, append.k,
            append.k_strides, k.data(), LLMD_F32, packed);
  for (int64_t t = 0; t < append.num_tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int32_t d = 0; d < dim; ++d) {
        v[t * packed.token + h * packed.head + d] =
            LoadElement(append.dtype, append.v, t * append.v_strides.token + h * append.v_strides.head + d);
      }
    }
  }
  llmd_append_kv_args rotated = append;
  rotated.k = k.data();
  rotated.v = v.data();
  rotated.k_strides = rotated.v_strides = packed;
  rotated.dtype = LLMD_F32;
  AppendKv(rotated);
}

void RmsNorm(const llmd_rms_norm_args& args) {
  std::vector<double> x(args.size);
  for (int64_t r = 0; r < args.num_rows; ++r) {
    double sum = 0;
    for (int32_t i = 0; i < args.size; ++i) {
      x[i] = LoadElement(args.dtype, args.x, r * args.x_stride + i);
      if (args.residual != nullptr) {
        const int64_t at = r * args.size + i;
        x[i] += LoadElement(args.dtype, args.residual, at);
        StoreElement(args.dtype, args.residual, at, static_cast<float>(x[i]));
        x[i] = LoadElement(args.dtype, args.residual, at);
      }
      sum += x[i] * x[i];
    }
    const double factor = 1 / std::sqrt(sum / args.size + args.epsilon);
    for (int32_t i = 0; i < args.size; ++i) {
      StoreElement(args.dtype, args.y, r * args.y_stride + i,
                   static_cast<float>(x[i] * factor * LoadElement(args.dtype, args.weight, i)));
    }
  }
}

void SiluAndMul(const llmd_silu_and_mul_args& args) {
  for (int64_t r = 0; r < args.num_rows; ++r) {
    for (int64_t i = 0; i < args.size; ++i) {
      const double a = LoadElement(args.dtype, args.x, r * 2 * args.size + i);
      const double b = LoadElement(args.dtype, args.x, r * 2 * args.size + args.size + i);
      StoreElement(args.dtype, args.y, r * args.size + i, static_cast<float>(a / (1 + std::exp(-a)) * b));
    }
  }
}

namespace {

struct Candidate {
  double logit;
  double weight;  // probability times an unimportant factor: 1 for the greatest
  int32_t id;
};

struct Filters {
  double temperature, min_p, top_p;
  int32_t top_k;
};

// The token drawn from all candidates, which come in the order of ids.
int32_t Draw(std::vector<Candidate> kept, const Filters& filters, double u) {
  std::erase_if(kept, [&](const Candidate& c) { return c.weight < filters.min_p; });
  std::stable_sort(kept.begin(), kept.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  if (filters.top_k > 0 && kept.size() > static_cast<size_t>(filters.top_k)) kept.resize(filters.top_k);
  if (filters.top_p < 1) {
    double total = 0;
    for (const Candidate& c : kept) total += c.weight;
    double sum = 0;
    size_t count = 0;
    do {
      sum += kept[count++].weight;
    } while (count < kept.size() && sum < filters.top_p * total);
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double total = 0;
  for (const Candidate& c : kept) total += c.weight;
  double sum = 0;
  for (const Candidate& c : kept) {
    sum += c.weight;
    if (sum > u * total) return c.id;
  }
  return kept.back().id;
}

}  // namespace

void Sample(const llmd_sample_args& args) {
  for (int32_t b = 0; b < args.batch; ++b) {
    const auto of = [b](const auto* array, auto neutral) { return array != nullptr ? array[b] : neutral; };
    const Filters filters = {of(args.temperature, 1.0f), std::min(of(args.min_p, 0.0f), 1.0f),
                             of(args.top_p, 1.0f), of(args.top_k, int32_t{0})};
    const bool greedy = !(filters.temperature > 0);
    std::vector<Candidate> all(args.vocab);
    const Candidate* best = nullptr;
    for (int32_t i = 0; i < args.vocab; ++i) {
      double logit = LoadElement(args.dtype, args.logits, b * args.row_stride + i);
      if (std::isnan(logit)) logit = -std::numeric_limits<double>::infinity();
      all[i] = {logit, 0, i};
      if (best == nullptr || logit > best->logit) best = &all[i];
    }
    if (!std::isfinite(best->logit)) {
      args.tokens[b] = -1;
      if (args.logprobs != nullptr) args.logprobs[b] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    double total = 0;
    const double temperature = greedy ? 1.0 : filters.temperature;
    for (Candidate& c : all) {
      if (std::isfinite(c.logit)) c.weight = std::exp((c.logit - best->logit) / temperature);
      total += c.weight;
    }
    int32_t token = best->id;
    if (!greedy) {
      const double u =
          UniformDraw(args.seed, of(args.request_ids, static_cast<uint64_t>(b)), of(args.steps, uint64_t{0}));
      token = Draw(all, filters, u);
    }
    args.tokens[b] = token;
    if (args.logprobs != nullptr) {
      args.logprobs[b] = static_cast<float>((all[token].logit - best->logit) / temperature - std::log(total));
    }
  }
}

}  // namespace llmd::attention::reference
