// What the card can do in this run: reading alone, and copying by a kernel and by the copy engine.
#include <string>

#include "bench/attention/benches.h"

namespace llmd::bench {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

// Launch i works on its own region of `size` bytes, so that small sizes do not find their data in the cache.
struct Regions {
  std::int64_t total;
  std::int64_t size;
  std::int64_t offset(int i) const { return i % (total / size) * size; }
};

double Rate(double bytes, const Timing& timing) { return bytes / timing.us * 1e-3; }

}  // namespace

Ceilings MeasureCeilings(const Device& device, const Arena& arena, double seconds, const Report& report) {
  Ceilings ceilings;
  DeviceBuffer sink(16);
  const cudaStream_t stream = device.stream;
  struct Shape {
    int blocks_per_sm;
    int threads;
    int unroll;
  };
  constexpr Shape kShapes[] = {{1, 1024, 4}, {2, 512, 4}, {2, 1024, 4}, {4, 512, 4},
                               {8, 512, 1},  {8, 512, 4}, {4, 512, 8},  {16, 256, 4}};
  for (const std::int64_t size : {8192 * kMiB, 1024 * kMiB, 256 * kMiB, 64 * kMiB}) {
    if (size > static_cast<std::int64_t>(arena.bf16.bytes())) continue;
    const Regions regions{static_cast<std::int64_t>(arena.bf16.bytes()), size};
    double best = 0;
    Timing timing;
    Shape shape{};
    for (const Shape& s : kShapes) {
      const Timing t = TimeGraph(stream, GraphLaunches(static_cast<double>(size)), seconds / 64, [&](int i) {
        ReadAll(arena.bf16.at(regions.offset(i)), size, s.blocks_per_sm * device.multiprocessors, s.threads,
                s.unroll, sink.as(), stream);
      });
      if (Rate(size, t) > best) {
        best = Rate(size, t);
        timing = t;
        shape = s;
      }
    }
    ceilings.read = std::max(ceilings.read, best);
    report.Add("ceiling/read/" + std::to_string(size / kMiB) + "MiB",
               {{"gb_per_s", best, "GB/s", false},
                {"us", timing.us, "us", true},
                {"blocks_per_sm", double(shape.blocks_per_sm), "", false},
                {"threads", double(shape.threads), "", false},
                {"unroll", double(shape.unroll), "", false}});
  }
  for (const std::int64_t size : {4096 * kMiB, 1024 * kMiB, 256 * kMiB, 64 * kMiB, 32 * kMiB}) {  // copied
    const auto half = static_cast<std::int64_t>(arena.bf16.bytes()) / 2 / 16 * 16;
    if (size > half) continue;
    const Regions regions{half, size};
    double kernel = 0;
    for (const int blocks : {2, 4, 8, 16}) {
      const Timing t = TimeGraph(stream, GraphLaunches(2.0 * size), seconds / 64, [&](int i) {
        CopyAll(arena.bf16.at(regions.offset(i)), arena.bf16.at(half + regions.offset(i)), size,
                blocks * device.multiprocessors, 512, stream);
      });
      kernel = std::max(kernel, Rate(2.0 * size, t));
    }
    const Timing t = TimeGraph(stream, GraphLaunches(2.0 * size), seconds / 64, [&](int i) {
      LLMD_CUDA(cudaMemcpyAsync(arena.bf16.at(half + regions.offset(i)), arena.bf16.at(regions.offset(i)),
                                size, cudaMemcpyDeviceToDevice, stream));
    });
    const double engine = Rate(2.0 * size, t);
    if (size == 1024 * kMiB) ceilings.copy = std::max(kernel, engine);
    if (size == 64 * kMiB) ceilings.copy_64m = std::max(kernel, engine);
    if (size == 32 * kMiB) ceilings.copy_32m = std::max(kernel, engine);
    report.Add("ceiling/copy/" + std::to_string(size / kMiB) + "MiB",
               {{"kernel_gb_per_s", kernel, "GB/s", false}, {"memcpy_gb_per_s", engine, "GB/s", false}});
  }
  return ceilings;
}

}  // namespace llmd::bench
