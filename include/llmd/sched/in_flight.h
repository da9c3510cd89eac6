// Requests and tokens that were sent to each endpoint and are not finished: the router's own count, which is
// known at once, where scraped metrics lag.
//
// One table belongs to an inflight-load-producer and is shared, through Resources::states, with detectors and
// with the next scheduler after a reload. Entries are kept by EndpointHandle: a handle of a removed endpoint
// reads as no load, and what is undone late for it changes nothing at its successor. Memory is 24 bytes for
// each endpoint slot ever in use. Any thread may call anything; reads take no lock.
#ifndef LLMD_SCHED_IN_FLIGHT_H_
#define LLMD_SCHED_IN_FLIGHT_H_

#include <cstdint>
#include <memory>
#include <string_view>

#include "llmd/sched/endpoint.h"

namespace llmd::sched {

struct InFlightLoad {
  static constexpr std::string_view kDataType = "InFlightLoad";

  std::int64_t requests = 0;
  std::int64_t tokens = 0;
};

// The cost of the request at hand on an endpoint, in tokens that are not cached there.
struct UncachedRequestTokens {
  static constexpr std::string_view kDataType = "UncachedRequestTokens";

  std::int64_t tokens = 0;
};

class InFlightTable {
 public:
  InFlightTable();
  ~InFlightTable();
  InFlightTable(const InFlightTable&) = delete;
  InFlightTable& operator=(const InFlightTable&) = delete;

  InFlightLoad Get(EndpointHandle endpoint) const;
  void Add(EndpointHandle endpoint, InFlightLoad load);
  // Undoes an Add(), or a part of one. Never below 0; nothing when the endpoint is gone.
  void Subtract(EndpointHandle endpoint, InFlightLoad load);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_IN_FLIGHT_H_
