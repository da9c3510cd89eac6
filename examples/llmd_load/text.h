// Deterministic text. Equal stream numbers give equal text, and a longer text of a stream begins with every
// shorter one; so prompts share a prefix exactly as far as their streams agree.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_TEXT_H_
#define LLMD_EXAMPLES_LLMD_LOAD_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llmd::load {

// About a token for most tokenizers: three letters and a blank.
inline constexpr std::size_t kCharactersPerToken = 4;

// Appends the first `tokens` words of a stream.
void AppendText(std::uint64_t stream, std::size_t tokens, std::string& out);

// A stream number for `parts`, the same on every machine.
std::uint64_t StreamOf(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0);

// The prompt of the cache-hit test: a paragraph of some 900 characters.
std::string_view TestParagraph();

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_TEXT_H_
