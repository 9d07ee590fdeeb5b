// Dropout's factors, made from their counters as attn_core::dropout says.
#pragma once
#include "scalar.cuh"

struct Words {
  u32 first, second;
};

template <u32 A, u32 B, u32 C, u32 D>
DEVICE void threefry_rounds(u32& x0, u32& x1) {
  x0 += x1, x1 = __funnelshift_l(x1, x1, A) ^ x0;
  x0 += x1, x1 = __funnelshift_l(x1, x1, B) ^ x0;
  x0 += x1, x1 = __funnelshift_l(x1, x1, C) ^ x0;
  x0 += x1, x1 = __funnelshift_l(x1, x1, D) ^ x0;
}

// Threefry-2x32 with 20 rounds.
DEVICE Words threefry(u32 k0, u32 k1, u32 high, u32 low) {
  const u32 k2 = k0 ^ k1 ^ 0x1bd11bdau;
  u32 x0 = high + k0, x1 = low + k1;
  threefry_rounds<13, 15, 26, 6>(x0, x1);
  x0 += k1, x1 += k2 + 1;
  threefry_rounds<17, 29, 16, 24>(x0, x1);
  x0 += k2, x1 += k0 + 2;
  threefry_rounds<13, 15, 26, 6>(x0, x1);
  x0 += k0, x1 += k1 + 3;
  threefry_rounds<17, 29, 16, 24>(x0, x1);
  x0 += k1, x1 += k2 + 4;
  threefry_rounds<13, 15, 26, 6>(x0, x1);
  x0 += k2, x1 += k0 + 5;
  return {x0, x1};
}

// A word of an array whose words are cut into two halves that share a call.
DEVICE u32 halved_word(const Dropout& d, u64 index) {
  const u64 words = d.length * (d.width / 32);
  const u64 half = (words + 1) / 2;
  const u64 first = index < half ? index : index - half;
  const u64 second = first + half;
  const Words both = threefry(d.key[0], d.key[1], u32(first), second < words ? u32(second) : 0);
  return index < half ? both.first : both.second;
}

// Whether the weight of this index is kept.
DEVICE bool is_kept(const Dropout& d, u64 index) {
  if (d.keep_all) return true;
  if (d.split) {
    const u64 word = d.width == 64 ? u64(halved_word(d, index)) << 32 | halved_word(d, d.length + index)
                                   : halved_word(d, index);
    return word < d.limit;
  }
  const Words both = threefry(d.key[0], d.key[1], u32(index >> 32), u32(index));
  return d.width == 64 ? (u64(both.first) << 32 | both.second) < d.limit : (both.first ^ both.second) < u32(d.limit);
}

// Dropout of one matrix of weights.
template <typename A>
struct Dropped {
  u64 first;  // index of the matrix's first weight
  u64 keys;
  A kept, dropped;

  DEVICE Dropped(const Attend& p, u32 matrix)
      : first(p.dropout.matrix * matrix),
        keys(p.key_length),
        kept(A(p.dropout.multiplier)),
        // A rate of 1 makes NaN of every weight, as 0 / 0 does in Flax.
        dropped(kept != kept ? kept : A(0)) {}
};

// Whether hidden keys count too: a rate of 1 makes NaN of their weights, 0, as well.
DEVICE bool drops_all(const Attend& p) { return p.dropout.width != 0 && p.dropout.multiplier != p.dropout.multiplier; }
