// Serves until SIGTERM or SIGINT; see README.md.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include "examples/sim_worker/options.h"
#include "examples/sim_worker/worker.h"

int main(int argc, char** argv) {
  namespace asio = boost::asio;
  absl::StatusOr<llmd::sim::CommandLine> line =
      llmd::sim::ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc));
  if (!line.ok()) {
    std::fprintf(stderr, "sim_worker: %s\n", std::string(line.status().message()).c_str());
    return 2;
  }
  if (!line->help.empty()) {
    std::fputs(line->help.c_str(), stdout);
    return 0;
  }
  std::signal(SIGPIPE, SIG_IGN);
  line->worker.on_crash = [] { std::_Exit(134); };

  asio::io_context io(line->threads);
  absl::StatusOr<std::unique_ptr<llmd::sim::Worker>> created = llmd::sim::Worker::Create(io, line->worker);
  if (!created.ok()) {
    std::fprintf(stderr, "sim_worker: %s\n", std::string(created.status().message()).c_str());
    return 1;
  }
  llmd::sim::Worker& worker = **created;
  const auto shown = [](std::uint16_t port) { return static_cast<unsigned>(port); };
  std::printf("ready http=%u kv_events=%u kv_replay=%u\n", shown(worker.port()),
              shown(worker.kv_events_port()), shown(worker.kv_replay_port()));
  std::fflush(stdout);

  // The first signal lets requests finish, within limits; the second does not.
  asio::signal_set signals(io, SIGTERM, SIGINT);
  asio::steady_timer timer(io);
  const auto deadline = [&] {
    return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                  std::chrono::duration<double>(line->shutdown_timeout_s));
  };
  std::chrono::steady_clock::time_point end;
  std::function<void()> poll = [&] {
    if (worker.connections() == 0 || std::chrono::steady_clock::now() >= end) {
      worker.Stop();
      io.stop();
      return;
    }
    timer.expires_after(std::chrono::milliseconds(10));
    timer.async_wait([&](const boost::system::error_code& error) {
      if (!error) poll();
    });
  };
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (error) return;
    worker.Drain();
    end = deadline();
    signals.async_wait([&](const boost::system::error_code& again, int) {
      if (!again) end = std::chrono::steady_clock::now();
    });
    poll();
  });

  std::vector<std::thread> threads;
  for (int i = 1; i < line->threads; ++i) threads.emplace_back([&io] { io.run(); });
  io.run();
  for (std::thread& thread : threads) thread.join();
  return 0;
}
