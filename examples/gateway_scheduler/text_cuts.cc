#include "examples/gateway_scheduler/text_cuts.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/ascii.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMinDistance = 128;

bool SafeCut(std::string_view text, std::size_t line_feed) {
  return line_feed > 0 && line_feed + 1 < text.size() &&
         absl::ascii_isgraph(static_cast<unsigned char>(text[line_feed - 1])) &&
         absl::ascii_isalnum(static_cast<unsigned char>(text[line_feed + 1]));
}

}  // namespace

TextCuts CutText(const TokenKey& root, std::string_view text) {
  TextCuts cuts;
  TokenKey key = root;
  std::size_t begin = 0;
  for (std::size_t at = text.find('\n', kMinDistance); at != std::string_view::npos;) {
    if (SafeCut(text, at)) {
      key = ChainKey(key, text.substr(begin, at + 1 - begin));
      begin = at + 1;
      cuts.offsets.push_back(begin);
      cuts.keys.push_back(key);
      at = text.find('\n', begin + kMinDistance);
    } else {
      at = text.find('\n', at + 1);
    }
  }
  // No prefix ends so: a key of a cut is never that of a whole text.
  cuts.whole = ChainKey(ChainKey(key, text.substr(begin)), "end");
  return cuts;
}

std::vector<std::size_t> ChooseCuts(const TextCuts& cuts, std::size_t from, std::size_t min_part_bytes,
                                    std::size_t max_parts) {
  std::vector<std::size_t> chosen;
  const std::size_t first =
      static_cast<std::size_t>(std::lower_bound(cuts.offsets.begin(), cuts.offsets.end(),
                                                from + std::max<std::size_t>(min_part_bytes, 1)) -
                               cuts.offsets.begin());
  if (first == cuts.offsets.size() || max_parts < 2) return chosen;
  const std::size_t last = cuts.offsets.size() - 1;
  std::vector<std::pair<int, std::size_t>> preferred;
  for (std::size_t i = first; i < last; ++i) preferred.emplace_back(-std::countr_zero(cuts.keys[i].low), i);
  std::sort(preferred.begin(), preferred.end());
  for (const auto& [zeros, i] : preferred) {
    if (chosen.size() + 2 >= max_parts) break;
    const bool apart = std::none_of(chosen.begin(), chosen.end(), [&](std::size_t other) {
      const std::size_t a = cuts.offsets[i], b = cuts.offsets[other];
      return std::max(a, b) - std::min(a, b) < min_part_bytes;
    });
    if (apart && cuts.offsets[last] - cuts.offsets[i] >= min_part_bytes) chosen.push_back(i);
  }
  chosen.push_back(last);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace llmd::host
