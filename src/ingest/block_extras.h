// What besides its tokens makes a block of a prompt different from others: multimodal items, cache salt,
// digests of prompt embeddings. The wire does not tell one from the other, so each is a text that is hashed
// into the block.
#ifndef SRC_INGEST_BLOCK_EXTRAS_H_
#define SRC_INGEST_BLOCK_EXTRAS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "llmd/events/event.h"

namespace llmd::ingest {

// The extras of consecutive blocks, in the form that hash::DynamoLocalHashes() takes. Keeps its memory.
class BlockExtras {
 public:
  void Clear();
  void Add(std::size_t block, std::uint64_t value);
  void Add(std::size_t block, std::string_view text);
  // Those of a stored event, whose blocks are hashes[0], hashes[1], ... The adapter is left out: it belongs
  // to the namespace.
  void AddEvent(const events::Event& event);

  std::span<const std::vector<std::uint64_t>> values() const { return {values_.data(), used_}; }

 private:
  std::vector<std::vector<std::uint64_t>> values_;
  std::size_t used_ = 0;  // entries beyond are empty
};

// Whether the blocks of the event belong to a LoRA adapter. Engines number adapters from 1.
inline bool HasAdapter(const events::Event& event) {
  return !event.lora_name.empty() || event.lora_id.value_or(0) > 0;
}

}  // namespace llmd::ingest

#endif  // SRC_INGEST_BLOCK_EXTRAS_H_
