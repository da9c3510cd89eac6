// Places where text can be cut so that its tokens are those of the parts (see caching_token_source.h).
// Free functions, any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TEXT_CUTS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TEXT_CUTS_H_

#include <cstddef>
#include <string_view>
#include <vector>

#include "examples/gateway_scheduler/token_tree.h"

namespace llmd::host {

struct TextCuts {
  std::vector<std::size_t> offsets;  // ascending
  std::vector<TokenKey> keys;        // of the text before each
  TokenKey whole;                    // of all text
};

// Cuts are found from the start on, at least 128 bytes apart: text that grows keeps those it had.
TextCuts CutText(const TokenKey& root, std::string_view text);

// Of the cuts after `from` (0: the start), those at which parts end: the last that is min_part_bytes away
// and, of what is before it, at most max_parts - 2 that any text with the same prefix would prefer as well.
// Indices, ascending.
std::vector<std::size_t> ChooseCuts(const TextCuts& cuts, std::size_t from, std::size_t min_part_bytes,
                                    std::size_t max_parts);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TEXT_CUTS_H_
