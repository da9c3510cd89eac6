// Decoding and encoding of KV-event batches, one thread, in processor time, from payload in memory to events
// in a reused EventBatch.
//
// Payloads: 512 different batches, one after the other, so that neither the branch predictor nor the
// first-level cache learns one by heart. Token ids are drawn so that all widths occur as in text: a third
// below 2000 (frequent tokens, punctuation, digits), the rest uniform up to 151,936 (Qwen3's vocabulary).
// Hashes are 64 random bits.
//   stored_b8         one array-form BlockStored of 8 blocks x 16 tokens a batch
//   stored_b8_map     the same in map form
//   stored_b64        64 blocks a batch
//   removed_b8        one BlockRemoved of 8 hashes a batch
//   encode_stored_b8  writing stored_b8
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"

namespace llmd::events {
namespace {

constexpr int kBatches = 512;
constexpr int kRounds = 15;
constexpr std::int64_t kRoundNs = 100'000'000;
constexpr std::uint32_t kBlockSize = 16;

struct Source {
  std::vector<std::uint64_t> hashes;
  std::vector<TokenId> tokens;
  Event event;
};

std::vector<Source> MakeSources(EventKind kind, std::size_t blocks) {
  Random random(1);
  std::vector<Source> sources(kBatches);
  for (Source& source : sources) {
    for (std::size_t i = 0; i < blocks; ++i) source.hashes.push_back(random.Next());
    source.event.kind = kind;
    source.event.hashes = source.hashes;
    source.event.medium = "GPU";
    if (kind != EventKind::kBlockStored) continue;
    for (std::size_t i = 0; i < blocks * kBlockSize; ++i) {
      const bool frequent = random.Chance(1.0 / 3);
      source.tokens.push_back(static_cast<TokenId>(random.Below(frequent ? 2000 : 151'936)));
    }
    source.event.tokens = source.tokens;
    source.event.parent = random.Next();
    source.event.block_size = kBlockSize;
  }
  return sources;
}

// Processor time of this thread, not wall time: the figures are per core, and other work on the machine is
// not ours.
std::int64_t CpuNs() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Calls `work(i)` for i in 0..kBatches-1 over and over; the median over rounds of seconds per call.
template <typename Work>
double SecondsPerCall(const Work& work) {
  std::vector<double> seconds;
  for (int round = 0; round <= kRounds; ++round) {
    const std::int64_t start = CpuNs();
    std::int64_t now = start;
    std::int64_t calls = 0;
    while (now - start < kRoundNs) {
      for (int i = 0; i < kBatches; ++i) work(i);
      calls += kBatches;
      now = CpuNs();
    }
    if (round > 0) seconds.push_back(1e-9 * static_cast<double>(now - start) / static_cast<double>(calls));
  }
  return bench::Median(seconds);
}

void RunDecode(const bench::Reporter& reporter, const char* name, EventKind kind, Schema schema,
               std::size_t blocks) {
  const std::vector<Source> sources = MakeSources(kind, blocks);
  std::vector<std::vector<std::byte>> payloads(kBatches);
  std::size_t bytes = 0;
  for (int i = 0; i < kBatches; ++i) {
    EncodeBatch(schema, 1.76e9, {&sources[i].event, 1}, 0, payloads[i]);
    bytes += payloads[i].size();
  }
  const EventDecoder decoder;
  EventBatch batch;
  const double seconds = SecondsPerCall([&](int i) {
    if (!decoder.Decode(payloads[i], batch).ok() || batch.events().size() != 1) std::abort();
    bench::KeepAlive(batch.events().data());
  });
  reporter.Report(name, "blocks_per_s", static_cast<double>(blocks) / seconds, "1/s", false);
  reporter.Report(name, "ns_per_batch", seconds * 1e9, "ns", true);
  reporter.Report(name, "bytes_per_s", static_cast<double>(bytes) / kBatches / seconds, "B/s", false);
}

void RunEncode(const bench::Reporter& reporter, const char* name, Schema schema, std::size_t blocks) {
  const std::vector<Source> sources = MakeSources(EventKind::kBlockStored, blocks);
  std::vector<std::byte> payload;
  const double seconds = SecondsPerCall([&](int i) {
    EncodeBatch(schema, 1.76e9, {&sources[i].event, 1}, 0, payload);
    bench::KeepAlive(payload.data());
  });
  reporter.Report(name, "blocks_per_s", static_cast<double>(blocks) / seconds, "1/s", false);
}

}  // namespace
}  // namespace llmd::events

int main(int argc, char** argv) {
  using namespace llmd::events;
  const bool json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  if (argc > 2 || (argc == 2 && !json)) {
    std::fprintf(stderr, "usage: bench_events [--json]\n");
    return 2;
  }
  const llmd::bench::Reporter reporter("bench_events", json);
  RunDecode(reporter, "stored_b8", EventKind::kBlockStored, Schema::kArray12, 8);
  RunDecode(reporter, "stored_b8_map", EventKind::kBlockStored, Schema::kMap, 8);
  RunDecode(reporter, "stored_b64", EventKind::kBlockStored, Schema::kArray12, 64);
  RunDecode(reporter, "removed_b8", EventKind::kBlockRemoved, Schema::kArray12, 8);
  RunEncode(reporter, "encode_stored_b8", Schema::kMap, 8);
}
