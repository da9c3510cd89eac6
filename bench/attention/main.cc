// Measures the attention, cache and layer kernels on a GPU: see README.md beside this file for how to read
// the figures.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bench/attention/benches.h"

namespace llmd::bench {
namespace {

constexpr char kUsage[] =
    "usage: bench_attention [options]\n"
    "  --part LIST      of decode,sweep,mixes,prefill,elementwise (default: all)\n"
    "  --grid quick|full  quick: the points the gates speak of (default); full: the whole grid\n"
    "  --filter TEXT    only cases whose name contains it\n"
    "  --json FILE      one JSON object a metric; - for stdout\n"
    "  --seconds S      for the whole run (default 120); what does not fit is left out, and said\n"
    "  --max-bytes N    of one layer's cache (default 8589934592)\n"
    "  --list           print the cases of the grid as JSON lines and stop (needs no GPU)\n";

struct Options {
  std::string part = "decode,sweep,mixes,prefill,elementwise";
  bool full = false;
  bool list = false;
  std::string filter;
  std::string json;
  double seconds = 120;
  std::int64_t max_bytes = std::int64_t{8} << 30;
};

[[noreturn]] void Usage(const std::string& complaint) {
  std::fprintf(stderr, "%s\n%s", complaint.c_str(), kUsage);
  std::exit(2);
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help") {
      std::printf("%s", kUsage);
      std::exit(0);
    }
    if (name == "--list") {
      options.list = true;
      continue;
    }
    if (i + 1 == argc) Usage(name + ": unknown, or without its value");
    const std::string value = argv[++i];
    if (name == "--part") {
      options.part = value;
    } else if (name == "--grid" && (value == "quick" || value == "full")) {
      options.full = value == "full";
    } else if (name == "--filter") {
      options.filter = value;
    } else if (name == "--json") {
      options.json = value;
    } else if (name == "--seconds" && std::atof(value.c_str()) > 0) {
      options.seconds = std::atof(value.c_str());
    } else if (name == "--max-bytes" && std::atoll(value.c_str()) > 0) {
      options.max_bytes = std::atoll(value.c_str());
    } else {
      Usage(name + " " + value + ": not understood");
    }
  }
  return options;
}

bool Wants(const Options& options, const std::string& part) {
  return ("," + options.part + ",").find("," + part + ",") != std::string::npos;
}

void Describe(const Report& report) {
  cudaDeviceProp properties;
  int id = 0, driver = 0, runtime = 0, clock = 0, memory_clock = 0;
  LLMD_CUDA(cudaGetDevice(&id));
  LLMD_CUDA(cudaGetDeviceProperties(&properties, id));
  LLMD_CUDA(cudaDriverGetVersion(&driver));
  LLMD_CUDA(cudaRuntimeGetVersion(&runtime));
  LLMD_CUDA(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, id));
  LLMD_CUDA(cudaDeviceGetAttribute(&memory_clock, cudaDevAttrMemoryClockRate, id));
  report.Add("device/" + std::string(properties.name),
             {{"multiprocessors", double(properties.multiProcessorCount), "", false},
              {"l2", double(properties.l2CacheSize), "B", false},
              {"memory", double(properties.totalGlobalMem), "B", false},
              {"max_clock", clock * 1e-3, "MHz", false},
              {"memory_clock", memory_clock * 1e-3, "MHz", false},
              {"driver_cuda", double(driver), "", false},
              {"runtime_cuda", double(runtime), "", false}});
}

int Run(const Options& options) {
  std::vector<AttentionCase> cases = AttentionCases(options.full, options.max_bytes);
  std::erase_if(cases, [&](const AttentionCase& c) {
    return !Wants(options, c.part) || c.name.find(options.filter) == std::string::npos;
  });
  if (options.list) {
    for (const AttentionCase& c : cases) std::printf("%s\n", ToJson(c).c_str());
    return 0;
  }
  const std::int64_t start = NowNs();
  const auto elapsed = [start] { return static_cast<double>(NowNs() - start) * 1e-9; };
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "bench_attention: no CUDA device here\n");
    return 3;
  }
  Report report(options.json);
  Device device;
  device.backend = llmd_attention_cuda();
  if (device.backend == nullptr || device.backend->abi != LLMD_ATTENTION_ABI) {
    std::fprintf(stderr, "bench_attention: the library speaks another version of the interface\n");
    return 1;
  }
  LLMD_CUDA(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  LLMD_CUDA(cudaStreamCreateWithFlags(&device.stream, cudaStreamNonBlocking));
  Describe(report);

  // Half of the card at most; an eighth beyond the largest cache, for pools larger than needed.
  std::size_t free_bytes = 0, total = 0;
  LLMD_CUDA(cudaMemGetInfo(&free_bytes, &total));
  const auto wanted = static_cast<std::size_t>(options.max_bytes + options.max_bytes / 8 + (64 << 20));
  const std::size_t bytes = std::max<std::size_t>(std::min(wanted, free_bytes / 2), 1 << 30) / 4096 * 4096;
  Arena arena;
  arena.bf16 = DeviceBuffer(bytes);
  FillNormal(arena.bf16.as(), static_cast<std::int64_t>(bytes / 2), LLMD_BF16, 1, device.stream);
  arena.fp8 = DeviceBuffer(bytes / 2);
  FillNormal(arena.fp8.as(), static_cast<std::int64_t>(bytes / 2), LLMD_E4M3, 1, device.stream);
  LLMD_CUDA(cudaStreamSynchronize(device.stream));

  const Ceilings ceilings = MeasureCeilings(device, arena, std::min(10.0, options.seconds / 10), report);
  const bool elementwise = Wants(options, "elementwise");
  constexpr double kElementwiseSeconds = 0.05;  // a case
  std::size_t left = cases.size(), skipped = 0, failed = 0;
  bool cross_checked = false;
  // The quick grid first: a run that is cut short has what matters most.
  std::stable_sort(cases.begin(), cases.end(),
                   [](const AttentionCase& a, const AttentionCase& b) { return a.priority < b.priority; });
  for (const AttentionCase& c : cases) {
    const double remaining = options.seconds - (elementwise ? 8 : 0) - elapsed();
    if (remaining <= 0) {
      ++skipped;
      continue;
    }
    const bool cross_check = !cross_checked && c.name.find("llama-3.1-8b/B32/L8192") != std::string::npos;
    cross_checked |= cross_check;
    const double share = std::min(0.5, remaining / static_cast<double>(left--));
    failed += !MeasureAttention(device, arena, ceilings, c, share, cross_check, report);
  }
  if (elementwise) MeasureElementwise(device, arena, ceilings, options.filter, kElementwiseSeconds, report);
  char text[160];
  std::snprintf(text, sizeof text, "%zu cases measured, %zu failed or not supported, %zu left out; %.1f s",
                cases.size() - skipped - failed, failed, skipped, elapsed());
  report.Note(text);
  return failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace llmd::bench

int main(int argc, char** argv) { return llmd::bench::Run(llmd::bench::Parse(argc, argv)); }
