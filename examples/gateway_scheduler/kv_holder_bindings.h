// Which holders of the exact index belong to which endpoint of the pool, kept right while both change.
//
// The feed notes holders that appear and go (Bind, Unbind) and brings them to the pool in batches (Flush:
// one publication each). When an endpoint's labels change it gets a new handle; OnPoolChange() binds its
// holders to the new one within the same turn of the store, so that no decision sees the endpoint without
// them.
//
// Threads: Bind(), Unbind() and Flush() belong to the feed's thread, OnPoolChange() to the store's turn. What
// is bound is only touched within turns.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_HOLDER_BINDINGS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_HOLDER_BINDINGS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/index/types.h"
#include "llmd/sched/endpoint_pool.h"

namespace llmd::host {

class HolderBindings {
 public:
  void Bind(std::string_view endpoint_id, std::string_view host_port, index::HolderId holder,
            std::string_view tier);
  void Unbind(std::string_view endpoint_id, index::HolderId holder);
  bool pending() const { return !notes_.empty(); }
  void Flush(PoolStore& pool);

  void OnPoolChange(const PoolChange& change, sched::EndpointPool& pool);

 private:
  struct Holder {
    index::HolderId id;
    std::string tier;
  };
  struct Bound {
    std::string host_port;
    std::vector<Holder> holders;
  };
  struct Note {
    bool bind;
    std::string endpoint_id;
    std::string host_port;
    Holder holder;
  };

  void Carry(const Note& note, sched::EndpointPool& pool);

  std::vector<Note> notes_;                        // feed's thread
  absl::flat_hash_map<std::string, Bound> bound_;  // store's turn; by endpoint id
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_HOLDER_BINDINGS_H_
