// Pseudo tokens without a tokenizer: four bytes of the prompt each, little endian, as llm-d's estimate
// backend makes them. They tell prefixes apart and match no engine's blocks. (spec: scheduling.md 2.8)
//
// A chat is its tools, then role and text of each message without separators; an asset is aligned to a token
// and repeats one token as often as the asset probably has tokens. Tools are taken as the client wrote them,
// where llm-d writes their JSON anew. Prompts that are token ids already stay as they are. All assets of a
// request together count at most kMaxRequestAssetTokens; of those beyond, each is one token.
//
// Any thread; answers from within.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_ESTIMATE_TOKEN_SOURCE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_ESTIMATE_TOKEN_SOURCE_H_

#include "absl/status/statusor.h"
#include "examples/gateway_scheduler/media_estimate.h"
#include "examples/gateway_scheduler/token_source.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

inline constexpr std::uint32_t kMaxRequestAssetTokens = 1 << 20;

class EstimateTokenSource final : public TokenSource {
 public:
  explicit EstimateTokenSource(const MediaEstimate& media = {}) : media_(media) {}
  bool immediate() const override { return true; }
  void Tokenize(const TokenQuery& query, Done done) override;

 private:
  MediaEstimate media_;
};

// `estimate` of the configuration's token-producer, the defaults without one.
absl::StatusOr<MediaEstimate> MediaEstimateOf(const sched::Scheduler& scheduler);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_ESTIMATE_TOKEN_SOURCE_H_
