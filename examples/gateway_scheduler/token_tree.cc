#include "examples/gateway_scheduler/token_tree.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <random>

namespace llmd::host {
namespace {

constexpr std::uint32_t kMaxDepth = 64;                      // deeper, and a node gets a copy of all tokens
constexpr std::size_t kNodeBytes = sizeof(TokenNode) + 160;  // with its places in map and list

std::size_t BytesOf(const TokenNode& node) { return kNodeBytes + node.tokens.capacity() * sizeof(TokenId); }

}  // namespace

TokenKey ChainKey(const TokenKey& prefix, std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), prefix.low);
  return {hash.low64 ^ prefix.high, hash.high64 + prefix.high * 0x9E3779B97F4A7C15u};
}

void AppendTokens(const TokenNode* node, std::vector<TokenId>& out) {
  if (node == nullptr) return;
  std::size_t end = out.size() + node->total;
  out.resize(end);
  for (; node != nullptr; node = node->parent.get()) {
    end -= node->tokens.size();
    std::copy(node->tokens.begin(), node->tokens.end(), out.begin() + static_cast<std::ptrdiff_t>(end));
  }
}

TokenTree::TokenTree(std::size_t max_bytes) : max_bytes_(max_bytes) {
  std::random_device random;
  root_ = {std::uint64_t{random()} << 32 | random(), std::uint64_t{random()} << 32 | random()};
}

// Parents after their children, so that they are the more recent.
void TokenTree::Touch(const TokenNode* node) {
  for (; node != nullptr; node = node->parent.get()) {
    const auto found = entries_.find(node->key);
    if (found != entries_.end()) uses_.splice(uses_.begin(), uses_, found->second.use);
  }
}

void TokenTree::Erase(absl::flat_hash_map<TokenKey, Entry>::iterator entry) {
  stats_.bytes -= BytesOf(*entry->second.node);
  uses_.erase(entry->second.use);
  entries_.erase(entry);
}

TokenTree::Node TokenTree::Find(const TokenKey& key, absl::Time oldest) {
  const auto found = FindLast(std::span(&key, 1), oldest);
  return found ? found->second : nullptr;
}

std::optional<std::pair<std::size_t, TokenTree::Node>> TokenTree::FindLast(std::span<const TokenKey> keys,
                                                                           absl::Time oldest) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = keys.size(); i-- > 0;) {
    const auto found = entries_.find(keys[i]);
    if (found == entries_.end() || found->second.node->born < oldest) continue;
    Node node = found->second.node;
    Touch(node.get());
    return std::pair(i, std::move(node));
  }
  return std::nullopt;
}

TokenTree::Node TokenTree::Insert(const TokenKey& key, const Node& parent, std::vector<TokenId> tokens,
                                  absl::Time born) {
  auto node = std::make_shared<TokenNode>();
  node->key = key;
  node->born = parent == nullptr ? born : std::min(born, parent->born);
  if (parent != nullptr && parent->depth >= kMaxDepth) {
    node->tokens.reserve(parent->total + tokens.size());
    AppendTokens(parent.get(), node->tokens);
    node->tokens.insert(node->tokens.end(), tokens.begin(), tokens.end());
  } else {
    node->parent = parent;
    node->depth = parent == nullptr ? 0 : parent->depth + 1;
    tokens.shrink_to_fit();
    node->tokens = std::move(tokens);
  }
  node->total = node->tokens.size() + (node->parent == nullptr ? 0 : node->parent->total);
  const std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(key); found != entries_.end()) Erase(found);
  uses_.push_front(key);
  entries_[key] = {node, uses_.begin()};
  stats_.bytes += BytesOf(*node);
  Touch(node->parent.get());
  while (stats_.bytes > max_bytes_ && !uses_.empty()) {
    Erase(entries_.find(uses_.back()));
    ++stats_.evicted;
  }
  return node;
}

TokenTree::Stats TokenTree::stats() const {
  const std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.nodes = entries_.size();
  return stats;
}

}  // namespace llmd::host
