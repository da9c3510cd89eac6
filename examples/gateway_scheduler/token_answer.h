// Reads what a worker's tokenizer answers. The answer is untrusted: ids must be whole numbers from 0 to
// 2^32-1. Free functions, any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TOKEN_ANSWER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TOKEN_ANSWER_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"

namespace llmd::host {

// Of /tokenize: {"count":2,"tokens":[1,2]}. A count that is not that of the tokens is an error.
absl::StatusOr<std::vector<TokenId>> ReadTokenizeAnswer(std::string_view json);
// Of /v1/chat/completions/render, {"token_ids":[1,2]}, and of /v1/completions/render, a list of these.
absl::StatusOr<std::vector<std::vector<TokenId>>> ReadRenderAnswer(std::string_view json);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TOKEN_ANSWER_H_
