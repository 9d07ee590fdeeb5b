// Which keys a query sees, and what scores become by it and by the bias.
#pragma once
#include "scalar.cuh"

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

// Mask and bias of one matrix of scores.
template <typename A>
struct Scoring {
  const u8* mask;
  const A* bias;
  A hidden;  // the score of a hidden key

  DEVICE Scoring(const Attend& p, u32 entry, u32 head)
      : mask(p.mask.address ? head_of<const u8>(p.mask, p.batch, entry, head) : nullptr),
        bias(p.bias.address ? head_of<const A>(p.bias, p.batch, entry, head) : nullptr),
        hidden(p.zero_if_blind ? Special<A>::neg_infinity() : Special<A>::lowest()) {}

  DEVICE bool sees(const Attend& p, u32 query, u32 key) const {
    if (p.causal && i64(key) > i64(query) + p.shift) return false;
    return mask == nullptr || (mask[i64(query) * p.mask.row + i64(key) * p.mask.column] != 0) == (p.set_means_keep != 0);
  }

  // What a product of a scaled query and a key, both of which there are, becomes.
  DEVICE A score(const Attend& p, A product, u32 query, u32 key, bool seen) const {
    if (bias != nullptr) product += bias[i64(query) * p.bias.row + i64(key) * p.bias.column];
    return seen ? product : hidden;
  }
};
