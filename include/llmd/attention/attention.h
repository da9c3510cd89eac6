/* Paged attention: plan once a step, run once a layer.

   Query row i of a request with n new tokens and L tokens in all sits at position p = L - n + i. It sees key
   j if j <= p and, with a window W > 0, j > p - W (W counts the query's own key). A row that sees nothing
   gets O = 0 and LSE = -inf. LSE is the natural logarithm of the sum of exp(score), score = scale * q.k;
   partial results of disjoint key sets can be merged by llmd_merge_states_args.

   Use: ask for workspace_bytes(shape), allocate, init_workspace once; then for every step plan() with the
   step's lengths, and attention() for each layer of the same shape. All of it may be captured in a CUDA
   graph: nothing on the host depends on lengths, tables or the batch's fill, so the captured graph stays
   right when they change. A workspace serves one stream at a time. Layers with another window or other head
   counts need a workspace of their own. */
#ifndef LLMD_ATTENTION_ATTENTION_H_
#define LLMD_ATTENTION_ATTENTION_H_

#include "llmd/attention/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum llmd_attention_mode {
  LLMD_DECODE = 0,  /* every request has one new token; q_start is not read */
  LLMD_PREFILL = 1, /* any number of new tokens a request */
  LLMD_MIXED = 2    /* requests with one new token take the decode kernel, the others the prefill kernel */
} llmd_attention_mode;

/* What a workspace is made for. */
typedef struct llmd_attention_shape {
  llmd_attention_mode mode;
  int32_t max_batch;
  int32_t max_tokens; /* of all requests together in one call; not read in LLMD_DECODE */
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  llmd_dtype kv_dtype;
  int32_t page_size;
  int32_t window; /* <= 0: none */
  /* 0: work is cut so that it fills the device (the cuts depend on the whole batch). > 0: every request is
     cut at multiples of this many keys (a multiple of 64), so that its result does not depend on its
     neighbours, bit for bit; max_kv_tokens then bounds the sum of all lengths. */
  int32_t fixed_split;
  int64_t max_kv_tokens;
} llmd_attention_shape;

/* What changes from step to step. batch <= max_batch; requests beyond a graph's fill have length 0. */
typedef struct llmd_plan_args {
  llmd_attention_shape shape;
  int32_t batch;
  llmd_page_list pages;
  const int32_t* q_start; /* [batch + 1] prefix sums of n; null in LLMD_DECODE */
  void* workspace;
  size_t workspace_bytes;
} llmd_plan_args;

enum {
  /* Page ids, lengths and slots are checked on the device before use: a bad one counts as masked, is never
     dereferenced and is reported by check_workspace(). */
  LLMD_VALIDATE = 1,
  /* Rows of q past q_start[batch] get O = 0 and LSE = -inf; without it they are left untouched. */
  LLMD_ZERO_PADDING = 2,
  /* The decode kernel may start while the kernel before it on the stream ends (programmatic dependent launch,
     from sm_90 on): it then reads the plan, q_start, the page lists, the scales and all keys and values but
     each request's newest before it waits for that kernel. So that kernel must write none of these; q and
     the newest token's key and value it may. If that kernel was started early itself, it must let this one
     start only when it has waited for what is before it, as these kernels do. */
  LLMD_EARLY_START = 4
};

typedef struct llmd_attention_args {
  llmd_attention_shape shape; /* as planned */
  int32_t batch;
  int32_t num_tokens; /* rows of q: batch in LLMD_DECODE, else at least q_start[batch] (not checked) */
  const void* q;      /* [T, Hq, D] */
  llmd_token_strides q_strides;
  llmd_dtype q_dtype; /* BF16 or F16: that of the cache, either for an E4M3 cache */
  void* o;            /* [T, Hq, D] */
  llmd_token_strides o_strides;
  llmd_dtype o_dtype; /* BF16, F16 or F32 */
  float* lse;         /* [T, Hq], may be null */
  llmd_token_strides lse_strides;
  const int32_t* q_start;
  llmd_kv_cache cache;
  llmd_page_list pages;
  float scale;        /* usually 1 / sqrt(D) */
  const float* sinks; /* [Hq] natural units, may be null: adds exp(sink) to the row's denominator */
  uint32_t flags;
  void* workspace;
  size_t workspace_bytes;
} llmd_attention_args;

typedef enum llmd_data_error_kind {
  LLMD_DATA_OK = 0,
  LLMD_BAD_PAGE = 1,   /* index: position of the page in the request's list */
  LLMD_BAD_LENGTH = 2, /* index: 0 */
  LLMD_BAD_SLOT = 3    /* index: 0 */
} llmd_data_error_kind;

/* The first bad element that validated mode met since init_workspace or the last check. */
typedef struct llmd_data_error {
  llmd_data_error_kind kind;
  int32_t request; /* for slots: the token */
  int32_t index;
  int64_t value;
} llmd_data_error;

/* Merges partial attention results of the same queries over disjoint keys. Token t has parts part_start[t]
   .. part_start[t + 1] - 1 of `partial_o` [parts, Hq, D] and `partial_lse` [parts, Hq]; with part_start null,
   part s of token t is row s * num_tokens + t of num_parts parts each. Parts are summed in index order. An
   LSE of -inf, or of +inf as some kernels give, marks an empty part. */
typedef struct llmd_merge_states_args {
  const void* partial_o; /* [parts, Hq, D], contiguous */
  const float* partial_lse;
  llmd_dtype partial_dtype;
  int32_t num_tokens;
  int32_t num_heads;
  int32_t head_dim;
  int32_t num_parts;
  const int32_t* part_start; /* [num_tokens + 1], device */
  void* o;                   /* [T, Hq, D] */
  llmd_token_strides o_strides;
  llmd_dtype o_dtype;
  float* lse; /* [T, Hq], may be null */
  llmd_token_strides lse_strides;
} llmd_merge_states_args;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_ATTENTION_H_ */
