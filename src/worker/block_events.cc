#include "llmd/worker/block_events.h"

#include <algorithm>

namespace llmd::worker {

BlockEvent BlockEvents::operator[](std::size_t i) const {
  const Record& record = records_[i];
  BlockEvent event;
  event.kind = record.kind;
  event.group_id = record.group_id;
  event.hashes = std::span(hashes_).subspan(record.hash_begin, record.hash_count);
  if (record.kind != BlockEvent::Kind::kStored) return event;
  if (record.has_parent) event.parent = &hashes_[record.hash_begin - 1];
  event.block_size = record.block_size;
  event.tokens =
      TokenSpan(tokens_).subspan(record.token_begin, std::size_t{record.hash_count} * record.block_size);
  if (record.has_lora_id) event.lora_id = record.lora_id;
  event.lora_name = std::string_view(text_).substr(record.text_begin, record.lora_name_size);
  event.extra_keys = std::span(extra_keys_).subspan(record.key_begin, record.key_count);
  return event;
}

void BlockEvents::Clear() {
  records_.clear();
  hashes_.clear();
  tokens_.clear();
  extra_keys_.clear();
  text_.clear();
}

std::size_t BlockEvents::bytes() const {
  return records_.size() * sizeof(Record) + hashes_.size() * sizeof(hash::Digest) +
         tokens_.size() * sizeof(TokenId) + extra_keys_.size() * sizeof(StoredExtraKey) + text_.size();
}

std::size_t BlockEvents::capacity_bytes() const {
  return records_.capacity() * sizeof(Record) + hashes_.capacity() * sizeof(hash::Digest) +
         tokens_.capacity() * sizeof(TokenId) + extra_keys_.capacity() * sizeof(StoredExtraKey) +
         text_.capacity();
}

void BlockEvents::AddStored(const Request& request, std::size_t first, std::size_t count,
                            std::uint32_t block_size, std::uint32_t group_id) {
  const bool has_parent = first > 0;
  const auto hashes = request.block_hashes.subspan(first - has_parent, count + has_parent);
  const auto tokens = request.tokens.subspan(first * block_size, count * block_size);
  Record record;
  record.kind = BlockEvent::Kind::kStored;
  record.has_parent = has_parent;
  record.has_lora_id = request.lora_id.has_value();
  record.lora_id = request.lora_id.value_or(0);
  record.group_id = group_id;
  record.block_size = block_size;
  record.hash_begin = hashes_.size() + has_parent;
  record.hash_count = static_cast<std::uint32_t>(count);
  record.token_begin = tokens_.size();
  record.text_begin = text_.size();
  record.lora_name_size = static_cast<std::uint32_t>(request.lora_name.size());
  record.key_begin = extra_keys_.size();
  hashes_.insert(hashes_.end(), hashes.begin(), hashes.end());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  text_.append(request.lora_name);
  for (std::size_t i = first; i < std::min(first + count, request.extra_keys.size()); ++i) {
    AddExtraKeys(request.extra_keys[i], static_cast<std::uint32_t>(i - first));
  }
  record.key_count = static_cast<std::uint32_t>(extra_keys_.size() - record.key_begin);
  records_.push_back(record);
}

// The newest hash input tags its tuples, e.g. ("mm", identifier, offset); events leave the tag out, and a
// LoRA's path.
void BlockEvents::AddExtraKeys(const hash::ExtraKeys& keys, std::uint32_t block) {
  using Kind = hash::ExtraKey::Kind;
  for (const hash::ExtraKey& key : keys) {
    const hash::ExtraKey* value = &key;  // the text, bytes or integer
    const hash::ExtraKey* offset = nullptr;
    if (key.kind == Kind::kTuple) {
      const bool tagged = !key.items.empty() && key.items[0].kind == Kind::kTag;
      if (key.items.size() <= tagged) continue;
      value = &key.items[tagged];
      if (key.items.size() > 1u + tagged && key.items[1 + tagged].kind == Kind::kInt) {
        offset = &key.items[1 + tagged];
      }
    }
    StoredExtraKey stored;
    stored.block = block;
    stored.text_begin = text_.size();
    if (value->is_text()) {
      stored.kind = offset != nullptr ? events::ExtraKey::Kind::kStringAt : events::ExtraKey::Kind::kString;
      if (offset != nullptr) stored.number = offset->number;
    } else if (value->kind == Kind::kBytes) {
      stored.kind = events::ExtraKey::Kind::kBytes;
    } else if (value->kind == Kind::kInt) {
      stored.kind = events::ExtraKey::Kind::kInt;
      stored.number = value->number;
    } else {
      continue;  // no engine makes such a key
    }
    stored.text_size = value->text.size();
    text_ += value->text;
    extra_keys_.push_back(stored);
  }
}

void BlockEvents::AddRemoved(const hash::Digest& hash, std::uint32_t group_id) {
  Record& record = records_.emplace_back();
  record.kind = BlockEvent::Kind::kRemoved;
  record.group_id = group_id;
  record.hash_begin = hashes_.size();
  record.hash_count = 1;
  hashes_.push_back(hash);
}

void BlockEvents::AddCleared() { records_.emplace_back(); }

}  // namespace llmd::worker
