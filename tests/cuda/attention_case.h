// Random paged-attention problems for two backends at once: the same bytes in host memory for the reference
// and on the device for the kernels. Whatever may not be read holds NaN or invalid page ids, and outputs
// stand between guards.
#ifndef LLMD_TESTS_CUDA_ATTENTION_CASE_H_
#define LLMD_TESTS_CUDA_ATTENTION_CASE_H_

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "llmd/attention/backend.h"
#include "tests/cuda/pool.h"
#include "tests/cuda/support.h"

namespace llmd::testing {

struct CaseOptions {
  llmd_attention_mode mode = LLMD_DECODE;
  int kv_heads = 2, group = 4, head_dim = 128, page_size = 16;
  Layout layout = Layout::kNhd;
  llmd_dtype kv_dtype = LLMD_BF16, q_dtype = LLMD_BF16, o_dtype = LLMD_BF16;
  std::vector<int> lengths = {100};  // keys of each request
  std::vector<int> queries = {};     // new tokens of each; empty: one each
  int window = 0, fixed_split = 0;
  bool sinks = false, lse = true, csr = false, validate = false, zero_padding = false;
  bool scale_per_head = false;  // of fp8
  double peak = 1;              // spread of the scores
  int padding_rows = 0;         // rows of q past the requests
  int max_batch = 0;            // of the workspace; 0: as many as there are
  unsigned seed = 1;
  std::string Name() const;
};

// One memory space's copy of a problem.
struct CaseMemory {
  llmd_attention_args args;
  llmd_plan_args plan;
  std::unique_ptr<Buffer> workspace;
};

class AttentionCase {
 public:
  explicit AttentionCase(const CaseOptions& options);
  ~AttentionCase();
  AttentionCase(const AttentionCase&) = delete;

  // Runs the kernels (plan and attention) on the case's stream; outputs are poisoned before.
  llmd_code RunDevice();
  // Computes what is right; then compares what RunDevice left. Empty if all is well, else what is wrong.
  std::string Compare();
  // New lengths within the pages that the case has, for the same addresses.
  void ChangeLengths(const std::vector<int>& lengths);

  void PoisonOutputs();
  std::vector<unsigned char> DeviceOutput();  // o and lse, as bytes
  CaseMemory& device() { return device_; }
  CaseMemory& host() { return host_; }
  llmd_stream stream() const { return stream_; }
  const std::vector<int>& lengths() const { return lengths_; }
  std::vector<int>& host_pages() { return pages_; }
  void UploadPages();

 private:
  void SetArguments(CaseMemory& memory, Side side, const llmd_attention_shape& shape, int tokens,
                    int columns);
  void PoisonHostOutputs();

  CaseOptions options_;
  std::vector<int> lengths_, pages_;
  std::mt19937_64 random_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Buffer> q_, o_, lse_, table_, seq_lens_, indptr_, last_, q_start_, sinks_;
  CaseMemory host_{}, device_{};
  llmd_stream stream_ = nullptr;
};

}  // namespace llmd::testing

#endif  // LLMD_TESTS_CUDA_ATTENTION_CASE_H_
