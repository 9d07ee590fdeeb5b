// Rows of 16-bit elements from global into shared memory, where ldmatrix reads them without bank conflicts.
#pragma once
#include "params.cuh"

DEVICE u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

// 16 bytes, of which the first `bytes` are copied and the others zero.
DEVICE void copy_async(u32 to, const void* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups of this thread are under way.
template <int N>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEVICE void store_shared(u32 to, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
DEVICE void store_shared(u32 to, u32 x) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory"); }
DEVICE uint4 load_shared(u32 from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
  return x;
}

// Where a chunk of 8 elements lies in a tile whose rows have D: the eight rows that ldmatrix reads at once lie in
// different banks. A row of 64 bytes takes half of them, so pairs of rows are told apart by four places.
template <int D>
DEVICE u32 chunk_at(u32 row, u32 chunk) {
  static_assert(D == 32 || D % 64 == 0, "other rows need another order");
  const u32 place = D == 32 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7);
  return row * (D * 2) + place * 16;
}

// Rows of a head: element (row, column) is from[row * row_stride + column * column_stride].
struct HeadRows {
  const u16* from;
  i64 row_stride, column_stride;
  u32 rows, columns;

  static DEVICE HeadRows of(const Array& array, const Batch& batch, u32 entry, u32 head, u32 rows, u32 columns) {
    return {head_of<const u16>(array, batch, entry, head), array.row, array.column, rows, columns};
  }

  // Whether every row is whole chunks at addresses that 16-byte accesses may have, and rows are so near to each other that
  // 32 bits count the bytes from one row of a thread to the next.
  DEVICE bool in_chunks() const {
    const bool aligned = ((u64(from) | u64(row_stride) * 2 | columns * 2) & 15) == 0;
    return aligned && column_stride == 1 && columns != 0 && u64(row_stride) < 1 << 24;
  }
};

// Copies of a tile of ROWS rows by THREADS threads: a thread has the same chunk of every STEP-th row.
template <int D, int ROWS, int THREADS>
struct Copier {
  static constexpr u32 CHUNKS = D / 8, STEP = THREADS / CHUNKS, COUNT = ROWS / STEP;
  static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "threads share the chunks evenly");
  // The swizzle repeats every 8 rows.
  static constexpr bool EVEN = STEP % 8 == 0;

  const u16* from;  // this thread's chunk of its first row
  u32 step;         // bytes from one of its rows to the next
  u32 row, to, bytes, rows;

  DEVICE Copier(const HeadRows& source, u32 thread) {
    const u32 chunk = thread % CHUNKS;
    const bool inside = chunk * 8 < source.columns;
    row = thread / CHUNKS;
    step = u32(source.row_stride) * (STEP * 2);
    from = source.from + (inside ? chunk * 8 : 0) + i64(row) * source.row_stride;
    bytes = inside ? 16 : 0;
    to = chunk_at<D>(row, chunk);
    rows = source.rows;
  }

  DEVICE u32 place(u32 i, u32 thread) const {
    return EVEN ? to + i * (STEP * D * 2) : chunk_at<D>(row + i * STEP, thread % CHUNKS);
  }

  // Starts to copy the rows from `first` on, a multiple of STEP, zeros beyond the last one.
  DEVICE void start(u32 tile, u32 first, u32 thread) const {
    const u8* at = reinterpret_cast<const u8*>(from) + u64(first / STEP) * step;
    if (first + ROWS <= rows) {
#pragma unroll
      for (u32 i = 0; i < COUNT; i++) {
        copy_async(tile + place(i, thread), at, bytes);
        at += step;
      }
    } else {
#pragma unroll
      for (u32 i = 0; i < COUNT; i++) {
        const bool inside = first + row + i * STEP < rows;
        // Of a row beyond the last one nothing is read, but the address must be one.
        copy_async(tile + place(i, thread), inside ? at : reinterpret_cast<const u8*>(from), inside ? bytes : 0);
        at += step;
      }
    }
  }
};

// Copies a tile of rows element by element: any strides, any alignment.
template <int D, int ROWS, int THREADS>
DEVICE void copy_elements(const HeadRows& source, u32 tile, u32 first, u32 thread) {
  constexpr u32 CHUNKS = D / 8;
#pragma unroll 1
  for (u32 i = thread; i < ROWS * CHUNKS; i += THREADS) {
    const u32 row = i / CHUNKS, chunk = i % CHUNKS;
    const u16* at = source.from + i64(first + row) * source.row_stride + i64(chunk * 8) * source.column_stride;
    const u32 count = first + row < source.rows && chunk * 8 < source.columns ? source.columns - chunk * 8 : 0;
    u32 x[4];
#pragma unroll
    for (u32 pair = 0; pair < 4; pair++) {
      const u32 low = 2 * pair < count ? at[i64(2 * pair) * source.column_stride] : 0;
      const u32 high = 2 * pair + 1 < count ? at[i64(2 * pair + 1) * source.column_stride] : 0;
      x[pair] = low | high << 16;
    }
    store_shared(tile + chunk_at<D>(row, chunk), make_uint4(x[0], x[1], x[2], x[3]));
  }
}
