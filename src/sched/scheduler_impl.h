// What a scheduler consists of once built. Private to the component.
#ifndef SRC_SCHED_SCHEDULER_IMPL_H_
#define SRC_SCHED_SCHEDULER_IMPL_H_

#include <memory>
#include <string>
#include <vector>

#include "llmd/sched/scheduler.h"
#include "src/sched/profile.h"

namespace llmd::sched {

struct Scheduler::Impl {
  DataLayout layout;
  std::vector<std::unique_ptr<Plugin>> plugins;
  std::vector<const DataProducer*> producers;  // in the order of their dependencies
  std::vector<PreRequest*> pre_requests;       // in the order of the configuration
  ProfileHandler* handler = nullptr;
  std::vector<std::string> profile_names;
  std::vector<Profile> profiles;
};

struct Workspace::State {
  explicit State(const Scheduler::Impl& impl) : columns(impl.layout) {
    for (const DataProducer* producer : impl.producers) thread_states.push_back(producer->NewThreadState());
  }

  DataColumns columns;
  std::vector<std::unique_ptr<ThreadState>> thread_states;  // one for each producer
  std::vector<Position> candidates;
  ProfileBuffers buffers;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_SCHEDULER_IMPL_H_
