// What kernels take, byte for byte as src/params.rs makes it.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

constexpr int BATCH_AXES = 13;

// Batch axes common to all arrays of a call.
struct Batch {
  u32 axes;
  u32 dims[BATCH_AXES];
};

// An array [batch..., row, head, column] or [batch..., head, row, column]: strides in elements.
struct Array {
  u64 address;
  i64 batch[BATCH_AXES];
  i64 head, row, column;
};

// Which weights are kept: see dropout.cuh.
struct Dropout {
  u32 key[2];
  u32 width;   // 0: no dropout; else of a word, 32 or 64
  u32 split;   // whether words are numbered and cut into two halves that share a call
  u64 length;  // elements of the random array
  u64 limit;   // a word below it is kept
  u32 keep_all;
  u32 pad;
  u64 matrix;  // elements from one matrix to the next
  double multiplier;
};

// A call of attention, forward or backward.
struct Attend {
  Array query, key, value, out, bias, mask, weights, statistics;
  Array d_out, d_query, d_key, d_value, d_bias;
  Batch batch;
  u32 batches, heads, key_heads;
  u32 query_length, key_length, depth, value_depth;
  u32 causal;  // whether query i sees the keys up to i + shift alone
  i64 shift;
  double scale;
  u32 set_means_keep, zero_if_blind;
  Dropout dropout;
  u64 scratch, scratch_len;
  u32 wide;  // bits of the arrays whose rows can be read 16 bytes at a time: see tile.cuh
  u32 pad;
};

// The first element of a head of a batch entry.
template <typename T>
DEVICE T* head_of(const Array& array, const Batch& batch, u32 entry, u32 head) {
  i64 at = i64(head) * array.head;
#pragma unroll 1
  for (int axis = int(batch.axes) - 1; axis >= 0; axis--) {
    at += i64(entry % batch.dims[axis]) * array.batch[axis];
    entry /= batch.dims[axis];
  }
  return reinterpret_cast<T*>(array.address) + at;
}
