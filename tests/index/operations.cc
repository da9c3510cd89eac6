#include "tests/index/operations.h"

#include <algorithm>
#include <memory>
#include <sstream>

namespace llmd::index {
namespace {

using Kind = Operation::Kind;

template <typename Range, typename Print>
void PrintSome(std::ostream& out, const Range& range, Print print) {
  std::size_t printed = 0;
  out << "[";
  for (const auto& item : range) {
    if (printed == 24) {
      out << " ... " << range.size() << " in all";
      break;
    }
    if (printed++ > 0) out << " ";
    print(item);
  }
  out << "]";
}

std::string ToString(const OracleMatch& match) {
  std::ostringstream out;
  PrintSome(out, match, [&](const auto& row) { out << row.first << ":" << row.second; });
  return out.str();
}

const char* Name(StoreOutcome outcome) {
  switch (outcome) {
    case StoreOutcome::kApplied:
      return "applied";
    case StoreOutcome::kUnknownParent:
      return "unknown parent";
    case StoreOutcome::kStaleHolder:
      return "stale holder";
    case StoreOutcome::kOtherNamespace:
      return "other namespace";
  }
  return "?";
}

std::string ToString(const StoreResult& result) {
  std::ostringstream out;
  out << Name(result.outcome) << ", " << result.added << " added, " << result.duplicates << " duplicates";
  return out.str();
}

template <typename T>
std::optional<std::string> Compare(const char* what, const T& index, const T& oracle) {
  if (index == oracle) return std::nullopt;
  std::ostringstream out;
  out << what << ": index " << index << ", oracle " << oracle;
  return out.str();
}

// The operations without the `length` elements from `begin`.
template <typename T>
std::vector<T> Without(const std::vector<T>& all, std::size_t begin, std::size_t length) {
  std::vector<T> rest(all.begin(), all.begin() + begin);
  rest.insert(rest.end(), all.begin() + std::min(begin + length, all.size()), all.end());
  return rest;
}

// Removes elements of one list while `fails` says that what is left still fails.
template <typename T, typename Fails>
void ShrinkList(std::vector<T>& list, int& attempts, Fails fails) {
  for (std::size_t length = std::max<std::size_t>(list.size() / 2, 1); length > 0; length /= 2) {
    for (std::size_t begin = 0; begin < list.size() && attempts > 0;) {
      --attempts;
      std::vector<T> shorter = Without(list, begin, length);
      if (fails(shorter)) {
        list = std::move(shorter);
      } else {
        begin += length;
      }
    }
  }
}

}  // namespace

std::string ToString(const Operation& operation) {
  std::ostringstream out;
  auto store = [&] {
    out << "ns " << operation.ns.hi << "/" << operation.ns.lo;
    if (operation.parent) out << " parent " << *operation.parent;
    out << " engine:content ";
    PrintSome(out, operation.blocks, [&](StoredBlock block) { out << block.engine << ":" << block.content; });
  };
  auto key = [&](std::uint64_t value) { out << value; };
  switch (operation.kind) {
    case Kind::kAddHolder:
      out << "AddHolder #" << operation.holder << " " << operation.options.endpoint << " key space "
          << operation.options.key_space
          << (operation.options.removal == RemovalPolicy::kRefcount ? " refcount" : " set");
      break;
    case Kind::kStore:
      out << "Store #" << operation.holder << " ";
      store();
      break;
    case Kind::kStoreKnown:
      out << "StoreKnown #" << operation.holder << " ";
      PrintSome(out, operation.keys, key);
      break;
    case Kind::kRemove:
      out << "Remove #" << operation.holder << " ";
      PrintSome(out, operation.keys, key);
      break;
    case Kind::kClear:
      out << "Clear #" << operation.holder;
      break;
    case Kind::kRetire:
      out << "Retire #" << operation.holder;
      break;
    case Kind::kCompact:
      out << "Compact";
      break;
    case Kind::kMatch:
      out << "Match ns " << operation.ns.hi << "/" << operation.ns.lo << " ";
      PrintSome(out, operation.chain, key);
      break;
  }
  return out.str();
}

std::optional<OracleMatch> BySlot(const MatchResult& result) {
  OracleMatch rows;
  for (const HolderDepth& row : result) {
    if (row.depth == 0 || !rows.emplace(row.slot, row.depth).second) return std::nullopt;
  }
  return rows;
}

Comparison::Comparison(PrefixIndex& index, std::size_t max_holders, Reference reference, bool fresh)
    : index_(index),
      reader_(index),
      max_holders_(max_holders),
      reference_(std::move(reference)),
      fresh_(fresh) {}

std::optional<std::string> Comparison::Apply(const Operation& operation) {
  const HolderId id = reference_.Handle(operation.holder);
  OraclePrefixIndex& oracle = reference_.oracle;
  switch (operation.kind) {
    case Kind::kAddHolder:
      return AddHolder(operation);
    case Kind::kStore: {
      const StoreResult index = index_.Store(id, operation.ns, operation.parent, operation.blocks);
      const StoreResult expected = oracle.Store(id, operation.ns, operation.parent, operation.blocks);
      return Compare("Store", ToString(index), ToString(expected));
    }
    case Kind::kStoreKnown:
      return Compare("StoreKnown", index_.StoreKnown(id, operation.keys),
                     oracle.StoreKnown(id, operation.keys));
    case Kind::kRemove:
      return Compare("Remove", index_.Remove(id, operation.keys), oracle.Remove(id, operation.keys));
    case Kind::kClear:
      return Compare("Clear", index_.Clear(id), oracle.Clear(id));
    case Kind::kRetire: {
      if (auto differs = Compare("Retire", index_.Retire(id), oracle.Retire(id))) return differs;
      return Compare("GetHolder after Retire", index_.GetHolder(id) != nullptr, false);
    }
    case Kind::kCompact:
      index_.Compact();
      return Compare("nodes after Compact", index_.stats().nodes, oracle.stats().nodes);
    case Kind::kMatch:
      return Match(operation);
  }
  return std::nullopt;
}

std::optional<std::string> Comparison::AddHolder(const Operation& operation) {
  OraclePrefixIndex& oracle = reference_.oracle;
  const HolderOptions& options = operation.options;
  const bool taken = oracle.LiveName(options);
  const bool full = oracle.stats().holders == max_holders_;
  const absl::StatusOr<HolderId> id = index_.AddHolder(options);
  if (taken || full) {
    const bool good =
        (taken && absl::IsAlreadyExists(id.status())) || (full && absl::IsResourceExhausted(id.status()));
    return Compare("AddHolder refuses a taken name or a full table", good, true);
  }
  if (!id.ok()) return "AddHolder: " + id.status().ToString();
  const bool fresh = id->generation != 0 && reference_.used.emplace(id->slot, id->generation).second;
  if (!fresh) return "AddHolder gave a handle that was given before";
  for (const auto& [ordinal, handle] : reference_.handles) {
    if (handle.slot == id->slot && oracle.Live(handle)) return "AddHolder gave a slot that is in use";
  }
  oracle.AddHolder(*id, options);
  reference_.handles[operation.holder] = *id;
  const auto found = index_.FindHolder(options.endpoint, options.dp_rank, options.tier);
  if (found != *id) return "FindHolder does not find what AddHolder added";
  const HolderOptions* kept = index_.GetHolder(*id);
  const bool same = kept != nullptr && kept->endpoint == options.endpoint &&
                    kept->dp_rank == options.dp_rank && kept->tier == options.tier &&
                    kept->removal == options.removal && kept->key_space == options.key_space;
  return Compare("GetHolder gives the options back", same, true);
}

std::optional<std::string> Comparison::Match(const Operation& operation) {
  reader_.Match(operation.ns, operation.chain, result_);
  const std::optional<OracleMatch> rows = BySlot(result_);
  if (!rows) return "Match: a slot comes twice or a depth is 0";
  return Compare("Match", ToString(*rows), ToString(reference_.oracle.Match(operation.ns, operation.chain)));
}

std::optional<std::string> Comparison::CompareStats() {
  const IndexStats index = index_.stats();
  const IndexStats oracle = reference_.oracle.stats();
  if (auto differs = Compare("holders", index.holders, oracle.holders)) return differs;
  if (auto differs = Compare("holder_blocks", index.holder_blocks, oracle.holder_blocks)) return differs;
  if (auto differs = Compare("foreign_keys", index.foreign_keys, oracle.foreign_keys)) return differs;
  if (index.nodes < oracle.nodes) return Compare("nodes (at least)", index.nodes, oracle.nodes);
  if (auto differs = Compare<std::uint64_t>("evicted_runs", index.evicted_runs, 0)) return differs;
  if (!fresh_) return std::nullopt;
  if (auto differs = Compare("stored_blocks", index.stored_blocks, oracle.stored_blocks)) return differs;
  if (auto differs = Compare("duplicate_blocks", index.duplicate_blocks, oracle.duplicate_blocks))
    return differs;
  if (auto differs = Compare("unknown_removes", index.unknown_removes, oracle.unknown_removes))
    return differs;
  if (auto differs = Compare("unknown_parents", index.unknown_parents, oracle.unknown_parents))
    return differs;
  if (auto differs = Compare("stale_holder_calls", index.stale_holder_calls, oracle.stale_holder_calls))
    return differs;
  if (auto differs =
          Compare("namespace_mismatches", index.namespace_mismatches, oracle.namespace_mismatches)) {
    return differs;
  }
  return Compare("rebound_keys", index.rebound_keys, oracle.rebound_keys);
}

std::optional<Difference> RunOnBoth(std::span<const Operation> operations,
                                    const PrefixIndexOptions& options) {
  const auto index = PrefixIndex::Create(options);
  if (!index.ok()) return Difference{0, index.status().ToString()};
  Comparison comparison(**index, options.max_holders);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if (auto what = comparison.Apply(operations[i])) return Difference{i, *what};
    const bool last = i + 1 == operations.size();
    if (operations[i].kind == Kind::kMatch || last) {
      if (auto what = comparison.CompareStats()) return Difference{i, *what};
    }
  }
  return std::nullopt;
}

Operations Shrink(Operations operations, const Fails& fails) {
  int attempts = 4000;
  ShrinkList(operations, attempts, fails);
  for (Operation& operation : operations) {
    auto shrink = [&](auto& list) {
      ShrinkList(list, attempts, [&](const auto& shorter) {
        auto kept = list;
        list = shorter;
        const bool still = fails(operations);
        list = std::move(kept);
        return still;
      });
    };
    shrink(operation.blocks);
    shrink(operation.keys);
    shrink(operation.chain);
  }
  return operations;
}

std::string Explain(const Operations& operations, const Difference& difference,
                    const PrefixIndexOptions& options) {
  std::ostringstream out;
  out << "operation " << difference.operation << ": " << difference.what << "\nlast operations:\n";
  Operations until(operations.begin(), operations.begin() + difference.operation + 1);
  for (std::size_t i = until.size() - std::min<std::size_t>(until.size(), 12); i < until.size(); ++i) {
    out << "  " << i << ": " << ToString(until[i]) << "\n";
  }
  const Operations shrunk = Shrink(std::move(until), [&](std::span<const Operation> some) {
    return RunOnBoth(some, options).has_value();
  });
  if (const auto again = RunOnBoth(shrunk, options)) {
    out << "shrunk to " << shrunk.size() << " operations that differ by: " << again->what << "\n";
    for (const Operation& operation : shrunk) out << "  " << ToString(operation) << "\n";
  }
  return out.str();
}

}  // namespace llmd::index
