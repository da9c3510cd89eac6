// Any bytes as a decision log: an error, or records that can be read, explained and decided again. The input
// is a list of frame kinds and payloads behind a good header; magic, lengths and checksums are put in, so
// that the fuzzer need not find them. An odd first byte means the rest as it is.
#define XXH_INLINE_ALL
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "llmd/sched/decision_record.h"
#include "llmd/sched/decision_replay.h"
#include "xxhash.h"

namespace {

using llmd::sched::DecisionLogReader;
using llmd::sched::DecisionLogWriter;
using llmd::sched::DecisionRecord;
using llmd::sched::DecisionReplayer;
using llmd::sched::PluginRegistry;
using llmd::sched::Scheduler;
using llmd::sched::SchedulerConfig;

const SchedulerConfig& Config() {
  static const SchedulerConfig& config = *new SchedulerConfig{
      .plugins = {
          {"", "precise-prefix-cache-producer", {}},
          {"", "prefix-cache-scorer",
           llmd::sched::Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}})},
          {"", "queue-scorer", {}},
          {"", "decode-filter", {}}}};
  return config;
}

// Magic and header of a log of Config().
const std::vector<std::byte>& Beginning() {
  static const std::vector<std::byte>& beginning = *[] {
    struct Nothing final : llmd::sched::PrefixMatcher {
      void Match(const llmd::index::NamespaceId&, llmd::BlockKeySpan, llmd::index::MatchResult& r) override {
        r.clear();
      }
    };
    llmd::sched::Resources resources;
    resources.prefix_sources.push_back({[] { return std::make_unique<Nothing>(); }, nullptr});
    const auto scheduler = Scheduler::Create(Config(), PluginRegistry::Builtin(), resources);
    if (!scheduler.ok()) std::abort();
    auto* bytes = new std::vector<std::byte>;
    DecisionLogWriter(**scheduler, {}).Begin(*bytes);
    return bytes;
  }();
  return beginning;
}

void Number(std::uint64_t value, int size, std::vector<std::byte>& out) {
  for (int i = 0; i < size; ++i) out.push_back(std::byte(static_cast<std::uint8_t>(value >> (8 * i))));
}

// Of pieces [kind][u16 size][payload].
std::vector<std::byte> Framed(std::span<const std::byte> pieces) {
  std::vector<std::byte> log = Beginning();
  std::uint64_t checksum = 0;
  for (std::size_t i = 0; i < 8; ++i)
    checksum |= std::uint64_t{static_cast<std::uint8_t>(log[log.size() - 8 + i])} << (8 * i);
  while (pieces.size() >= 3) {
    const std::size_t wanted = static_cast<std::size_t>(pieces[1]) | static_cast<std::size_t>(pieces[2]) << 8;
    const std::size_t size = std::min(wanted, pieces.size() - 3);
    Number(size, 4, log);
    const std::size_t body = log.size();
    log.push_back(pieces[0]);
    log.insert(log.end(), pieces.begin() + 3, pieces.begin() + 3 + static_cast<std::ptrdiff_t>(size));
    checksum = XXH3_64bits_withSeed(log.data() + body, size + 1, checksum);
    Number(checksum, 8, log);
    pieces = pieces.subspan(3 + size);
  }
  return log;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto rest = std::as_bytes(std::span(data + 1, size - 1));
  const std::vector<std::byte> log =
      data[0] % 2 != 0 ? std::vector<std::byte>(rest.begin(), rest.end()) : Framed(rest);
  const auto reader = DecisionLogReader::Open(log, {.max_endpoints = 64, .check_digests = false});
  if (!reader.ok()) return 0;
  const auto replayer = DecisionReplayer::Create(**reader, Config(), PluginRegistry::Builtin());
  if (!replayer.ok()) std::abort();
  DecisionRecord record;
  for (int i = 0; i < 100; ++i) {
    const absl::StatusOr<bool> more = (*reader)->Next(record);
    if (!more.ok() || !*more) break;
    if (record.explanation.ToString((*reader)->pool()).empty()) std::abort();
    (*replayer)->Replay(record);
    (*replayer)->Difference(record);
  }
  return 0;
}
