// One filter or scorer on a pool and a request, with data of other plugins published by hand.
//
//   PluginBench bench("token-load-scorer", {}, MakePool(2));
//   bench.Publish<InFlightLoad>("inflight-load-producer", {{1, 100}, {2, 200}});
//   EXPECT_THAT(bench.Scores(), ElementsAre(...));
#ifndef TESTS_SCHED_PLUGIN_BENCH_H_
#define TESTS_SCHED_PLUGIN_BENCH_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {

class PluginBench {
 public:
  PluginBench(const std::string& type, const Value& parameters, EndpointPool endpoints,
              const Compatibility& compatibility = {})
      : pool(std::move(endpoints)),
        plugin(type, parameters, {}, compatibility),
        candidates(AllPositions(pool)) {
    EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  }
  PluginBench(const PluginBench&) = delete;
  PluginBench& operator=(const PluginBench&) = delete;

  // One value for each position of the pool. The plugin must have declared that it reads them.
  template <typename T>
  void Publish(const std::string& producer, std::vector<T> values) {
    ASSERT_EQ(values.size(), pool.size());
    const DataSlot<T> slot = Declared<DataSlot<T>>(plugin.layout.Declare<T>(producer).index);
    publishers_.push_back([slot, values](DataColumns& columns) {
      std::copy(values.begin(), values.end(), columns.Publish(slot).begin());
    });
  }
  template <typename T>
  void PublishForRequest(const std::string& producer, T value) {
    const RequestSlot<T> slot = Declared<RequestSlot<T>>(plugin.layout.DeclareForRequest<T>(producer).index);
    publishers_.push_back([slot, value](DataColumns& columns) { columns.Publish(slot) = value; });
  }

  std::vector<double> Scores() {
    std::vector<double> scores(candidates.size(), kNoScore);
    Run([&](Context& context) { plugin.As<Scorer>().Score(context, candidates, scores); });
    return scores;
  }

  // Positions that the filter keeps; each dropped one must have a reason.
  std::vector<Position> Kept() {
    std::vector<DropReason> dropped(candidates.size(), nullptr);
    Run([&](Context& context) { plugin.As<Filter>().Apply(context, candidates, dropped); });
    std::vector<Position> kept;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (dropped[i] == nullptr) {
        kept.push_back(candidates[i]);
      } else {
        EXPECT_STRNE(dropped[i], "");
      }
    }
    return kept;
  }

  EndpointPool pool;
  PluginUnderTest plugin;
  std::vector<Position> candidates;
  Request request;
  std::uint64_t seed = 1;

 private:
  template <typename Slot>
  Slot Declared(std::uint32_t index) {
    EXPECT_LT(index, declared_) << "the plugin does not read this";
    return {index};
  }
  template <typename Body>
  void Run(const Body& body) {
    Random random(seed);
    plugin.columns->Begin(pool.size());
    for (const auto& publish : publishers_) publish(*plugin.columns);
    Context context{request, pool, kNow, random, *plugin.columns, candidates};
    body(context);
  }

  std::size_t declared_ = plugin.layout.entries().size();  // by the plugin itself
  std::vector<std::function<void(DataColumns&)>> publishers_;
};

// The complaint about the parameters; empty when they are accepted.
inline std::string ParameterError(const std::string& type, const Value& parameters) {
  return std::string(PluginUnderTest(type, parameters).status.message());
}

// A pool whose endpoints have these values of a metric; nullopt was never read.
template <typename T>
EndpointPool PoolWithMetric(Sample<T> Metrics::*member, const std::vector<std::optional<T>>& values,
                            absl::Time at = kNow) {
  EndpointPool pool = MakePool(values.size());
  for (Position p = 0; p < values.size(); ++p) {
    if (values[p]) MetricsAt(pool, p).*member = {*values[p], at};
  }
  return pool;
}

}  // namespace llmd::sched

#endif  // TESTS_SCHED_PLUGIN_BENCH_H_
