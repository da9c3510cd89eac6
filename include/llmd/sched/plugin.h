// The kinds of plugin that a scheduler is made of.
//
// A plugin is an object that derives from Plugin and from one or more of the kinds below; a class may be
// filter and scorer at once. A scheduler owns its plugins. All hot-path members are const and are called by
// any number of threads at the same time; what one thread needs for itself (an index reader, buffers) lives
// in a ThreadState. They must be deterministic functions of their arguments: time is Context::now, randomness
// Context::random. They do not throw and, once warm, do not allocate.
//
// Endpoints are positions in Context::pool. Work is done for all candidates at once.
#ifndef LLMD_SCHED_PLUGIN_H_
#define LLMD_SCHED_PLUGIN_H_

#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/base/random.h"
#include "llmd/sched/data.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/flight.h"
#include "llmd/sched/parameters.h"
#include "llmd/sched/request.h"

namespace llmd::sched {

// What a plugin sees of one decision.
struct Context {
  const Request& request;
  const EndpointPool& pool;
  absl::Time now;
  Random& random;  // seeded by the decision's seed
  DataColumns& data;
  std::span<const Position> candidates = {};  // of the request, before any filter; ascending
};

class Plugin {
 public:
  // `type` is the registered type name, `name` is unique in a scheduler and defaults to the type.
  Plugin(std::string type, std::string name) : type_(std::move(type)), name_(std::move(name)) {}
  virtual ~Plugin() = default;
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;

  const std::string& type() const { return type_; }
  const std::string& name() const { return name_; }

 private:
  std::string type_;
  std::string name_;
};

// Null, or a text that says why the endpoint was dropped. It lives as long as the plugin.
using DropReason = const char*;

class Filter {
 public:
  virtual ~Filter() = default;
  // Sets dropped[i] for each candidates[i] that must not serve the request; all are null at first.
  virtual void Apply(Context& context, std::span<const Position> candidates,
                     std::span<DropReason> dropped) const = 0;
};

// A scorer's "no opinion"; it counts as 0.
inline constexpr double kNoScore = std::numeric_limits<double>::quiet_NaN();

class Scorer {
 public:
  virtual ~Scorer() = default;
  // Sets scores[i] for candidates[i]; all are kNoScore at first. The profile clamps to 0..1, then applies the
  // weight.
  virtual void Score(Context& context, std::span<const Position> candidates,
                     std::span<double> scores) const = 0;
};

class Picker {
 public:
  virtual ~Picker() = default;
  // Reorders `scored` (not empty) so that the chosen endpoints come first, best first, and returns how many
  // they are (at least 1). `tie_seed` decides among equals; TieKey() is the usual way.
  virtual std::size_t Pick(Context& context, std::uint64_t tie_seed,
                           std::span<ScoredEndpoint> scored) const = 0;
};

// A pseudo-random rank of the endpoint for breaking ties: uniform, and independent of the order of
// candidates.
inline std::uint64_t TieKey(std::uint64_t tie_seed, Position position) {
  std::uint64_t state = tie_seed + position * 0x9E3779B97F4A7C15u;
  return SplitMix64(state);
}

// Decides which profiles run, and which result is the decision's.
class ProfileHandler {
 public:
  virtual ~ProfileHandler() = default;
  // Called once, when the scheduler is built, with the profiles' names in order. An error refuses the
  // configuration.
  virtual absl::Status Bind(std::span<const std::string> profiles) = 0;
  // Called again and again: sets the state of profiles to run next to kRequested, of those decided against to
  // kSkipped. The loop ends when none is kRequested. Only a kPending profile can be requested, so it ends.
  virtual void Next(Context& context, std::span<ProfileResult> profiles) const = 0;
  // Sets decision.primary and may change the results. An error fails the request.
  virtual absl::Status Finish(Context& context, Decision& decision) const = 0;
};

// One thread's private memory of a plugin.
class ThreadState {
 public:
  virtual ~ThreadState() = default;
};

// Computes data for other plugins, before the profiles run and in the order of their dependencies.
class DataProducer {
 public:
  virtual ~DataProducer() = default;
  virtual std::unique_ptr<ThreadState> NewThreadState() const { return nullptr; }
  // Publishes its slots, or leaves them unpublished: a decision goes on without. `state` is from
  // NewThreadState().
  virtual void Produce(Context& context, ThreadState* state) const = 0;
};

// Acts on a decision that is about to be carried out: records it, adds headers, and attaches to the flight
// what must be undone or done when the response comes.
class PreRequest {
 public:
  virtual ~PreRequest() = default;
  // With the data of the decision still readable. `profiles` are their names. Called from any thread, so what
  // it changes it must lock.
  virtual absl::Status OnDecision(Context& context, const Decision& decision,
                                  std::span<const std::string> profiles, Dispatch& dispatch) = 0;
};

// Whether a further stage is worth it and, if not, why: a string literal, so that hosts can count reasons.
struct Verdict {
  bool run = false;
  const char* reason = nullptr;

  static Verdict Yes() { return {true, nullptr}; }
  static Verdict No(const char* reason) { return {false, reason}; }
};

// Says whether a further stage is worth it. Named in the parameters of a profile handler.
class Decider {
 public:
  virtual ~Decider() = default;
  // `endpoint` is what an earlier stage chose, if one ran.
  virtual Verdict Decide(Context& context, std::optional<Position> endpoint) const = 0;
};

// May turn a request away after the data producers ran and before any profile.
class Admitter {
 public:
  virtual ~Admitter() = default;
  // An error refuses the request, which then gets this status.
  virtual absl::Status Admit(Context& context, std::span<const Position> candidates) const = 0;
};

// Tells how full a set of endpoints is.
class SaturationDetector {
 public:
  virtual ~SaturationDetector() = default;
  // 0 idle, 1 full, may be more. 1 for no candidates.
  virtual double Saturation(const EndpointPool& pool, std::span<const Position> candidates,
                            absl::Time now) const = 0;
};

// Names the program or user that a request belongs to, when no header does.
class AgentIdentity {
 public:
  virtual ~AgentIdentity() = default;
  // Empty when unknown. A view of the request's.
  virtual std::string_view Identify(const Request& request) const = 0;
};

// A part of the configuration that the host carries out: a data source, an extractor, a parser, a discovery,
// a tokenizer. The parameters have been checked.
class HostPlugin : public Plugin {
 public:
  enum class Kind { kDataSource, kExtractor, kParser, kDiscovery, kSyncer, kOther };

  HostPlugin(std::string type, std::string name, Kind kind, Value parameters)
      : Plugin(std::move(type), std::move(name)), kind_(kind), parameters_(std::move(parameters)) {}

  Kind kind() const { return kind_; }
  const Value& parameters() const { return parameters_; }

 private:
  Kind kind_;
  Value parameters_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PLUGIN_H_
