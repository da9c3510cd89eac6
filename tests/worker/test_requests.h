// Requests with made-up tokens and a toy hash chain, for the tests of the worker.
#ifndef TESTS_WORKER_TEST_REQUESTS_H_
#define TESTS_WORKER_TEST_REQUESTS_H_

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/worker/kv_cache_manager.h"

namespace llmd::worker {

inline hash::Digest ToyDigest(std::uint64_t state) {
  hash::Digest digest;
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t word = SplitMix64(state);
    std::memcpy(digest.bytes.data() + 8 * i, &word, 8);
  }
  digest.size = 32;
  return digest;
}

// Owns what a Request points to. `salt` stands for everything besides the tokens that goes into the hashes.
class TestRequest {
 public:
  TestRequest(RequestId id, std::vector<TokenId> prompt, std::uint32_t block_size, std::uint64_t salt = 0)
      : block_size_(block_size), salt_(salt), state_(salt * 0x9E3779B97F4A7C15u + 1) {
    request_.id = id;
    for (const TokenId token : prompt) Append(token);
  }

  void Append(TokenId token) {
    tokens_.push_back(token);
    state_ = (state_ ^ (token + 1)) * 0xD6E8FEB86659FD93u;
    state_ ^= state_ >> 29;
    if (tokens_.size() % block_size_ == 0) hashes_.push_back(ToyDigest(state_));
  }

  // Points the request at the present arrays.
  Request& get() {
    request_.tokens = tokens_;
    request_.block_hashes = hashes_;
    return request_;
  }
  Request& operator*() { return get(); }
  Request* operator->() { return &get(); }

  std::uint64_t salt() const { return salt_; }
  const std::vector<hash::Digest>& hashes() const { return hashes_; }

 private:
  std::uint32_t block_size_;
  std::uint64_t salt_;
  std::uint64_t state_;
  std::vector<TokenId> tokens_;
  std::vector<hash::Digest> hashes_;
  Request request_;
};

inline std::vector<TokenId> Tokens(std::size_t n, TokenId first = 0) {
  std::vector<TokenId> tokens(n);
  for (std::size_t i = 0; i < n; ++i) tokens[i] = first + static_cast<TokenId>(i);
  return tokens;
}

inline std::vector<BlockId> FreeList(const BlockPool& pool) {
  std::vector<BlockId> ids;
  for (BlockId id = pool.free_queue().front(); id != kNoBlock; id = pool.free_queue().next(id))
    ids.push_back(id);
  return ids;
}

inline std::vector<BlockId> ToVector(std::span<const BlockId> ids) { return {ids.begin(), ids.end()}; }

}  // namespace llmd::worker

#endif  // TESTS_WORKER_TEST_REQUESTS_H_
