// Entry points of attention forward on sm_90a.
#include "attend_hopper.cuh"

#define ATTEND_BOTH(TYPE, DEPTH, GROUPS, KEYS, CAUSAL_KEYS, STAGES)                                 \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH, Half::TYPE, DEPTH, GROUPS, KEYS, STAGES, false)           \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH##_causal, Half::TYPE, DEPTH, GROUPS, CAUSAL_KEYS, STAGES, true)

// Sizes as src/ops/attend/hopper.rs has them.
#define ATTEND_DEPTHS(TYPE)              \
  ATTEND_BOTH(TYPE, 64, 3, 128, 128, 2)  \
  ATTEND_BOTH(TYPE, 128, 2, 176, 128, 2) \
  ATTEND_BOTH(TYPE, 256, 2, 80, 80, 2)

ATTEND_DEPTHS(f16)
ATTEND_DEPTHS(bf16)
