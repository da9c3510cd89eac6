// What the host of docs/block-hashing.md declares around the code shown there.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/hash/extra_keys.h"
#include "llmd/hash/probe.h"
#include "llmd/hash/vllm.h"

extern absl::StatusOr<llmd::hash::VllmHasher> hasher;
extern std::vector<llmd::TokenId> prompt_tokens, generated_tokens, event_tokens;
extern std::vector<std::uint64_t> event_hashes;
extern std::string image_hash;
extern llmd::hash::RequestExtras what_is_known_of_the_request;
