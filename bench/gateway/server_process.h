// A server run as a child process, and what the kernel says about a process: time used and memory.
#ifndef BENCH_GATEWAY_SERVER_PROCESS_H_
#define BENCH_GATEWAY_SERVER_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llmd::bench {

// Processor time of all threads, in seconds; nothing when there is no such process.
std::optional<double> CpuSeconds(pid_t pid);
std::optional<double> ResidentBytes(pid_t pid);

// The number after "name=" in a line such as "ready ext_proc=9002 health=9003".
std::optional<int> ReadyPort(std::string_view line, std::string_view name);

class ServerProcess {
 public:
  // Runs it and waits for a line on its standard output that begins with "ready". Null when it ends or is
  // silent for too long; `error` says which. The child's standard error is ours.
  static std::unique_ptr<ServerProcess> Start(const std::vector<std::string>& command,
                                              std::chrono::milliseconds timeout, std::string& error);
  ~ServerProcess();  // SIGTERM, and SIGKILL after some seconds
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& ready_line() const { return ready_line_; }

 private:
  ServerProcess(pid_t pid, int output) : pid_(pid), output_(output) {}

  pid_t pid_;
  int output_;
  std::string ready_line_;
};

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_SERVER_PROCESS_H_
