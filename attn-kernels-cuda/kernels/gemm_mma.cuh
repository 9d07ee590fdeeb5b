// Products of 16-bit floats on tensor cores, summed in f32.
#pragma once

#include "gemm.cuh"
#include "mma.cuh"

template <typename T> struct Tensor;
template <> struct Tensor<f16> { typedef F16 type; };
template <> struct Tensor<bf16> { typedef BF16 type; };

// The left factor in tiles [m][k] or, transposed, [k][m].
template <bool TRANSPOSED, int STRIDE> struct Left {
  // Bytes from the beginning of a tile to what this lane reads first, of rows from m on.
  static DEVICE u32 of_lane(u32 m) {
    u32 lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    if constexpr (TRANSPOSED) return ((matrix / 2 * 8 + row) * STRIDE + m + matrix % 2 * 8) * 2;
    else return ((m + matrix % 2 * 8 + row) * STRIDE + matrix / 2 * 8) * 2;
  }
  // The fragments of a 16 x 16 part, m rows and k columns on.
  static DEVICE void part(u32 (&r)[4], u32 address, u32 m, u32 k) {
    if constexpr (TRANSPOSED) load_transposed(r, address + (k * STRIDE + m) * 2);
    else load_matrices(r, address + (m * STRIDE + k) * 2);
  }
};

// The right factor in tiles [k][n] or, transposed, [n][k].
template <bool TRANSPOSED, int STRIDE> struct Right {
  static DEVICE u32 of_lane(u32 n) {
    u32 lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    if constexpr (TRANSPOSED) return ((n + matrix / 2 * 8 + row) * STRIDE + matrix % 2 * 8) * 2;
    else return ((matrix % 2 * 8 + row) * STRIDE + n + matrix / 2 * 8) * 2;
  }
  // Two for each 8 columns.
  static DEVICE void part(u32 (&r)[4], u32 address, u32 k, u32 n) {
    if constexpr (TRANSPOSED) load_matrices(r, address + (n * STRIDE + k) * 2);
    else load_transposed(r, address + (k * STRIDE + n) * 2);
  }
};

constexpr int MMA_K = 32;
constexpr int MMA_STAGES = 4;
// Elements of padding of a tile's rows, so that rows of 16 bytes below each other lie in different banks.
constexpr int PAD = 8;

// Tiles of BM x BN, WARPS_M x WARPS_N warps.
template <typename T, bool A_TRANSPOSED, bool B_TRANSPOSED, int BM, int BN, int WARPS_M, int WARPS_N> struct Mma {
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N, M = BM / WARPS_M, N = BN / WARPS_N;
  static constexpr int A_STRIDE = (A_TRANSPOSED ? BM : MMA_K) + PAD, B_STRIDE = (B_TRANSPOSED ? MMA_K : BN) + PAD;
  static constexpr int A_SIZE = (A_TRANSPOSED ? MMA_K : BM) * A_STRIDE, B_SIZE = (B_TRANSPOSED ? BN : MMA_K) * B_STRIDE;
  static constexpr int OUT_STRIDE = BN + 8;

  using LoadA = Loader<T, A_TRANSPOSED, BM, MMA_K, A_STRIDE, THREADS>;
  using LoadB = Loader<T, !B_TRANSPOSED, BN, MMA_K, B_STRIDE, THREADS>;
  using A = Left<A_TRANSPOSED, A_STRIDE>;
  using B = Right<B_TRANSPOSED, B_STRIDE>;

  static DEVICE void run(const Product& p) {
    extern __shared__ __align__(16) u8 shared[];
    T* tiles = reinterpret_cast<T*>(shared);
    Work work = work_of_block<BM, BN, A_TRANSPOSED>(p);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 warp_m = warp / WARPS_N * M, warp_n = warp % WARPS_N * N;
    u32 steps = (work.end - work.first + MMA_K - 1) / MMA_K;
    // A warp whose part lies beyond the output only copies.
    bool works = work.m + warp_m < p.m && work.n + warp_n < p.n;
    const LoadA load_a(p.a, work.m, p.m, threadIdx.x);
    const LoadB load_b(p.b, work.n, p.n, threadIdx.x);
    u32 left = shared_address(shared) + A::of_lane(warp_m);
    u32 right = shared_address(shared) + u32(A_SIZE * sizeof(T)) + B::of_lane(warp_n);
    float chunk[M / 16][N / 8][4] = {}, total[M / 16][N / 8][4] = {};
    for (u32 next = 0; next < steps + MMA_STAGES - 1; next++) {
      if (next >= MMA_STAGES - 1) {
        copy_wait<MMA_STAGES - 2>();
        __syncthreads();
      }
      T* slot = tiles + next % MMA_STAGES * (A_SIZE + B_SIZE);
      if (next < steps) {
        load_a.load(slot, work.first + next * MMA_K, work.end);
        load_b.load(slot + A_SIZE, work.first + next * MMA_K, work.end);
      }
      copy_commit();
      if (next < MMA_STAGES - 1 || !works) continue;
      u32 step = next - (MMA_STAGES - 1);
      u32 tile = step % MMA_STAGES * u32((A_SIZE + B_SIZE) * sizeof(T));
#pragma unroll
      for (int k = 0; k < MMA_K; k += 16) {
        u32 x[M / 16][4], y[N / 16][4];
#pragma unroll
        for (int i = 0; i < M / 16; i++) A::part(x[i], left + tile, 16 * i, k);
#pragma unroll
        for (int j = 0; j < N / 16; j++) B::part(y[j], right + tile, k, 16 * j);
#pragma unroll
        for (int i = 0; i < M / 16; i++)
#pragma unroll
          for (int j = 0; j < N / 8; j++)
            Tensor<T>::type::multiply(chunk[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
      }
      if ((step + 1) % (CHUNK / MMA_K) == 0 || step + 1 == steps) {
#pragma unroll
        for (int i = 0; i < M / 16; i++)
#pragma unroll
          for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int l = 0; l < 4; l++) {
              total[i][j][l] += chunk[i][j][l];
              chunk[i][j][l] = 0;
            }
      }
    }
    // Sums go through shared memory, so that rows are written in pieces of 16 bytes.
    copy_wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
    if (works) {
#pragma unroll
      for (int i = 0; i < M / 16; i++)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            u32 row = warp_m + 16 * i + 8 * half + lane / 4, column = warp_n + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(sums + row * OUT_STRIDE + column) =
                make_float2(total[i][j][2 * half], total[i][j][2 * half + 1]);
          }
    }
    __syncthreads();
    if (A_TRANSPOSED && p.parts)
      write_part<BM, BN, OUT_STRIDE, THREADS>(p, work.slice, work.m, work.n, sums);
    else write_tile<T, BM, BN, OUT_STRIDE, THREADS>(p, work.m, work.n, sums);
  }
};
