// The gRPC side: external processing on completion queues, one thread and one Worker each, and the health
// service.
//
// A stream lives on one queue from beginning to end, so its session needs no lock. Start() listens;
// Shutdown() ends streams that are still open when `patience` is over.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_SERVER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/gateway.h"

namespace grpc {
class ServerCredentials;
}

namespace llmd::host {

struct ExtProcServerOptions {
  std::string address = "0.0.0.0";
  int port = 9002;                                            // 0: any
  int health_port = 9003;                                     // 0: any
  std::shared_ptr<grpc::ServerCredentials> credentials = {};  // null: plaintext
  bool health_on_both = false;                                // also on `port`
  int threads = 1;
  int max_receive_bytes = 0;  // of one message; 0: gRPC's default, 4 MiB
  int max_send_bytes = 0;     // 0: no limit
  std::uint64_t seed = 0;     // of the workers
};

class ExtProcServer {
 public:
  // `ready`: whether the host can serve; asked by health checks from any thread. Unavailable names the port.
  static absl::StatusOr<std::unique_ptr<ExtProcServer>> Start(const ExtProcServerOptions& options,
                                                              Gateway& gateway, std::function<bool()> ready);
  virtual ~ExtProcServer() = default;  // as Shutdown(0)
  virtual int port() const = 0;
  virtual int health_port() const = 0;
  // Refuses new streams and returns when the open ones have ended.
  virtual void Shutdown(absl::Duration patience) = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_EXT_PROC_SERVER_H_
