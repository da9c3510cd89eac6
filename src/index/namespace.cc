#define XXH_INLINE_ALL
#include <string>
#include <string_view>

#include "llmd/index/types.h"
#include "xxhash.h"

namespace llmd::index {

NamespaceId MakeNamespace(const NamespaceKey& key) {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  const auto add_number = [&](std::uint64_t value) {
    unsigned char bytes[8];
    for (unsigned char& byte : bytes) {
      byte = static_cast<unsigned char>(value);
      value >>= 8;
    }
    XXH3_128bits_update(&state, bytes, sizeof(bytes));
  };
  for (const std::string_view text : {key.model, key.lora, key.cache_salt}) {
    add_number(text.size());
    XXH3_128bits_update(&state, text.data(), text.size());
  }
  add_number(key.block_size);
  const XXH128_hash_t hash = XXH3_128bits_digest(&state);
  return {hash.high64, hash.low64};
}

}  // namespace llmd::index
