// A request as the scheduler sees it: views of what the host has parsed, tokenized and hashed.
//
// Nothing is owned: every view must outlive the decision. Block keys are input, computed before the decision
// by the hash component or kept from an earlier turn, so that producers that use the same keys share them.
// Plain value, no threads.
#ifndef LLMD_SCHED_REQUEST_H_
#define LLMD_SCHED_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "llmd/base/types.h"
#include "llmd/index/types.h"

namespace llmd::sched {

// The block keys of one prompt, first block first.
struct KeyChain {
  index::NamespaceId ns = {};
  std::uint32_t block_size = 0;  // tokens per block
  BlockKeySpan keys = {};
};

// An image, a sound or a video inside a prompt.
struct MultimodalItem {
  std::string_view modality = {};  // "image", "audio", "video"
  std::string_view hash = {};      // of its content
  std::size_t offset = 0;          // first placeholder token
  std::size_t length = 0;          // placeholder tokens
};

struct Prompt {
  std::size_t token_count = 0;
  TokenSpan tokens = {};  // may be empty when only keys are known
  // One chain for each prefix source (endpoint_pool.h); a missing or empty one means nothing is known.
  std::span<const KeyChain> chains = {};
  std::span<const MultimodalItem> items = {};
};

struct Header {
  std::string_view name = {};  // lower case
  std::string_view value = {};
};

struct Request {
  std::string_view id = {};     // x-request-id
  std::string_view model = {};  // after rewriting: the adapter's name for LoRA
  std::span<const Prompt> prompts = {};
  std::span<const Header> headers = {};
  std::int32_t priority = 0;  // below 0: may be shed
  std::string_view fairness_id = "default-flow";
  std::size_t size_bytes = 0;
  std::optional<std::uint32_t> max_output_tokens = {};

  // Tokens of all prompts.
  std::size_t token_count() const {
    std::size_t sum = 0;
    for (const Prompt& prompt : prompts) sum += prompt.token_count;
    return sum;
  }
  // The first header of that (lower-case) name.
  std::optional<std::string_view> FindHeader(std::string_view name) const {
    for (const Header& header : headers) {
      if (header.name == name) return header.value;
    }
    return std::nullopt;
  }
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_REQUEST_H_
