// The endpoints among which a decision is taken, as one value.
//
// A pool is a plain value without locks: the host changes it in place, and a host with several threads
// publishes copies (a copy shares identities and is cheap). During a decision the pool given to it does not
// change, so a decision sees one moment. Endpoints keep the order in which they were added; a removal closes
// the gap.
//
// A pool also says which holders of a prefix index belong to which endpoint, so that a match, whose rows name
// holder slots, is turned into endpoints without strings. A *prefix source* numbers the indexes in use:
// source s means the s-th key chain of every prompt (request.h) and the s-th holder table here.
#ifndef LLMD_SCHED_ENDPOINT_POOL_H_
#define LLMD_SCHED_ENDPOINT_POOL_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "llmd/index/types.h"
#include "llmd/sched/endpoint.h"

namespace llmd::sched {

using PrefixSource = std::uint32_t;
inline constexpr PrefixSource kExactSource = 0;        // fed by the engines' KV events
inline constexpr PrefixSource kApproximateSource = 1;  // fed by our own decisions
inline constexpr PrefixSource kMaxPrefixSources = 8;

// The endpoint and tier of one holder of an index.
struct HolderBinding {
  EndpointHandle endpoint;       // generation 0: the slot is not bound
  std::uint32_t tier = 0;        // index into HolderTable::tiers
  std::uint32_t generation = 0;  // the holder's
};

struct HolderTable {
  std::vector<HolderBinding> by_slot;     // holder slot -> endpoint
  std::vector<index::HolderId> first_of;  // endpoint slot -> the holder bound first; generation 0: none
  std::vector<std::string> tiers;         // names of the tiers seen, in order of appearance
};

class EndpointPool {
 public:
  // InvalidArgument for an empty name or address or port 0; AlreadyExists for a known namespace/name.
  absl::StatusOr<EndpointHandle> Add(EndpointMetadata metadata);
  // Its holders become unbound. False for an unknown handle.
  bool Remove(EndpointHandle endpoint);

  std::size_t size() const { return endpoints_.size(); }
  std::span<const Endpoint> endpoints() const { return endpoints_; }
  const Endpoint& operator[](Position position) const { return endpoints_[position]; }

  std::optional<Position> Find(EndpointHandle endpoint) const {
    if (endpoint.slot >= slots_.size() || slots_[endpoint.slot].generation != endpoint.generation ||
        slots_[endpoint.slot].position == kNoPosition) {
      return std::nullopt;
    }
    return slots_[endpoint.slot].position;
  }
  // By "namespace/name".
  std::optional<Position> FindId(std::string_view id) const;

  // For the host's writer; null for an unknown handle. Invalidated by Add() and Remove().
  Metrics* mutable_metrics(EndpointHandle endpoint);
  // Adds or replaces a named number. False for an unknown handle.
  bool SetAttribute(EndpointHandle endpoint, std::string_view name, Sample<double> sample);

  // The holder of source's index keeps blocks of `endpoint` in `tier`. An earlier binding of the slot is
  // replaced. NotFound for an unknown endpoint, InvalidArgument for a source out of range.
  absl::Status BindHolder(PrefixSource source, index::HolderId holder, EndpointHandle endpoint,
                          std::string_view tier = "gpu");
  // To be called when the index retires the holder. Nothing happens when its slot is bound to another holder
  // by now.
  void UnbindHolder(PrefixSource source, index::HolderId holder);
  // Empty table for a source without bindings.
  const HolderTable& holders(PrefixSource source) const;

 private:
  static constexpr Position kNoPosition = ~Position{0};
  struct Slot {
    std::uint32_t generation = 0;
    Position position = kNoPosition;
  };

  std::vector<Endpoint> endpoints_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  absl::flat_hash_map<absl::string_view, std::uint32_t> slot_of_id_;  // keys are views of identities
  std::vector<HolderTable> holders_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_ENDPOINT_POOL_H_
