// The Python EndpointPool: a pool value behind a lock, and snapshots of it for decisions.
//
// Any thread may call anything. A decision works on a snapshot, so that a scorer written in Python may change
// the pool, and a decision's positions keep their meaning. A snapshot is made at most once between two
// changes. Nothing Python runs while the lock is held.
#ifndef LLMD_PYTHON_SRC_SCHED_POOL_H_
#define LLMD_PYTHON_SRC_SCHED_POOL_H_

#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>

#include "llmd/sched/endpoint_pool.h"

namespace llmd::python {

using PoolSnapshot = std::shared_ptr<const sched::EndpointPool>;

class Pool {
 public:
  PoolSnapshot Snapshot() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (snapshot_ == nullptr) snapshot_ = std::make_shared<const sched::EndpointPool>(pool_);
    return snapshot_;
  }
  template <typename Change>
  auto Write(const Change& change) {
    PoolSnapshot old;  // freed after the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    old.swap(snapshot_);
    return change(pool_);
  }

 private:
  mutable std::mutex mutex_;
  sched::EndpointPool pool_;
  mutable PoolSnapshot snapshot_;  // null when the pool has changed since
};

// One endpoint as it was when the snapshot was made.
struct EndpointView {
  PoolSnapshot pool;
  sched::Position position = 0;

  const sched::Endpoint& get() const { return (*pool)[position]; }
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_POOL_H_
