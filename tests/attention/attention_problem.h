// Attention problems for tests: made from a seed, hostile where the interface allows it, run on any CPU
// backend and compared with the reference.
//
// Everything a kernel must not use is poison: cache slots and pages that hold no token are NaN, page ids that
// must not be read are invalid, outputs are NaN before a run, and the memory around them is checked after it.
#ifndef LLMD_TESTS_ATTENTION_ATTENTION_PROBLEM_H_
#define LLMD_TESTS_ATTENTION_ATTENTION_PROBLEM_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "llmd/attention/backend.h"

namespace llmd::attention {

enum class Layout { kNhd, kHnd, kNhdPacked, kHndPacked, kRows };  // as in types.h

struct Request32 {
  int32_t length;
  int32_t rows = 1;  // new tokens
};

struct Case {
  llmd_attention_mode mode = LLMD_DECODE;
  llmd_dtype kv_dtype = LLMD_BF16;
  llmd_dtype q_dtype = LLMD_BF16;
  llmd_dtype o_dtype = LLMD_BF16;
  int32_t group = 4;  // query heads a KV head
  int32_t kv_heads = 2;
  int32_t head_dim = 64;
  int32_t page_size = 16;
  Layout layout = Layout::kNhd;
  bool csr = false;
  int32_t window = 0;
  bool sinks = false;
  bool lse = true;
  int32_t fixed_split = 0;
  float peak = 1;            // factor on queries: large values make one key win
  bool head_scales = false;  // fp8: a scale a head instead of one in all
  uint32_t flags = 0;
  int32_t padding_rows = 0;  // rows of q past the last request's
  std::vector<Request32> requests;
};

std::string Describe(const Case& c);

// A pool of pages in some layout, all NaN.
class Cache {
 public:
  Cache(Layout layout, llmd_dtype dtype, int64_t pages, int32_t page_size, int32_t heads, int32_t dim);

  llmd_kv_cache view() const { return view_; }
  llmd_kv_cache& mutable_view() { return view_; }
  std::vector<char>& bytes() { return bytes_; }

 private:
  std::vector<char> bytes_;
  llmd_kv_cache view_ = {};
};

struct Result {
  std::vector<float> o;    // [T, Hq, D]
  std::vector<float> lse;  // [T, Hq]
  llmd_code code = LLMD_OK;
  std::string error;
};

class Problem {
 public:
  Problem(const Case& c, uint32_t seed);

  const Case& config() const { return case_; }
  int32_t num_tokens() const { return num_tokens_; }
  int32_t num_heads() const { return case_.group * case_.kv_heads; }
  int32_t row_tokens(size_t request) const { return q_start_[request + 1] - q_start_[request]; }
  llmd_attention_shape shape() const;
  // Arguments without outputs and workspace, pointing into this object.
  llmd_attention_args args() const;

  // Page ids of a request, to be spoiled by tests.
  int32_t* pages(size_t request);
  std::vector<int32_t>& seq_lens() { return seq_lens_; }
  std::vector<int32_t>& last_page_len() { return last_page_len_; }
  std::vector<int32_t>& indptr() { return indptr_; }

  // Plans and runs. An error of the harness's own checks (memory around the outputs changed) is in
  // Result::error.
  Result Run(const llmd_attention_backend& backend) const;
  Result Run(const llmd_attention_backend& backend, std::vector<char>& workspace) const;

 private:
  void Fill(std::mt19937& random);

  Case case_;
  int32_t num_tokens_ = 0;  // rows of q, padding included
  Cache cache_;
  int32_t row_stride_ = 0;
  std::vector<int32_t> table_, indptr_, seq_lens_, last_page_len_, q_start_;
  std::vector<char> q_;
  llmd_token_strides q_strides_;
  std::vector<float> sinks_, k_scales_, v_scales_;
};

// Empty if `got` agrees with the reference's `want` within what the formats allow (2e-3 relative a row in
// bf16, ...).
std::string Compare(const Problem& problem, const Result& got, const Result& want);

// A workspace of a shape, initialized.
std::vector<char> NewWorkspace(const llmd_attention_backend& backend, const llmd_attention_shape& shape);

}  // namespace llmd::attention

#endif  // LLMD_TESTS_ATTENTION_ATTENTION_PROBLEM_H_
