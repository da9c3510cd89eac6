// A request inside the engine. Private to engine.cc and engine_schedule.cc.
#ifndef EXAMPLES_SIM_WORKER_ENGINE_ENTRY_H_
#define EXAMPLES_SIM_WORKER_ENGINE_ENTRY_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "examples/sim_worker/engine.h"

namespace llmd::sim {

struct Engine::Entry {
  Entry(const hash::VllmHasher& hasher, EngineRequest request, hash::ExtraKeyBuilder extras)
      : in(std::move(request)), tokens(std::move(in.prompt)), chain(hasher, std::move(extras)) {
    num_prompt = static_cast<std::uint32_t>(tokens.size());
  }

  std::uint32_t num_output() const { return state.num_tokens() - num_prompt; }
  // Tokens that are known and whose KV is not computed.
  std::uint32_t missing() const { return state.num_tokens() - state.num_computed_tokens; }
  // The views of `state`, after tokens or chain changed.
  void Renew() {
    state.tokens = tokens;
    state.block_hashes = chain.digests();
  }

  EngineRequest in;  // without the prompt, which is the head of `tokens`
  std::vector<TokenId> tokens;
  std::uint32_t num_prompt = 0;
  hash::VllmChain chain;
  std::vector<hash::ExtraKeys> extra_keys;
  worker::Request state;
  std::uint64_t text_state = 0;        // decides the next token
  std::uint32_t natural_length = ~0u;  // output tokens before the text ends by itself

  double queued = 0;
  double scheduled = -1;  // first time
  double first_token = -1;
  double last_token = -1;
  double loaded_at = 0;            // when the remote KV arrives
  std::uint32_t load_tokens = 0;   // how much
  std::uint32_t local_hit = 0;     // at first admission
  std::uint32_t external_hit = 0;  // likewise
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_ENGINE_ENTRY_H_
