// How products of queries and keys become powers of 2, in f32, for 16-bit dtypes.
//
// Plain calls keep the products as they are: m is the largest product, a weight 2^(product * factor - m * factor), one fused
// operation, with log2(e) and the scale in the factor. A hidden key has -2^120 for a product: a power of 2, so that both
// terms are exact and a row that sees nothing has 2^0 = 1 for each key.
//
// A bias, or a factor that is not positive or far from 1, needs the scores themselves: a weight is 2^((score - m) * log2(e)), a
// hidden key has Flax's fill value. Both ways are told apart by the call alone, so a row has the same bits in every kernel.
#pragma once
#include "params.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -3.4028234663852886e38f;
constexpr float HIDDEN_PRODUCT = -1.329227995784916e36f;
#define INFINITE __int_as_float(0x7f800000)

// What is taken from the numbers of a row: from scores the largest one, from exponents that of the largest product.
struct Shift {
  float first, second;
};

// SCORES: whether the call may need the scores themselves.
template <bool SCORES>
struct Exponents {
  float scale, factor;
  float hidden;  // what stands for a key that is not seen
  bool scores;

  DEVICE explicit Exponents(const Attend& p) {
    scale = float(p.scale);
    factor = float(p.scale * 1.4426950408889634);
    // src/ops/attend/mma.rs has the same bounds.
    scores = SCORES && (p.bias.address != 0 || !(factor >= 8.271806125530277e-25f && factor <= 128.f));
    if (scores) factor = LOG2_E;
    hidden = p.zero_if_blind ? -INFINITE : scores ? LOWEST : HIDDEN_PRODUCT;
  }

  // The score that a product and a bias make, where scores are needed.
  DEVICE float score(float product, float bias) const { return __fmaf_rn(product, scale, bias); }

  DEVICE Shift shift(float largest) const {
    const float safe = largest == -INFINITE ? 0.f : largest;
    if (SCORES && scores) return {safe, 0.f};
    return {0.f, __fmul_rn(safe, factor)};
  }

  DEVICE float of(float x, Shift by) const { return __fmaf_rn(SCORES ? __fsub_rn(x, by.first) : x, factor, -by.second); }

  // The exponent of what sums made beside the largest number so far are multiplied with: exactly 0 if it stays the largest, so a
  // tile of hidden keys changes nothing.
  DEVICE float rescaling(float largest, Shift by) const {
    if (SCORES && scores) return of(largest, by);
    return __fsub_rn(__fmul_rn(largest, factor), by.second);
  }

  // The largest score of a row, as statistics have it.
  DEVICE float natural(float largest) const {
    if (scores) return largest;
    return largest == HIDDEN_PRODUCT ? LOWEST : __fmul_rn(largest, scale);
  }
};
