// Products with few rows, which read the right factor, [k, n], once: each warp of a block sums chunks of its own, and the block
// adds them in their order, so that an element has the bits that the kernels for many rows give it.
#pragma once

#include "gemm_mma.cuh"
#include "gemm_simt.cuh"

constexpr int FEW_WARPS = 8;
constexpr int FEW_COLUMNS = 32;

// Adds the chunks of a round, [warp][row][column], to the totals of a thread, which are those of ROWS * FEW_COLUMNS / 256 elements.
template <int ROWS, typename A> DEVICE void add_round(A (&total)[(ROWS + 7) / 8], const A* chunks, u32 count) {
  constexpr int ELEMENTS = ROWS * FEW_COLUMNS;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < (ROWS + 7) / 8; i++) {
    u32 element = i * 256 + threadIdx.x;
    if (element < ELEMENTS)
      for (u32 chunk = 0; chunk < count; chunk++) total[i] += chunks[chunk * ELEMENTS + element];
  }
  __syncthreads();
}

template <int ROWS, typename T> DEVICE void write_totals(const Product& p, u32 n, const Acc<T> (&total)[(ROWS + 7) / 8]) {
#pragma unroll
  for (int i = 0; i < (ROWS + 7) / 8; i++) {
    u32 row = i * 8 + threadIdx.x / FEW_COLUMNS, column = n + threadIdx.x % FEW_COLUMNS;
    if (row < p.m && row < ROWS && column < p.n) write<T>(p, row, column, total[i] + bias_of<T>(p, column));
  }
}

// Up to ROWS rows in the type's own arithmetic: a lane sums one column.
template <typename T, int ROWS> DEVICE void few_simt(const Product& p) {
  constexpr int UNROLL = 16;
  __shared__ T input[FEW_WARPS][ROWS][UNROLL];
  __shared__ T chunks[FEW_WARPS][ROWS * FEW_COLUMNS];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.x * FEW_COLUMNS;
  bool there = n + lane < p.n;
  const T* left = reinterpret_cast<const T*>(p.a.address);
  const T* right = reinterpret_cast<const T*>(p.b.address) + (there ? column_at(p.b, n + lane) : 0);
  T total[(ROWS + 7) / 8] = {};
  u32 count = (p.k + CHUNK - 1) / CHUNK;
  for (u32 round = 0; round < count; round += FEW_WARPS) {
    if (round + warp < count) {
      u32 first = (round + warp) * CHUNK, end = min(first + CHUNK, p.k);
      T sums[ROWS] = {};
      for (u32 k = first; k < end; k += UNROLL) {
        T y[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) y[i] = there && k + i < end ? right[row_at(p.b, k + i)] : T(0);
        __syncwarp();
        for (u32 element = lane; element < ROWS * UNROLL; element += 32) {
          u32 row = element / UNROLL, at = k + element % UNROLL;
          input[warp][row][element % UNROLL] =
              row < p.m && at < end ? left[row_at(p.a, row) + column_at(p.a, at)] : T(0);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
#pragma unroll
          for (int row = 0; row < ROWS; row++) sums[row] = multiply_add(input[warp][row][i], y[i], sums[row]);
      }
#pragma unroll
      for (int row = 0; row < ROWS; row++) chunks[warp][row * FEW_COLUMNS + lane] = sums[row];
    }
    add_round<ROWS>(total, &chunks[0][0], min(u32(FEW_WARPS), count - round));
  }
  write_totals<ROWS, T>(p, n, total);
}

// Up to 16 rows on tensor cores: each warp has tiles of its own in shared memory.
template <typename T> DEVICE void few_mma(const Product& p) {
  constexpr int ROWS = 16, A_STRIDE = MMA_K + PAD, B_STRIDE = FEW_COLUMNS + PAD;
  constexpr int A_SIZE = ROWS * A_STRIDE, B_SIZE = MMA_K * B_STRIDE, SLOT = A_SIZE + B_SIZE;
  extern __shared__ __align__(16) u8 shared[];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.x * FEW_COLUMNS;
  float* chunks = reinterpret_cast<float*>(shared);
  T* tiles = reinterpret_cast<T*>(chunks + FEW_WARPS * ROWS * FEW_COLUMNS) + warp * MMA_STAGES * SLOT;
  float total[ROWS / 8] = {};
  u32 count = (p.k + CHUNK - 1) / CHUNK;
  // Steps of all chunks of this warp, so that the next chunk's tiles are on their way while this one's are summed.
  u32 last = count ? (p.k - (count - 1) * CHUNK + MMA_K - 1) / MMA_K : 0;
  u32 own = count > warp ? (count - warp + FEW_WARPS - 1) / FEW_WARPS : 0, steps = 0;
  if (own) {
    bool ends = (own - 1) * FEW_WARPS + warp == count - 1;
    steps = (own - 1) * (CHUNK / MMA_K) + (ends ? last : CHUNK / MMA_K);
  }
  const Loader<T, false, ROWS, MMA_K, A_STRIDE, 32> load_a(p.a, 0, p.m, lane);
  const Loader<T, true, FEW_COLUMNS, MMA_K, B_STRIDE, 32> load_b(p.b, n, p.n, lane);
  using A = Left<false, A_STRIDE>;
  using B = Right<false, B_STRIDE>;
  u32 left = shared_address(tiles) + A::of_lane(0);
  u32 right = shared_address(tiles) + u32(A_SIZE * sizeof(T)) + B::of_lane(0);
  auto load = [&](u32 step) {
    u32 k = (step / (CHUNK / MMA_K) * FEW_WARPS + warp) * CHUNK + step % (CHUNK / MMA_K) * MMA_K;
    T* slot = tiles + step % MMA_STAGES * SLOT;
    if (step < steps) {
      load_a.load(slot, k, p.k);
      load_b.load(slot + A_SIZE, k, p.k);
    }
    copy_commit();
  };
  u32 loaded = 0, step = 0;
  for (u32 round = 0; round < count; round += FEW_WARPS) {
    u32 end = min(step + CHUNK / MMA_K, steps);
    float chunk[FEW_COLUMNS / 8][4] = {};
    while (step < end) {
      for (; loaded < step + MMA_STAGES - 1; loaded++) load(loaded);
      copy_wait<MMA_STAGES - 2>();
      __syncwarp();
      u32 tile = step % MMA_STAGES * u32(SLOT * sizeof(T));
#pragma unroll
      for (int k = 0; k < MMA_K; k += 16) {
        u32 x[4], y[FEW_COLUMNS / 16][4];
        A::part(x, left + tile, 0, k);
#pragma unroll
        for (int j = 0; j < FEW_COLUMNS / 16; j++) B::part(y[j], right + tile, k, 16 * j);
#pragma unroll
        for (int j = 0; j < FEW_COLUMNS / 8; j++)
          Tensor<T>::type::multiply(chunk[j], x, y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
      }
      // The next copy goes where this tile was.
      __syncwarp();
      step++;
    }
    if (round + warp < count) {
#pragma unroll
      for (int j = 0; j < FEW_COLUMNS / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          u32 row = 8 * half + lane / 4, column = 8 * j + lane % 4 * 2;
          *reinterpret_cast<float2*>(chunks + (warp * ROWS + row) * FEW_COLUMNS + column) =
              make_float2(chunk[j][2 * half], chunk[j][2 * half + 1]);
        }
    }
    add_round<ROWS>(total, chunks, min(u32(FEW_WARPS), count - round));
  }
  copy_wait<0>();
  write_totals<ROWS, T>(p, n, total);
}
