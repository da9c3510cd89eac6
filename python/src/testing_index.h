// A prefix index kept literally, for tests: which holder has which keys.
#ifndef LLMD_PYTHON_SRC_TESTING_INDEX_H_
#define LLMD_PYTHON_SRC_TESTING_INDEX_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "llmd/sched/prefix.h"

namespace llmd::python {

// Any thread may call anything.
class TestIndex {
 public:
  void Store(std::uint32_t slot, BlockKeySpan keys) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_[slot].insert(keys.begin(), keys.end());
  }
  void Forget(std::uint32_t slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_.erase(slot);
  }
  // A source that lives as long as the index; one that learns stores what is dispatched.
  sched::PrefixSourceIndex Source(bool learns) {
    sched::PrefixSourceIndex source{[this] { return std::make_unique<Matcher>(*this); }, nullptr};
    if (learns) {
      source.record = [this](index::HolderId holder, const index::NamespaceId&, BlockKeySpan chain,
                             absl::Time) { Store(holder.slot, chain); };
    }
    return source;
  }

 private:
  struct Matcher final : sched::PrefixMatcher {
    explicit Matcher(const TestIndex& i) : index(i) {}
    void Match(const index::NamespaceId&, BlockKeySpan chain, index::MatchResult& result) override {
      result.clear();
      const std::lock_guard<std::mutex> lock(index.mutex_);
      for (const auto& [slot, keys] : index.held_) {
        std::uint32_t depth = 0;
        while (depth < chain.size() && keys.count(chain[depth]) > 0) ++depth;
        if (depth > 0) result.push_back({slot, depth});
      }
    }
    const TestIndex& index;
  };

  mutable std::mutex mutex_;
  std::map<std::uint32_t, std::set<BlockKey>> held_;
};

// As a prefix source of a scheduler: the index, and whether it learns.
struct TestSource {
  std::shared_ptr<TestIndex> index;
  bool learns = false;
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_TESTING_INDEX_H_
