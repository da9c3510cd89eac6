// Extra keys: what besides the tokens makes a block's KV cache its own.
//
// vLLM hashes a block as (parent, tokens, extra keys). The extra keys are a Python tuple built from the
// request: LoRA adapter, multimodal items whose placeholders overlap the block, cache salt (first block
// only), digest of prompt embeddings; in this order. Their shape changed over releases, hence ExtraKeyStyle.
//
// RequestExtras is what a host knows of a request; ExtraKeyBuilder turns it into the keys of block i.
// ExtraKey is also the form in which keys read from an event are handed to the probe and to request_keys.h.
// Plain values, no threads. Whoever builds ExtraKey values from untrusted input bounds their nesting (events
// need two levels). Source: spec, block hashing 1.4; vllm: vllm/v1/core/kv_cache_utils.py.
#ifndef LLMD_HASH_EXTRA_KEYS_H_
#define LLMD_HASH_EXTRA_KEYS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llmd/hash/digest.h"

namespace llmd::hash {

// One Python object: None, int, str, bytes, or a tuple of such.
struct ExtraKey {
  enum class Kind : std::uint8_t {
    kNone,
    kInt,
    kText,  // UTF-8
    kTag,   // a string literal of the engine's source, e.g. "mm": one Python object however often it occurs
    kBytes,
    kTuple,
  };

  static ExtraKey None() { return {}; }
  static ExtraKey Int(std::int64_t value) { return {Kind::kInt, value, {}, {}}; }
  static ExtraKey Text(std::string_view value) { return {Kind::kText, 0, std::string(value), {}}; }
  static ExtraKey Tag(std::string_view value) { return {Kind::kTag, 0, std::string(value), {}}; }
  static ExtraKey Bytes(std::string_view value) { return {Kind::kBytes, 0, std::string(value), {}}; }
  static ExtraKey Tuple(std::vector<ExtraKey> items) { return {Kind::kTuple, 0, {}, std::move(items)}; }

  bool is_text() const { return kind == Kind::kText || kind == Kind::kTag; }
  friend bool operator==(const ExtraKey&, const ExtraKey&) = default;

  Kind kind = Kind::kNone;
  std::int64_t number = 0;      // kInt
  std::string text;             // kText, kTag, kBytes
  std::vector<ExtraKey> items;  // kTuple
};

// The extra keys of one block. Empty means None, never an empty tuple.
using ExtraKeys = std::vector<ExtraKey>;

// For people: `("sql-adapter", ("f9a3", -11), "tenant-a")`, or `None`.
std::string ToString(const ExtraKeys& keys);

// The shapes that vLLM releases use.
enum class ExtraKeyStyle : std::uint8_t {
  kIntLora,  // LoRA as its integer id, multimodal items as bare identifiers: up to 0.11.0
  kBare,     // LoRA by name, multimodal items as bare identifiers: 0.11.1 .. 0.18
  kOffset,   // multimodal items as (identifier, offset - block start): 0.19 .. 0.29
  kTagged,   // ("lora", name, path), ("mm", identifier, offset), ("cache_salt", salt), ("prompt_embeds",
             // digest): 0.32 and later (0.30 and 0.31 not checked). Events still carry the kOffset form, so
             // the LoRA path must be known from elsewhere.
};
std::string_view ToString(ExtraKeyStyle style);

// A multimodal item: its placeholder covers tokens [offset, offset + length) of the prompt.
struct MultimodalItem {
  std::string identifier;  // content hash in hexadecimal, or the caller's uuid
  std::int64_t offset = 0;
  std::int64_t length = 0;
};

struct RequestExtras {
  std::string lora_name;         // empty: base model
  std::int64_t lora_int_id = 0;  // read by kIntLora
  std::string lora_path;         // read by kTagged
  std::vector<MultimodalItem> multimodal;
  std::string cache_salt;
  std::vector<Digest> embeds_digests;  // per block: SHA-256 of the prompt-embedding rows; empty: token prompt
};

class ExtraKeyBuilder {
 public:
  ExtraKeyBuilder() = default;  // no extras: every block's keys are None
  // `block_size` >= 1. Items are sorted by offset.
  ExtraKeyBuilder(RequestExtras extras, ExtraKeyStyle style, std::uint32_t block_size);

  // True when no block of the request has extra keys.
  bool empty() const { return empty_; }
  // Keys of the block that covers tokens [index * block_size, (index + 1) * block_size).
  ExtraKeys ForBlock(std::uint64_t index) const;
  // Keys of blocks 0 .. count - 1.
  std::vector<ExtraKeys> ForBlocks(std::uint64_t count) const;

 private:
  void AppendMultimodal(std::int64_t start, std::int64_t end, ExtraKeys& keys) const;

  RequestExtras extras_;
  ExtraKeyStyle style_ = ExtraKeyStyle::kOffset;
  std::uint32_t block_size_ = 1;
  bool empty_ = true;
  std::vector<std::int64_t> reach_;  // reach_[i]: largest placeholder end among items 0 .. i
};

}  // namespace llmd::hash

#endif  // LLMD_HASH_EXTRA_KEYS_H_
