// What the ingestor knows of one publisher: its holders by rank and tier, its KV-cache groups, its orphans.
#ifndef SRC_INGEST_PUBLISHER_H_
#define SRC_INGEST_PUBLISHER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/events/event.h"
#include "llmd/index/types.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "src/ingest/orphan_table.h"

namespace llmd::ingest {

using Rank = std::optional<std::uint32_t>;

// One data-parallel rank of the endpoint with its holders, one per tier.
struct Owner {
  Rank rank;
  std::vector<std::string> tiers;
  std::vector<index::HolderId> holders;  // holders[i] is in tiers[i]

  // Null when it has no such tier.
  const index::HolderId* Find(std::string_view tier) const;
};

struct Publisher {
  Publisher(const PublisherOptions& publisher_options, std::size_t max_orphan_blocks);

  Owner* FindOwner(Rank rank);
  // Adds the holder to the owner of the rank, which is created when it is new.
  Owner& AddHolder(Rank rank, std::string_view tier, index::HolderId holder);
  std::size_t num_holders() const;

  // Whether plain prefix matching can use what the event's group holds. Learns the kind when the event names
  // it.
  bool IsIndexable(Rank rank, const events::Event& event, std::size_t max_groups);
  index::NamespaceId NamespaceOf(const events::Event& event, std::uint32_t block_size);

  PublisherOptions options;
  std::uint32_t key_space;
  std::vector<Owner> owners;
  OrphanTable orphans;

  struct Group {
    Rank rank;
    std::uint32_t idx = 0;
    bool indexable = false;
  };
  std::vector<Group> groups;

 private:
  // The last answer of NamespaceOf(): events of one kind come together.
  struct LastNamespace {
    std::string lora_name;
    std::optional<std::int64_t> lora_id;
    std::uint32_t block_size = 0;  // 0: none yet
    index::NamespaceId ns;
  };
  LastNamespace last_;
};

// Engine keys of one model are compared among its publishers. The same in each process, so that an index
// restored from a snapshot goes on to be used.
std::uint32_t KeySpaceOf(std::string_view model);

}  // namespace llmd::ingest

#endif  // SRC_INGEST_PUBLISHER_H_
