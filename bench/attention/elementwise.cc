// Kernels whose cost is the bytes they move: their rate against a plain copy's in the same run; and their
// time at the size of a decode step, where the launch is what counts.
#include <functional>
#include <numeric>
#include <string>

#include "bench/attention/benches.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

constexpr int kQueryHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kDim = 128;
constexpr int kPageSize = 16;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

class Elementwise {
 public:
  Elementwise(const Device& device, const Arena& arena, const Ceilings& ceilings, const std::string& filter,
              double seconds, const Report& report)
      : device_(device),
        memory_(arena.bf16),
        ceilings_(ceilings),
        filter_(filter),
        seconds_(seconds),
        report_(report) {}

  void All() {
    for (const bool step : {false, true}) {
      Append(step ? 32 : 65536, step, LLMD_BF16);
      Append(step ? 32 : 65536, step, LLMD_E4M3);
      Rope(step ? 32 : 32768, step);
      RopeAppend(step ? 32 : 32768, step);
      RmsNorm(step ? 32 : 65536, step, false);
      RmsNorm(step ? 32 : 65536, step, true);
      Silu(step ? 32 : 16384, step);
      Merge(step ? 32 : 8192, step);
    }
    Blocks();
    Sample(32);
    Sample(256);
  }

 private:
  // Times `call`, which moves `bytes`; `ceiling` 0: only the time is of interest.
  void Time(const std::string& name, double bytes, double ceiling, const char* share,
            const std::function<llmd_code(int)>& call) const {
    if (name.find(filter_) == std::string::npos) return;
    const llmd_code code = call(0);
    if (code != LLMD_OK) {
      report_.Note(name + ": not supported: " + device_.backend->last_error());
      return;
    }
    const int launches = bytes >= kColdBytes ? 10 : 50;
    const Timing t =
        TimeGraph(device_.stream, launches, seconds_, [&](int i) { device_.Require(call(i), name.c_str()); });
    std::vector<Metric> metrics = {
        {"us", t.us, "us", true}, {"us_min", t.min_us, "us", true}, {"us_max", t.max_us, "us", true}};
    if (ceiling > 0) {
      metrics.push_back({"bytes", bytes, "B", true});
      metrics.push_back({"gb_per_s", bytes / t.us * 1e-3, "GB/s", false});
      metrics.push_back({share, bytes / t.us * 1e-3 / ceiling, "", false});
    }
    report_.Add(name, metrics);
  }
  void TimeCopy(const std::string& name, double bytes, bool step,
                const std::function<llmd_code(int)>& call) const {
    Time(name + (step ? "/step-32" : ""), bytes, step ? 0 : ceilings_.copy, "share_of_copy_rate", call);
  }

  // Page by page in random order, as prompts are stored.
  static std::vector<std::int64_t> Slots(int num_tokens) {
    std::vector<std::int64_t> pages((num_tokens + kPageSize - 1) / kPageSize);
    std::iota(pages.begin(), pages.end(), 0);
    Random random(3);
    random.Shuffle(pages);
    std::vector<std::int64_t> slots(num_tokens);
    for (int i = 0; i < num_tokens; ++i) slots[i] = pages[i / kPageSize] * kPageSize + i % kPageSize;
    return slots;
  }

  llmd_append_kv_args AppendArgs(int num_tokens, llmd_dtype dtype, const DeviceBuffer& slots) const {
    constexpr std::int64_t kRow = std::int64_t{kKvHeads} * kDim;
    llmd_append_kv_args args{};
    args.cache.k = memory_.at(1024 * kMiB);
    args.cache.v = memory_.at(1536 * kMiB);
    args.cache.k_strides = args.cache.v_strides = {kPageSize * kRow, kRow, kDim};
    args.cache.num_pages = (num_tokens + kPageSize - 1) / kPageSize;
    args.cache.page_size = kPageSize;
    args.cache.num_kv_heads = kKvHeads;
    args.cache.head_dim = kDim;
    args.cache.dtype = dtype;
    args.k = memory_.at(0);
    args.v = memory_.at(256 * kMiB);
    args.k_strides = args.v_strides = {kRow, kDim};
    args.dtype = LLMD_BF16;
    args.num_tokens = num_tokens;
    args.slots = slots.as<std::int64_t>();
    return args;
  }

  void Append(int num_tokens, bool step, llmd_dtype dtype) const {
    const DeviceBuffer slots = DeviceBuffer::Of(Slots(num_tokens));
    const llmd_append_kv_args args = AppendArgs(num_tokens, dtype, slots);
    const double values = 2.0 * num_tokens * kKvHeads * kDim;
    const bool fp8 = dtype == LLMD_E4M3;
    TimeCopy(fp8 ? "append_kv/fp8" : "append_kv/bf16", values * (fp8 ? 3 : 4), step,
             [&](int) { return device_.backend->append_kv(&args, device_.stream); });
  }

  static llmd_rope RopeParameters() { return {500000.0f, kDim, 0, 8.0f, 1.0f, 4.0f, 8192.0f}; }
  static std::vector<std::int32_t> Positions(int num_tokens) {
    std::vector<std::int32_t> positions(num_tokens);
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
  }

  void Rope(int num_tokens, bool step) const {
    const DeviceBuffer positions = DeviceBuffer::Of(Positions(num_tokens));
    llmd_rope_args args{};
    args.rope = RopeParameters();
    args.dtype = LLMD_BF16;
    args.num_tokens = num_tokens;
    args.num_q_heads = kQueryHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kDim;
    args.positions = positions.as<std::int32_t>();
    args.q = memory_.at(0);
    args.q_out = memory_.at(1024 * kMiB);
    args.k = memory_.at(512 * kMiB);
    args.k_out = memory_.at(1536 * kMiB);
    args.q_strides = args.q_out_strides = {std::int64_t{kQueryHeads} * kDim, kDim};
    args.k_strides = args.k_out_strides = {std::int64_t{kKvHeads} * kDim, kDim};
    TimeCopy("rope", 4.0 * num_tokens * (kQueryHeads + kKvHeads) * kDim, step,
             [&](int) { return device_.backend->rope(&args, device_.stream); });
  }

  void RopeAppend(int num_tokens, bool step) const {
    const DeviceBuffer positions = DeviceBuffer::Of(Positions(num_tokens));
    const DeviceBuffer slots = DeviceBuffer::Of(Slots(num_tokens));
    llmd_rope_append_args args{};
    args.rope = RopeParameters();
    args.append = AppendArgs(num_tokens, LLMD_BF16, slots);
    args.append.positions = positions.as<std::int32_t>();
    args.num_q_heads = kQueryHeads;
    args.q = memory_.at(512 * kMiB);
    args.q_out = memory_.at(2048 * kMiB);
    args.q_strides = args.q_out_strides = {std::int64_t{kQueryHeads} * kDim, kDim};
    TimeCopy("rope_append", 4.0 * num_tokens * (kQueryHeads + 2 * kKvHeads) * kDim, step,
             [&](int) { return device_.backend->rope_append(&args, device_.stream); });
  }

  void RmsNorm(int num_rows, bool step, bool residual) const {
    constexpr int kSize = 4096;
    llmd_rms_norm_args args{};
    args.dtype = LLMD_BF16;
    args.num_rows = num_rows;
    args.size = kSize;
    args.x = memory_.at(0);
    args.x_stride = args.y_stride = kSize;
    args.y = memory_.at(1024 * kMiB);
    if (residual) {  // of its own: it grows with every call, and is not to become the input of others
      LLMD_CUDA(cudaMemsetAsync(memory_.at(2048 * kMiB), 0, 512 * kMiB, device_.stream));
      args.residual = memory_.at(2048 * kMiB);
    }
    args.weight = memory_.at(3072 * kMiB);
    args.epsilon = 1e-5f;
    TimeCopy(residual ? "rms_norm/residual" : "rms_norm", (residual ? 8.0 : 4.0) * num_rows * kSize, step,
             [&](int) { return device_.backend->rms_norm(&args, device_.stream); });
    if (residual) FillNormal(memory_.at(2048 * kMiB), 256 * kMiB, LLMD_BF16, 5, device_.stream);
  }

  void Silu(int num_rows, bool step) const {
    constexpr int kSize = 14336;
    llmd_silu_and_mul_args args{};
    args.dtype = LLMD_BF16;
    args.num_rows = num_rows;
    args.size = kSize;
    args.x = memory_.at(0);
    args.y = memory_.at(1024 * kMiB);
    TimeCopy("silu_and_mul", 6.0 * num_rows * kSize, step,
             [&](int) { return device_.backend->silu_and_mul(&args, device_.stream); });
  }

  // Eight parts in fp32 of each token, merged to bf16.
  void Merge(int num_tokens, bool step) const {
    constexpr int kParts = 8;
    const double rows = double(num_tokens) * kQueryHeads;
    llmd_merge_states_args args{};
    const DeviceBuffer values(4 * rows * kParts * kDim), lse(4 * rows * kParts);
    FillNormal(values.as(), rows * kParts * kDim, LLMD_F32, 8, device_.stream);
    FillNormal(lse.as(), rows * kParts, LLMD_F32, 9, device_.stream);
    args.partial_o = values.as();
    args.partial_lse = lse.as<float>();
    args.partial_dtype = LLMD_F32;
    args.num_tokens = num_tokens;
    args.num_heads = kQueryHeads;
    args.head_dim = kDim;
    args.num_parts = kParts;
    args.o = memory_.at(0);
    args.o_strides = {std::int64_t{kQueryHeads} * kDim, kDim};
    args.o_dtype = LLMD_BF16;
    TimeCopy("merge_states/8-parts", rows * kParts * (4 * kDim + 4) + rows * 2 * kDim, step,
             [&](int) { return device_.backend->merge_states(&args, device_.stream); });
    FillNormal(memory_.at(0), static_cast<std::int64_t>(rows) * kDim, LLMD_BF16, 10, device_.stream);
  }

  // 4,096 pieces of 16 KB, scattered: 64 blocks of 32 layers' K and V; a copy's rate of as many
  // bytes is the measure.
  void Blocks() const {
    constexpr int kBases = 64;
    constexpr int kBlocks = 64;
    constexpr int kLists = 8;
    constexpr std::int64_t kBlockBytes = 16384;
    constexpr std::int64_t kPool = kLists * kBlocks;
    std::vector<void*> bases;
    for (int i = 0; i < kBases; ++i) bases.push_back(memory_.at(i * kPool * kBlockBytes));
    std::vector<std::int64_t> ids(kPool);
    std::iota(ids.begin(), ids.end(), 0);
    Random random(4);
    random.Shuffle(ids);
    const DeviceBuffer device_bases = DeviceBuffer::Of(bases);
    const DeviceBuffer device_ids = DeviceBuffer::Of(ids);
    const auto args = [&](int i) {
      llmd_gather_blocks_args args{};
      args.bases = device_bases.as<void*>();
      args.num_bases = kBases;
      args.page_stride_bytes = args.block_bytes = kBlockBytes;
      args.blocks = device_ids.as<std::int64_t>() + i % kLists * kBlocks;
      args.num_blocks = kBlocks;
      args.staging = memory_.at(1024 * kMiB + i % kLists * (kBases * kBlocks * kBlockBytes));
      return args;
    };
    constexpr double kBytes = 2.0 * kBases * kBlocks * kBlockBytes;
    Time("gather_blocks/4096x16K", kBytes, ceilings_.copy_64m, "share_of_copy_rate", [&](int i) {
      const llmd_gather_blocks_args a = args(i);
      return device_.backend->gather_blocks(&a, device_.stream);
    });
    Time("scatter_blocks/4096x16K", kBytes, ceilings_.copy_64m, "share_of_copy_rate", [&](int i) {
      const llmd_gather_blocks_args a = args(i);
      return device_.backend->scatter_blocks(&a, device_.stream);
    });
    std::vector<std::int64_t> pairs;  // the first half of a list onto the second
    for (int list = 0; list < kLists; ++list) {
      for (int i = 0; i < kBlocks / 2; ++i) {
        pairs.push_back(ids[list * kBlocks + i]);
        pairs.push_back(ids[list * kBlocks + kBlocks / 2 + i]);
      }
    }
    const DeviceBuffer device_pairs = DeviceBuffer::Of(pairs);
    Time("copy_blocks/2048x16K", kBytes / 2, ceilings_.copy_32m, "share_of_copy_rate", [&](int i) {
      llmd_copy_blocks_args a{};
      a.bases = device_bases.as<void*>();
      a.num_bases = kBases;
      a.page_stride_bytes = a.block_bytes = kBlockBytes;
      a.pairs = device_pairs.as<std::int64_t>() + i % kLists * kBlocks;
      a.num_pairs = kBlocks / 2;
      return device_.backend->copy_blocks(&a, device_.stream);
    });
  }

  void Sample(int batch) const {
    constexpr int kVocabulary = 128256;
    const std::int64_t count = std::int64_t{batch} * kVocabulary;
    const int copies = Rotations(4.0 * count);
    const DeviceBuffer logits(4 * count * copies);
    const DeviceBuffer tokens(4 * batch);
    FillNormal(logits.as(), count * copies, LLMD_F32, 6, device_.stream);
    struct Setting {
      const char* name;
      float temperature;
      int top_k;
      float top_p;
    };
    for (const Setting& s :
         {Setting{"greedy", 0, 0, 1}, Setting{"temperature", 0.8f, 0, 1},
          Setting{"top-k-50-top-p-0.95", 0.8f, 50, 0.95f}, Setting{"top-p-0.9", 0.8f, 0, 0.9f}}) {
      const DeviceBuffer temperature = DeviceBuffer::Of(std::vector<float>(batch, s.temperature));
      const DeviceBuffer top_k = DeviceBuffer::Of(std::vector<std::int32_t>(batch, s.top_k));
      const DeviceBuffer top_p = DeviceBuffer::Of(std::vector<float>(batch, s.top_p));
      llmd_sample_args args{};
      args.dtype = LLMD_F32;
      args.row_stride = args.vocab = kVocabulary;
      args.batch = batch;
      args.temperature = temperature.as<float>();
      args.top_k = s.top_k > 0 ? top_k.as<std::int32_t>() : nullptr;
      args.top_p = s.top_p < 1 ? top_p.as<float>() : nullptr;
      args.seed = 7;
      args.tokens = tokens.as<std::int32_t>();
      Time("sample/" + std::string(s.name) + "/B" + std::to_string(batch), 4.0 * count, ceilings_.read,
           "share_of_read_ceiling", [&](int i) {
             args.logits = logits.as<float>() + i % copies * count;
             return device_.backend->sample(&args, device_.stream);
           });
    }
  }

  const Device& device_;
  const DeviceBuffer& memory_;
  const Ceilings& ceilings_;
  const std::string& filter_;
  double seconds_;
  const Report& report_;
};

}  // namespace

void MeasureElementwise(const Device& device, const Arena& arena, const Ceilings& ceilings,
                        const std::string& filter, double seconds, const Report& report) {
  if (arena.bf16.bytes() < static_cast<std::size_t>(4096 * kMiB)) {
    report.Note("elementwise: skipped, needs 4 GiB of memory");
    return;
  }
  Elementwise(device, arena, ceilings, filter, seconds, report).All();
}

}  // namespace llmd::bench
