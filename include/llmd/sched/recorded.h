// What stands in for the world when a decision is taken anew: the data that producers published and the
// answers of plugins that keep a memory.
//
// A decision is a function of its input, of what data producers find out, and of what some filters and
// scorers remember. Schedule() with ScheduleInput::recorded takes the last two from here, so that the same
// decision, or one under another configuration, can be taken without indexes and in-flight tables
// (decision_replay.h). An implementation belongs to one thread at a time.
#ifndef LLMD_SCHED_RECORDED_H_
#define LLMD_SCHED_RECORDED_H_

#include <span>
#include <string_view>

#include "llmd/sched/data.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/plugin.h"

namespace llmd::sched {

class RecordedInputs {
 public:
  virtual ~RecordedInputs() = default;

  // True: Publish() gives all that the producer of that name would, so it is not asked.
  virtual bool Replaces(std::string_view producer) const = 0;
  // Called once, before the producers that are left.
  virtual void Publish(const DataLayout& layout, DataColumns& data) const = 0;

  // Only asked of filters and scorers that also act on decisions (PreRequest), since these may remember.
  // False: there is no answer on record, so the plugin is asked.
  virtual bool Drops(std::string_view profile, std::string_view filter, std::span<const Position> candidates,
                     std::span<DropReason> dropped) const = 0;
  virtual bool Scores(std::string_view profile, std::string_view scorer, std::span<const Position> candidates,
                      std::span<double> scores) const = 0;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_RECORDED_H_
