// What the snippets of docs/attention.md stand in: a decode worker with tensors of its own.
#include <cstdint>
#include <vector>

#include "llmd/attention/paged_attention.h"

using namespace llmd::attention;  // NOLINT

extern "C" int cudaMalloc(void** memory, size_t bytes);
extern "C" int cudaFree(void* memory);

const llmd_attention_backend* backend;
llmd_attention_shape shape;
llmd_page_list pages;
llmd_stream stream;
int32_t batch;
struct Layer {
  llmd_kv_cache cache;
  const void* q;
  void* o;
  llmd_token_strides strides;
};
std::vector<Layer> layers;
void Log(const absl::Status& status);
