#include "bench/gateway/server_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <sstream>

namespace llmd::bench {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Polls: nobody else waits for this child.
bool WaitForEnd(pid_t pid, milliseconds timeout) {
  for (const auto end = steady_clock::now() + timeout; steady_clock::now() < end; ::usleep(5000)) {
    if (::waitpid(pid, nullptr, WNOHANG) != 0) return true;
  }
  return false;
}

}  // namespace

std::optional<double> CpuSeconds(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  // The name, in parentheses, may contain anything.
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0, system = 0;
  if (!(fields >> user >> system)) return std::nullopt;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::optional<double> ResidentBytes(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  double total = 0, resident = 0;
  if (!(file >> total >> resident)) return std::nullopt;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

std::optional<int> ReadyPort(std::string_view line, std::string_view name) {
  const std::string key = " " + std::string(name) + "=";
  const std::size_t at = line.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view digits = line.substr(at + key.size());
  int port = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (code != std::errc() || port < 0 || port > 65535) return std::nullopt;
  return port;
}

std::unique_ptr<ServerProcess> ServerProcess::Start(const std::vector<std::string>& command,
                                                    milliseconds timeout, std::string& error) {
  std::vector<char*> arguments;
  for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
  arguments.push_back(nullptr);
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) {
    error = std::string("pipe: ") + std::strerror(errno);
    return nullptr;
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    error = std::string("fork: ") + std::strerror(errno);
    ::close(pipe_ends[0]);
    ::close(pipe_ends[1]);
    return nullptr;
  }
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it must not outlive us
    if (::getppid() != parent) ::_exit(127);
    ::dup2(pipe_ends[1], STDOUT_FILENO);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  ::close(pipe_ends[1]);
  std::unique_ptr<ServerProcess> server(new ServerProcess(pid, pipe_ends[0]));
  std::string text;
  const auto end = steady_clock::now() + timeout;
  while (true) {
    for (std::size_t newline; (newline = text.find('\n')) != std::string::npos; text.erase(0, newline + 1)) {
      if (text.rfind("ready", 0) != 0) continue;
      server->ready_line_ = text.substr(0, newline);
      return server;
    }
    const auto left = std::chrono::duration_cast<milliseconds>(end - steady_clock::now()).count();
    pollfd poll{server->output_, POLLIN, 0};
    if (left <= 0 || ::poll(&poll, 1, static_cast<int>(left)) == 0) {
      error = command[0] + ": no line that begins with \"ready\" within " + std::to_string(timeout.count()) +
              " ms";
      return nullptr;
    }
    char buffer[4096];
    const ssize_t size = ::read(server->output_, buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) {
      error = command[0] + ": ended before it was ready";
      return nullptr;
    }
    text.append(buffer, static_cast<std::size_t>(size));
  }
}

ServerProcess::~ServerProcess() {
  ::close(output_);
  ::kill(pid_, SIGTERM);
  if (WaitForEnd(pid_, milliseconds(5000))) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

}  // namespace llmd::bench
