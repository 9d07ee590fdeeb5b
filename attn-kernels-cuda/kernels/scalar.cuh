// Element types: 16-bit floats are their bits, arithmetic is done in the accumulator's type.
#pragma once

#include "params.cuh"

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

template <typename T> struct Scalar {
  using Acc = T;
  static DEVICE T widen(T x) { return x; }
  static DEVICE T narrow(T x) { return x; }
};

template <> struct Scalar<f16> {
  using Acc = float;
  static DEVICE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
  }
  static DEVICE f16 narrow(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};

template <> struct Scalar<bf16> {
  using Acc = float;
  static DEVICE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
  static DEVICE bf16 narrow(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};

template <typename T> using Acc = typename Scalar<T>::Acc;
