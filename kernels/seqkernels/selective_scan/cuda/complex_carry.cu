// Second pass of a complex scan whose sequence is cut over blocks: chain the chunks' affine maps (complex_ends.cu). As
// carry.cu: one thread per (sequence, channel, state), eight loads in flight.
#include "complex.cuh"

struct ComplexCarryArgs {
  const Complex* a;         // (E, N)
  const Complex* start;     // (sequences, E, N): initial state, or gradient of the final state; null: zero
  const Complex* ends;      // (slots, E, N)
  const float2* delta_sum;  // (slots, E)
  Complex* carried;         // (slots, E, N): the state that enters each chunk
  const i64* cu_seqlens;
  i64 length;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int N;
  int reverse;              // 0 first to last chunk, 1 last to first with the conjugate
};

// exp(delta A) for the delta of a whole chunk.
DEVICE Complex exp_of_sum(float2 delta, const Rate& a) {
  Angle angle(delta.x, a.turn);
  angle.rest += fmaf(delta.y, a.turn, delta.x * a.turn_low);
  return rotated(exp2_fast(delta.x * a.decay), angle);
}

extern "C" __global__ void __launch_bounds__(128) complex_carry(const __grid_constant__ ComplexCarryArgs p) {
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
  const Rate a = rate_of(p.reverse ? conj(p.a[state]) : p.a[state]);
  Complex h = p.start ? p.start[thread] : Complex{0.f, 0.f};
  const auto slot_of = [&](i64 i) { return slot0 + (p.reverse ? count - 1 - i : i); };
  p.carried[slot_of(0) * states + state] = h;
  for (i64 i = 0; i < count - 1; i += BATCH) {
    Complex end[BATCH];
    float2 sum[BATCH];
    UNROLL
    for (int k = 0; k < BATCH; k++) {
      const bool inside = i + k < count - 1;
      end[k] = inside ? p.ends[slot_of(i + k) * states + state] : Complex{0.f, 0.f};
      sum[k] = inside ? p.delta_sum[slot_of(i + k) * p.E + channel] : make_float2(0.f, 0.f);
    }
    UNROLL
    for (int k = 0; k < BATCH; k++) {
      h = fma(exp_of_sum(sum[k], a), h, end[k]);
      if (i + k < count - 1) p.carried[slot_of(i + k + 1) * states + state] = h;
    }
  }
}
