/* Choosing the next token from logits. Device memory, asynchronous, safe in graphs. */
#ifndef LLMD_ATTENTION_SAMPLING_H_
#define LLMD_ATTENTION_SAMPLING_H_

#include "llmd/attention/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For each row of logits [B, vocab]: divide by the temperature (0: take the greatest logit, the lowest id of
   equals), then keep what passes, in this order, min_p (probability >= min_p * greatest; 0: all, > 1: as 1),
   top_k (the k most probable, lowest ids of equals; <= 0: all), and top_p (the smallest set of most probable
   tokens, lowest ids of equals, at least one, whose share of what is left reaches p; >= 1: all), and draw
   from it in proportion: with u in [0, 1), the token is the first, in the order of ids, at which the sum of
   what is kept exceeds u times all of it. u = (w >> 8) / 2^24, where w is the first word of Philox4x32-10
   with key `seed` and counter (request_ids[b], steps[b]), low words first: a row's token depends on nothing
   else, and not on its place in the batch. Arrays [B] in device memory; a null array means the neutral value
   for every row (temperature 1). NaN logits count as -inf; a row without a finite logit gives token -1 and
   logprob NaN. */
typedef struct llmd_sample_args {
  const void* logits;
  llmd_dtype dtype; /* F32, F16 or BF16 */
  int64_t row_stride;
  int32_t batch;
  int32_t vocab;
  const float* temperature;
  const float* min_p;
  const int32_t* top_k;
  const float* top_p;
  uint64_t seed;
  const uint64_t* request_ids; /* null: the row number */
  const uint64_t* steps;       /* null: 0 */
  int32_t* tokens;             /* [B] */
  /* [B] ln of the token's probability after temperature (0: as with 1), before filters; may be null. */
  float* logprobs;
} llmd_sample_args;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* LLMD_ATTENTION_SAMPLING_H_ */
