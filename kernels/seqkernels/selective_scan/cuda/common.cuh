// Shared by every kernel of the selective scan: numbers, copies, and the cutting of sequences into chunks and tiles.
//
// Header-free on purpose: NVRTC compiles these files with no include path. The host sets by -D:
//   ELEMENT   storage of x, dt, z, b, c, y: 0 fp32, 1 bf16, 2 fp16 (all arithmetic is fp32)
//   SOFTPLUS  1: delta = softplus(dt + bias), 0: delta = dt + bias
//   HAS_GATE  1: the output is multiplied by silu(z)
// A source may define PRECISE before it includes this: delta is then computed by the exact functions in every dtype.
//
// Letters: E channels, N states, L positions. A *tile* is 16 consecutive positions of one sequence; a *chunk* is a run of
// tiles that one block walks through; a *slot* is the number of a chunk. A row is one (batch, position).
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

constexpr int TILE = 16;    // positions per tile
constexpr int STATES = 16;  // states that one launch handles; larger N takes several launches
constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

__host__ __device__ constexpr int min_int(int a, int b) { return a < b ? a : b; }

// ---------------------------------------------------------------------------------------------- hardware functions

DEVICE float exp2_fast(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float reciprocal(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(ALL_LANES, v, mask); }
DEVICE float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-LOG2E * x)); }

// delta = softplus(dt + bias) = max(x, 0) + log1p(e) with e = exp(-|x|) <= 1, and log1p(e) = 2 atanh(s), s = e / (2 + e):
// an even polynomial in s, minimax to 4e-9 on [0, 1/3]. The hardware's lg2 near 1 would lose three digits. Above torch's
// threshold of 20 this is x to the last bit by itself.
DEVICE float to_delta(float x) {
#if !SOFTPLUS
  return x;
#elif ELEMENT == 0 || PRECISE
  return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x)));
#else
  const float e = exp2_fast(-LOG2E * fabsf(x)), s = e * reciprocal(2.f + e), q = s * s;
  float p = fmaf(q, 0.2817833424f, 0.2796060145f);
  p = fmaf(q, p, 0.4002490938f);
  p = fmaf(q, p, 0.6666631699f);
  p = fmaf(q, p, 2.f);
  return fmaf(s, p, fmaxf(x, 0.f));
#endif
}

// d delta / d dt = sigmoid(dt + bias) = 1 - exp(-delta): the backward pass needs delta alone. Below 0.7 the difference
// would cancel, hence delta times a polynomial, minimax to 1e-8.
DEVICE float delta_slope(float delta) {
#if !SOFTPLUS
  return 1.f;
#elif ELEMENT == 0 || PRECISE
  return -expm1f(-delta);
#else
  float p = fmaf(delta, -1.030134037e-3f, 8.062456735e-3f);
  p = fmaf(delta, p, -4.156935215e-2f);
  p = fmaf(delta, p, 1.666505933e-1f);
  p = fmaf(delta, p, -4.999990165e-1f);
  p = fmaf(delta, p, 1.f);
  return delta < 0.7f ? delta * p : 1.f - exp2_fast(-LOG2E * delta);
#endif
}

// ---------------------------------------------------------------------------------------------- storage elements

#if ELEMENT == 0
typedef float element;
DEVICE float word_to_float(u32 word, int) { return __uint_as_float(word); }
#else
typedef u16 element;
#endif

#if ELEMENT == 1
// bf16 is the upper half of an fp32
DEVICE float word_to_float(u32 word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); }
DEVICE u32 floats_to_word(float low, float high) {
  u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
#elif ELEMENT == 2
DEVICE float word_to_float(u32 word, int half) {
  float r; const u16 h = half ? (u16)(word >> 16) : (u16)word;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h)); return r;
}
DEVICE u32 floats_to_word(float low, float high) {
  u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}
#endif

// COUNT consecutive elements in registers, moved as one access of 4, 8 or 16 bytes.
constexpr int PER_WORD = 4 / sizeof(element);
template <int COUNT> struct Pack {
  static constexpr int WORDS = COUNT / PER_WORD;
  static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "a pack is 4, 8 or 16 bytes");
  u32 word[WORDS];

  DEVICE void load(const void* from) {
    if constexpr (WORDS == 4) { const uint4 v = *(const uint4*)from; word[0] = v.x; word[1] = v.y; word[2] = v.z; word[3] = v.w; }
    else if constexpr (WORDS == 2) { const uint2 v = *(const uint2*)from; word[0] = v.x; word[1] = v.y; }
    else word[0] = *(const u32*)from;
  }
  DEVICE void store(void* to) const {
    if constexpr (WORDS == 4) *(uint4*)to = make_uint4(word[0], word[1], word[2], word[3]);
    else if constexpr (WORDS == 2) *(uint2*)to = make_uint2(word[0], word[1]);
    else *(u32*)to = word[0];
  }
  DEVICE float operator[](int k) const { return word_to_float(word[k / PER_WORD], k % PER_WORD); }
  DEVICE static Pack from(const float* v) {
    Pack r;
    UNROLL
    for (int w = 0; w < WORDS; w++) {
#if ELEMENT == 0
      r.word[w] = __float_as_uint(v[w]);
#else
      r.word[w] = floats_to_word(v[2 * w], v[2 * w + 1]);
#endif
    }
    return r;
  }
};

// COUNT consecutive floats of shared or global memory.
template <int COUNT> struct Floats {
  float v[COUNT];
  DEVICE void load(const float* from) {
    if constexpr (COUNT % 4 == 0) {
      UNROLL
      for (int k = 0; k < COUNT; k += 4) {
        const float4 q = *(const float4*)(from + k); v[k] = q.x; v[k + 1] = q.y; v[k + 2] = q.z; v[k + 3] = q.w;
      }
    } else if constexpr (COUNT == 2) { const float2 q = *(const float2*)from; v[0] = q.x; v[1] = q.y; }
    else { static_assert(COUNT == 1, "1, 2 or a multiple of 4"); v[0] = *from; }
  }
  DEVICE void store(float* to) const {
    if constexpr (COUNT % 4 == 0) {
      UNROLL
      for (int k = 0; k < COUNT; k += 4) *(float4*)(to + k) = make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
    } else if constexpr (COUNT == 2) *(float2*)to = make_float2(v[0], v[1]);
    else *to = v[0];
  }
  DEVICE float operator[](int k) const { return v[k]; }
};

// ---------------------------------------------------------------------------------------------- asynchronous copies

// BYTES from global to shared memory without passing registers; zeros when `valid` is false (nothing is read then).
template <int BYTES> DEVICE void copy_async(void* to_shared, const void* from_global, bool valid) {
  const u32 to = (u32)__cvta_generic_to_shared(to_shared);
  const int count = valid ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global), "r"(count) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from_global), "n"(BYTES), "r"(count) : "memory");
}
DEVICE void copies_close() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait for this thread's own copies, but for the youngest PENDING groups.
template <int PENDING = 0> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// ---------------------------------------------------------------------------------------------- chunks and tiles

// Where a slot lies. A batch is cut evenly; a packed row is cut per sequence, so no chunk crosses a boundary and no
// kernel knows of resets.
struct Chunk {
  i64 row;       // its first row
  i64 tile;      // number of its first tile among the saved states
  int length;    // positions; 0 for a slot that packing left unused
  int sequence;  // which initial and final state
  bool first, last;
};

// First slot (per == chunk_length) or tile (per == TILE) of a packed sequence. floor(start / per) + sequence leaves every
// sequence room for ceil(length / per) numbers, needs no prefix sum, and its total is known without reading the GPU.
DEVICE i64 packed_base(const i64* cu_seqlens, int sequence, int per) { return cu_seqlens[sequence] / per + sequence; }

DEVICE int sequence_of_slot(const i64* cu_seqlens, int sequences, int chunk_length, i64 slot) {
  int low = 0, high = sequences - 1;  // the last sequence whose base is <= slot
  while (low < high) {
    const int middle = (low + high + 1) >> 1;
    if (packed_base(cu_seqlens, middle, chunk_length) <= slot) low = middle; else high = middle - 1;
  }
  return low;
}

// Args is any kernel's argument struct with the fields cu_seqlens, length, sequences, chunks, chunk_length.
template <typename Args> DEVICE Chunk chunk_of_slot(const Args& p, i64 slot) {
  Chunk chunk;
  i64 start, end, tile0, index;
  if (p.cu_seqlens) {
    chunk.sequence = sequence_of_slot(p.cu_seqlens, p.sequences, p.chunk_length, slot);
    index = slot - packed_base(p.cu_seqlens, chunk.sequence, p.chunk_length);
    start = p.cu_seqlens[chunk.sequence];
    end = p.cu_seqlens[chunk.sequence + 1];
    tile0 = packed_base(p.cu_seqlens, chunk.sequence, TILE);
  } else {
    chunk.sequence = (int)(slot / p.chunks);
    index = slot % p.chunks;
    start = chunk.sequence * p.length;
    end = start + p.length;
    tile0 = chunk.sequence * ((p.length + TILE - 1) / TILE);
  }
  chunk.row = start + index * p.chunk_length;
  const i64 left = end - chunk.row;
  chunk.length = (int)(left <= 0 ? 0 : left < p.chunk_length ? left : p.chunk_length);
  chunk.tile = tile0 + index * (p.chunk_length / TILE);
  chunk.first = index == 0;
  chunk.last = left > 0 && left <= p.chunk_length;
  return chunk;
}

// ---------------------------------------------------------------------------------------------- transposed tiles

// A tile of floats, [channel][position], that one role writes along channels and the other reads along positions (4 at a
// time). The row of 20 floats and the two offsets keep both directions free of bank conflicts; VEC = elements per access
// along channels.
template <int VEC> struct TransposedTile {
  static constexpr int ROW = TILE + 4;
  static constexpr int GROUP = 16 * ROW + 32;  // 16 channels
  static constexpr int HALF = 2 * VEC;         // extra offset of channels 8..15 of a group
  __host__ __device__ static constexpr int floats(int channels) { return channels / 16 * GROUP; }
  DEVICE static int index(int channel, int position) {
    return (channel >> 4) * GROUP + (channel & 15) * ROW + ((channel >> 3) & 1) * HALF + position;
  }
};

// The elementwise role: which (position, channel) pieces of VEC channels a thread converts, ITEMS of them per tile.
// 16 channels make one 32-byte (fp32: 64-byte) run of memory; a warp covers 2*VEC positions of one such run.
template <int CHANNELS, int THREADS_, int VEC> struct Pieces {
  static constexpr int ITEMS = TILE * CHANNELS / VEC / THREADS_;
  static constexpr int LANES_PER_RUN = 16 / VEC;
  static constexpr int POSITIONS = WARP / LANES_PER_RUN;
  static constexpr int TEAM = THREADS_ / WARP;  // warps
  static constexpr int BLOCKS = TILE / POSITIONS;  // warps that share one run of channels
  DEVICE static int position(int item) {
    const int work = threadIdx.x / WARP + item * TEAM;
    return work % BLOCKS * POSITIONS + threadIdx.x % WARP / LANES_PER_RUN;
  }
  DEVICE static int channel(int item) {
    const int work = threadIdx.x / WARP + item * TEAM;
    return work / BLOCKS * 16 + threadIdx.x % LANES_PER_RUN * VEC;
  }
};

// ---------------------------------------------------------------------------------------------- saved states

// The forward pass leaves the state before every SAVE_EVERY-th position (4 or 8, by -D) of each tile, fp32, as (tiles, SAVES,
// 4 quads, E) pieces of 16 bytes: neighbouring channels are neighbours.
#ifdef SAVE_EVERY
constexpr int SAVES = TILE / SAVE_EVERY;
DEVICE i64 saved_piece(i64 tile, int save, int quad, int E, int channel) {  // in floats
  return (((tile * SAVES + save) * (STATES / 4) + quad) * E + channel) * 4;
}
#endif

// The backward pass keeps its 4 states of a quad in XOR-permuted slots (see backward.cu): slot i of a channel holds state
// i ^ mix(channel). Saved states are in that order already.
DEVICE int mix(int channel) { return (channel >> 2) & 3; }
DEVICE float4 permute_quad(float4 v, int by) {
  if (by & 1) v = make_float4(v.y, v.x, v.w, v.z);
  if (by & 2) v = make_float4(v.z, v.w, v.x, v.y);
  return v;
}
