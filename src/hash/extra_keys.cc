#include "llmd/hash/extra_keys.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "llmd/base/strings.h"

namespace llmd::hash {
namespace {

std::string_view AsText(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.size};
}

// End of the placeholder; positions come from requests, so they may be absurd.
std::int64_t End(const MultimodalItem& item) {
  std::int64_t end;
  if (!__builtin_add_overflow(item.offset, item.length, &end)) return end;
  return item.offset < 0 ? std::numeric_limits<std::int64_t>::min()
                         : std::numeric_limits<std::int64_t>::max();
}

std::int64_t Minus(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) - static_cast<std::uint64_t>(b));
}

void Print(const ExtraKey& key, std::string& out);

void PrintTuple(const std::vector<ExtraKey>& items, std::string& out) {
  out += '(';
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    Print(items[i], out);
  }
  out += items.size() == 1 ? ",)" : ")";
}

void Print(const ExtraKey& key, std::string& out) {
  switch (key.kind) {
    case ExtraKey::Kind::kNone:
      out += "None";
      return;
    case ExtraKey::Kind::kInt:
      out += std::to_string(key.number);
      return;
    case ExtraKey::Kind::kText:
    case ExtraKey::Kind::kTag:
      out += '"' + key.text + '"';
      return;
    case ExtraKey::Kind::kBytes:
      out += "0x" + HexExcerpt(AsBytes(key.text));
      return;
    case ExtraKey::Kind::kTuple:
      return PrintTuple(key.items, out);
  }
}

}  // namespace

std::string ToString(const ExtraKeys& keys) {
  if (keys.empty()) return "None";
  std::string out;
  PrintTuple(keys, out);
  return out;
}

std::string_view ToString(ExtraKeyStyle style) {
  switch (style) {
    case ExtraKeyStyle::kIntLora:
      return "int-lora";
    case ExtraKeyStyle::kBare:
      return "bare";
    case ExtraKeyStyle::kOffset:
      return "offset";
    case ExtraKeyStyle::kTagged:
      return "tagged";
  }
  return "unknown";
}

ExtraKeyBuilder::ExtraKeyBuilder(RequestExtras extras, ExtraKeyStyle style, std::uint32_t block_size)
    : extras_(std::move(extras)), style_(style), block_size_(std::max(block_size, 1u)) {
  std::vector<MultimodalItem>& items = extras_.multimodal;
  std::stable_sort(items.begin(), items.end(),
                   [](const MultimodalItem& a, const MultimodalItem& b) { return a.offset < b.offset; });
  reach_.reserve(items.size());
  std::int64_t reach = std::numeric_limits<std::int64_t>::min();
  for (const MultimodalItem& item : items) {
    reach = std::max(reach, End(item));
    reach_.push_back(reach);
  }
  const bool lora = style == ExtraKeyStyle::kIntLora ? extras_.lora_int_id != 0 : !extras_.lora_name.empty();
  empty_ = !lora && items.empty() && extras_.cache_salt.empty() && extras_.embeds_digests.empty();
}

void ExtraKeyBuilder::AppendMultimodal(std::int64_t start, std::int64_t end, ExtraKeys& keys) const {
  const std::vector<MultimodalItem>& items = extras_.multimodal;
  // Items before `first` all end at or before the block's start.
  const std::size_t first = std::upper_bound(reach_.begin(), reach_.end(), start) - reach_.begin();
  for (std::size_t i = first; i < items.size() && items[i].offset < end; ++i) {
    const MultimodalItem& item = items[i];
    if (End(item) <= start) continue;
    switch (style_) {
      case ExtraKeyStyle::kIntLora:
      case ExtraKeyStyle::kBare:
        keys.push_back(ExtraKey::Text(item.identifier));
        break;
      case ExtraKeyStyle::kOffset:
        keys.push_back(
            ExtraKey::Tuple({ExtraKey::Text(item.identifier), ExtraKey::Int(Minus(item.offset, start))}));
        break;
      case ExtraKeyStyle::kTagged:
        keys.push_back(ExtraKey::Tuple({ExtraKey::Tag("mm"), ExtraKey::Text(item.identifier),
                                        ExtraKey::Int(Minus(item.offset, start))}));
        break;
    }
  }
}

ExtraKeys ExtraKeyBuilder::ForBlock(std::uint64_t index) const {
  ExtraKeys keys;
  if (empty_) return keys;
  const bool tagged = style_ == ExtraKeyStyle::kTagged;
  const auto add = [&](std::string_view tag, ExtraKey key) {
    keys.push_back(tagged ? ExtraKey::Tuple({ExtraKey::Tag(tag), std::move(key)}) : std::move(key));
  };

  if (style_ == ExtraKeyStyle::kIntLora) {
    if (extras_.lora_int_id != 0) keys.push_back(ExtraKey::Int(extras_.lora_int_id));
  } else if (!extras_.lora_name.empty()) {
    add("lora", ExtraKey::Text(extras_.lora_name));
    if (tagged) keys.back().items.push_back(ExtraKey::Text(extras_.lora_path));
  }
  const auto start = static_cast<std::int64_t>(index * block_size_);
  AppendMultimodal(start, start + block_size_, keys);
  if (index == 0 && !extras_.cache_salt.empty()) add("cache_salt", ExtraKey::Text(extras_.cache_salt));
  if (index < extras_.embeds_digests.size()) {
    add("prompt_embeds", ExtraKey::Bytes(AsText(extras_.embeds_digests[index])));
  }
  return keys;
}

std::vector<ExtraKeys> ExtraKeyBuilder::ForBlocks(std::uint64_t count) const {
  std::vector<ExtraKeys> blocks(count);
  if (empty_) return blocks;
  for (std::uint64_t i = 0; i < count; ++i) blocks[i] = ForBlock(i);
  return blocks;
}

}  // namespace llmd::hash
