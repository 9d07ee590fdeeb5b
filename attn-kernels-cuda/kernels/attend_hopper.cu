// Entry points of attention forward on sm_90a, named by dtype, depth, queries of a block, and causality.
#include "attend_hopper.cuh"

#define ATTEND_FULL(TYPE, DEPTH, QUERIES, KEYS, STAGES) \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH##_q##QUERIES, Half::TYPE, DEPTH, QUERIES / 64, KEYS, STAGES, false)

#define ATTEND_CAUSAL(TYPE, DEPTH, QUERIES, KEYS, STAGES) \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH##_q##QUERIES##_causal, Half::TYPE, DEPTH, QUERIES / 64, KEYS, STAGES, true)

// Sizes as src/ops/attend/hopper.rs has them.
#define ATTEND_ALL(TYPE)              \
  ATTEND_FULL(TYPE, 64, 192, 128, 3)   \
  ATTEND_CAUSAL(TYPE, 64, 128, 128, 3) \
  ATTEND_CAUSAL(TYPE, 64, 192, 128, 3) \
  ATTEND_FULL(TYPE, 128, 128, 176, 2)  \
  ATTEND_CAUSAL(TYPE, 128, 128, 128, 3) \
  ATTEND_FULL(TYPE, 256, 128, 80, 2)   \
  ATTEND_CAUSAL(TYPE, 256, 128, 80, 2)

ATTEND_ALL(f16)
ATTEND_ALL(bf16)
