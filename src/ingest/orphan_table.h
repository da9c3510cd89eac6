// Stored events whose parent nobody has announced yet.
#ifndef SRC_INGEST_ORPHAN_TABLE_H_
#define SRC_INGEST_ORPHAN_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "llmd/index/types.h"

namespace llmd::ingest {

struct Orphan {
  index::HolderId holder;
  std::optional<std::uint32_t> rank;  // of the holder
  index::NamespaceId ns;
  index::EngineKey parent = 0;
  std::vector<index::StoredBlock> blocks;
};

// Orphans of one publisher in order of arrival; over the limit the oldest go. What functions return is the
// number of orphans that were dropped.
class OrphanTable {
 public:
  explicit OrphanTable(std::size_t max_blocks) : max_blocks_(max_blocks) {}

  bool empty() const { return orphans_.empty(); }
  std::size_t blocks() const { return blocks_; }

  // An orphan that exceeds the limit alone is dropped itself.
  std::size_t Park(Orphan orphan);
  // Moves those that wait for `parent` to the end of `out`, in order of arrival.
  void Take(std::optional<std::uint32_t> rank, index::EngineKey parent, std::vector<Orphan>& out);
  // The holder no longer has these blocks: orphans of its end before the first of them.
  std::size_t Remove(index::HolderId holder, std::span<const index::EngineKey> keys);
  std::size_t DropRank(std::optional<std::uint32_t> rank);
  std::size_t Clear();

 private:
  using Ticket = std::uint64_t;
  using Orphans = std::map<Ticket, Orphan>;
  using WaitKey = std::pair<std::int64_t, index::EngineKey>;  // rank (-1: none), parent

  static WaitKey WaitKeyOf(std::optional<std::uint32_t> rank, index::EngineKey parent) {
    return {rank ? std::int64_t{*rank} : -1, parent};
  }
  using Place = std::tuple<std::uint16_t, index::EngineKey, Ticket>;  // slot of the holder, key, orphan

  // Cuts the orphan's blocks from `first` on out of the books, not out of the orphan.
  void Forget(Ticket ticket, const Orphan& orphan, std::size_t first);
  Orphans::iterator Drop(Orphans::iterator at);

  std::size_t max_blocks_;
  std::size_t blocks_ = 0;
  Ticket next_ticket_ = 0;
  Orphans orphans_;
  absl::flat_hash_map<WaitKey, std::vector<Ticket>> waiting_;
  std::map<Place, std::size_t> places_;  // where in the orphan the key comes first
};

}  // namespace llmd::ingest

#endif  // SRC_INGEST_ORPHAN_TABLE_H_
