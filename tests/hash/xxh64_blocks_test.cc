// Chains over blocks against their definition, with xxHash's own XXH64, on both paths.
#include "src/hash/xxh64_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/hash/approx_prefix.h"
#include "src/hash/xxh.h"

namespace llmd::hash {
namespace {

std::string Word(std::uint64_t value) { return {reinterpret_cast<const char*>(&value), sizeof(value)}; }

std::vector<BlockKey> DigestChain(std::string_view bytes, std::size_t block_bytes, BlockKey link) {
  std::vector<BlockKey> links;
  for (std::size_t i = 0; i + block_bytes <= bytes.size(); i += block_bytes) {
    links.push_back(link = Xxh64(Word(Xxh64(bytes.substr(i, block_bytes))) + Word(link)));
  }
  return links;
}

std::vector<BlockKey> BlockChain(std::string_view bytes, std::size_t block_bytes, BlockKey link) {
  std::vector<BlockKey> links;
  for (std::size_t i = 0; i + block_bytes <= bytes.size(); i += block_bytes) {
    links.push_back(link = Xxh64(std::string(bytes.substr(i, block_bytes)) + Word(link)));
  }
  return links;
}

// Whether the parameter, the wide path, can be taken here.
class Xxh64Blocks : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !HasWideXxh64()) GTEST_SKIP() << "this CPU has no AVX-512";
  }

  void Check(std::string_view bytes, std::size_t block_bytes, BlockKey first) {
    SCOPED_TRACE(testing::Message() << bytes.size() << " bytes in blocks of " << block_bytes);
    std::vector<BlockKey> digests = {7}, blocks = {7};  // what is there stays
    const BlockKey last_digest = ChainBlockDigests(bytes, block_bytes, first, digests, GetParam());
    const BlockKey last_block = ChainBlocks(bytes, block_bytes, first, blocks, GetParam());
    EXPECT_EQ(last_digest, digests.size() > 1 ? digests.back() : first);
    EXPECT_EQ(last_block, blocks.size() > 1 ? blocks.back() : first);
    EXPECT_EQ(digests[0], 7);
    EXPECT_EQ(blocks[0], 7);
    digests.erase(digests.begin());
    blocks.erase(blocks.begin());
    ASSERT_EQ(digests, DigestChain(bytes, block_bytes, first));
    ASSERT_EQ(blocks, BlockChain(bytes, block_bytes, first));
  }

  // `size` random bytes at an odd address and with nothing behind them, for the address sanitizer.
  std::string_view RandomBytes(std::size_t size) {
    memory_ = std::make_unique<char[]>(size + 1);
    for (std::size_t i = 0; i < size; ++i) memory_[i + 1] = static_cast<char>(random_.Below(256));
    return {memory_.get() + 1, size};
  }

  Random random_{5};
  std::unique_ptr<char[]> memory_;
};

TEST_P(Xxh64Blocks, EveryBlockSize) {
  for (std::size_t block_bytes = 1; block_bytes <= 600; ++block_bytes) {
    Check(RandomBytes(block_bytes * 18 + random_.Below(block_bytes)), block_bytes, random_.Next());
  }
}

TEST_P(Xxh64Blocks, EveryLength) {
  const std::string_view bytes = RandomBytes(64 * 34);
  for (std::size_t size = 0; size <= bytes.size(); ++size) {
    Check(bytes.substr(bytes.size() - size), 64, random_.Next());
  }
}

TEST_P(Xxh64Blocks, ExtremeWords) {
  for (const char fill : {'\x00', '\xff', '\x80', '\x7f', '\x01'}) {
    for (const BlockKey first : {BlockKey{0}, ~BlockKey{0}}) {
      Check(std::string(256 * 17, fill), 256, first);
      Check(std::string(32 * 17, fill), 32, first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Xxh64Blocks, testing::Bool(), [](const testing::TestParamInfo<bool>& info) {
  return info.param ? "Wide" : "Scalar";
});

// Every number of tokens, over the floor of 64 a block: full blocks, a partial last one, the cap.
TEST(ApproxPrefixChains, EveryLength) {
  Random random(9);
  std::vector<TokenId> tokens(64 * 20);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random.Next());
  const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 4);
  const BlockKey root = Xxh64(std::string_view("modelsalt"));
  for (std::size_t count = 0; count <= tokens.size(); ++count) {
    for (const std::uint32_t size : {64, 67, 72, 128}) {
      const std::size_t full = count / size;
      std::vector<BlockKey> expected = DigestChain(bytes.substr(0, full * size * 4), size * 4, root);
      if (const std::size_t tail = (count - full * size) * 4; tail > 0) {
        const BlockKey link = expected.empty() ? root : expected.back();
        expected.push_back(DigestChain(bytes.substr(full * size * 4, tail), tail, link)[0]);
      }
      const TokenSpan prompt = TokenSpan(tokens).first(count);
      std::vector<BlockKey> keys;
      ApproxPrefixKeys(prompt, "model", "salt", {.block_size = size}, keys);
      ASSERT_EQ(keys, expected) << count << " tokens in blocks of " << size;

      keys.clear();
      ApproxPrefixKeys(prompt, "model", "salt",
                       {.block_size = size, .max_prefix_tokens = 0, .max_prefix_blocks = 9}, keys);
      expected.resize(std::min<std::size_t>(expected.size(), 9));
      ASSERT_EQ(keys, expected) << count << " tokens in at most 9 blocks of " << size;
    }
  }
}

}  // namespace
}  // namespace llmd::hash
