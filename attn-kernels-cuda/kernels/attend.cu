// Attention with ordinary arithmetic: every dtype, every depth, every part of a request.
//
//   m = -inf, l = 0, o = 0
//   for each tile of 64 keys:
//     s  = q . k, plus bias; a fill value where hidden
//     m' = max(m, largest s), a = e^(m - m'), p = e^(s - m'), l = l a + sum p
//     o  = o a + (p times dropout's factors) . v
//   out = o / l
//
// A block has up to 64 queries of one head and WIDTH columns of the values; where values have more columns, other blocks make the same
// scores again for them. A score's tile is counted from key 0 and its sums have one order, so a row's bits do not depend on what is
// computed beside it. Departures from FlashAttention: where m' is -inf, 0 stands for it, so that p is 0 and not NaN; Flax's fill value is
// finite, which alone makes a row that sees nothing the mean of all values, so tiles that the causal mask hides are passed over
// only once every row has seen a larger score.
#include "sight.cuh"

template <typename T, u32 WIDTH>
struct Forward {
  typedef Acc<T> A;
  const Attend& p;
  const u32 chunks, all;
  Tiles<A>& tiles;
  u32 column0, query0, matrix, entry, head;
  // Rows are the queries from query0 on.
  A m[OWN], l[OWN];
  Sums<A, WIDTH> o;

  DEVICE Forward(const Attend& p, Tiles<A>& tiles)
      : p(p), chunks(max(1u, blocks_of(p.value_depth, WIDTH))), all(blocks_of(p.key_length, KEYS)), tiles(tiles) {
    u32 number = blockIdx.x;
    column0 = number % chunks * WIDTH;
    number /= chunks;
    const u32 size = blockDim.x / LANES * OWN, count = blocks_of(p.query_length, size);
    // The last queries first: under a causal mask they see most, and the longest blocks should not come last.
    query0 = (count - 1 - number % count) * size;
    matrix = number / count;
    entry = matrix / p.heads;
    head = matrix % p.heads;
  }

  DEVICE bool exists(const Thread& thread, u32 i) const { return query0 + thread.row + i < p.query_length; }

  // One step of the online softmax: scores become weights before the division.
  DEVICE void softmax(Square<A>& s, const Thread& thread) {
    if (!thread.active) return;
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
      A largest = s.at[i][0];
#pragma unroll
      for (u32 j = 1; j < 4; j++) largest = larger(largest, s.at[i][j]);
      largest = larger(m[i], largest_of_row(largest));
      const A safe = finite_or_zero(largest), alpha = exponential(m[i] - safe);
      A sum = A(0);
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        s.at[i][j] = exponential(s.at[i][j] - safe);
        sum += s.at[i][j];
      }
      l[i] = multiply_add(l[i], alpha, sum_over_row(sum));
      m[i] = largest;
#pragma unroll
      for (u32 c = 0; c < Sums<A, WIDTH>::EACH; c++) o.at[i][c] *= alpha;
    }
  }

  // Whether a row has seen no score above the fill value, so that hidden keys may have weights.
  DEVICE bool any_blind(const Thread& thread) const {
    bool blind = false;
    for (u32 i = 0; i < OWN; i++) blind |= exists(thread, i) && !(m[i] > Special<A>::lowest());
    return __syncthreads_or(blind);
  }

  DEVICE void run() {
    const u32 rows = smaller(p.query_length - query0, blockDim.x / LANES * OWN);
    const Thread thread(rows);
    const u32 key_head = head / (p.heads / p.key_heads);
    const Rows<T> query(p, p.query, WIDE_QUERY, entry, head, p.query_length, p.depth);
    const Rows<T> key(p, p.key, WIDE_KEY, entry, key_head, p.key_length, p.depth);
    const Rows<T> value(p, p.value, WIDE_VALUE, entry, key_head, p.key_length, p.value_depth);
    const Scoring<A> scoring(p, entry, head);
#pragma unroll
    for (u32 i = 0; i < OWN; i++) m[i] = Special<A>::neg_infinity(), l[i] = A(0);
    o.clear();
    // Reach grows with the query, so the last one sees most.
    const u32 seen = drops_all(p) ? all : blocks_of(reach_of(p, query0 + rows - 1), KEYS);
    // A second pass over the keys if weights are asked for, with the final m and l.
    bool finished = false;
    for (u32 tile = 0;; tile++) {
      if (!finished && (tile == all || tile == seen && (p.zero_if_blind || !any_blind(thread)))) {
        finish(thread);
        if (p.weights.address == 0 || column0 != 0) return;
        finished = true;
        tile = 0;
      }
      if (tile == all) return;
      const u32 key0 = tile * KEYS;
      Square<A> s;
      product(s, tiles, thread, query, query0, A(p.scale), key, key0, A(1));
      const Frame<false> frame(thread, query0, key0);
      if (thread.active) adjust(s, p, scoring, frame, sight_of(p, scoring, frame));
      if (finished) {
        write_weights(s, thread, key0);
        continue;
      }
      softmax(s, thread);
      if (p.dropout.width && thread.active) {
        const Dropped<A> dropped(p, matrix);
        drop(s, dropped, kept_of(p, dropped, frame));
      }
      __syncthreads();
      put_weights(tiles, thread, s);
      add_rows(o, tiles, thread, value, key0, smaller(KEYS, p.key_length - key0), column0, A(1));
    }
  }

  DEVICE void finish(const Thread& thread) {
    // A sum of 0 divides nothing where the rule is zero or where there is no key. Under Flax's rule it is a row whose every score
    // is -inf, and the quotient is NaN as in Flax.
#pragma unroll
    for (u32 i = 0; i < OWN; i++)
      if (l[i] == A(0) && (p.zero_if_blind || p.key_length == 0)) l[i] = A(1);
    write_rows(head_of<T>(p.out, p.batch, entry, head), p.out, thread, query0, p.query_length, column0, p.value_depth, o,
               [&](A sum, u32 i) { return sum / l[i]; });
    if (column0 == 0 && p.statistics.address) write_statistics(thread);
  }

  DEVICE void write_statistics(const Thread& thread) const {
    A* first = head_of<A>(p.statistics, p.batch, entry, head);
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
      if (!exists(thread, i) || thread.lane >= 2) continue;
      const i64 row = query0 + thread.row + i;
      first[row * p.statistics.row + thread.lane * p.statistics.column] = thread.lane == 0 ? m[i] : l[i];
    }
  }

  // The second look at a tile, with the final m and l.
  DEVICE void write_weights(const Square<A>& s, const Thread& thread, u32 key0) const {
    if (!thread.active) return;
    A* first = head_of<A>(p.weights, p.batch, entry, head);
#pragma unroll
    for (u32 i = 0; i < OWN; i++)
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const u32 k = key0 + thread.lane + j * LANES;
        if (!exists(thread, i) || k >= p.key_length) continue;
        first[i64(query0 + thread.row + i) * p.weights.row + i64(k) * p.weights.column] =
            exponential(s.at[i][j] - finite_or_zero(m[i])) / l[i];
      }
  }
};

#define ATTEND(SUFFIX, T, WIDTH)                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc<T>) == 4 ? 2 : 1) \
      attend_##SUFFIX##_w##WIDTH(const __grid_constant__ Attend p) {                 \
    __shared__ Tiles<Acc<T>> tiles;                                                  \
    Forward<T, WIDTH>(p, tiles).run();                                               \
  }
#define WIDTHS(SUFFIX, T) ATTEND(SUFFIX, T, 32) ATTEND(SUFFIX, T, 64) ATTEND(SUFFIX, T, 128)

WIDTHS(f32, float)
WIDTHS(f64, double)
WIDTHS(f16, f16)
WIDTHS(bf16, bf16)
