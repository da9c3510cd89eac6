// Names and positions of event fields on the wire, shared by decoder and encoder.
#ifndef LLMD_SRC_EVENTS_FIELDS_H_
#define LLMD_SRC_EVENTS_FIELDS_H_

#include <array>
#include <cstdint>
#include <string_view>

namespace llmd::events {

enum class Field : std::uint8_t {
  kType,
  kBlockHashes,
  kParentBlockHash,
  kTokenIds,
  kBlockSize,
  kLoraId,
  kMedium,
  kLoraName,
  kExtraKeys,
  kGroupIdx,
  kSpecKind,
  kSlidingWindow,
  kLocality,
  kOwnership,
  kSessionId,
  kLookaheadTokenIds,
  // Other publishers' names.
  kEventType,
  kSeqHashes,
  kParentHash,
  kCacheSalt,
  kAdditionalSalt,
  kModelName,
  kTenantId,
  kBackendId,
  kObjectKey,
  kBaseBlockIdx,
  kUnknown,
};

inline constexpr std::array<std::string_view, 26> kFieldNames = {
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
    "lookahead_token_ids",
    "event_type",
    "seq_hashes",
    "parent_hash",
    "cache_salt",
    "additional_salt",
    "model_name",
    "tenant_id",
    "backend_id",
    "object_key",
    "base_block_idx",
};
static_assert(kFieldNames.size() == static_cast<std::size_t>(Field::kUnknown));

constexpr std::string_view FieldName(Field field) { return kFieldNames[static_cast<std::size_t>(field)]; }

// Elements of the positional forms, the tag at index 0 included.
inline constexpr std::array kStoredPositions = {
    Field::kType,     Field::kBlockHashes,   Field::kParentBlockHash, Field::kTokenIds,  Field::kBlockSize,
    Field::kLoraId,   Field::kMedium,        Field::kLoraName,        Field::kExtraKeys, Field::kGroupIdx,
    Field::kSpecKind, Field::kSlidingWindow, Field::kLocality,        Field::kOwnership, Field::kSessionId,
};
inline constexpr std::array kRemovedPositions = {Field::kType, Field::kBlockHashes, Field::kMedium,
                                                 Field::kGroupIdx};
// Shortest arrays that make sense: up to block_size, and up to block_hashes.
inline constexpr std::uint64_t kMinStoredLength = 5;
inline constexpr std::uint64_t kMinRemovedLength = 2;

}  // namespace llmd::events

#endif  // LLMD_SRC_EVENTS_FIELDS_H_
