// The endpoints of a deployment without Kubernetes, from a file that people edit (spec: gateway.md 7.4):
//
//   endpoints:
//   - name: worker-0            # with the namespace, unique
//     namespace: default        # the default
//     address: 127.0.0.1        # an IP
//     port: "8001"              # quotes or not
//     labels: {llm-d.ai/role: decode}
//
// YAML or JSON. Reading is strict: an unknown field, a repeated one, an alias or a tag is an error with its
// line. An error of the file as a whole, or of its outer structure, refuses it. A bad entry is passed over
// with a message, as in llm-d, so that one typing error does not keep a new worker from joining; but since an
// entry that is gone from a file means an endpoint that is gone, a host may ask for a refusal instead and go
// on with the last good file.
//
// The file is the host's to read and to watch; here is its content and what it means for a pool. Plain
// functions without state.
#ifndef LLMD_GATEWAY_ENDPOINTS_FILE_H_
#define LLMD_GATEWAY_ENDPOINTS_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/endpoint_pool.h"

namespace llmd::gateway {

struct EndpointsFileOptions {
  std::size_t max_bytes = std::size_t{1} << 20;
  bool refuse_bad_entries = false;
};

struct EndpointsFile {
  std::vector<sched::EndpointMetadata> endpoints = {};
  // "line 12: endpoints[3].port is 0, expected 1 to 65535", of at most 100 entries.
  std::vector<std::string> skipped = {};
  std::size_t skipped_count = 0;
};

absl::StatusOr<EndpointsFile> ParseEndpointsFile(std::string_view text,
                                                 const EndpointsFileOptions& options = {});

// How a pool must change to have exactly these endpoints.
struct EndpointsDiff {
  struct Change {
    std::uint32_t index = 0;  // of the endpoint as it shall be
    sched::EndpointHandle endpoint = {};
    bool address = false;  // another server; else only labels and the like changed
  };
  std::vector<std::uint32_t> added = {};
  std::vector<Change> changed = {};
  std::vector<sched::EndpointHandle> removed = {};

  bool empty() const { return added.empty() && changed.empty() && removed.empty(); }
};

// Endpoints are the same by namespace and name; each must be in `endpoints` once.
EndpointsDiff DiffEndpoints(std::span<const sched::EndpointMetadata> endpoints,
                            const sched::EndpointPool& pool);

// Carries it out: removals, changes, additions. An identity does not change within a pool, so a changed
// endpoint gets a new handle, and the holders bound to the old one must be bound anew; it keeps its metrics
// unless its address changed. The error of EndpointPool::Add(), after everything else was done.
absl::Status ApplyEndpoints(std::span<const sched::EndpointMetadata> endpoints, const EndpointsDiff& diff,
                            sched::EndpointPool& pool);

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_ENDPOINTS_FILE_H_
