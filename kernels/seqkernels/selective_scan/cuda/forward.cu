// The selective scan, forward: one block walks one chunk for CHANNELS channels and 16 states.
//
//   delta = softplus(dt + bias)          w = delta * x
//   h[n]  = exp(delta * A[n]) * h[n] + w * B[n]
//   y     = sum_n C[n] * h[n] + D * x    out = y * silu(z)          (Gu & Dao 2023, eq. 2 with the zero-order hold of A)
//
// A block plays two roles in turn, on tiles of 16 positions:
//   elementwise  threads along channels, as memory lies: convert, compute delta and w, later gate and store;
//   scan         LANES lanes per channel, 16 / LANES states each in registers, walk along positions.
// They meet in shared memory through TransposedTile. The next tile's loads (cp.async) run during the scan. A thread reads
// only what it copied itself, so the copies need no barrier of their own.
//
// Compiled per variant by -D:
//   LANES 1 2 4, THREADS, MIN_BLOCKS   the smallest LANES that still fills the card is the fastest
//   SAVE_EVERY  if defined: leave states for the backward pass (end of common.cuh)
//   SAVE_Y      1: y before the gate goes out too (dz needs it)
//   PARTIAL_IN, PARTIAL_OUT   for N > 16: sum_n is continued from / left in an fp32 buffer; D and the gate come last
#include "common.cuh"

constexpr int STATES_PER_LANE = STATES / LANES;
constexpr int CHANNELS = THREADS / LANES;
constexpr int VEC = min_int(16 / (int)sizeof(element), TILE / LANES);
constexpr int ARRAYS = 2 + HAS_GATE;  // x, dt and perhaps z
enum { X, DT, Z };
using Work = Pieces<CHANNELS, THREADS, VEC>;
using Tile = TransposedTile<VEC>;
constexpr int PIECE = VEC * (int)sizeof(element);  // bytes
constexpr int ITEMS = Work::ITEMS;
// One lane per channel is bound by the exponentials and saves registers; several want the independent work of unrolling.
constexpr int SCAN_UNROLL = LANES == 1 ? 1 : 4;

// B and C of a tile: [LANES][TILE][STATES_PER_LANE] floats, the lanes' parts 4 floats apart to spread the banks.
constexpr int BC_LANE = TILE * STATES_PER_LANE + 4;
constexpr int BC_QUADS = TILE * STATES / 4;  // pieces of 4 states, of B and of C each
constexpr int BC_ITEMS = (2 * BC_QUADS + THREADS - 1) / THREADS;
constexpr int QUAD = 4 * (int)sizeof(element);

struct ForwardArgs {
  const element* x;         // row stride x_stride, channels adjacent; dt and z alike
  const element* dt;
  const element* z;
  const element* b;         // row stride bc_stride; group and first state are added here
  const element* c;
  const float* a;           // (E, N)
  const float* d;           // (E)
  const float* dt_bias;     // (E)
  const float* h_in;        // (slots, E, N) state before each chunk, or null: zero
  element* out;             // (rows, E)
  element* y_saved;         // (rows, E)
  float* states;            // see saved_piece() in common.cuh
  float* y_partial;         // (rows, E)
  float* h_final;           // (sequences, E, N)
  const i64* cu_seqlens;
  i64 length;               // L of one sequence when not packed
  i64 x_stride;
  i64 dt_stride;
  i64 z_stride;
  i64 bc_stride;
  int sequences;
  int chunks;               // per sequence when not packed
  int chunk_length;         // a multiple of TILE
  int E;
  int N;
  int first_state;
  int channels_per_group;   // channels that share one B and C; a multiple of CHANNELS
};

struct Shared {
  alignas(16) char stage[2][ARRAYS][ITEMS][THREADS][PIECE];  // two tiles: the last one's x and z are needed for the output
  alignas(16) char bc_stage[2 * BC_QUADS][QUAD];
  alignas(16) float delta[Tile::floats(CHANNELS)];           // overwritten by y position by position
  alignas(16) float w[Tile::floats(CHANNELS)];
  alignas(16) float b[LANES * BC_LANE];
  alignas(16) float c[LANES * BC_LANE];
  alignas(16) float d[CHANNELS];
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

// ---- elementwise role

struct Inputs {  // this thread's place in x, dt, z, b, c at the tile being fetched
  const element *x, *dt, *z, *b, *c;
};

DEVICE Inputs inputs_at(const ForwardArgs& p, i64 row, int channel0) {
  const i64 mine = row + Work::position(0);
  const int column = channel0 + Work::channel(0);
  const i64 bc = row * p.bc_stride + (channel0 / p.channels_per_group) * (i64)p.N + p.first_state;
  return {p.x + mine * p.x_stride + column, p.dt + mine * p.dt_stride + column,
          HAS_GATE ? p.z + mine * p.z_stride + column : nullptr, p.b + bc, p.c + bc};
}

DEVICE void fetch_tile(Shared& s, const ForwardArgs& p, Inputs& in, int buffer, int rows) {
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int down = Work::position(item) - Work::position(0), across = Work::channel(item) - Work::channel(0);
    const bool valid = Work::position(item) < rows;
    copy_async<PIECE>(s.stage[buffer][X][item][threadIdx.x], in.x + down * p.x_stride + across, valid);
    copy_async<PIECE>(s.stage[buffer][DT][item][threadIdx.x], in.dt + down * p.dt_stride + across, valid);
    if constexpr (HAS_GATE)
      copy_async<PIECE>(s.stage[buffer][ARRAYS - 1][item][threadIdx.x], in.z + down * p.z_stride + across, valid);
  }
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS, quad = i % BC_QUADS, position = quad / 4;
    if (i < 2 * BC_QUADS)
      copy_async<QUAD>(s.bc_stage[i], (i < BC_QUADS ? in.b : in.c) + position * p.bc_stride + quad % 4 * 4, position < rows);
  }
  copies_close();
  in.x += TILE * p.x_stride;
  in.dt += TILE * p.dt_stride;
  if constexpr (HAS_GATE) in.z += TILE * p.z_stride;
  in.b += TILE * p.bc_stride;
  in.c += TILE * p.bc_stride;
}

// Four states of B or C to the lane that holds them.
DEVICE void spread_quad(float* to, const Pack<4>& raw, int position, int quad) {
  constexpr int PER = STATES_PER_LANE;
  float* at = to + quad * 4 / PER * BC_LANE + position * PER + quad * 4 % PER;
  *(float4*)at = make_float4(raw[0], raw[1], raw[2], raw[3]);
}

// All loads come before all stores: a shared load behind a shared store waits for it.
DEVICE void prepare_tile(Shared& s, int buffer, int rows) {
  Pack<VEC> x[ITEMS], dt[ITEMS];
  Floats<VEC> bias[ITEMS];
  Pack<4> bc[BC_ITEMS];
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    x[item].load(s.stage[buffer][X][item][threadIdx.x]);
    dt[item].load(s.stage[buffer][DT][item][threadIdx.x]);
    bias[item].load(s.bias + Work::channel(item));
  }
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS;
    if (i < 2 * BC_QUADS) bc[item].load(s.bc_stage[i]);
  }
  float delta[ITEMS][VEC];
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    UNROLL
    for (int k = 0; k < VEC; k++) delta[item][k] = to_delta(dt[item][k] + bias[item][k]);
    if (Work::position(item) >= rows) {  // past the end: delta = 0 leaves the state alone (x is zero there already)
      UNROLL
      for (int k = 0; k < VEC; k++) delta[item][k] = 0.f;
    }
  }
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int at = Tile::index(Work::channel(item), Work::position(item));
    UNROLL
    for (int k = 0; k < VEC; k++) {
      s.delta[at + k * Tile::ROW] = delta[item][k];
      s.w[at + k * Tile::ROW] = delta[item][k] * x[item][k];
    }
  }
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS, quad = i % BC_QUADS;
    if (i < 2 * BC_QUADS) spread_quad(i < BC_QUADS ? s.b : s.c, bc[item], quad / 4, quad % 4);
  }
}

DEVICE void finish_piece(Shared& s, const ForwardArgs& p, int buffer, int item, i64 at) {
  const int channel = Work::channel(item);
  Floats<VEC> y, d;
  Pack<VEC> x;
  UNROLL
  for (int k = 0; k < VEC; k++) y.v[k] = s.delta[Tile::index(channel, Work::position(item)) + k * Tile::ROW];
#if PARTIAL_IN
  Floats<VEC> before;
  before.load(p.y_partial + at);
  UNROLL
  for (int k = 0; k < VEC; k++) y.v[k] += before[k];
#endif
#if PARTIAL_OUT
  y.store(p.y_partial + at);
#else
  d.load(s.d + channel);
  x.load(s.stage[buffer][X][item][threadIdx.x]);
  UNROLL
  for (int k = 0; k < VEC; k++) y.v[k] = fmaf(d[k], x[k], y[k]);
  if constexpr (SAVE_Y) Pack<VEC>::from(y.v).store(p.y_saved + at);
  if constexpr (HAS_GATE) {
    Pack<VEC> z;
    z.load(s.stage[buffer][ARRAYS - 1][item][threadIdx.x]);
    UNROLL
    for (int k = 0; k < VEC; k++) y.v[k] *= z[k] * sigmoid(z[k]);
  }
  Pack<VEC>::from(y.v).store(p.out + at);
#endif
}

// ---- scan role

// lanes' partial sums y[0..COUNT) over a channel's lanes -> y[0] complete for position `lane`; halves the work at each step
template <int COUNT> DEVICE void sum_over_lanes(float* y, int lane) {
  if constexpr (COUNT > 1) {
    constexpr int HALF = COUNT / 2;
    const bool upper = lane & HALF;
    UNROLL
    for (int k = 0; k < HALF; k++) {
      const float send = upper ? y[k] : y[k + HALF], keep = upper ? y[k + HALF] : y[k];
      y[k] = keep + shuffle_xor(send, HALF);
    }
    sum_over_lanes<HALF>(y, lane);
  }
}

#ifdef SAVE_EVERY
DEVICE void save_state(const ForwardArgs& p, const float* h, i64 tile, int save, int channel, int lane) {
  UNROLL
  for (int n = 0; n < STATES_PER_LANE; n += 4) {
    const int quad = (lane * STATES_PER_LANE + n) / 4;
    *(float4*)(p.states + saved_piece(tile, save, quad, p.E, channel)) =
        permute_quad(make_float4(h[n], h[n + 1], h[n + 2], h[n + 3]), mix(channel));
  }
}
#endif

// Four positions: h = exp2(delta * a2) * h + w * B and the lane's part of y, for the lane's states.
DEVICE void scan_4(const Shared& s, float* h, const float* a2, float* y, int at, int lane, int position) {
  Floats<4> delta, w;
  delta.load(s.delta + at + position);
  w.load(s.w + at + position);
  UNROLL
  for (int t = 0; t < 4; t++) {
    const int bc = lane * BC_LANE + (position + t) * STATES_PER_LANE;
    float sum = 0.f;
    UNROLL
    for (int n = 0; n < STATES_PER_LANE; n += 4) {
      Floats<4> b, c;
      b.load(s.b + bc + n);
      c.load(s.c + bc + n);
      UNROLL
      for (int k = 0; k < 4; k++) {
        h[n + k] = fmaf(exp2_fast(delta[t] * a2[n + k]), h[n + k], w[t] * b[k]);
        sum = fmaf(h[n + k], c[k], sum);
      }
    }
    y[t] = sum;
  }
}

DEVICE void scan_tile(Shared& s, const ForwardArgs& p, float* h, const float* a2, i64 tile, int channel0) {
  const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES, at = Tile::index(channel, 0);
#pragma unroll SCAN_UNROLL
  for (int position = 0; position < TILE; position += 4) {
#ifdef SAVE_EVERY
    if (position % SAVE_EVERY == 0) save_state(p, h, tile, position / SAVE_EVERY, channel0 + channel, lane);
#endif
    float y[4];
    scan_4(s, h, a2, y, at, lane, position);
    if constexpr (LANES == 1) *(float4*)(s.delta + at + position) = make_float4(y[0], y[1], y[2], y[3]);
    else {
      UNROLL
      for (int k = 0; k < 4; k += LANES) {
        sum_over_lanes<LANES>(y + k, lane);
        __syncwarp();  // the lanes of a channel have all read delta here
        s.delta[at + position + k + lane] = y[k];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) forward_scan(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS;  // blocks of one slot are neighbours: they share B and C in the L2 cache
  const i64 slot = blockIdx.x / blocks;
  const int channel0 = blockIdx.x % blocks * CHANNELS;
  const Chunk chunk = chunk_of_slot(p, slot);
  if (chunk.length == 0) return;

  float a2[STATES_PER_LANE], h[STATES_PER_LANE];  // a2 = A * log2(e): exp(delta * A) = exp2(delta * a2)
  const i64 state = (i64)(channel0 + threadIdx.x / LANES) * p.N + p.first_state + threadIdx.x % LANES * STATES_PER_LANE;
  UNROLL
  for (int n = 0; n < STATES_PER_LANE; n++) {
    a2[n] = p.a[state + n] * LOG2E;
    h[n] = p.h_in ? p.h_in[slot * p.E * p.N + state + n] : 0.f;
  }
  for (int i = threadIdx.x; i < CHANNELS; i += THREADS) { s.d[i] = p.d[channel0 + i]; s.bias[i] = p.dt_bias[channel0 + i]; }

  Inputs in = inputs_at(p, chunk.row, channel0);
  fetch_tile(s, p, in, 0, chunk.length);
  __syncthreads();
  for (int start = 0, buffer = 0; start < chunk.length; start += TILE, buffer ^= 1) {
    const int rows = chunk.length - start;  // of this tile and after it
    copies_wait();
    prepare_tile(s, buffer, rows);
    __syncthreads();
    if (rows > TILE) fetch_tile(s, p, in, buffer ^ 1, rows - TILE);
    scan_tile(s, p, h, a2, chunk.tile + start / TILE, channel0);
    __syncthreads();
    // No barrier after this: prepare_tile overwrites only the cells of s.delta that the same thread reads here.
    UNROLL
    for (int item = 0; item < ITEMS; item++)
      if (Work::position(item) < rows)
        finish_piece(s, p, buffer, item, (chunk.row + start + Work::position(item)) * p.E + channel0 + Work::channel(item));
  }
  if (chunk.last) {
    UNROLL
    for (int n = 0; n < STATES_PER_LANE; n++) p.h_final[(i64)chunk.sequence * p.E * p.N + state + n] = h[n];
  }
}
