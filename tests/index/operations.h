// Operations on a prefix index as values: made from a seed or from a fuzzer's bytes, applied to the index and
// to the oracle at once, compared after each, and shrunk when they disagree.
#ifndef LLMD_TESTS_INDEX_OPERATIONS_H_
#define LLMD_TESTS_INDEX_OPERATIONS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"
#include "tests/index/oracle.h"

namespace llmd::index {

struct Operation {
  enum class Kind { kAddHolder, kStore, kStoreKnown, kRemove, kClear, kRetire, kCompact, kMatch };

  Kind kind = Kind::kMatch;
  std::size_t holder = 0;      // which kAddHolder it speaks of; never added means a handle that is not valid
  HolderOptions options = {};  // kAddHolder
  NamespaceId ns = {};         // kStore, kMatch
  std::optional<EngineKey> parent = {};  // kStore
  std::vector<StoredBlock> blocks = {};  // kStore
  std::vector<EngineKey> keys = {};      // kStoreKnown, kRemove
  std::vector<BlockKey> chain = {};      // kMatch
};

using Operations = std::vector<Operation>;

std::string ToString(const Operation& operation);

// The rows of a match by slot; nullopt when a slot comes twice or a depth is 0.
std::optional<OracleMatch> BySlot(const MatchResult& result);

// The reference's side of a run and the handles that its operations speak of. A copy goes its own way.
struct Reference {
  OraclePrefixIndex oracle;
  std::map<std::size_t, HolderId> handles;                 // by Operation::holder
  std::set<std::pair<std::uint32_t, std::uint32_t>> used;  // every (slot, generation) ever given

  HolderId Handle(std::size_t holder) const {
    auto it = handles.find(holder);
    return it == handles.end() ? HolderId{} : it->second;
  }
};

// Applies operations to an index and to its reference. The index must be large enough never to evict.
class Comparison {
 public:
  // `fresh` when the index has served no call before: then its counters must equal the reference's as well.
  Comparison(PrefixIndex& index, std::size_t max_holders, Reference reference = {}, bool fresh = true);

  // What differs, or nullopt. After a difference the two are out of step.
  std::optional<std::string> Apply(const Operation& operation);
  std::optional<std::string> CompareStats();

  const Reference& reference() const { return reference_; }

 private:
  std::optional<std::string> AddHolder(const Operation& operation);
  std::optional<std::string> Match(const Operation& operation);

  PrefixIndex& index_;
  PrefixIndex::Reader reader_;
  std::size_t max_holders_;
  Reference reference_;
  bool fresh_;
  MatchResult result_;
};

// Never evicts in these tests.
inline constexpr PrefixIndexOptions kAmple = {.max_bytes = std::size_t{1} << 30, .max_holders = 1024};

struct Difference {
  std::size_t operation = 0;
  std::string what;
};

// Runs the operations on an index made for them; the first difference, or nullopt.
std::optional<Difference> RunOnBoth(std::span<const Operation> operations,
                                    const PrefixIndexOptions& options = kAmple);

// Leaves operations and their elements out as long as what is left still fails.
using Fails = std::function<bool(std::span<const Operation>)>;
Operations Shrink(Operations operations, const Fails& fails);

// A failure's report: what differs, the last operations, and a shorter list of operations that differ as
// well.
std::string Explain(const Operations& operations, const Difference& difference,
                    const PrefixIndexOptions& options = kAmple);

}  // namespace llmd::index

#endif  // LLMD_TESTS_INDEX_OPERATIONS_H_
