// Attention of a few queries over many keys, as in decoding, for f16 and bf16.
//
// Each key and value is read once for all queries that share it: those of a group of heads are rows of one product. The keys of
// a head are cut into spans, a block each, so that few heads keep a whole device busy; a block's warps take every fourth slab
// of 16 keys and ask for slabs ahead, none waits for another. What warps and blocks have is put together in a fixed order.
#include "copy.cuh"
#include "exponent.cuh"
#include "mma.cuh"
#include "scalar.cuh"
#include "visible.cuh"

constexpr int SLAB = 16;
constexpr int ROWS = 16;

// The heads of a call by groups that share keys.
struct Groups {
  u32 group, count, rows;  // heads of a group; groups of all batch entries; queries that share a key

  DEVICE explicit Groups(const Attend& p)
      : group(p.heads / p.key_heads), count(p.batches * p.key_heads), rows(group * p.query_length) {}
};

// Which query a row of a group is.
struct Query {
  u32 entry, head, query;

  DEVICE Query(const Attend& p, const Groups& groups, u32 group, u32 row)
      : entry(group / p.key_heads), head(group % p.key_heads * groups.group + row % groups.group), query(row / groups.group) {}
};

// Sums of a span: for each row the columns, the largest number, the sum of weights.
DEVICE float* partial(const Attend& p, const Groups& groups, u32 splits, u32 group, u32 split, u32 row) {
  return reinterpret_cast<float*>(p.scratch) + ((u64(group) * splits + split) * groups.rows + row) * (p.value_depth + 2);
}

template <typename T>
DEVICE void write_column(const Attend& p, const Query& at, u32 column, float x) {
  u16* const to = head_of<u16>(p.out, p.batch, at.entry, at.head);
  to[i64(at.query) * p.out.row + i64(column) * p.out.column] = u16(T::pack(x, 0));
}

DEVICE void write_statistics(const Attend& p, const Query& at, float m, float l) {
  if (p.statistics.address == 0) return;
  float* const to = head_of<float>(p.statistics, p.batch, at.entry, at.head) + i64(at.query) * p.statistics.row;
  to[0] = m;
  to[p.statistics.column] = l;
}

// A row that sees nothing has no sum; where that means zero, anything but 0 does as the divisor.
DEVICE float divisor(const Attend& p, float l) { return l == 0 && p.zero_if_blind ? 1.f : l; }

template <typename T, int D, int WARPS, int STAGES>
struct Span {
  static constexpr u32 TILE = SLAB * D * 2;
  typedef float Output[D / 8][4];

  const Attend& p;
  const Exponents<true> exponents;
  const Groups groups;
  const u32 lane, warp, splits, group, split;
  u32 begin, end;  // keys of the block

  DEVICE explicit Span(const Attend& p)
      : p(p),
        exponents(p),
        groups(p),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        splits(gridDim.x / groups.count),
        group(blockIdx.x / splits),
        split(blockIdx.x % splits) {
    // Where blind rows get the mean of all values, what no query sees counts too.
    const bool all = !p.zero_if_blind && (p.mask.address != 0 || p.bias.address != 0);
    const u32 seen = all ? p.key_length : reach_of(p, p.query_length - 1);
    const u32 span = round_up(blocks_of(seen, splits), SLAB * WARPS);
    begin = smaller(split * span, seen);
    end = smaller(begin + span, seen);
  }

  // Queries as the left factor, straight from where they lie.
  DEVICE void load_queries(u32 (&q)[D / 16][4]) const {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const u32 row = lane / 4 + half * 8;
      const u16* from = nullptr;
      if (row < groups.rows) {
        const Query at(p, groups, group, row);
        from = head_of<const u16>(p.query, p.batch, at.entry, at.head) + i64(at.query) * p.query.row;
      }
#pragma unroll
      for (u32 d = 0; d < D / 16; d++) {
#pragma unroll
        for (u32 pair = 0; pair < 2; pair++) {
          const u32 column = d * 16 + pair * 8 + lane % 4 * 2;
          const bool inside = row < groups.rows && column < p.depth;
          q[d][pair * 2 + half] = inside ? *reinterpret_cast<const u32*>(from + column) : 0;
        }
      }
    }
  }

  DEVICE void products(float (&s)[2][4], const u32 (&q)[D / 16][4], u32 keys) const {
    const u32 k_at = keys + chunk_at<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int n = 0; n < 2; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      u32 k[4];
      load_matrices(k, k_at ^ d * 32);
      T::multiply(s[0], q[d], k[0], k[1]);
      T::multiply(s[1], q[d], k[2], k[3]);
    }
  }

  // Puts what stands for hidden keys; adds the bias.
  DEVICE void adjust(float (&s)[2][4], u32 first) const {
    const bool mask = p.mask.address != 0, bias = p.bias.address != 0;
    if (first + SLAB <= end && first + SLAB <= reach_of(p, 0) && !mask && !exponents.scores) return;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      const u32 row = lane / 4 + half * 8;
      if (row >= groups.rows) continue;
      const Query at(p, groups, group, row);
      const u32 reach = reach_of(p, at.query);
      const u8* mask_row = nullptr;
      const float* bias_row = nullptr;
      if (mask) mask_row = head_of<const u8>(p.mask, p.batch, at.entry, at.head) + i64(at.query) * p.mask.row;
      if (bias) bias_row = head_of<const float>(p.bias, p.batch, at.entry, at.head) + i64(at.query) * p.bias.row;
#pragma unroll
      for (u32 n = 0; n < 2; n++) {
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
          const u32 key = first + n * 8 + lane % 4 * 2 + e;
          const bool inside = key < end;
          float& x = s[n][half * 2 + e];
          if (exponents.scores) x = exponents.score(x, bias && inside ? bias_row[key * p.bias.column] : 0.f);
          bool seen = key < reach;
          if (mask && seen && inside) seen = (mask_row[key * p.mask.column] != 0) == (p.set_means_keep != 0);
          if (!inside) x = -INFINITE;
          else if (!seen) x = exponents.hidden;
        }
      }
    }
  }

  DEVICE void weigh(float (&s)[2][4], Output& o, float (&m)[2], float (&l)[2]) const {
    float alpha[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = fmaxf(fmaxf(s[0][half * 2], s[0][half * 2 + 1]), fmaxf(s[1][half * 2], s[1][half * 2 + 1]));
      largest = fmaxf(m[half], quad_max(largest));
      const Shift shift = exponents.shift(largest);
      alpha[half] = power_of_2(exponents.rescaling(m[half], shift));
      m[half] = largest;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[n][half * 2 + e];
          x = power_of_2(exponents.of(x, shift));
          sum += x;
        }
      }
      l[half] = __fmaf_rn(l[half], alpha[half], sum);
    }
    if (!__any_sync(~0u, alpha[0] != 1.f || alpha[1] != 1.f)) return;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[n][e] *= alpha[e / 2];
  }

  DEVICE void values_by(const float (&s)[2][4], Output& o, u32 values) const {
    u32 weights[4];
#pragma unroll
    for (int i = 0; i < 4; i++) weights[i] = T::pack(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
    const u32 v_at = values + chunk_at<D>(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      u32 v[4];
      load_transposed(v, v_at ^ n * 16);
      T::multiply(o[n], weights, v[0], v[1]);
      T::multiply(o[n + 1], weights, v[2], v[3]);
    }
  }

  // Where a warp leaves its sums for the others, in place of its slabs: columns, largest number, sum of weights of each row.
  static constexpr u32 WIDTH = D + 2;

  DEVICE void leave(float* sums, const Output& o, const float (&m)[2], const float (&l)[2]) const {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      float* const row = sums + (warp * ROWS + lane / 4 + half * 8) * WIDTH;
#pragma unroll
      for (u32 n = 0; n < D / 8; n++) {
        row[n * 8 + lane % 4 * 2] = o[n][half * 2];
        row[n * 8 + lane % 4 * 2 + 1] = o[n][half * 2 + 1];
      }
      const float sum = quad_sum(l[half]);
      if (lane % 4 == 0) row[D] = m[half], row[D + 1] = sum;
    }
  }

  // The sums of all warps, to where they belong.
  DEVICE void gather(const float* sums) const {
    for (u32 row = warp; row < groups.rows; row += WARPS) {
      const float* const of_row = sums + row * WIDTH;
      constexpr u32 NEXT = ROWS * WIDTH;  // from a warp's to the next one's
      float m = -INFINITE, l = 0, alpha[WARPS];
#pragma unroll
      for (u32 w = 0; w < WARPS; w++) m = fmaxf(m, of_row[w * NEXT + D]);
      const Shift shift = exponents.shift(m);
#pragma unroll
      for (u32 w = 0; w < WARPS; w++) {
        alpha[w] = power_of_2(exponents.rescaling(of_row[w * NEXT + D], shift));
        l = __fmaf_rn(of_row[w * NEXT + D + 1], alpha[w], l);
      }
      const Query at(p, groups, group, row);
      float* const to = splits > 1 ? partial(p, groups, splits, group, split, row) : nullptr;
      const float factor = 1 / divisor(p, l);
      for (u32 column = lane; column < p.value_depth; column += 32) {
        float x = 0;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) x = __fmaf_rn(of_row[w * NEXT + column], alpha[w], x);
        if (splits > 1) to[column] = x;
        else write_column<T>(p, at, column, x * factor);
      }
      if (lane != 0) continue;
      if (splits > 1) to[p.value_depth] = m, to[p.value_depth + 1] = l;
      else write_statistics(p, at, exponents.natural(m), divisor(p, l));
    }
  }

  DEVICE void run(u8* shared) const {
    const u32 entry = group / p.key_heads, head = group % p.key_heads;
    const HeadRows key = HeadRows::of(p.key, p.batch, entry, head, end, p.depth);
    const HeadRows value = HeadRows::of(p.value, p.batch, entry, head, end, p.value_depth);
    const Copier<D, SLAB, 32> key_copier(key, lane), value_copier(value, lane);
    const u32 stages = shared_address(shared) + warp * (STAGES * 2 * TILE);
    const u32 mine = begin + warp * SLAB;
    const u32 slabs = mine < end ? blocks_of(end - mine, SLAB * WARPS) : 0;
    auto start = [&](u32 slab) {
      if (slab < slabs) {
        const u32 stage = stages + slab % STAGES * (2 * TILE), first = mine + slab * (SLAB * WARPS);
        key_copier.start(stage, first, lane);
        value_copier.start(stage + TILE, first, lane);
      }
      copy_commit();
    };
#pragma unroll
    for (u32 slab = 0; slab < STAGES - 1; slab++) start(slab);
    u32 q[D / 16][4];
    load_queries(q);
    Output o;
    float m[2] = {-INFINITE, -INFINITE}, l[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < D / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    for (u32 slab = 0; slab < slabs; slab++) {
      copy_wait<STAGES - 2>();
      __syncwarp();  // this slab has come, and the warp is done with the one before
      start(slab + STAGES - 1);
      const u32 stage = stages + slab % STAGES * (2 * TILE);
      float s[2][4];
      products(s, q, stage);
      adjust(s, mine + slab * (SLAB * WARPS));
      weigh(s, o, m, l);
      values_by(s, o, stage + TILE);
    }
    copy_wait<0>();
    __syncthreads();
    leave(reinterpret_cast<float*>(shared), o, m, l);
    __syncthreads();
    gather(reinterpret_cast<float*>(shared));
  }
};

// Puts the spans of a row together: a block each.
template <typename T>
DEVICE void combine(const Attend& p) {
  const Exponents<true> exponents(p);
  const Groups groups(p);
  const u32 group = blockIdx.x / groups.rows, row = blockIdx.x % groups.rows, width = p.value_depth + 2;
  // The host passes as much scratch as the spans have.
  const u32 splits = u32(p.scratch_len / (u64(groups.count) * groups.rows * width));
  const u64 next = u64(groups.rows) * width;
  const float* const from = partial(p, groups, splits, group, 0, row);
  float m = -INFINITE, l = 0;
  for (u32 split = 0; split < splits; split++) m = fmaxf(m, from[split * next + p.value_depth]);
  const Shift shift = exponents.shift(m);
  const Query at(p, groups, group, row);
  for (u32 split = 0; split < splits; split++) {
    const float* const of_span = from + split * next + p.value_depth;
    l = __fmaf_rn(of_span[1], power_of_2(exponents.rescaling(of_span[0], shift)), l);
  }
  const float factor = 1 / divisor(p, l);
  for (u32 column = threadIdx.x; column < p.value_depth; column += blockDim.x) {
    float x = 0;
#pragma unroll 4
    for (u32 split = 0; split < splits; split++)
      x = __fmaf_rn(from[split * next + column], power_of_2(exponents.rescaling(from[split * next + p.value_depth], shift)), x);
    write_column<T>(p, at, column, x * factor);
  }
  if (threadIdx.x == 0) write_statistics(p, at, exponents.natural(m), divisor(p, l));
}

#define DECODE(name, T, D, WARPS, STAGES) \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) decode_##name(const __grid_constant__ Attend p) { \
    extern __shared__ __align__(1024) u8 shared[]; \
    Span<T, D, WARPS, STAGES>(p).run(shared); \
  }
#define OF_BOTH(depth, WARPS, STAGES) \
  DECODE(f16_##depth, F16, depth, WARPS, STAGES) \
  DECODE(bf16_##depth, BF16, depth, WARPS, STAGES)

// src/ops/attend/decode.rs has the same table.
OF_BOTH(32, 4, 4)
OF_BOTH(64, 4, 4)
OF_BOTH(128, 4, 3)
OF_BOTH(256, 2, 3)

extern "C" __global__ void __launch_bounds__(128) decode_combine_f16(const __grid_constant__ Attend p) { combine<F16>(p); }
extern "C" __global__ void __launch_bounds__(128) decode_combine_bf16(const __grid_constant__ Attend p) { combine<BF16>(p); }
