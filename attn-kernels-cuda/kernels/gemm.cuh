// Products of matrices: where their elements lie, how tiles of them come to shared memory, how sums get to the output.
//
// Whatever kernel computes it, an element is the same sum: chunks of CHUNK products, each summed from its first product
// to its last, and the sums of the chunks added in their order. So a row has the same bits alone and among others,
// and however its matrix lies.
#pragma once

#include "copy.cuh"
#include "scalar.cuh"

constexpr int CHUNK = 256;
constexpr int ROW_AXES = 15;

// Whether the elements of each 16 bytes of a row, from its first column on, lie side by side and aligned; and whether, besides,
// rows are evenly spaced, each of one piece.
constexpr u32 SCATTERED = 0, PIECES = 1, EVEN = 2;

// A matrix: rows over several axes, columns in groups; strides in elements.
struct Operand {
  u64 address;
  i64 group;   // from one group of columns to the next
  i64 column;  // from one column of a group to the next
  u32 columns;  // of a group
  u32 axes;     // of rows
  u32 dims[ROW_AXES];
  u32 vectors;  // SCATTERED, PIECES or EVEN
  i64 strides[ROW_AXES];
};

// out[m, n] = sum over k of a b, and the bias. a is stored as [m, k] or [k, m], b as [k, n] or [n, k].
struct Product {
  Operand a, b, out;
  u64 bias;  // 0: none
  i64 bias_stride;
  u32 m, n, k;
  u32 accumulate;  // whether it is added to what is there
  u64 parts;       // where sums over slices of k go, [slices, m, n] of the accumulator's type; 0: k is not cut
  u32 slice;       // of k, a multiple of CHUNK; the last may have less
  u32 pad;
};

DEVICE i64 row_at(const Operand& o, u32 row) {
  if (o.axes <= 1) return i64(row) * o.strides[0];
  i64 at = 0;
#pragma unroll 1
  for (int axis = int(o.axes) - 1; axis >= 0; axis--) {
    at += i64(row % o.dims[axis]) * o.strides[axis];
    row /= o.dims[axis];
  }
  return at;
}

DEVICE i64 column_at(const Operand& o, u32 column) {
  if (column < o.columns) return i64(column) * o.column;
  return i64(column / o.columns) * o.group + i64(column % o.columns) * o.column;
}

// An element of 4 or 8 bytes that lands later, or zero.
template <typename T> DEVICE void copy_element(T* to, const T* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(sizeof(T)),
               "r"(there ? u32(sizeof(T)) : 0)
               : "memory");
}

// Brings ROWS x COLUMNS elements from (row, column) on to shared memory, rows STRIDE apart; zeros from (rows, columns) on.
// THREADS threads do so, of which this is number `thread`; all that is asynchronous belongs to the next commit. However rows lie.
template <typename T, int ROWS, int COLUMNS, int STRIDE, int THREADS>
DEVICE void load_tile(T* to, const Operand& o, u32 row, u32 rows, u32 column, u32 columns, u32 thread) {
  constexpr int WIDTH = 16 / sizeof(T), PIECES_OF_ROW = COLUMNS / WIDTH;
  const T* from = reinterpret_cast<const T*>(o.address);
  if (o.vectors == PIECES) {
#pragma unroll 1
    for (int i = 0; i < (ROWS * PIECES_OF_ROW + THREADS - 1) / THREADS; i++) {
      u32 piece = i * THREADS + thread;
      if (ROWS * PIECES_OF_ROW % THREADS && piece >= ROWS * PIECES_OF_ROW) break;
      u32 r = piece / PIECES_OF_ROW, c = piece % PIECES_OF_ROW * WIDTH;
      u32 left = 0;
      const T* source = from;
      if (row + r < rows && column + c < columns) {
        left = min(columns - (column + c), u32(WIDTH));
        source += row_at(o, row + r) + column_at(o, column + c);
      }
      copy_async(shared_address(to + r * STRIDE + c), source, left * sizeof(T));
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < (ROWS * COLUMNS + THREADS - 1) / THREADS; i++) {
    u32 element = i * THREADS + thread;
    if (ROWS * COLUMNS % THREADS && element >= ROWS * COLUMNS) break;
    u32 r = element / COLUMNS, c = element % COLUMNS;
    bool there = row + r < rows && column + c < columns;
    const T* source = there ? from + row_at(o, row + r) + column_at(o, column + c) : from;
    if constexpr (sizeof(T) >= 4) copy_element(to + r * STRIDE + c, source, there);
    else to[r * STRIDE + c] = there ? *source : T{};
  }
}

// Brings tiles of a factor to shared memory, SIZE rows and BK columns of it or, where k is ALONG_ROWS, BK rows and SIZE columns: as
// `load_tile`, with all that is the same for every tile made ready, where rows are evenly spaced.
template <typename T, bool ALONG_ROWS, int SIZE, int BK, int STRIDE, int THREADS> struct Loader {
  static constexpr int ROWS = ALONG_ROWS ? BK : SIZE, COLUMNS = ALONG_ROWS ? SIZE : BK;
  static constexpr u32 WIDTH = 16 / sizeof(T), PIECES_OF_ROW = COLUMNS / WIDTH, STEP = THREADS / PIECES_OF_ROW;
  static constexpr u32 COUNT = ROWS / STEP;
  static_assert(THREADS % PIECES_OF_ROW == 0 && ROWS % STEP == 0, "threads share the pieces evenly");

  const Operand& o;
  const u8* at;    // this thread's first piece at k = 0
  i64 piece_step;  // bytes from one of its pieces to the next
  i64 k_step;      // bytes from one k to the next
  u32 begin, limit, thread;
  u32 inside;      // what is left of a piece, or of the rows from the first piece's on

  // Of rows or columns from `begin` on, of which there are `limit`.
  DEVICE Loader(const Operand& o, u32 begin, u32 limit, u32 thread) : o(o), begin(begin), limit(limit), thread(thread) {
    u32 r = thread / PIECES_OF_ROW, c = thread % PIECES_OF_ROW * WIDTH;
    u32 first = begin + (ALONG_ROWS ? c : r);
    inside = first < limit ? limit - first : 0;
    i64 stride = o.strides[0] * i64(sizeof(T));
    piece_step = stride * STEP;
    k_step = ALONG_ROWS ? stride : i64(sizeof(T));
    i64 row = ALONG_ROWS ? r : first, column = ALONG_ROWS ? first : c;
    at = reinterpret_cast<const u8*>(o.address) + row * stride + column * i64(sizeof(T));
  }

  // The tile from k on, before `end`.
  DEVICE void load(T* to, u32 k, u32 end) const {
    if (o.vectors != EVEN) {
      if constexpr (ALONG_ROWS) load_tile<T, ROWS, COLUMNS, STRIDE, THREADS>(to, o, k, end, begin, limit, thread);
      else load_tile<T, ROWS, COLUMNS, STRIDE, THREADS>(to, o, begin, limit, k, end, thread);
      return;
    }
    u32 r = thread / PIECES_OF_ROW, c = thread % PIECES_OF_ROW * WIDTH;
    u32 first = k + (ALONG_ROWS ? r : c), left = first < end ? end - first : 0;
    u32 bytes = min(ALONG_ROWS ? inside : left, WIDTH) * u32(sizeof(T)), rows = ALONG_ROWS ? left : inside;
    const u8* from = at + i64(k) * k_step;
    u32 place = shared_address(to) + (r * STRIDE + c) * u32(sizeof(T));
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
      bool there = i * STEP < rows && bytes;
      const u8* piece = there ? from + i * piece_step : reinterpret_cast<const u8*>(o.address);
      copy_async(place + i * STEP * STRIDE * u32(sizeof(T)), piece, there ? bytes : 0);
    }
  }
};

// The bias of a column.
template <typename T> DEVICE Acc<T> bias_of(const Product& p, u32 column) {
  if (!p.bias) return 0;
  return widen(reinterpret_cast<const T*>(p.bias)[i64(column) * p.bias_stride]);
}

// Writes an element, whose bias was added.
template <typename T> DEVICE void write(const Product& p, u32 row, u32 column, Acc<T> sum) {
  T* to = reinterpret_cast<T*>(p.out.address) + row_at(p.out, row) + column_at(p.out, column);
  if (p.accumulate) sum += widen(*to);
  *to = narrow<T>(sum);
}

// Writes W elements of a row from column on, those below n, whose biases were not added.
template <typename T, int W> DEVICE void write_piece(const Product& p, u32 row, u32 column, Acc<T> (&sums)[W]) {
  static_assert(W * sizeof(T) == 16);
#pragma unroll
  for (int i = 0; i < W; i++)
    if (column + i < p.n) sums[i] += bias_of<T>(p, column + i);
  if (p.out.vectors && column + W <= p.n) {
    T* to = reinterpret_cast<T*>(p.out.address) + row_at(p.out, row) + column_at(p.out, column);
    union { uint4 bits; T elements[W]; } piece;
    if (p.accumulate) {
      piece.bits = *reinterpret_cast<uint4*>(to);
#pragma unroll
      for (int i = 0; i < W; i++) sums[i] += widen(piece.elements[i]);
    }
#pragma unroll
    for (int i = 0; i < W; i++) piece.elements[i] = narrow<T>(sums[i]);
    *reinterpret_cast<uint4*>(to) = piece.bits;
    return;
  }
#pragma unroll
  for (int i = 0; i < W; i++)
    if (column + i < p.n) write<T>(p, row, column + i, sums[i]);
}

// Writes a tile of sums in shared memory, rows STRIDE apart, to (m, n), in pieces of 16 bytes where they may be.
template <typename T, int ROWS, int COLUMNS, int STRIDE, int THREADS>
DEVICE void write_tile(const Product& p, u32 m, u32 n, const Acc<T>* sums) {
  constexpr int WIDTH = 16 / sizeof(T), PIECES = COLUMNS / WIDTH, READ = 16 / sizeof(Acc<T>);
#pragma unroll 1
  for (u32 piece = threadIdx.x; piece < ROWS * PIECES; piece += THREADS) {
    u32 row = piece / PIECES, column = piece % PIECES * WIDTH;
    if (m + row >= p.m) break;
    if (n + column >= p.n) continue;
    Acc<T> x[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i += READ) {
      Pack<Acc<T>, READ> part = load_pack<READ>(sums + row * STRIDE + column + i);
#pragma unroll
      for (int j = 0; j < READ; j++) x[i + j] = part.at[j];
    }
    write_piece<T, WIDTH>(p, m + row, n + column, x);
  }
}

// As `write_tile`, of a slice of k.
template <int ROWS, int COLUMNS, int STRIDE, int THREADS, typename A>
DEVICE void write_part(const Product& p, u32 slice, u32 m, u32 n, const A* sums) {
  A* to = reinterpret_cast<A*>(p.parts) + u64(slice) * p.m * p.n;
#pragma unroll 1
  for (u32 element = threadIdx.x; element < ROWS * COLUMNS; element += THREADS) {
    u32 row = element / COLUMNS, column = element % COLUMNS;
    if (m + row < p.m && n + column < p.n) to[u64(m + row) * p.n + n + column] = sums[row * STRIDE + column];
  }
}

// What this block computes.
struct Work {
  u32 m, n;        // its tile begins there
  u32 first, end;  // of k
  u32 slice;
};

// Blocks that run at once share rows and columns, so that the cache holds what they read.
template <int BM, int BN, bool SLICES> DEVICE Work work_of_block(const Product& p) {
  constexpr u32 BAND = 8;
  u32 tiles_m = (p.m + BM - 1) / BM, tiles_n = (p.n + BN - 1) / BN, block = blockIdx.x;
  Work work = {0, 0, 0, p.k, 0};
  if (SLICES && p.parts) {
    work.slice = block / (tiles_m * tiles_n);
    block -= work.slice * tiles_m * tiles_n;
    work.first = work.slice * p.slice;
    work.end = min(work.first + p.slice, p.k);
  }
  u32 band = block / (BAND * tiles_n) * BAND;
  u32 height = min(BAND, tiles_m - band), within = block - band * tiles_n;
  work.m = (band + within % height) * BM;
  work.n = within / height * BN;
  return work;
}
