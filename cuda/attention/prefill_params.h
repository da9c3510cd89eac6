// What the prefill kernel is given, by value.
#ifndef LLMD_CUDA_ATTENTION_PREFILL_PARAMS_H_
#define LLMD_CUDA_ATTENTION_PREFILL_PARAMS_H_

#include "cuda/attention/decode_params.h"

namespace llmd::cuda {

struct PrefillParams {
  DecodeParams common;
  FastDivide group;  // rows to tokens
  int kv_heads, grid;
  int rows_of_part;   // in the workspace
  bool zero_padding;  // here, and not by the decode kernel of a mixed batch
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_PREFILL_PARAMS_H_
