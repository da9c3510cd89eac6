// A tokenizer without a model: deterministic, stateless but for a memory of texts, about one token for five
// characters of English.
//
// Text is cut into pieces (a blank and up to six letters, up to three digits, one punctuation mark, a run of
// white space), and a piece is hashed to an id. Text that grows only adds tokens; where it grows in the
// middle of a word, the last token may change. Every id has a canonical text, which is a piece by itself: a
// made-up word of two or three syllables. So what the worker generates comes back as the same tokens when a
// client sends it in the next turn of a conversation, which keeps prefix-cache hits as a real engine would
// have them.
//
// Threads: any, at once.
#ifndef EXAMPLES_SIM_WORKER_TOKENIZER_H_
#define EXAMPLES_SIM_WORKER_TOKENIZER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/base/types.h"

namespace llmd::sim {

class Tokenizer {
 public:
  // Special ids as in Llama 3.
  static constexpr TokenId kBos = 128'000;
  static constexpr TokenId kStartHeader = 128'006;
  static constexpr TokenId kEndHeader = 128'007;
  static constexpr TokenId kEot = 128'009;
  static constexpr TokenId kMedia = 128'010;
  static constexpr TokenId kVocabSize = 128'256;
  // Ids whose canonical text is a word of two syllables: what is generated.
  static constexpr TokenId kFirstWord = 256;
  static constexpr TokenId kWords = 6400;

  Tokenizer();

  // Appends the ids of `text`. Special tokens are never made from text.
  void Encode(std::string_view text, std::vector<TokenId>& out) const;

  // Appends the canonical text of an id.
  static void AppendCanonical(TokenId id, std::string& out);
  // Appends the text that was last encoded to this id, or else its canonical text.
  void AppendText(TokenId id, std::string& out) const;

 private:
  // By id, from kFirstHashed on: a piece of up to 7 bytes, its length in the top byte; 0: none yet.
  std::unique_ptr<std::atomic<std::uint64_t>[]> seen_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_TOKENIZER_H_
