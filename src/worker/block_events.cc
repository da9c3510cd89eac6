#include "llmd/worker/block_events.h"

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
  return event;
}

void BlockEvents::Clear() {
  records_.clear();
  hashes_.clear();
  tokens_.clear();
  text_.clear();
}

std::size_t BlockEvents::bytes() const {
  return records_.size() * sizeof(Record) + hashes_.size() * sizeof(BlockHash) +
         tokens_.size() * sizeof(TokenId) + text_.size();
}

std::size_t BlockEvents::capacity_bytes() const {
  return records_.capacity() * sizeof(Record) + hashes_.capacity() * sizeof(BlockHash) +
         tokens_.capacity() * sizeof(TokenId) + text_.capacity();
}

void BlockEvents::AddStored(const Request& request, std::size_t first, std::size_t count,
                            std::uint32_t block_size, std::uint32_t group_id) {
  const bool has_parent = first > 0;
  const auto hashes = request.block_hashes.subspan(first - has_parent, count + has_parent);
  const auto tokens = request.tokens.subspan(first * block_size, count * block_size);
  Record& record = records_.emplace_back();
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
  hashes_.insert(hashes_.end(), hashes.begin(), hashes.end());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  text_.append(request.lora_name);
}

void BlockEvents::AddRemoved(const BlockHash& hash, std::uint32_t group_id) {
  Record& record = records_.emplace_back();
  record.kind = BlockEvent::Kind::kRemoved;
  record.group_id = group_id;
  record.hash_begin = hashes_.size();
  record.hash_count = 1;
  hashes_.push_back(hash);
}

void BlockEvents::AddCleared() { records_.emplace_back(); }

}  // namespace llmd::worker
