// What the prefix producers share: from the rows of a match to PrefixMatch for each endpoint. Private to the
// component.
//
// Leading blocks only: a holder that lacks block i has nothing behind it. An endpoint may have several
// holders, one a tier; block i then counts with the best weight among the tiers that hold it. (spec:
// scheduling.md 2.2)
#ifndef SRC_SCHED_PREFIX_PRODUCER_H_
#define SRC_SCHED_PREFIX_PRODUCER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/prefix.h"
#include "llmd/sched/registry.h"

namespace llmd::sched {

// An unknown tier's weight.
inline constexpr double kOtherTierWeight = 1.0;

// The endpoint at a position has the first `depth` blocks, in a tier of this weight.
struct EndpointDepth {
  Position position = 0;
  std::uint32_t depth = 0;
  double weight = kOtherTierWeight;
};

// Adds up rows by endpoint. One decision's memory, kept warm.
class MatchSum {
 public:
  // `one_by_one`: adds a weight once for each block, as llm-d does, instead of multiplying.
  void Begin(std::size_t pool_size, bool one_by_one);
  // Adds the rows of one prompt.
  void Add(std::span<const EndpointDepth> rows);
  // Of one prompt: the endpoint's depth in tier "cpu".
  void AddCpu(Position position, std::uint32_t depth);
  void EndPrompt();
  void Publish(std::span<PrefixMatch> matches, bool tiers_known) const;

  std::uint32_t total_blocks = 0;
  std::uint32_t block_size = 0;

 private:
  struct Sum {
    double weighted = 0;
    double of_prompt = 0;
    std::uint32_t cached = 0;
    std::uint32_t depth = 0;  // of the prompt at hand
    std::uint32_t cpu = 0;
    std::uint32_t cpu_depth = 0;
  };
  std::vector<Sum> sums_;
  std::vector<double> weights_;  // distinct ones of a call of Add(), descending
  bool one_by_one_ = false;
};

class PrefixProducer : public Plugin, public DataProducer {
 public:
  PrefixProducer(std::string type, std::string name, DataSlot<PrefixMatch> slot, PrefixSource source,
                 PrefixSourceIndex index);

  std::unique_ptr<ThreadState> NewThreadState() const override;
  void Produce(Context& context, ThreadState* state) const override;

 protected:
  // One thread's memory of what a derived class adds.
  using Extra = ThreadState;

  // The leading blocks that take part.
  virtual BlockKeySpan Cut(const KeyChain& chain) const { return chain.keys; }
  virtual std::unique_ptr<Extra> NewExtra() const { return nullptr; }
  // Adds rows of another source for the same chain.
  virtual void AddRows(Context&, const index::NamespaceId&, BlockKeySpan, Extra*,
                       std::vector<EndpointDepth>&) const {}

  const KeyChain* ChainOf(const Prompt& prompt) const {
    return source_ < prompt.chains.size() ? &prompt.chains[source_] : nullptr;
  }
  PrefixSource source() const { return source_; }
  const PrefixSourceIndex& index() const { return index_; }
  DataSlot<PrefixMatch> slot() const { return slot_; }

  // Set by derived classes before use.
  std::vector<PreciseOptions::Tier> tiers_;
  bool tells_tiers_ = false;
  bool one_by_one_ = false;

 private:
  struct State;
  void WeighTiers(const HolderTable& table, State& state) const;

  DataSlot<PrefixMatch> slot_;
  PrefixSource source_;
  PrefixSourceIndex index_;
};

// FailedPrecondition when the host gives none.
absl::StatusOr<PrefixSourceIndex> FindPrefixSource(const PluginBuilder& builder, PrefixSource source);

// Reads all parameters and finishes. (precise_options.cc)
absl::StatusOr<PreciseOptions> ReadPreciseOptions(ParameterReader read);

}  // namespace llmd::sched

#endif  // SRC_SCHED_PREFIX_PRODUCER_H_
