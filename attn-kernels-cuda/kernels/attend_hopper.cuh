// Attention forward on sm_90a without mask, bias or dropout: scores stay in registers, keys and values stream through shared
// memory. One warpgroup copies, the others compute 64 queries each: while the tensor cores multiply for one of them, another
// takes exponentials.
#pragma once

#include "hopper.cuh"

// A tile of queries of one head: the keys it sees are those of the first `tiles` tiles.
struct alignas(16) Work {
  u32 batch, head, first, tiles;
};

// How a block computes.
//
// T: the dtype; DEPTH: of keys and values, padded; GROUPS: warpgroups that compute; KEYS: of a tile; STAGES: tiles of keys, and of
// values, that shared memory holds; CAUSAL: whether a query sees the keys up to its own position alone.
template <Half T_, int DEPTH_, int GROUPS_, int KEYS_, int STAGES_, bool CAUSAL_>
struct Plan {
  static constexpr Half T = T_;
  static constexpr int DEPTH = DEPTH_, GROUPS = GROUPS_, KEYS = KEYS_, STAGES = STAGES_;
  static constexpr bool CAUSAL = CAUSAL_;
  static constexpr int QUERIES = 64 * GROUPS, THREADS = 128 * (GROUPS + 1);
  static constexpr int PANELS = DEPTH / int(PANEL);
  // All registers of a multiprocessor, most of them for the warpgroups that compute.
  static constexpr int COPY_REGISTERS = GROUPS == 2 ? 24 : 32, COMPUTE_REGISTERS = GROUPS == 2 ? 240 : 160;
  // Sums this wide leave no registers for a second set of scores beside them unless they are scaled early.
  static constexpr bool SCALE_EARLY = DEPTH > 128;

  // Bytes.
  static constexpr u32 QUERY_PANEL = 64 * ROW_BYTES, KEY_PANEL = KEYS * ROW_BYTES;
  static constexpr u32 QUERY_TILE = PANELS * QUERY_PANEL, KEY_TILE = PANELS * KEY_PANEL;

  struct Shared {
    u8 query[GROUPS][QUERY_TILE];
    u8 key[STAGES][KEY_TILE];
    u8 value[STAGES][KEY_TILE];
    // What the queries are, for those who wait for them.
    Work work[GROUPS];
    Barrier query_full[GROUPS], query_empty[GROUPS];
    Barrier key_full[STAGES], key_empty[STAGES], value_full[STAGES], value_empty[STAGES];
  };
};

// ---- which queries ----

// The first element of a head of an array that has at most one batch axis.
template <typename T>
DEVICE T* matrix_of(const Array& array, const Work& work) {
  return reinterpret_cast<T*>(array.address) + (i64(work.batch) * array.batch[0] + i64(work.head) * array.head);
}

// Keys and values of the heads that blocks work on at the same time should stay in the L2 cache.
constexpr u64 CACHE_BYTES = 32 << 20;

// The `index`-th tile. Without causality, tiles of a head follow one another. With it, those of some heads do, the ones with
// the most keys first, so that the last to finish are short.
template <class P>
DEVICE Work work(const Attend& p, u32 index) {
  const u32 tiles = (p.query_length + P::QUERIES - 1) / P::QUERIES, matrices = p.batches * p.heads;
  Work work;
  u32 matrix, tile;
  if constexpr (P::CAUSAL) {
    const u64 bytes = u64(p.key_length) * (P::DEPTH * 4) + 1;
    const u32 together = min(u32(max(CACHE_BYTES / bytes, u64(1))), matrices);
    const u32 set = index / (together * tiles), within = index - set * (together * tiles);
    const u32 size = min(together, matrices - set * together);
    matrix = set * together + within % size;
    tile = tiles - 1 - within / size;
  } else {
    matrix = index / tiles;
    tile = index - matrix * tiles;
  }
  work.batch = matrix / p.heads;
  work.head = matrix - work.batch * p.heads;
  work.first = tile * P::QUERIES;
  work.tiles = (p.key_length + P::KEYS - 1) / P::KEYS;
  if constexpr (P::CAUSAL) {
    const i64 last = i64(min(work.first + P::QUERIES, p.query_length)) - 1 + p.shift;
    work.tiles = u32(min(i64(work.tiles), last / P::KEYS + 1));
  }
  return work;
}

template <class P>
DEVICE u32 works(const Attend& p) {
  return (p.query_length + P::QUERIES - 1) / P::QUERIES * p.batches * p.heads;
}

// The tile that this block takes in a round: back and forth, so that the sums of what blocks take are alike.
DEVICE u32 taken(u32 round) {
  return round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// ---- the warpgroup that copies ----

template <class P>
DEVICE void copy_tile(u8* to, const TensorMap& map, Barrier& full, u32 bytes, u32 panel, u32 row, u32 head, u32 batch) {
  full.arrive_expecting(bytes);
#pragma unroll
  for (int i = 0; i < P::PANELS; i++) copy_box(to + i * panel, map, full, i * PANEL, row, head, batch);
}

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

template <class P>
DEVICE void copy(typename P::Shared& shared, const TensorMap& query, const TensorMap& key, const TensorMap& value,
                 const Attend& p) {
  // Everything begins empty: the first waits return at once.
  Place<P> keys, values;
  const auto copy_keys = [&](const Work& work, u32 head, u32 tile) {
    shared.key_empty[keys.stage].wait(keys.phase ^ 1);
    copy_tile<P>(shared.key[keys.stage], key, shared.key_full[keys.stage], P::KEY_TILE, P::KEY_PANEL, tile * P::KEYS, head,
                 work.batch);
    keys.step();
  };
  const auto copy_values = [&](const Work& work, u32 head, u32 tile) {
    shared.value_empty[values.stage].wait(values.phase ^ 1);
    copy_tile<P>(shared.value[values.stage], value, shared.value_full[values.stage], P::KEY_TILE, P::KEY_PANEL,
                 tile * P::KEYS, head, work.batch);
    values.step();
  };
  const u32 count = works<P>(p);
#pragma unroll 1
  for (u32 round = 0, index; (index = taken(round)) < count; round++) {
    const Work now = work<P>(p, index);
    const u32 head = now.head / (p.heads / p.key_heads);
    u32 tile = now.tiles - 1;
    copy_keys(now, head, tile);
#pragma unroll 1
    for (u32 group = 0; group < P::GROUPS; group++) {
      shared.query_empty[group].wait(~round & 1);
      shared.work[group] = now;
      copy_tile<P>(shared.query[group], query, shared.query_full[group], P::QUERY_TILE, P::QUERY_PANEL, now.first + group * 64,
                   now.head, now.batch);
    }
#pragma unroll 1
    for (; tile > 0; tile--) {
      copy_keys(now, head, tile - 1);
      copy_values(now, head, tile);
    }
    copy_values(now, head, 0);
  }
}

// ---- the warpgroups that compute ----

// What a thread holds of its warpgroup's 64 queries: of rows `lane / 4` and that + 8 of its warp's 16, in each 8 columns the two
// from `lane % 4 * 2` on; element i of an array is in row i / 2 % 2 of the two and column i / 4 * 8 + i % 2 from there.
template <class P>
struct Rows {
  float sums[P::DEPTH / 2];
  float largest[2], total[2];
  // What sums are multiplied with before more is added.
  float factor[2];
};

template <class P>
DEVICE void scale_sums(Rows<P>& rows) {
#pragma unroll
  for (int i = 0; i < P::DEPTH / 2; i++) rows.sums[i] *= rows.factor[i / 2 % 2];
}

template <class P>
DEVICE void multiply_scores(float (&scores)[P::KEYS / 2], u64 query, u64 key) {
  using Scores = Product<P::T, P::KEYS>;
  Scores::template scores<false>(scores, query, key);
#pragma unroll
  for (int i = 1; i < P::DEPTH / 16; i++) {
    const u32 panel = i / 4, column = i % 4 * 32;
    Scores::template scores<true>(scores, moved(query, panel * P::QUERY_PANEL + column), moved(key, panel * P::KEY_PANEL + column));
  }
  products_end();
}

template <class P>
DEVICE void multiply_values(float (&sums)[P::DEPTH / 2], const u32 (&weights)[P::KEYS / 4], u64 value) {
#pragma unroll
  for (int i = 0; i < P::KEYS / 16; i++) Product<P::T, P::DEPTH>::values(sums, weights + 4 * i, moved(value, i * 16 * ROW_BYTES));
  products_end();
}

// Scores of keys that a row does not see: `seen` is the number of keys, of this tile, that each of the two rows sees.
template <int N>
DEVICE void hide(float (&scores)[N], const int (&seen)[2]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (i / 4 * 8 + i % 2 >= seen[i / 2 % 2]) scores[i] = __int_as_float(0xff800000);
  }
}

// Turns scores into weights relative to the largest score so far.
template <class P>
DEVICE void weigh(float (&scores)[P::KEYS / 2], Rows<P>& rows, float scale) {
  constexpr int N = P::KEYS / 2;
#pragma unroll
  for (int row = 0; row < 2; row++) {
    // Two chains of maxima and sums: one alone waits on itself.
    float a = rows.largest[row], b = scores[2 * row];
#pragma unroll
    for (int i = 2 * row; i < N; i += 4) {
      a = fmaxf(a, scores[i]);
      b = fmaxf(b, scores[i + 1]);
    }
    float largest = fmaxf(a, b);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    // A row that has seen nothing yet keeps zero sums.
    const float shift = largest == __int_as_float(0xff800000) ? 0.0f : largest * scale;
    rows.factor[row] = exp2_fast(rows.largest[row] * scale - shift);
    rows.largest[row] = largest;
    float x = 0.0f, y = 0.0f;
#pragma unroll
    for (int i = 2 * row; i < N; i += 4) {
      scores[i] = exp2_fast(fmaf(scores[i], scale, -shift));
      scores[i + 1] = exp2_fast(fmaf(scores[i + 1], scale, -shift));
      x += scores[i];
      y += scores[i + 1];
    }
    rows.total[row] = fmaf(rows.total[row], rows.factor[row], x + y);
  }
}

template <class P>
DEVICE void round_weights(u32 (&weights)[P::KEYS / 4], const float (&scores)[P::KEYS / 2]) {
#pragma unroll
  for (int i = 0; i < P::KEYS / 4; i++) weights[i] = pack<P::T>(scores[2 * i], scores[2 * i + 1]);
}

template <class P>
struct Computing {
  typename P::Shared& shared;
  const Attend& p;
  const u32 group, warp, lane;
  const float scale;
  Place<P> keys = {}, values = {};
  u32 queries = 0;

  DEVICE Computing(typename P::Shared& shared, const Attend& p, u32 group)
      : shared(shared),
        p(p),
        group(group),
        warp(threadIdx.x / 32 % 4),
        lane(threadIdx.x % 32),
        scale(float(p.scale * 1.4426950408889634)) {}

  DEVICE u64 query() const { return operand(shared_address(shared.query) + group * P::QUERY_TILE, 0); }

  DEVICE u64 key() const { return operand(shared_address(shared.key) + keys.stage * P::KEY_TILE, 0); }

  DEVICE u64 value() const { return operand(shared_address(shared.value) + values.stage * P::KEY_TILE, P::KEY_PANEL); }

  DEVICE Work wait_query() {
    shared.query_full[group].wait(queries);
    return shared.work[group];
  }

  DEVICE void wait_keys() { shared.key_full[keys.stage].wait(keys.phase); }

  DEVICE void wait_values() { shared.value_full[values.stage].wait(values.phase); }

  // After the products of the last tile of keys.
  DEVICE void release_query(u32 tile) {
    if (tile == 0) {
      __syncwarp();
      if (lane == 0) shared.query_empty[group].arrive();
      queries ^= 1;
    }
  }

  DEVICE void release_keys() {
    if (lane == 0) shared.key_empty[keys.stage].arrive();
    keys.step();
  }

  DEVICE void release_values() {
    if (lane == 0) shared.value_empty[values.stage].arrive();
    values.step();
  }

  // Each warpgroup's turn at the tensor cores is a named barrier that the one before it arrives at.
  DEVICE void wait_turn() const { named_sync(1 + group, 256); }

  DEVICE void pass_turn() const { named_arrive(group + 1 == P::GROUPS ? 1 : 2 + group, 256); }

  DEVICE void hide_unseen(float (&scores)[P::KEYS / 2], u32 tile, u32 first) const {
    int seen[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      i64 limit = p.key_length;
      if constexpr (P::CAUSAL) limit = min(limit, i64(first + warp * 16 + lane / 4 + 8 * row) + p.shift + 1);
      seen[row] = int(limit - i64(tile) * P::KEYS) - int(lane % 4 * 2);
    }
    hide(scores, seen);
  }

  // Starts the products for these keys and then those for the values of the tile before, and waits for the first.
  DEVICE void multiply(float (&scores)[P::KEYS / 2], Rows<P>& rows, const u32 (&weights)[P::KEYS / 4]) {
    wait_turn();
    products_begin();
    multiply_scores<P>(scores, query(), key());
    if constexpr (P::SCALE_EARLY) scale_sums(rows);
    wait_values();
    products_begin();
    multiply_values<P>(rows.sums, weights, value());
    pass_turn();
  }

  // Waits for the sums. The branch before that keeps the assembler from moving the exponentials behind it.
  DEVICE void finish_sums(Rows<P>& rows, u32 tile) {
    if (tile > 0) wait_keys();
    products_wait<0>();
    pin(rows.sums);
    release_values();
  }

  // One tile of keys, whose scores are worked on while the sums for the one before are under way. The keys are there.
  template <bool HIDE>
  DEVICE void step(Rows<P>& rows, u32 (&weights)[P::KEYS / 4], u32 tile, u32 first) {
    float scores[P::KEYS / 2];
    multiply(scores, rows, weights);
    products_wait<1>();
    pin(scores);
    release_keys();
    release_query(tile);
    if constexpr (HIDE) hide_unseen(scores, tile, first);
    weigh<P>(scores, rows, scale);
    pin(scores);
    finish_sums(rows, tile);
    round_weights<P>(weights, scores);
    if constexpr (!P::SCALE_EARLY) scale_sums(rows);
  }

  // One tile of keys, for a warpgroup whose queries are past the last.
  DEVICE void stand_by(u32 tile) {
    wait_turn();
    pass_turn();
    release_keys();
    release_query(tile);
    wait_values();
    if (tile > 0) wait_keys();
    release_values();
  }

  // The first tile of keys of the next queries, while the last sums of these are under way; then these are written.
  DEVICE Work step_over(Rows<P>& rows, u32 (&weights)[P::KEYS / 4], const Work& now) {
    float scores[P::KEYS / 2];
    const Work next = wait_query();
    wait_keys();
    multiply(scores, rows, weights);
    const float largest[2] = {rows.largest[0], rows.largest[1]}, total[2] = {rows.total[0], rows.total[1]};
    begin(rows);
    products_wait<1>();
    pin(scores);
    release_keys();
    release_query(next.tiles - 1);
    hide_unseen(scores, next.tiles - 1, next.first + group * 64);
    weigh<P>(scores, rows, scale);
    pin(scores);
    finish_sums(rows, next.tiles - 1);
    round_weights<P>(weights, scores);
    write(rows.sums, largest, total, now);
    clear(rows);
    return next;
  }

  DEVICE void begin(Rows<P>& rows) const {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      rows.largest[row] = __int_as_float(0xff800000);
      rows.total[row] = 0.0f;
    }
  }

  DEVICE void clear(Rows<P>& rows) const {
#pragma unroll
    for (int i = 0; i < P::DEPTH / 2; i++) rows.sums[i] = 0.0f;
  }

  DEVICE void run() {
    if (group + 1 == P::GROUPS) named_arrive(1, 256);
    const u32 count = works<P>(p);
    Work now = wait_query();
    Rows<P> rows;
    u32 weights[P::KEYS / 4];
    begin(rows);
    clear(rows);
    {
      float scores[P::KEYS / 2];
      wait_keys();
      products_begin();
      multiply_scores<P>(scores, query(), key());
      products_wait<0>();
      pin(scores);
      release_keys();
      release_query(now.tiles - 1);
      hide_unseen(scores, now.tiles - 1, now.first + group * 64);
      weigh<P>(scores, rows, scale);
      round_weights<P>(weights, scores);
      if (now.tiles > 1) wait_keys();
    }
#pragma unroll 1
    for (u32 round = 1;; round++) {
      const u32 first = now.first + group * 64;
      u32 tile = now.tiles - 1;
      if (first >= p.query_length) {
#pragma unroll 1
        for (; tile > 0; tile--) stand_by(tile - 1);
      }
      if constexpr (P::CAUSAL) {
        // Tiles of which every row sees every key.
        const u32 whole = u32(min(i64(p.key_length), i64(first) + p.shift + 1) / P::KEYS);
#pragma unroll 1
        for (; tile > whole; tile--) step<true>(rows, weights, tile - 1, first);
      }
#pragma unroll 1
      for (; tile > 0; tile--) step<false>(rows, weights, tile - 1, first);
      if (taken(round) >= count) break;
      now = step_over(rows, weights, now);
    }
    if constexpr (P::SCALE_EARLY) scale_sums(rows);
    wait_values();
    products_begin();
    multiply_values<P>(rows.sums, weights, value());
    products_wait<0>();
    pin(rows.sums);
    write(rows.sums, rows.largest, rows.total, now);
    // The last turn passed is nobody's.
    if (group == 0) wait_turn();
  }

  // Writes outputs and statistics from registers: two threads swap pairs of columns, so that four of them fill 32 bytes of a row.
  DEVICE void write(const float (&sums)[P::DEPTH / 2], const float (&largest)[2], const float (&totals)[2], const Work& now) const {
    const u32 quad = lane % 4, is_odd = lane & 1;
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float total = totals[row];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const u32 query = now.first + group * 64 + warp * 16 + lane / 4 + 8 * row;
      const bool is_there = query < p.query_length;
      if (p.statistics.address != 0 && quad == 0 && is_there) {
        float* to = matrix_of<float>(p.statistics, now) + i64(query) * p.statistics.row;
        to[0] = largest[row] * float(p.scale);
        to[p.statistics.column] = total;
      }
      const float inverse = 1.0f / total;
      u16* const out = matrix_of<u16>(p.out, now) + i64(query) * p.out.row + (is_odd * 8 + quad / 2 * 4);
#pragma unroll
      for (int block = 0; block < P::DEPTH / 8; block += 2) {
        const float* x = sums + 4 * block + 2 * row;
        const u32 even = pack<P::T>(x[0] * inverse, x[1] * inverse), odd = pack<P::T>(x[4] * inverse, x[5] * inverse);
        const u32 other = __shfl_xor_sync(~0u, is_odd ? even : odd, 1);
        if (is_there && (block + is_odd) * 8 < p.value_depth) {
          *reinterpret_cast<uint2*>(out + block * 8) = is_odd ? make_uint2(other, odd) : make_uint2(even, other);
        }
      }
    }
    // Products and barriers that follow want the whole warp.
    __syncwarp();
  }
};

template <class P>
DEVICE void attend(const TensorMap& query, const TensorMap& key, const TensorMap& value, const Attend& p) {
  extern __shared__ __align__(1024) u8 memory[];
  auto& shared = *reinterpret_cast<typename P::Shared*>(memory);
  if (threadIdx.x == 0) {
    prefetch_map(query);
    prefetch_map(key);
    prefetch_map(value);
    for (int i = 0; i < P::GROUPS; i++) {
      shared.query_full[i].init(1);
      shared.query_empty[i].init(4);
    }
    for (int i = 0; i < P::STAGES; i++) {
      shared.key_full[i].init(1);
      shared.key_empty[i].init(4 * P::GROUPS);
      shared.value_full[i].init(1);
      shared.value_empty[i].init(4 * P::GROUPS);
    }
    fence_barrier_init();
  }
  __syncthreads();
  // The same in all lanes, which the compiler cannot see by itself.
  const u32 group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (group == 0) {
    give_registers<P::COPY_REGISTERS>();
    if (threadIdx.x == 0) copy<P>(shared, query, key, value, p);
  } else {
    take_registers<P::COMPUTE_REGISTERS>();
    Computing<P>(shared, p, group - 1).run();
  }
}

#define ATTEND(NAME, ...)                                                                                              \
  extern "C" __global__ void __launch_bounds__(Plan<__VA_ARGS__>::THREADS, 1)                                          \
      NAME(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap key,                             \
           const __grid_constant__ TensorMap value, const __grid_constant__ Attend p) {                                \
    attend<Plan<__VA_ARGS__>>(query, key, value, p);                                                                   \
  }
