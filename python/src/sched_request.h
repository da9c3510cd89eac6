// Requests that own what sched::Request refers to, and the hashing of their prompts.
#ifndef LLMD_PYTHON_SRC_SCHED_REQUEST_H_
#define LLMD_PYTHON_SRC_SCHED_REQUEST_H_

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/prefix_plan.h"
#include "llmd/sched/request.h"

namespace llmd::python {

using sched::PrefixPlan;

// Immutable once made; its views point into itself.
class OwnedPrompt {
 public:
  struct Item {
    std::string modality, hash;
    std::size_t offset = 0, length = 0;
  };
  struct Chain {
    index::NamespaceId ns;
    std::uint32_t block_size = 0;
    std::vector<BlockKey> keys;
  };

  OwnedPrompt(std::vector<TokenId> tokens, std::size_t token_count, std::vector<Chain> chains,
              std::vector<Item> items);
  OwnedPrompt(const OwnedPrompt&) = delete;
  OwnedPrompt& operator=(const OwnedPrompt&) = delete;

  const sched::Prompt& view() const { return view_; }
  const std::vector<Chain>& chains() const { return chains_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }

 private:
  std::vector<TokenId> tokens_;
  std::vector<Chain> chains_;
  std::vector<Item> items_;
  std::vector<sched::KeyChain> chain_views_;
  std::vector<sched::MultimodalItem> item_views_;
  sched::Prompt view_;
};

// The chains that `plan` wants of the tokens. Takes as long as hashing takes; needs no GIL.
std::vector<OwnedPrompt::Chain> MakeChains(const PrefixPlan& plan, const std::string& model,
                                           const std::string& lora, const std::string& cache_salt,
                                           std::uint32_t engine_block_size, TokenSpan tokens,
                                           const std::vector<OwnedPrompt::Item>& items);

class OwnedRequest {
 public:
  struct Fields {
    std::string id, model, fairness_id;
    std::int32_t priority = 0;
    std::size_t size_bytes = 0;
    std::optional<std::uint32_t> max_output_tokens;
    std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
    std::vector<std::shared_ptr<const OwnedPrompt>> prompts;
  };

  explicit OwnedRequest(Fields fields);
  OwnedRequest(const OwnedRequest&) = delete;
  OwnedRequest& operator=(const OwnedRequest&) = delete;

  const sched::Request& view() const { return view_; }

 private:
  Fields fields_;
  std::vector<sched::Header> headers_;
  std::vector<sched::Prompt> prompts_;
  sched::Request view_;
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_REQUEST_H_
