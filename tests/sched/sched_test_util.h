// Builders for scheduler tests: pools, a literal prefix index, plugins made by type name.
#ifndef TESTS_SCHED_SCHED_TEST_UTIL_H_
#define TESTS_SCHED_SCHED_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/scheduler.h"

namespace llmd::sched {

inline const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

inline EndpointHandle AddEndpoint(EndpointPool& pool, Labels labels = {}) {
  const std::string name = "pod-" + std::to_string(pool.size());
  absl::StatusOr<EndpointHandle> handle = pool.Add(
      {.name = name, .address = "10.0.0." + std::to_string(pool.size()), .port = 8000, .labels = labels});
  EXPECT_TRUE(handle.ok()) << handle.status();
  return *handle;
}

inline EndpointPool MakePool(std::size_t size) {
  EndpointPool pool;
  for (std::size_t i = 0; i < size; ++i) AddEndpoint(pool);
  return pool;
}

inline Metrics& MetricsAt(EndpointPool& pool, Position position) {
  return *pool.mutable_metrics(pool[position].handle);
}

// An index kept literally: for each holder slot the sets of keys it has.
class FakeIndex {
 public:
  void Store(std::uint32_t slot, const std::vector<BlockKey>& keys) {
    held_[slot].insert(keys.begin(), keys.end());
  }

  std::uint32_t Depth(std::uint32_t slot, BlockKeySpan chain) const {
    const auto it = held_.find(slot);
    std::uint32_t depth = 0;
    while (it != held_.end() && depth < chain.size() && it->second.count(chain[depth]) > 0) ++depth;
    return depth;
  }

  PrefixSourceIndex source() {
    return {[this] { return std::make_unique<Matcher>(*this); },
            [this](index::HolderId holder, const index::NamespaceId&, BlockKeySpan chain, absl::Time) {
              Store(holder.slot, {chain.begin(), chain.end()});
            }};
  }

 private:
  struct Matcher final : PrefixMatcher {
    explicit Matcher(const FakeIndex& i) : index(i) {}
    void Match(const index::NamespaceId&, BlockKeySpan chain, index::MatchResult& result) override {
      result.clear();
      for (const auto& [slot, keys] : index.held_) {
        if (const std::uint32_t depth = index.Depth(slot, chain); depth > 0) result.push_back({slot, depth});
      }
    }
    const FakeIndex& index;
  };

  std::map<std::uint32_t, std::set<BlockKey>> held_;
};

// A request of one prompt with a chain for the exact and one for the approximate source, both 0, 1, 2 ...
struct TestRequest {
  explicit TestRequest(std::size_t blocks, std::uint32_t block_size = 16) {
    for (std::size_t i = 0; i < blocks; ++i) keys.push_back(i);
    chains = {{{}, block_size, keys}, {{}, block_size, keys}};
    prompts = {{.token_count = blocks * block_size, .tokens = {}, .chains = chains}};
    request.prompts = prompts;
  }
  TestRequest(const TestRequest&) = delete;
  TestRequest& operator=(const TestRequest&) = delete;

  std::vector<BlockKey> keys;
  std::vector<KeyChain> chains;
  std::vector<Prompt> prompts;
  Request request;
};

// One plugin by itself, with the data columns that it reads and writes.
class PluginUnderTest {
 public:
  PluginUnderTest(const std::string& type, const Value& parameters, const Resources& resources = {},
                  const Compatibility& compatibility = {}) {
    const PluginRegistry::Entry* entry = PluginRegistry::Builtin().Find(type);
    if (entry == nullptr) {
      status = absl::NotFoundError(type);
      return;
    }
    const PluginSpec spec{.name = type, .type = type, .parameters = parameters};
    PluginEnvironment environment{
        resources,
        layout,
        states,
        compatibility,
        [](std::string_view) { return absl::NotFoundError("no other plugin here"); },
        [](std::string) {}};
    PluginBuilder builder(spec, environment);
    absl::StatusOr<std::unique_ptr<Plugin>> made = entry->factory(builder);
    status = made.status();
    if (made.ok()) plugin = *std::move(made);
    columns = std::make_unique<DataColumns>(layout);
  }

  template <typename Kind>
  const Kind& As() const {
    return dynamic_cast<const Kind&>(*plugin);
  }

  absl::Status status;
  DataLayout layout;
  PluginStates states;
  std::unique_ptr<Plugin> plugin;
  std::unique_ptr<DataColumns> columns;
};

inline std::vector<Position> AllPositions(const EndpointPool& pool) {
  std::vector<Position> all;
  for (Position p = 0; p < pool.size(); ++p) all.push_back(p);
  return all;
}

}  // namespace llmd::sched

#endif  // TESTS_SCHED_SCHED_TEST_UTIL_H_
