// Second pass of a scan whose sequence is cut over blocks: chain the chunks' affine maps (ends.cu). One thread per
// (sequence, channel, state) walks over the chunks; their loads do not depend on the walk, so eight are in flight at once.
#include "common.cuh"

struct CarryArgs {
  const float* a;           // (E, N)
  const float* start;       // (sequences, E, N): initial state, or gradient of the final state; null: zero
  const float* ends;        // (slots, E, N)
  const float* delta_sum;   // (slots, E)
  float* carried;           // (slots, E, N): the state that enters each chunk
  const i64* cu_seqlens;
  i64 length;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int N;
  int reverse;              // 0 first to last chunk, 1 last to first
};

extern "C" __global__ void __launch_bounds__(128) carry(const __grid_constant__ CarryArgs p) {
  constexpr int BATCH = 8;
  const i64 states = (i64)p.E * p.N;
  const i64 thread = (i64)blockIdx.x * 128 + threadIdx.x;
  if (thread >= states * p.sequences) return;
  const int sequence = (int)(thread / states);
  const i64 state = thread % states, channel = state / p.N;

  i64 slot0 = (i64)sequence * p.chunks, count = p.chunks;
  if (p.cu_seqlens) {
    slot0 = packed_base(p.cu_seqlens, sequence, p.chunk_length);
    count = (p.cu_seqlens[sequence + 1] - p.cu_seqlens[sequence] + p.chunk_length - 1) / p.chunk_length;
  }
  const float a2 = p.a[state] * LOG2E;
  float h = p.start ? p.start[thread] : 0.f;
  const auto slot_of = [&](i64 i) { return slot0 + (p.reverse ? count - 1 - i : i); };
  p.carried[slot_of(0) * states + state] = h;
  for (i64 i = 0; i < count - 1; i += BATCH) {
    float end[BATCH], sum[BATCH];
    UNROLL
    for (int k = 0; k < BATCH; k++) {
      const bool inside = i + k < count - 1;
      end[k] = inside ? p.ends[slot_of(i + k) * states + state] : 0.f;
      sum[k] = inside ? p.delta_sum[slot_of(i + k) * p.E + channel] : 0.f;
    }
    UNROLL
    for (int k = 0; k < BATCH; k++) {
      h = fmaf(exp2_fast(a2 * sum[k]), h, end[k]);
      if (i + k < count - 1) p.carried[slot_of(i + k + 1) * states + state] = h;
    }
  }
}
