// Tiles of 64 rows in shared memory, and the two products of tiles that attention and its gradients are made of.
//
// A block is up to 16 x 16 threads. The thread (tx, ty) has the rows 4 ty ... 4 ty + 3 of a tile and the columns tx, tx + 16, tx + 32,
// tx + 48 of a product of rows; of a sum of rows the columns tx V ... tx V + V - 1 of each group of 16 V. So a row belongs to 16 lanes
// of one warp, and a warp whose rows do not exist has nothing to compute. A block of fewer threads has fewer rows.
//
// Every element is one chain of multiply-adds, over the depth or over the rows in order: its bits depend on nothing beside it.
#pragma once
#include "scalar.cuh"

constexpr u32 KEYS = 64;    // rows of the tile that goes by
constexpr u32 LANES = 16;   // threads that share a row
constexpr u32 OWN = 4;      // rows of a thread
constexpr u32 THREADS = 256;

// Rows of a head of an array [batch..., length, heads, depth].
template <typename T>
struct Rows {
  const T* first;
  i64 row, column;
  u32 count, depth;
  bool wide;  // whether rows are whole numbers of 16 bytes that can be loaded at once

  DEVICE Rows(const Attend& p, const Array& array, u32 bit, u32 entry, u32 head, u32 count, u32 depth)
      : first(head_of<const T>(array, p.batch, entry, head)),
        row(array.row),
        column(array.column),
        count(count),
        depth(depth),
        wide(p.wide >> bit & 1) {}

  // One of two: field by field, so that none needs an address.
  DEVICE Rows(bool second, const Rows& a, const Rows& b)
      : first(second ? b.first : a.first),
        row(second ? b.row : a.row),
        column(second ? b.column : a.column),
        count(second ? b.count : a.count),
        depth(second ? b.depth : a.depth),
        wide(second ? b.wide : a.wide) {}
};

// Bits of `Attend::wide`.
enum Wide : u32 { WIDE_QUERY, WIDE_KEY, WIDE_VALUE, WIDE_OUT, WIDE_D_OUT };

template <typename A>
struct Sizes {
  static constexpr u32 VECTOR = 16 / sizeof(A);          // elements of a load from shared memory
  static constexpr u32 DEPTH = 128 / sizeof(A);          // columns of a part of a tile of factors
  static constexpr u32 STRIDE = DEPTH + VECTOR;          // so that 8 lanes read 8 rows from all banks
  static constexpr u32 WEIGHTS = KEYS + VECTOR;          // the same for a tile of weights
  static constexpr u32 SUMMED = sizeof(A) == 4 ? 4096 : 1024;  // elements of rows that are summed
};

// A block's shared memory. Factors are dead when weights are written.
template <typename A>
struct Tiles {
  union {
    struct {
      alignas(16) A left[KEYS * Sizes<A>::STRIDE];
      alignas(16) A right[KEYS * Sizes<A>::STRIDE];
    } factors;
    alignas(16) A weights[KEYS * Sizes<A>::WEIGHTS];
  };
  alignas(16) A summed[Sizes<A>::SUMMED];
};

// A tile of products, or of what becomes of them.
template <typename A>
struct Square {
  A at[OWN][4];

  DEVICE A& operator[](u32 n) { return at[n / 4][n % 4]; }
  DEVICE const A& operator[](u32 n) const { return at[n / 4][n % 4]; }
};

// Where a thread stands.
struct Thread {
  u32 lane, row;      // its place among those of its rows; its first row
  u32 rows;           // rows of the block
  bool active;        // whether its warp has rows that exist

  // `existing` rows of the tile exist.
  DEVICE Thread(u32 existing)
      : lane(threadIdx.x % LANES),
        row(threadIdx.x / LANES * OWN),
        rows(blockDim.x / LANES * OWN),
        active((threadIdx.x / 32) * 2 * OWN < existing) {}
};

// Elements of a thread in a tile.
constexpr u32 ELEMENTS = OWN * 4;

// Loads that a thread has under way at once, of so many that a block has.
constexpr u32 batch(u32 loads) { return loads < 2 * THREADS ? 1 : loads < 4 * THREADS ? 2 : 4; }

// Copies `rows` rows from `row0` on, COLUMNS columns of them from `column0` on, widened and multiplied; zeros for what does not exist.
// A block of all threads has at most MOST rows to copy.
template <u32 COLUMNS, u32 STRIDE, u32 MOST, typename T>
DEVICE void copy_rows(Acc<T>* to, const Rows<T>& from, u32 row0, u32 rows, u32 column0, Acc<T> factor) {
  if (from.wide) {
    constexpr u32 N = 16 / sizeof(T), M = 16 / sizeof(Acc<T>), ACROSS = COLUMNS / N;
    constexpr u32 BATCH = batch(MOST * ACROSS);
    const u32 count = rows * ACROSS;
#pragma unroll 1
    for (u32 start = threadIdx.x; start < count; start += BATCH * blockDim.x) {
      Pack<T, N> loaded[BATCH];
#pragma unroll
      for (u32 n = 0; n < BATCH; n++) {
        const u32 index = start + n * blockDim.x, r = row0 + index / ACROSS, c = column0 + index % ACROSS * N;
        loaded[n] = Pack<T, N>{};
        if (index < count && r < from.count && c < from.depth) loaded[n] = load_pack<N>(from.first + i64(r) * from.row + c);
      }
#pragma unroll
      for (u32 n = 0; n < BATCH; n++) {
        const u32 index = start + n * blockDim.x;
        if (index >= count) break;
        Acc<T>* target = to + index / ACROSS * STRIDE + index % ACROSS * N;
#pragma unroll
        for (u32 i = 0; i < N; i += M) {
          Pack<Acc<T>, M> wide;
#pragma unroll
          for (u32 j = 0; j < M; j++) wide.at[j] = widen(loaded[n].at[i + j]) * factor;
          *reinterpret_cast<Pack<Acc<T>, M>*>(target + i) = wide;
        }
      }
    }
    return;
  }
  constexpr u32 BATCH = batch(MOST * COLUMNS);
  const u32 count = rows * COLUMNS;
#pragma unroll 1
  for (u32 start = threadIdx.x; start < count; start += BATCH * blockDim.x) {
    T loaded[BATCH];
#pragma unroll
    for (u32 n = 0; n < BATCH; n++) {
      const u32 index = start + n * blockDim.x, r = row0 + index / COLUMNS, c = column0 + index % COLUMNS;
      loaded[n] = T{};
      if (index < count && r < from.count && c < from.depth)
        loaded[n] = from.first[i64(r) * from.row + i64(c) * from.column];
    }
#pragma unroll
    for (u32 n = 0; n < BATCH; n++) {
      const u32 index = start + n * blockDim.x;
      if (index < count) to[index / COLUMNS * STRIDE + index % COLUMNS] = widen(loaded[n]) * factor;
    }
  }
}

// s[i][j] = sum over the depth of left[left0 + i][d] right[right0 + j][d], each factor multiplied beforehand.
//
// Starts with a barrier: what used the shared memory before is done with it. What writes weights afterwards needs another.
template <typename T>
DEVICE void product(Square<Acc<T>>& s, Tiles<Acc<T>>& tiles, const Thread& thread, const Rows<T>& left, u32 left0,
                    Acc<T> left_factor, const Rows<T>& right, u32 right0, Acc<T> right_factor) {
  typedef Acc<T> A;
  typedef Sizes<A> S;
#pragma unroll
  for (u32 i = 0; i < OWN; i++)
#pragma unroll
    for (u32 j = 0; j < 4; j++) s.at[i][j] = A(0);
  for (u32 d0 = 0; d0 < left.depth; d0 += S::DEPTH) {
    __syncthreads();
    // One copy of the code serves both sides.
#pragma unroll 1
    for (u32 side = 0; side < 2; side++)
      copy_rows<S::DEPTH, S::STRIDE, KEYS>(side ? tiles.factors.right : tiles.factors.left, Rows<T>(side, left, right),
                                     side ? right0 : left0, side ? KEYS : thread.rows, d0,
                                     side ? right_factor : left_factor);
    __syncthreads();
    if (!thread.active) continue;
    const u32 columns = smaller(S::DEPTH, round_up(left.depth - d0, S::VECTOR));
    const A* a = tiles.factors.left + thread.row * S::STRIDE;
    const A* b = tiles.factors.right + thread.lane * S::STRIDE;
#pragma unroll 1
    for (u32 d = 0; d < columns; d += S::VECTOR) {
      Pack<A, S::VECTOR> x[OWN], y[4];
#pragma unroll
      for (u32 i = 0; i < OWN; i++) x[i] = load_pack<S::VECTOR>(a + i * S::STRIDE + d);
#pragma unroll
      for (u32 j = 0; j < 4; j++) y[j] = load_pack<S::VECTOR>(b + j * LANES * S::STRIDE + d);
#pragma unroll
      for (u32 n = 0; n < S::VECTOR; n++)
#pragma unroll
        for (u32 i = 0; i < OWN; i++)
#pragma unroll
          for (u32 j = 0; j < 4; j++) s.at[i][j] = multiply_add(x[i].at[n], y[j].at[n], s.at[i][j]);
    }
  }
}

// Puts a tile where `add_rows` reads its weights. A barrier must come before.
template <typename A>
DEVICE void put_weights(Tiles<A>& tiles, const Thread& thread, const Square<A>& s) {
  if (!thread.active) return;
#pragma unroll
  for (u32 i = 0; i < OWN; i++)
#pragma unroll
    for (u32 j = 0; j < 4; j++) tiles.weights[(thread.row + i) * Sizes<A>::WEIGHTS + thread.lane + j * LANES] = s.at[i][j];
}

// A thread's part of WIDTH columns of sums.
template <typename A, u32 WIDTH>
struct Sums {
  static constexpr u32 EACH = WIDTH / LANES;
  static constexpr u32 VECTOR = EACH < Sizes<A>::VECTOR ? EACH : Sizes<A>::VECTOR;
  A at[OWN][EACH];

  DEVICE void clear() {
#pragma unroll
    for (u32 i = 0; i < OWN; i++)
#pragma unroll
      for (u32 c = 0; c < EACH; c++) at[i][c] = A(0);
  }

  // The column of the c-th element.
  static DEVICE u32 column(const Thread& thread, u32 c) {
    return c / VECTOR * VECTOR * LANES + thread.lane * VECTOR + c % VECTOR;
  }
};

// sums[i] += sum over `count` rows k of weights[i][k] rows[row0 + k], columns from `column0` on, the rows multiplied beforehand.
// Weights of rows that do not exist are 0 up to a multiple of a vector.
template <u32 WIDTH, typename T>
DEVICE void add_rows(Sums<Acc<T>, WIDTH>& sums, Tiles<Acc<T>>& tiles, const Thread& thread, const Rows<T>& rows, u32 row0,
                     u32 count, u32 column0, Acc<T> factor) {
  typedef Acc<T> A;
  typedef Sizes<A> S;
  typedef Sums<A, WIDTH> Out;
  constexpr u32 PART = S::SUMMED / WIDTH < KEYS ? S::SUMMED / WIDTH : KEYS;
  for (u32 k0 = 0; k0 < count; k0 += PART) {
    const u32 part = smaller(PART, round_up(count - k0, S::VECTOR));
    // Who calls had a barrier before the weights were put.
    if (k0 != 0) __syncthreads();
    copy_rows<WIDTH, WIDTH, PART>(tiles.summed, rows, row0 + k0, part, column0, factor);
    __syncthreads();
    if (!thread.active) continue;
    const A* w = tiles.weights + thread.row * S::WEIGHTS + k0;
#pragma unroll 1
    for (u32 k = 0; k < part; k += S::VECTOR) {
      Pack<A, S::VECTOR> weights[OWN];
#pragma unroll
      for (u32 i = 0; i < OWN; i++) weights[i] = load_pack<S::VECTOR>(w + i * S::WEIGHTS + k);
#pragma unroll
      for (u32 n = 0; n < S::VECTOR; n++)
#pragma unroll
        for (u32 c = 0; c < Out::EACH; c += Out::VECTOR) {
          const auto x = load_pack<Out::VECTOR>(tiles.summed + (k + n) * WIDTH + Out::column(thread, c));
#pragma unroll
          for (u32 v = 0; v < Out::VECTOR; v++)
#pragma unroll
            for (u32 i = 0; i < OWN; i++)
              sums.at[i][c + v] = multiply_add(weights[i].at[n], x.at[v], sums.at[i][c + v]);
        }
    }
  }
}

// Over the lanes of a row, in a fixed order.
template <typename A>
DEVICE A sum_over_row(A x) {
#pragma unroll
  for (u32 step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}
template <typename A>
DEVICE A largest_of_row(A x) {
#pragma unroll
  for (u32 step = LANES / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(0xffffffff, x, step));
  return x;
}

// Rounds and writes sums, multiplied, as rows of an array.
template <u32 WIDTH, typename T, typename F>
DEVICE void write_rows(T* first, const Array& array, const Thread& thread, u32 row0, u32 row_count, u32 column0,
                       u32 depth, const Sums<Acc<T>, WIDTH>& sums, const F& finish) {
  if (!thread.active) return;
#pragma unroll
  for (u32 i = 0; i < OWN; i++) {
    const u32 row = row0 + thread.row + i;
    if (row >= row_count) continue;
#pragma unroll
    for (u32 c = 0; c < WIDTH / LANES; c++) {
      const u32 column = column0 + Sums<Acc<T>, WIDTH>::column(thread, c);
      if (column < depth) first[i64(row) * array.row + i64(column) * array.column] = narrow<T>(finish(sums.at[i][c], i));
    }
  }
}
