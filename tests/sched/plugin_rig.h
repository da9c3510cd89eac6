// Drives one plugin through decisions by hand: data in, produce, score or filter, decide.
#ifndef TESTS_SCHED_PLUGIN_RIG_H_
#define TESTS_SCHED_PLUGIN_RIG_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {

class PluginRig {
 public:
  PluginRig(const EndpointPool& pool, const std::string& type, const Value& parameters = {},
            const Resources& resources = {}, const Compatibility& compatibility = {})
      : under_test(type, parameters, resources, compatibility), pool_(&pool), type_(type) {
    EXPECT_TRUE(under_test.status.ok()) << under_test.status;
    if (const auto* producer = dynamic_cast<const DataProducer*>(under_test.plugin.get())) {
      thread_state_ = producer->NewThreadState();
    }
  }

  // Starts a decision; `candidates` are all of the pool when absent.
  void Begin(const Request& request, std::optional<std::vector<Position>> candidates = std::nullopt) {
    request_ = &request;
    candidates_ = candidates.value_or(AllPositions(*pool_));
    under_test.columns->Begin(pool_->size());
  }
  template <typename T>
  void Publish(std::string_view producer, const std::vector<T>& values) {
    const std::span<T> column = under_test.columns->Publish(under_test.layout.Declare<T>(producer));
    std::copy(values.begin(), values.end(), column.begin());
  }
  template <typename T>
  void PublishForRequest(std::string_view producer, const T& value) {
    const RequestSlot<T> slot = under_test.layout.DeclareForRequest<T>(producer);
    under_test.columns->Publish(slot) = value;
  }

  void Produce() {
    WithContext([&](Context& context) { As<DataProducer>().Produce(context, thread_state_.get()); });
  }
  // What the plugin published; empty when nothing.
  template <typename T>
  std::vector<T> Read() {
    const auto values = under_test.columns->Read(under_test.layout.Declare<T>(type_));
    return {values.begin(), values.end()};
  }
  template <typename T>
  const T* ReadOfRequest() {
    return under_test.columns->Read(under_test.layout.DeclareForRequest<T>(type_));
  }

  std::vector<double> Score() { return Score(candidates_); }
  std::vector<double> Score(const std::vector<Position>& candidates) {
    std::vector<double> scores(candidates.size(), kNoScore);
    WithContext([&](Context& context) { As<Scorer>().Score(context, candidates, scores); });
    return scores;
  }
  // The survivors.
  std::vector<Position> Filter() {
    std::vector<DropReason> dropped(candidates_.size(), nullptr);
    WithContext([&](Context& context) { As<sched::Filter>().Apply(context, candidates_, dropped); });
    std::vector<Position> kept;
    for (std::size_t i = 0; i < dropped.size(); ++i) {
      if (dropped[i] == nullptr) kept.push_back(candidates_[i]);
    }
    return kept;
  }

  // Carries out a decision: the targets of each profile, none for one that did not run.
  struct Ran {
    std::string profile;
    std::vector<Position> targets;
  };
  absl::Status Decide(const std::vector<Ran>& profiles, Dispatch& dispatch, std::uint32_t primary = 0) {
    Decision decision;
    decision.primary = primary;
    std::vector<std::string> names;
    for (const Ran& ran : profiles) {
      names.push_back(ran.profile);
      ProfileResult& result = decision.profiles.emplace_back();
      result.state = ran.targets.empty() ? ProfileState::kSkipped : ProfileState::kDone;
      result.targets = ran.targets;
    }
    absl::Status status;
    WithContext([&](Context& context) {
      status = dynamic_cast<PreRequest&>(*under_test.plugin).OnDecision(context, decision, names, dispatch);
    });
    return status;
  }
  // The same for one profile and a flight of no interest.
  void Decide(Position target) {
    Dispatch dispatch;
    EXPECT_TRUE(Decide({{"default", {target}}}, dispatch).ok());
  }

  void set_pool(const EndpointPool& pool) { pool_ = &pool; }

  PluginUnderTest under_test;
  absl::Time now = kNow;

 private:
  template <typename Kind>
  const Kind& As() const {
    return under_test.As<Kind>();
  }
  template <typename Act>
  void WithContext(const Act& act) {
    Random random(1);
    Context context{*request_, *pool_, now, random, *under_test.columns, candidates_};
    act(context);
  }

  const EndpointPool* pool_;
  std::string type_;
  const Request* request_ = nullptr;
  std::vector<Position> candidates_;
  std::unique_ptr<ThreadState> thread_state_;
};

}  // namespace llmd::sched

#endif  // TESTS_SCHED_PLUGIN_RIG_H_
