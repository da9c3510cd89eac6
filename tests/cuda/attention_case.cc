#include "tests/cuda/attention_case.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "src/attention/check.h"
#include "src/attention/numeric.h"

namespace llmd::testing {
namespace {

constexpr std::size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;
constexpr unsigned char kPoison = 0xFF;  // NaN in every dtype

void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::abort();
}

double Uniform(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}

double Normal(std::uint64_t& state) {
  const double a = Uniform(state), b = Uniform(state);
  return std::sqrt(-2 * std::log(a + 1e-300)) * std::cos(2 * M_PI * b);
}

struct Tolerance {
  double overall, row, lse;
};

// Spec: paged-attention.md 2.7.
Tolerance ToleranceOf(const CaseOptions& options) {
  if (options.kv_dtype == LLMD_F16 && options.o_dtype != LLMD_BF16) return {1e-3, 4e-3, 1e-3};
  return {4e-3, 1.5e-2, 1e-3};
}

}  // namespace

struct AttentionCase::Buffer {
  std::size_t bytes = 0;
  std::vector<unsigned char> host;  // with guards
  unsigned char* device = nullptr;

  template <typename T>
  T* Host() {
    return reinterpret_cast<T*>(host.data() + kGuard);
  }
  template <typename T>
  T* On(bool on_device) {
    return on_device ? reinterpret_cast<T*>(device + kGuard) : Host<T>();
  }
  void Upload() { Must(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice)); }
};

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

bool HasGpu(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaSuccess && count > 0) return true;
  *why = error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
  return false;
}

AttentionCase::Buffer& AttentionCase::Add(std::size_t bytes) {
  auto* buffer = new Buffer;
  buffer->bytes = bytes;
  buffer->host.assign(bytes + 2 * kGuard, kGuardByte);
  Must(cudaMalloc(reinterpret_cast<void**>(&buffer->device), bytes + 2 * kGuard));
  buffer->Upload();
  buffers_.push_back(buffer);
  return *buffer;
}

void AttentionCase::Fill(Buffer& buffer, llmd_dtype dtype, double spread) {
  const std::size_t count = buffer.bytes / attention::SizeOf(dtype);
  for (std::size_t i = 0; i < count; ++i) {
    attention::StoreElement(dtype, buffer.Host<char>(), static_cast<int64_t>(i),
                            static_cast<float>(spread * Normal(random_)));
  }
}

AttentionCase::AttentionCase(const CaseOptions& options)
    : options_(options), lengths_(options.lengths), random_(options.seed * 0x9E3779B97F4A7C15u + 1) {
  Must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  const int batch = static_cast<int>(options.lengths.size());
  const int d = options.head_dim, p = options.page_size, hkv = options.kv_heads, hq = hkv * options.group;
  std::vector<int> queries = options.queries.empty() ? std::vector<int>(batch, 1) : options.queries;
  const int tokens = std::accumulate(queries.begin(), queries.end(), 0) + options.padding_rows;

  // Pages: a random permutation of a pool larger than needed, one page shared by two requests where that can
  // be.
  std::vector<int> counts(batch);
  int total = 0, most = 1;
  for (int b = 0; b < batch; ++b) {
    counts[b] = (options.lengths[b] + p - 1) / p;
    total += counts[b];
    most = std::max(most, counts[b]);
  }
  const int num_pages = total + 5;
  std::vector<int> order(num_pages);
  std::iota(order.begin(), order.end(), 0);
  for (int i = num_pages - 1; i > 0; --i)
    std::swap(order[i], order[static_cast<int>(Uniform(random_) * (i + 1))]);
  const int columns = most + 2;
  std::vector<int> indptr(batch + 1), last(batch);
  int next = 0;
  for (int b = 0; b < batch; ++b) {
    indptr[b] = next;
    last[b] = counts[b] == 0 ? 0 : options.lengths[b] - (counts[b] - 1) * p;
    next += counts[b];
  }
  indptr[batch] = next;
  if (options.csr) {
    pages_.assign(order.begin(), order.begin() + total);
    pages_.push_back(0x7FFFFFF0);
  } else {
    pages_.assign(static_cast<std::size_t>(batch) * columns, 0x7FFFFFF0);  // tails are never read
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < counts[b]; ++i) pages_[b * columns + i] = order[indptr[b] + i];
    }
  }

  // The pool: NaN where no token is.
  const std::size_t element = attention::SizeOf(options.kv_dtype);
  const int64_t block = static_cast<int64_t>(p) * hkv * d;
  const bool packed = options.layout == Layout::kNhdPacked || options.layout == Layout::kHndPacked;
  const bool rows = options.layout == Layout::kRows;
  llmd_kv_strides strides{};
  switch (options.layout) {
    case Layout::kNhd:
      strides = {block, static_cast<int64_t>(hkv) * d, d};
      break;
    case Layout::kNhdPacked:
      strides = {2 * block, static_cast<int64_t>(hkv) * d, d};
      break;
    case Layout::kHnd:
      strides = {block, d, static_cast<int64_t>(p) * d};
      break;
    case Layout::kHndPacked:
      strides = {2 * block, d, static_cast<int64_t>(p) * d};
      break;
    case Layout::kRows:
      strides = {2 * block, 2 * d, static_cast<int64_t>(p) * 2 * d};
      break;
  }
  const bool together = packed || rows;
  const int64_t v_offset = packed ? block : rows ? d : 0;
  k_ = &Add(num_pages * block * element * (together ? 2 : 1));
  v_ = together ? k_ : &Add(num_pages * block * element);
  std::memset(k_->Host<char>(), kPoison, k_->bytes);
  std::memset(v_->Host<char>(), kPoison, v_->bytes);
  for (int b = 0; b < batch; ++b) {
    for (int i = 0; i < options.lengths[b]; ++i) {
      const int64_t at = order[indptr[b] + i / p] * strides.page + i % p * strides.token;
      for (int h = 0; h < hkv; ++h) {
        for (int e = 0; e < d; ++e) {
          attention::StoreElement(options.kv_dtype, k_->Host<char>(), at + h * strides.head + e,
                                  static_cast<float>(Normal(random_)));
          attention::StoreElement(options.kv_dtype, v_->Host<char>(), v_offset + at + h * strides.head + e,
                                  static_cast<float>(Normal(random_)));
        }
      }
    }
  }

  const std::size_t rows_bytes = static_cast<std::size_t>(tokens) * hq * d;
  q_ = &Add(rows_bytes * 2);
  Fill(*q_, options.q_dtype, options.peak);
  o_ = &Add(rows_bytes * attention::SizeOf(options.o_dtype));
  lse_ = &Add(static_cast<std::size_t>(tokens) * hq * 4);
  table_ = &Add(pages_.size() * 4);
  seq_lens_ = &Add(batch * 4);
  indptr_ = &Add((batch + 1) * 4);
  last_ = &Add(batch * 4);
  q_start_ = &Add((batch + 1) * 4);
  sinks_ = &Add(hq * 4);
  k_scale_ = &Add(hkv * 4);
  v_scale_ = &Add(hkv * 4);
  std::memcpy(table_->Host<int>(), pages_.data(), pages_.size() * 4);
  std::memcpy(indptr_->Host<int>(), indptr.data(), indptr.size() * 4);
  std::memcpy(last_->Host<int>(), last.data(), last.size() * 4);
  q_start_->Host<int>()[0] = 0;
  std::partial_sum(queries.begin(), queries.end(), q_start_->Host<int>() + 1);
  for (int h = 0; h < hq; ++h) sinks_->Host<float>()[h] = static_cast<float>(2 * Normal(random_));
  for (int h = 0; h < hkv; ++h) {
    k_scale_->Host<float>()[h] = static_cast<float>(0.5 + Uniform(random_));
    v_scale_->Host<float>()[h] = static_cast<float>(0.5 + Uniform(random_));
  }

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
  const llmd_attention_backend* reference = llmd_attention_reference();
  const std::size_t workspace_bytes = llmd_attention_cuda()->workspace_bytes(&shape);
  workspace_ = &Add(workspace_bytes);
  host_workspace_ = &Add(reference->workspace_bytes(&shape));
  for (bool device : {false, true}) {
    CaseMemory& memory = device ? device_ : host_;
    memory.plan.shape = memory.args.shape = shape;
    memory.plan.batch = memory.args.batch = batch;
    memory.args.num_tokens = tokens;
    memory.args.q_strides = memory.args.o_strides = {static_cast<int64_t>(hq) * d, d};
    memory.args.lse_strides = {hq, 1};
    memory.args.q_dtype = options.q_dtype;
    memory.args.o_dtype = options.o_dtype;
    memory.args.scale = static_cast<float>(1 / std::sqrt(d));
    memory.args.flags =
        (options.validate ? LLMD_VALIDATE : 0) | (options.zero_padding ? LLMD_ZERO_PADDING : 0);
    llmd_kv_cache& cache = memory.args.cache;
    cache.k_strides = cache.v_strides = strides;
    cache.num_pages = num_pages;
    cache.page_size = p;
    cache.num_kv_heads = hkv;
    cache.head_dim = d;
    cache.dtype = options.kv_dtype;
    cache.scale_stride = options.scale_per_head;
    cache.k = k_->On<char>(device);
    cache.v = v_->On<char>(device) + v_offset * static_cast<int64_t>(element);
    memory.args.pages.row_stride = columns;
    memory.args.pages.max_pages = options.csr ? total : columns;
    SetPointers(memory, device);
  }
  for (Buffer* buffer : buffers_) buffer->Upload();
  UploadLengths();
  const llmd_attention_backend* cuda = llmd_attention_cuda();
  cuda->init_workspace(device_.args.workspace, workspace_bytes, stream_);
  reference->init_workspace(host_.args.workspace, host_workspace_->bytes, nullptr);
  Must(cudaStreamSynchronize(stream_));
}

AttentionCase::~AttentionCase() {
  cudaStreamSynchronize(stream_);
  for (Buffer* buffer : buffers_) {
    cudaFree(buffer->device);
    delete buffer;
  }
  cudaStreamDestroy(stream_);
}

void AttentionCase::SetPointers(CaseMemory& memory, bool device) {
  llmd_attention_args& args = memory.args;
  args.q = q_->On<void>(device);
  args.o = o_->On<void>(device);
  args.lse = options_.lse ? lse_->On<float>(device) : nullptr;
  args.q_start = options_.mode == LLMD_DECODE ? nullptr : q_start_->On<int32_t>(device);
  args.sinks = options_.sinks ? sinks_->On<float>(device) : nullptr;
  if (options_.kv_dtype == LLMD_E4M3) {
    args.cache.k_scale = k_scale_->On<float>(device);
    args.cache.v_scale = v_scale_->On<float>(device);
  }
  args.pages.pages = table_->On<int32_t>(device);
  if (options_.csr) {
    args.pages.indptr = indptr_->On<int32_t>(device);
    args.pages.last_page_len = last_->On<int32_t>(device);
  } else {
    args.pages.seq_lens = seq_lens_->On<int32_t>(device);
  }
  Buffer* workspace = device ? workspace_ : host_workspace_;
  args.workspace = memory.plan.workspace = workspace->On<void>(device);
  args.workspace_bytes = memory.plan.workspace_bytes = workspace->bytes;
  memory.plan.pages = args.pages;
  memory.plan.q_start = args.q_start;
}

void AttentionCase::UploadLengths() {
  std::memcpy(seq_lens_->Host<int>(), lengths_.data(), lengths_.size() * 4);
  seq_lens_->Upload();
}

void AttentionCase::ChangeLengths(const std::vector<int>& lengths) {
  lengths_ = lengths;
  UploadLengths();
}

void AttentionCase::UploadPages() {
  std::memcpy(table_->Host<int>(), pages_.data(), pages_.size() * 4);
  table_->Upload();
}

void AttentionCase::PoisonOutputs() {
  for (Buffer* buffer : {o_, lse_}) {
    std::memset(buffer->Host<char>(), kPoison, buffer->bytes);
    buffer->Upload();
  }
}

llmd_code AttentionCase::RunDevice() {
  PoisonOutputs();
  const llmd_attention_backend* cuda = llmd_attention_cuda();
  llmd_code code = cuda->plan(&device_.plan, stream_);
  if (code == LLMD_OK) code = cuda->attention(&device_.args, stream_);
  Must(cudaStreamSynchronize(stream_));
  return code;
}

std::vector<unsigned char> AttentionCase::DeviceOutput() {
  std::vector<unsigned char> bytes(o_->host.size() + lse_->host.size());
  Must(cudaMemcpy(bytes.data(), o_->device, o_->host.size(), cudaMemcpyDeviceToHost));
  Must(cudaMemcpy(bytes.data() + o_->host.size(), lse_->device, lse_->host.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

std::string AttentionCase::Compare() {
  for (Buffer* buffer : {o_, lse_}) std::memset(buffer->Host<char>(), kPoison, buffer->bytes);
  const llmd_attention_backend* reference = llmd_attention_reference();
  // What is right, in fp32 output.
  std::vector<float> right(o_->bytes / attention::SizeOf(options_.o_dtype),
                           std::numeric_limits<float>::quiet_NaN());
  llmd_attention_args args = host_.args;
  args.o = right.data();
  args.o_dtype = LLMD_F32;
  args.flags &= ~static_cast<std::uint32_t>(LLMD_VALIDATE);
  args.flags |= options_.validate ? LLMD_VALIDATE : 0;
  if (reference->plan(&host_.plan, nullptr) != LLMD_OK || reference->attention(&args, nullptr) != LLMD_OK) {
    return std::string("reference: ") + reference->last_error();
  }
  const std::vector<unsigned char> bytes = DeviceOutput();
  const unsigned char* o = bytes.data();
  const unsigned char* lse = bytes.data() + o_->host.size();
  for (std::size_t i = 0; i < kGuard; ++i) {
    if (o[i] != kGuardByte || lse[i] != kGuardByte || o[kGuard + o_->bytes + i] != kGuardByte ||
        lse[kGuard + lse_->bytes + i] != kGuardByte) {
      return "a guard byte changed";
    }
  }
  const int d = options_.head_dim, hq = options_.kv_heads * options_.group;
  const int rows = static_cast<int>(right.size()) / d;
  const Tolerance tolerance = ToleranceOf(options_);
  double difference = 0, norm = 0;
  std::string wrong;
  for (int row = 0; row < rows && wrong.empty(); ++row) {
    const std::string where = " at token " + std::to_string(row / hq) + ", head " + std::to_string(row % hq);
    double row_difference = 0, row_norm = 0;
    for (int e = 0; e < d; ++e) {
      const int64_t at = static_cast<int64_t>(row) * d + e;
      const float got = attention::LoadElement(options_.o_dtype, o + kGuard, at), want = right[at];
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
    if (std::sqrt(row_difference) > tolerance.row * std::sqrt(row_norm) + floor) {
      wrong = "row differs by " + std::to_string(std::sqrt(row_difference / row_norm)) + where;
    }
    difference += row_difference;
    norm += row_norm;
    if (options_.lse && wrong.empty()) {
      const float got = reinterpret_cast<const float*>(lse + kGuard)[row], want = lse_->Host<float>()[row];
      const bool same = got == want || (std::isnan(got) && std::isnan(want)) ||
                        std::abs(got - want) <= tolerance.lse * std::max(1.0, std::abs(want) * 1e-2);
      if (!same) wrong = "lse is " + std::to_string(got) + ", not " + std::to_string(want) + where;
    }
  }
  if (wrong.empty() && std::sqrt(difference) > tolerance.overall * std::sqrt(norm)) {
    wrong = "all differs by " + std::to_string(std::sqrt(difference / norm));
  }
  return wrong.empty() ? "" : wrong + " (" + options_.Name() + ")";
}

}  // namespace llmd::testing
