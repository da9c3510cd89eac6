// Token sequences by the hash of the prompt that they are of, sharing prefixes: a node has the tokens that it
// adds to its parent's. Bounded in bytes; the least recently used goes first, and no node before those that
// build on it.
//
// Keys chain: the key of a longer prompt is made of that of its prefix and what follows. They are 128 bits of
// XXH3 that begin with a seed of the tree's own.
//
// Threads: any; a lock is held for as long as a look-up takes.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TOKEN_TREE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TOKEN_TREE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "llmd/base/types.h"

namespace llmd::host {

struct TokenKey {
  std::uint64_t low = 0, high = 0;
  friend bool operator==(const TokenKey&, const TokenKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const TokenKey& key) {
    return H::combine(std::move(h), key.low);
  }
};

TokenKey ChainKey(const TokenKey& prefix, std::string_view bytes);

struct TokenNode {
  TokenKey key;
  std::shared_ptr<const TokenNode> parent;  // may be null
  std::vector<TokenId> tokens;              // after the parent's
  std::size_t total = 0;                    // with the parent's
  std::uint32_t depth = 0;
  absl::Time born;  // when the engine gave the oldest of them
};

// Appends the node's tokens, its parents' first. Null appends nothing.
void AppendTokens(const TokenNode* node, std::vector<TokenId>& out);

class TokenTree {
 public:
  using Node = std::shared_ptr<const TokenNode>;
  struct Stats {
    std::size_t nodes = 0, bytes = 0;
    std::uint64_t evicted = 0;
  };

  explicit TokenTree(std::size_t max_bytes);

  TokenKey root() const { return root_; }
  // Null when there is none that was born after `oldest`.
  Node Find(const TokenKey& key, absl::Time oldest);
  // The last of `keys` that Find() finds.
  std::optional<std::pair<std::size_t, Node>> FindLast(std::span<const TokenKey> keys, absl::Time oldest);
  // Replaces a node of that key. The parent's birth counts when it is older.
  Node Insert(const TokenKey& key, const Node& parent, std::vector<TokenId> tokens, absl::Time born);

  Stats stats() const;

 private:
  struct Entry {
    Node node;
    std::list<TokenKey>::iterator use;
  };
  void Touch(const TokenNode* node);
  void Erase(absl::flat_hash_map<TokenKey, Entry>::iterator entry);

  const std::size_t max_bytes_;
  TokenKey root_;
  mutable std::mutex mutex_;
  absl::flat_hash_map<TokenKey, Entry> entries_;
  std::list<TokenKey> uses_;  // the most recent first
  Stats stats_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TOKEN_TREE_H_
