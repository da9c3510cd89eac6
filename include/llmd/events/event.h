// KV events: what an engine says about the blocks in its prefix cache.
//
// An engine publishes one *batch* per scheduler step. A batch holds events: blocks were stored, blocks were
// removed, the whole cache was cleared. `Event` is the one shape into which every wire form (positional
// arrays of each vLLM generation, tagged maps, SGLang's and Mooncake's variants) is decoded, and from which
// our own batches are encoded.
//
// Ownership: an Event is a value full of views. Decoded events point into the received payload (strings, raw
// bytes) and into the EventBatch's arenas (hashes, tokens, extra keys, the lower-cased tier): they are valid
// until the payload goes away or the batch is decoded into again or destroyed, whichever comes first. To
// encode, point the views at storage of your own. Threads: plain data; one EventBatch per thread.
#ifndef LLMD_EVENTS_EVENT_H_
#define LLMD_EVENTS_EVENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/base/types.h"
#include "llmd/events/arena.h"

namespace llmd::events {

enum class EventKind : std::uint8_t { kBlockStored, kBlockRemoved, kAllBlocksCleared };

// "BlockStored", "BlockRemoved", "AllBlocksCleared": the tag on the wire.
std::string_view EventKindName(EventKind kind);

// One element of a block's extra-key tuple: whatever besides its tokens went into the block's hash.
struct ExtraKey {
  enum class Kind : std::uint8_t {
    kString,    // `text`: LoRA name, cache salt, or multimodal identifier (older engines)
    kStringAt,  // `text` and `number`: multimodal identifier and its offset from the block's start, maybe
                // negative
    kInt,       // `number`: LoRA id (older engines)
    kBytes,     // `text` holds raw bytes: digest of prompt embeddings
    kOther,  // `text` holds the packed MessagePack of a value of another shape: compare it, do not interpret
             // it
  };
  Kind kind = Kind::kString;
  std::string_view text;
  std::int64_t number = 0;

  friend bool operator==(const ExtraKey&, const ExtraKey&) = default;
};

// Absent and nil are the same: an empty view or no value. Fields that a kind does not have are empty.
struct Event {
  EventKind kind = EventKind::kAllBlocksCleared;

  // Engine block hashes, in chain order. Integers are taken bit for bit (a negative one becomes its two's
  // complement); a byte-string hash is reduced to its last 8 bytes, big-endian.
  std::span<const std::uint64_t> hashes;
  // The byte strings themselves: empty when every hash is an integer, else one per hash (empty where an
  // integer is).
  std::span<const std::string_view> hash_bytes;

  // Stored only. The hash of the block before hashes[0]; no value at the root of a chain.
  std::optional<std::uint64_t> parent;
  std::string_view parent_bytes;  // as hash_bytes
  // Token ids of all blocks in one run. Empty: a tier update, the blocks are named by hash alone.
  TokenSpan tokens;
  // Publishers with bigram keys (Eagle) send pairs: tokens[i] is the first, bigram_tokens[i] the second. Else
  // empty.
  TokenSpan bigram_tokens;
  // Tokens per block as the publisher says; 0 when it does not. Offload connectors send something else here:
  // where there are tokens, tokens.size() / hashes.size() is the figure to trust.
  std::uint32_t block_size = 0;
  std::optional<std::int64_t> lora_id;
  std::string_view lora_name;
  // extra_keys[i] are those of block i. Empty when the event has none; may be shorter than `hashes`.
  std::span<const std::span<const ExtraKey>> extra_keys;
  // lookahead_tokens[i]: tokens beyond block i that went into its hash (vLLM 0.33 with lookahead hashing).
  // Else empty.
  std::span<const TokenSpan> lookahead_tokens;
  std::string_view cache_salt;  // SGLang, Mooncake
  std::string_view session_id;

  // Stored and removed.
  std::string_view medium;        // as on the wire, e.g. "GPU"
  std::string_view tier = "gpu";  // `medium` in lower case (ASCII), "gpu" when nil or empty. Not encoded.
  std::optional<std::uint32_t> group_idx;       // KV-cache group of a hybrid model
  std::string_view spec_kind;                   // kv_cache_spec_kind, e.g. "full_attention"
  std::optional<std::uint32_t> sliding_window;  // tokens
  std::string_view locality;                    // "LOCAL" or "REMOTE"
  std::string_view ownership;                   // id of a secondary tier

  // Store publishers (Mooncake) only; not encoded.
  std::string_view model_name;
  std::string_view tenant_id;
  std::string_view backend_id;
  std::string_view object_key;
  std::optional<std::uint64_t> first_block;  // position of hashes[0] in its chain, counted in blocks

  // Extra keys of block `i`, empty when there are none.
  std::span<const ExtraKey> ExtraKeysOf(std::size_t i) const {
    return i < extra_keys.size() ? extra_keys[i] : std::span<const ExtraKey>();
  }
};

// The result of one Decode() call, reused from call to call: it keeps its memory, so decoding does not
// allocate once the largest batch has been seen. Movable, not copyable (its events point into its arenas).
class EventBatch {
 public:
  EventBatch() = default;
  EventBatch(EventBatch&&) = default;
  EventBatch& operator=(EventBatch&&) = default;

  // In the order of the wire, bad ones left out.
  std::span<const Event> events() const { return events_; }
  // As sent: seconds since the epoch as a float from vLLM, milliseconds as an integer from others.
  double timestamp() const { return timestamp_; }
  std::optional<std::uint32_t> data_parallel_rank() const { return rank_; }

  // Events of the batch that could not be used: malformed, of unknown kind, over a limit, or cut off.
  std::uint64_t skipped_events() const { return skipped_; }
  // The payload ended early or stopped being MessagePack: events after that point are lost and counted in
  // skipped_events(). The rank comes last on the wire, so it may be missing too.
  bool truncated() const { return truncated_; }
  // Why the first skipped event was skipped, with an excerpt of its bytes in hex; OK when none was.
  const absl::Status& first_error() const { return first_error_; }

  // Memory held for reuse.
  std::size_t capacity_bytes() const;

 private:
  friend class EventDecoder;
  void Clear();

  std::vector<Event> events_;
  double timestamp_ = 0;
  std::optional<std::uint32_t> rank_;
  std::uint64_t skipped_ = 0;
  bool truncated_ = false;
  absl::Status first_error_;
  Arena arena_;
};

}  // namespace llmd::events

#endif  // LLMD_EVENTS_EVENT_H_
