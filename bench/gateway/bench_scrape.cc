// What scraping costs: 100 endpoints every 50 ms through one curl loop, pages read and published in the pool.
//
// The pages come from a process of its own, which answers with one write; each endpoint is an address of
// 127.0.0.0/8 at one port. Measured after a second of warm-up:
//   e100_vllm_40k       a page of vLLM, cut to 40 KB; e100_vllm_full: all of it; e100_sim_12k: 12 KB of it;
//   e100_vllm_40k_hang200   beside 200 more endpoints that accept a connection and never answer
//     core_share          processor time of the whole process (getrusage) by wall time
//     us_per_scrape       processor time by scrapes
//     scrapes_per_s, publications_per_s, connections (opened in all), failed
//     age_p50_ms, age_max_ms   of the queue lengths in the pool, looked at every 10 ms
//
// bench_scrape [--json] [--seconds N] [--endpoints N] [--interval-ms N]
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/bench_util.h"
#include "bench/gateway/vllm_page.h"
#include "examples/gateway_scheduler/curl_loop.h"
#include "examples/gateway_scheduler/metrics_scraper.h"
#include "examples/gateway_scheduler/pool_store.h"

namespace llmd::host {
namespace {

struct PageServer {
  pid_t process = 0;
  std::uint16_t port = 0;
};

// Answers whatever ends in an empty line. Never returns.
[[noreturn]] void Serve(int listener, const std::string& answer) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int epoll = epoll_create1(0);
  epoll_event event{.events = EPOLLIN, .data = {.fd = listener}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    epoll_event events[64];
    const int count = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd == listener) {
        const int fd = accept(listener, nullptr, nullptr);
        if (fd < 0) continue;
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        epoll_event client{.events = EPOLLIN, .data = {.fd = fd}};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &client);
        continue;
      }
      char request[4096];
      const ssize_t got = read(events[i].data.fd, request, sizeof(request));
      if (got <= 0) {
        close(events[i].data.fd);
      } else if (got >= 4 && std::memcmp(request + got - 4, "\r\n\r\n", 4) == 0) {
        for (std::size_t sent = 0; sent < answer.size();) {
          const ssize_t wrote = write(events[i].data.fd, answer.data() + sent, answer.size() - sent);
          if (wrote <= 0) break;
          sent += static_cast<std::size_t>(wrote);
        }
      }
    }
  }
}

struct Listener {
  int fd = -1;
  std::uint16_t port = 0;
};

Listener Listen() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 1024) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::perror("bench_scrape: listen");
    std::exit(1);
  }
  return {listener, ntohs(address.sin_port)};
}

PageServer StartServer(const std::string& page) {
  const Listener listener = Listen();
  const std::string answer = absl::StrCat(
      "HTTP/1.1 200 OK\r\ndate: Mon, 03 Aug 2026 09:00:00 GMT\r\nserver: uvicorn\r\n"
      "content-type: text/plain; version=0.0.4; charset=utf-8\r\ncontent-length: ",
      page.size(), "\r\n\r\n", page);
  const pid_t child = fork();
  if (child == 0) Serve(listener.fd, answer);
  close(listener.fd);
  return {child, listener.port};
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void Run(const bench::Reporter& reporter, const std::string& name, const std::string& page, int endpoints,
         int hanging, int interval_ms, double seconds) {
  const PageServer server = StartServer(page);
  const Listener silent = Listen();  // the system accepts, nobody reads
  {
    PoolStore pool;
    std::vector<sched::EndpointMetadata> all;
    for (int i = 0; i < endpoints + hanging; ++i) {
      all.push_back({.name = absl::StrCat("pod-", i),
                     .address = absl::StrCat("127.0.", 1 + i / 250, ".", 1 + i % 250),
                     .port = i < endpoints ? server.port : silent.port,
                     .labels = {{"app", "vllm"}, {"llm-d.ai/role", "decode"}}});
    }
    if (!pool.SetEndpoints(all).ok()) std::exit(1);
    CurlLoop loop;
    MetricsScraper scraper({.interval = absl::Milliseconds(interval_ms)}, pool, loop);
    std::this_thread::sleep_for(std::chrono::seconds(1));

    const ScraperCounters before = scraper.counters();
    const double cpu_before = CpuSeconds();
    const std::int64_t start = bench::NowNs();
    std::vector<double> ages;
    while (static_cast<double>(bench::NowNs() - start) < seconds * 1e9) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      const PoolStore::Snapshot now = pool.snapshot();
      const absl::Time time = absl::Now();
      for (const sched::Endpoint& endpoint : now->endpoints()) {
        if (endpoint.metadata().port == server.port)
          ages.push_back(absl::ToDoubleMilliseconds(time - endpoint.metrics.waiting_requests.at));
      }
    }
    const double wall = static_cast<double>(bench::NowNs() - start) * 1e-9;
    const double cpu = CpuSeconds() - cpu_before;
    const ScraperCounters after = scraper.counters();
    const auto scrapes = static_cast<double>(after.good - before.good);
    reporter.Report(name, "page_bytes", static_cast<double>(page.size()), "bytes", true);
    reporter.Report(name, "core_share", cpu / wall, "cores", true);
    reporter.Report(name, "us_per_scrape", cpu / scrapes * 1e6, "us", true);
    reporter.Report(name, "scrapes_per_s", scrapes / wall, "1/s", false);
    reporter.Report(name, "publications_per_s",
                    static_cast<double>(after.publications - before.publications) / wall, "1/s", true);
    reporter.Report(name, "connections", static_cast<double>(after.connections), "connections", true);
    reporter.Report(name, "failed",
                    static_cast<double>(after.poll_errors() + after.refused_pages - before.poll_errors() -
                                        before.refused_pages),
                    "scrapes", true);
    reporter.Report(name, "age_p50_ms", bench::Quantile(ages, 0.5), "ms", true);
    reporter.Report(name, "age_max_ms", ages.empty() ? 0 : *std::max_element(ages.begin(), ages.end()), "ms",
                    true);
  }
  close(silent.fd);
  kill(server.process, SIGKILL);
  waitpid(server.process, nullptr, 0);
}

std::string Cut(const std::string& page, std::size_t bytes) {
  return page.substr(0, page.rfind('\n', bytes) + 1);
}

}  // namespace
}  // namespace llmd::host

int main(int argc, char** argv) {
  bool json = false;
  double seconds = 5;
  int endpoints = 100, interval_ms = 50;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--json") {
      json = true;
    } else if (flag == "--seconds" && i + 1 < argc) {
      seconds = std::clamp(std::atof(argv[++i]), 0.1, 600.0);
    } else if (flag == "--endpoints" && i + 1 < argc) {
      endpoints = std::clamp(std::atoi(argv[++i]), 1, 5000);
    } else if (flag == "--interval-ms" && i + 1 < argc) {
      interval_ms = std::clamp(std::atoi(argv[++i]), 1, 60'000);
    } else {
      std::fprintf(stderr, "bench_scrape [--json] [--seconds N] [--endpoints N] [--interval-ms N]\n");
      return 2;
    }
  }
  const llmd::bench::Reporter reporter("bench_scrape", json);
  const std::string page = llmd::bench::VllmPage();
  const std::string prefix = absl::StrCat("e", endpoints, "_");
  using llmd::host::Run;
  Run(reporter, prefix + "vllm_40k", llmd::host::Cut(page, 40'000), endpoints, 0, interval_ms, seconds);
  Run(reporter, prefix + "vllm_full", page, endpoints, 0, interval_ms, seconds);
  Run(reporter, prefix + "sim_12k", llmd::host::Cut(page, 12'000), endpoints, 0, interval_ms, seconds);
  Run(reporter, prefix + "vllm_40k_hang200", llmd::host::Cut(page, 40'000), endpoints, 200, interval_ms,
      seconds);
  return 0;
}
