// What is measured: one list of cases for the C++ program and, through `bench_attention --list`, for
// peers.py.
#ifndef BENCH_ATTENTION_CASES_H_
#define BENCH_ATTENTION_CASES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "llmd/attention/types.h"

namespace llmd::bench {

struct AttentionCase {
  std::string part;  // "decode", "sweep", "mixes" or "prefill"
  std::string name;  // part/model/..., unique
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_size = 16;
  bool hnd = false;
  llmd_dtype kv_dtype = LLMD_BF16;
  int window = 0;
  std::vector<std::int32_t> kv_lens;   // with the new tokens
  std::vector<std::int32_t> new_lens;  // of 1 in decode
  int priority = 0;                    // 0: also in the quick grid

  bool prefill() const { return part == "prefill"; }
  int batch() const { return static_cast<int>(kv_lens.size()); }
  std::int64_t num_tokens() const;
  int element_bytes() const { return kv_dtype == LLMD_E4M3 ? 1 : 2; }
  std::int64_t token_bytes() const;  // K and V of one token in one layer
  std::int64_t kv_bytes() const;     // read in one call: visible tokens only
  double flop() const;               // of the two products, causal and within the window
  // First token of request b that may be read, and the pages from its page on.
  std::int64_t first_token(int b) const;
  std::int64_t first_page(int b) const { return first_token(b) / page_size; }
  std::int64_t end_page(int b) const { return (kv_lens[b] + page_size - 1) / page_size; }
  std::int64_t num_pages() const;  // that hold visible tokens
};

// The grid of the specification's sections 4 and 5. Quick keeps cases of priority 0.
std::vector<AttentionCase> AttentionCases(bool full, std::int64_t max_bytes);

// One JSON object, with the lengths.
std::string ToJson(const AttentionCase& c);

}  // namespace llmd::bench

#endif  // BENCH_ATTENTION_CASES_H_
