// Tokens from the workers themselves: vLLM's /tokenize and render endpoints.
// (spec: scheduling.md 2.8; decode-worker.md 4.1, 4.7)
//
//   EngineTokenSource tokens(options, loop, &pool);
//   tokens.Tokenize(query, done);
//
// A chat goes to /v1/chat/completions/render with the client's body (the model replaced when it was
// rewritten), a completions request to /tokenize, one call a prompt; one with options that change its tokens
// to /v1/completions/render. A worker without render endpoints gets chats at /tokenize, unless options would
// be lost there. Other interfaces have no tokens, but for prompts that are token ids already.
//
// Asked is a fixed server, or the worker of the pool with the fewest calls under way. One that does not
// answer is left alone for a second, then two, up to max_rest; a call that found no connection tries another
// worker. When none is left, and when too many calls wait, the answer is an error at once: a decision without
// tokens is better than a late one.
//
// Threads: any may call; answers come from the loop's thread or from within. The loop and the pool must
// outlive the source; its destructor cancels what is under way and waits for those answers.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_ENGINE_TOKEN_SOURCE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_ENGINE_TOKEN_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/curl_loop.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "examples/gateway_scheduler/prompt_tokenizer.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

struct EngineTokenOptions {
  std::string url = {};    // http://host:port; empty: the workers of the pool
  std::string model = {};  // instead of the request's
  absl::Duration timeout = absl::Seconds(5);
  absl::Duration media_timeout = absl::Seconds(30);  // of a chat with pictures, sounds or videos
  absl::Duration connect_timeout = absl::Seconds(1);
  absl::Duration max_rest = absl::Seconds(10);  // of a worker that does not answer
  std::size_t max_in_flight = 64;
  std::size_t max_waiting = 1024;
  std::size_t max_answer_bytes = std::size_t{64} << 20;
  http::Headers headers = {};
  FetchTls tls = {.verify = false};
};

// What the configuration says of token-producer's vllm backend, the defaults without one.
absl::StatusOr<EngineTokenOptions> EngineTokenOptionsOf(const sched::Scheduler& scheduler);

struct EngineTokenCounters {
  std::uint64_t calls = 0;  // HTTP requests
  std::uint64_t good = 0;
  std::uint64_t sent_bytes = 0;
  std::uint64_t tokens = 0;                  // received
  std::uint64_t unreachable = 0;             // no connection, no answer in time, a server's error
  std::uint64_t refused = 0;                 // the worker refuses the request
  std::uint64_t malformed = 0;               // an answer that is none
  std::uint64_t no_worker = 0;               // none is left to ask
  std::uint64_t overloaded = 0;              // too many calls wait
  std::uint64_t in_flight = 0, waiting = 0;  // now
};

class EngineTokenSource final : public PartTokenSource {
 public:
  // `pool` may be null when there is a URL.
  EngineTokenSource(const EngineTokenOptions& options, CurlLoop& loop, PoolStore* pool);
  ~EngineTokenSource() override;

  void Tokenize(const TokenQuery& query, Done done) override;
  void TokenizeText(TextPrompt prompt, PromptDone done) override;
  void TokenizeChat(ChatPrompt prompt, PromptDone done) override;

  EngineTokenCounters counters() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_ENGINE_TOKEN_SOURCE_H_
