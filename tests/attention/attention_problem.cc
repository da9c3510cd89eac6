#include "tests/attention/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>

#include "src/attention/check.h"
#include "src/attention/numeric.h"

namespace llmd::attention {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kGuard = 64;  // elements before and after each output

int64_t TotalPages(const Case& c) {
  int64_t pages = 3;
  for (const Request32& r : c.requests) pages += (r.length + c.page_size - 1) / c.page_size + 1;
  return pages;
}

}  // namespace

std::string Describe(const Case& c) {
  std::ostringstream out;
  out << "mode " << c.mode << " kv " << NameOf(c.kv_dtype) << " q " << NameOf(c.q_dtype) << " o "
      << NameOf(c.o_dtype) << " group " << c.group << " kv_heads " << c.kv_heads << " D " << c.head_dim
      << " P " << c.page_size << " layout " << static_cast<int>(c.layout) << (c.csr ? " csr" : "")
      << " window " << c.window << (c.sinks ? " sinks" : "") << (c.lse ? "" : " no lse") << " split "
      << c.fixed_split << " peak " << c.peak << " flags " << c.flags << " padding " << c.padding_rows
      << " requests";
  for (const Request32& r : c.requests) out << " " << r.length << "/" << r.rows;
  return out.str();
}

Cache::Cache(Layout layout, llmd_dtype dtype, int64_t pages, int32_t page_size, int32_t heads, int32_t dim) {
  const auto size = static_cast<int64_t>(SizeOf(dtype));
  const int64_t unit = 16 / size;
  const int64_t d = (dim + unit - 1) / unit * unit;  // strides are multiples of 16 bytes
  const int64_t p = page_size, h = heads, block = p * h * d;
  llmd_kv_strides strides = {};
  int64_t v_offset = 0;
  switch (layout) {
    case Layout::kNhd:
      strides = {block, h * d, d};
      v_offset = pages * block;
      break;
    case Layout::kHnd:
      strides = {block, d, p * d};
      v_offset = pages * block;
      break;
    case Layout::kNhdPacked:
      strides = {2 * block, h * d, d};
      v_offset = block;
      break;
    case Layout::kHndPacked:
      strides = {2 * block, d, p * d};
      v_offset = block;
      break;
    case Layout::kRows:
      strides = {2 * block, 2 * d, 2 * p * d};
      v_offset = d;
      break;
  }
  bytes_.assign(2 * pages * block * size + 16, '\xff');
  char* base = bytes_.data() + (16 - reinterpret_cast<uintptr_t>(bytes_.data()) % 16) % 16;
  view_.k = base;
  view_.v = base + v_offset * size;
  view_.k_strides = view_.v_strides = strides;
  view_.num_pages = pages;
  view_.page_size = page_size;
  view_.num_kv_heads = heads;
  view_.head_dim = dim;
  view_.dtype = dtype;
}

Problem::Problem(const Case& c, uint32_t seed)
    : case_(c), cache_(c.layout, c.kv_dtype, TotalPages(c), c.page_size, c.kv_heads, c.head_dim) {
  std::mt19937 random(seed);
  Fill(random);
}

void Problem::Fill(std::mt19937& random) {
  const Case& c = case_;
  std::normal_distribution<float> normal;
  const llmd_kv_cache view = cache_.view();
  std::vector<int32_t> free_pages(view.num_pages);
  std::iota(free_pages.begin(), free_pages.end(), 0);
  std::shuffle(free_pages.begin(), free_pages.end(), random);

  if (c.kv_dtype == LLMD_E4M3) {
    const int count = c.head_scales ? c.kv_heads : 1;
    for (int i = 0; i < count; ++i) {
      k_scales_.push_back(0.02f + 0.01f * i);
      v_scales_.push_back(0.05f + 0.02f * i);
    }
  }
  q_start_ = {0};
  indptr_ = {0};
  row_stride_ = 2;
  for (const Request32& r : c.requests) {
    row_stride_ = std::max(row_stride_, (r.length + c.page_size - 1) / c.page_size + 2);
  }
  constexpr int32_t kInvalid[] = {-1, std::numeric_limits<int32_t>::max(),
                                  std::numeric_limits<int32_t>::min()};
  for (const Request32& r : c.requests) {
    const int32_t count = (r.length + c.page_size - 1) / c.page_size;
    const int32_t rows = c.mode == LLMD_DECODE ? 1 : r.rows;
    const int32_t visible = c.window > 0 ? std::max(0, r.length - rows - c.window + 1) : 0;
    std::vector<int32_t> pages(c.csr ? count : row_stride_);
    for (int32_t i = 0; i < static_cast<int32_t>(pages.size()); ++i) {
      const bool seen = i < count && rows > 0 && (i + 1) * c.page_size > visible;
      if (!seen) {
        pages[i] = kInvalid[i % 3];
        continue;
      }
      pages[i] = free_pages.back();
      free_pages.pop_back();
      for (int32_t j = i * c.page_size; j < std::min(r.length, (i + 1) * c.page_size); ++j) {
        if (j < visible) continue;  // stays NaN
        for (int32_t h = 0; h < c.kv_heads; ++h) {
          const int64_t at = pages[i] * view.k_strides.page + j % c.page_size * view.k_strides.token +
                             h * view.k_strides.head;
          for (int32_t d = 0; d < c.head_dim; ++d) {
            const float factor = c.kv_dtype == LLMD_E4M3 ? 30.0f : 1.0f;
            StoreElement(c.kv_dtype, view.k, at + d, normal(random) * factor);
            StoreElement(c.kv_dtype, view.v, at + d, normal(random) * factor);
          }
        }
      }
    }
    table_.insert(table_.end(), pages.begin(), pages.end());
    indptr_.push_back(indptr_.back() + count);
    seq_lens_.push_back(r.length);
    last_page_len_.push_back(count == 0 ? 0 : r.length - (count - 1) * c.page_size);
    q_start_.push_back(q_start_.back() + rows);
  }
  num_tokens_ = q_start_.back() + (c.mode == LLMD_DECODE ? 0 : c.padding_rows);
  const int64_t heads = num_heads();
  q_strides_ = {heads * c.head_dim + 8, c.head_dim};
  q_.assign((num_tokens_ * q_strides_.token + 1) * SizeOf(c.q_dtype), '\xff');
  for (int64_t t = 0; t < q_start_.back(); ++t) {
    for (int64_t i = 0; i < heads * c.head_dim; ++i) {
      StoreElement(c.q_dtype, q_.data(), t * q_strides_.token + i, normal(random) * c.peak);
    }
  }
  if (c.sinks) {
    for (int64_t h = 0; h < heads; ++h) sinks_.push_back(normal(random) * 3);
  }
}

int32_t* Problem::pages(size_t request) {
  return table_.data() + (case_.csr ? indptr_[request] : static_cast<int64_t>(request) * row_stride_);
}

llmd_attention_shape Problem::shape() const {
  llmd_attention_shape shape = {};
  shape.mode = case_.mode;
  shape.max_batch = std::max<int32_t>(1, static_cast<int32_t>(case_.requests.size()));
  shape.max_tokens = std::max(1, num_tokens_);
  shape.num_q_heads = num_heads();
  shape.num_kv_heads = case_.kv_heads;
  shape.head_dim = case_.head_dim;
  shape.kv_dtype = case_.kv_dtype;
  shape.page_size = case_.page_size;
  shape.window = case_.window;
  shape.fixed_split = case_.fixed_split;
  for (const Request32& r : case_.requests) shape.max_kv_tokens += r.length;
  shape.max_kv_tokens = std::max<int64_t>(1, shape.max_kv_tokens);
  return shape;
}

llmd_attention_args Problem::args() const {
  llmd_attention_args args = {};
  args.shape = shape();
  args.batch = static_cast<int32_t>(case_.requests.size());
  args.num_tokens = num_tokens_;
  args.q = q_.data();
  args.q_strides = q_strides_;
  args.q_dtype = case_.q_dtype;
  args.o_dtype = case_.o_dtype;
  args.q_start = case_.mode == LLMD_DECODE ? nullptr : q_start_.data();
  args.cache = cache_.view();
  if (!k_scales_.empty()) {
    args.cache.k_scale = k_scales_.data();
    args.cache.v_scale = v_scales_.data();
    args.cache.scale_stride = case_.head_scales ? 1 : 0;
  }
  args.pages.pages = table_.data();
  if (case_.csr) {
    args.pages.indptr = indptr_.data();
    args.pages.last_page_len = last_page_len_.data();
    args.pages.max_pages = static_cast<int32_t>(table_.size());
  } else {
    args.pages.row_stride = row_stride_;
    args.pages.max_pages = row_stride_;
    args.pages.seq_lens = seq_lens_.data();
  }
  args.scale = 1 / std::sqrt(static_cast<float>(case_.head_dim));
  args.sinks = case_.sinks ? sinks_.data() : nullptr;
  args.flags = case_.flags;
  return args;
}

std::vector<char> NewWorkspace(const llmd_attention_backend& backend, const llmd_attention_shape& shape) {
  std::vector<char> workspace(backend.workspace_bytes(&shape), '\xff');
  if (workspace.empty() || backend.init_workspace(workspace.data(), workspace.size(), nullptr) != LLMD_OK)
    return {};
  return workspace;
}

Result Problem::Run(const llmd_attention_backend& backend) const {
  std::vector<char> workspace = NewWorkspace(backend, shape());
  if (workspace.empty()) return {{}, {}, LLMD_UNSUPPORTED, backend.last_error()};
  return Run(backend, workspace);
}

Result Problem::Run(const llmd_attention_backend& backend, std::vector<char>& workspace) const {
  Result result;
  llmd_attention_args args = this->args();
  llmd_plan_args plan = {};
  plan.shape = args.shape;
  plan.batch = args.batch;
  plan.pages = args.pages;
  plan.q_start = args.q_start;
  plan.workspace = args.workspace = workspace.data();
  plan.workspace_bytes = args.workspace_bytes = workspace.size();
  result.code = backend.plan(&plan, nullptr);
  if (result.code != LLMD_OK) {
    result.error = backend.last_error();
    return result;
  }
  const int64_t heads = num_heads(), dim = case_.head_dim, tokens = num_tokens_;
  args.o_strides = {heads * (dim + 3) + 1, dim + 3};
  args.lse_strides = {1, tokens + 1};  // head-major
  std::vector<char> o((tokens * args.o_strides.token + 2 * kGuard) * SizeOf(args.o_dtype), '\xff');
  std::vector<float> lse((heads * args.lse_strides.head + 2 * kGuard), kNaN);
  args.o = o.data() + kGuard * SizeOf(args.o_dtype);
  if (case_.lse) args.lse = lse.data() + kGuard;
  result.code = backend.attention(&args, nullptr);
  if (result.code != LLMD_OK) {
    result.error = backend.last_error();
    return result;
  }
  result.o.reserve(tokens * heads * dim);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        result.o.push_back(
            LoadElement(args.o_dtype, args.o, t * args.o_strides.token + h * args.o_strides.head + d));
      }
      if (case_.lse) result.lse.push_back(args.lse[t * args.lse_strides.token + h * args.lse_strides.head]);
    }
  }
  // What lies between and around the rows is as it was.
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = kGuard + t * args.o_strides.token + h * args.o_strides.head;
      std::fill_n(o.begin() + at * SizeOf(args.o_dtype), dim * SizeOf(args.o_dtype), '\xff');
    }
  }
  if (std::any_of(o.begin(), o.end(), [](char x) { return x != '\xff'; })) {
    result.error = "wrote outside of the rows of o";
  }
  return result;
}

std::string Compare(const Problem& problem, const Result& got, const Result& want) {
  const Case& c = problem.config();
  if (got.code != LLMD_OK) return "failed: " + got.error;
  if (want.code != LLMD_OK) return "the reference failed: " + want.error;
  if (!got.error.empty()) return got.error;
  double row_limit = 1e-4, overall_limit = 1e-5, lse_limit = 1e-5;
  if (c.o_dtype == LLMD_BF16) row_limit = 4e-3, overall_limit = 2e-3;
  if (c.o_dtype == LLMD_F16) row_limit = 1e-3, overall_limit = 4e-4;
  const int64_t dim = c.head_dim;
  double error = 0, size = 0;
  for (size_t row = 0; row < want.o.size() / dim; ++row) {
    double row_error = 0, row_size = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double a = got.o[row * dim + d], b = want.o[row * dim + d];
      if (std::isnan(a) && std::isnan(b)) continue;  // a padding row that both left alone
      row_error += (a - b) * (a - b);
      row_size += b * b;
    }
    error += row_error;
    size += row_size;
    if (!(row_error <= row_limit * row_limit * row_size)) {
      return "row " + std::to_string(row) + ": relative error " +
             std::to_string(std::sqrt(row_error / row_size));
    }
    if (!c.lse) continue;
    const double a = got.lse[row], b = want.lse[row];
    const bool same = (std::isnan(a) && std::isnan(b)) || a == b;
    if (!same && !(std::abs(a - b) <= lse_limit * std::max(1.0, std::abs(b)))) {
      return "row " + std::to_string(row) + ": lse " + std::to_string(a) + ", not " + std::to_string(b);
    }
  }
  if (!(error <= overall_limit * overall_limit * size)) {
    return "overall relative error " + std::to_string(std::sqrt(error / size));
  }
  return "";
}

}  // namespace llmd::attention
