// The operation and query streams that bench_index measures.
//
// A workload is plain data: a flat array of writes, whose blocks and keys lie in stream order in two further
// arrays, and the queries, grouped in cells. Everything is built before a clock starts; a run applies `ops`
// from first to last and then matches queries. All writes are in one namespace, holders are numbered from 0
// and share one key space.
//
// Families of chains (Generate): a family is a shared prefix that H holders have, and each of its instances,
// one per holder, goes on with a private tail. See docs/bench-index-format.md for what a profile's constants
// mean.
#ifndef BENCH_INDEX_WORKLOAD_H_
#define BENCH_INDEX_WORKLOAD_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/index/types.h"

namespace llmd::bench {

enum class OpKind : std::uint8_t { kStore = 0, kRemove = 1 };

// One write. A store takes the next `count` entries of Workload::blocks, a removal the next `count` of
// removed_keys.
struct Op {
  std::uint64_t parent = 0;  // engine key; 0 unless `has_parent`
  std::uint32_t count = 0;   // >= 1
  std::uint16_t holder = 0;
  OpKind kind = OpKind::kStore;
  std::uint8_t has_parent = 0;  // 0 or 1
};

// Cells of hits are measured one after another; queries of the cell of misses are mixed into them.
enum class CellKind : std::uint32_t { kHit = 0, kMiss = 1 };

struct Cell {
  std::string metric;  // reported as <metric>_p50_ns and <metric>_p99_ns; 1..39 of [a-z0-9_]
  CellKind kind = CellKind::kHit;
};

// The chain chain_keys[first, first + length) followed by the key `last`, which no holder has.
struct Query {
  std::uint64_t first = 0;
  std::uint32_t length = 0;  // 1 .. kMaxQueryLength
  std::uint32_t cell = 0;
  std::uint64_t last = 0;
};

inline constexpr std::uint32_t kMaxQueryLength = 1u << 20;
inline constexpr std::uint32_t kMaxHolders = 65535;

struct Workload {
  std::string name;  // the case name of the report
  std::uint32_t holders = 0;
  std::uint64_t live_holder_blocks = 0;  // pairs (holder, block) after the last op
  std::vector<Op> ops;
  std::vector<index::StoredBlock> blocks;
  std::vector<index::EngineKey> removed_keys;
  std::vector<BlockKey> chain_keys;
  std::vector<Cell> cells;
  std::vector<Query> queries;

  // Holder-blocks written by the whole stream: stored, stored again, removed.
  std::uint64_t written_blocks() const { return blocks.size() + removed_keys.size(); }
};

struct Share {
  std::uint32_t holders;  // H: members of each family
  double fraction;        // of the profile's shared holder-blocks
};

// Constants of a profile (spec: prefix-index.md 3.1). Lengths in blocks.
struct Profile {
  std::string_view name;
  std::uint32_t holders;
  std::vector<Share> shares;
  std::uint32_t shared_min, shared_max;  // log-uniform
  std::uint32_t tail_min, tail_max;      // uniform
  double republished;                    // fraction of store batches
  double one_hole;        // fraction of instances that lose one interior block of the shared prefix
  double interior_holes;  // fraction of all interior blocks that are lost
  double shared_holder_blocks = 10e6;
  std::uint32_t first_widest_length =
      96;  // of the first family with 64 holders, so that the gate cell exists
};

std::span<const Profile> Profiles();

struct GenerateOptions {
  double scale = 1;        // multiplies the holder-blocks; (0, 64]
  bool eightfold = false;  // 8 x holder-blocks, 8 x holders
  std::uint64_t seed = 1;
};

// InvalidArgument for an unknown profile or a scale out of range. Same arguments, same workload.
absl::StatusOr<Workload> Generate(std::string_view profile, const GenerateOptions& options);

// A bijection on 64 bits (the finalizer of splitmix64): distinct numbers give distinct keys.
inline std::uint64_t MixBits(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Keys of block number n (< 2^60): as content, as the engine's name for it, and keys that no block has.
inline BlockKey ContentKey(std::uint64_t n) { return MixBits(n << 2 | 1); }
inline index::EngineKey EngineKeyOf(std::uint64_t n) { return MixBits(n << 2 | 2); }
inline BlockKey UnknownKey(std::uint64_t n) { return MixBits(n << 2 | 3); }

// Appends a cell `match_miss` of `count` queries of `length` unknown keys. `unknown` numbers the unknown keys
// in use.
void AddMisses(Workload& workload, std::size_t count, std::uint32_t length, std::uint64_t& unknown);

}  // namespace llmd::bench

#endif  // BENCH_INDEX_WORKLOAD_H_
