// The pool of a Kubernetes cluster: follows an InferencePool (or a selector), its pods, and the objects that
// say how its requests are treated, and keeps a PoolStore equal to them (spec: gateway.md 7.1-7.3).
//
//   KubernetesDiscoveryOptions options{.pool_name = "llm-d", .pool_namespace = "llm-d"};
//   auto discovery = KubernetesDiscovery::Start(*config, options, pool);
//   ... ready when (*discovery)->pool_synced() and pool.synced() ...
//   (*discovery)->objectives()->Priority(name);
//
// An endpoint is a target port of a pod that matches, is ready and is not being deleted; its name is
// POD-rank-I. The pool's selector and ports take effect at once on the pods known, then the pods are listed
// anew. A deleted pool clears everything. While the cluster cannot be reached, all stays as it was.
//
// The pool is published for the first time when the pods and the other objects are listed, or are known not
// to be served: an InferenceObjective or InferenceModelRewrite that is not installed or not allowed is told
// in the log and treated as none.
//
// Threads: one per kind, and one that publishes. Any thread may call anything.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_DISCOVERY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_DISCOVERY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/kubernetes_client.h"
#include "examples/gateway_scheduler/kubernetes_objects.h"
#include "examples/gateway_scheduler/kubernetes_reflector.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "examples/gateway_scheduler/request_tables.h"

namespace llmd::host {

struct KubernetesDiscoveryOptions {
  std::string pool_name = {};
  std::string pool_namespace = {};  // empty: where we run, else "default"
  std::string pool_group = std::string(kPoolGroup);
  // Instead of a pool: --endpoint-selector and --endpoint-target-ports. There are no objectives and rewrites
  // then, since they refer to a pool.
  std::string endpoint_selector = {};
  std::vector<int> endpoint_target_ports = {};
  ReflectorOptions reflector = {};  // paths and selectors are filled in
};

class KubernetesDiscovery {
 public:
  // Begins; the cluster need not answer yet. InvalidArgument names the option.
  static absl::StatusOr<std::unique_ptr<KubernetesDiscovery>> Start(const KubernetesConfig& config,
                                                                    const KubernetesDiscoveryOptions& options,
                                                                    PoolStore& pool);
  virtual ~KubernetesDiscovery() = default;  // stops and waits for the threads

  // Whether a pool is known (spec: PoolHasSynced). It may have no pods.
  virtual bool pool_synced() const = 0;
  virtual std::optional<PoolState> pool() const = 0;
  virtual std::shared_ptr<const ObjectiveTable> objectives() const = 0;  // never null
  virtual std::shared_ptr<const RewriteTable> rewrites() const = 0;      // never null
  // Of what is followed: the first failure at the moment.
  virtual absl::Status status() const = 0;

  struct Counts {
    Reflector::Counts pools = {};
    Reflector::Counts pods = {};  // of the pool's present selector
    std::uint64_t published = 0;  // calls of PoolStore::SetEndpoints()
  };
  virtual Counts counts() const = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_DISCOVERY_H_
