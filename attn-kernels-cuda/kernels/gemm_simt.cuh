// Products in the type's own arithmetic: f32 and f64.
#pragma once

#include "gemm.cuh"


// 16 bytes of elements.
template <typename T> struct alignas(16) Quad { T x[16 / sizeof(T)]; };

// 16 x 16 threads, each with TM x TN sums, whose rows and columns lie so that a warp's reads meet no bank twice.
template <typename T, bool A_TRANSPOSED, bool B_TRANSPOSED> struct Simt {
  static constexpr int W = 16 / sizeof(T), TM = sizeof(T) == 4 ? 8 : 4, TN = 4;
  static constexpr int BM = 16 * TM, BN = 16 * TN, BK = 4 * W, STAGES = 3, THREADS = 256;
  // A row of a tile that is read along k ends with 16 bytes of padding.
  static constexpr int A_STRIDE = A_TRANSPOSED ? BM : BK + W, B_STRIDE = B_TRANSPOSED ? BK + W : BN;
  static constexpr int A_SIZE = (A_TRANSPOSED ? BK : BM) * A_STRIDE, B_SIZE = (B_TRANSPOSED ? BN : BK) * B_STRIDE;

  // Where a thread's i-th row or column is in the tile: side by side where the tile is read along them.
  template <bool SIDE_BY_SIDE> static DEVICE u32 place(u32 thread, u32 i) {
    return SIDE_BY_SIDE ? i / W * 16 * W + thread * W + i % W : thread + 16 * i;
  }

  static DEVICE void load(T* a, T* b, const Product& p, u32 m, u32 n, u32 k) {
    if constexpr (A_TRANSPOSED) load_tile<T, BK, BM, A_STRIDE, THREADS>(a, p.a, k, p.k, m, p.m, threadIdx.x);
    else load_tile<T, BM, BK, A_STRIDE, THREADS>(a, p.a, m, p.m, k, p.k, threadIdx.x);
    if constexpr (B_TRANSPOSED) load_tile<T, BN, BK, B_STRIDE, THREADS>(b, p.b, n, p.n, k, p.k, threadIdx.x);
    else load_tile<T, BK, BN, B_STRIDE, THREADS>(b, p.b, k, p.k, n, p.n, threadIdx.x);
  }

  // COUNT values at W steps of k from k on, of the rows or columns of a thread.
  template <int COUNT, bool ALONG_K, int STRIDE>
  static DEVICE void read(T (&x)[COUNT][W], const T* tile, u32 thread, int k) {
    if constexpr (ALONG_K) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        Quad<T> quad = *reinterpret_cast<const Quad<T>*>(tile + place<false>(thread, i) * STRIDE + k);
#pragma unroll
        for (int j = 0; j < W; j++) x[i][j] = quad.x[j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < W; j++) {
#pragma unroll
        for (int i = 0; i < COUNT; i += W) {
          Quad<T> quad = *reinterpret_cast<const Quad<T>*>(tile + (k + j) * STRIDE + place<true>(thread, i));
#pragma unroll
          for (int l = 0; l < W; l++) x[i + l][j] = quad.x[l];
        }
      }
    }
  }

  static DEVICE void run(const Product& p) {
    __shared__ __align__(16) T a[STAGES][A_SIZE], b[STAGES][B_SIZE];
    u32 tile_m, tile_n;
    tile_of_block((p.m + BM - 1) / BM, (p.n + BN - 1) / BN, tile_m, tile_n);
    u32 m = tile_m * BM, n = tile_n * BN, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    u32 steps = (p.k + BK - 1) / BK;
    // A warp whose rows are all beyond the last only copies.
    bool works = m + place<A_TRANSPOSED>(ty & ~1u, 0) < p.m;
    T chunk[TM][TN] = {}, total[TM][TN] = {};
    for (u32 next = 0; next < steps + STAGES - 1; next++) {
      if (next >= STAGES - 1) {
        await_copies<STAGES - 2>();
        __syncthreads();
      }
      if (next < steps) load(a[next % STAGES], b[next % STAGES], p, m, n, next * BK);
      commit_copies();
      if (next < STAGES - 1) continue;
      u32 step = next - (STAGES - 1);
      if (!works) continue;
      const T *left = a[step % STAGES], *right = b[step % STAGES];
#pragma unroll
      for (int k = 0; k < BK; k += W) {
        T x[TM][W], y[TN][W];
        read<TM, !A_TRANSPOSED, A_STRIDE>(x, left, ty, k);
        read<TN, B_TRANSPOSED, B_STRIDE>(y, right, tx, k);
#pragma unroll
        for (int l = 0; l < W; l++)
#pragma unroll
          for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) chunk[i][j] = multiply_add(x[i][l], y[j][l], chunk[i][j]);
      }
      if ((step + 1) % (CHUNK / BK) == 0 || step + 1 == steps) {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) {
            total[i][j] += chunk[i][j];
            chunk[i][j] = 0;
          }
      }
    }
    if (!works) return;
#pragma unroll
    for (int i = 0; i < TM; i++) {
      u32 row = m + place<A_TRANSPOSED>(ty, i);
      if (row >= p.m) continue;
      if constexpr (B_TRANSPOSED) {
#pragma unroll
        for (int j = 0; j < TN; j++) {
          u32 column = n + place<false>(tx, j);
          if (column < p.n) write<T>(p, row, column, total[i][j] + bias_of<T>(p, column));
        }
      } else {
#pragma unroll
        for (int j = 0; j < TN; j += W) {
          u32 column = n + place<true>(tx, j);
          T piece[W];
#pragma unroll
          for (int l = 0; l < W; l++) piece[l] = total[i][j + l];
          if (column < p.n) write_piece<T, W>(p, row, column, piece);
        }
      }
    }
  }
};
