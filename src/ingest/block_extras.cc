#include "src/ingest/block_extras.h"

#include <algorithm>

#include "llmd/hash/dynamo.h"

namespace llmd::ingest {
namespace {

using events::ExtraKey;

// Engines put the adapter among a block's extra keys: its name, or in older ones its number.
bool IsAdapter(const events::Event& event, const ExtraKey& key) {
  if (key.kind == ExtraKey::Kind::kString) return !event.lora_name.empty() && key.text == event.lora_name;
  return key.kind == ExtraKey::Kind::kInt && HasAdapter(event);
}

}  // namespace

void BlockExtras::Clear() {
  for (std::size_t i = 0; i < used_; ++i) values_[i].clear();
  used_ = 0;
}

void BlockExtras::Add(std::size_t block, std::uint64_t value) {
  if (block >= values_.size()) values_.resize(block + 1);
  values_[block].push_back(value);
  used_ = std::max(used_, block + 1);
}

void BlockExtras::Add(std::size_t block, std::string_view text) {
  Add(block, hash::DynamoMultimodalHash(text));
}

void BlockExtras::AddEvent(const events::Event& event) {
  const std::size_t blocks = std::min(event.extra_keys.size(), event.hashes.size());
  for (std::size_t i = 0; i < blocks; ++i) {
    bool adapter_seen = false;
    for (const ExtraKey& key : event.extra_keys[i]) {
      if (!adapter_seen && IsAdapter(event, key)) {
        adapter_seen = true;
      } else if (key.kind == ExtraKey::Kind::kInt) {
        Add(i, std::string_view(reinterpret_cast<const char*>(&key.number), sizeof(key.number)));
      } else {
        Add(i, key.text);
      }
    }
  }
  // SGLang and Mooncake name the salt in a field of its own, on every event of the prompt.
  if (!event.parent.has_value() && !event.cache_salt.empty()) Add(0, event.cache_salt);
}

}  // namespace llmd::ingest
