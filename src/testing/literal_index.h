// A prefix index kept literally, for texts that are known by name. Private to the component.
#ifndef SRC_TESTING_LITERAL_INDEX_H_
#define SRC_TESTING_LITERAL_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/sched/prefix.h"

namespace llmd::testing {

// Block keys by the name of a text: number of the text, of the block, and the tokens of a partial block.
class TextKeys {
 public:
  std::vector<BlockKey> Full(std::string_view text, std::size_t tokens, std::uint32_t block_tokens) {
    const BlockKey base = Number(text) << 40;
    std::vector<BlockKey> keys;
    for (std::size_t i = 0; i < tokens / block_tokens; ++i) keys.push_back(base | i << 8);
    return keys;
  }
  // The last, partial block included.
  std::vector<BlockKey> All(std::string_view text, std::size_t tokens, std::uint32_t block_tokens) {
    std::vector<BlockKey> keys = Full(text, tokens, block_tokens);
    if (tokens % block_tokens != 0) {
      keys.push_back(Number(text) << 40 | keys.size() << 8 | tokens % block_tokens);
    }
    return keys;
  }

 private:
  BlockKey Number(std::string_view text) {
    return numbers_.try_emplace(std::string(text), numbers_.size() + 1).first->second;
  }

  std::map<std::string, BlockKey> numbers_;
};

class LiteralIndex {
 public:
  void Store(std::uint32_t slot, BlockKeySpan keys) { held_[slot].insert(keys.begin(), keys.end()); }
  void Forget(std::uint32_t slot) { held_.erase(slot); }

  sched::PrefixSourceIndex source(bool learns) {
    sched::PrefixSourceIndex source{[this] { return std::make_unique<Matcher>(*this); }, nullptr};
    if (learns) {
      source.record = [this](index::HolderId holder, const index::NamespaceId&, BlockKeySpan chain,
                             absl::Time) { Store(holder.slot, chain); };
    }
    return source;
  }

 private:
  struct Matcher final : sched::PrefixMatcher {
    explicit Matcher(const LiteralIndex& i) : index(i) {}
    void Match(const index::NamespaceId&, BlockKeySpan chain, index::MatchResult& result) override {
      result.clear();
      for (const auto& [slot, keys] : index.held_) {
        std::uint32_t depth = 0;
        while (depth < chain.size() && keys.count(chain[depth]) > 0) ++depth;
        if (depth > 0) result.push_back({slot, depth});
      }
    }
    const LiteralIndex& index;
  };

  std::map<std::uint32_t, std::set<BlockKey>> held_;
};

}  // namespace llmd::testing

#endif  // SRC_TESTING_LITERAL_INDEX_H_
