// Layer norm and its gradients. Mean and variance are two passes: a variance from sums of squares loses what squares have in common.
#include "gemm.cuh"
#include "twofold.cuh"

struct Norm {
  Operand x;
  u64 scale;
  i64 scale_stride;
  double epsilon;
  u32 rows, depth;
};

struct NormBackward {
  Operand x, gradient;
  u64 scale;
  i64 scale_stride;
  double epsilon;
  u64 d_scale;  // f64 [blocks, depth], of f64 [blocks, 2, depth] whose sums it is; 0 if it is not wanted
  u32 rows, depth;
  u32 rows_of_block;
  u32 pad;
};

constexpr int NORM_THREADS = 256;
// Columns that a thread holds where a warp has a row of its own.
constexpr int HELD = 8;

// Calls f(which of the held, column) for each column of this thread, of THREADS that share a row. A thread holds pairs of columns.
template <int THREADS, typename F> DEVICE void for_columns(u32 depth, F f) {
  u32 thread = threadIdx.x % THREADS;
  if constexpr (THREADS == 32) {
#pragma unroll
    for (int i = 0; i < HELD; i++) {
      u32 column = i / 2 * 64 + thread * 2 + i % 2;
      if (column < depth) f(i, column);
    }
  } else {
    for (u32 column = thread; column < depth; column += THREADS) f(0, column);
  }
}

// The held elements of a row, from where they lie and back.
template <typename T, typename S> DEVICE void load_row(S (&held)[HELD], const T* row, const Operand& o, u32 depth) {
#pragma unroll
  for (int i = 0; i < HELD; i += 2) {
    u32 column = i * 32 + threadIdx.x % 32 * 2;
    if (o.vectors && column + 1 < depth) {
      Pack<T, 2> pair = load_pack<2>(row + column);
      held[i] = S(widen(pair.at[0]));
      held[i + 1] = S(widen(pair.at[1]));
      continue;
    }
    if (column < depth) held[i] = S(widen(row[i64(column) * o.column]));
    if (column + 1 < depth) held[i + 1] = S(widen(row[i64(column + 1) * o.column]));
  }
}
template <typename T, typename S> DEVICE void store_row(const S (&held)[HELD], T* row, const Operand& o, u32 depth) {
#pragma unroll
  for (int i = 0; i < HELD; i += 2) {
    u32 column = i * 32 + threadIdx.x % 32 * 2;
    T first = narrow<T>(Acc<T>(held[i])), second = narrow<T>(Acc<T>(held[i + 1]));
    if (o.vectors && column + 1 < depth) {
      *reinterpret_cast<Pack<T, 2>*>(row + column) = {first, second};
      continue;
    }
    if (column < depth) row[i64(column) * o.column] = first;
    if (column + 1 < depth) row[i64(column + 1) * o.column] = second;
  }
}

template <typename S> DEVICE S from_lane(S x, int distance) { return __shfl_xor_sync(0xffffffff, x, distance); }
DEVICE Twofold from_lane(Twofold x, int distance) { return {from_lane(x.high, distance), from_lane(x.low, distance)}; }

// The sum over the threads of a row, for all of them; `parts` are shared by a block.
template <int THREADS, typename S> DEVICE S sum_of_row(S x, S* parts) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) x += from_lane(x, distance);
  if constexpr (THREADS > 32) {
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) x += parts[i];
  }
  return x;
}

// x / count and 1 / sqrt(x); `one_by_count` is nearly that.
DEVICE float quotient(float x, u32 count, float) { return x / float(count); }
DEVICE double quotient(double x, u32 count, double one_by_count) {
  double near = x * one_by_count;
  return multiply_add(multiply_add(-near, double(count), x), one_by_count, near);
}
DEVICE Twofold quotient(Twofold x, u32 count, double one_by_count) {
  double near = x.high * one_by_count;
  Twofold rest = x - Twofold(near) * Twofold(double(count));
  return Twofold::sum(near, rest.high * one_by_count);
}
DEVICE float one_by_root(float x) { return 1.0f / __fsqrt_rn(x); }
DEVICE double one_by_root(double x) { return 1.0 / __dsqrt_rn(x); }
DEVICE Twofold one_by_root(Twofold x) {
  Twofold near = one_by_root(x.high), rest = Twofold(1.0) - x * near * near;
  return Twofold::sum(near.high, 0.5 * near.high * rest.high);
}

// Mean, and one by the standard deviation, of the values value(which, column) of a row.
template <int THREADS, typename S, typename C, typename F>
DEVICE void moments(u32 depth, S epsilon, C one_by_depth, S* parts, F value, S& mean, S& factor) {
  S sum = 0, squares = 0;
  for_columns<THREADS>(depth, [&](int i, u32 column) { sum += S(value(i, column)); });
  mean = quotient(sum_of_row<THREADS>(sum, parts), depth, one_by_depth);
  for_columns<THREADS>(depth, [&](int i, u32 column) {
    S centred = S(value(i, column)) - mean;
    squares += centred * centred;
  });
  factor = one_by_root(quotient(sum_of_row<THREADS>(squares, parts), depth, one_by_depth) + epsilon);
}

// THREADS threads have a row; S is what its statistics are computed in.
template <typename T, typename S, int THREADS> DEVICE void normalize(const Norm& p) {
  __shared__ S parts[NORM_THREADS / 32];
  u32 row = blockIdx.x * (NORM_THREADS / THREADS) + threadIdx.x / THREADS;
  if (row >= p.rows) return;
  T* x = reinterpret_cast<T*>(p.x.address) + row_at(p.x, row);
  const Acc<T>* scale = reinterpret_cast<const Acc<T>*>(p.scale);
  S held[HELD] = {};
  auto value = [&](int i, u32 column) {
    if constexpr (THREADS == 32) return held[i];
    else return S(widen(x[i64(column) * p.x.column]));
  };
  if constexpr (THREADS == 32) load_row(held, x, p.x, p.depth);
  S mean, factor;
  moments<THREADS>(p.depth, S(p.epsilon), S(1) / S(p.depth), parts, value, mean, factor);
  for_columns<THREADS>(p.depth, [&](int i, u32 column) {
    S normal = (value(i, column) - mean) * (factor * S(scale[i64(column) * p.scale_stride]));
    if constexpr (THREADS == 32) held[i] = normal;
    else x[i64(column) * p.x.column] = narrow<T>(Acc<T>(normal));
  });
  if constexpr (THREADS == 32) store_row(held, x, p.x, p.depth);
}

// A number in memory, whose second word lies `apart` from the first.
template <typename S> DEVICE S load_words(const double* from, u32 apart) {
  if constexpr (sizeof(S) == sizeof(double)) return *from;
  else return S(from[0], from[apart]);
}
DEVICE void store_words(double* to, u32, double x) { *to = x; }
DEVICE void store_words(double* to, u32 apart, Twofold x) {
  to[0] = x.high;
  to[apart] = x.low;
}

// With n the normalised row, g the gradient times the scale and f one by the standard deviation:
// dx = f (g - mean(g) - n mean(g n)), d_scale = sum of gradient n over the rows.
// S is what the gradients are computed in.
template <typename T, typename S, int THREADS> DEVICE void normalize_backward(const NormBackward& p) {
  constexpr u32 ROWS = NORM_THREADS / THREADS;
  __shared__ S parts[NORM_THREADS / 32];
  const Acc<T>* scale = reinterpret_cast<const Acc<T>*>(p.scale);
  constexpr u32 WORDS = sizeof(S) / sizeof(double);
  double* d_scale = reinterpret_cast<double*>(p.d_scale) + u64(blockIdx.x) * WORDS * p.depth;

  u32 first = blockIdx.x * p.rows_of_block, end = min(first + p.rows_of_block, p.rows);
  double one_by_depth = 1.0 / double(p.depth);
  S shares[HELD];
#pragma unroll
  for (int i = 0; i < HELD; i++) shares[i] = 0;
  for (u32 row = first + threadIdx.x / THREADS; row < end; row += ROWS) {
    const T* x = reinterpret_cast<const T*>(p.x.address) + row_at(p.x, row);
    T* gradient = reinterpret_cast<T*>(p.gradient.address) + row_at(p.gradient, row);
    double xs[HELD] = {}, gs[HELD] = {};
    auto value = [&](int i, u32 column) {
      if constexpr (THREADS == 32) return xs[i];
      else return double(widen(x[i64(column) * p.x.column]));
    };
    auto given = [&](int i, u32 column) {
      if constexpr (THREADS == 32) return gs[i];
      else return double(widen(gradient[i64(column) * p.gradient.column]));
    };
    auto scale_of = [&](u32 column) { return S(double(scale[i64(column) * p.scale_stride])); };
    if constexpr (THREADS == 32) {
      load_row(xs, x, p.x, p.depth);
      load_row(gs, gradient, p.gradient, p.depth);
    }
    S mean, factor;
    moments<THREADS>(p.depth, S(p.epsilon), one_by_depth, parts, value, mean, factor);
    S sum = 0, product = 0;
    for_columns<THREADS>(p.depth, [&](int i, u32 column) {
      S normal = (S(value(i, column)) - mean) * factor, g = given(i, column);
      if constexpr (THREADS == 32) shares[i] += g * normal;
      else if (p.d_scale) {
        S before = row == first ? S(0) : load_words<S>(d_scale + column, p.depth);
        store_words(d_scale + column, p.depth, before + g * normal);
      }
      g *= scale_of(column);
      sum += g;
      product += g * normal;
    });
    sum = quotient(sum_of_row<THREADS>(sum, parts), p.depth, one_by_depth);
    product = quotient(sum_of_row<THREADS>(product, parts), p.depth, one_by_depth);
    for_columns<THREADS>(p.depth, [&](int i, u32 column) {
      S normal = (S(value(i, column)) - mean) * factor, g = S(given(i, column)) * scale_of(column);
      double d_x = double(factor * (g - sum - normal * product));
      if constexpr (THREADS == 32) gs[i] = d_x;
      else gradient[i64(column) * p.gradient.column] = narrow<T>(Acc<T>(d_x));
    });
    if constexpr (THREADS == 32) store_row(gs, gradient, p.gradient, p.depth);
  }
  if constexpr (THREADS == 32) {
    if (!p.d_scale) return;
    // The warps' shares are added in their order.
    __shared__ S all[NORM_THREADS / 32][32 * HELD];
    for_columns<THREADS>(p.depth, [&](int i, u32 column) { all[threadIdx.x / 32][column] = shares[i]; });
    __syncthreads();
    u32 column = threadIdx.x;
    if (column >= p.depth) return;
    S total = 0;
#pragma unroll
    for (int warp = 0; warp < NORM_THREADS / 32; warp++) total += all[warp][column];
    store_words(d_scale + column, p.depth, total);
  }
}

#define KERNEL(NAME, TYPE, ...) \
  extern "C" __global__ void __launch_bounds__(NORM_THREADS) NAME(const __grid_constant__ TYPE p) { __VA_ARGS__(p); }
#define NORMS(NAME, T, S, GRADIENT)                                             \
  KERNEL(normalize_##NAME, Norm, normalize<T, S, 32>)                 \
  KERNEL(normalize_deep_##NAME, Norm, normalize<T, S, NORM_THREADS>)  \
  KERNEL(backward_##NAME, NormBackward, normalize_backward<T, GRADIENT, 32>)    \
  KERNEL(backward_deep_##NAME, NormBackward, normalize_backward<T, GRADIENT, NORM_THREADS>)
NORMS(f32, float, double, double)
NORMS(f64, double, double, Twofold)
NORMS(f16, f16, float, double)
NORMS(bf16, bf16, float, double)
