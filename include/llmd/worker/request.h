// What the block manager needs to know of a request.
//
// The host (a batch scheduler, a simulator) owns the request and its token and hash arrays; this is a view of
// it plus the counters that the manager's rules read. The manager keeps no pointer to it: the spans need to
// be valid during a call only, and the host points them at its arrays again after these have grown. What the
// manager itself remembers of a request (its block table) is keyed by `id`.
#ifndef LLMD_WORKER_REQUEST_H_
#define LLMD_WORKER_REQUEST_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "llmd/base/types.h"
#include "llmd/hash/digest.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::worker {

using RequestId = std::uint64_t;

enum class RequestStatus : std::uint8_t {
  kWaiting,             // not admitted yet, or back after its remote KV arrived
  kWaitingForRemoteKv,  // holds blocks that a connector is filling
  kRunning,
  kPreempted,  // lost its blocks to another request; waits to be computed again
  kFinished,
};

struct Request {
  RequestId id = 0;
  TokenSpan tokens;  // prompt, then what was generated

  // One digest per full block of `tokens`, from any hash chain (e.g. hash::VllmChain); block i's digest
  // stands for all tokens up to the end of block i. Must cover every block that is to be committed; may be
  // empty when caching is off.
  std::span<const hash::Digest> block_hashes;

  std::uint32_t num_computed_tokens = 0;  // tokens whose KV is in blocks held by the request
  std::uint32_t num_preemptions = 0;      // > 0: prefix-cache statistics go to the preempted_* counters
  RequestStatus status = RequestStatus::kWaiting;
  bool skip_reading_prefix_cache = false;  // e.g. prompt logprobs are wanted: compute everything

  // Written into this request's BlockStored events.
  std::optional<std::int64_t> lora_id;
  std::string_view lora_name;  // "" when none
  std::span<const hash::ExtraKeys>
      extra_keys;  // per block, as they were hashed; may be shorter than block_hashes

  std::uint32_t num_tokens() const { return static_cast<std::uint32_t>(tokens.size()); }
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_REQUEST_H_
