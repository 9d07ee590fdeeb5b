// The gradients of attention on tensor cores, for f16 and bf16: weights are made again from the statistics of their rows.
//
//   by queries: a block has a tile of queries and goes over the keys that they see:   delta of each row, dQ += dS K
//   by keys:    a block has a tile of keys and goes over the queries that see them:   dV += Pᵀ dO, dK += dSᵀ Q
//
//   P = 2^((S - m) log2 e - log2 l),  dP = dO Vᵀ,  dS = P (dP - delta),  delta = Σ dO O
//
// Two products are made twice, seven instead of five. In return every sum is one thread's, in an order that depends on the
// shape alone, and P and dS never leave the registers in which they were made: a result of m16n8k16 lies as the left operand of
// the next one does. The kernel by queries runs first and leaves m, delta and log2 l of each row in scratch.
//
// Kernels named plain know causal masks alone, no row that sees nothing but where it gets zero, and arrays in whole chunks of
// 16 bytes. Full ones know masks, biases, dropout, rows that get the mean of all values, and any strides.
#include "copy.cuh"
#include "dropout.cuh"
#include "mma.cuh"
#include "params.cuh"
#include "visible.cuh"

// Rows of a warp: those of one m16n8k16.
constexpr u32 ROWS = 16;
// Rows of scratch come in multiples of the largest tile.
constexpr u32 LARGEST = 128;
constexpr float LOG2_E = 1.4426950408889634f;

// What the kernel by queries leaves for the one by keys, for each row of each matrix, rows padded to whole tiles. A row beyond
// the last has m = inf, and so no weight.
struct RowState {
  enum { M, DELTA, LOG_L };  // plain: M is m log2(e) + log2(l), and there is no LOG_L
  float* first;              // of the matrix
  u32* low;                  // full: for every sixteen rows, whether one has no score above the lowest number: hidden keys count

  static DEVICE u32 rows(const Attend& p) { return round_up(p.query_length, LARGEST); }

  DEVICE RowState(const Attend& p, u64 matrix) {
    first = reinterpret_cast<float*>(p.scratch) + matrix * rows(p);
    low = reinterpret_cast<u32*>(of(p, LOG_L + 1) - matrix * rows(p)) + matrix * (rows(p) / ROWS);
  }

  DEVICE float* of(const Attend& p, u32 state) const { return first + u64(state) * rows(p) * p.batches * p.heads; }
};

DEVICE HeadRows rows_of(const Array& array, const Attend& p, u32 entry, u32 head, u32 rows, u32 columns) {
  return {head_of<const u16>(array, p.batch, entry, head), array.row, array.column, rows, columns};
}

// Copies of tiles of one array.
template <int D, int TILE, int THREADS, bool FULL>
struct Source {
  HeadRows rows;
  Copier<D, TILE, THREADS> copier;

  DEVICE explicit Source(const HeadRows& rows) : rows(rows), copier(rows, threadIdx.x) {}

  DEVICE void load(u32 tile, u32 first) const {
    if (!FULL || rows.in_chunks()) {
      copier.start(tile, first, threadIdx.x);
    } else {
      copy_elements<D, TILE, THREADS>(rows, tile, first, threadIdx.x);
    }
  }
};

// Where a lane reads for ldmatrix: sixteen rows by two chunks as the left operand, or transposed as the right one; ...
template <int D>
DEVICE u32 lane_of_rows() {
  const u32 lane = threadIdx.x & 31;
  return chunk_at<D>(lane & 15, lane >> 4);
}

// ... the same as the right operand, not transposed.
template <int D>
DEVICE u32 lane_of_columns() {
  const u32 lane = threadIdx.x & 31;
  return chunk_at<D>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
}

// The address of chunks 2 `pair` and 2 `pair` + 1 from that of chunks 0 and 1: tiles begin at multiples of a row's length.
DEVICE u32 at_pair(u32 lane, u32 pair) { return lane ^ pair << 5; }

template <int N>
DEVICE void clear(float (&sum)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.f;
}

// sum[16][8 N] += a[16][16] · b[8 N][16]ᵀ
template <class T, int D, int N>
DEVICE void multiply_columns(float (&sum)[N][4], const u32 (&a)[4], u32 b) {
#pragma unroll
  for (int n = 0; n < N / 2; n++) {
    u32 right[4];
    load_matrices(right, b + n * 16 * D * 2);
    T::multiply(sum[2 * n], a, right[0], right[1]);
    T::multiply(sum[2 * n + 1], a, right[2], right[3]);
  }
}

// sum[16][8 N] = a[16][D] · b[8 N][D]ᵀ
template <class T, int D, int N>
DEVICE void products(float (&sum)[N][4], const u32 (&a)[D / 16][4], u32 b) {
  clear(sum);
#pragma unroll
  for (int k = 0; k < D / 16; k++) multiply_columns<T, D>(sum, a[k], at_pair(b, k));
}

// The same with `a` in shared memory.
template <class T, int D, int N>
DEVICE void products(float (&sum)[N][4], u32 a, u32 b) {
  clear(sum);
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    u32 left[4];
    load_matrices(left, at_pair(a, k));
    multiply_columns<T, D>(sum, left, at_pair(b, k));
  }
}

// sum[16][D] += a[16][16 K] · b[16 K][D]
template <class T, int D, int K>
DEVICE void add_products(float (&sum)[D / 8][4], const u32 (&a)[K][4], u32 b) {
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      u32 right[4];
      load_transposed(right, at_pair(b, n) + k * 16 * D * 2);
      T::multiply(sum[2 * n], a[k], right[0], right[1]);
      T::multiply(sum[2 * n + 1], a[k], right[2], right[3]);
    }
  }
}

// A result, rounded, as a left operand.
template <class T, int K>
DEVICE void as_left(u32 (&a)[K][4], const float (&c)[2 * K][4]) {
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[k][i] = T::pack(c[2 * k + i / 2][i % 2 * 2], c[2 * k + i / 2][i % 2 * 2 + 1]);
  }
}

// Rounds and writes a warp's rows of a result, those below `rows`.
template <class T, int D>
DEVICE void store_rows(u16* to, const Array& array, u32 first, u32 rows, u32 depth, const float (&sum)[D / 8][4],
                       float factor) {
  const u32 lane = threadIdx.x & 31;
  const bool pairs = array.column == 1 && ((u64(to) | u64(array.row) * 2 | depth * 2) & 3) == 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u32 row = first + lane / 4 + half * 8;
    if (row >= rows) continue;
    u16* start = to + i64(row) * array.row;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const u32 column = n * 8 + lane % 4 * 2;
      const u32 packed = T::pack(sum[n][half * 2] * factor, sum[n][half * 2 + 1] * factor);
      if (pairs) {
        if (column < depth) *reinterpret_cast<u32*>(start + column) = packed;
      } else {
        if (column < depth) start[i64(column) * array.column] = u16(packed);
        if (column + 1 < depth) start[i64(column + 1) * array.column] = u16(packed >> 16);
      }
    }
  }
}

// Σ dO O of a lane's two rows, from the left operand dO and the rows of the output.
template <class T, int D>
DEVICE void row_products(float (&delta)[2], const u32 (&d_out)[D / 16][4], const HeadRows& out, u32 first) {
  const u32 lane = threadIdx.x & 31;
  const bool chunks = out.in_chunks();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u32 row = first + lane / 4 + half * 8;
    const u16* from = out.from + i64(row) * out.row_stride;
    float sum = 0.f;
    if (row < out.rows) {
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const u32 column = n * 8 + lane % 4 * 2, gradient = d_out[n / 2][n % 2 * 2 + half];
        u32 packed = 0;
        if (chunks) {
          if (column < out.columns) packed = *reinterpret_cast<const u32*>(from + column);
        } else {
          if (column < out.columns) packed = from[i64(column) * out.column_stride];
          if (column + 1 < out.columns) packed |= u32(from[i64(column + 1) * out.column_stride]) << 16;
        }
        sum = fmaf(T::widen(u16(gradient)), T::widen(u16(packed)), sum);
        sum = fmaf(T::widen(u16(gradient >> 16)), T::widen(u16(packed >> 16)), sum);
      }
    }
    delta[half] = quad_sum(sum);
  }
}

// Which of a lane's elements of a 16 x 8 N result are seen and kept: bit 4 n + i stands for element i of the n-th 16 x 8 one.
struct Marks {
  u32 seen, kept;
};

// Masks, biases and dropout of one matrix.
struct Extras {
  Scoring<float> scoring;
  Dropped<float> dropped;
  bool drops;

  DEVICE Extras(const Attend& p, u32 entry, u32 head)
      : scoring(p, entry, head), dropped(p, entry * p.heads + head), drops(p.dropout.width != 0) {}

  // Of a result whose rows are queries, or keys where `TURNED`. Its loop is not unrolled: dropout's words are long code.
  template <bool TURNED, u32 COLUMNS>
  DEVICE Marks marks(const Attend& p, u32 first_row, u32 first_column) const {
    const u32 lane = threadIdx.x & 31;
    Marks marks = {0, 0};
#pragma unroll 1
    for (u32 bit = 0; bit < COLUMNS / 2; bit++) {
      const u32 row = first_row + lane / 4 + (bit >> 1 & 1) * 8, column = first_column + bit / 4 * 8 + lane % 4 * 2 + (bit & 1);
      const u32 query = TURNED ? column : row, key = TURNED ? row : column;
      if (query >= p.query_length || key >= p.key_length) continue;
      marks.seen |= u32(scoring.sees(p, query, key)) << bit;
      if (drops) marks.kept |= u32(is_kept(p.dropout, dropped.first + dropped.keys * query + key)) << bit;
    }
    return marks;
  }

  // The weight of a score. There is a key and a query where it is seen; elsewhere a row's m makes 0 of it, or a column of zeros
  // takes it.
  DEVICE float weight(const Attend& p, float product, u32 query, u32 key, bool seen, float m, float log_l) const {
    const float score = seen ? scoring.score(p, product * float(p.scale), query, key, true) : scoring.hidden;
    return power_of_2(fmaf(score - m, LOG2_E, -log_l));
  }

  // Dropout's factor on a weight.
  DEVICE float factor(bool kept) const { return !drops ? 1.f : kept ? dropped.kept : dropped.dropped; }
};

// m, and log2(l), of a row as the kernels take them. Rows that see nothing, beyond the last one or of zeros, have no weights.
template <bool FULL>
DEVICE void read_statistics(const Attend& p, const float* statistics, u32 row, float& m, float& log_l, bool& low) {
  m = -Special<float>::neg_infinity();
  log_l = 0.f;
  low = false;
  if (row >= p.query_length) return;
  const float* at = statistics + i64(row) * p.statistics.row;
  const float largest = at[0], sum = at[p.statistics.column];
  if (largest == Special<float>::neg_infinity() || sum == 0.f) return;
  low = largest == Special<float>::lowest();
  log_l = log2f(sum);
  m = FULL ? largest : fmaf(largest, LOG2_E, log_l);
}

// WARPS warps have sixteen queries each, a step has STEP keys.
template <class T, int D, int WARPS, u32 STEP, bool FULL>
DEVICE void by_queries(const Attend& p) {
  constexpr u32 TILE = WARPS * ROWS, THREADS = WARPS * 32, TILE_BYTES = TILE * D * 2, STEP_BYTES = STEP * D * 2;
  extern __shared__ __align__(1024) u8 shared[];
  __shared__ u32 low_warps[WARPS];
  const u32 query_tile = shared_address(shared), gradient_tile = query_tile + TILE_BYTES;
  const u32 key_tiles = gradient_tile + TILE_BYTES, value_tiles = key_tiles + 2 * STEP_BYTES;

  const u32 blocks = blocks_of(p.query_length, TILE), matrix = blockIdx.x / blocks;
  // Under a causal mask the last queries have most to do.
  const u32 tile = blocks - 1 - blockIdx.x % blocks, first = tile * TILE;
  const u32 entry = matrix / p.heads, head = matrix % p.heads, key_head = head / (p.heads / p.key_heads);
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = first + warp * ROWS;

  {
    const Source<D, TILE, THREADS, FULL> query(rows_of(p.query, p, entry, head, p.query_length, p.depth));
    const Source<D, TILE, THREADS, FULL> d_out(rows_of(p.d_out, p, entry, head, p.query_length, p.value_depth));
    query.load(query_tile, first);
    d_out.load(gradient_tile, first);
    copy_commit();
  }
  float m[2], log_l[2], delta[2];
  const float* statistics = head_of<const float>(p.statistics, p.batch, entry, head);
  bool any_low = false;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    bool low;
    read_statistics<FULL>(p, statistics, row + lane / 4 + half * 8, m[half], log_l[half], low);
    any_low = any_low || low;
  }
  const RowState state(p, matrix);
  if (FULL) {
    any_low = __any_sync(~0u, any_low);
    if (lane == 0) {
      low_warps[warp] = any_low;
      state.low[row / ROWS] = any_low;
    }
  }
  copy_wait<0>();
  __syncthreads();

  // Keys that the block goes over, and those that the warp looks at.
  bool every_key = FULL && drops_all(p);
  if (FULL) {
#pragma unroll
    for (int i = 0; i < WARPS; i++) every_key = every_key || low_warps[i];
  }
  const u32 last = smaller(first + TILE, p.query_length) - 1, last_of_warp = smaller(row + ROWS, p.query_length) - 1;
  const u32 steps = blocks_of(every_key ? p.key_length : reach_of(p, last), STEP);
  u32 steps_of_warp = blocks_of(every_key ? p.key_length : reach_of(p, last_of_warp), STEP);
  if (row >= p.query_length) steps_of_warp = 0;

  const Source<D, STEP, THREADS, FULL> key(rows_of(p.key, p, entry, key_head, p.key_length, p.depth));
  const Source<D, STEP, THREADS, FULL> value(rows_of(p.value, p, entry, key_head, p.key_length, p.value_depth));
  if (steps > 0) {
    key.load(key_tiles, 0);
    value.load(value_tiles, 0);
    copy_commit();
  }
  u32 q[D / 16][4], d_out[D / 16][4];
  const u32 rows_lane = lane_of_rows<D>(), columns_lane = lane_of_columns<D>();
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    load_matrices(q[k], at_pair(query_tile + warp * ROWS * D * 2 + rows_lane, k));
    load_matrices(d_out[k], at_pair(gradient_tile + warp * ROWS * D * 2 + rows_lane, k));
  }
  // Rows that look at one tile of keys get delta as a sum of the very numbers that it is then subtracted from: the rounding of
  // the output would stay where the difference vanishes, as it does in a row that sees one key.
  const bool alone = steps_of_warp == 1;
  const auto leave_state = [&] {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const u32 at = row + lane / 4 + half * 8;
      state.of(p, RowState::M)[at] = m[half];
      state.of(p, RowState::DELTA)[at] = delta[half];
      if (FULL) state.of(p, RowState::LOG_L)[at] = log_l[half];
    }
  };
  if (!alone) {
    row_products<T, D>(delta, d_out, rows_of(p.out, p, entry, head, p.query_length, p.value_depth), row);
    leave_state();
  }

  const Extras extras(p, entry, head);
  const float scale = float(p.scale), scale_log2 = float(p.scale * 1.4426950408889634);
  float d_query[D / 8][4];
  clear(d_query);
  for (u32 step = 0; step < steps; step++) {
    copy_wait<0>();
    __syncthreads();
    const u32 stage = (step & 1) * STEP_BYTES;
    if (step + 1 < steps) {
      key.load(key_tiles + (STEP_BYTES - stage), (step + 1) * STEP);
      value.load(value_tiles + (STEP_BYTES - stage), (step + 1) * STEP);
      copy_commit();
    }
    if (step >= steps_of_warp) continue;
    const u32 first_key = step * STEP;
    Marks marks;
    if (FULL) marks = extras.template marks<false, STEP>(p, row, first_key);
    float p_s[STEP / 8][4], d_p[STEP / 8][4];
    products<T, D>(p_s, q, key_tiles + stage + columns_lane);
    products<T, D>(d_p, d_out, value_tiles + stage + columns_lane);
    u32 left[STEP / 16][4];
    if constexpr (FULL) {
      float share[2] = {0.f, 0.f}, total[2] = {0.f, 0.f};
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const u32 bit = n * 4 + i, at = row + lane / 4 + i / 2 * 8, column = first_key + n * 8 + lane % 4 * 2 + i % 2;
          p_s[n][i] = extras.weight(p, p_s[n][i], at, column, marks.seen >> bit & 1, m[i / 2], log_l[i / 2]);
          total[i / 2] += p_s[n][i];
        }
      }
      if (alone) {
        // The sum that statistics have is rounded. Where a row sees one key, its weight is 1 and its score has no gradient.
        total[0] = quad_sum(total[0]);
        total[1] = quad_sum(total[1]);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (total[i / 2] > 0.f) p_s[n][i] = __fdiv_rn(p_s[n][i], total[i / 2]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          d_p[n][i] *= extras.factor(marks.kept >> (n * 4 + i) & 1);
          // A hidden key has no part in it, be its value what it may.
          if (p_s[n][i] != 0.f) share[i / 2] = fmaf(p_s[n][i], d_p[n][i], share[i / 2]);
        }
      }
      if (alone) {
        delta[0] = quad_sum(share[0]);
        delta[1] = quad_sum(share[1]);
      }
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          d_p[n][i] = marks.seen >> (n * 4 + i) & 1 ? p_s[n][i] * (d_p[n][i] - delta[i / 2]) : 0.f;
        }
      }
    } else {
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) p_s[n][i] = power_of_2(fmaf(p_s[n][i], scale_log2, -m[i / 2]));
      }
      // Keys beyond the last one, and those that the causal mask hides.
      const bool edge = first_key + STEP > reach_of(p, row);
      if (edge) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const u32 end = reach_of(p, row + lane / 4 + half * 8);
#pragma unroll
          for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
            for (int i = half * 2; i < half * 2 + 2; i++) {
              if (first_key + n * 8 + lane % 4 * 2 + i % 2 < end) continue;
              p_s[n][i] = d_p[n][i] = 0.f;
            }
          }
        }
      }
      if (alone) {
        float share[2] = {0.f, 0.f};
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) share[i / 2] = fmaf(p_s[n][i], d_p[n][i], share[i / 2]);
        }
        delta[0] = quad_sum(share[0]);
        delta[1] = quad_sum(share[1]);
      }
#pragma unroll
      for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) d_p[n][i] = p_s[n][i] * (d_p[n][i] - delta[i / 2]);
      }
    }
    if (alone) leave_state();
    as_left<T>(left, d_p);
    add_products<T, D>(d_query, left, key_tiles + stage + rows_lane);
  }
  u16* to = head_of<u16>(p.d_query, p.batch, entry, head);
  store_rows<T, D>(to, p.d_query, row, p.query_length, p.depth, d_query, scale);
}

// The query heads and tiles of queries that a block of the kernel by keys goes over, in their order.
template <u32 STEP, bool FULL>
struct Walk {
  u32 head, tile;  // of all heads, of the head
  u32 seen_from;   // the first tile that sees one of the keys
  bool every;      // whether hidden keys count

  static DEVICE u32 tiles(const Attend& p) { return blocks_of(p.query_length, STEP); }

  DEVICE Walk(const Attend& p, u32 first_head, u32 first_key) : head(first_head), every(false) {
    const u32 first = first_query_of(p, first_key);
    seen_from = first < p.query_length ? first / STEP : tiles(p);
    tile = FULL ? 0 : seen_from;
  }

  // Goes on to the next tile that counts, from this one on; whether there is one before head `end`. `low` are the marks of
  // the entry's first head.
  DEVICE bool seek(const Attend& p, u32 end, const u32* low) {
    while (head < end) {
      if (tile >= tiles(p)) {
        head++;
        tile = FULL ? 0 : seen_from;
        if (!FULL && seen_from >= tiles(p)) return false;
        continue;
      }
      if (!FULL) return true;
      const u32* marks = low + head * (RowState::rows(p) / ROWS) + tile * (STEP / ROWS);
      every = drops_all(p);
#pragma unroll
      for (u32 i = 0; i < STEP / ROWS; i++) every = every || marks[i] != 0;
      if (every || tile >= seen_from) return true;
      tile++;
    }
    return false;
  }
};

// WARPS warps have sixteen keys each, a step has STEP queries, PART of them at a time in registers.
template <class T, int D, int WARPS, u32 STEP, u32 PART, bool FULL>
DEVICE void by_keys(const Attend& p) {
  constexpr u32 TILE = WARPS * ROWS, THREADS = WARPS * 32, TILE_BYTES = TILE * D * 2, STEP_BYTES = STEP * D * 2;
  constexpr u32 STATES = FULL ? 3 : 2;
  extern __shared__ __align__(1024) u8 shared[];
  __shared__ __align__(16) float states[2][STATES][STEP];
  const u32 key_tile = shared_address(shared), value_tile = key_tile + TILE_BYTES;
  const u32 query_tiles = value_tile + TILE_BYTES, gradient_tiles = query_tiles + 2 * STEP_BYTES;

  const u32 blocks = blocks_of(p.key_length, TILE), matrix = blockIdx.x / blocks;
  const u32 first = blockIdx.x % blocks * TILE;
  const u32 entry = matrix / p.key_heads, key_head = matrix % p.key_heads, group = p.heads / p.key_heads;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = first + warp * ROWS;
  {
    const Source<D, TILE, THREADS, FULL> key(rows_of(p.key, p, entry, key_head, p.key_length, p.depth));
    const Source<D, TILE, THREADS, FULL> value(rows_of(p.value, p, entry, key_head, p.key_length, p.value_depth));
    key.load(key_tile, first);
    value.load(value_tile, first);
    copy_commit();
  }
  const u32 end_head = (key_head + 1) * group;
  const RowState state(p, u64(entry) * p.heads);
  const HeadRows queries_of_entry = rows_of(p.query, p, entry, 0, p.query_length, p.depth);
  const HeadRows gradients_of_entry = rows_of(p.d_out, p, entry, 0, p.query_length, p.value_depth);
  const auto load = [&](const Walk<STEP, FULL>& at, u32 stage) {
    HeadRows query = queries_of_entry, d_out = gradients_of_entry;
    query.from += at.head * p.query.head;
    d_out.from += at.head * p.d_out.head;
    Source<D, STEP, THREADS, FULL>(query).load(query_tiles + stage * STEP_BYTES, at.tile * STEP);
    Source<D, STEP, THREADS, FULL>(d_out).load(gradient_tiles + stage * STEP_BYTES, at.tile * STEP);
    const u32 part = threadIdx.x / (STEP / 4), four = threadIdx.x % (STEP / 4) * 4;
    if (part < STATES) {
      const float* from = state.of(p, part) + u64(at.head) * RowState::rows(p) + at.tile * STEP + four;
      copy_async(shared_address(&states[stage][part][four]), from, 16);
    }
    copy_commit();
  };

  Walk<STEP, FULL> walk(p, key_head * group, first);
  bool more = walk.seek(p, end_head, state.low);
  if (more) load(walk, 0);
  const u32 rows_lane = lane_of_rows<D>(), columns_lane = lane_of_columns<D>();
  const u32 key_lane = key_tile + warp * ROWS * D * 2 + rows_lane, value_lane = value_tile + warp * ROWS * D * 2 + rows_lane;
  const float scale = float(p.scale), scale_log2 = float(p.scale * 1.4426950408889634);
  float d_key[D / 8][4], d_value[D / 8][4];
  clear(d_key);
  clear(d_value);
  for (u32 stage = 0; more; stage ^= 1) {
    copy_wait<0>();
    __syncthreads();
    const u32 head = walk.head, first_query = walk.tile * STEP;
    const bool every = walk.every;
    walk.tile++;
    more = walk.seek(p, end_head, state.low);
    if (more) load(walk, stage ^ 1);
    // Whether one of the warp's keys is seen at all.
    const bool hidden = reach_of(p, first_query + STEP - 1) <= row;
    if (row >= p.key_length || (hidden && !every)) continue;
    const u32 queries = query_tiles + stage * STEP_BYTES, gradients = gradient_tiles + stage * STEP_BYTES;
#pragma unroll 1
    for (u32 part = 0; part < STEP; part += PART) {
      const u32 part_query = first_query + part, part_queries = queries + part * D * 2, part_gradients = gradients + part * D * 2;
      float weights[PART / 8][4], scores[PART / 8][4];  // the latter's gradients
      u32 left[PART / 16][4];
      if constexpr (FULL) {
        const Extras extras(p, entry, head);
        const Marks marks = extras.template marks<true, PART>(p, row, part_query);
        products<T, D>(weights, key_lane, part_queries + columns_lane);
        products<T, D>(scores, value_lane, part_gradients + columns_lane);
#pragma unroll
        for (int n = 0; n < PART / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const u32 bit = n * 4 + i, local = n * 8 + lane % 4 * 2 + i % 2;
            const bool seen = marks.seen >> bit & 1;
            const float m = states[stage][RowState::M][part + local], log_l = states[stage][STATES - 1][part + local];
            const float weight = extras.weight(p, weights[n][i], part_query + local, row + lane / 4 + i / 2 * 8, seen, m, log_l);
            const float factor = extras.factor(marks.kept >> bit & 1);
            weights[n][i] = weight * factor;
            scores[n][i] = seen ? weight * (scores[n][i] * factor - states[stage][RowState::DELTA][part + local]) : 0.f;
          }
        }
        as_left<T>(left, weights);
        add_products<T, D>(d_value, left, part_gradients + rows_lane);
      } else {
        products<T, D>(weights, key_lane, part_queries + columns_lane);
#pragma unroll
        for (int n = 0; n < PART / 8; n++) {
          const float2 m = *reinterpret_cast<const float2*>(&states[stage][RowState::M][part + n * 8 + lane % 4 * 2]);
#pragma unroll
          for (int i = 0; i < 4; i++) weights[n][i] = power_of_2(fmaf(weights[n][i], scale_log2, i % 2 ? -m.y : -m.x));
        }
        // Columns beyond the last query have no weight, and rows beyond the last key are not written.
        const bool edge = p.causal && reach_of(p, part_query) < row + ROWS;
        if (edge) {
#pragma unroll
          for (int n = 0; n < PART / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const u32 query = part_query + n * 8 + lane % 4 * 2 + i % 2;
              if (row + lane / 4 + i / 2 * 8 >= reach_of(p, query)) weights[n][i] = 0.f;
            }
          }
        }
        as_left<T>(left, weights);
        add_products<T, D>(d_value, left, part_gradients + rows_lane);
        products<T, D>(scores, value_lane, part_gradients + columns_lane);
#pragma unroll
        for (int n = 0; n < PART / 8; n++) {
          const float2 delta = *reinterpret_cast<const float2*>(&states[stage][RowState::DELTA][part + n * 8 + lane % 4 * 2]);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            // The weight as it was rounded: there are no registers for more.
            const float weight = T::widen(u16(left[n / 2][n % 2 * 2 + i / 2] >> i % 2 * 16));
            scores[n][i] = weight * (scores[n][i] - (i % 2 ? delta.y : delta.x));
          }
        }
      }
      as_left<T>(left, scores);
      add_products<T, D>(d_key, left, part_queries + rows_lane);
    }
  }
  // Where no query sees a key nothing has waited for the keys.
  copy_wait<0>();
  u16* to = head_of<u16>(p.d_key, p.batch, entry, key_head);
  store_rows<T, D>(to, p.d_key, row, p.key_length, p.depth, d_key, scale);
  to = head_of<u16>(p.d_value, p.batch, entry, key_head);
  store_rows<T, D>(to, p.d_value, row, p.key_length, p.value_depth, d_value, 1.f);
}

// FULL kernels of the largest depth take half as much at a time, for what they need beside the products.
#define KERNEL(NAME, T, D, WARPS, BLOCKS, KIND, STEP, PART, FULL)                                            \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                     \
      attend_backward_queries_##NAME##_d##D##_##KIND(const __grid_constant__ Attend p) {               \
    by_queries<T, D, WARPS, STEP, FULL>(p);                                                            \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)                                     \
      attend_backward_keys_##NAME##_d##D##_##KIND(const __grid_constant__ Attend p) {                  \
    by_keys<T, D, WARPS, STEP, PART, FULL>(p);                                                               \
  }
#define KERNELS(NAME, T)                                    \
  KERNEL(NAME, T, 64, 4, 2, plain, 64, 64, false)               \
  KERNEL(NAME, T, 64, 4, 2, full, 64, 64, true)                 \
  KERNEL(NAME, T, 128, 8, 1, plain, 64, 32, false)              \
  KERNEL(NAME, T, 128, 8, 1, full, 32, 32, true)

KERNELS(f16, F16)
KERNELS(bf16, BF16)
