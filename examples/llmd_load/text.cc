#include "examples/llmd_load/text.h"

#include "llmd/base/random.h"

namespace llmd::load {

void AppendText(std::uint64_t stream, std::size_t tokens, std::string& out) {
  out.reserve(out.size() + tokens * kCharactersPerToken);
  Random random(stream);
  for (std::size_t i = 0; i < tokens; ++i) {
    std::uint64_t letters = random.Below(26 * 26 * 26);
    for (int letter = 0; letter < 3; ++letter, letters /= 26) out += static_cast<char>('a' + letters % 26);
    out += ' ';
  }
}

std::uint64_t StreamOf(std::uint64_t seed, std::uint64_t a, std::uint64_t b) {
  std::uint64_t state = seed;
  state = SplitMix64(state) ^ a;
  state = SplitMix64(state) ^ b;
  return SplitMix64(state);
}

std::string_view TestParagraph() {
  return "A serving system for language models keeps the attention keys and values of every token that it "
         "has "
         "read. When two requests begin with the same words, the second one can use what the first one left "
         "behind, provided that it reaches the same worker and that the worker still has room for it. A "
         "router "
         "that knows nothing of this spreads requests evenly and throws the work away; a router that looks "
         "at "
         "the prompt sends it where its beginning is already known, as long as that worker is not "
         "overloaded. "
         "The gain is largest for long instructions, for documents that are asked about again and again, and "
         "for conversations, whose every turn repeats all that was said before. Explain in two sentences, "
         "for a "
         "reader who has never run such a system, why the time to the first token falls when a request finds "
         "its prefix in the cache, and name one case in which it does not fall at all.";
}

}  // namespace llmd::load
