#include "examples/gateway_scheduler/endpoints_file_watcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::uint32_t kEvents = IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO |
                                  IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF;
constexpr int kMaxLinks = 40;  // as the kernel
constexpr int kMaxSettleRounds = 25;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

absl::Status FileError(const std::string& path, std::string_view what, int error) {
  const std::string message = absl::StrCat(path, ": ", ToAbsl(what), ": ", std::strerror(error));
  return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(message) : absl::UnavailableError(message);
}

// Never blocks on what is no plain file.
absl::StatusOr<std::string> ReadFile(const std::string& path, std::size_t max_bytes) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return FileError(path, "cannot be opened", errno);
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return FileError(path, "cannot be examined", errno);
  if (!S_ISREG(facts.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is no plain file"));
  std::string text;
  char buffer[16384];
  while (text.size() <= max_bytes) {
    const ssize_t got = ::read(file.get(), buffer, sizeof buffer);
    if (got == 0) break;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError(path, "cannot be read", errno);
    text.append(buffer, static_cast<std::size_t>(got));
  }
  return text;
}

// The directories whose entries decide what `path` means: those that hold a link on the way, and the last
// one. Where the path breaks off, the last directory that exists.
std::set<std::string> DirectoriesOf(const std::string& path) {
  std::set<std::string> directories;
  std::deque<std::string> parts;
  const auto push_front = [&parts](std::string_view text) {
    std::vector<std::string> names;
    for (std::size_t from = 0; from <= text.size();) {
      const std::size_t to = std::min(text.find('/', from), text.size());
      if (to > from) names.emplace_back(text.substr(from, to - from));
      from = to + 1;
    }
    parts.insert(parts.begin(), names.begin(), names.end());
  };
  std::string at = path.starts_with('/') ? "/" : ".";
  push_front(path);
  for (int links = 0; !parts.empty();) {
    const std::string name = std::move(parts.front());
    parts.pop_front();
    const std::string next = absl::StrCat(at, at == "/" ? "" : "/", name);
    struct stat facts {};
    if (::lstat(next.c_str(), &facts) != 0) {
      directories.insert(at);
      break;
    }
    if (S_ISLNK(facts.st_mode)) {
      directories.insert(at);
      char target[PATH_MAX];
      const ssize_t size = ::readlink(next.c_str(), target, sizeof target);
      if (size <= 0 || ++links > kMaxLinks) break;
      if (target[0] == '/') at = "/";
      push_front({target, static_cast<std::size_t>(size)});
      continue;
    }
    if (parts.empty() || !S_ISDIR(facts.st_mode)) {
      directories.insert(at);
      break;
    }
    at = next;
  }
  return directories;
}

class Watcher final : public EndpointsFileWatcher {
 public:
  Watcher(const EndpointsFileWatcherOptions& options, PoolStore& pool)
      : options_(options),
        pool_(pool),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        inotify_(options.use_inotify ? ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK) : -1) {
    if (options.use_inotify && !inotify_.valid()) {
      spdlog::warn("endpoints file {}: changes are only seen every {}: inotify: {}", options.path,
                   absl::FormatDuration(options.poll_interval), std::strerror(errno));
    }
  }
  ~Watcher() override {
    stop_.store(true);
    Wake();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Begin() {
    if (!wake_.valid()) return FileError(options_.path, "cannot be watched", errno);
    Attach();  // before reading, so that no change falls between the two
    if (absl::Status status = Load(); !status.ok()) return status;
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  void Reload() override { Wake(); }
  Counts counts() const override {
    const std::lock_guard lock(mutex_);
    return counts_;
  }
  absl::Status status() const override {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  void Wake() {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
  }

  void Run() {
    while (!stop_.load()) {
      Wait(options_.poll_interval);
      if (stop_.load()) return;
      // A swap of links may lead to other directories, whose changes until now went unseen: look again.
      do {
        Settle();
        if (stop_.load()) return;
        (void)Load();
      } while (Attach() && !stop_.load());
    }
  }

  // Until something happened in a watched directory, somebody called, or the time is over.
  void Wait(absl::Duration time) {
    pollfd watched[2] = {{wake_.get(), POLLIN, 0}, {inotify_.get(), POLLIN, 0}};
    const std::int64_t milliseconds =
        time == absl::InfiniteDuration()
            ? -1
            : std::clamp<std::int64_t>(absl::ToInt64Milliseconds(time), 1, 3'600'000);
    (void)::poll(watched, inotify_.valid() ? 2 : 1, static_cast<int>(milliseconds));
    Drain();
  }

  void Drain() {
    std::uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof count);
    if (!inotify_.valid()) return;
    alignas(inotify_event) char buffer[16384];
    for (ssize_t got; (got = ::read(inotify_.get(), buffer, sizeof buffer)) > 0;) {
      for (ssize_t at = 0; at < got;) {
        inotify_event event{};
        std::memcpy(&event, buffer + at, sizeof event);
        if ((event.mask & IN_IGNORED) != 0) {  // the directory is gone
          std::erase_if(watches_, [&](const auto& watch) { return watch.second == event.wd; });
        }
        at += static_cast<ssize_t>(sizeof event + event.len);
      }
    }
  }

  // Watches the directories of the path as it is now. True when there is a new one.
  bool Attach() {
    if (!inotify_.valid()) return false;
    const std::set<std::string> wanted = DirectoriesOf(options_.path);
    bool is_new = false;
    std::map<std::string, int> now;
    for (const std::string& directory : wanted) {
      const int watch = ::inotify_add_watch(inotify_.get(), directory.c_str(), kEvents | IN_ONLYDIR);
      if (watch < 0) continue;  // vanished by now; the poll sees to it
      const auto known = watches_.find(directory);
      // The same name may be another directory by now, which has another number.
      is_new = is_new || known == watches_.end() || known->second != watch;
      now.emplace(directory, watch);
    }
    for (const auto& [directory, watch] : watches_) {
      const bool used =
          std::any_of(now.begin(), now.end(), [&](const auto& other) { return other.second == watch; });
      if (!used) ::inotify_rm_watch(inotify_.get(), watch);
    }
    watches_ = std::move(now);
    return is_new;
  }

  void Settle() {
    for (int round = 0; round < kMaxSettleRounds && !stop_.load(); ++round) {
      struct stat facts {};
      if (::stat(options_.path.c_str(), &facts) != 0) return;
      const absl::Duration age = absl::Now() - absl::TimeFromTimespec(facts.st_mtim);
      if (age >= options_.settle || age < absl::ZeroDuration()) return;
      pollfd wake{wake_.get(), POLLIN, 0};
      (void)::poll(&wake, 1, static_cast<int>(absl::ToInt64Milliseconds(options_.settle - age)) + 1);
      if (wake.revents != 0) {
        std::uint64_t count = 0;
        (void)!::read(wake_.get(), &count, sizeof count);
      }
    }
  }

  absl::Status Load() {
    absl::StatusOr<std::string> text = ReadFile(options_.path, options_.parse.max_bytes);
    if (!text.ok()) return Refuse(text.status());
    if (applied_once_ && *text == text_) {
      const std::lock_guard lock(mutex_);
      status_ = absl::OkStatus();
      return absl::OkStatus();
    }
    absl::StatusOr<gateway::EndpointsFile> file = gateway::ParseEndpointsFile(*text, options_.parse);
    if (!file.ok()) {
      return Refuse(absl::InvalidArgumentError(absl::StrCat(options_.path, ": ", file.status().message())));
    }
    for (const std::string& message : file->skipped) {
      spdlog::warn("endpoints file {}: entry passed over: {}", options_.path, message);
    }
    if (file->skipped_count > file->skipped.size()) {
      spdlog::warn("endpoints file {}: {} entries passed over in all", options_.path, file->skipped_count);
    }
    if (const absl::Status status = pool_.SetEndpoints(file->endpoints); !status.ok()) {
      spdlog::error("endpoints file {}: {}", options_.path, std::string(status.message()));
    }
    spdlog::info("endpoints file {}: {} endpoints", options_.path, file->endpoints.size());
    applied_once_ = true;
    text_ = *std::move(text);
    const std::lock_guard lock(mutex_);
    ++counts_.applied;
    status_ = absl::OkStatus();
    return absl::OkStatus();
  }

  absl::Status Refuse(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (status != status_) {  // once, not with every look
      ++counts_.refused;
      status_ = status;
      if (applied_once_) {
        spdlog::error("endpoints file: the endpoints stay as they are: {}", std::string(status.message()));
      }
    }
    return status;
  }

  const EndpointsFileWatcherOptions options_;
  PoolStore& pool_;
  const FileDescriptor wake_;
  const FileDescriptor inotify_;
  std::map<std::string, int> watches_;  // directory -> inotify's number
  bool applied_once_ = false;
  std::string text_;  // what was applied
  std::atomic<bool> stop_ = false;
  mutable std::mutex mutex_;
  Counts counts_;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EndpointsFileWatcher>> EndpointsFileWatcher::Start(
    const EndpointsFileWatcherOptions& options, PoolStore& pool) {
  auto watcher = std::make_unique<Watcher>(options, pool);
  if (absl::Status status = watcher->Begin(); !status.ok()) return status;
  return watcher;
}

}  // namespace llmd::host
