// KV events from publisher processes through loopback TCP, stream and decoder into the index.
//
// Each publisher is a process of its own with a PUB socket and no limit to its queue, so that nothing is
// dropped. A batch has two events, as an engine's step under load: BlockStored of 8 blocks x 16 tokens in map
// form, every other one below the one before, and from the 20,000th batch on BlockRemoved of the 8 blocks of
// an earlier one.
//   flood_p1, flood_p8   all batches at once from 1 and 8 publishers: batches, events and blocks per second
//   of
//                        wall time, and processor time of the feed's process (its thread and ZeroMQ's) per
//                        batch
//   paced_p8             8 publishers, 100 batches a second each: share of a core, and the median of the age
//   of
//                        a batch when it is applied
//   idle_e100            100 connected publishers that say nothing: share of a core
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/bench_util.h"
#include "examples/gateway_scheduler/kv_addresses.h"
#include "examples/gateway_scheduler/kv_event_feed.h"
#include "llmd/base/random.h"
#include "llmd/events/encoder.h"
#include "llmd/events/frames.h"
#include "zmq.hpp"

namespace llmd::host {
namespace {

constexpr std::uint32_t kBlockSize = 16;
constexpr std::size_t kBlocks = 8;
constexpr std::uint64_t kResident = 20'000;  // batches

double ProcessorSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::uint64_t HashOf(std::uint64_t publisher, std::uint64_t batch, std::size_t block) {
  return Random((publisher << 40) + batch * kBlocks + block).Next();
}

struct Load {
  std::uint64_t batches = 0;
  int per_second = 0;  // 0: all at once
};

// A publisher process: tells its port, waits for the word, publishes, waits for the end.
[[noreturn]] void Publish(std::uint64_t self, const Load& load, int commands, int answers) {
  zmq::context_t context;
  zmq::socket_t socket(context, zmq::socket_type::pub);
  socket.set(zmq::sockopt::sndhwm, 0);
  socket.set(zmq::sockopt::linger, 0);
  socket.bind("tcp://127.0.0.1:*");
  const std::string address = socket.get(zmq::sockopt::last_endpoint);
  const int port = std::stoi(address.substr(address.rfind(':') + 1));
  if (write(answers, &port, sizeof(port)) != sizeof(port)) _exit(1);
  char command;
  if (read(commands, &command, 1) != 1) _exit(0);

  Random random(self);
  std::vector<TokenId> tokens(kBlocks * kBlockSize);
  std::vector<std::uint64_t> stored(kBlocks);
  std::vector<std::uint64_t> removed(kBlocks);
  std::vector<std::byte> payload;
  const std::string topic = "kv@127.0.0.1@m";
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < load.batches; ++i) {
    if (load.per_second > 0) {
      std::this_thread::sleep_until(begin + std::chrono::nanoseconds(1'000'000'000 / load.per_second * i));
    }
    for (TokenId& token : tokens) token = static_cast<TokenId>(random.Below(151'936));
    events::Event batch[2];
    for (std::size_t b = 0; b < kBlocks; ++b) stored[b] = HashOf(self, i, b);
    batch[0].kind = events::EventKind::kBlockStored;
    batch[0].hashes = stored;
    batch[0].tokens = tokens;
    batch[0].block_size = kBlockSize;
    batch[0].medium = "GPU";
    if (i % 2 == 1) batch[0].parent = HashOf(self, i - 1, kBlocks - 1);
    std::size_t count = 1;
    if (i >= kResident) {
      for (std::size_t b = 0; b < kBlocks; ++b) removed[b] = HashOf(self, i - kResident, b);
      batch[1].kind = events::EventKind::kBlockRemoved;
      batch[1].hashes = removed;
      batch[1].medium = "GPU";
      count = 2;
    }
    const double now = absl::ToUnixMicros(absl::Now()) * 1e-6;
    events::EncodeBatch(events::Schema::kMap, now, {batch, count}, 0, payload);
    const auto seq = events::EncodeSeq(i);
    socket.send(zmq::buffer(topic), zmq::send_flags::sndmore);
    socket.send(zmq::buffer(seq), zmq::send_flags::sndmore);
    socket.send(zmq::buffer(payload), zmq::send_flags::none);
  }
  while (read(commands, &command, 1) == 1) {
  }
  _exit(0);
}

class Publishers {
 public:
  Publishers(int count, const Load& load) {
    for (int i = 0; i < count; ++i) {
      int commands[2];
      int answers[2];
      if (pipe(commands) != 0 || pipe(answers) != 0) std::abort();
      const pid_t child = fork();
      if (child == 0) {
        close(commands[1]);
        for (const int earlier : commands_) close(earlier);
        Publish(i, load, commands[0], answers[1]);
      }
      children_.push_back(child);
      close(commands[0]);
      close(answers[1]);
      int port = 0;
      if (read(answers[0], &port, sizeof(port)) != sizeof(port)) std::abort();
      close(answers[0]);
      commands_.push_back(commands[1]);
      ports_.push_back(port);
    }
  }
  ~Publishers() {
    for (const int command : commands_) close(command);
    for (const pid_t child : children_) waitpid(child, nullptr, 0);
  }
  void Go() {
    for (const int command : commands_) {
      if (write(command, "g", 1) != 1) std::abort();
    }
  }
  std::vector<sched::EndpointMetadata> endpoints() const {
    std::vector<sched::EndpointMetadata> endpoints;
    for (std::size_t i = 0; i < ports_.size(); ++i) {
      endpoints.push_back({.name = absl::StrCat("e", i),
                           .address = "127.0.0.1",
                           .port = static_cast<std::uint16_t>(i + 1),
                           .labels = {{std::string(kKvEventsPortLabel), absl::StrCat(ports_[i])}}});
    }
    return endpoints;
  }

 private:
  std::vector<pid_t> children_;
  std::vector<int> commands_;
  std::vector<int> ports_;
};

// A feed that is connected to the publishers.
class Rig {
 public:
  explicit Rig(const Publishers& publishers)
      : index_(*index::PrefixIndex::Create({.max_bytes = std::size_t{1} << 30})) {
    KvFeedOptions options;
    options.stats_interval = absl::Milliseconds(20);
    feed_ = *KvEventFeed::Start(options, pool_, *index_);
    const auto endpoints = publishers.endpoints();
    if (!pool_.SetEndpoints(endpoints).ok()) std::abort();
    Await([&](const KvFeedStats& stats) { return stats.subscribers == endpoints.size(); });
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the subscriptions arrive
  }
  template <typename Condition>
  void Await(const Condition& holds) {
    for (int i = 0; i < 60'000; ++i) {
      if (holds(*feed_->stats())) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    std::fprintf(stderr, "the feed did not get there within two minutes\n");
    std::exit(1);
  }
  KvEventFeed& feed() { return *feed_; }

 private:
  PoolStore pool_;
  std::unique_ptr<index::PrefixIndex> index_;
  std::unique_ptr<KvEventFeed> feed_;
};

void Flood(const bench::Reporter& report, const std::string& name, int count, std::uint64_t batches) {
  Publishers publishers(count, {.batches = batches});
  Rig rig(publishers);
  const double cpu = ProcessorSeconds();
  const std::int64_t begin = bench::NowNs();
  publishers.Go();
  const double total = static_cast<double>(batches) * count;
  rig.Await([&](const KvFeedStats& stats) { return stats.ingest.batches >= total; });
  const double seconds = (bench::NowNs() - begin) * 1e-9;
  const double used = ProcessorSeconds() - cpu;
  const auto stats = rig.feed().stats();
  const double events = stats->ingest.stored_events + stats->ingest.removed_events;
  report.Report(name, "batches_per_s", total / seconds, "1/s", false);
  report.Report(name, "events_per_s", events / seconds, "1/s", false);
  report.Report(name, "blocks_per_s", (stats->ingest.stored_blocks + stats->ingest.removed_blocks) / seconds,
                "1/s", false);
  report.Report(name, "cpu_us_per_batch", used / total * 1e6, "us", true);
  for (const KvPublisherStats& row : stats->publishers) {
    if (row.stream.gaps_total > 0 || row.bad_batches > 0)
      std::fprintf(stderr, "%s lost batches\n", name.c_str());
  }
}

void Paced(const bench::Reporter& report, int count) {
  constexpr int kPerSecond = 100;
  Publishers publishers(count, {.batches = 10 * kPerSecond, .per_second = kPerSecond});
  Rig rig(publishers);
  publishers.Go();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  const double cpu = ProcessorSeconds();
  const std::int64_t begin = bench::NowNs();
  std::vector<double> lags;
  for (int i = 0; i < 250; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (const KvPublisherStats& row : rig.feed().stats()->publishers) {
      lags.push_back(absl::ToDoubleMicroseconds(row.lag));
    }
  }
  const double seconds = (bench::NowNs() - begin) * 1e-9;
  report.Report("paced_p8", "core_share", (ProcessorSeconds() - cpu) / seconds, "cores", true);
  report.Report("paced_p8", "lag_p50", bench::Quantile(lags, 0.5), "us", true);
  report.Report("paced_p8", "lag_p99", bench::Quantile(lags, 0.99), "us", true);
}

void Idle(const bench::Reporter& report) {
  Publishers publishers(100, {});
  Rig rig(publishers);
  const double cpu = ProcessorSeconds();
  const std::int64_t begin = bench::NowNs();
  std::this_thread::sleep_for(std::chrono::seconds(5));
  const double seconds = (bench::NowNs() - begin) * 1e-9;
  report.Report("idle_e100", "core_share", (ProcessorSeconds() - cpu) / seconds, "cores", true);
}

int Main(int argc, char** argv) {
  bool json = false;
  std::uint64_t batches = 200'000;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else if (std::strncmp(argv[i], "--batches=", 10) == 0) {
      batches = std::strtoull(argv[i] + 10, nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: bench_kv_event_feed [--json] [--batches=N in all]\n");
      return 2;
    }
  }
  const bench::Reporter report("kv_event_feed", json);
  Flood(report, "flood_p1", 1, batches);
  Flood(report, "flood_p8", 8, batches / 8);
  Paced(report, 8);
  Idle(report);
  return 0;
}

}  // namespace
}  // namespace llmd::host

int main(int argc, char** argv) { return llmd::host::Main(argc, argv); }
