// A token source that remembers: identical prompts are tokenized once, also those under way at the same time,
// and of a conversation that grows only what is new goes to the workers' tokenizers.
//
//   CachingTokenSource tokens({}, std::make_unique<EngineTokenSource>(...));
//
// Exact by construction: what the worker gave for the same prompt (with the same model, tools, template and
// options) within max_age. Templates may render a date, so answers do not live for ever.
//
// Put together, and therefore checked: the tokens of a longer prompt from those of its beginning.
//
//   Text is cut where a line that ends in a visible ASCII character is followed by an ASCII letter or digit.
//   Tokenizers that split text into words by a pattern before they merge (byte-level BPE: Llama 3, Qwen,
//   DeepSeek, GPT) have a border there whatever surrounds it, so that the tokens of the whole are those of
//   the parts, of which the first alone gets special tokens. Text without such cuts is tokenized whole.
//
//   Messages are cut where an assistant's follows a user's. The new ones are rendered behind a stand-in for
//   the old ones, whose tokens are then taken off: templates close each message with a token of its own. Used
//   for conversations of plain text messages that end with a user's, without unusual options, pictures or
//   thinking, which templates treat differently by position.
//
// Neither can be proved without the tokenizer. So for each model (for chats: each model, tools and template)
// the first `checks` results are compared with the tokens of the whole, which are the answer meanwhile; later
// one in `check_every` is. One that differs ends putting together there for good, and what was put together
// is forgotten. A wrong result in between would cost a prefix match, never an answer: workers tokenize for
// themselves.
//
// Requests of other interfaces, several prompts with unusual options, and token ids go through.
//
// Threads: any may call; answers come from the inner source's threads or from within.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_CACHING_TOKEN_SOURCE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_CACHING_TOKEN_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "examples/gateway_scheduler/prompt_tokenizer.h"

namespace llmd::host {

struct CachingTokenOptions {
  std::size_t max_bytes = std::size_t{256} << 20;
  absl::Duration max_age = absl::Minutes(30);
  std::uint32_t checks = 4;           // before results that were put together are trusted
  std::uint32_t check_every = 128;    // afterwards; 0: never
  bool put_together = true;           // off: whole prompts alone
  std::size_t min_part_bytes = 1024;  // text between two cuts that are remembered
  std::size_t max_parts = 6;          // of one prompt at a time
};

struct TokenCacheCounters {
  std::uint64_t prompts = 0;   // asked for
  std::uint64_t hits = 0;      // answered from memory
  std::uint64_t joined = 0;    // waited for the same prompt
  std::uint64_t extended = 0;  // put together from parts, without the whole
  std::uint64_t whole = 0;     // tokenized whole
  std::uint64_t passed = 0;    // requests that went through
  std::uint64_t failed = 0;    // errors given
  std::uint64_t checked = 0, mismatched = 0;
  std::uint64_t prompt_tokens = 0;  // given
  std::uint64_t reused_tokens = 0;  // of them, from memory
  std::size_t nodes = 0, bytes = 0;
  std::uint64_t evicted = 0;
};

class CachingTokenSource final : public TokenSource {
 public:
  CachingTokenSource(const CachingTokenOptions& options, std::unique_ptr<PartTokenSource> inner);
  ~CachingTokenSource() override;

  void Tokenize(const TokenQuery& query, Done done) override;
  TokenCacheCounters counters() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
  std::unique_ptr<PartTokenSource> inner_;  // ends first, with its answers
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_CACHING_TOKEN_SOURCE_H_
