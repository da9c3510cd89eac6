#include "bench/index/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd::bench {
namespace {

constexpr std::uint32_t kBatch = 8;       // blocks a store carries
constexpr std::uint32_t kMemberStep = 7;  // from one member holder of a family to the next
constexpr std::uint32_t kWidest = 64;     // H of the gate cell
constexpr std::uint32_t kDepths[] = {8, 32, 78, 256, 512};
constexpr std::uint32_t kMissLength = 78;
constexpr std::size_t kMisses = 16384;

struct Family {
  std::uint64_t base;  // number of the first shared block
  std::uint32_t length;
  std::uint32_t holders;  // nominal H
};

struct Instance {
  std::uint32_t family;
  std::uint32_t tail_length;
  std::uint64_t tail_base;  // number of the first tail block
};

// A batch of an instance's chain: up to kBatch blocks from `position` on.
struct Batch {
  std::uint32_t holder;
  std::uint32_t instance;  // in the holder's list
  std::uint32_t position;
};

class Generator {
 public:
  Generator(const Profile& profile, const GenerateOptions& options)
      : profile_(profile),
        holders_(profile.holders * (options.eightfold ? 8 : 1)),
        budget_(profile.shared_holder_blocks * options.scale * (options.eightfold ? 8 : 1)),
        random_(options.seed) {}

  Workload Run() {
    workload_.name = std::string(profile_.name);
    workload_.holders = holders_;
    MakeFamilies();
    MakeInstances();
    EmitStores();
    EmitRemovals();
    MakeQueries();
    return std::move(workload_);
  }

 private:
  std::uint32_t SharedLength() {
    if (profile_.shared_min == profile_.shared_max) return profile_.shared_min;
    const double low = std::log(profile_.shared_min), high = std::log(profile_.shared_max + 1.0);
    const auto length = static_cast<std::uint32_t>(std::exp(low + random_.Uniform() * (high - low)));
    return std::clamp(length, profile_.shared_min, profile_.shared_max);
  }

  void MakeFamilies() {
    for (const Share& share : profile_.shares) {
      const double budget = budget_ * share.fraction;
      bool first = true;
      for (double used = 0; used < budget;
           used += static_cast<double>(families_.back().length) * share.holders) {
        const bool forced = first && share.holders == kWidest;
        const std::uint32_t length = forced ? profile_.first_widest_length : SharedLength();
        families_.push_back({next_block_, length, share.holders});
        next_block_ += length;
        first = false;
      }
    }
    random_.Shuffle(families_);
  }

  void MakeInstances() {
    instances_.resize(holders_);
    std::vector<std::uint32_t> members;
    for (std::uint32_t f = 0; f < families_.size(); ++f) {
      members.clear();
      const auto base = static_cast<std::uint32_t>(random_.Below(holders_));
      for (std::uint32_t i = 0; i < families_[f].holders; ++i) {
        members.push_back((base + i * kMemberStep) % holders_);
      }
      std::sort(members.begin(), members.end());
      members.erase(std::unique(members.begin(), members.end()), members.end());
      for (const std::uint32_t holder : members) {
        const auto tail = static_cast<std::uint32_t>(random_.Between(profile_.tail_min, profile_.tail_max));
        instances_[holder].push_back({f, tail, next_block_});
        next_block_ += tail;
        workload_.live_holder_blocks += families_[f].length + tail;
      }
    }
  }

  std::uint32_t LengthOf(const Instance& instance) const {
    return families_[instance.family].length + instance.tail_length;
  }

  std::uint64_t BlockAt(const Instance& instance, std::uint32_t position) const {
    const Family& family = families_[instance.family];
    return position < family.length ? family.base + position
                                    : instance.tail_base + (position - family.length);
  }

  // Each holder's number as often as `counts` says, in random order.
  std::vector<std::uint16_t> Interleave(std::span<const std::size_t> counts) {
    std::vector<std::uint16_t> turns;
    for (std::size_t holder = 0; holder < counts.size(); ++holder) {
      turns.insert(turns.end(), counts[holder], static_cast<std::uint16_t>(holder));
    }
    random_.Shuffle(turns);
    return turns;
  }

  void EmitBatch(const Batch& batch) {
    const Instance& instance = instances_[batch.holder][batch.instance];
    const std::uint32_t count = std::min(kBatch, LengthOf(instance) - batch.position);
    Op op;
    op.kind = OpKind::kStore;
    op.holder = static_cast<std::uint16_t>(batch.holder);
    op.count = count;
    op.has_parent = batch.position > 0;
    if (op.has_parent) op.parent = EngineKeyOf(BlockAt(instance, batch.position - 1));
    workload_.ops.push_back(op);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint64_t block = BlockAt(instance, batch.position + i);
      workload_.blocks.push_back({.engine = EngineKeyOf(block), .content = ContentKey(block)});
    }
  }

  void EmitStores() {
    std::vector<std::size_t> counts(holders_, 0);
    for (std::uint32_t holder = 0; holder < holders_; ++holder) {
      for (const Instance& instance : instances_[holder]) {
        counts[holder] += (LengthOf(instance) + kBatch - 1) / kBatch;
      }
    }
    const auto expected =
        static_cast<double>(workload_.live_holder_blocks) * (1 + 1.05 * profile_.republished);
    workload_.blocks.reserve(static_cast<std::size_t>(expected) + 1024);
    std::vector<Batch> next(holders_);
    for (std::uint32_t holder = 0; holder < holders_; ++holder) next[holder] = {holder, 0, 0};
    std::vector<Batch> republished;
    for (const std::uint16_t holder : Interleave(counts)) {
      Batch& batch = next[holder];
      EmitBatch(batch);
      if (random_.Chance(profile_.republished)) republished.push_back(batch);
      batch.position += kBatch;
      if (batch.position >= LengthOf(instances_[holder][batch.instance]))
        batch = {holder, batch.instance + 1, 0};
    }
    // A random part of a random interleaving is one itself.
    for (const Batch& batch : republished) EmitBatch(batch);
  }

  void EmitRemovals() {
    std::vector<std::vector<std::vector<index::EngineKey>>> holes(holders_);
    std::vector<std::size_t> counts(holders_, 0);
    std::vector<index::EngineKey> keys;
    for (std::uint32_t holder = 0; holder < holders_; ++holder) {
      for (const Instance& instance : instances_[holder]) {
        keys.clear();
        const std::uint32_t shared = families_[instance.family].length;
        if (random_.Chance(profile_.one_hole) && shared > 2) {
          keys.push_back(
              EngineKeyOf(BlockAt(instance, static_cast<std::uint32_t>(random_.Between(1, shared - 2)))));
        }
        for (std::uint32_t i = 1; profile_.interior_holes > 0 && i + 1 < LengthOf(instance); ++i) {
          if (random_.Chance(profile_.interior_holes)) keys.push_back(EngineKeyOf(BlockAt(instance, i)));
        }
        if (keys.empty()) continue;
        holes[holder].push_back(keys);
        ++counts[holder];
      }
    }
    std::vector<std::size_t> next(holders_, 0);
    for (const std::uint16_t holder : Interleave(counts)) {
      const auto& lost = holes[holder][next[holder]++];
      Op op;
      op.kind = OpKind::kRemove;
      op.holder = holder;
      op.count = static_cast<std::uint32_t>(lost.size());
      workload_.ops.push_back(op);
      workload_.removed_keys.insert(workload_.removed_keys.end(), lost.begin(), lost.end());
      workload_.live_holder_blocks -= lost.size();
    }
  }

  void AddQuery(const Family& family, std::uint64_t first, std::uint32_t depth) {
    const auto cell = static_cast<std::uint32_t>(workload_.cells.size() - 1);
    workload_.queries.push_back({first, std::min(depth, family.length), cell, UnknownKey(unknown_++)});
  }

  void MakeQueries() {
    std::vector<std::uint64_t> first;  // of each family's shared prefix in chain_keys
    for (const Family& family : families_) {
      first.push_back(workload_.chain_keys.size());
      for (std::uint32_t i = 0; i < family.length; ++i)
        workload_.chain_keys.push_back(ContentKey(family.base + i));
    }
    const auto add_cell = [&](std::string metric, auto&& wanted, std::uint32_t depth) {
      workload_.cells.push_back({std::move(metric), CellKind::kHit});
      const std::size_t before = workload_.queries.size();
      for (std::size_t f = 0; f < families_.size(); ++f) {
        if (wanted(families_[f])) AddQuery(families_[f], first[f], depth);
      }
      if (workload_.queries.size() == before) workload_.cells.pop_back();
    };
    if (profile_.name == "deep") {
      add_cell(
          "match", [](const Family&) { return true; }, profile_.shared_max);
    } else {
      for (const Share& share : profile_.shares) {
        for (const std::uint32_t depth : kDepths) {
          add_cell(
              absl::StrCat("match_d", depth, "_h", share.holders, "_cold"),
              [&](const Family& family) { return family.holders == share.holders && family.length >= depth; },
              depth);
        }
      }
      add_cell(
          "match_single", [](const Family& family) { return family.holders == 1; }, profile_.shared_max);
    }
    AddMisses(workload_, kMisses, kMissLength, unknown_);
  }

  const Profile& profile_;
  const std::uint32_t holders_;
  const double budget_;
  Random random_;
  std::uint64_t next_block_ = 0;
  std::uint64_t unknown_ = 0;
  std::vector<Family> families_;
  std::vector<std::vector<Instance>> instances_;  // by holder, in the order of its stores
  Workload workload_;
};

}  // namespace

std::span<const Profile> Profiles() {
  static const auto* const kProfiles = new std::vector<Profile>{
      {"pinned", 256, {{1, 0.50}, {8, 0.35}, {64, 0.15}}, 8, 512, 4, 64, 0.05, 0.20, 0},
      {"agentic", 256, {{1, 0.20}, {8, 0.40}, {64, 0.40}}, 64, 2048, 16, 256, 0.05, 0.20, 0},
      {"churn", 256, {{1, 0.70}, {8, 0.25}, {64, 0.05}}, 4, 64, 2, 16, 0.20, 1.00, 0},
      {"fleet", 1024, {{1, 0.40}, {8, 0.30}, {64, 0.30}}, 8, 512, 4, 64, 0.05, 0.20, 0},
      {"fragmented", 256, {{1, 0.50}, {8, 0.35}, {64, 0.15}}, 8, 512, 4, 64, 0.05, 0, 0.02},
      // 100,000 tokens in blocks of 16: 160 families.
      {"deep", 256, {{8, 1.0}}, 6250, 6250, 4, 64, 0.05, 0.20, 0, 8e6},
  };
  return *kProfiles;
}

void AddMisses(Workload& workload, std::size_t count, std::uint32_t length, std::uint64_t& unknown) {
  const auto cell = static_cast<std::uint32_t>(workload.cells.size());
  workload.cells.push_back({"match_miss", CellKind::kMiss});
  const std::uint64_t first = workload.chain_keys.size();
  for (std::size_t i = 0; i < count + length; ++i) workload.chain_keys.push_back(UnknownKey(unknown++));
  for (std::size_t i = 0; i < count; ++i) {
    workload.queries.push_back({first + i, length, cell, UnknownKey(unknown++)});
  }
}

absl::StatusOr<Workload> Generate(std::string_view profile, const GenerateOptions& options) {
  if (!(options.scale > 0 && options.scale <= 64)) {
    return absl::InvalidArgumentError(absl::StrCat("scale: ", options.scale, " is outside (0, 64]"));
  }
  for (const Profile& candidate : Profiles()) {
    if (candidate.name == profile) return Generator(candidate, options).Run();
  }
  return absl::InvalidArgumentError(absl::StrCat("profile: \"", ToAbsl(profile), "\" is not known"));
}

}  // namespace llmd::bench
