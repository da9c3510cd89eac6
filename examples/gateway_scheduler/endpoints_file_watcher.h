// Keeps the pool equal to an endpoints file while people and programs edit it (spec: gateway.md 7.4).
//
//   auto watcher = EndpointsFileWatcher::Start({.path = "endpoints.yaml"}, pool);
//   if (!watcher.ok()) return watcher.status();  // no file, or a bad one: nothing was published
//
// Every way in which a file changes is seen: written in place, created, removed, replaced by a rename, and
// links swapped anywhere on its path, as Kubernetes does with a mounted ConfigMap. Directories are watched,
// not the file, along all links on the path; a slow look at the file catches what the kernel does not report
// (network file systems). A file that cannot be read or understood is logged and leaves the endpoints as they
// are; so does a removed one. A file that is still being written is waited for, but only a rename is atomic.
//
// One thread of its own; it calls PoolStore::SetEndpoints(). Any thread may call anything.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_ENDPOINTS_FILE_WATCHER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_ENDPOINTS_FILE_WATCHER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/gateway/endpoints_file.h"

namespace llmd::host {

struct EndpointsFileWatcherOptions {
  std::string path = {};
  gateway::EndpointsFileOptions parse = {};
  absl::Duration poll_interval = absl::Seconds(5);
  // How long a file must not have been written to before it is read.
  absl::Duration settle = absl::Milliseconds(40);
  bool use_inotify = true;
};

class EndpointsFileWatcher {
 public:
  struct Counts {
    std::uint64_t applied = 0;  // contents given to the pool, the first included
    std::uint64_t refused = 0;  // contents, or a lack of them, that left the endpoints as they were
  };

  // Reads the file and publishes it before it returns. The error names the file.
  static absl::StatusOr<std::unique_ptr<EndpointsFileWatcher>> Start(
      const EndpointsFileWatcherOptions& options, PoolStore& pool);
  virtual ~EndpointsFileWatcher() = default;  // stops and waits for the thread

  // Looks at the file soon, whether or not a change was reported (SIGHUP).
  virtual void Reload() = 0;
  virtual Counts counts() const = 0;
  // What is wrong with the file as it is now.
  virtual absl::Status status() const = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_ENDPOINTS_FILE_WATCHER_H_
