// gateway_scheduler: an endpoint picker behind Envoy. README.md in this folder tells how to run it.
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "examples/gateway_scheduler/host.h"
#include "examples/gateway_scheduler/options.h"
#include "spdlog/spdlog.h"

namespace {

// Waits for one of `signals`, at most for `timeout`; 0 when there was none.
int WaitForSignal(const sigset_t& signals, absl::Duration timeout) {
  const timespec limit = absl::ToTimespec(timeout);
  const int signal = sigtimedwait(&signals, nullptr, &limit);
  return signal > 0 ? signal : 0;
}

// Streams, scrapes and event sockets of many workers need more descriptors than shells usually give.
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int main(int argc, char** argv) {
  // Before any thread starts, so that all of them leave these signals to us.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  RaiseDescriptorLimit();

  const llmd::host::ParsedOptions parsed =
      llmd::host::ParseOptions(std::vector<std::string>(argv + 1, argv + argc));
  if (!parsed.run) {
    std::fputs(parsed.text.c_str(), parsed.exit_code == 0 ? stdout : stderr);
    return parsed.exit_code;
  }
  auto host = llmd::host::Host::Start(parsed.options);
  if (!host.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(host.status().message()).c_str());
    return 1;
  }
  for (const std::string& note : parsed.notes) spdlog::info("{}", note);
  std::printf("%s\n", (*host)->ReadyLine().c_str());
  std::fflush(stdout);

  int signal = 0;
  while (signal != SIGTERM && signal != SIGINT) {
    signal = WaitForSignal(signals, absl::Hours(1));
    if (signal == SIGHUP) {
      if (const absl::Status s = (*host)->Reload(); !s.ok()) {
        spdlog::error("reload refused, going on as before: {}", std::string(s.message()));
      } else {
        spdlog::info("reloaded");
      }
    }
  }
  (*host)->StartDraining();
  if (signal == SIGTERM && parsed.options.drain_timeout > absl::ZeroDuration()) {
    spdlog::info("draining for {}", absl::FormatDuration(parsed.options.drain_timeout));
    WaitForSignal(signals, parsed.options.drain_timeout);  // a second signal ends it early
  }
  (*host)->Stop();
  return 0;
}
