/* A CUDA library without CUDA, for tests: its functions note what they are called with. ABI is its number;
   with WITHOUT_ENTRY it is no library of ours; with DRIVER it is the CUDA driver, whose current device is a
   variable. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "llmd/attention/backend.h"

#ifdef DRIVER
int fake_device = 0;
int fake_error = 0;
int cuCtxGetDevice(int* device) {
  *device = fake_device;
  return fake_error;
}
#elif !defined(WITHOUT_ENTRY)

typedef struct Note {
  char function[32];
  uint64_t stream;
  uint64_t pointers[4];
  int64_t numbers[8];
  uint32_t calls;
} Note;

Note fake_note;
int fake_code = LLMD_OK;

static llmd_code Noted(const char* function, llmd_stream stream) {
  uint32_t calls = fake_note.calls + 1;
  memset(&fake_note, 0, sizeof fake_note);
  strncpy(fake_note.function, function, sizeof fake_note.function - 1);
  fake_note.stream = (uint64_t)(uintptr_t)stream;
  fake_note.calls = calls;
  return (llmd_code)fake_code;
}
static uint64_t P(const void* pointer) { return (uint64_t)(uintptr_t)pointer; }

static const char* LastError(void) { return "the fake fails"; }

static llmd_code AppendKv(const llmd_append_kv_args* args, llmd_stream stream) {
  llmd_code code = Noted("append_kv", stream);
  uint64_t pointers[] = {P(args->cache.k), P(args->k), P(args->slots), P(args->error)};
  int64_t numbers[] = {
      args->k_strides.token,      args->k_strides.head, args->num_tokens,         args->cache.num_pages,
      args->cache.k_strides.page, args->cache.dtype,    args->cache.scale_stride, args->dtype};
  memcpy(fake_note.pointers, pointers, sizeof pointers);
  memcpy(fake_note.numbers, numbers, sizeof numbers);
  return code;
}
static llmd_code CopyBlocks(const llmd_copy_blocks_args* args, llmd_stream stream) {
  (void)args;
  return Noted("copy_blocks", stream);
}
static llmd_code Gather(const llmd_gather_blocks_args* args, llmd_stream stream) {
  llmd_code code = Noted("gather_blocks", stream);
  fake_note.pointers[0] = P(args->staging);
  return code;
}
static llmd_code Scatter(const llmd_gather_blocks_args* args, llmd_stream stream) {
  (void)args;
  return Noted("scatter_blocks", stream);
}
static size_t WorkspaceBytes(const llmd_attention_shape* shape) { return shape->head_dim == 128 ? 1024 : 0; }
static llmd_code InitWorkspace(void* workspace, size_t bytes, llmd_stream stream) {
  llmd_code code = Noted("init_workspace", stream);
  fake_note.pointers[0] = P(workspace);
  fake_note.numbers[0] = (int64_t)bytes;
  return code;
}
static llmd_code Plan(const llmd_plan_args* args, llmd_stream stream) {
  llmd_code code = Noted("plan", stream);
  fake_note.pointers[0] = P(args->pages.pages);
  fake_note.numbers[0] = args->batch;
  fake_note.numbers[1] = args->pages.row_stride;
  fake_note.numbers[2] = args->pages.max_pages;
  return code;
}
static llmd_code Attention(const llmd_attention_args* args, llmd_stream stream) {
  llmd_code code = Noted("attention", stream);
  fake_note.pointers[0] = P(args->q);
  fake_note.pointers[1] = P(args->lse);
  fake_note.numbers[0] = args->flags;
  fake_note.numbers[1] = args->q_dtype;
  fake_note.numbers[2] = args->o_dtype;
  return code;
}
static llmd_code CheckWorkspace(void* workspace, llmd_data_error* error, llmd_stream stream) {
  llmd_code code = Noted("check_workspace", stream);
  fake_note.pointers[0] = P(workspace);
  if (code == LLMD_BAD_DATA) *error = (llmd_data_error){LLMD_BAD_PAGE, 1, 2, 3};
  return code;
}
#define SIMPLE(Function, name)                                      \
  static llmd_code Function(const void* args, llmd_stream stream) { \
    (void)args;                                                     \
    return Noted(name, stream);                                     \
  }
SIMPLE(MergeStates, "merge_states")
SIMPLE(Rope, "rope")
SIMPLE(RopeAppend, "rope_append")
SIMPLE(RmsNorm, "rms_norm")
SIMPLE(SiluAndMul, "silu_and_mul")
SIMPLE(Sample, "sample")

static llmd_attention_backend table;

const llmd_attention_backend* llmd_attention_cuda(void) {
#if ABI == LLMD_ATTENTION_ABI
  table.name = "cuda";
  table.last_error = LastError;
  table.append_kv = AppendKv;
  table.copy_blocks = CopyBlocks;
  table.gather_blocks = Gather;
  table.scatter_blocks = Scatter;
  table.workspace_bytes = WorkspaceBytes;
  table.init_workspace = InitWorkspace;
  table.plan = Plan;
  table.attention = Attention;
  table.check_workspace = CheckWorkspace;
  table.merge_states = (llmd_code(*)(const llmd_merge_states_args*, llmd_stream))(void*)MergeStates;
  table.rope = (llmd_code(*)(const llmd_rope_args*, llmd_stream))(void*)Rope;
  table.rope_append = (llmd_code(*)(const llmd_rope_append_args*, llmd_stream))(void*)RopeAppend;
  table.rms_norm = (llmd_code(*)(const llmd_rms_norm_args*, llmd_stream))(void*)RmsNorm;
  table.silu_and_mul = (llmd_code(*)(const llmd_silu_and_mul_args*, llmd_stream))(void*)SiluAndMul;
  table.sample = (llmd_code(*)(const llmd_sample_args*, llmd_stream))(void*)Sample;
#endif
  table.abi = ABI; /* nothing else of another version may be read */
  return &table;
}
#endif
