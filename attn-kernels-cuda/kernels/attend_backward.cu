// Gradients of attention with ordinary arithmetic: every dtype, every depth. Weights are made again from the statistics of their rows.
//
//   p  = e^(score - m) / l               as in the forward pass
//   dp = (d_out . v) times dropout's factors
//   ds = p (dp - delta)                  0 where hidden
//   delta = sum p dp in a block that looks at one tile of keys, else sum d_out out
//   dq = scale sum over keys of ds k
//   dk = sum over queries of ds (scale q),  dv = sum over queries of (p times dropout's factors) d_out
//
// Both forms of delta are the same but for rounding. The first is made of the very numbers that it is subtracted from, so a row that
// sees one key gets a gradient of 0, as it should; the second needs no pass over all keys.
//
// Three kernels, each of which owns what it writes and adds in a fixed order: blocks of queries make delta, for the others too, and dq;
// blocks of keys dk and dv; blocks of the bias's elements the gradient of the bias. Tiles that the causal mask hides are passed over;
// only rows that see nothing give hidden keys weights, and so their values gradients.
#include "sight.cuh"

// What is known of a row of weights.
template <typename A>
struct Row {
  A m;        // its largest score, or 0 where that is -inf
  A inverse;  // of its sum
  A delta;
};

// One head of queries and what it meets.
template <typename T>
struct Head {
  typedef Acc<T> A;
  const Attend& p;
  u32 matrix;
  Rows<T> query, key, value, d_out;
  Scoring<A> scoring;
  Dropped<A> dropped;
  const A* statistics;
  A* delta;  // of each of its queries

  DEVICE Head(const Attend& p, u32 entry, u32 head)
      : p(p),
        matrix(entry * p.heads + head),
        query(p, p.query, WIDE_QUERY, entry, head, p.query_length, p.depth),
        key(p, p.key, WIDE_KEY, entry, head / (p.heads / p.key_heads), p.key_length, p.depth),
        value(p, p.value, WIDE_VALUE, entry, head / (p.heads / p.key_heads), p.key_length, p.value_depth),
        d_out(p, p.d_out, WIDE_D_OUT, entry, head, p.query_length, p.value_depth),
        scoring(p, entry, head),
        dropped(p, matrix),
        statistics(head_of<const A>(p.statistics, p.batch, entry, head)),
        delta(reinterpret_cast<A*>(p.scratch) + u64(matrix) * p.query_length) {}

  DEVICE A largest(u32 q) const { return statistics[i64(q) * p.statistics.row]; }

  // A row without its delta; one that does not exist has no weights.
  DEVICE Row<A> row(u32 q) const {
    if (q >= p.query_length) return {A(0), A(0), A(0)};
    const A sum = statistics[i64(q) * p.statistics.row + p.statistics.column];
    return {finite_or_zero(largest(q)), A(1) / sum, A(0)};
  }

  // Products of a tile of queries and keys become weights, 0 where there are none.
  template <bool TURNED, typename R>
  DEVICE void weigh(Square<A>& weights, const Frame<TURNED>& frame, const Sight& sight, const R& row) const {
    adjust(weights, p, scoring, frame, sight);
#pragma unroll
    for (u32 n = 0; n < ELEMENTS; n++)
      weights[n] = sight.exists >> n & 1 ? exponential(weights[n] - row(n).m) * row(n).inverse : A(0);
  }
};

// Gradients of weights become those of scores.
template <typename A, typename R>
DEVICE void through_softmax(const Square<A>& weights, Square<A>& gradients, const Sight& sight, const R& row) {
#pragma unroll
  for (u32 n = 0; n < ELEMENTS; n++)
    gradients[n] = sight.seen >> n & 1 ? weights[n] * (gradients[n] - row(n).delta) : A(0);
}

// Blocks of queries: delta and dq.
template <typename T, u32 WIDTH>
DEVICE void of_queries(const Attend& p, Tiles<Acc<T>>& tiles) {
  typedef Acc<T> A;
  const u32 size = blockDim.x / LANES * OWN;
  const u32 chunks = max(1u, blocks_of(p.depth, WIDTH)), count = blocks_of(p.query_length, size);
  const u32 column0 = blockIdx.x % chunks * WIDTH, number = blockIdx.x / chunks;
  const u32 query0 = (count - 1 - number % count) * size, matrix = number / count;
  const u32 entry = matrix / p.heads, index = matrix % p.heads;
  const u32 existing = smaller(p.query_length - query0, size);
  const Head<T> head(p, entry, index);
  const Thread thread(existing);
  const u32 seen = blocks_of(reach_of(p, query0 + existing - 1), KEYS);
  Row<A> rows[OWN];
#pragma unroll
  for (u32 i = 0; i < OWN; i++) rows[i] = head.row(query0 + thread.row + i);
  if (seen != 1) {
    const T* out = head_of<const T>(p.out, p.batch, entry, index);
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
      const u32 q = query0 + thread.row + i;
      A sum = A(0);
      if (q < p.query_length) {
#pragma unroll 1
        for (u32 c = thread.lane; c < p.value_depth; c += LANES)
          sum = multiply_add(widen(head.d_out.first[i64(q) * p.d_out.row + i64(c) * p.d_out.column]),
                             widen(out[i64(q) * p.out.row + i64(c) * p.out.column]), sum);
      }
      rows[i].delta = sum_over_row(sum);
    }
  }
  Sums<A, WIDTH> dq;
  dq.clear();
  for (u32 tile = 0; tile < seen; tile++) {
    const u32 key0 = tile * KEYS;
    Square<A> weights, gradients;
    product(weights, tiles, thread, head.query, query0, A(p.scale), head.key, key0, A(1));
    product(gradients, tiles, thread, head.d_out, query0, A(1), head.value, key0, A(1));
    if (thread.active) {
      const Frame<false> frame(thread, query0, key0);
      const Sight sight = sight_of(p, head.scoring, frame);
      const auto row = [&](u32 n) { return rows[n / 4]; };
      head.weigh(weights, frame, sight, row);
      if (p.dropout.width) drop(gradients, head.dropped, kept_of(p, head.dropped, frame));
      if (seen == 1) {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
          A sum = A(0);
          // A hidden key has no part in it, be its value what it may.
#pragma unroll
          for (u32 j = 0; j < 4; j++)
            if (weights.at[i][j] != A(0)) sum = multiply_add(weights.at[i][j], gradients.at[i][j], sum);
          rows[i].delta = sum_over_row(sum);
        }
      }
      through_softmax(weights, gradients, sight, row);
    }
    __syncthreads();
    put_weights(tiles, thread, gradients);
    add_rows(dq, tiles, thread, head.key, key0, smaller(KEYS, p.key_length - key0), column0, A(1));
  }
  write_rows(head_of<T>(p.d_query, p.batch, entry, index), p.d_query, thread, query0, p.query_length, column0, p.depth, dq,
             [&](A sum, u32) { return sum * A(p.scale); });
  if (column0 == 0 && thread.lane == 0) {
#pragma unroll
    for (u32 i = 0; i < OWN; i++)
      if (query0 + thread.row + i < p.query_length) head.delta[query0 + thread.row + i] = rows[i].delta;
  }
}

// Blocks of keys: dk and dv, of all queries of a group of heads. Rows of tiles are keys, columns queries.
template <typename T, u32 WIDTH>
DEVICE void of_keys(const Attend& p, Tiles<Acc<T>>& tiles) {
  typedef Acc<T> A;
  const u32 size = blockDim.x / LANES * OWN;
  const u32 chunks = max(1u, blocks_of(max(p.depth, p.value_depth), WIDTH)), count = blocks_of(p.key_length, size);
  const u32 column0 = blockIdx.x % chunks * WIDTH, number = blockIdx.x / chunks;
  const u32 key0 = number % count * size, key_matrix = number / count;
  const u32 entry = key_matrix / p.key_heads, key_head = key_matrix % p.key_heads;
  const u32 group = p.heads / p.key_heads;
  const Thread thread(smaller(p.key_length - key0, size));
  Sums<A, WIDTH> dk, dv;
  dk.clear();
  dv.clear();
  // Queries before it see none of the keys.
  const u32 first = drops_all(p) ? 0 : first_query_of(p, key0) / KEYS * KEYS;
  const bool blind = may_be_blind(p);
  for (u32 number = 0; number < group; number++) {
    const Head<T> head(p, entry, key_head * group + number);
    for (u32 query0 = blind ? 0 : first; query0 < p.query_length; query0 += KEYS) {
      if (query0 < first) {
        bool any = false;
        for (u32 q = query0 + threadIdx.x; q < smaller(query0 + KEYS, p.query_length); q += blockDim.x)
          any |= !(head.largest(q) > Special<A>::lowest());
        if (!__syncthreads_or(any)) continue;
      }
      Square<A> weights, gradients;
      product(weights, tiles, thread, head.key, key0, A(1), head.query, query0, A(p.scale));
      product(gradients, tiles, thread, head.value, key0, A(1), head.d_out, query0, A(1));
      if (thread.active) {
        Row<A> rows[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
          const u32 q = query0 + thread.lane + j * LANES;
          rows[j] = head.row(q);
          if (q < p.query_length) rows[j].delta = head.delta[q];
        }
        const Frame<true> frame(thread, key0, query0);
        const Sight sight = sight_of(p, head.scoring, frame);
        const auto row = [&](u32 n) { return rows[n % 4]; };
        head.weigh(weights, frame, sight, row);
        const u32 kept = p.dropout.width ? kept_of(p, head.dropped, frame) : 0;
        if (p.dropout.width) drop(gradients, head.dropped, kept);
        through_softmax(weights, gradients, sight, row);
        if (p.dropout.width) drop(weights, head.dropped, kept);
      }
      const u32 queries = smaller(KEYS, p.query_length - query0);
      __syncthreads();
      if (column0 < p.value_depth) {
        put_weights(tiles, thread, weights);
        add_rows(dv, tiles, thread, head.d_out, query0, queries, column0, A(1));
        __syncthreads();
      }
      if (column0 < p.depth) {
        put_weights(tiles, thread, gradients);
        add_rows(dk, tiles, thread, head.query, query0, queries, column0, A(p.scale));
      }
    }
  }
  const auto as_it_is = [](A sum, u32) { return sum; };
  write_rows(head_of<T>(p.d_key, p.batch, entry, key_head), p.d_key, thread, key0, p.key_length, column0, p.depth, dk, as_it_is);
  write_rows(head_of<T>(p.d_value, p.batch, entry, key_head), p.d_value, thread, key0, p.key_length, column0, p.value_depth, dv,
             as_it_is);
}

// A matrix, or a part of its number.
struct Matrix {
  u32 entry, head;
};

// The n-th combination of the axes of batch and heads along which the bias has elements of its own, or is repeated.
DEVICE Matrix bias_matrix(const Attend& p, bool own, u32 n) {
  Matrix matrix = {0, 0};
  if ((p.d_bias.head != 0) == own) {
    matrix.head = n % p.heads;
    n /= p.heads;
  }
  u32 step = 1;
#pragma unroll 1
  for (int axis = int(p.batch.axes) - 1; axis >= 0; axis--) {
    const u32 length = p.batch.dims[axis];
    if ((p.d_bias.batch[axis] != 0) == own) {
      matrix.entry += n % length * step;
      n /= length;
    }
    step *= length;
  }
  return matrix;
}

// How many matrices share the elements of one.
DEVICE u32 bias_sharers(const Attend& p) {
  u32 count = p.d_bias.head == 0 ? p.heads : 1;
#pragma unroll 1
  for (u32 axis = 0; axis < p.batch.axes; axis++)
    if (p.d_bias.batch[axis] == 0) count *= p.batch.dims[axis];
  return count;
}

// Blocks of the bias's elements: a tile of a matrix, a strip of tiles or the whole, as queries or keys share an element.
template <typename T>
DEVICE void of_bias(const Attend& p, Tiles<Acc<T>>& tiles) {
  typedef Acc<T> A;
  const u32 size = blockDim.x / LANES * OWN;
  const bool by_query = p.d_bias.row != 0, by_key = p.d_bias.column != 0;
  const u32 query_tiles = blocks_of(p.query_length, size), key_tiles = blocks_of(p.key_length, KEYS);
  u32 number = blockIdx.x, first_query = 0, last_query = query_tiles, first_key = 0, last_key = key_tiles;
  if (by_key) {
    first_key = number % key_tiles, last_key = first_key + 1;
    number /= key_tiles;
  }
  if (by_query) {
    first_query = number % query_tiles, last_query = first_query + 1;
    number /= query_tiles;
  }
  const Matrix owner = bias_matrix(p, true, number);
  const u32 sharers = bias_sharers(p);
  Square<A> sums = {};
  for (u32 n = 0; n < sharers; n++) {
    const Matrix other = bias_matrix(p, false, n);
    const Head<T> head(p, owner.entry + other.entry, owner.head + other.head);
    for (u32 query_tile = first_query; query_tile < last_query; query_tile++) {
      const u32 query0 = query_tile * size, existing = smaller(p.query_length - query0, size);
      const Thread thread(existing);
      const u32 seen = blocks_of(reach_of(p, query0 + existing - 1), KEYS);
      Row<A> rows[OWN];
#pragma unroll
      for (u32 i = 0; i < OWN; i++) {
        const u32 q = query0 + thread.row + i;
        rows[i] = head.row(q);
        if (q < p.query_length) rows[i].delta = head.delta[q];
      }
      for (u32 key_tile = first_key; key_tile < smaller(last_key, seen); key_tile++) {
        const u32 key0 = key_tile * KEYS;
        Square<A> weights, gradients;
        product(weights, tiles, thread, head.query, query0, A(p.scale), head.key, key0, A(1));
        product(gradients, tiles, thread, head.d_out, query0, A(1), head.value, key0, A(1));
        if (!thread.active) continue;
        const Frame<false> frame(thread, query0, key0);
        const Sight sight = sight_of(p, head.scoring, frame);
        const auto row = [&](u32 n) { return rows[n / 4]; };
        head.weigh(weights, frame, sight, row);
        if (p.dropout.width) drop(gradients, head.dropped, kept_of(p, head.dropped, frame));
        through_softmax(weights, gradients, sight, row);
#pragma unroll
        for (u32 n = 0; n < ELEMENTS; n++) sums[n] += gradients[n];
      }
    }
  }
  __syncthreads();
  Thread thread(size);
  put_weights(tiles, thread, sums);
  __syncthreads();
  // Of rows and columns that share an element the first has the sum.
  if (!by_key) {
    for (u32 r = threadIdx.x; r < size; r += blockDim.x) {
      A* row = tiles.weights + r * Sizes<A>::WEIGHTS;
      A sum = row[0];
      for (u32 c = 1; c < KEYS; c++) sum += row[c];
      row[0] = sum;
    }
    __syncthreads();
  }
  if (!by_query) {
    for (u32 c = threadIdx.x; c < (by_key ? KEYS : 1); c += blockDim.x) {
      A sum = tiles.weights[c];
      for (u32 r = 1; r < size; r++) sum += tiles.weights[r * Sizes<A>::WEIGHTS + c];
      tiles.weights[c] = sum;
    }
    __syncthreads();
  }
  const u32 query0 = by_query ? first_query * size : 0, key0 = by_key ? first_key * KEYS : 0;
  const u32 height = by_query ? smaller(size, p.query_length - query0) : 1;
  const u32 width = by_key ? smaller(KEYS, p.key_length - key0) : 1;
  A* to = head_of<A>(p.d_bias, p.batch, owner.entry, owner.head);
  for (u32 n = threadIdx.x; n < size * KEYS; n += blockDim.x) {
    const u32 r = n / KEYS, c = n % KEYS;
    if (r < height && c < width)
      to[i64(query0 + r) * p.d_bias.row + i64(key0 + c) * p.d_bias.column] = tiles.weights[r * Sizes<A>::WEIGHTS + c];
  }
}

#define KERNEL(NAME, T, BODY)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(const __grid_constant__ Attend p) { \
    __shared__ Tiles<Acc<T>> tiles;                                                             \
    BODY(p, tiles);                                                                             \
  }
#define GRADIENTS(SUFFIX, T, WIDTH)                                       \
  KERNEL(attend_backward_queries_##SUFFIX##_w##WIDTH, T, (of_queries<T, WIDTH>)) \
  KERNEL(attend_backward_keys_##SUFFIX##_w##WIDTH, T, (of_keys<T, WIDTH>))
#define ALL(SUFFIX, T)    \
  GRADIENTS(SUFFIX, T, 32) \
  GRADIENTS(SUFFIX, T, 64) \
  KERNEL(attend_backward_bias_##SUFFIX, T, of_bias<T>)

ALL(f32, float)
ALL(f64, double)
ALL(f16, f16)
ALL(bf16, bf16)
GRADIENTS(f32, float, 128)
GRADIENTS(f16, f16, 128)
GRADIENTS(bf16, bf16, 128)
