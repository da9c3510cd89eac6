#include "bench/sched/fleet.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "llmd/base/random.h"

namespace llmd::sched {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "bench_sched: %s\n", std::string(value.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(value);
}

std::vector<BlockKey> RandomKeys(Random& random, std::size_t blocks) {
  std::vector<BlockKey> keys;
  for (std::size_t i = 0; i < blocks; ++i) keys.push_back(random.Next());
  return keys;
}

void Store(index::PrefixIndex& index, index::HolderId holder, const std::vector<BlockKey>& keys,
           std::size_t depth) {
  std::vector<index::StoredBlock> blocks;
  for (std::size_t i = 0; i < depth; ++i) blocks.push_back({keys[i], keys[i]});
  if (depth > 0) index.Store(holder, {}, std::nullopt, blocks);
}

struct Holders {
  index::HolderId gpu, cpu, sent;
};

Holders AddEndpoint(Fleet& fleet, std::size_t e, Random& random) {
  const std::string name = "pod-" + std::to_string(e);
  const EndpointHandle handle =
      OrDie(fleet.pool.Add({.name = name,
                            .address = name,
                            .port = 8000,
                            .labels = {{std::string(kRoleLabel), e % 10 == 9 ? "prefill" : "decode"}}}));
  Metrics& metrics = *fleet.pool.mutable_metrics(handle);
  metrics.waiting_requests = {static_cast<std::int64_t>(random.Below(20)), kFleetTime};
  metrics.running_requests = {static_cast<std::int64_t>(random.Below(200)), kFleetTime};
  metrics.kv_cache_usage = {random.Uniform(), kFleetTime};
  const Holders holders{OrDie(fleet.exact->AddHolder({.endpoint = name, .dp_rank = {}, .tier = "gpu"})),
                        OrDie(fleet.exact->AddHolder({.endpoint = name, .dp_rank = {}, .tier = "cpu"})),
                        OrDie(fleet.approximate->AddHolder(name))};
  fleet.pool.BindHolder(kExactSource, holders.gpu, handle, "gpu").IgnoreError();
  fleet.pool.BindHolder(kExactSource, holders.cpu, handle, "cpu").IgnoreError();
  fleet.pool.BindHolder(kApproximateSource, holders.sent, handle).IgnoreError();
  return holders;
}

}  // namespace

Fleet::Fleet(const FleetOptions& options)
    : exact(OrDie(index::PrefixIndex::Create({.max_holders = 2 * options.endpoints + 1}))),
      approximate(OrDie(index::ApproxIndex::Create({.capacity_blocks = 1'000'000,
                                                    .max_bytes = std::size_t{4} << 30,
                                                    .max_holders = options.endpoints + 1}))) {
  Random random(7);
  const std::size_t exact_blocks = options.tokens / 16, approximate_blocks = (options.tokens + 63) / 64;
  for (std::size_t i = 0; i < options.prompts; ++i) {
    keys.push_back(RandomKeys(random, exact_blocks));
    keys.push_back(RandomKeys(random, approximate_blocks));
  }
  for (std::size_t i = 0; i < options.prompts; ++i) {
    chains.push_back({{{}, 16, keys[2 * i]}, {{}, 64, keys[2 * i + 1]}});
  }
  for (const std::vector<KeyChain>& chain : chains) {
    prompts.push_back({.token_count = options.tokens, .tokens = {}, .chains = chain});
  }
  std::vector<Holders> holders;
  for (std::size_t e = 0; e < options.endpoints; ++e) holders.push_back(AddEndpoint(*this, e, random));
  for (std::size_t i = 0; i < options.prompts; ++i) {
    const double share = static_cast<double>(i % 10) / 9;
    for (std::size_t n = 0; n < std::min(options.endpoints, options.holders); ++n) {
      const Holders& at = holders[options.endpoints <= options.holders ? n : random.Below(options.endpoints)];
      if (!random.Chance(share)) continue;
      Store(*exact, at.gpu, keys[2 * i], random.Below(exact_blocks));
      Store(*exact, at.cpu, keys[2 * i], random.Below(exact_blocks));
      approximate->Predict(at.sent, {}, BlockKeySpan(keys[2 * i + 1]).first(random.Below(approximate_blocks)),
                           kFleetTime);
    }
  }
}

}  // namespace llmd::sched
