// Dense layers and their gradients.
#include "gemm_few.cuh"
#include "gemm_mma.cuh"
#include "gemm_simt.cuh"
#include "sum.cuh"

#define KERNEL(NAME, TYPE, THREADS, BLOCKS, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ TYPE p) { __VA_ARGS__(p); }

#define ORDINARY(NAME, T)                                                  \
  KERNEL(forward_##NAME, Product, 256, 2, Simt<T, false, false, 4>::run)   \
  KERNEL(d_input_##NAME, Product, 256, 2, Simt<T, false, true, 4>::run)    \
  KERNEL(d_kernel_##NAME, Product, 256, 2, Simt<T, true, false, 4>::run)   \
  KERNEL(few_1_##NAME, Product, 256, 4, few_simt<T, 1>)                     \
  KERNEL(few_8_##NAME, Product, 256, 2, few_simt<T, 8>)                     \
  KERNEL(sum_##NAME, Sum, 256, 4, sum<T, T>)

#define TENSOR(NAME, T)                                                             \
  KERNEL(forward_##NAME, Product, 128, 2, Mma<T, false, false, 64, 64, 2, 2>::run)  \
  KERNEL(d_input_##NAME, Product, 128, 2, Mma<T, false, true, 64, 64, 2, 2>::run)   \
  KERNEL(d_kernel_##NAME, Product, 128, 2, Mma<T, true, false, 64, 64, 2, 2>::run)  \
  KERNEL(forward_large_##NAME, Product, 256, 1, Mma<T, false, false, 128, 128, 2, 4>::run) \
  KERNEL(d_input_large_##NAME, Product, 256, 1, Mma<T, false, true, 128, 128, 2, 4>::run)  \
  KERNEL(d_kernel_large_##NAME, Product, 256, 1, Mma<T, true, false, 128, 128, 2, 4>::run) \
  KERNEL(few_##NAME, Product, 256, 1, few_mma<T>)                                   \
  KERNEL(sum_##NAME, Sum, 256, 4, sum<T, T>)                                        \
  KERNEL(sum_##NAME##_f32, Sum, 256, 4, sum<T, float>)                              \
  KERNEL(sum_f32_##NAME, Sum, 256, 4, sum<float, T>)

ORDINARY(f32, float)
KERNEL(forward_large_f32, Product, 256, 2, Simt<float, false, false, 8>::run)
KERNEL(d_input_large_f32, Product, 256, 2, Simt<float, false, true, 8>::run)
KERNEL(d_kernel_large_f32, Product, 256, 2, Simt<float, true, false, 8>::run)
ORDINARY(f64, double)
TENSOR(f16, f16)
TENSOR(bf16, bf16)
KERNEL(sum_f64_f32, Sum, 256, 4, sum<double, float>)
