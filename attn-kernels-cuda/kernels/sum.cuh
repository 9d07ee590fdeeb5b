// Sums of the rows of a matrix, in f64; those of f64 in two words.
#pragma once

#include "gemm.cuh"
#include "twofold.cuh"

template <typename From> struct Total { typedef double type; };
template <> struct Total<double> { typedef Twofold type; };

struct Sum {
  Operand from;
  u64 to;           // [slices, columns]
  i64 slice, column;  // strides of it
  u32 rows, columns;
  u32 rows_of_slice;  // the last may have fewer
  u32 pad;
};

// A block sums 32 columns of a slice of rows: each of its warps every 8th row, then the first adds what the warps have.
template <typename From, typename To> DEVICE void sum(const Sum& p) {
  typedef typename Total<From>::type S;
  constexpr int WARPS = 8, COLUMNS = 32;
  __shared__ S parts[WARPS][COLUMNS];
  u32 tiles = (p.columns + COLUMNS - 1) / COLUMNS, slice = blockIdx.x / tiles;
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x % tiles * COLUMNS + lane;
  u32 first = slice * p.rows_of_slice, end = min(first + p.rows_of_slice, p.rows);
  S total = 0;
  if (column < p.columns) {
    const From* from = reinterpret_cast<const From*>(p.from.address) + column_at(p.from, column);
#pragma unroll 8
    for (u32 row = first + warp; row < end; row += WARPS)
      total += S(double(widen(from[row_at(p.from, row)])));
  }
  parts[warp][lane] = total;
  __syncthreads();
  if (warp || column >= p.columns) return;
#pragma unroll
  for (int i = 1; i < WARPS; i++) total += parts[i][lane];
  To* to = reinterpret_cast<To*>(p.to) + i64(slice) * p.slice + i64(column) * p.column;
  *to = narrow<To>(Acc<To>(double(total)));
}
