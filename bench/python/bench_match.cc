// What a match costs in C++, for bench_python.py, which measures the same cases in Python: 8 holders that
// have the same 1000 blocks.
//
//   bench_match [--json]
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/index/prefix_index.h"

namespace llmd::bench {
namespace {

// The median of 41 rounds of about a millisecond.
template <typename Call>
double NsPerCall(Call call) {
  int calls = 1;
  std::vector<double> rounds;
  while (rounds.size() < 41) {
    const std::int64_t start = NowNs();
    for (int i = 0; i < calls; ++i) call();
    const std::int64_t took = NowNs() - start;
    if (took < 500'000) {
      calls *= 2;
    } else {
      rounds.push_back(static_cast<double>(took) / calls);
    }
  }
  return Median(rounds);
}

int Main(bool json) {
  const auto index = *index::PrefixIndex::Create({});
  const index::NamespaceId ns = index::MakeNamespace({.model = "m", .block_size = 16});
  Random random(1);
  std::vector<BlockKey> keys(1000);
  for (BlockKey& key : keys) key = random.Next();
  std::vector<index::StoredBlock> blocks;
  for (const BlockKey key : keys) blocks.push_back({key, key});
  for (int i = 0; i < 8; ++i) {
    const auto holder = index->AddHolder({.endpoint = "pod" + std::to_string(i) + ":1"});
    index->Store(*holder, ns, std::nullopt, blocks, {});
  }
  const index::NamespaceId other = index::MakeNamespace({.model = "unknown", .block_size = 16});
  index::PrefixIndex::Reader reader(*index);
  index::MatchResult result;
  const Reporter reporter("match", json);
  const auto measure = [&](const char* name, const index::NamespaceId& space, std::size_t length) {
    const BlockKeySpan chain = BlockKeySpan(keys).first(length);
    const double ns_per_call = NsPerCall([&] {
      reader.Match(space, chain, result);
      KeepAlive(result.size());
    });
    reporter.Report(name, "time in C++", ns_per_call / 1e3, "us", true);
  };
  measure("empty chain", ns, 0);
  measure("1 block unknown", other, 1);
  measure("1 block, 8 holders", ns, 1);
  measure("1000 blocks, 8 holders", ns, 1000);
  return 0;
}

}  // namespace
}  // namespace llmd::bench

int main(int argc, char** argv) {
  return llmd::bench::Main(argc == 2 && std::strcmp(argv[1], "--json") == 0);
}
