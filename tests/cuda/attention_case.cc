#include "tests/cuda/attention_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "src/attention/check.h"
#include "src/attention/numeric.h"

namespace llmd::testing {
namespace {

constexpr int32_t kBadPage = 0x7FFFFFF0;
constexpr double kLseTolerance = 1e-3;

// Spec: paged-attention.md 2.7.
Tolerance AttentionTolerance(const CaseOptions& options) {
  if (options.kv_dtype == LLMD_F16 && options.o_dtype != LLMD_BF16) return {1e-3, 4e-3};
  return {4e-3, 1.5e-2};
}

template <typename T>
std::unique_ptr<Buffer> BufferOf(const std::vector<T>& values) {
  auto buffer = std::make_unique<Buffer>(values.size() * sizeof(T));
  std::copy(values.begin(), values.end(), buffer->template host<T>());
  buffer->Upload();
  return buffer;
}

}  // namespace

std::string CaseOptions::Name() const {
  std::string text = "mode " + std::to_string(mode) + ", kv " + attention::NameOf(kv_dtype) + ", q " +
                     attention::NameOf(q_dtype) + ", o " + attention::NameOf(o_dtype) + ", Hkv " +
                     std::to_string(kv_heads) + ", G " + std::to_string(group) + ", D " +
                     std::to_string(head_dim) + ", P " + std::to_string(page_size) + ", layout " +
                     std::to_string(static_cast<int>(layout)) + ", W " + std::to_string(window) + ", split " +
                     std::to_string(fixed_split) + (sinks ? ", sinks" : "") + (csr ? ", csr" : "") +
                     (validate ? ", validate" : "") + ", peak " + std::to_string(peak) + ", seed " +
                     std::to_string(seed) + ", lengths";
  for (std::size_t i = 0; i < std::min<std::size_t>(lengths.size(), 12); ++i) {
    text += " " + std::to_string(lengths[i]);
    if (!queries.empty()) text += "/" + std::to_string(queries[i]);
  }
  return text;
}

AttentionCase::AttentionCase(const CaseOptions& options)
    : options_(options), lengths_(options.lengths), random_(options.seed) {
  LLMD_MUST(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  const int batch = static_cast<int>(options.lengths.size());
  const int d = options.head_dim, p = options.page_size, hkv = options.kv_heads, hq = hkv * options.group;
  const std::vector<int32_t> queries =
      options.queries.empty() ? std::vector<int32_t>(batch, 1) : options.queries;
  const int tokens = std::accumulate(queries.begin(), queries.end(), 0) + options.padding_rows;

  // Pages: a random permutation of a pool larger than needed.
  std::vector<int32_t> indptr(batch + 1), last(batch);
  int columns = 3;
  for (int b = 0; b < batch; ++b) {
    const int count = (options.lengths[b] + p - 1) / p;
    indptr[b + 1] = indptr[b] + count;
    last[b] = count == 0 ? 0 : options.lengths[b] - (count - 1) * p;
    columns = std::max(columns, count + 2);
  }
  const int total = indptr[batch], num_pages = total + 5;
  const std::vector<int64_t> order = Permutation(num_pages, random_);
  if (options.csr) {
    pages_.assign(order.begin(), order.begin() + total);
    pages_.push_back(kBadPage);
  } else {
    pages_.assign(static_cast<std::size_t>(batch) * columns, kBadPage);  // tails are never read
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < indptr[b + 1] - indptr[b]; ++i) {
        pages_[b * columns + i] = static_cast<int>(order[indptr[b] + i]);
      }
    }
  }

  // The pool: NaN where no token is.
  pool_ = std::make_unique<Pool>(PoolShape{.layout = options.layout,
                                           .dtype = options.kv_dtype,
                                           .pages = num_pages,
                                           .page_size = p,
                                           .heads = hkv,
                                           .head_dim = d,
                                           .scales = options.kv_dtype != LLMD_E4M3 ? 0
                                                     : options.scale_per_head      ? 2
                                                                                   : 1,
                                           .least_scale = 0.5f,
                                           .most_scale = 1.5f},
                                 random_);
  const llmd_kv_cache cache = pool_->View(Side::kHost);
  std::normal_distribution<float> normal;
  for (int b = 0; b < batch; ++b) {
    for (int i = 0; i < options.lengths[b]; ++i) {
      const int64_t at = order[indptr[b] + i / p] * cache.k_strides.page + i % p * cache.k_strides.token;
      for (int h = 0; h < hkv; ++h) {
        for (int e = 0; e < d; ++e) {
          attention::StoreElement(cache.dtype, cache.k, at + h * cache.k_strides.head + e, normal(random_));
          attention::StoreElement(cache.dtype, cache.v, at + h * cache.v_strides.head + e, normal(random_));
        }
      }
    }
  }
  pool_->memory().Upload();

  const std::size_t elements = static_cast<std::size_t>(tokens) * hq * d;
  q_ = std::make_unique<Buffer>(elements * attention::SizeOf(options.q_dtype));
  FillNormal(*q_, options.q_dtype, random_, static_cast<float>(options.peak));
  q_->Upload();
  o_ = std::make_unique<Buffer>(elements * attention::SizeOf(options.o_dtype));
  lse_ = std::make_unique<Buffer>(static_cast<std::size_t>(tokens) * hq * sizeof(float));
  table_ = BufferOf(pages_);
  seq_lens_ = BufferOf(lengths_);
  indptr_ = BufferOf(indptr);
  last_ = BufferOf(last);
  std::vector<int32_t> q_start(batch + 1);
  std::partial_sum(queries.begin(), queries.end(), q_start.begin() + 1);
  q_start_ = BufferOf(q_start);
  sinks_ = std::make_unique<Buffer>(hq * sizeof(float));
  FillNormal(*sinks_, LLMD_F32, random_, 2);
  sinks_->Upload();

  llmd_attention_shape shape{};
  shape.mode = options.mode;
  shape.max_batch = std::max(options.max_batch, batch);
  shape.max_tokens = tokens;
  shape.num_q_heads = hq;
  shape.num_kv_heads = hkv;
  shape.head_dim = d;
  shape.kv_dtype = options.kv_dtype;
  shape.page_size = p;
  shape.window = options.window;
  shape.fixed_split = options.fixed_split;
  shape.max_kv_tokens = std::accumulate(lengths_.begin(), lengths_.end(), int64_t{0});
  const llmd_attention_backend* backends[] = {llmd_attention_reference(), llmd_attention_cuda()};
  for (const Side side : {Side::kHost, Side::kDevice}) {
    const llmd_attention_backend* backend = backends[side == Side::kDevice];
    CaseMemory& memory = side == Side::kDevice ? device_ : host_;
    memory.workspace = std::make_unique<Buffer>(backend->workspace_bytes(&shape));
    SetArguments(memory, side, shape, tokens, columns);
    backend->init_workspace(memory.args.workspace, memory.args.workspace_bytes,
                            side == Side::kDevice ? stream_ : nullptr);
  }
  LLMD_MUST(cudaStreamSynchronize(stream_));
}

AttentionCase::~AttentionCase() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

void AttentionCase::SetArguments(CaseMemory& memory, Side side, const llmd_attention_shape& shape, int tokens,
                                 int columns) {
  llmd_attention_args& args = memory.args;
  const int64_t d = shape.head_dim, hq = shape.num_q_heads;
  args.shape = shape;
  args.batch = static_cast<int>(lengths_.size());
  args.num_tokens = tokens;
  args.q = q_->at(side);
  args.o = o_->at(side);
  args.lse = options_.lse ? lse_->as<float>(side) : nullptr;
  args.q_strides = args.o_strides = {hq * d, d};
  args.lse_strides = {hq, 1};
  args.q_dtype = options_.q_dtype;
  args.o_dtype = options_.o_dtype;
  args.q_start = shape.mode == LLMD_DECODE ? nullptr : q_start_->as<int32_t>(side);
  args.cache = pool_->View(side);
  args.pages.pages = table_->as<int32_t>(side);
  args.pages.row_stride = columns;
  args.pages.max_pages = options_.csr ? static_cast<int>(pages_.size()) - 1 : columns;
  if (options_.csr) {
    args.pages.indptr = indptr_->as<int32_t>(side);
    args.pages.last_page_len = last_->as<int32_t>(side);
  } else {
    args.pages.seq_lens = seq_lens_->as<int32_t>(side);
  }
  args.scale = static_cast<float>(1 / std::sqrt(d));
  args.sinks = options_.sinks ? sinks_->as<float>(side) : nullptr;
  args.flags = (options_.validate ? LLMD_VALIDATE : 0) | (options_.zero_padding ? LLMD_ZERO_PADDING : 0);
  args.workspace = memory.workspace->at(side);
  args.workspace_bytes = memory.workspace->size();
  memory.plan = {.shape = shape,
                 .batch = args.batch,
                 .pages = args.pages,
                 .q_start = args.q_start,
                 .workspace = args.workspace,
                 .workspace_bytes = args.workspace_bytes};
}

void AttentionCase::ChangeLengths(const std::vector<int>& lengths) {
  lengths_ = lengths;
  std::copy(lengths.begin(), lengths.end(), seq_lens_->host<int32_t>());
  seq_lens_->Upload();
}

void AttentionCase::UploadPages() {
  std::copy(pages_.begin(), pages_.end(), table_->host<int32_t>());
  table_->Upload();
}

void AttentionCase::PoisonHostOutputs() {
  for (Buffer* buffer : {o_.get(), lse_.get()}) std::memset(buffer->host<char>(), 0xff, buffer->size());
}

void AttentionCase::PoisonOutputs() {
  PoisonHostOutputs();
  o_->Upload();
  lse_->Upload();
}

llmd_code AttentionCase::RunDevice() {
  PoisonOutputs();
  const llmd_attention_backend* cuda = llmd_attention_cuda();
  llmd_code code = cuda->plan(&device_.plan, stream_);
  if (code == LLMD_OK) code = cuda->attention(&device_.args, stream_);
  LLMD_MUST(cudaStreamSynchronize(stream_));
  return code;
}

std::vector<unsigned char> AttentionCase::DeviceOutput() {
  std::vector<unsigned char> bytes = o_->Download();
  const std::vector<unsigned char> lse = lse_->Download();
  bytes.insert(bytes.end(), lse.begin(), lse.end());
  return bytes;
}

std::string AttentionCase::Compare() {
  PoisonHostOutputs();
  const llmd_attention_backend* reference = llmd_attention_reference();
  // What is right, in fp32 output.
  std::vector<float> right(o_->size() / attention::SizeOf(options_.o_dtype),
                           std::numeric_limits<float>::quiet_NaN());
  llmd_attention_args args = host_.args;
  args.o = right.data();
  args.o_dtype = LLMD_F32;
  if (reference->plan(&host_.plan, nullptr) != LLMD_OK || reference->attention(&args, nullptr) != LLMD_OK) {
    return std::string("reference: ") + reference->last_error();
  }
  const std::vector<unsigned char> o_bytes = o_->Download(), lse_bytes = lse_->Download();
  const unsigned char* o = o_bytes.data();
  const auto* lse = reinterpret_cast<const float*>(lse_bytes.data());
  const int d = options_.head_dim, hq = options_.kv_heads * options_.group;
  const int rows = static_cast<int>(right.size()) / d;
  const Tolerance tolerance = AttentionTolerance(options_);
  double difference = 0, norm = 0;
  std::string wrong;
  for (int row = 0; row < rows && wrong.empty(); ++row) {
    const std::string where = " at token " + std::to_string(row / hq) + ", head " + std::to_string(row % hq);
    double row_difference = 0, row_norm = 0;
    for (int e = 0; e < d; ++e) {
      const int64_t at = static_cast<int64_t>(row) * d + e;
      const float got = attention::LoadElement(options_.o_dtype, o, at), want = right[at];
      if (std::isnan(want) != std::isnan(got) || std::isinf(got)) {
        wrong = "o is " + std::to_string(got) + ", not " + std::to_string(want) + where + ", dimension " +
                std::to_string(e);
        break;
      }
      if (std::isnan(want)) continue;  // padding, left alone by both
      row_difference += (got - want) * (got - want);
      row_norm += static_cast<double>(want) * want;
    }
    // Small results are subnormal halves.
    const double floor = options_.o_dtype == LLMD_F16 ? std::sqrt(d) * 0x1p-25 : 0;
    if (std::sqrt(row_difference) > tolerance.worst_row * std::sqrt(row_norm) + floor) {
      wrong = "row differs by " + std::to_string(std::sqrt(row_difference / row_norm)) + where;
    }
    difference += row_difference;
    norm += row_norm;
    if (options_.lse && wrong.empty()) {
      const float got = lse[row], want = lse_->host<float>()[row];
      const bool same = got == want || (std::isnan(got) && std::isnan(want)) ||
                        std::abs(got - want) <= kLseTolerance * std::max(1.0, std::abs(want) * 1e-2);
      if (!same) wrong = "lse is " + std::to_string(got) + ", not " + std::to_string(want) + where;
    }
  }
  if (wrong.empty() && std::sqrt(difference) > tolerance.overall * std::sqrt(norm)) {
    wrong = "all differs by " + std::to_string(std::sqrt(difference / norm));
  }
  return wrong.empty() ? "" : wrong + " (" + options_.Name() + ")";
}

}  // namespace llmd::testing
