#include <cmath>
#include <limits>
#include <vector>

#include "src/attention/numeric.h"
#include "src/attention/pages.h"
#include "src/attention/reference.h"

namespace llmd::attention::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One row (a token and a head) of the result.
struct Row {
  std::vector<double> o;
  double lse = -kInfinity;
};

void Write(const llmd_attention_args& args, int64_t token, int32_t head, const Row& row) {
  for (int32_t d = 0; d < args.shape.head_dim; ++d) {
    StoreElement(args.o_dtype, args.o, token * args.o_strides.token + head * args.o_strides.head + d,
                 static_cast<float>(row.o[d]));
  }
  if (args.lse != nullptr) {
    args.lse[token * args.lse_strides.token + head * args.lse_strides.head] = static_cast<float>(row.lse);
  }
}

Row Compute(const llmd_attention_args& args, const Request& request, int64_t i, int32_t head) {
  const llmd_kv_cache& cache = args.cache;
  const int32_t dim = args.shape.head_dim;
  const int32_t kv_head = head / (args.shape.num_q_heads / args.shape.num_kv_heads);
  const bool validate = (args.flags & LLMD_VALIDATE) != 0;
  const auto scale_of = [&](const float* scales) {
    return cache.dtype == LLMD_E4M3 && scales != nullptr ? double{scales[kv_head * cache.scale_stride]} : 1.0;
  };
  const double k_scale = scale_of(cache.k_scale);
  const double v_scale = scale_of(cache.v_scale);
  const int64_t q_at = (request.first_row + i) * args.q_strides.token + head * args.q_strides.head;
  std::vector<double> q(dim);
  for (int32_t d = 0; d < dim; ++d) q[d] = LoadElement(args.q_dtype, args.q, q_at + d);

  struct Key {
    int64_t page, offset;
    double score;
  };
  std::vector<Key> keys;
  double top = -kInfinity;
  for (int64_t j = request.Begin(i, args.shape.window); j < request.End(i); ++j) {
    const int32_t page = request.pages[j / cache.page_size];
    if (validate && (page < 0 || page >= cache.num_pages)) continue;
    const int64_t offset = j % cache.page_size;
    const int64_t k_at = Offset(cache.k_strides, page, offset, kv_head);
    double dot = 0;
    for (int32_t d = 0; d < dim; ++d) {
      dot += q[d] * (double{LoadElement(cache.dtype, cache.k, k_at + d)} * k_scale);
    }
    keys.push_back({page, offset, args.scale * dot});
    if (!(keys.back().score <= top)) top = keys.back().score;  // NaN as well
  }
  Row row{std::vector<double>(dim, 0.0)};
  if (args.sinks != nullptr) top = std::max(top, double{args.sinks[head]});
  if (top == -kInfinity) return row;
  double sum = args.sinks != nullptr ? std::exp(args.sinks[head] - top) : 0.0;
  for (const Key& key : keys) {
    const double weight = std::exp(key.score - top);
    sum += weight;
    const int64_t v_at = Offset(cache.v_strides, key.page, key.offset, kv_head);
    for (int32_t d = 0; d < dim; ++d) {
      row.o[d] += weight * (double{LoadElement(cache.dtype, cache.v, v_at + d)} * v_scale);
    }
  }
  for (double& x : row.o) x /= sum;
  row.lse = top + std::log(sum);
  return row;
}

}  // namespace

void Attention(const llmd_attention_args& args, llmd_data_error* error) {
  const bool validate = (args.flags & LLMD_VALIDATE) != 0;
  for (int32_t b = 0; b < args.batch; ++b) {
    const Request request = RequestOf(args, b);
    if (validate && error->kind == LLMD_DATA_OK) *error = FirstError(args, b, request);
    for (int64_t i = 0; i < request.rows; ++i) {
      for (int32_t h = 0; h < args.shape.num_q_heads; ++h) {
        Write(args, request.first_row + i, h, Compute(args, request, i, h));
      }
    }
  }
  if ((args.flags & LLMD_ZERO_PADDING) != 0 && args.shape.mode != LLMD_DECODE) {
    const Row zero{std::vector<double>(args.shape.head_dim, 0.0)};
    for (int64_t t = std::max(0, args.q_start[args.batch]); t < args.num_tokens; ++t) {
      for (int32_t h = 0; h < args.shape.num_q_heads; ++h) Write(args, t, h, zero);
    }
  }
}

void MergeStates(const llmd_merge_states_args& args) {
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    for (int32_t h = 0; h < args.num_heads; ++h) {
      std::vector<int64_t> parts;  // rows of [parts, Hq]
      if (args.part_start != nullptr) {
        for (int64_t p = args.part_start[t]; p < args.part_start[t + 1]; ++p) parts.push_back(p);
      } else {
        for (int64_t s = 0; s < args.num_parts; ++s) parts.push_back(s * args.num_tokens + t);
      }
      double top = -kInfinity;
      for (int64_t& part : parts) {
        part = part * args.num_heads + h;
        if (args.partial_lse[part] != kInfinity) top = std::max(top, double{args.partial_lse[part]});
      }
      std::vector<double> o(args.head_dim, 0.0);
      double sum = 0;
      for (const int64_t part : parts) {
        const double lse = args.partial_lse[part];
        if (std::isinf(lse)) continue;
        const double weight = std::exp(lse - top);
        sum += weight;
        for (int32_t d = 0; d < args.head_dim; ++d) {
          o[d] += weight * LoadElement(args.partial_dtype, args.partial_o, part * args.head_dim + d);
        }
      }
      for (int32_t d = 0; d < args.head_dim; ++d) {
        const double x = sum > 0 ? o[d] / sum : 0.0;
        StoreElement(args.o_dtype, args.o, t * args.o_strides.token + h * args.o_strides.head + d,
                     static_cast<float>(x));
      }
      if (args.lse != nullptr) {
        args.lse[t * args.lse_strides.token + h * args.lse_strides.head] =
            static_cast<float>(sum > 0 ? top + std::log(sum) : -kInfinity);
      }
    }
  }
}

}  // namespace llmd::attention::reference
