// Element types, their accumulators, and the way from one to the other.
#pragma once
#include "params.cuh"

// 16-bit floats are their bits: there are no CUDA headers.
struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

template <typename T>
struct Accumulator {
  typedef float type;
};
template <>
struct Accumulator<double> {
  typedef double type;
};
template <typename T>
using Acc = typename Accumulator<T>::type;

DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(f16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
DEVICE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to the nearest, ties to even.
template <typename T>
DEVICE T narrow(Acc<T> x);
template <>
DEVICE float narrow<float>(float x) {
  return x;
}
template <>
DEVICE double narrow<double>(double x) {
  return x;
}
template <>
DEVICE f16 narrow<f16>(float x) {
  f16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
}
template <>
DEVICE bf16 narrow<bf16>(float x) {
  bf16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
}

// The lowest finite number, Flax's score of a hidden key; minus infinity; not a number.
template <typename A>
struct Special;
template <>
struct Special<float> {
  static DEVICE float lowest() { return __int_as_float(0xff7fffff); }
  static DEVICE float neg_infinity() { return __int_as_float(0xff800000); }
  static DEVICE float nan() { return __int_as_float(0x7fc00000); }
};
template <>
struct Special<double> {
  static DEVICE double lowest() { return __longlong_as_double(0xffefffffffffffffll); }
  static DEVICE double neg_infinity() { return __longlong_as_double(0xfff0000000000000ll); }
  static DEVICE double nan() { return __longlong_as_double(0x7ff8000000000000ll); }
};

DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }
DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
// The larger one; a number rather than NaN.
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE double larger(double a, double b) { return fmax(a, b); }
template <typename A>
DEVICE A finite_or_zero(A m) {
  return m == Special<A>::neg_infinity() ? A(0) : m;
}

// Elements that are loaded and stored together.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};
template <int N, typename T>
DEVICE Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 round_up(u32 x, u32 multiple) { return (x + multiple - 1) / multiple * multiple; }
DEVICE u32 blocks_of(u32 x, u32 size) { return (x + size - 1) / size; }
