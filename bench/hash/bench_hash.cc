// Block hashing: nanoseconds per block of each function over a prompt of random tokens from a vocabulary of
// 128,256.
//
//   bench_hash [--json]
//
// Inside the clock: serializing and hashing every block of the prompt, output vectors grown beforehand. The
// peers of vllm_sha256_b16 hash the same preimages, serialized beforehand: OpenSSL's one-shot SHA256()
// (ratio_to_raw_sha256), and its low-level Init/Update/Final, which skips the provider look-up
// (ratio_to_lowlevel_sha256). Medians of repetitions in which the competitors take turns.
#define OPENSSL_SUPPRESS_DEPRECATED

#include <openssl/sha.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/hash/approx_prefix.h"
#include "llmd/hash/dynamo.h"
#include "llmd/hash/request_keys.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/trtllm.h"
#include "llmd/hash/vllm.h"

namespace llmd::hash {
namespace {

constexpr std::size_t kTokens = 16384;  // a run then fits into one time slice of a busy machine
constexpr int kRepetitions = 101;

double NsPerBlock(std::size_t blocks, const std::function<void()>& run) {
  const std::int64_t start = bench::NowNs();
  run();
  return static_cast<double>(bench::NowNs() - start) / static_cast<double>(blocks);
}

class HashBench {
 public:
  explicit HashBench(bool json) : reporter_("bench_hash", json) {
    Random random(1);
    for (std::size_t i = 0; i < kTokens; ++i) tokens_.push_back(static_cast<TokenId>(random.Below(128256)));
  }

  void Run() {
    VllmSha256();
    for (const auto algorithm :
         {VllmAlgorithm::kSha256Cbor, VllmAlgorithm::kXxhash, VllmAlgorithm::kXxhashCbor}) {
      Vllm(algorithm);
    }
    VllmExtend();
    const auto keys = [this](const std::string& name, std::size_t block_size,
                             const std::function<void()>& hash) {
      Case(name, block_size, [&] {
        keys_.clear();
        hash();
        bench::KeepAlive(keys_.back());
      });
    };
    keys("dynamo_local_b16", 16, [&] { DynamoLocalHashes(tokens_, {16}, keys_); });
    std::vector<BlockKey> local;
    keys("dynamo_local_and_sequence_b16", 16, [&] {
      local.clear();
      DynamoLocalHashes(tokens_, {16}, local);
      DynamoSequenceHashes(local, std::nullopt, keys_);
    });
    const ApproxPrefixOptions unlimited{.block_size = 64, .max_prefix_tokens = 0, .max_prefix_blocks = 0};
    keys("approx_prefix_b64", 64, [&] { ApproxPrefixKeys(tokens_, "model", "", unlimited, keys_); });
    const std::string bytes(reinterpret_cast<const char*>(tokens_.data()), tokens_.size() * 4);
    keys("gaie_prefix_64_bytes", 16, [&] { GaiePrefixKeys(bytes, "model", "", 64, kTokens, keys_); });
    for (const auto algorithm : {RequestKeyAlgorithm::kCborFnv, RequestKeyAlgorithm::kXxh64}) {
      const auto hasher = RequestKeyHasher::Create({algorithm, "", 16});
      const BlockKey root = hasher->Root("model");
      keys("llmd_" + std::string(ToString(algorithm)) + "_b16", 16,
           [&] { hasher->HashBlocks(tokens_, root, {}, keys_); });
    }
    keys("trtllm_v1_b32", 32, [&] { TrtllmV1Keys(tokens_, 32, {}, 0, keys_); });
    Case("sglang_page16", 16, [&] {
      digests_.clear();
      SglangPageHashes(tokens_, 16, nullptr, digests_);
    });
  }

 private:
  void Case(const std::string& name, std::size_t block_size, const std::function<void()>& run) {
    std::vector<double> ns;
    for (int i = 0; i <= kRepetitions; ++i) {
      const double sample = NsPerBlock(kTokens / block_size, run);
      if (i > 0) ns.push_back(sample);  // the first one warms up
    }
    reporter_.Report(name, "ns_per_block", bench::Median(ns), "ns", true);
  }

  void Vllm(VllmAlgorithm algorithm) {
    const auto hasher = VllmHasher::Create({algorithm, NoneHash::SeedText("0"), 16});
    Case("vllm_" + std::string(ToString(algorithm)) + "_b16", 16, [&] {
      digests_.clear();
      hasher->HashBlocks(TokenSpan(tokens_), nullptr, {}, digests_);
    });
  }

  // A request that grows by one token at a time.
  void VllmExtend() {
    const auto hasher = VllmHasher::Create({});
    VllmChain chain(*hasher);
    Case("vllm_sha256_b16_extend_by_1", 16, [&] {
      chain.Clear();
      for (const TokenId& token : tokens_) chain.Extend({&token, 1});
    });
  }

  void VllmSha256() {
    const auto hasher = VllmHasher::Create({VllmAlgorithm::kSha256, NoneHash::SeedText("0"), 16});
    hasher->HashBlocks(TokenSpan(tokens_), nullptr, {}, digests_);
    std::vector<std::string> preimages;
    double total = 0;
    for (std::size_t i = 0; i < digests_.size(); ++i) {
      const std::vector<std::int64_t> block(tokens_.begin() + 16 * i, tokens_.begin() + 16 * (i + 1));
      preimages.push_back(hasher->Preimage(block, i == 0 ? nullptr : &digests_[i - 1], nullptr));
      total += preimages.back().size();
    }
    std::vector<double> ours, raw, low_level, raw_ratio, low_ratio;
    std::uint8_t digest[32];
    for (int i = 0; i <= kRepetitions; ++i) {
      const double a = NsPerBlock(preimages.size(), [&] {
        digests_.clear();
        hasher->HashBlocks(TokenSpan(tokens_), nullptr, {}, digests_);
      });
      const double b = NsPerBlock(preimages.size(), [&] {
        for (const std::string& preimage : preimages) {
          SHA256(reinterpret_cast<const std::uint8_t*>(preimage.data()), preimage.size(), digest);
          bench::KeepAlive(digest);
        }
      });
      const double c = NsPerBlock(preimages.size(), [&] {
        for (const std::string& preimage : preimages) {
          SHA256_CTX context;
          SHA256_Init(&context);
          SHA256_Update(&context, preimage.data(), preimage.size());
          SHA256_Final(digest, &context);
          bench::KeepAlive(digest);
        }
      });
      if (i == 0) continue;
      ours.push_back(a);
      raw.push_back(b);
      low_level.push_back(c);
      raw_ratio.push_back(a / b);
      low_ratio.push_back(a / c);
    }
    const std::string name = "vllm_sha256_b16";
    reporter_.Report(name, "ns_per_block", bench::Median(ours), "ns", true);
    reporter_.Report(name, "ratio_to_raw_sha256", bench::Median(raw_ratio), "ratio", true);
    reporter_.Report(name, "ratio_to_lowlevel_sha256", bench::Median(low_ratio), "ratio", true);
    reporter_.Report(name, "raw_sha256_ns_per_block", bench::Median(raw), "ns", true);
    reporter_.Report(name, "lowlevel_sha256_ns_per_block", bench::Median(low_level), "ns", true);
    reporter_.Report(name, "preimage_bytes", total / preimages.size(), "bytes", true);
  }

  bench::Reporter reporter_;
  std::vector<TokenId> tokens_;
  std::vector<BlockKey> keys_;
  std::vector<Digest> digests_;
};

}  // namespace
}  // namespace llmd::hash

int main(int argc, char** argv) {
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else {
      std::fprintf(stderr, "usage: %s [--json]\n", argv[0]);
      return 2;
    }
  }
  llmd::hash::HashBench(json).Run();
}
