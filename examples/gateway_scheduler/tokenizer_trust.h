// What the token cache has learned of each tokenizer: whether tokens may be put together from parts, and what
// a chat template writes around messages. See caching_token_source.h. Any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TOKENIZER_TRUST_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TOKENIZER_TRUST_H_

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/token_tree.h"
#include "llmd/base/types.h"

namespace llmd::host {

class TokenizerTrust {
 public:
  // The first `checks` results are to be compared with the whole's, then one in `check_every` (0: none).
  TokenizerTrust(std::uint32_t checks, std::uint32_t check_every)
      : checks_(checks), check_every_(check_every) {}

  struct Plan {
    bool parts = false;  // may be used
    bool whole = true;   // is to be asked for
  };
  // `setting` names a model's tokenizer, or one with a template and tools.
  Plan PlanFor(const TokenKey& setting);
  // The outcome of a comparison. One that is bad refuses parts for good.
  void Judge(const TokenKey& setting, bool equal);
  bool Refused(const TokenKey& setting) const;

  // A template's rendering of the stand-in for earlier messages.
  struct Stencil {
    std::vector<TokenId> head = {};    // of its message
    std::vector<TokenId> prompt = {};  // what asks for an answer, at the end
  };
  // Without a value when it is not known, or older than `oldest`.
  std::optional<Stencil> StencilOf(const TokenKey& setting, absl::Time oldest) const;
  // True: the caller is to find out, and to call SetStencil().
  bool BeginStencil(const TokenKey& setting);
  // The stand-in's tokens without and with what asks for an answer.
  void SetStencil(const TokenKey& setting, const absl::StatusOr<std::vector<TokenId>>& closed,
                  const absl::StatusOr<std::vector<TokenId>>& open, absl::Time now);
  void ForgetStencil(const TokenKey& setting);

 private:
  struct Setting {
    std::uint32_t good = 0, used = 0;
    bool refused = false;
    bool asking = false;
    Stencil stencil = {};  // the prompt is empty: not known
    absl::Time born = absl::InfinitePast();
  };
  Setting& At(const TokenKey& setting);

  const std::uint32_t checks_, check_every_;
  mutable std::mutex mutex_;
  absl::flat_hash_map<TokenKey, Setting> settings_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TOKENIZER_TRUST_H_
