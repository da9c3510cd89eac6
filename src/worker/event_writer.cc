#include "llmd/worker/event_writer.h"

namespace llmd::worker {
namespace {

std::string_view Bytes(const hash::Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.size};
}

}  // namespace

std::span<const events::Event> EventWriter::Convert(const BlockEvents& source) {
  std::size_t num_hashes = 0;
  std::size_t num_keys = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const BlockEvent event = source[i];
    num_hashes += event.hashes.size();
    num_keys += event.extra_keys.size();
  }
  // Sized first, so that nothing moves while events point to it.
  events_.clear();
  events_.reserve(source.size());
  hashes_.resize(num_hashes);
  hash_bytes_.resize(options_.full_digests ? num_hashes : 0);
  keys_.resize(num_keys);
  keys_of_block_.resize(num_hashes);

  std::size_t hash_at = 0;
  std::size_t key_at = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const BlockEvent from = source[i];
    events::Event& to = events_.emplace_back();
    if (from.kind == BlockEvent::Kind::kCleared) continue;  // the default event
    const std::size_t count = from.hashes.size();
    for (std::size_t j = 0; j < count; ++j) {
      hashes_[hash_at + j] = from.hashes[j].low64();
      if (options_.full_digests) hash_bytes_[hash_at + j] = Bytes(from.hashes[j]);
    }
    to.hashes = std::span(hashes_).subspan(hash_at, count);
    if (options_.full_digests) to.hash_bytes = std::span(hash_bytes_).subspan(hash_at, count);
    to.medium = options_.medium;
    to.group_idx = from.group_id;
    if (from.kind == BlockEvent::Kind::kRemoved) {
      to.kind = events::EventKind::kBlockRemoved;
      hash_at += count;
      continue;
    }
    to.kind = events::EventKind::kBlockStored;
    if (from.parent != nullptr) {
      to.parent = from.parent->low64();
      if (options_.full_digests) to.parent_bytes = Bytes(*from.parent);
    }
    to.tokens = from.tokens;
    to.block_size = from.block_size;
    to.lora_id = from.lora_id;
    to.lora_name = from.lora_name;
    to.spec_kind = "full_attention";
    // Engines write an entry for every block, null where it has no extra keys.
    std::size_t next = 0;
    for (std::size_t j = 0; j < count; ++j) {
      const std::size_t begin = key_at;
      for (; next < from.extra_keys.size() && from.extra_keys[next].block == j; ++next) {
        const StoredExtraKey& key = from.extra_keys[next];
        keys_[key_at++] = {.kind = key.kind, .text = source.Text(key), .number = key.number};
      }
      keys_of_block_[hash_at + j] = std::span(keys_).subspan(begin, key_at - begin);
    }
    to.extra_keys = std::span(keys_of_block_).subspan(hash_at, count);
    hash_at += count;
  }
  return events_;
}

}  // namespace llmd::worker
