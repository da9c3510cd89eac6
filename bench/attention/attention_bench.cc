// Attention through the backend table: cold caches, one captured graph a case, planning apart.
#include <cmath>
#include <numeric>
#include <string>

#include "bench/attention/benches.h"
#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

// One case's inputs on the device. The page table is one for all launches, as a step has one for all layers;
// each launch reads a pool of its own, as each layer has one.
class Problem {
 public:
  Problem(const Device& device, const Arena& arena, const AttentionCase& c) : device_(device), case_(c) {
    const std::int64_t page_elements = std::int64_t{c.page_size} * c.num_kv_heads * c.head_dim;
    const std::int64_t used = c.num_pages();
    pages_ = used + used / 8 + 7;  // larger than needed
    half_bytes_ = (pages_ * page_elements * c.element_bytes() + 255) / 256 * 256;
    const DeviceBuffer& memory = c.kv_dtype == LLMD_E4M3 ? arena.fp8 : arena.bf16;
    base_ = memory.at(0);
    const auto fit = static_cast<std::int64_t>(memory.bytes()) / (2 * half_bytes_);
    pools_ = static_cast<int>(std::min<std::int64_t>(fit, Rotations(static_cast<double>(c.kv_bytes()))));
    FillTable();
    FillQuery();
    shape_.mode = c.prefill() ? LLMD_PREFILL : LLMD_DECODE;
    shape_.max_batch = c.batch();
    shape_.max_tokens = static_cast<std::int32_t>(c.num_tokens());
    shape_.num_q_heads = c.num_q_heads;
    shape_.num_kv_heads = c.num_kv_heads;
    shape_.head_dim = c.head_dim;
    shape_.kv_dtype = c.kv_dtype;
    shape_.page_size = c.page_size;
    shape_.window = c.window;
    shape_.max_kv_tokens = std::accumulate(c.kv_lens.begin(), c.kv_lens.end(), std::int64_t{0});
  }

  bool fits() const { return pools_ >= 1; }
  int pools() const { return pools_; }

  // False if the backend has no kernel for this shape.
  bool Prepare() {
    const std::size_t bytes = device_.backend->workspace_bytes(&shape_);
    if (bytes == 0) return false;
    workspace_ = DeviceBuffer(bytes);
    device_.Require(device_.backend->init_workspace(workspace_.as(), bytes, device_.stream),
                    "init_workspace");
    return true;
  }

  void Plan() const {
    llmd_plan_args args{};
    args.shape = shape_;
    args.batch = case_.batch();
    args.pages = PageList();
    args.q_start = case_.prefill() ? q_start_.as<std::int32_t>() : nullptr;
    args.workspace = workspace_.as();
    args.workspace_bytes = workspace_.bytes();
    device_.Require(device_.backend->plan(&args, device_.stream), "plan");
  }

  llmd_code TryRun(int launch, std::uint32_t flags = 0) const {
    llmd_attention_args args{};
    args.shape = shape_;
    args.batch = case_.batch();
    args.num_tokens = static_cast<std::int32_t>(case_.num_tokens());
    args.q = q_.as();
    args.q_dtype = LLMD_BF16;
    args.o = o_.as();
    args.o_dtype = LLMD_BF16;
    args.q_strides = args.o_strides = {std::int64_t{case_.num_q_heads} * case_.head_dim, case_.head_dim};
    args.q_start = case_.prefill() ? q_start_.as<std::int32_t>() : nullptr;
    args.cache = Cache(launch % pools_);
    args.pages = PageList();
    args.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
    args.workspace = workspace_.as();
    args.workspace_bytes = workspace_.bytes();
    args.flags = flags;
    return device_.backend->attention(&args, device_.stream);
  }
  void Run(int launch, std::uint32_t flags = 0) const { device_.Require(TryRun(launch, flags), "attention"); }

  // Runs once on a poisoned output; the number of output values that are not finite.
  unsigned long long BadOutputs() const {
    LLMD_CUDA(cudaMemsetAsync(o_.as(), 0xff, o_.bytes(), device_.stream));
    Run(0);
    DeviceBuffer count(8);
    LLMD_CUDA(cudaMemsetAsync(count.as(), 0, 8, device_.stream));
    CountNonFinite(o_.as(), static_cast<std::int64_t>(o_.bytes()) / 2, count.as<unsigned long long>(),
                   device_.stream);
    unsigned long long bad = 0;
    LLMD_CUDA(cudaMemcpyAsync(&bad, count.as(), 8, cudaMemcpyDeviceToHost, device_.stream));
    LLMD_CUDA(cudaStreamSynchronize(device_.stream));
    return bad;
  }

 private:
  void FillTable() {
    row_ = 1;
    for (int b = 0; b < case_.batch(); ++b) row_ = std::max(row_, case_.end_page(b));
    std::vector<std::int32_t> ids(pages_);
    std::iota(ids.begin(), ids.end(), 0);
    Random random(1);
    random.Shuffle(ids);
    std::vector<std::int32_t> table(case_.batch() * row_, 0);
    std::int64_t next = 0;
    for (int b = 0; b < case_.batch(); ++b) {
      for (std::int64_t i = case_.first_page(b); i < case_.end_page(b); ++i)
        table[b * row_ + i] = ids[next++];
    }
    table_ = DeviceBuffer::Of(table);
    lens_ = DeviceBuffer::Of(case_.kv_lens);
    std::vector<std::int32_t> q_start(case_.batch() + 1, 0);
    std::partial_sum(case_.new_lens.begin(), case_.new_lens.end(), q_start.begin() + 1);
    q_start_ = DeviceBuffer::Of(q_start);
  }

  void FillQuery() {
    const std::int64_t count = case_.num_tokens() * case_.num_q_heads * case_.head_dim;
    q_ = DeviceBuffer(count * 2);
    o_ = DeviceBuffer(count * 2);
    FillNormal(q_.as(), count, LLMD_BF16, 2, device_.stream);
  }

  llmd_page_list PageList() const {
    llmd_page_list pages{};
    pages.pages = table_.as<std::int32_t>();
    pages.row_stride = row_;
    pages.max_pages = static_cast<std::int32_t>(row_);
    pages.seq_lens = lens_.as<std::int32_t>();
    return pages;
  }

  llmd_kv_cache Cache(int pool) const {
    const AttentionCase& c = case_;
    llmd_kv_cache cache{};
    cache.k = base_ + 2 * half_bytes_ * pool;
    cache.v = base_ + 2 * half_bytes_ * pool + half_bytes_;
    const std::int64_t page = std::int64_t{c.page_size} * c.num_kv_heads * c.head_dim;
    cache.k_strides = c.hnd ? llmd_kv_strides{page, c.head_dim, std::int64_t{c.page_size} * c.head_dim}
                            : llmd_kv_strides{page, std::int64_t{c.num_kv_heads} * c.head_dim, c.head_dim};
    cache.v_strides = cache.k_strides;
    cache.num_pages = pages_;
    cache.page_size = c.page_size;
    cache.num_kv_heads = c.num_kv_heads;
    cache.head_dim = c.head_dim;
    cache.dtype = c.kv_dtype;
    return cache;
  }

  const Device& device_;
  const AttentionCase& case_;
  char* base_ = nullptr;
  std::int64_t pages_ = 0;
  std::int64_t half_bytes_ = 0;
  std::int64_t row_ = 0;
  int pools_ = 0;
  llmd_attention_shape shape_{};
  DeviceBuffer table_, lens_, q_start_, q_, o_, workspace_;
};

// A launch between two events, as an engine without graphs would see it.
double SingleLaunch(const Device& device, const Problem& problem) {
  cudaEvent_t begin, end;
  LLMD_CUDA(cudaEventCreate(&begin));
  LLMD_CUDA(cudaEventCreate(&end));
  std::vector<double> us;
  for (int i = 0; i < 30; ++i) {
    LLMD_CUDA(cudaEventRecord(begin, device.stream));
    problem.Run(i);
    LLMD_CUDA(cudaEventRecord(end, device.stream));
    LLMD_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    LLMD_CUDA(cudaEventElapsedTime(&ms, begin, end));
    us.push_back(ms * 1e3);
  }
  LLMD_CUDA(cudaEventDestroy(begin));
  LLMD_CUDA(cudaEventDestroy(end));
  return Median(us);
}

}  // namespace

bool MeasureAttention(const Device& device, const Arena& arena, const Ceilings& ceilings,
                      const AttentionCase& c, double seconds, bool cross_check, const Report& report) {
  Problem problem(device, arena, c);
  if (!problem.fits()) {
    report.Note(c.name + ": skipped, the pool does not fit in memory");
    return false;
  }
  if (!problem.Prepare()) {
    report.Note(c.name + ": not supported: " + device.backend->last_error());
    return false;
  }
  problem.Plan();
  if (problem.TryRun(0) != LLMD_OK) {
    report.Note(c.name + ": not supported: " + device.backend->last_error());
    return false;
  }
  const unsigned long long bad = problem.BadOutputs();
  if (bad > 0) {
    report.Note(c.name + ": WRONG: " + std::to_string(bad) + " output values are not finite");
    return false;
  }
  for (int i = 0; i < 10; ++i) problem.Run(i);  // warm up
  const double bytes = static_cast<double>(c.kv_bytes());
  const int launches = c.prefill() ? 6 : GraphLaunches(bytes);
  const Timing timing = TimeGraph(device.stream, launches, seconds * 0.6, [&](int i) { problem.Run(i); });
  const Timing plan = TimeGraph(device.stream, 20, seconds * 0.1, [&](int) { problem.Plan(); });
  std::vector<Metric> metrics = {{"us", timing.us, "us", true},
                                 {"us_min", timing.min_us, "us", true},
                                 {"us_max", timing.max_us, "us", true},
                                 {"plan_us", plan.us, "us", true},
                                 {"kv_bytes", bytes, "B", true}};
  if (c.prefill()) {
    metrics.push_back({"tflop_per_s", c.flop() / timing.us * 1e-6, "TFLOP/s", false});
  } else {
    const double rate = bytes / timing.us * 1e-3;
    metrics.push_back({"gb_per_s", rate, "GB/s", false});
    if (ceilings.read > 0) metrics.push_back({"share_of_read_ceiling", rate / ceilings.read, "", false});
    const Timing early =
        TimeGraph(device.stream, launches, seconds * 0.2, [&](int i) { problem.Run(i, LLMD_EARLY_START); });
    metrics.push_back({"early_start_us", early.us, "us", true});
    // Steps of 32 layers, each planned once; as many as it takes to go round all pools.
    constexpr int kLayers = 32;
    const int steps = (problem.pools() + kLayers - 1) / kLayers;
    const Timing step = timing.us > 2000 ? Timing{plan.us + kLayers * timing.us, 0, 0, 0, 0}
                                         : TimeGraph(device.stream, steps, seconds * 0.2, [&](int i) {
                                             problem.Plan();
                                             for (int j = 0; j < kLayers; ++j) problem.Run(i * kLayers + j);
                                           });
    metrics.push_back({"step_32_layers_us", step.us, "us", true});
  }
  if (cross_check) metrics.push_back({"single_launch_us", SingleLaunch(device, problem), "us", true});
  report.Add(c.name, metrics);
  return true;
}

}  // namespace llmd::bench
