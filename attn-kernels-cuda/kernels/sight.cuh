// Tiles of products become tiles of scores: which of their elements there are, which are seen, which are kept.
//
// Answers are bits, one for each element of a thread, found one by one: the code of masks and of dropout's words is long.
#pragma once
#include "dropout.cuh"
#include "tile.cuh"
#include "visible.cuh"

// A weight of a matrix.
struct Place {
  u32 query, key;
};

// Where the elements of a thread lie in a matrix of weights: of tiles whose rows are queries, or keys if TURNED.
template <bool TURNED>
struct Frame {
  u32 query, key;  // of the thread's first element

  // `row` and `column` are those of the tile's first element.
  DEVICE Frame(const Thread& thread, u32 row, u32 column)
      : query(TURNED ? column + thread.lane : row + thread.row), key(TURNED ? row + thread.row : column + thread.lane) {}

  DEVICE Place operator[](u32 n) const {
    const u32 down = n / 4, across = n % 4 * LANES;
    return {query + (TURNED ? across : down), key + (TURNED ? down : across)};
  }
};

// Elements of a tile that exist, and those whose query sees their key.
struct Sight {
  u32 exists, seen;
};

template <bool TURNED, typename A>
DEVICE Sight sight_of(const Attend& p, const Scoring<A>& scoring, const Frame<TURNED>& frame) {
  constexpr u32 ALL = (1u << ELEMENTS) - 1;
  const Place last = frame[ELEMENTS - 1];
  const bool exist = last.query < p.query_length && last.key < p.key_length;
  if (exist && scoring.mask == nullptr && (!p.causal || i64(last.key) <= i64(frame.query) + p.shift)) return {ALL, ALL};
  Sight sight = {0, 0};
#pragma unroll 1
  for (u32 n = 0; n < ELEMENTS; n++) {
    const Place at = frame[n];
    if (at.query >= p.query_length || at.key >= p.key_length) continue;
    sight.exists |= 1u << n;
    sight.seen |= u32(scoring.sees(p, at.query, at.key)) << n;
  }
  return sight;
}

// Products of scaled queries and keys become scores: -inf where there is no key.
template <bool TURNED, typename A>
DEVICE void adjust(Square<A>& s, const Attend& p, const Scoring<A>& scoring, const Frame<TURNED>& frame, const Sight& sight) {
  if (scoring.bias != nullptr) {
    const i64 row = TURNED ? p.bias.column : p.bias.row, column = LANES * (TURNED ? p.bias.row : p.bias.column);
    const A* first = scoring.bias + i64(frame.query) * p.bias.row + i64(frame.key) * p.bias.column;
#pragma unroll
    for (u32 n = 0; n < ELEMENTS; n++)
      if (sight.seen >> n & 1) s[n] += first[n / 4 * row + n % 4 * column];
  }
#pragma unroll
  for (u32 n = 0; n < ELEMENTS; n++)
    if (!(sight.seen >> n & 1)) s[n] = sight.exists >> n & 1 ? scoring.hidden : Special<A>::neg_infinity();
}

// Which weights are kept.
template <bool TURNED, typename A>
DEVICE u32 kept_of(const Attend& p, const Dropped<A>& dropped, const Frame<TURNED>& frame) {
  u32 kept = 0;
#pragma unroll 1
  for (u32 n = 0; n < ELEMENTS; n++) {
    const Place at = frame[n];
    if (at.query < p.query_length && at.key < p.key_length)
      kept |= u32(is_kept(p.dropout, dropped.first + dropped.keys * at.query + at.key)) << n;
  }
  return kept;
}

// Multiplies by dropout's factors.
template <typename A>
DEVICE void drop(Square<A>& s, const Dropped<A>& dropped, u32 kept) {
#pragma unroll
  for (u32 n = 0; n < ELEMENTS; n++) s[n] *= kept >> n & 1 ? dropped.kept : dropped.dropped;
}
