#include "tests/index/streams.h"

#include <algorithm>

namespace llmd::index {
namespace {

using Kind = Operation::Kind;
using Keys = StreamProfile::Keys;

std::uint64_t Mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t state = a ^ (b * 0x9E3779B97F4A7C15u);
  return SplitMix64(state);
}

}  // namespace

Stream::Stream(const StreamProfile& profile, std::uint64_t seed) : profile_(profile), random_(seed) {
  holders_.resize(profile_.holders);
  chains_.resize(profile_.chains);
  for (std::size_t i = 0; i < chains_.size(); ++i) NewChain(i);
}

BlockKey Stream::Content() {
  const std::uint64_t letter = random_.Below(profile_.contents);
  if (profile_.keys == Keys::kTwins) return letter;
  return letter == 0 ? 0 : letter == 1 ? ~std::uint64_t{0} : Mix(letter, 1);
}

// Half the chains branch off from another one at any offset, some right at the root or at its end.
void Stream::NewChain(std::size_t at) {
  Chain chain{.ns = MakeNs(random_.Below(profile_.namespaces)), .contents = {}, .paths = {}};
  const Chain& other = chains_[random_.Below(chains_.size())];
  if (!other.contents.empty() && random_.Chance(0.7)) {
    chain.ns = other.ns;
    chain.contents.assign(other.contents.begin(),
                          other.contents.begin() + random_.Between(0, other.contents.size()));
  }
  const std::size_t length =
      random_.Between(std::max<std::size_t>(profile_.max_chain / 2, 1), profile_.max_chain);
  while (chain.contents.size() < length) chain.contents.push_back(Content());
  std::uint64_t path = Mix(chain.ns.hi, 2);
  for (BlockKey content : chain.contents) {
    // Twins: the last content's lowest bit does not reach the key, but it does reach those of the blocks
    // behind.
    chain.paths.push_back(profile_.keys == Keys::kTwins ? Mix(path, content | 1) : Mix(path, content));
    path = Mix(path, content);
  }
  chains_[at] = std::move(chain);
  for (Holder& holder : holders_) holder.progress.erase(at);
}

EngineKey Stream::Engine(const Holder& holder, const Chain& chain, std::size_t block) {
  switch (profile_.keys) {
    case Keys::kChained:
    case Keys::kTwins:
      return chain.paths[block];
    case Keys::kPerHolder:
      return Mix(chain.paths[block], 100 + (&holder - holders_.data()));
    case Keys::kShifting:
      return Mix(chain.paths[block], 100 + (&holder - holders_.data()) % 3 * 1000 + holder.epoch);
    case Keys::kTiny:
      return random_.Below(profile_.tiny_keys) - 1;  // the highest value is one of them
  }
  return 0;
}

Operation Stream::AddHolder(std::size_t at) {
  Holder holder;
  holder.ordinal = ++next_ordinal_;
  holder.options.endpoint = "10.0.0." + std::to_string(at / 3) + ":8000";
  if (at % 3 == 1) holder.options.dp_rank = 0;
  if (at % 3 == 2) holder.options.tier = "cpu";
  holder.options.removal = random_.Chance(profile_.refcount) ? RemovalPolicy::kRefcount : RemovalPolicy::kSet;
  holder.options.key_space = static_cast<std::uint32_t>(random_.Below(profile_.key_spaces));
  holder.live = true;
  if (!holders_[at].live) holders_[at] = holder;  // else the name is taken, and the index must say so
  Operation operation{.kind = Kind::kAddHolder};
  operation.holder = holder.ordinal;
  operation.options = holder.options;
  return operation;
}

Operation Stream::Next() {
  if (asked_++ < holders_.size()) return AddHolder(asked_ - 1);
  if (asked_ % profile_.match_every == 0) return NextMatch();
  if (random_.Chance(profile_.lifecycle)) return NextLifecycle();
  if (const std::size_t at = random_.Below(holders_.size()); !holders_[at].live && random_.Chance(0.1)) {
    return AddHolder(at);
  }
  if (random_.Chance(profile_.new_chains)) NewChain(random_.Below(chains_.size()));
  return random_.Chance(profile_.removes) ? NextRemove() : NextStore();
}

Operation Stream::NextStore() {
  Operation operation{.kind = Kind::kStore};
  Holder& holder = holders_[random_.Below(holders_.size())];
  const std::size_t which = random_.Below(chains_.size());
  const Chain& chain = chains_[which];
  operation.holder = holder.ordinal;
  operation.ns = random_.Chance(profile_.mistakes) ? MakeNs(random_.Below(profile_.namespaces)) : chain.ns;
  if (random_.Chance(0.07)) {
    operation.kind = Kind::kStoreKnown;
    operation.keys = SomeKeys(holders_[random_.Below(holders_.size())]);
    return operation;
  }
  if (profile_.keys == Keys::kShifting && random_.Chance(0.02)) holder.epoch = random_.Below(3);

  const std::uint64_t start = random_.Below(profile_.onward + 2);
  std::size_t& progress = holder.progress[which];
  if (progress >= chain.contents.size()) progress = 0;
  const std::size_t begin = start == 0 ? 0 : start == 1 ? random_.Below(chain.contents.size()) : progress;
  const std::size_t batch = random_.Chance(0.02) ? 0 : random_.Between(1, profile_.max_batch);
  const std::size_t end = std::min(begin + batch, chain.contents.size());
  if (begin > 0 && !random_.Chance(profile_.mistakes)) operation.parent = Engine(holder, chain, begin - 1);
  for (std::size_t i = begin; i < end; ++i)
    operation.blocks.push_back({Engine(holder, chain, i), chain.contents[i]});
  if (profile_.keys == Keys::kTiny && !operation.blocks.empty() && random_.Chance(0.1)) {
    operation.parent = operation.blocks[random_.Below(operation.blocks.size())].engine;
  }
  if (begin == progress) progress = end;
  return operation;
}

std::vector<EngineKey> Stream::SomeKeys(Holder& holder) {
  const std::size_t which = random_.Below(chains_.size());
  const Chain& chain = chains_[which];
  std::vector<EngineKey> keys;
  auto tail = [&](std::size_t from, std::size_t count) {  // the last first, as engines evict
    for (std::size_t i = from; i > 0 && count > 0; --i, --count) keys.push_back(Engine(holder, chain, i - 1));
  };
  switch (random_.Below(8)) {
    case 0:
      if (random_.Chance(0.6)) break;
      tail(chain.contents.size(), chain.contents.size());
      holder.progress.erase(which);
      break;
    case 1:
    case 2:
    case 3: {
      std::size_t& progress = holder.progress[which];
      const std::size_t count = std::min<std::size_t>(progress, random_.Between(1, profile_.max_batch));
      tail(progress, count);
      progress -= count;
      break;
    }
    case 4:
      tail(chain.contents.size(), random_.Between(0, profile_.max_batch));
      break;
    case 5:
      keys.push_back(random_.Next());
      break;
    default:
      for (std::uint64_t i = random_.Between(1, 3); i > 0; --i) {
        keys.push_back(Engine(holder, chain, random_.Below(chain.contents.size())));
        if (random_.Chance(0.2)) keys.push_back(keys.back());
      }
  }
  return keys;
}

Operation Stream::NextRemove() {
  Operation operation{.kind = Kind::kRemove};
  Holder& holder = holders_[random_.Below(holders_.size())];
  operation.holder = holder.ordinal;
  operation.keys = SomeKeys(holder);
  return operation;
}

Operation Stream::NextLifecycle() {
  Operation operation;
  const std::size_t at = random_.Below(holders_.size());
  Holder& holder = holders_[at];
  operation.holder = holder.ordinal;
  if (!holder.live) return AddHolder(at);
  switch (random_.Below(6)) {
    case 0:
    case 1:
      operation.kind = Kind::kCompact;
      return operation;
    case 2:
      return AddHolder(at);  // the name is taken
    case 3:
      operation.kind = Kind::kRetire;  // its late events follow until it is added again
      holder.live = false;
      break;
    default:
      operation.kind = Kind::kClear;
  }
  holder.progress.clear();
  return operation;
}

Operation Stream::NextMatch() {
  Operation operation{.kind = Kind::kMatch};
  const Chain& known = chains_[random_.Below(chains_.size())];
  operation.ns = known.ns;
  operation.chain = known.contents;
  std::vector<BlockKey>& chain = operation.chain;
  switch (random_.Below(10)) {
    case 0:
      chain.resize(random_.Between(0, chain.size()));
      break;
    case 1:
      for (int i = 0; i < 3; ++i) chain.push_back(Content());
      break;
    case 2:
      chain[random_.Below(chain.size())] = Content();
      break;
    case 3:
      chain[random_.Below(chain.size())] = random_.Next();
      break;
    case 4:
      operation.ns = random_.Chance(0.5) ? MakeNs(1000) : MakeNs(random_.Below(profile_.namespaces));
      break;
    default:
      break;
  }
  return operation;
}

Operations Stream::MatchAll() const {
  Operations operations;
  for (const Chain& chain : chains_) {
    Operation operation{.kind = Kind::kMatch};
    operation.ns = chain.ns;
    operation.chain = chain.contents;
    operations.push_back(std::move(operation));
  }
  return operations;
}

Operations MakeOperations(const StreamProfile& profile, std::uint64_t seed) {
  Stream stream(profile, seed);
  Operations operations;
  for (std::size_t i = 0; i < profile.operations; ++i) operations.push_back(stream.Next());
  for (Operation& operation : stream.MatchAll()) operations.push_back(std::move(operation));
  return operations;
}

}  // namespace llmd::index
