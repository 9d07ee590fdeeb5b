// The gradients of attention on sm_90a, without mask, bias or dropout: the two passes of attend_backward_mma.cu, with the
// products of warpgroups and copies by the engine.
//
//   by queries: dQ += dS K of a tile of queries, over tiles of keys; delta of each row before
//   by keys:    dV += Pᵀ dO, dK += dSᵀ Q of a tile of keys, over tiles of queries
//
// One warp copies, two warpgroups compute 64 rows each. A step's last products stay under way while the next step's first ones
// are started: their results are waited for together.
#pragma once
#include "hopper.cuh"

// Rows of scratch come in multiples of the largest tile.
constexpr u32 LARGEST = 128;
// Rows that a copy brings at a time: what the maps' boxes have.
constexpr u32 BOX = 64;
constexpr u32 GROUPS = 2, TILE = 64 * GROUPS, THREADS = 128 * (GROUPS + 1);
// All registers of a multiprocessor, most of them for the warpgroups that compute.
constexpr int COPY_REGISTERS = 24, COMPUTE_REGISTERS = 240;
constexpr float LOG2_E = 1.4426950408889634f;

DEVICE float infinity() { return __int_as_float(0x7f800000); }

DEVICE u32 blocks_of(u32 x, u32 size) { return (x + size - 1) / size; }

// How a block computes. DEPTH: padded; STEP: rows of a step; STAGES: steps in flight; DEFER: whether a step's last products are
// under way while the next step's first ones start, if there are registers for the operands of both.
template <Half T_, int DEPTH_, int STEP_, int STAGES_, bool DEFER_, bool CAUSAL_>
struct Plan {
  static constexpr Half T = T_;
  static constexpr int DEPTH = DEPTH_, STEP = STEP_, STAGES = STAGES_, PANELS = DEPTH / int(PANEL);
  static constexpr bool DEFER = DEFER_, CAUSAL = CAUSAL_;

  // Bytes.
  static constexpr u32 TILE_PANEL = TILE * ROW_BYTES, STEP_PANEL = STEP * ROW_BYTES;
  static constexpr u32 TILE_BYTES = PANELS * TILE_PANEL, STEP_BYTES = PANELS * STEP_PANEL;

  // Two arrays' rows of the block, and two arrays' rows that stream by.
  struct Shared {
    u8 own[2][TILE_BYTES];
    u8 streamed[STAGES][2][STEP_BYTES];
    float states[STAGES][2][STEP];
    Barrier own_full, full[STAGES], empty[STAGES];
  };
};

// A place in a ring of stages.
template <class P>
struct Place {
  u32 stage = 0, phase = 0;

  DEVICE void step() {
    stage++;
    if (stage == P::STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// What the kernel by queries leaves for the one by keys: of each row m log2(e) + log2(l), infinite beyond the last one and where
// nothing is seen, and delta.
struct RowState {
  float *m, *delta;

  DEVICE RowState(const Attend& p, u64 matrix) {
    const u64 rows = u64(blocks_of(p.query_length, LARGEST)) * LARGEST;
    m = reinterpret_cast<float*>(p.scratch) + matrix * rows;
    delta = m + rows * p.batches * p.heads;
  }
};

// The first element of a head of an array that has at most one batch axis.
template <typename T>
DEVICE T* matrix_of(const Array& array, u32 batch, u32 head) {
  return reinterpret_cast<T*>(array.address) + (i64(batch) * array.batch[0] + i64(head) * array.head);
}

// Copies rows into panels `bytes` long.
template <class P>
DEVICE void copy_rows(u8* to, u32 bytes, const TensorMap& map, Barrier& full, u32 rows, u32 row, u32 head, u32 batch) {
#pragma unroll
  for (u32 panel = 0; panel < P::PANELS; panel++) {
#pragma unroll
    for (u32 box = 0; box < rows; box += BOX) {
      copy_box(to + panel * bytes + box * ROW_BYTES, map, full, panel * PANEL, row + box, head, batch);
    }
  }
}

// sums = a · bᵀ, both rows in shared memory.
template <class P>
DEVICE void start_products(float (&sums)[P::STEP / 2], u64 a, u64 b) {
  using Scores = Product<P::T, P::STEP>;
  Scores::template scores<false>(sums, a, b);
#pragma unroll
  for (int i = 1; i < P::DEPTH / 16; i++) {
    const u32 panel = i / 4, column = i % 4 * 32;
    Scores::template scores<true>(sums, moved(a, panel * P::TILE_PANEL + column), moved(b, panel * P::STEP_PANEL + column));
  }
  products_end();
}

// sums += a · b, `b` the rows of a step.
template <class P>
DEVICE void start_sums(float (&sums)[P::DEPTH / 2], const u32 (&a)[P::STEP / 4], u64 b) {
#pragma unroll
  for (int i = 0; i < P::STEP / 16; i++) Product<P::T, P::DEPTH>::values(sums, a + 4 * i, moved(b, i * 16 * ROW_BYTES));
  products_end();
}

template <class P, int N>
DEVICE void round(u32 (&pairs)[N / 2], const float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; i++) pairs[i] = pack<P::T>(values[2 * i], values[2 * i + 1]);
}

// What a thread holds of its warpgroup's 64 rows of a result: of rows `lane / 4` and that + 8 of its warp's 16, in each 8 columns
// the two from `lane % 4 * 2` on; element i is in row i / 2 % 2 of the two and column i / 4 * 8 + i % 2 from there.

// Rounds and writes a warp's rows, those below `rows`.
template <class P>
DEVICE void store_rows(u16* to, const Array& array, u32 first, u32 rows, u32 depth, const float (&sums)[P::DEPTH / 2], float factor) {
  const u32 lane = threadIdx.x & 31;
  const bool pairs = array.column == 1 && ((u64(to) | u64(array.row) * 2) & 3) == 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u32 row = first + lane / 4 + half * 8;
    if (row >= rows) continue;
    u16* start = to + i64(row) * array.row;
#pragma unroll
    for (int n = 0; n < P::DEPTH / 8; n++) {
      const u32 column = n * 8 + lane % 4 * 2;
      if (column >= depth) continue;
      const u32 packed = pack<P::T>(sums[n * 4 + half * 2] * factor, sums[n * 4 + half * 2 + 1] * factor);
      if (pairs) {
        *reinterpret_cast<u32*>(start + column) = packed;
      } else {
        start[i64(column) * array.column] = u16(packed);
        start[i64(column + 1) * array.column] = u16(packed >> 16);
      }
    }
  }
}

template <Half T>
DEVICE float2 unpack(u32 pair) {
  if constexpr (T == Half::bf16) return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  float2 wide;
  asm("{\n.reg .b16 x, y;\nmov.b32 {x, y}, %2;\ncvt.f32.f16 %0, x;\ncvt.f32.f16 %1, y;\n}" : "=f"(wide.x), "=f"(wide.y) : "r"(pair));
  return wide;
}

template <Half T>
DEVICE float product_of_pairs(u32 a, u32 b, float sum) {
  const float2 x = unpack<T>(a), y = unpack<T>(b);
  return fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
}

DEVICE float sum_of_quad(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Σ dO O of a row: each lane of four takes every fourth chunk.
template <class P>
DEVICE float row_product(const Attend& p, const u16* d_out, const u16* out) {
  float sum = 0.f;
#pragma unroll
  for (u32 i = 0; i < P::DEPTH / 32; i++) {
    const u32 column = (i * 4 + threadIdx.x % 4) * 8;
    if (column >= p.value_depth) continue;
    const uint4 a = *reinterpret_cast<const uint4*>(d_out + column), b = *reinterpret_cast<const uint4*>(out + column);
    sum = product_of_pairs<P::T>(a.x, b.x, sum);
    sum = product_of_pairs<P::T>(a.y, b.y, sum);
    sum = product_of_pairs<P::T>(a.z, b.z, sum);
    sum = product_of_pairs<P::T>(a.w, b.w, sum);
  }
  return sum;
}

template <class P>
DEVICE void init(typename P::Shared& shared, u32 filling) {
  if (threadIdx.x == 0) {
    shared.own_full.init(1);
    for (int i = 0; i < P::STAGES; i++) {
      shared.full[i].init(filling);
      shared.empty[i].init(4 * GROUPS);
    }
    fence_barrier_init();
  }
  __syncthreads();
}

// ---- by queries ----

template <class P>
DEVICE void by_queries(const TensorMap& query, const TensorMap& key, const TensorMap& value, const TensorMap& d_out,
                       const Attend& p) {
  extern __shared__ __align__(1024) u8 memory[];
  auto& shared = *reinterpret_cast<typename P::Shared*>(memory);
  init<P>(shared, 1);
  const u32 tiles = blocks_of(p.query_length, TILE), matrix = blockIdx.x / tiles;
  // Under a causal mask the last queries have most to do.
  const u32 first = (tiles - 1 - blockIdx.x % tiles) * TILE;
  const u32 batch = matrix / p.heads, head = matrix % p.heads;
  // Keys that the queries up to `last` see, and steps over them.
  const auto reach = [&](u32 last) {
    if (!P::CAUSAL) return p.key_length;
    return u32(max(min(i64(last) + p.shift + 1, i64(p.key_length)), i64(0)));
  };
  const u32 steps = blocks_of(reach(min(first + TILE, p.query_length) - 1), P::STEP);
  const u32 group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (group == 0) {
    give_registers<COPY_REGISTERS>();
    if (threadIdx.x != 0) return;
    const u32 key_head = head / (p.heads / p.key_heads);
    shared.own_full.arrive_expecting(2 * P::TILE_BYTES);
    copy_rows<P>(shared.own[0], P::TILE_PANEL, query, shared.own_full, TILE, first, head, batch);
    copy_rows<P>(shared.own[1], P::TILE_PANEL, d_out, shared.own_full, TILE, first, head, batch);
    Place<P> at;
#pragma unroll 1
    for (u32 step = 0; step < steps; step++, at.step()) {
      Barrier& full = shared.full[at.stage];
      shared.empty[at.stage].wait(at.phase ^ 1);
      full.arrive_expecting(2 * P::STEP_BYTES);
      copy_rows<P>(shared.streamed[at.stage][0], P::STEP_PANEL, key, full, P::STEP, step * P::STEP, key_head, batch);
      copy_rows<P>(shared.streamed[at.stage][1], P::STEP_PANEL, value, full, P::STEP, step * P::STEP, key_head, batch);
    }
    return;
  }
  take_registers<COMPUTE_REGISTERS>();
  const u32 lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 - 64;  // the copying warpgroup comes before
  const u32 part = row - (first + (group - 1) * 64), group_first = row - part;
  const u32 last = min(group_first + 64, p.query_length) - 1;
  const u32 steps_of_group = group_first < p.query_length ? blocks_of(reach(last), P::STEP) : 0;
  // Rows that look at one tile of keys get delta as a sum of the very numbers that it is then subtracted from: the rounding of
  // the output would stay where the difference vanishes, as it does in a row that sees one key.
  const bool alone = steps_of_group == 1;

  float m[2], delta[2];
  const RowState state(p, matrix);
  const auto leave_state = [&] {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      state.m[row + lane / 4 + half * 8] = m[half];
      state.delta[row + lane / 4 + half * 8] = delta[half];
    }
  };
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u32 at = row + lane / 4 + half * 8;
    m[half] = infinity();
    delta[half] = 0.f;
    if (at < p.query_length) {
      const float* from = matrix_of<const float>(p.statistics, batch, head) + i64(at) * p.statistics.row;
      const float largest = from[0], sum = from[p.statistics.column];
      if (largest != -infinity() && sum != 0.f) m[half] = fmaf(largest, LOG2_E, log2f(sum));
      if (!alone) {
        delta[half] = row_product<P>(p, matrix_of<const u16>(p.d_out, batch, head) + i64(at) * p.d_out.row,
                                     matrix_of<const u16>(p.out, batch, head) + i64(at) * p.out.row);
      }
    }
    delta[half] = sum_of_quad(delta[half]);
  }
  if (!alone) leave_state();

  const float scale = float(p.scale), scale_log2 = float(p.scale * 1.4426950408889634);
  const u64 own_query = operand(shared_address(shared.own[0]) + (group - 1) * 64 * ROW_BYTES, 0);
  const u64 own_d_out = operand(shared_address(shared.own[1]) + (group - 1) * 64 * ROW_BYTES, 0);
  float d_query[P::DEPTH / 2];
#pragma unroll
  for (int i = 0; i < P::DEPTH / 2; i++) d_query[i] = 0.f;
  const auto release = [&](u32 stage) {
    if (lane == 0) shared.empty[stage].arrive();
  };
  shared.own_full.wait(0);
  Place<P> at;
  u32 before = 0;
  u32 pairs[P::STEP / 4];
#pragma unroll 1
  for (u32 step = 0; step < steps_of_group; step++, at.step()) {
    float weights[P::STEP / 2], gradients[P::STEP / 2];
    const u32 keys = shared_address(shared.streamed[at.stage][0]), values = shared_address(shared.streamed[at.stage][1]);
    shared.full[at.stage].wait(at.phase);
    products_begin();
    start_products<P>(weights, own_query, operand(keys, 0));
    start_products<P>(gradients, own_d_out, operand(values, 0));
    products_wait<1>();
    pin(weights);
    pin(d_query);
    if (P::DEFER) {
      if (step > 0) release(before);
      before = at.stage;
    }
#pragma unroll
    for (int i = 0; i < P::STEP / 2; i++) weights[i] = exp2_fast(fmaf(weights[i], scale_log2, -m[i / 2 % 2]));
    // Keys beyond the last one, and those that the causal mask hides.
    const bool edge = (step + 1) * P::STEP > reach(row);
    if (edge) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int seen = int(reach(row + lane / 4 + half * 8)) - int(step * P::STEP + lane % 4 * 2);
#pragma unroll
        for (int i = half * 2; i < P::STEP / 2; i += 4) {
          if (i / 4 * 8 >= seen) weights[i] = 0.f;
          if (i / 4 * 8 + 1 >= seen) weights[i + 1] = 0.f;
        }
      }
    }
    pin(weights);
    products_wait<0>();
    pin(gradients);
    if (alone) {
      float share[2] = {0.f, 0.f};
#pragma unroll
      for (int i = 0; i < P::STEP / 2; i++) {
        if (weights[i] != 0.f) share[i / 2 % 2] = fmaf(weights[i], gradients[i], share[i / 2 % 2]);
      }
      delta[0] = sum_of_quad(share[0]);
      delta[1] = sum_of_quad(share[1]);
      leave_state();
    }
#pragma unroll
    for (int i = 0; i < P::STEP / 2; i++) gradients[i] = weights[i] * (gradients[i] - delta[i / 2 % 2]);
    round<P>(pairs, gradients);
    products_begin();
    start_sums<P>(d_query, pairs, operand(keys, P::STEP_PANEL));
    if (!P::DEFER) {
      products_wait<0>();
      pin(d_query);
      release(at.stage);
    }
  }
  if (P::DEFER) {
    products_wait<0>();
    pin(d_query);
    if (steps_of_group > 0) release(before);
  }
  // Steps that the other warpgroup takes alone. Who did not wait for them could give a stage back twice for one time.
  for (u32 step = steps_of_group; step < steps; step++, at.step()) {
    shared.full[at.stage].wait(at.phase);
    release(at.stage);
  }
  store_rows<P>(matrix_of<u16>(p.d_query, batch, head), p.d_query, row, p.query_length, p.depth, d_query, scale);
}

// ---- by keys ----

// Steps of a block: the tiles of queries from `from` on, of each query head that shares the keys.
template <class P>
struct Walk {
  u32 tiles, from, heads;
  u32 head = 0, tile;

  DEVICE Walk(const Attend& p, u32 first_key) : tiles(blocks_of(p.query_length, P::STEP)), from(0), heads(p.heads / p.key_heads) {
    if (P::CAUSAL) {
      const i64 first = i64(first_key) - p.shift;
      from = first <= 0 ? 0 : first < p.query_length ? u32(first) / P::STEP : tiles;
    }
    tile = from;
  }

  DEVICE bool more() const { return head < heads && from < tiles; }

  DEVICE void step() {
    tile++;
    if (tile == tiles) {
      tile = from;
      head++;
    }
  }
};

template <class P>
DEVICE void by_keys(const TensorMap& query, const TensorMap& key, const TensorMap& value, const TensorMap& d_out,
                    const Attend& p) {
  extern __shared__ __align__(1024) u8 memory[];
  auto& shared = *reinterpret_cast<typename P::Shared*>(memory);
  // The copies, and each lane that writes states of rows.
  init<P>(shared, 1 + 32);
  const u32 tiles = blocks_of(p.key_length, TILE), matrix = blockIdx.x / tiles;
  const u32 first = blockIdx.x % tiles * TILE;
  const u32 batch = matrix / p.key_heads, key_head = matrix % p.key_heads;
  Walk<P> walk(p, first);
  const u32 group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (group == 0) {
    give_registers<COPY_REGISTERS>();
    if (threadIdx.x >= 32) return;
    if (threadIdx.x == 0) {
      shared.own_full.arrive_expecting(2 * P::TILE_BYTES);
      copy_rows<P>(shared.own[0], P::TILE_PANEL, key, shared.own_full, TILE, first, key_head, batch);
      copy_rows<P>(shared.own[1], P::TILE_PANEL, value, shared.own_full, TILE, first, key_head, batch);
    }
    Place<P> at;
#pragma unroll 1
    for (; walk.more(); walk.step(), at.step()) {
      Barrier& full = shared.full[at.stage];
      const u32 head = key_head * walk.heads + walk.head, row = walk.tile * P::STEP;
      shared.empty[at.stage].wait(at.phase ^ 1);
      if (threadIdx.x == 0) {
        full.arrive_expecting(2 * P::STEP_BYTES);
        copy_rows<P>(shared.streamed[at.stage][0], P::STEP_PANEL, query, full, P::STEP, row, head, batch);
        copy_rows<P>(shared.streamed[at.stage][1], P::STEP_PANEL, d_out, full, P::STEP, row, head, batch);
      }
      const RowState state(p, u64(batch) * p.heads + head);
#pragma unroll
      for (u32 i = threadIdx.x * 4; i < 2 * P::STEP; i += 128) {
        const float* from = i < P::STEP ? state.m + row + i : state.delta + row + (i - P::STEP);
        *reinterpret_cast<float4*>(&shared.states[at.stage][0][i]) = *reinterpret_cast<const float4*>(from);
      }
      full.arrive();
    }
    return;
  }
  take_registers<COMPUTE_REGISTERS>();
  const u32 lane = threadIdx.x % 32, row = first + threadIdx.x / 32 * 16 - 64;
  const u32 group_first = first + (group - 1) * 64;
  const float scale = float(p.scale), scale_log2 = float(p.scale * 1.4426950408889634);
  const u64 own_key = operand(shared_address(shared.own[0]) + (group - 1) * 64 * ROW_BYTES, 0);
  const u64 own_value = operand(shared_address(shared.own[1]) + (group - 1) * 64 * ROW_BYTES, 0);
  float d_key[P::DEPTH / 2], d_value[P::DEPTH / 2];
#pragma unroll
  for (int i = 0; i < P::DEPTH / 2; i++) d_key[i] = d_value[i] = 0.f;
  const auto release = [&](u32 stage) {
    if (lane == 0) shared.empty[stage].arrive();
  };
  shared.own_full.wait(0);
  Place<P> at;
  u32 before = P::STAGES;
  u32 weight_pairs[P::STEP / 4], gradient_pairs[P::STEP / 4];
#pragma unroll 1
  for (; walk.more(); walk.step(), at.step()) {
    const u32 first_query = walk.tile * P::STEP;
    const i64 reach = i64(first_query) + p.shift + 1;  // of the first query
    const bool hidden = group_first >= p.key_length || (P::CAUSAL && i64(group_first) >= reach + P::STEP - 1);
    if (hidden) {
      if (P::DEFER && before != P::STAGES) {
        products_wait<0>();
        release(before);
        before = P::STAGES;
      }
      shared.full[at.stage].wait(at.phase);
      release(at.stage);
      continue;
    }
    float weights[P::STEP / 2], gradients[P::STEP / 2];
    const u32 queries = shared_address(shared.streamed[at.stage][0]), d_outs = shared_address(shared.streamed[at.stage][1]);
    shared.full[at.stage].wait(at.phase);
    products_begin();
    start_products<P>(weights, own_key, operand(queries, 0));
    start_products<P>(gradients, own_value, operand(d_outs, 0));
    products_wait<1>();
    pin(weights);
    if (P::DEFER) {
      if (before != P::STAGES) release(before);
      before = at.stage;
    }
    const float* m = shared.states[at.stage][0] + lane % 4 * 2;
    const float* delta = shared.states[at.stage][1] + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < P::STEP / 8; n++) {
      const float2 pair = *reinterpret_cast<const float2*>(m + n * 8);
#pragma unroll
      for (int i = n * 4; i < n * 4 + 4; i++) weights[i] = exp2_fast(fmaf(weights[i], scale_log2, i % 2 ? -pair.y : -pair.x));
    }
    const bool edge = P::CAUSAL && reach < i64(row) + 16;
    if (edge) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        // Queries before this one, of the step, do not see the row's key.
        const int from = int(i64(row + lane / 4 + half * 8) + 1 - reach) - int(lane % 4 * 2);
#pragma unroll
        for (int i = half * 2; i < P::STEP / 2; i += 4) {
          if (i / 4 * 8 < from) weights[i] = 0.f;
          if (i / 4 * 8 + 1 < from) weights[i + 1] = 0.f;
        }
      }
    }
    round<P>(weight_pairs, weights);
    products_begin();
    start_sums<P>(d_value, weight_pairs, operand(d_outs, P::STEP_PANEL));
    products_wait<1>();
    pin(gradients);
#pragma unroll
    for (int n = 0; n < P::STEP / 8; n++) {
      const float2 pair = *reinterpret_cast<const float2*>(delta + n * 8);
#pragma unroll
      for (int i = n * 4; i < n * 4 + 4; i += 2) {
        // The weights as they were rounded: there are no registers for more.
        const float2 weight = unpack<P::T>(weight_pairs[i / 2]);
        gradients[i] = weight.x * (gradients[i] - pair.x);
        gradients[i + 1] = weight.y * (gradients[i + 1] - pair.y);
      }
    }
    round<P>(gradient_pairs, gradients);
    products_begin();
    start_sums<P>(d_key, gradient_pairs, operand(queries, P::STEP_PANEL));
    products_wait<P::DEFER ? 1 : 0>();
    pin(d_value);
    if (!P::DEFER) {
      pin(d_key);
      release(at.stage);
    }
  }
  if (P::DEFER) {
    products_wait<0>();
    pin(d_key);
    if (before != P::STAGES) release(before);
  }
  store_rows<P>(matrix_of<u16>(p.d_key, batch, key_head), p.d_key, row, p.key_length, p.depth, d_key, scale);
  store_rows<P>(matrix_of<u16>(p.d_value, batch, key_head), p.d_value, row, p.key_length, p.value_depth, d_value, 1.f);
}

#define KERNEL(PASS, NAME, ...)                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                        \
      attend_backward_hopper_##PASS##_##NAME(const __grid_constant__ TensorMap query,                             \
                                             const __grid_constant__ TensorMap key,                               \
                                             const __grid_constant__ TensorMap value,                             \
                                             const __grid_constant__ TensorMap d_out, const __grid_constant__ Attend p) { \
    by_##PASS<Plan<__VA_ARGS__>>(query, key, value, d_out, p);                                                    \
  }
