// Entry points of the gradients of attention on sm_90a.
#include "attend_backward_hopper.cuh"

#define KERNELS(T, CAUSAL, SUFFIX)                                             \
  KERNEL(queries, T##_d64##SUFFIX, Half::T, 64, 128, 3, true, CAUSAL)                \
  KERNEL(keys, T##_d64##SUFFIX, Half::T, 64, 128, 3, false, CAUSAL)                   \
  KERNEL(queries, T##_d128##SUFFIX, Half::T, 128, 128, 2, false, CAUSAL)              \
  KERNEL(keys, T##_d128##SUFFIX, Half::T, 128, 64, 3, true, CAUSAL)

KERNELS(f16, false, )
KERNELS(f16, true, _causal)
KERNELS(bf16, false, )
KERNELS(bf16, true, _causal)
