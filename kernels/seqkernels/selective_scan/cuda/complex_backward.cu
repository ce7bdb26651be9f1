// The complex scan, backward: one block walks one chunk from its end for CHANNELS channels and all N states (equations:
// complex.cuh).
//
// A lane holds PER_LANE states of one channel. The forward pass left the state before each tile of 16 positions. Per tile:
// the elementwise role converts; each lane runs its states through the first 12 positions and puts aside what stands before
// each sub-tile of 4; then the sub-tiles, last to first: the state forward, alpha and h[t-1] kept in registers, then the
// adjoint in reverse.
//
// Sums over channels (dB, dC) go over the warp's channels by shuffles. Partners in the first exchanges hold the same states
// in different slots (slot i of a lane holds state i ^ mix, mix the lowest bits of its channel), so each sends the slots that
// the other keeps and no selects are needed; the next exchange gives one of them dB, the other dC. Per-warp sums meet in
// shared memory, per-block sums go to `bc_partial` and are added in a fixed order: no atomics, bit for bit repeatable.
//
// Compiled per variant by -D: LANES, PER_LANE, WARPS, MIN_BLOCKS.
#include "complex.cuh"

constexpr int SUB = 4;  // positions per sub-tile
constexpr int SUBS = TILE / SUB;
constexpr int ARRAYS = 3 + HAS_GATE;
enum { X, DT, DOUT, Z };
constexpr int MIXES = min_int(PER_LANE, WARP_CHANNELS);

struct ComplexBackwardArgs {
  const element* x;
  const element* dt;
  const element* dout;      // (rows, E)
  const element* z;
  const Complex* b;         // row stride bc_stride
  const Complex* c;
  const Complex* a;         // (E, N)
  const float* d;           // (E)
  const float* dt_bias;     // (E)
  const Complex* states;    // (tiles, E, N)
  const Complex* r_in;      // (slots, E, N) adjoint that enters each chunk at its end, or null: zero
  element* dx;              // (rows, E); ddt, dz alike
  element* ddt;
  element* dz;
  Complex* bc_partial;      // (2, E / CHANNELS, rows, N): dB, dC
  Complex* da_partial;      // (slots, E, N)
  float* d_partial;         // (2, slots, E): dD, dbias
  Complex* h_initial_grad;  // (sequences, E, N)
  const i64* cu_seqlens;
  i64 length;
  i64 rows;
  i64 slots;
  i64 x_stride;
  i64 dt_stride;
  i64 z_stride;
  i64 bc_stride;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int channels_per_group;
};

struct Shared {
  alignas(16) Stage stage[ARRAYS];
  alignas(16) Complex before[SUBS][PER_LANE][THREADS]; // the state before each sub-tile
  alignas(16) Complex da[PER_LANE][THREADS];           // of the tiles so far: a tile is added up on its own, which keeps digits
  alignas(16) States b[2];
  alignas(16) States c[2];
  alignas(16) Complex sums[TILE][WARPS][2][N];         // dB and dC
  alignas(16) Plane delta;                             // overwritten by dx, w by ddt, dy by dz, sub-tile by sub-tile
  alignas(16) Plane w;
  alignas(16) Plane dy;                                // 2 dy
  alignas(16) Plane x;
  alignas(16) Plane gate;                              // dout silu'(z)
  alignas(16) float d[CHANNELS];
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

// Where a lane stands.
struct Lane {
  int quad, channel, mix;
  DEVICE Lane() : quad(threadIdx.x % LANES), channel(threadIdx.x / LANES), mix(threadIdx.x / LANES % MIXES) {}
  DEVICE int state(int slot) const { return quad * PER_LANE + (slot ^ mix); }
};

// What a lane carries from the chunk's end to its start. Sums over positions: of the tile here, of all tiles in Shared::da, all_dd,
// all_dbias.
struct Carried {
  Rate a[PER_LANE];
  Complex r[PER_LANE], da[PER_LANE];
  float dd, dbias, all_dd, all_dbias;
};

// ---- elementwise role

DEVICE void fetch_tile(Shared& s, const ComplexBackwardArgs& p, const Chunk& chunk, int start, int channel0, int buffer) {
  const i64 row = chunk.row + start, bc = row * p.bc_stride + channel0 / p.channels_per_group * N;
  const int rows = chunk.length - start;
  fetch_piece(s.stage[X], p.x + row * p.x_stride + channel0, p.x_stride, rows);
  fetch_piece(s.stage[DT], p.dt + row * p.dt_stride + channel0, p.dt_stride, rows);
  fetch_piece(s.stage[DOUT], p.dout + row * p.E + channel0, p.E, rows);
  if constexpr (HAS_GATE) fetch_piece(s.stage[ARRAYS - 1], p.z + row * p.z_stride + channel0, p.z_stride, rows);
  fetch_states(s.b[buffer], p.b + bc, p.bc_stride, rows);
  fetch_states(s.c[buffer], p.c + bc, p.bc_stride, rows);
  copies_close();
}

DEVICE void prepare_tile(Shared& s, int rows) {
  if (!has_piece()) return;
  Pack<VEC> raw_x, dout, z;
  Floats<VEC> x, w, dy, gate;
  const Floats<VEC> delta = piece_delta(s.stage[DT], s.bias, rows);
  raw_x.load(s.stage[X][threadIdx.x]);
  dout.load(s.stage[DOUT][threadIdx.x]);
  if constexpr (HAS_GATE) z.load(s.stage[ARRAYS - 1][threadIdx.x]);
  UNROLL
  for (int k = 0; k < VEC; k++) {
    x.v[k] = raw_x[k];
    w.v[k] = delta[k] * x[k];
    dy.v[k] = 2.f * dout[k];
    if constexpr (HAS_GATE) {
      const float slope = sigmoid(z[k]), silu = z[k] * slope;
      gate.v[k] = dout[k] * fmaf(silu, 1.f - slope, slope);
      dy.v[k] *= silu;
    }
  }
  delta.store(piece_of(s.delta));
  w.store(piece_of(s.w));
  dy.store(piece_of(s.dy));
  x.store(piece_of(s.x));
  if constexpr (HAS_GATE) gate.store(piece_of(s.gate));
}

DEVICE void store_plane(Plane& plane, element* to, i64 at) {
  Floats<VEC> v;
  v.load(piece_of(plane));
  Pack<VEC>::from(v.v).store(to + at);
}

// dx, ddt, dz, and dB, dC summed over the block's warps.
DEVICE void finish_tile(Shared& s, const ComplexBackwardArgs& p, i64 row, int rows, int channel0) {
  if (has_piece() && piece_position() < rows) {
    const i64 at = (row + piece_position()) * p.E + channel0 + piece_column();
    store_plane(s.delta, p.dx, at);
    store_plane(s.w, p.ddt, at);
    if constexpr (HAS_GATE) store_plane(s.dy, p.dz, at);
  }
  const i64 blocks = p.E / CHANNELS, block = channel0 / CHANNELS;
  UNROLL
  for (int item = 0; item < (TILE * N + THREADS - 1) / THREADS; item++) {
    const int i = threadIdx.x + item * THREADS, position = i / N, which = i % N / (N / 2), state = i % (N / 2) * 2;
    if (i >= TILE * N || position >= rows) continue;
    float4 sum = *(const float4*)&s.sums[position][0][which][state];
    UNROLL
    for (int warp = 1; warp < WARPS; warp++) {
      const float4 v = *(const float4*)&s.sums[position][warp][which][state];
      sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
    }
    *(float4*)&p.bc_partial[((which * blocks + block) * p.rows + row + position) * N + state] = sum;
  }
}

// ---- sums over channels

DEVICE Complex shuffle_xor(Complex v, int mask) { return {shuffle_xor(v.re, mask), shuffle_xor(v.im, mask)}; }

// The lane's dB and dC of one position, by slots: their sums over the warp's channels to `to`.
DEVICE void sum_over_channels(Complex (*to)[N], const Lane& lane, Complex* db, Complex* dc) {
  UNROLL
  for (int bit = 1; bit < MIXES; bit *= 2) {
    UNROLL
    for (int i = 0; i < PER_LANE; i += 2 * bit) {
      db[i] = db[i] + shuffle_xor(db[i + bit], bit * LANES);
      dc[i] = dc[i] + shuffle_xor(dc[i + bit], bit * LANES);
    }
  }
  if constexpr (MIXES == WARP_CHANNELS) {
    UNROLL
    for (int i = 0; i < PER_LANE; i += MIXES) { to[0][lane.state(i)] = db[i]; to[1][lane.state(i)] = dc[i]; }
  } else {
    constexpr int MASK = MIXES * LANES;
    const bool upper = threadIdx.x & MASK;
    UNROLL
    for (int i = 0; i < PER_LANE; i += MIXES) {
      const Complex send = upper ? db[i] : dc[i], keep = upper ? dc[i] : db[i];
      Complex sum = keep + shuffle_xor(send, MASK);
      UNROLL
      for (int mask = 2 * MASK; mask < WARP; mask *= 2) sum = sum + shuffle_xor(sum, mask);
      if (threadIdx.x % WARP < 2 * MASK) to[upper][lane.state(i)] = sum;
    }
  }
}

// ---- the walk

struct SubTile {  // kept from the forward to the reverse half
  Complex alpha[SUB][PER_LANE], h[SUB + 1][PER_LANE];  // h[t]: before position t
};

DEVICE void run_state(const Shared& s, const Lane& lane, const Carried& k, int buffer, int position, const Complex* h, Complex* after,
                      Complex* alpha) {
  const float delta = s.delta[position][lane.channel], w = s.w[position][lane.channel];
  UNROLL
  for (int i = 0; i < PER_LANE; i++) {
    alpha[i] = exp_of(delta, k.a[i]);
    after[i] = fma(alpha[i], h[i], w * s.b[buffer][position][lane.state(i)]);
  }
}

// h: the state before the tile.
DEVICE void states_before_sub_tiles(Shared& s, const Lane& lane, const Carried& k, int buffer, Complex* h) {
  Complex alpha[PER_LANE];
#pragma unroll 1
  for (int sub = 0; sub < SUBS; sub++) {
    UNROLL
    for (int i = 0; i < PER_LANE; i++) s.before[sub][i][threadIdx.x] = h[i];
    if (sub + 1 == SUBS) return;
    UNROLL
    for (int t = 0; t < SUB; t++) run_state(s, lane, k, buffer, sub * SUB + t, h, h, alpha);
  }
}

DEVICE void walk_sub_tile(Shared& s, const Lane& lane, Carried& k, int buffer, int rows, int sub) {
  SubTile kept;
  const int position0 = sub * SUB;
  UNROLL
  for (int i = 0; i < PER_LANE; i++) kept.h[0][i] = s.before[sub][i][threadIdx.x];
  UNROLL
  for (int t = 0; t < SUB; t++) run_state(s, lane, k, buffer, position0 + t, kept.h[t], kept.h[t + 1], kept.alpha[t]);
  float y[SUB], dw[SUB], ta[SUB];
  UNROLL
  for (int t = SUB - 1; t >= 0; t--) {
    const int position = position0 + t;
    const float delta = s.delta[position][lane.channel], w = s.w[position][lane.channel], dy = s.dy[position][lane.channel];
    Complex db[PER_LANE], dc[PER_LANE];
    float decays = 0.f, turns = 0.f;
    y[t] = dw[t] = 0.f;
    UNROLL
    for (int i = 0; i < PER_LANE; i++) {
      const Complex b = s.b[buffer][position][lane.state(i)], c = s.c[buffer][position][lane.state(i)];
      const Complex g = fma(dy, conj(c), k.r[i]);
      db[i] = w * g;
      dc[i] = dy * conj(kept.h[t + 1][i]);
      if constexpr (HAS_GATE) y[t] = real_of_product(c, kept.h[t + 1][i], y[t]);
      dw[t] = real_of_product(g, conj(b), dw[t]);
      k.r[i] = conj(kept.alpha[t][i]) * g;
      const Complex turned = k.r[i] * conj(kept.h[t][i]);
      k.da[i] = fma(delta, turned, k.da[i]);
      decays = fmaf(turned.re, k.a[i].decay, decays);
      turns = fmaf(turned.im, k.a[i].turn, turns);
    }
    ta[t] = fmaf(LN2, decays, HALF_TURN * turns);
    sum_over_channels(s.sums[position][threadIdx.x / WARP], lane, db, dc);
  }
  const float dw_sum = sum_over_lanes(dw, lane.quad), ta_sum = sum_over_lanes(ta, lane.quad);
  const float y_sum = HAS_GATE ? sum_over_lanes(y, lane.quad) : 0.f;
  __syncwarp();  // the lanes of a channel have read the sub-tile here
  if (lane.quad >= SUB) return;
  const int position = position0 + lane.quad;
  const float delta = s.delta[position][lane.channel], dy = 0.5f * s.dy[position][lane.channel];
  const float x = s.x[position][lane.channel], d = s.d[lane.channel];
  const float ddt = fmaf(dw_sum, x, ta_sum) * delta_slope(delta);
  k.dd = fmaf(dy, x, k.dd);
  k.dbias += position < rows ? ddt : 0.f;
  s.delta[position][lane.channel] = fmaf(dw_sum, delta, d * dy);
  s.w[position][lane.channel] = ddt;
  if constexpr (HAS_GATE) s.dy[position][lane.channel] = s.gate[position][lane.channel] * fmaf(2.f, y_sum, d * x);
}

DEVICE void close_sums_of_tile(Shared& s, Carried& k) {
  UNROLL
  for (int i = 0; i < PER_LANE; i++) { s.da[i][threadIdx.x] = s.da[i][threadIdx.x] + k.da[i]; k.da[i] = {0.f, 0.f}; }
  k.all_dd += k.dd;
  k.all_dbias += k.dbias;
  k.dd = k.dbias = 0.f;
}

DEVICE void store_parameters(Shared& s, const ComplexBackwardArgs& p, const Lane& lane, Carried& k, i64 slot, int channel0) {
  UNROLL
  for (int i = 0; i < PER_LANE; i++)
    p.da_partial[(slot * p.E + channel0 + lane.channel) * N + lane.state(i)] = s.da[i][threadIdx.x];
  float dd = k.all_dd, dbias = k.all_dbias;
  UNROLL
  for (int mask = 1; mask < SUB; mask *= 2) { dd += shuffle_xor(dd, mask); dbias += shuffle_xor(dbias, mask); }
  const i64 at = slot * p.E + channel0 + lane.channel;
  if (lane.quad == 0) { p.d_partial[at] = dd; p.d_partial[p.slots * p.E + at] = dbias; }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) complex_backward_scan(const __grid_constant__ ComplexBackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS, channel0 = blockIdx.x % blocks * CHANNELS;
  const i64 slot = blockIdx.x / blocks;
  const Chunk chunk = chunk_of_slot(p, slot);
  const Lane lane;
  Carried k;
  k.dd = k.dbias = k.all_dd = k.all_dbias = 0.f;
  UNROLL
  for (int i = 0; i < PER_LANE; i++) {
    const i64 state = (i64)(channel0 + lane.channel) * N + lane.state(i);
    k.a[i] = rate_of(p.a[state]);
    k.da[i] = s.da[i][threadIdx.x] = {0.f, 0.f};
    k.r[i] = p.r_in && chunk.length ? p.r_in[slot * p.E * N + state] : Complex{0.f, 0.f};
  }
  for (int i = threadIdx.x; i < CHANNELS; i += THREADS) { s.d[i] = p.d[channel0 + i]; s.bias[i] = p.dt_bias[channel0 + i]; }
  __syncthreads();
  if (chunk.length) {
    int start = (chunk.length - 1) / TILE * TILE, buffer = 0;
    fetch_tile(s, p, chunk, start, channel0, buffer);
    for (; start >= 0; start -= TILE, buffer ^= 1) {
      const int rows = chunk.length - start;
      Complex h[PER_LANE];
      UNROLL
      for (int i = 0; i < PER_LANE; i++)
        h[i] = p.states[((chunk.tile + start / TILE) * p.E + channel0 + lane.channel) * N + lane.state(i)];
      copies_wait();
      prepare_tile(s, rows);
      __syncthreads();
      states_before_sub_tiles(s, lane, k, buffer, h);
      if (start > 0) fetch_tile(s, p, chunk, start - TILE, channel0, buffer ^ 1);
#pragma unroll 1
      for (int sub = SUBS - 1; sub >= 0; sub--) walk_sub_tile(s, lane, k, buffer, rows, sub);
      close_sums_of_tile(s, k);
      __syncthreads();
      // No barrier after this: prepare_tile overwrites only cells that the same thread reads here; `sums` comes behind it.
      finish_tile(s, p, chunk.row + start, rows, channel0);
    }
    if (chunk.first) {
      UNROLL
      for (int i = 0; i < PER_LANE; i++)
        p.h_initial_grad[((i64)chunk.sequence * p.E + channel0 + lane.channel) * N + lane.state(i)] = k.r[i];
    }
  }
  store_parameters(s, p, lane, k, slot, channel0);
}
