// The selective scan, backward: one block walks one chunk from its end for CHANNELS channels and 16 states.
//
// With r = what position t+1 hands back (r = gradient of the final state at the end), dy = dout * silu(z), and per state n
//   g     = dy C[n] + r                 gradient of h[t]
//   dC[n] = sum_e dy h[n]               dB[n] = sum_e g w            (sums over the channels that share B and C)
//   dw    = sum_n g B[n]                r'  = a g                    with a = exp(delta A[n])
//   t     = r' h[t-1]                   dA[n] += t delta             ddelta = dw x + sum_n t A[n]
//   dx    = dw delta + D dy             ddt = ddelta sigmoid(dt + bias)
//   dz    = dout y silu'(z)             dD += dy x                   dbias += ddt
//
// Who holds what. A lane holds 4 states of LANE_CHANNELS channels: lane & 3 is the quad of states, lane >> 2 the group of
// channels; a warp covers 8 * LANE_CHANNELS channels and all 16 states. Per tile of 16 positions: an elementwise role (as
// in forward.cu) converts, then the warps go through four sub-tiles of 4 positions, last to first. In a sub-tile they run
// the state forward, keeping a and h[t-1] in registers and collecting dC; then the adjoint in reverse. The state before a
// sub-tile was saved by the forward pass (SAVE_EVERY 4), or before every other one only (8), and is then run there first.
//
// Sums over channels go first over the lane's own, then over lanes by shuffles, as a software pipeline (ChannelSums). To
// spend no selects on it, the 4 states of a quad lie in permuted slots: slot i of a lane holds state i ^ mix, with mix the
// lowest two bits of its channel group, so partners exchange different slots of the same state. Per-warp sums meet in
// shared memory, per-block sums go to `partial` and reduce.cu adds them in a fixed order: no atomics, bit for bit repeatable.
//
// Compiled per variant by -D:
//   SAVE_EVERY 4 or 8
//   LANE_CHANNELS 4 or 2, WARPS, MIN_BLOCKS   4 reads B and C least often; 2 gives more warps when channels are few
//   PARTIAL_IN, PARTIAL_OUT   for N > 16: sums over n are continued from / left in fp32 buffers
#include "common.cuh"

constexpr int THREADS = WARPS * WARP;
constexpr int WARP_CHANNELS = 8 * LANE_CHANNELS;
constexpr int CHANNELS = WARPS * WARP_CHANNELS;
constexpr int VEC = 16 / (int)sizeof(element);
constexpr int SUB = 4;                        // positions per sub-tile
constexpr int SUBS = TILE / SUB;
enum { X, DT, DOUT, Z, Y, ARRAYS_WITH_GATE };
constexpr int ARRAYS = HAS_GATE ? ARRAYS_WITH_GATE : 3;
constexpr int RUN = CHANNELS / VEC;           // pieces of VEC channels in one position
constexpr int ITEMS = TILE * RUN / THREADS;   // pieces per thread; all lie in the same columns
static_assert(THREADS % RUN == 0 && ITEMS >= 1, "a thread keeps its columns");
constexpr int QUADS = TILE * STATES / 4;
constexpr int BC_ITEMS = (2 * QUADS + THREADS - 1) / THREADS;
constexpr int QUAD = 4 * (int)sizeof(element);
constexpr int SUMS = 2 * STATES;              // dB and dC of one position
constexpr int PARAMETERS = STATES + 2;        // dA, dD, dbias of one channel

struct BackwardArgs {
  const element* x;
  const element* dt;
  const element* dout;      // (rows, E)
  const element* z;
  const element* y;         // (rows, E) y before the gate, saved by the forward pass
  const element* b;
  const element* c;
  const float* a;           // (E, N)
  const float* d;           // (E)
  const float* dt_bias;     // (E)
  const float* states;      // saved by the forward pass
  const float* r_in;        // (slots, E, N) adjoint that enters each chunk at its end, or null: zero
  element* dx;              // (rows, E); ddt alike
  element* ddt;
  element* dz;              // adjacent channels, row stride dz_stride
  float* dw_partial;        // (rows, E); ddelta_partial alike
  float* ddelta_partial;
  float* bc_partial;        // (E / CHANNELS, rows, 32): dB then dC
  float* parameter_partial; // (slots, 18, E): dA[16], dD, dbias
  float* h_initial_grad;    // (sequences, E, N) or null
  const i64* cu_seqlens;
  i64 length;
  i64 rows;                 // of all sequences
  int x_stride;
  int dt_stride;
  int z_stride;
  int dz_stride;
  int bc_stride;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int N;
  int first_state;
  int channels_per_group;
};

constexpr int SAVED_RUN = WARP_CHANNELS + 1;  // pieces; one too many, to spread the quads over the banks
static_assert(SAVE_EVERY == SUB || SAVE_EVERY == 2 * SUB, "before every sub-tile or every other one");
struct Shared {
  alignas(16) char stage[ARRAYS][ITEMS][THREADS][16];
  float4 saved[SAVES][WARPS][STATES / 4][SAVED_RUN];  // each warp copies its own
  alignas(16) char bc_stage[2 * QUADS][QUAD];
  alignas(16) float delta[TILE][CHANNELS];
  alignas(16) float w[TILE][CHANNELS];
  alignas(16) float dy[TILE][CHANNELS];
  alignas(16) element x[TILE][CHANNELS];
  alignas(16) float b[TILE][4][STATES];       // [mix]: the quads in each of the four slot orders
  alignas(16) float c[TILE][4][STATES];
  alignas(16) float sums[TILE][WARPS][SUMS];
  alignas(16) float d[CHANNELS];
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

// Where a lane stands.
struct Lane {
  int quad, group, mix, channel;  // channel: the first of its LANE_CHANNELS, within the block
  DEVICE Lane() {
    const int lane = threadIdx.x % WARP;
    quad = lane & 3;
    group = lane >> 2;
    mix = group & 3;
    // mix must be bits 2..3 of the channel whatever LANE_CHANNELS is: that is how saved states are permuted
    channel = threadIdx.x / WARP * WARP_CHANNELS + (LANE_CHANNELS == 4 ? group * 4 : mix * 4 + (group >> 2) * 2);
  }
  DEVICE int state(int slot) const { return 4 * quad + (slot ^ mix); }
};

// ---- loads

// The states of a warp's channels. Nobody but the warp reads them, so its own waits do instead of a barrier.
DEVICE void fetch_states(Shared& s, const BackwardArgs& p, i64 tile, int channel0, int save) {
  const int warp = threadIdx.x / WARP;
  UNROLL
  for (int item = 0; item < STATES / 4 * WARP_CHANNELS / WARP; item++) {
    const int i = threadIdx.x % WARP + item * WARP, quad = i / WARP_CHANNELS, channel = i % WARP_CHANNELS;
    copy_async<16>(&s.saved[save][warp][quad][channel],
                   p.states + saved_piece(tile, save, quad, p.E, channel0 + warp * WARP_CHANNELS + channel), true);
  }
}

// ITEMS pieces of a tile of x, dt, ...: the tile's corner in 64 bits, from there on in 32.
DEVICE void fetch_array(char (*to)[THREADS][16], const element* corner, int stride, int rows) {
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int position = threadIdx.x / RUN + item * (THREADS / RUN);
    copy_async<16>(to[item][threadIdx.x], corner + (position * stride + (int)(threadIdx.x % RUN) * VEC), position < rows);
  }
}

DEVICE void fetch_tile(Shared& s, const BackwardArgs& p, const Chunk& chunk, int start, int channel0) {
  const int rows = chunk.length - start;
  const i64 row = chunk.row + start, dense = row * p.E + channel0;
  fetch_array(s.stage[X], p.x + row * p.x_stride + channel0, p.x_stride, rows);
  fetch_array(s.stage[DT], p.dt + row * p.dt_stride + channel0, p.dt_stride, rows);
  fetch_array(s.stage[DOUT], p.dout + dense, p.E, rows);
  if constexpr (HAS_GATE) {
    fetch_array(s.stage[ARRAYS - 2], p.z + row * p.z_stride + channel0, p.z_stride, rows);
    fetch_array(s.stage[ARRAYS - 1], p.y + dense, p.E, rows);
  }
  const i64 corner = row * p.bc_stride + channel0 / p.channels_per_group * p.N + p.first_state;
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS, quad = i % QUADS, position = quad / 4;
    if (i < 2 * QUADS)
      copy_async<QUAD>(s.bc_stage[i], (i < QUADS ? p.b : p.c) + corner + (position * p.bc_stride + quad % 4 * 4), position < rows);
  }
}

// ---- elementwise role

// delta, w, dy of the tile to shared memory, dz to its place. All shared loads come before all shared stores.
DEVICE void prepare_tile(Shared& s, const BackwardArgs& p, i64 row0, int rows, int channel0) {
  const int column = threadIdx.x % RUN * VEC;
  Pack<VEC> raw[ITEMS][ARRAYS], dz[ITEMS];
  Pack<4> bc[BC_ITEMS];
  Floats<VEC> bias, delta[ITEMS], w[ITEMS], dy[ITEMS];
  bias.load(s.bias + column);
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    UNROLL
    for (int array = 0; array < ARRAYS; array++) raw[item][array].load(s.stage[array][item][threadIdx.x]);
  }
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++)
    if (threadIdx.x + item * THREADS < 2 * QUADS) bc[item].load(s.bc_stage[threadIdx.x + item * THREADS]);

  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    float gate_grad[VEC];
    UNROLL
    for (int k = 0; k < VEC; k++) {
      delta[item].v[k] = to_delta(raw[item][DT][k] + bias[k]);
      w[item].v[k] = delta[item][k] * raw[item][X][k];
      dy[item].v[k] = raw[item][DOUT][k];
      if constexpr (HAS_GATE) {
        const float z = raw[item][ARRAYS - 2][k], s = sigmoid(z), silu = z * s;
        gate_grad[k] = dy[item][k] * raw[item][ARRAYS - 1][k] * fmaf(silu, 1.f - s, s);
        dy[item].v[k] *= silu;
      }
    }
    if constexpr (HAS_GATE) dz[item] = Pack<VEC>::from(gate_grad);
    if ((threadIdx.x + item * THREADS) / RUN >= rows) {  // past the end: delta = 0 hands r on unchanged (x, dout are zero)
      UNROLL
      for (int k = 0; k < VEC; k++) delta[item].v[k] = 0.f;
    }
  }
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int position = (threadIdx.x + item * THREADS) / RUN;
    raw[item][X].store(&s.x[position][column]);
    delta[item].store(&s.delta[position][column]);
    w[item].store(&s.w[position][column]);
    dy[item].store(&s.dy[position][column]);
    if constexpr (HAS_GATE && !PARTIAL_OUT)
      if (position < rows) dz[item].store(p.dz + (row0 + position) * p.dz_stride + channel0 + column);
  }
  UNROLL
  for (int item = 0; item < BC_ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS, quad = i % QUADS;
    if (i < 2 * QUADS) {
      float(*to)[STATES] = i < QUADS ? s.b[quad / 4] : s.c[quad / 4];
      const float f[4] = {bc[item][0], bc[item][1], bc[item][2], bc[item][3]};
      UNROLL
      for (int mix = 0; mix < 4; mix++)
        *(float4*)&to[mix][quad % 4 * 4] = make_float4(f[mix], f[1 ^ mix], f[2 ^ mix], f[3 ^ mix]);
    }
  }
}

// ---- sums over channels

// dC of positions 0..3 (phases 0..3), then dB of positions 3..0 (phases 4..7). A phase starts with the lane's own sums in
// v[phase]; advance<> moves every phase in flight by one shuffle, so that none waits for its own. After three exchanges
// (lanes xor 4, 8, 16) two phases share the last one: the lower half of the warp ends with the even phase, the upper half
// with the odd one, each lane with the state of its slot 0.
struct ChannelSums {
  static constexpr int PHASES = 2 * SUB, DEPTH = 3;
  float v[PHASES][4];
  float first[PHASES], third[PHASES], passed[PHASES];
  const bool upper;
  float* const out;  // of this warp and slot-0 state, position 0 of the tile
  DEVICE ChannelSums(Shared& s, const Lane& lane, int position0)
      : upper(lane.group >= 4), out(&s.sums[position0][threadIdx.x / WARP][lane.state(0)]) {}

  __host__ __device__ static constexpr int position_of(int phase) { return phase < SUB ? phase : PHASES - 1 - phase; }

  template <int PHASE> DEVICE void advance() {
    if constexpr (PHASE >= 3) finish<PHASE - 3>();
    if constexpr (PHASE >= 2 && PHASE < PHASES + 2) third_exchange<PHASE - 2>();
    if constexpr (PHASE >= 1 && PHASE < PHASES + 1) second_exchange<PHASE - 1>();
    if constexpr (PHASE < PHASES) { first[PHASE] = shuffle_xor(v[PHASE][1], 4); third[PHASE] = shuffle_xor(v[PHASE][3], 4); }
  }
  template <int K> DEVICE void second_exchange() {
    v[K][0] += first[K];
    v[K][2] += third[K];
    passed[K] = shuffle_xor(v[K][2], 8);
  }
  template <int K> DEVICE void third_exchange() {
    v[K][0] += passed[K];
    if constexpr (K % 2 == 1) {
      const float send = upper ? v[K - 1][0] : v[K][0];
      v[K][0] = upper ? v[K][0] : v[K - 1][0];
      passed[K] = shuffle_xor(send, 16);
    }
  }
  template <int K> DEVICE void finish() {
    if constexpr (K % 2 == 1) {
      constexpr int EVEN = position_of(K - 1), ODD = position_of(K), OFFSET = K < SUB ? STATES : 0;
      out[(upper ? ODD : EVEN) * (WARPS * SUMS) + OFFSET] = v[K][0] + passed[K];
    }
  }
};

// ---- the walk

// What a lane carries from the chunk's end to its start: 4 states (slots) of LANE_CHANNELS channels.
struct Carried {
  float a2[LANE_CHANNELS][4];  // A * log2(e)
  float r[LANE_CHANNELS][4];
  float da[LANE_CHANNELS][4];
  float dd[LANE_CHANNELS], dbias[LANE_CHANNELS];
};

struct Row {  // what one position needs of shared memory
  Floats<LANE_CHANNELS> delta, w, dy;
  Floats<4> b, c;
  DEVICE void load(const Shared& s, const Lane& lane, int position, bool with_c) {
    delta.load(&s.delta[position][lane.channel]);
    w.load(&s.w[position][lane.channel]);
    dy.load(&s.dy[position][lane.channel]);
    b.load(&s.b[position][lane.mix][4 * lane.quad]);
    if (with_c) c.load(&s.c[position][lane.mix][4 * lane.quad]);
  }
};

// The state before a sub-tile: the saved one, or the one before the previous sub-tile run through that.
DEVICE void load_state(Shared& s, const Lane& lane, const Carried& k, int sub, float h[LANE_CHANNELS][4]) {
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    const float4 v = s.saved[sub * SUB / SAVE_EVERY][threadIdx.x / WARP][lane.quad][lane.channel % WARP_CHANNELS + j];
    h[j][0] = v.x; h[j][1] = v.y; h[j][2] = v.z; h[j][3] = v.w;
  }
  if (sub * SUB % SAVE_EVERY == 0) return;
  UNROLL
  for (int t = 0; t < SUB; t++) {
    Floats<LANE_CHANNELS> delta, w;
    Floats<4> b;
    const int position = (sub - 1) * SUB + t;
    delta.load(&s.delta[position][lane.channel]);
    w.load(&s.w[position][lane.channel]);
    b.load(&s.b[position][lane.mix][4 * lane.quad]);
    UNROLL
    for (int j = 0; j < LANE_CHANNELS; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) h[j][i] = fmaf(exp2_fast(delta[j] * k.a2[j][i]), h[j][i], w[j] * b[i]);
    }
  }
}

// Lanes of the four quads each hold sums over their own states for 4 positions; leave lane `quad` with the total of
// position `quad`, in v[0].
template <typename T> DEVICE void sum_over_quads_2(T (&v)[SUB][LANE_CHANNELS], int step, bool upper) {
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    const float send = upper ? v[step][j] : v[step + 2][j], keep = upper ? v[step + 2][j] : v[step][j];
    v[step][j] = keep + shuffle_xor(send, 2);
  }
}
template <typename T> DEVICE void sum_over_quads_1(T (&v)[SUB][LANE_CHANNELS], bool upper) {
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    const float send = upper ? v[0][j] : v[1][j], keep = upper ? v[1][j] : v[0][j];
    v[0][j] = keep + shuffle_xor(send, 1);
  }
}

// dx, ddt of position sub0 + quad for the lane's channels, from dw = sum_n g B and ta = sum_n t A log2(e).
DEVICE void finish_position(Shared& s, const BackwardArgs& p, const Lane& lane, Carried& k, i64 row0, int rows, int channel0,
                            int position, const float* dw, const float* ta) {
  const bool inside = position < rows;
  const i64 at = (row0 + position) * p.E + channel0 + lane.channel;
  Floats<LANE_CHANNELS> delta, dy, w_sum, a_sum, d;
  delta.load(&s.delta[position][lane.channel]);
  dy.load(&s.dy[position][lane.channel]);
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) { w_sum.v[j] = dw[j]; a_sum.v[j] = ta[j]; }
#if PARTIAL_IN
  if (inside) {
    Floats<LANE_CHANNELS> dw_before, ta_before;
    dw_before.load(p.dw_partial + at);
    ta_before.load(p.ddelta_partial + at);
    UNROLL
    for (int j = 0; j < LANE_CHANNELS; j++) { w_sum.v[j] += dw_before[j]; a_sum.v[j] += ta_before[j]; }
  }
#endif
#if PARTIAL_OUT
  if (inside) { w_sum.store(p.dw_partial + at); a_sum.store(p.ddelta_partial + at); }
#else
  d.load(s.d + lane.channel);
  float dx[LANE_CHANNELS], ddt[LANE_CHANNELS];
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    const float x = word_to_float(*(const u32*)&s.x[position][lane.channel + j / PER_WORD * PER_WORD], j % PER_WORD);
    dx[j] = fmaf(w_sum[j], delta[j], d[j] * dy[j]);
    ddt[j] = fmaf(w_sum[j], x, LN2 * a_sum[j]) * delta_slope(delta[j]);
    k.dd[j] = fmaf(dy[j], x, k.dd[j]);
    k.dbias[j] += inside ? ddt[j] : 0.f;
  }
  if (inside) { Pack<LANE_CHANNELS>::from(dx).store(p.dx + at); Pack<LANE_CHANNELS>::from(ddt).store(p.ddt + at); }
#endif
}

struct SubTile {  // kept from the forward to the reverse half
  float a[SUB][LANE_CHANNELS][4], before[SUB][LANE_CHANNELS][4];
};

template <int STEP> DEVICE void forward_step(Shared& s, const Lane& lane, const Carried& k, SubTile& kept, float h[LANE_CHANNELS][4],
                                             ChannelSums& sums, Row& row, int position0) {
  Row next;
  if constexpr (STEP + 1 < SUB) next.load(s, lane, position0 + STEP + 1, false);
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const float a = exp2_fast(row.delta[j] * k.a2[j][i]);
      kept.a[STEP][j][i] = a;
      kept.before[STEP][j][i] = h[j][i];
      h[j][i] = fmaf(a, h[j][i], row.w[j] * row.b[i]);
      sums.v[STEP][i] = j ? fmaf(row.dy[j], h[j][i], sums.v[STEP][i]) : row.dy[j] * h[j][i];
    }
  }
  sums.advance<STEP>();
  if constexpr (STEP + 1 < SUB) row = next;
}

template <int STEP> DEVICE void reverse_step(Shared& s, const Lane& lane, Carried& k, const SubTile& kept, float (&dw)[SUB][LANE_CHANNELS],
                                             float (&ta)[SUB][LANE_CHANNELS], ChannelSums& sums, Row& row, int position0) {
  constexpr int PHASE = 2 * SUB - 1 - STEP;
  Row next;
  if constexpr (STEP > 0) next.load(s, lane, position0 + STEP - 1, true);
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const float g = fmaf(row.dy[j], row.c[i], k.r[j][i]);
      sums.v[PHASE][i] = j ? fmaf(g, row.w[j], sums.v[PHASE][i]) : g * row.w[j];
      dw[STEP][j] = i ? fmaf(g, row.b[i], dw[STEP][j]) : g * row.b[i];
      k.r[j][i] = g * kept.a[STEP][j][i];
      const float t = k.r[j][i] * kept.before[STEP][j][i];
      k.da[j][i] = fmaf(t, row.delta[j], k.da[j][i]);
      ta[STEP][j] = i ? fmaf(t, k.a2[j][i], ta[STEP][j]) : t * k.a2[j][i];
    }
  }
  sums.advance<PHASE>();
  if constexpr (STEP < 2) {
    sum_over_quads_2(dw, STEP, lane.quad & 2);
    sum_over_quads_2(ta, STEP, lane.quad & 2);
  }
  if constexpr (STEP > 0) row = next;
}

DEVICE void walk_sub_tile(Shared& s, const BackwardArgs& p, const Lane& lane, Carried& k, i64 row0, int rows, int channel0, int sub) {
  static_assert(SUB == 4, "the steps below are written out");
  const int position0 = sub * SUB;
  float h[LANE_CHANNELS][4], dw[SUB][LANE_CHANNELS], ta[SUB][LANE_CHANNELS];
  SubTile kept;
  ChannelSums sums(s, lane, position0);
  load_state(s, lane, k, sub, h);
  Row row;
  row.load(s, lane, position0, false);
  forward_step<0>(s, lane, k, kept, h, sums, row, position0);
  forward_step<1>(s, lane, k, kept, h, sums, row, position0);
  forward_step<2>(s, lane, k, kept, h, sums, row, position0);
  forward_step<3>(s, lane, k, kept, h, sums, row, position0);
  row.c.load(&s.c[position0 + SUB - 1][lane.mix][4 * lane.quad]);
  reverse_step<3>(s, lane, k, kept, dw, ta, sums, row, position0);
  reverse_step<2>(s, lane, k, kept, dw, ta, sums, row, position0);
  reverse_step<1>(s, lane, k, kept, dw, ta, sums, row, position0);
  reverse_step<0>(s, lane, k, kept, dw, ta, sums, row, position0);
  sums.advance<8>();
  sum_over_quads_1(dw, lane.quad & 1);
  sum_over_quads_1(ta, lane.quad & 1);
  sums.advance<9>();
  finish_position(s, p, lane, k, row0, rows, channel0, position0 + lane.quad, dw[0], ta[0]);
  sums.advance<10>();
}

// dB, dC of the tile, summed over the block's warps.
DEVICE void store_sums(Shared& s, const BackwardArgs& p, i64 row0, int rows, int block) {
  UNROLL
  for (int item = 0; item < (TILE * SUMS / 4 + THREADS - 1) / THREADS; item++) {
    const int i = threadIdx.x + item * THREADS, position = i / (SUMS / 4), at = i % (SUMS / 4) * 4;
    if (i >= TILE * SUMS / 4 || position >= rows) continue;
    float4 sum = *(const float4*)&s.sums[position][0][at];
    UNROLL
    for (int warp = 1; warp < WARPS; warp++) {
      const float4 v = *(const float4*)&s.sums[position][warp][at];
      sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
    }
    *(float4*)&p.bc_partial[(block * p.rows + row0 + position) * SUMS + at] = sum;
  }
}

DEVICE void store_parameters(const BackwardArgs& p, const Lane& lane, const Carried& k, i64 slot, int channel0) {
  float* to = p.parameter_partial + slot * PARAMETERS * p.E + channel0 + lane.channel;
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) to[(i64)lane.state(i) * p.E + j] = k.da[j][i];
    float dd = k.dd[j], dbias = k.dbias[j];  // over the four positions of a sub-tile
    dd += shuffle_xor(dd, 1); dd += shuffle_xor(dd, 2);
    dbias += shuffle_xor(dbias, 1); dbias += shuffle_xor(dbias, 2);
    if (lane.quad == 0) { to[(i64)STATES * p.E + j] = dd; to[(i64)(STATES + 1) * p.E + j] = dbias; }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) backward_scan(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS, block = blockIdx.x % blocks, channel0 = block * CHANNELS;
  const i64 slot = blockIdx.x / blocks;
  const Chunk chunk = chunk_of_slot(p, slot);
  const Lane lane;
  Carried k;
  UNROLL
  for (int j = 0; j < LANE_CHANNELS; j++) {
    k.dd[j] = k.dbias[j] = 0.f;
    UNROLL
    for (int i = 0; i < 4; i++) {
      const i64 state = (i64)(channel0 + lane.channel + j) * p.N + p.first_state + lane.state(i);
      k.a2[j][i] = p.a[state] * LOG2E;
      k.da[j][i] = 0.f;
      k.r[j][i] = p.r_in && chunk.length ? p.r_in[slot * p.E * p.N + state] : 0.f;
    }
  }
  for (int i = threadIdx.x; i < CHANNELS; i += THREADS) { s.d[i] = p.d[channel0 + i]; s.bias[i] = p.dt_bias[channel0 + i]; }
  __syncthreads();
  if (chunk.length) {
    int start = (chunk.length - 1) / TILE * TILE;
    const auto fetch_saved = [&](int tile_start, int save) {
      if (tile_start >= 0) fetch_states(s, p, chunk.tile + tile_start / TILE, channel0, save);
      copies_close();  // a group even without copies: the waits below count groups
    };
    fetch_tile(s, p, chunk, start, channel0);
    copies_close();
    for (int save = SAVES - 1; save >= 0; save--) fetch_saved(start, save);
    for (; start >= 0; start -= TILE) {
      const i64 row0 = chunk.row + start;
      const int rows = chunk.length - start;
      copies_wait<SAVES>();  // the tile; its saved states may still be on their way
      prepare_tile(s, p, row0, rows, channel0);
      __syncthreads();
      if (start > 0) fetch_tile(s, p, chunk, start - TILE, channel0);
      copies_close();
#pragma unroll 1
      for (int sub = SUBS - 1; sub >= 0; sub--) {
        copies_wait<SAVES>();  // this sub-tile's state; the later ones and the next tile may still be on their way
        __syncwarp();
        walk_sub_tile(s, p, lane, k, row0, rows, channel0, sub);
        if (sub * SUB % SAVE_EVERY == 0) {
          __syncwarp();
          fetch_saved(start - TILE, sub * SUB / SAVE_EVERY);
        }
      }
      __syncthreads();
      store_sums(s, p, row0, rows, block);
    }
    if (chunk.first && p.h_initial_grad) {
      UNROLL
      for (int j = 0; j < LANE_CHANNELS; j++) {
        UNROLL
        for (int i = 0; i < 4; i++)
          p.h_initial_grad[((i64)chunk.sequence * p.E + channel0 + lane.channel + j) * p.N + p.first_state + lane.state(i)] = k.r[j][i];
      }
    }
  }
  store_parameters(p, lane, k, slot, channel0);
}
