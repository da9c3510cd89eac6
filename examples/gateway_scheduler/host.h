// The whole host, from a command line's options to running servers.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_HOST_H_
#define EXAMPLES_GATEWAY_SCHEDULER_HOST_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/options.h"

namespace llmd::host {

class Host {
 public:
  // Listens on every port, or says which one it could not have.
  static absl::StatusOr<std::unique_ptr<Host>> Start(const HostOptions& options);
  virtual ~Host() = default;  // as Stop()

  // "ready ext_proc=9002 health=9003 metrics=9090 status=9080 proxy=0"; 0: off.
  virtual std::string ReadyLine() const = 0;
  // Reads configuration and endpoints again; an error leaves what is in force.
  virtual absl::Status Reload() = 0;
  // Not ready any more, but serving.
  virtual void StartDraining() = 0;
  // Finishes open streams, for a while, and stops.
  virtual void Stop() = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_HOST_H_
