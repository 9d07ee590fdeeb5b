// Attention of f16 and bf16 on tensor cores: FlashAttention-2's loop.
//
// A block has some rows of queries of one head, a warp 16 or 32 of them, which it alone works on: softmax needs no other
// warp. One tile of keys and one of values are in shared memory, each replaced while the other is worked on. Weights stay in
// registers: what a lane holds of the first product is what it needs for the second.
//
// `plain` calls have a causal mask at most and rows of whole aligned chunks; `full` ones anything.
#include "copy.cuh"
#include "dropout.cuh"
#include "exponent.cuh"
#include "mma.cuh"
#include "visible.cuh"

// Which rows of which head a block has. Blocks that run at the same time should read the same keys, so heads come in sections
// whose keys and values fit into the L2 cache; within one the tiles that see most keys come first.
struct Work {
  u32 entry, head, tile;

  DEVICE Work(const Attend& p, u32 rows) {
    u32 block;
    // Volatile, so that it can be asked for again where it is needed again, and takes no registers in between.
    asm volatile("mov.u32 %0, %ctaid.x;" : "=r"(block));
    constexpr u64 SECTION = 24 << 20;
    const u32 tiles = (p.query_length + rows - 1) / rows, matrices = p.batches * p.heads;
    const u64 bytes = u64(p.key_length) * (p.depth + p.value_depth) * 2 + 1;
    const u64 most = (SECTION / bytes + 1) * (p.heads / p.key_heads);
    const u32 section = most < matrices ? u32(most) : matrices;
    const u32 first = block / (section * tiles) * section, at = block % (section * tiles);
    const u32 width = min(section, matrices - first);
    const u32 matrix = first + at % width;
    tile = tiles - 1 - at / width;
    entry = matrix / p.heads;
    head = matrix % p.heads;
  }
};

template <typename T, int D, int BN, int MI, int WARPS, bool FULL>
struct Attention {
  static constexpr u32 THREADS = 32 * WARPS, BM = 16 * MI * WARPS;
  typedef float Scores[MI][BN / 8][4];
  typedef float Output[MI][D / 8][4];

  const Attend& p;
  const Exponents<FULL> exponents;
  const u32 lane, queries, keys, values;  // the tiles in shared memory
  u32 entry, head, first;                 // the warp's first row
  u32 warp_row;                           // and which one of the block's it is

  DEVICE Attention(const Attend& p, u32 shared)
      : p(p), exponents(p), lane(threadIdx.x % 32), queries(shared), keys(shared + BM * D * 2), values(keys + BN * D * 2) {}

  // The query of a half of the lane's elements of result `i`.
  DEVICE u32 row(int i, int half) const { return first + i * 16 + lane / 4 + half * 8; }

  // Tiles are aligned to their rows, so the place of a chunk in a row is an exclusive-or away from that of chunk 0.
  DEVICE void products(Scores& s) const {
    const u32 q_at = queries + chunk_at<D>(warp_row + lane % 16, lane / 16);
    const u32 k_at = keys + chunk_at<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int n = 0; n < BN / 8; n++) s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      u32 q[MI][4];
#pragma unroll
      for (int i = 0; i < MI; i++) load_matrices(q[i], (q_at ^ d * 32) + i * 16 * D * 2);
#pragma unroll
      for (int n = 0; n < BN / 8; n += 2) {
        u32 k[4];
        load_matrices(k, (k_at ^ d * 32) + n * 8 * D * 2);
#pragma unroll
        for (int i = 0; i < MI; i++) {
          T::multiply(s[i][n], q[i], k[0], k[1]);
          T::multiply(s[i][n + 1], q[i], k[2], k[3]);
        }
      }
    }
  }

  // Puts what stands for hidden keys; adds the bias. `key` is the first of the tile.
  DEVICE void adjust(Scores& s, u32 key) const {
    const bool mask = FULL && p.mask.address != 0, bias = FULL && p.bias.address != 0;
    const bool cut = key + BN > p.key_length || (p.causal && i64(key) + BN > i64(first) + p.shift + 1);
    if (!cut && !(FULL && (mask || exponents.scores))) return;
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const u32 query = min(row(i, half), p.query_length - 1);
        const u32 reach = reach_of(p, query);
        const u8* mask_row = nullptr;
        const float* bias_row = nullptr;
        if (mask) mask_row = head_of<const u8>(p.mask, p.batch, entry, head) + i64(query) * p.mask.row;
        if (bias) bias_row = head_of<const float>(p.bias, p.batch, entry, head) + i64(query) * p.bias.row;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const u32 k = key + n * 8 + lane % 4 * 2 + e;
            const bool inside = k < p.key_length;
            float& x = s[i][n][half * 2 + e];
            if (FULL && exponents.scores) x = exponents.score(x, bias && inside ? bias_row[k * p.bias.column] : 0.f);
            bool seen = k < reach;
            if (mask && seen) seen = (mask_row[k * p.mask.column] != 0) == (p.set_means_keep != 0);
            if (!seen) x = inside ? exponents.hidden : -INFINITE;
          }
        }
      }
    }
  }

  // One step of the online softmax: scores become weights.
  DEVICE void weigh(Scores& s, Output& o, float (&m)[MI][2], float (&l)[MI][2], u32 key) const {
    float alpha[MI][2];
    bool changed = false;
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float largest = m[i][half];
#pragma unroll
        for (int n = 0; n < BN / 8; n++) largest = fmaxf(largest, fmaxf(s[i][n][half * 2], s[i][n][half * 2 + 1]));
        largest = quad_max(largest);
        const Shift shift = exponents.shift(largest);
        alpha[i][half] = power_of_2(exponents.rescaling(m[i][half], shift));
        changed |= alpha[i][half] != 1.f;
        m[i][half] = largest;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float& x = s[i][n][half * 2 + e];
            x = power_of_2(exponents.of(x, shift));
            sum += x;
          }
        }
        l[i][half] = __fmaf_rn(l[i][half], alpha[i][half], sum);
        if (FULL && p.dropout.width != 0) drop(s, i, half, key);
      }
    }
    // Largest scores change rarely after the first tiles.
    if (!__any_sync(~0u, changed)) return;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][n][e] *= alpha[i][e / 2];
  }

  // Dropped weights become 0. Kept ones are multiplied with the output: rounding them once more is saved.
  DEVICE void drop(Scores& s, int i, int half, u32 key) const {
    const u64 start = p.dropout.matrix * (entry * u64(p.heads) + head) + u64(row(i, half)) * p.key_length + key + lane % 4 * 2;
    u32 kept = 0;
    // A loop of its own: unrolled with the weights' registers, the rounds would be most of the program.
#pragma unroll 2
    for (u32 at = 0; at < BN / 4; at++) kept |= u32(is_kept(p.dropout, start + at / 2 * 8 + at % 2)) << at;
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        if ((kept >> (n * 2 + e) & 1) == 0) s[i][n][half * 2 + e] = 0;
  }

  DEVICE void values_by(const Scores& s, Output& o) const {
    const u32 v_at = values + chunk_at<D>(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < BN / 16; k++) {
      u32 weights[MI][4];
#pragma unroll
      for (int i = 0; i < MI; i++) {
        weights[i][0] = T::pack(s[i][2 * k][0], s[i][2 * k][1]);
        weights[i][1] = T::pack(s[i][2 * k][2], s[i][2 * k][3]);
        weights[i][2] = T::pack(s[i][2 * k + 1][0], s[i][2 * k + 1][1]);
        weights[i][3] = T::pack(s[i][2 * k + 1][2], s[i][2 * k + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < D / 8; n += 2) {
        u32 v[4];
        load_transposed(v, (v_at ^ n * 16) + k * 16 * D * 2);
#pragma unroll
        for (int i = 0; i < MI; i++) {
          T::multiply(o[i][n], weights[i], v[0], v[1]);
          T::multiply(o[i][n + 1], weights[i], v[2], v[3]);
        }
      }
    }
  }

  // Weights are those before dropout: e^(score - m) / l.
  DEVICE void write_weights(Scores& s, const float (&m)[MI][2], const float (&l)[MI][2], u32 key) const {
    float* const to = head_of<float>(p.weights, p.batch, entry, head);
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (row(i, half) >= p.query_length) continue;
        const Shift shift = exponents.shift(m[i][half]);
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const u32 k = key + n * 8 + lane % 4 * 2 + e;
            const float weight = power_of_2(exponents.of(s[i][n][half * 2 + e], shift)) / l[i][half];
            if (k < p.key_length) to[i64(row(i, half)) * p.weights.row + k * p.weights.column] = weight;
          }
        }
      }
    }
  }

  DEVICE void write_statistics(const float (&m)[MI][2], const float (&l)[MI][2]) const {
    float* const to = head_of<float>(p.statistics, p.batch, entry, head);
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (row(i, half) >= p.query_length || lane % 4 != 0) continue;
        float* const at = to + i64(row(i, half)) * p.statistics.row;
        at[0] = exponents.natural(m[i][half]);
        at[p.statistics.column] = l[i][half];
      }
    }
  }

  // By way of the warp's own rows of the queries' tile, so that rows are written by chunks.
  DEVICE void write_output(const Output& o) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          const u32 at = queries + chunk_at<D>(warp_row + i * 16 + lane / 4 + half * 8, n) + lane % 4 * 4;
          store_shared(at, T::pack(o[i][n][half * 2], o[i][n][half * 2 + 1]));
        }
    __syncwarp();
    u16* const to = head_of<u16>(p.out, p.batch, entry, head);
    const bool chunks = !FULL || HeadRows::of(p.out, p.batch, entry, head, p.query_length, p.value_depth).in_chunks();
#pragma unroll 4
    for (u32 at = lane; at < 16 * MI * (D / 8); at += 32) {
      const u32 r = at / (D / 8), chunk = at % (D / 8), query = first + r;
      if (query >= p.query_length || chunk * 8 >= p.value_depth) continue;
      const uint4 x = load_shared(queries + chunk_at<D>(warp_row + r, chunk));
      u16* const row_of = to + i64(query) * p.out.row + i64(chunk * 8) * p.out.column;
      if (chunks) {
        *reinterpret_cast<uint4*>(row_of) = x;
      } else {
        const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (u32 e = 0; e < 8; e++)
          if (chunk * 8 + e < p.value_depth) row_of[i64(e) * p.out.column] = u16(words[e / 2] >> e % 2 * 16);
      }
    }
  }

  DEVICE void take(const Work& work) {
    entry = work.entry;
    head = work.head;
    warp_row = threadIdx.x / 32 * (16 * MI);
    first = work.tile * BM + warp_row;
  }

  DEVICE void run() {
    const Work work(p, BM);
    take(work);
    const u32 thread = threadIdx.x, block_first = work.tile * BM, key_head = head / (p.heads / p.key_heads);
    const HeadRows query = HeadRows::of(p.query, p.batch, entry, head, p.query_length, p.depth);
    const HeadRows key = HeadRows::of(p.key, p.batch, entry, key_head, p.key_length, p.depth);
    const HeadRows value = HeadRows::of(p.value, p.batch, entry, key_head, p.key_length, p.value_depth);
    const bool key_chunks = !FULL || key.in_chunks(), value_chunks = !FULL || value.in_chunks();
    const Copier<D, BN, THREADS> key_copier(key, thread), value_copier(value, thread);
    auto copy_keys = [&](u32 tile) {
      if (key_chunks) key_copier.start(keys, tile * BN, thread);
      else copy_elements<D, BN, THREADS>(key, keys, tile * BN, thread);
      copy_commit();
    };
    auto copy_values = [&](u32 tile) {
      if (value_chunks) value_copier.start(values, tile * BN, thread);
      else copy_elements<D, BN, THREADS>(value, values, tile * BN, thread);
      copy_commit();
    };
    if (!FULL || query.in_chunks()) Copier<D, BM, THREADS>(query, thread).start(queries, block_first, thread);
    else copy_elements<D, BM, THREADS>(query, queries, block_first, thread);
    copy_commit();

    // Tiles that the block and the warp look at. A row that sees nothing gets the mean of all values, hidden ones too.
    const u32 tiles = (p.key_length + BN - 1) / BN;
    const bool mean = !p.zero_if_blind;
    auto tiles_of = [&](u32 first, u32 last) {
      if (first >= p.query_length) return 0u;
      if (mean && reach_of(p, first) == 0) return tiles;
      return (reach_of(p, min(last, p.query_length - 1)) + BN - 1) / BN;
    };
    u32 block_end = tiles_of(block_first, block_first + BM - 1), warp_end = tiles_of(first, first + 16 * MI - 1);

    Output o;
    float m[MI][2], l[MI][2];
#pragma unroll
    for (int i = 0; i < MI; i++) {
      m[i][0] = m[i][1] = -INFINITE;
      l[i][0] = l[i][1] = 0;
#pragma unroll
      for (int n = 0; n < D / 8; n++) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0;
    }
    bool more;
    u32 tile = 0;
    do {
      more = false;
      if (tile < block_end) copy_keys(tile);
      for (; tile < block_end; tile++) {
        const bool works = tile < warp_end;
        Scores s;
        copy_wait<0>();
        __syncthreads();  // keys have come, and nobody needs the last values any more
        copy_values(tile);
        if (works) products(s);
        copy_wait<0>();
        __syncthreads();  // values have come, and nobody needs these keys any more
        if (tile + 1 < block_end) copy_keys(tile + 1);
        if (works) {
          adjust(s, tile * BN);
          weigh(s, o, m, l, tile * BN);
          values_by(s, o);
        }
      }
      if (FULL && mean && block_end < tiles) {
        bool blind = false;
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
          for (int half = 0; half < 2; half++) blind |= row(i, half) < p.query_length && m[i][half] <= exponents.hidden;
        if (__any_sync(~0u, blind)) warp_end = tiles;
        more = __syncthreads_or(blind);
        if (more) block_end = tiles;
      }
    } while (more);
    copy_wait<0>();
    __syncthreads();  // queries are there even if no key was looked at
    if (!FULL) take(Work(p, BM));

#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float& sum = l[i][half];
        sum = quad_sum(sum);
        // Under Flax's rule a row whose every score is -inf is NaN, as there.
        if (sum == 0 && (!mean || p.key_length == 0)) sum = 1;
        float factor = 1 / sum;
        if (FULL && p.dropout.width != 0 && p.key_length != 0) factor *= float(p.dropout.multiplier);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          o[i][n][half * 2] *= factor;
          o[i][n][half * 2 + 1] *= factor;
        }
      }
    }
    if (p.statistics.address != 0) write_statistics(m, l);
    if (FULL && p.weights.address != 0) {
      for (u32 tile = 0; tile < tiles; tile++) {
        copy_keys(tile);
        copy_wait<0>();
        __syncthreads();
        if (first < p.query_length) {
          Scores s;
          products(s);
          adjust(s, tile * BN);
          write_weights(s, m, l, tile * BN);
        }
        __syncthreads();
      }
    }
    if (first < p.query_length) write_output(o);
  }
};

template <typename T, int D, int BN, int MI, int WARPS, bool FULL>
DEVICE void attend(const Attend& p) {
  extern __shared__ __align__(1024) u8 shared[];
  Attention<T, D, BN, MI, WARPS, FULL>(p, shared_address(shared)).run();
}

#define ATTEND(name, T, D, BN, MI, WARPS, BLOCKS, FULL)                                                                 \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) attend_mma_##name(const __grid_constant__ Attend p) { \
    attend<T, D, BN, MI, WARPS, FULL>(p);                                                                               \
  }
#define OF_BOTH(depth, BN, MI, WARPS, BLOCKS, FULL, kind) \
  ATTEND(f16_##depth##_##kind, F16, depth, BN, MI, WARPS, BLOCKS, FULL) \
  ATTEND(bf16_##depth##_##kind, BF16, depth, BN, MI, WARPS, BLOCKS, FULL)

// src/ops/attend/mma.rs has the same table. Tiles of keys are the same for both kinds: they are part of a row's bits.
OF_BOTH(32, 64, 2, 4, 3, false, plain)
OF_BOTH(32, 64, 1, 4, 4, true, full)
OF_BOTH(64, 64, 2, 4, 2, false, plain)
OF_BOTH(64, 64, 1, 4, 3, true, full)
OF_BOTH(128, 64, 2, 4, 2, false, plain)
OF_BOTH(128, 64, 1, 4, 2, true, full)
OF_BOTH(256, 64, 1, 8, 1, false, plain)
OF_BOTH(256, 64, 1, 4, 1, true, full)
