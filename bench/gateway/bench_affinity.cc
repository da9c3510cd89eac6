// Session affinity and metrics pages.
//
//   bench_affinity [--json]
//
// ring_h<hosts> and maglev_h<hosts>: Pick() of random hashes for 10, 100 and 1000 hosts of one weight (ring:
// minimum size 4096; Maglev: 65537 slots), the time to build the table, and a pick with the hash of a 36-byte
// session before it. ring_h<hosts>_binary_search is what the index by upper bits replaces. session_cookie:
// the session out of ten headers. vllm_page and vllm_page_8_ranks: EngineMetricsReader::Read of a whole page;
// vllm_page_all: every sample parsed. Medians of repetitions, one thread.
#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "bench/gateway/vllm_page.h"
#include "llmd/base/random.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/gateway/maglev.h"
#include "llmd/gateway/request_hash.h"
#include "llmd/gateway/ring_hash.h"
#include "llmd/gateway/session_id.h"

namespace llmd::gateway {
namespace {

constexpr int kRepetitions = 101;

double MedianNs(const std::function<void()>& run) {
  std::vector<double> samples;
  for (int i = 0; i <= kRepetitions; ++i) {
    const std::int64_t start = bench::NowNs();
    run();
    if (i > 0) samples.push_back(static_cast<double>(bench::NowNs() - start));
  }
  return bench::Median(samples);
}

class AffinityBench {
 public:
  explicit AffinityBench(bool json) : reporter_("bench_affinity", json) {
    Random random(1);
    for (int i = 0; i < 20000; ++i) hashes_.push_back(random.Next());
    for (int i = 0; i < 20000; ++i) {
      std::string session(36, 'a');
      for (char& c : session) c = "0123456789abcdef"[random.Below(16)];
      sessions_.push_back(std::move(session));
    }
  }

  void Run() {
    for (const int hosts : {10, 100, 1000}) Tables(hosts);
    Sessions();
    Pages();
  }

 private:
  template <typename Table>
  void Picks(const std::string& name, const Table& table) {
    const double pick = MedianNs([&] {
      std::uint32_t sum = 0;
      for (const std::uint64_t hash : hashes_) sum += table.Pick(hash);
      bench::KeepAlive(sum);
    });
    reporter_.Report(name, "picks_per_s", 1e9 * hashes_.size() / pick, "1/s", false);
    const double whole = MedianNs([&] {
      std::uint32_t sum = 0;
      for (const std::string& session : sessions_) sum += table.Pick(XxHash64(session));
      bench::KeepAlive(sum);
    });
    reporter_.Report(name, "hash_and_pick_ns", whole / sessions_.size(), "ns", true);
  }

  void Tables(int count) {
    std::vector<HashHost> hosts;
    for (int i = 0; i < count; ++i) {
      hosts.push_back(
          {.key = "10.0." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1) + ":8000"});
    }
    const std::string suffix = "_h" + std::to_string(count);
    const RingHash ring = *RingHash::Create(hosts, {.min_ring_size = 4096});
    reporter_.Report(
        "ring" + suffix, "build_ms",
        MedianNs([&] { bench::KeepAlive(RingHash::Create(hosts, {.min_ring_size = 4096})->size()); }) / 1e6,
        "ms", true);
    Picks("ring" + suffix, ring);
    std::vector<std::uint64_t> points;
    for (std::size_t i = 0; i < ring.size(); ++i) points.push_back(ring.hash(i));
    const double search = MedianNs([&] {
      std::size_t sum = 0;
      for (const std::uint64_t hash : hashes_) {
        const std::size_t at = std::lower_bound(points.begin(), points.end(), hash) - points.begin();
        sum += ring.host(at == points.size() ? 0 : at);
      }
      bench::KeepAlive(sum);
    });
    reporter_.Report("ring" + suffix + "_binary_search", "picks_per_s", 1e9 * hashes_.size() / search, "1/s",
                     false);

    const Maglev maglev = *Maglev::Create(hosts);
    reporter_.Report("maglev" + suffix, "build_ms",
                     MedianNs([&] { bench::KeepAlive(Maglev::Create(hosts)->size()); }) / 1e6, "ms", true);
    Picks("maglev" + suffix, maglev);
  }

  void Sessions() {
    const auto reader = *SessionIdReader::Create();
    const std::vector<HeaderView> headers = {
        {":method", "POST"},
        {":path", "/v1/chat/completions"},
        {":authority", "llm.example.com"},
        {"content-type", "application/json"},
        {"accept", "text/event-stream"},
        {"user-agent", "OpenAI/Python 1.99.1"},
        {"authorization", "Bearer sk-0123456789abcdef0123456789abcdef"},
        {"x-request-id", "8a9d2e1c-7f5b-4f0e-9d7a-1f2e3d4c5b6a"},
        {"x-forwarded-for", "10.1.2.3"},
        {"cookie",
         "theme=dark; _ga=GA1.2.1234567890.1234567890; session-id=8a9d2e1c-7f5b-4f0e-9d7a-1f2e3d4c5b6a"}};
    std::string scratch;
    constexpr int kReads = 1000;
    const double ns = MedianNs([&] {
      for (int i = 0; i < kReads; ++i) bench::KeepAlive(reader.Read(headers, scratch).value.size());
    });
    reporter_.Report("session_cookie", "ns_per_request", ns / kReads, "ns", true);
  }

  void Pages() {
    for (const int ranks : {1, 8}) {
      const std::string page = bench::VllmPage(ranks);
      const std::string name = ranks == 1 ? "vllm_page" : "vllm_page_" + std::to_string(ranks) + "_ranks";
      EngineMetricsReader reader(BuiltinEngines().front());
      sched::Metrics metrics;
      std::vector<sched::Attribute> attributes;
      MetricsReport report;
      constexpr int kReads = 5;  // within one time slice of a busy machine
      const double ns = MedianNs([&] {
                          for (int i = 0; i < kReads; ++i) {
                            if (!reader.Read(page, absl::UnixEpoch(), metrics, attributes, report).ok())
                              std::abort();
                          }
                        }) /
                        kReads;
      if (!report.problems.empty() || report.page.malformed > 0) std::abort();
      reporter_.Report(name, "us_per_page", ns / 1e3, "us", true);
      reporter_.Report(name, "mb_per_s", static_cast<double>(page.size()) * 1e3 / ns, "MB/s", false);
      reporter_.Report(name, "page_bytes", static_cast<double>(page.size()), "bytes", true);
      reporter_.Report(name, "page_samples", static_cast<double>(report.page.samples), "samples", true);
      if (ranks > 1) continue;
      PrometheusReader all;
      const double all_ns = MedianNs([&] {
                              for (int i = 0; i < kReads; ++i) {
                                if (!all.Start(page).ok()) std::abort();
                                double sum = 0;
                                while (all.Next()) sum += all.Parse() ? all.value() : 0;
                                bench::KeepAlive(sum);
                              }
                            }) /
                            kReads;
      reporter_.Report(name + "_all", "us_per_page", all_ns / 1e3, "us", true);
      reporter_.Report(name + "_all", "mb_per_s", static_cast<double>(page.size()) * 1e3 / all_ns, "MB/s",
                       false);
    }
  }

  bench::Reporter reporter_;
  std::vector<std::uint64_t> hashes_;
  std::vector<std::string> sessions_;
};

}  // namespace
}  // namespace llmd::gateway

int main(int argc, char** argv) {
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else {
      std::fprintf(stderr, "usage: %s [--json]\n", argv[0]);
      return 2;
    }
  }
  llmd::gateway::AffinityBench(json).Run();
}
