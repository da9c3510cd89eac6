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
  struct NamedProducer {
    const DataProducer* producer;
    std::string_view name;
  };
  struct NamedAdmitter {
    const Admitter* admitter;
    std::string_view name;
  };

  // The legacy admission: sheds requests that may be shed when their candidates are saturated.
  absl::Status ShedSaturated(const Context& context) const;
  // `Prefer: if-available`: refuses a decision for an endpoint that has nothing of the prompt.
  absl::Status CheckConditional(const Context& context, const Decision& decision) const;

  SchedulerConfig config;  // completed
  std::vector<std::string> warnings;
  std::shared_ptr<PluginStates> states;
  DataLayout layout;
  DataSlot<PrefixMatch> default_prefix;
  std::vector<std::unique_ptr<Plugin>> plugins;
  std::vector<NamedProducer> producers;   // in the order of their dependencies
  std::vector<PreRequest*> pre_requests;  // in the order of the configuration
  std::vector<NamedAdmitter> admitters;
  std::vector<const AgentIdentity*> agent_identities;
  ProfileHandler* handler = nullptr;
  const SaturationDetector* detector = nullptr;
  std::vector<std::string> profile_names;
  std::vector<Profile> profiles;
};

struct Workspace::State {
  explicit State(const Scheduler::Impl& impl) : columns(impl.layout) {
    for (const Scheduler::Impl::NamedProducer& p : impl.producers) {
      thread_states.push_back(p.producer->NewThreadState());
    }
  }

  DataColumns columns;
  std::vector<std::unique_ptr<ThreadState>> thread_states;  // one for each producer
  std::vector<Position> candidates;
  ProfileBuffers buffers;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_SCHEDULER_IMPL_H_
