// Adds up the shares of x_proj, then for every channel: dt_proj, softplus, h = exp(dt a) h + dt b x, y = (c h + d x) silu(z).
// LANES neighbouring lanes share a channel, each with N / LANES states, 16 bytes in turn, so that a warp reads and writes whole
// sectors of the state; weights are read once for all rows of a block, and the states of all its rows are on the way at once.
//
// -D: CHANNELS a block (divides E), LANES a channel (divides N and 32), ROWS rows of the batch a block, SHARES of x_proj,
// GATE_FLOAT 1: z is fp32, 0: an element.
#include "common.cuh"

#if GATE_FLOAT
typedef float gate_type;
DEVICE float gate_to_float(float v) { return v; }
#else
typedef element gate_type;
DEVICE float gate_to_float(element v) { return to_float(v); }
#endif

struct ScanArgs {
  const float* x;           // (B, E) after the convolution
  const gate_type* z;       // (B, E), rows stride_z apart
  const float* partial;     // (SHARES, B, row_partial)
  const element* dt_proj;   // (E, R)
  const float* dt_bias;     // (E)
  const float* a;           // (E, N)
  const float* d;           // (E)
  const float* state;       // (B, E, N), may be new_state
  float* new_state;
  element* y;               // (B, E)
  i64 stride_z;
  int row_partial;          // floats of a row of partial sums
  int settled;              // 1: nothing that may still run writes the states, so they are read before the wait
  int B;
};

constexpr int THREADS = CHANNELS * LANES;
constexpr int STATES = N / LANES;  // a lane
constexpr int COLUMNS = ROWS * J_PADDED / 4;  // of four sums of x_proj each
constexpr int MOST_GROUPS = THREADS / COLUMNS < 1 ? 1 : THREADS / COLUMNS;
constexpr int GROUPS = MOST_GROUPS < SHARES ? MOST_GROUPS : SHARES;  // that add up the shares side by side

// Three ways to deal out the work. Of the sums: above. Of the step sizes: SPLIT lanes share a (row, channel) pair, and a
// thread has PAIRS of them, all of one channel. Of the scan: LANES share a channel, for all rows; at its end a lane
// finishes the rows that are its number modulo LANES.
constexpr int SPLIT = LANES > ROWS ? LANES / ROWS : 1;
constexpr int PAIRS = ROWS > LANES ? ROWS / LANES : 1;
constexpr int PAIR_STEP = LANES / SPLIT;  // rows between two pairs of a thread
constexpr int FINISHED = PAIRS;           // rows that a lane finishes

// Which states a lane has: whole quads in turn with the channel's other lanes, so that a warp moves whole sectors; or, where
// they are no whole quads, STATES in a row.
DEVICE int state_of(int lane, int s) {
  if constexpr (STATES % 4 == 0) return (s / 4 * LANES + lane) * 4 + s % 4;
  else return lane * STATES + s;
}
// The lane's part of N floats.
DEVICE void load_states(float* to, const float* from, int lane) {
  if constexpr (STATES % 4 == 0) {
    UNROLL
    for (int s = 0; s < STATES; s += 4) {
      const float4 q = load_quad_here(from + state_of(lane, s));
      to[s] = q.x; to[s + 1] = q.y; to[s + 2] = q.z; to[s + 3] = q.w;
    }
  } else {
    UNROLL
    for (int s = 0; s < STATES; s++) to[s] = load_here(from + state_of(lane, s));
  }
}
DEVICE void store_states(float* to, const float* from, int lane) {
  if constexpr (STATES % 4 == 0) {
    UNROLL
    for (int s = 0; s < STATES; s += 4) store_quad(to + state_of(lane, s), from + s);
  } else {
    UNROLL
    for (int s = 0; s < STATES; s++) to[state_of(lane, s)] = from[s];
  }
}
// The same of shared memory, AT floats behind a multiple of 16 bytes.
template <int AT> DEVICE void read_states(float* to, const float* from, int lane) {
  if constexpr (AT % 4 == 0 && STATES % 4 == 0) {
    UNROLL
    for (int s = 0; s < STATES; s += 4) {
      const float4 q = *(const float4*)(from + AT + state_of(lane, s));
      to[s] = q.x; to[s + 1] = q.y; to[s + 2] = q.z; to[s + 3] = q.w;
    }
  } else {
    UNROLL
    for (int s = 0; s < STATES; s++) to[s] = from[AT + state_of(lane, s)];
  }
}

// A thread's part of a row of dt_proj: ranks sub, sub + SPLIT, ... in registers; a whole row stays in shared memory, 16 bytes
// longer than it is, so that neighbouring rows lie in other banks.
constexpr bool WHOLE_RANKS = SPLIT == 1 && R % 8 == 0;
constexpr int RANK_ROW = WHOLE_RANKS ? R + 16 / sizeof(element) : 8;

struct RankWeights {
  static constexpr int COUNT = WHOLE_RANKS ? 1 : (R + SPLIT - 1) / SPLIT;
  float single[COUNT];

  DEVICE void load(const element* row, int sub) {
    if constexpr (!WHOLE_RANKS) {
      UNROLL
      for (int k = 0; k < COUNT; k++) single[k] = sub + k * SPLIT < R ? to_float(load_here(row + sub + k * SPLIT)) : 0.f;
    }
  }
  DEVICE float dot(const element* row, const float* ranks, int sub) const {
    float sums[2] = {0.f, 0.f};  // two chains of additions take half the time of one
    if constexpr (WHOLE_RANKS) {
      _Pragma("unroll 2")
      for (int k = 0; k < R; k += 8) {
        Piece piece;
        piece.load(row + k);
        const float4 low = *(const float4*)(ranks + k), high = *(const float4*)(ranks + k + 4);
        sums[0] = fmaf(piece[0], low.x, sums[0]); sums[1] = fmaf(piece[1], low.y, sums[1]);
        sums[0] = fmaf(piece[2], low.z, sums[0]); sums[1] = fmaf(piece[3], low.w, sums[1]);
        sums[0] = fmaf(piece[4], high.x, sums[0]); sums[1] = fmaf(piece[5], high.y, sums[1]);
        sums[0] = fmaf(piece[6], high.z, sums[0]); sums[1] = fmaf(piece[7], high.w, sums[1]);
      }
    } else {
      UNROLL
      for (int k = 0; k < COUNT; k++) sums[k % 2] = fmaf(single[k], ranks[min(sub + k * SPLIT, R - 1)], sums[k % 2]);
    }
    return sum_over<SPLIT>(sums[0] + sums[1]);
  }
};

// Sums of ROWS values over the lanes of a channel; lane l gets those of rows l, l + LANES, ... (l % ROWS where rows are
// fewer), with a third of the shuffles that all sums for all lanes would take.
DEVICE void sum_and_deal(float (&v)[ROWS], int lane) {
  UNROLL
  for (int mask = LANES / 2; mask >= ROWS; mask /= 2)
    UNROLL
    for (int i = 0; i < ROWS; i++) v[i] += __shfl_xor_sync(0xffffffffu, v[i], mask);
  constexpr int DEALT = ROWS < LANES ? ROWS : LANES;
  UNROLL
  for (int group = 0; group < FINISHED; group++) {
    UNROLL
    for (int half = DEALT / 2; half > 0; half /= 2) {
      const bool upper = lane & half;
      UNROLL
      for (int i = 0; i < half; i++) {
        float& low = v[group * LANES + i];
        const float high = v[group * LANES + i + half];
        low = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, half);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, ROWS * STATES >= 32 && THREADS <= 256 ? 768 / THREADS : 1) scan(const __grid_constant__ ScanArgs p) {
  static_assert(N % LANES == 0 && E % CHANNELS == 0 && THREADS % WARP == 0, "cut");
  static_assert((ROWS & (ROWS - 1)) == 0 && (LANES & (LANES - 1)) == 0 && LANES <= WARP, "powers of two");
  __shared__ float4 shares[SHARES][COLUMNS];
  __shared__ __align__(16) float projected[ROWS][J_PADDED];
  __shared__ __align__(16) element rank_weights[WHOLE_RANKS ? CHANNELS : 1][RANK_ROW];
  __shared__ float2 steps[ROWS][CHANNELS];  // dt, dt * x
  let_next_begin();
  const int lane = threadIdx.x % LANES, c = threadIdx.x / LANES, e = blockIdx.x * CHANNELS + c;
  const int sub = threadIdx.x % SPLIT, pair_c = threadIdx.x / SPLIT % CHANNELS, pair_e = blockIdx.x * CHANNELS + pair_c;
  const int row0 = blockIdx.y * ROWS, pair_row = threadIdx.x / (SPLIT * CHANNELS);
  const int rows = min(ROWS, p.B - row0);  // that exist

  float rate[STATES];
  load_states(rate, p.a + (i64)e * N, lane);
  RankWeights dt_weight;
  dt_weight.load(p.dt_proj + (i64)pair_e * R, sub);
  if constexpr (WHOLE_RANKS) {
    constexpr int PIECES = R * sizeof(element) / 16;
    for (int i = threadIdx.x; i < CHANNELS * PIECES; i += THREADS)
      copy_async((uint4*)rank_weights[i / PIECES] + i % PIECES, (const uint4*)(p.dt_proj + (i64)blockIdx.x * CHANNELS * R) + i);
  }
  const float bias = load_here(p.dt_bias + pair_e), skip = load_here(p.d + e);

  const i64 spot = ((i64)row0 * E + e) * N;
  float h[ROWS][STATES];
  const auto load_all_states = [&] {
    UNROLL
    for (int i = 0; i < ROWS; i++)
      if (i < rows) load_states(h[i], p.state + spot + i * (i64)(E * N), lane);
  };
  if (p.settled) load_all_states();
  wait_for_previous();
  for (int item = threadIdx.x; item < COLUMNS * GROUPS; item += THREADS) {
    const int column = item % COLUMNS;
    const int b = row0 + min(column / (J_PADDED / 4), rows - 1);
    const float* from = p.partial + (i64)b * p.row_partial + column % (J_PADDED / 4) * 4;
    UNROLL
    for (int share = item / COLUMNS; share < SHARES; share += GROUPS)
      copy_async(&shares[share][column], from + share * (i64)p.B * p.row_partial);
  }
  if (!p.settled) load_all_states();
  const float* x = p.x + (i64)row0 * E;
  float own_x[FINISHED], z[FINISHED];
  UNROLL
  for (int k = 0; k < PAIRS; k++) {
    const int own = lane % ROWS + k * LANES;
    if (own < rows) {
      own_x[k] = load_here(x + own * (i64)E + e);
      z[k] = gate_to_float(load_here(p.z + (row0 + own) * p.stride_z + e));
    }
  }
  UNROLL
  for (int s = 0; s < STATES; s++) rate[s] *= LOG2E;
  for (int k = 0; k < PAIRS; k++) {
    const int row = pair_row + k * PAIR_STEP;
    if (sub == 0 && row < rows) steps[row][pair_c].y = x[row * (i64)E + pair_e];
  }
  __syncthreads();  // keeps the assembler from moving the loads above behind the next wait
  copies_wait();
  float4* sums = GROUPS == 1 ? (float4*)projected : shares[0];
  for (int item = threadIdx.x; item < COLUMNS * GROUPS; item += THREADS) {
    const int column = item % COLUMNS, group = item / COLUMNS;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    _Pragma("unroll 4")
    for (int share = group; share < SHARES; share += GROUPS) {
      const float4 q = shares[share][column];
      sum.x += q.x; sum.y += q.y; sum.z += q.z; sum.w += q.w;
    }
    sums[group * COLUMNS + column] = sum;  // in the place of its own first one
  }
  __syncthreads();
  if constexpr (GROUPS > 1) {
    for (int i = threadIdx.x; i < ROWS * J_PADDED; i += THREADS) {
      float sum = 0.f;
      UNROLL
      for (int g = 0; g < GROUPS; g++) sum += ((const float*)shares[g])[i];
      ((float*)projected)[i] = sum;
    }
    __syncthreads();
  }
  _Pragma("unroll 1")
  for (int k = 0; k < PAIRS; k++) {  // not unrolled: the states fill the registers
    const int row = pair_row + k * PAIR_STEP;
    const float dt = softplus(dt_weight.dot(rank_weights[WHOLE_RANKS ? pair_c : 0], projected[row], sub) + bias);
    if (sub == 0) steps[row][pair_c] = make_float2(dt, dt * steps[row][pair_c].y);
  }
  if constexpr (SPLIT == LANES) __syncwarp();  // a pair's lanes are its channel's
  else __syncthreads();

  float out[ROWS];
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    const float2 step = steps[i][c];
    float b[STATES], weight[STATES];
    read_states<R>(b, projected[i], lane);
    read_states<R + N>(weight, projected[i], lane);
    out[i] = 0.f;
    UNROLL
    for (int s = 0; s < STATES; s++) {
      h[i][s] = fmaf(exp2_fast(step.x * rate[s]), h[i][s], step.y * b[s]);
      out[i] = fmaf(h[i][s], weight[s], out[i]);
    }
    if (i < rows) store_states(p.new_state + spot + i * (i64)(E * N), h[i], lane);
  }
  sum_and_deal(out, lane);
  UNROLL
  for (int k = 0; k < FINISHED; k++) {
    const int own = lane + k * LANES;
    if (own < rows) p.y[(i64)(row0 + own) * E + e] = from_float(fmaf(skip, own_x[k], out[k * LANES]) * z[k] * sigmoid(z[k]));
  }
}
