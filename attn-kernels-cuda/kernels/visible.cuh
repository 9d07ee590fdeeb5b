// Which keys a query sees, and what scores become by it and by the bias.
#pragma once
#include "tile.cuh"

// How many keys, from the first on, the causal mask lets a query see.
DEVICE u32 reach_of(const Attend& p, u32 query) {
  if (!p.causal) return p.key_length;
  const i64 end = i64(query) + p.shift + 1;
  return end <= 0 ? 0 : end < i64(p.key_length) ? u32(end) : p.key_length;
}

// The first query that the causal mask lets see a key; query_length if there is none.
DEVICE u32 first_query_of(const Attend& p, u32 key) {
  if (!p.causal) return 0;
  const i64 first = i64(key) - p.shift;
  return first <= 0 ? 0 : first < i64(p.query_length) ? u32(first) : p.query_length;
}

// Whether a query may see nothing and yet have weights, the same for every key.
DEVICE bool may_be_blind(const Attend& p) {
  return !p.zero_if_blind && (p.mask.address != 0 || p.bias.address != 0 || reach_of(p, 0) == 0);
}

// Elements of a tile that exist, and those whose query sees their key: one bit each.
struct Sight {
  u32 exists, seen;
};

// Mask and bias of one matrix of scores.
template <typename A>
struct Scoring {
  const u8* mask;
  const A* bias;

  DEVICE Scoring(const Attend& p, u32 entry, u32 head)
      : mask(p.mask.address ? head_of<const u8>(p.mask, p.batch, entry, head) : nullptr),
        bias(p.bias.address ? head_of<const A>(p.bias, p.batch, entry, head) : nullptr) {}

  template <bool TURNED>
  DEVICE Sight sight(const Attend& p, const Frame<TURNED>& frame) const {
    constexpr u32 ALL = (1u << ELEMENTS) - 1;
    const Place last = frame[ELEMENTS - 1];
    const bool exist = last.query < p.query_length && last.key < p.key_length;
    if (exist && mask == nullptr && (!p.causal || i64(last.key) <= i64(frame.query) + p.shift)) return {ALL, ALL};
    Sight sight = {0, 0};
#pragma unroll 1
    for (u32 n = 0; n < ELEMENTS; n++) {
      const Place at = frame[n];
      if (at.query >= p.query_length || at.key >= p.key_length) continue;
      sight.exists |= 1u << n;
      if (p.causal && i64(at.key) > i64(at.query) + p.shift) continue;
      const bool kept =
          mask == nullptr || (mask[i64(at.query) * p.mask.row + i64(at.key) * p.mask.column] != 0) == (p.set_means_keep != 0);
      sight.seen |= u32(kept) << n;
    }
    return sight;
  }

  // Products of scaled queries and keys become scores: -inf where there is no key.
  template <bool TURNED>
  DEVICE void adjust(Square<A>& s, const Attend& p, const Frame<TURNED>& frame, const Sight& sight) const {
    if (bias != nullptr) {
      const i64 row = TURNED ? p.bias.column : p.bias.row, column = LANES * (TURNED ? p.bias.row : p.bias.column);
      const A* first = bias + i64(frame.query) * p.bias.row + i64(frame.key) * p.bias.column;
#pragma unroll
      for (u32 n = 0; n < ELEMENTS; n++)
        if (sight.seen >> n & 1) s[n] += first[n / 4 * row + n % 4 * column];
    }
    const A hidden = p.zero_if_blind ? Special<A>::neg_infinity() : Special<A>::lowest();
#pragma unroll
    for (u32 n = 0; n < ELEMENTS; n++)
      if (!(sight.seen >> n & 1)) s[n] = sight.exists >> n & 1 ? hidden : Special<A>::neg_infinity();
  }
};
