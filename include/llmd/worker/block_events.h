// The KV events that a block pool has produced since they were last taken.
//
// A flat queue: an event is a small record over shared arrays of hashes, tokens and extra keys, so a step's
// events cost no allocation once the arrays have grown to their usual size. BlockPool::TakeEvents swaps the
// arrays with the caller's object; use one object again and again. EventWriter (event_writer.h) turns them
// into what engines publish. The views that operator[] returns are valid until the queue is changed. Not
// thread safe.
#ifndef LLMD_WORKER_BLOCK_EVENTS_H_
#define LLMD_WORKER_BLOCK_EVENTS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/events/event.h"
#include "llmd/hash/digest.h"
#include "llmd/worker/request.h"

namespace llmd::worker {

// One extra key of one block of a stored run, in the shape that events carry.
struct StoredExtraKey {
  std::uint32_t block = 0;  // position in the run
  events::ExtraKey::Kind kind = events::ExtraKey::Kind::kString;
  std::int64_t number = 0;
  std::size_t text_begin = 0;  // see BlockEvents::Text
  std::size_t text_size = 0;
};

struct BlockEvent {
  enum class Kind : std::uint8_t {
    kStored,   // a run of blocks became findable
    kRemoved,  // the last block with this hash was evicted
    kCleared,  // nothing is cached any more
  };

  Kind kind = Kind::kCleared;
  std::uint32_t group_id = 0;
  std::span<const hash::Digest> hashes;  // stored: >= 1, consecutive; removed: exactly 1
  // Stored events only.
  const hash::Digest* parent = nullptr;  // the block before the first; null at the start of the prompt
  TokenSpan tokens;                      // hashes.size() * block_size
  std::uint32_t block_size = 0;          // in tokens
  std::optional<std::int64_t> lora_id;
  std::string_view lora_name;
  std::span<const StoredExtraKey> extra_keys;  // by ascending block
};

class BlockEvents {
 public:
  std::size_t size() const { return records_.size(); }
  bool empty() const { return records_.empty(); }
  BlockEvent operator[](std::size_t i) const;
  std::string_view Text(const StoredExtraKey& key) const {
    return std::string_view(text_).substr(key.text_begin, key.text_size);
  }

  // Keeps the memory for reuse.
  void Clear();

  std::size_t bytes() const;           // used by the queued events
  std::size_t capacity_bytes() const;  // taken from the system

  // Blocks [first, first + count) of `request` became findable.
  void AddStored(const Request& request, std::size_t first, std::size_t count, std::uint32_t block_size,
                 std::uint32_t group_id);
  void AddRemoved(const hash::Digest& hash, std::uint32_t group_id);
  void AddCleared();

 private:
  struct Record {
    BlockEvent::Kind kind = BlockEvent::Kind::kCleared;
    bool has_parent = false;  // the parent is the hash before the event's first
    bool has_lora_id = false;
    std::uint32_t group_id = 0;
    std::uint32_t block_size = 0;
    std::uint32_t hash_count = 0;
    std::uint32_t lora_name_size = 0;
    std::uint32_t key_count = 0;
    std::size_t hash_begin = 0;
    std::size_t token_begin = 0;
    std::size_t text_begin = 0;
    std::size_t key_begin = 0;
    std::int64_t lora_id = 0;
  };

  void AddExtraKeys(const hash::ExtraKeys& keys, std::uint32_t block);

  std::vector<Record> records_;
  std::vector<hash::Digest> hashes_;
  std::vector<TokenId> tokens_;
  std::vector<StoredExtraKey> extra_keys_;
  std::string text_;
};

}  // namespace llmd::worker

#endif  // LLMD_WORKER_BLOCK_EVENTS_H_
