// Instructions of sm_90a: asynchronous copies of tiles (TMA), barriers that count bytes, products of a warpgroup (wgmma).
#pragma once

#include "params.cuh"

// A CUtensorMap, made on the host.
struct alignas(64) TensorMap {
  u64 words[16];
};

enum class Half { f16, bf16 };

DEVICE u32 shared_address(const void* pointer) {
  return u32(__cvta_generic_to_shared(pointer));
}

// ---- barriers ----

// An mbarrier in shared memory. A wait names the parity of the phase that it waits for: 0 for the first.
struct Barrier {
  u64 word;

  DEVICE void init(u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }

  DEVICE void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }

  // Arrives and says how many bytes copies will bring in this phase.
  DEVICE void arrive_expecting(u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }

  DEVICE void wait(u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE_%=;\n"
        "bra AGAIN_%=;\n"
        "DONE_%=:\n}\n" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
  }
};

// Makes the initialisation of barriers known to the copy engine.
DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Named barriers of a block; barrier 0 is that of __syncthreads.
DEVICE void named_sync(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEVICE void named_arrive(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- copies ----

// Copies a box of a 4-D array, zeros where it is outside, and counts its bytes at the barrier.
DEVICE void copy_box(void* to, const TensorMap& map, Barrier& barrier, u32 c0, u32 c1, u32 c2, u32 c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Begins to fetch a map that copies will need.
DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---- registers ----

template <int COUNT>
DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- products of a warpgroup ----

// Tiles lie in shared memory as panels 64 columns wide, rows of 128 bytes whose 16-byte chunks are swizzled: chunk c of row
// r is at c ^ (r % 8). A panel starts at a multiple of 1024 bytes.
constexpr u32 PANEL = 64;
constexpr u32 ROW_BYTES = 128;

// A matrix operand: `from` within a panel, 8 rows of which take 1024 bytes; `panels` bytes from one panel to the next, which
// is looked at only where the operand is read across its rows.
DEVICE u64 operand(u32 from, u32 panels) {
  constexpr u64 SWIZZLE_128 = u64(1) << 62;
  constexpr u64 EIGHT_ROWS = u64(8 * ROW_BYTES >> 4) << 32;
  return SWIZZLE_128 | EIGHT_ROWS | u64(panels >> 4) << 16 | (from & 0x3ffff) >> 4;
}

// `operand` moved by a number of bytes.
DEVICE u64 moved(u64 operand, u32 bytes) {
  return operand + (bytes >> 4);
}

// Before products whose registers were touched since.
DEVICE void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEVICE void products_end() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all but the latest PENDING groups of products are there.
template <int PENDING>
DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of results across this place.
template <int N>
DEVICE void pin(float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(values[i])::"memory");
}

// Sums of products, 64 x N, as the warpgroup's threads hold them, of 64 x 16 by 16 x N elements:
// `scores`: both from shared memory, the second as rows of N; sums start at zero unless ADD.
// `values`: the first from registers, the second from shared memory as rows of 16, added to the sums.
template <Half T, int N>
struct Product;

#define PLACES_10(tens)                                                                                              \
  "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens "6, %" #tens "7, %" #tens "8, %" #tens "9"
#define PLACES_30 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " PLACES_10(1) ", " PLACES_10(2)
#define PLACES_32 PLACES_30 ", %30, %31"
#define PLACES_40 PLACES_30 ", " PLACES_10(3)
#define PLACES_60 PLACES_40 ", " PLACES_10(4) ", " PLACES_10(5)
#define PLACES_64 PLACES_60 ", %60, %61, %62, %63"
#define PLACES_80 PLACES_60 ", " PLACES_10(6) ", " PLACES_10(7)
#define PLACES_88 PLACES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define PLACES_120 PLACES_80 ", " PLACES_10(8) ", " PLACES_10(9) ", " PLACES_10(10) ", " PLACES_10(11)
#define PLACES_128 PLACES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define SUMS_8(i)                                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32 SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24)
#define SUMS_40 SUMS_32, SUMS_8(32)
#define SUMS_64 SUMS_40, SUMS_8(40), SUMS_8(48), SUMS_8(56)
#define SUMS_88 SUMS_64, SUMS_8(64), SUMS_8(72), SUMS_8(80)
#define SUMS_128 SUMS_88, SUMS_8(88), SUMS_8(96), SUMS_8(104), SUMS_8(112), SUMS_8(120)

// P0 to P5 are the places after those of the sums.
#define PRODUCT(T, N, HALF_N, P0, P1, P2, P3, P4, P5)                                                                    \
  template <>                                                                                                           \
  struct Product<Half::T, N> {                                                                                          \
    template <bool ADD>                                                                                                 \
    static DEVICE void scores(float (&d)[HALF_N], u64 a, u64 b) {                                                       \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #P2 ", 0;\n"                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T " {" PLACES_##HALF_N "}, %" #P0 ", %" #P1 \
                   ", add, 1, 1, 0, 0;\n}\n"                                                                            \
                   : SUMS_##HALF_N                                                                                      \
                   : "l"(a), "l"(b), "n"(int(ADD)));                                                                    \
    }                                                                                                                   \
    static DEVICE void values(float (&d)[HALF_N], const u32* a, u64 b) {                                                \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #P5 ", 0;\n"                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T " {" PLACES_##HALF_N "}, {%" #P0 ", %" #P1 \
                   ", %" #P2 ", %" #P3 "}, %" #P4 ", add, 1, 1, 1;\n}\n"                                                \
                   : SUMS_##HALF_N                                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(1));                                       \
    }                                                                                                                   \
  };

#define PRODUCTS(N, HALF_N, ...)          \
  PRODUCT(f16, N, HALF_N, __VA_ARGS__) \
  PRODUCT(bf16, N, HALF_N, __VA_ARGS__)

PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37)
PRODUCTS(80, 40, 40, 41, 42, 43, 44, 45)
PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69)
PRODUCTS(176, 88, 88, 89, 90, 91, 92, 93)
PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133)

// ---- arithmetic ----

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <Half T>
DEVICE u32 pack(float low, float high) {
  u32 pair;
  if constexpr (T == Half::bf16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
