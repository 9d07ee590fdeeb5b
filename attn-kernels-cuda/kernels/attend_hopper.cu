// Entry points of attention forward on sm_90a.
#include "attend_hopper.cuh"

#define ATTEND_BOTH(TYPE, DEPTH, GROUPS, KEYS, CAUSAL_GROUPS, CAUSAL_KEYS, TURNS)                          \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH, Half::TYPE, DEPTH, GROUPS, KEYS, false, true, TURNS)             \
  ATTEND(attend_hopper_##TYPE##_d##DEPTH##_causal, Half::TYPE, DEPTH, CAUSAL_GROUPS, CAUSAL_KEYS, true, true, TURNS)

#define ATTEND_DEPTHS(TYPE)                        \
  ATTEND_BOTH(TYPE, 64, 3, 128, 3, 128, true)      \
  ATTEND_BOTH(TYPE, 128, 2, 176, 2, 128, true)     \
  ATTEND_BOTH(TYPE, 256, 2, 80, 2, 80, false)

ATTEND_DEPTHS(f16)
ATTEND_DEPTHS(bf16)
