// Products in the type's own arithmetic: f32 and f64.
#pragma once

#include "gemm.cuh"


// 16 x 16 threads, each with TM x TN sums, whose rows and columns lie so that a warp's reads meet no bank twice.
template <typename T, bool A_TRANSPOSED, bool B_TRANSPOSED, int TM> struct Simt {
  static constexpr int W = 16 / sizeof(T), TN = 4;
  static constexpr int BM = 16 * TM, BN = 16 * TN, BK = 4 * W, STAGES = 3, THREADS = 256;
  // A row of a tile that is read along k ends with 16 bytes of padding.
  static constexpr int A_STRIDE = A_TRANSPOSED ? BM : BK + W, B_STRIDE = B_TRANSPOSED ? BK + W : BN;
  static constexpr int A_SIZE = (A_TRANSPOSED ? BK : BM) * A_STRIDE, B_SIZE = (B_TRANSPOSED ? BN : BK) * B_STRIDE;

  static constexpr int OUT_STRIDE = BN + W, TILES = STAGES * (A_SIZE + B_SIZE), OUT_SIZE = BM * OUT_STRIDE;
  static constexpr int SIZE = TILES > OUT_SIZE ? TILES : OUT_SIZE;

  // Where a thread's i-th row or column is in the tile: side by side where the tile is read along them.
  template <bool SIDE_BY_SIDE> static DEVICE u32 place(u32 thread, u32 i) {
    return SIDE_BY_SIDE ? i / W * 16 * W + thread * W + i % W : thread + 16 * i;
  }

  using LoadA = Loader<T, A_TRANSPOSED, BM, BK, A_STRIDE, THREADS>;
  using LoadB = Loader<T, !B_TRANSPOSED, BN, BK, B_STRIDE, THREADS>;

  // COUNT values at W steps of k from k on, of the rows or columns of a thread.
  template <int COUNT, bool ALONG_K, int STRIDE>
  static DEVICE void read(T (&x)[COUNT][W], const T* tile, u32 thread, int k) {
    if constexpr (ALONG_K) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        Pack<T, W> pack = load_pack<W>(tile + place<false>(thread, i) * STRIDE + k);
#pragma unroll
        for (int j = 0; j < W; j++) x[i][j] = pack.at[j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < W; j++) {
#pragma unroll
        for (int i = 0; i < COUNT; i += W) {
          Pack<T, W> pack = load_pack<W>(tile + (k + j) * STRIDE + place<true>(thread, i));
#pragma unroll
          for (int l = 0; l < W; l++) x[i + l][j] = pack.at[l];
        }
      }
    }
  }

  static DEVICE void run(const Product& p) {
    __shared__ __align__(16) T shared[SIZE];
    Work work = work_of_block<BM, BN, A_TRANSPOSED>(p);
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    u32 steps = (work.end - work.first + BK - 1) / BK;
    // A warp whose rows are all beyond the last only copies.
    bool works = work.m + place<A_TRANSPOSED>(ty & ~1u, 0) < p.m;
    const LoadA load_a(p.a, work.m, p.m, threadIdx.x);
    const LoadB load_b(p.b, work.n, p.n, threadIdx.x);
    T chunk[TM][TN] = {}, total[TM][TN] = {};
    for (u32 next = 0; next < steps + STAGES - 1; next++) {
      if (next >= STAGES - 1) {
        copy_wait<STAGES - 2>();
        __syncthreads();
      }
      T* slot = shared + next % STAGES * (A_SIZE + B_SIZE);
      if (next < steps) {
        load_a.load(slot, work.first + next * BK, work.end);
        load_b.load(slot + A_SIZE, work.first + next * BK, work.end);
      }
      copy_commit();
      if (next < STAGES - 1) continue;
      u32 step = next - (STAGES - 1);
      if (!works) continue;
      const T* left = shared + step % STAGES * (A_SIZE + B_SIZE);
      const T* right = left + A_SIZE;
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
    // Sums go through shared memory, so that rows are written in pieces of 16 bytes.
    copy_wait<0>();
    __syncthreads();
    T* sums = reinterpret_cast<T*>(shared);
    if (works) {
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
          sums[place<A_TRANSPOSED>(ty, i) * OUT_STRIDE + place<!B_TRANSPOSED>(tx, j)] = total[i][j];
    }
    __syncthreads();
    if (A_TRANSPOSED && p.parts)
      write_part<BM, BN, OUT_STRIDE, THREADS>(p, work.slice, work.m, work.n, sums);
    else write_tile<T, BM, BN, OUT_STRIDE, THREADS>(p, work.m, work.n, sums);
  }
};
