// Shared by the kernels of a decode step. Header-free: NVRTC compiles these files with no include path.
//
// Every size is a macro (-D): D model width, E channels, N states, R rank of dt, W taps. ELEMENT is the storage of
// activations and of the projections' weights: 0 fp32, 1 bf16, 2 fp16. All arithmetic is fp32.
//
// A step is a chain of short kernels, each of which needs all of the one before it. What costs time is the way from one
// to the next, so a kernel may begin before the last one has ended (programmatic dependent launch, sm_90 on): it reads its
// weights, which no kernel writes, and only then waits. Everything else is read, and everything is written, after the wait.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

constexpr int WARP = 32;
constexpr int J = R + 2 * N;                // rows of x_proj: dt, B, C
constexpr int J_PADDED = (J + 3) / 4 * 4;   // of a row of partial sums
constexpr float LOG2E = 1.4426950408889634f;

// ---------------------------------------------------------------------------------------------- hardware functions

DEVICE float exp2_fast(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float reciprocal(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEVICE float sigmoid(float x) { return reciprocal(1.f + exp2_fast(-LOG2E * x)); }

// max(x, 0) + log1p(e) with e = exp(-|x|), and log1p(e) = 2 atanh(s), s = e / (2 + e): an even polynomial in s, minimax to
// 4e-9 on [0, 1/3]. A third of the instructions of log1pf and expf, and as good for anything that began as 16 bits.
DEVICE float softplus(float x) {
#if ELEMENT == 0
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

// Sum over groups of GROUP neighbouring lanes; every lane gets it.
template <int GROUP> DEVICE float sum_over(float v) {
  UNROLL
  for (int mask = GROUP / 2; mask > 0; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}

// The next kernel may begin.
DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// All that the kernels before this one wrote is there.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Loads that happen where they are written. The assembler moves others (`ld.global.nc` even over the wait) to where their
// values are needed, and then they come one after the other.
DEVICE uint4 load_here(const void* from) {  // 16 bytes
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}
DEVICE float4 load_quad_here(const float* from) {
  const uint4 v = load_here((const void*)from);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
DEVICE float load_here(const float* from) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
  return v;
}
DEVICE u16 load_here(const u16* from) {
  u16 v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
  return v;
}
DEVICE u32 load_here(const u32* from) {
  u32 v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// 16 bytes into shared memory, past the registers: these loads are all on the way at once, whatever the assembler thinks.
DEVICE void copy_async(void* to_shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to_shared)), "l"(from) : "memory");
}
DEVICE void copies_wait() {  // for this thread's own
  asm volatile("cp.async.wait_all;" ::: "memory");
}
DEVICE void store_quad(float* to, const float* v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}

// ---------------------------------------------------------------------------------------------- storage elements

#if ELEMENT == 0
typedef float element;
DEVICE float to_float(element v) { return v; }
DEVICE element from_float(float v) { return v; }
#else
typedef u16 element;
#endif
#if ELEMENT == 1
DEVICE float to_float(element v) { return __uint_as_float((u32)v << 16); }
DEVICE element from_float(float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
#elif ELEMENT == 2
DEVICE float to_float(element v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
DEVICE element from_float(float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
#endif

#if ELEMENT == 1
// c += a b on a warp's tensor cores: a 16 x 16, b 16 x 8, c 16 x 8. With g = lane / 4 and t = lane % 4, a lane has
// a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..), two neighbouring k each;
// b[0] = (2t.., g), b[1] = (2t + 8.., g); c = (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// 8 consecutive elements in registers.
struct Piece {
  static constexpr int QUADS = sizeof(element) / 2;
  uint4 quad[QUADS];

  DEVICE void clear() {
    UNROLL
    for (int q = 0; q < QUADS; q++) quad[q] = make_uint4(0, 0, 0, 0);
  }
  DEVICE void load(const element* from) {
    UNROLL
    for (int q = 0; q < QUADS; q++) quad[q] = ((const uint4*)from)[q];
  }
  DEVICE void load_weights(const element* from) {
    UNROLL
    for (int q = 0; q < QUADS; q++) quad[q] = load_here((const void*)((const uint4*)from + q));
  }
  DEVICE u32 word(int i) const {
    const uint4 q = quad[i / 4];
    return i % 4 == 0 ? q.x : i % 4 == 1 ? q.y : i % 4 == 2 ? q.z : q.w;
  }
  DEVICE float operator[](int k) const {
#if ELEMENT == 0
    return __uint_as_float(word(k));
#elif ELEMENT == 1
    return __uint_as_float(k % 2 ? word(k / 2) & 0xffff0000u : word(k / 2) << 16);
#else
    return to_float(k % 2 ? (u16)(word(k / 2) >> 16) : (u16)word(k / 2));
#endif
  }
};

// A vector of LENGTH elements dealt out to the lanes of a warp, 8 in a row to each, as often as it takes.
template <int LENGTH> struct Dealt {
  static_assert(LENGTH % 8 == 0, "whole pieces");
  static constexpr int PIECES = (LENGTH + 8 * WARP - 1) / (8 * WARP);
  DEVICE static int start(int piece) { return 8 * (piece * WARP + (int)threadIdx.x % WARP); }
  DEVICE static bool inside(int piece) { return LENGTH % (8 * WARP) == 0 || start(piece) < LENGTH; }
};
