// Adds up the shares of x_proj, then for every channel: dt_proj, softplus, h = exp(dt a) h + dt b x, y = (c h + d x) silu(z).
// LANES neighbouring lanes share a channel, each with N / LANES states in a row, so that a warp reads and writes whole lines
// of the state; weights are read once for all rows of a block, and the states of all its rows are on the way at once.
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
  int B;
};

constexpr int THREADS = CHANNELS * LANES;
constexpr int STATES = N / LANES;  // a lane
constexpr int RANKS = (R + LANES - 1) / LANES;
constexpr int GATES = (ROWS + LANES - 1) / LANES;  // rows that a lane finishes
constexpr int COLUMNS = ROWS * J_PADDED / 4;       // of four sums each
constexpr int MOST_GROUPS = THREADS / COLUMNS < 1 ? 1 : THREADS / COLUMNS;
constexpr int GROUPS = MOST_GROUPS < SHARES ? MOST_GROUPS : SHARES;  // that add up the shares side by side

template <int COUNT> DEVICE void load_floats(float* to, const float* from) {
  if constexpr (COUNT % 4 == 0) {
    UNROLL
    for (int k = 0; k < COUNT; k += 4) {
      const float4 q = load_quad_here(from + k);
      to[k] = q.x; to[k + 1] = q.y; to[k + 2] = q.z; to[k + 3] = q.w;
    }
  } else {
    UNROLL
    for (int k = 0; k < COUNT; k++) to[k] = load_here(from + k);
  }
}
template <int COUNT> DEVICE void store_floats(float* to, const float* from) {
  if constexpr (COUNT % 4 == 0) {
    UNROLL
    for (int k = 0; k < COUNT; k += 4) store_quad(to + k, from + k);
  } else if constexpr (COUNT == 2) {
    *(float2*)to = make_float2(from[0], from[1]);
  } else {
    UNROLL
    for (int k = 0; k < COUNT; k++) to[k] = from[k];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) scan(const __grid_constant__ ScanArgs p) {
  static_assert(N % LANES == 0 && E % CHANNELS == 0 && THREADS % WARP == 0, "cut");
  __shared__ float4 shares[SHARES][COLUMNS];
  __shared__ __align__(16) float projected[ROWS][J_PADDED];
  let_next_begin();
  const int lane = threadIdx.x % LANES;
  const int e = blockIdx.x * CHANNELS + threadIdx.x / LANES;
  const int row0 = blockIdx.y * ROWS;

  float rate[STATES], dt_weight[RANKS];
  UNROLL
  for (int i = 0; i < STATES; i++) rate[i] = LOG2E * load_here(p.a + (i64)e * N + lane * STATES + i);
  UNROLL
  for (int k = 0; k < RANKS; k++) {
    const int r = lane + k * LANES;
    dt_weight[k] = r < R ? to_float(load_here(p.dt_proj + (i64)e * R + r)) : 0.f;
  }
  const float bias = load_here(p.dt_bias + e), skip = load_here(p.d + e);

  wait_for_previous();
  // Rows past the last are computed as the last and not stored.
  const auto row = [&](int i) { return (i64)(row0 + i < p.B ? row0 + i : p.B - 1); };
  for (int item = threadIdx.x; item < COLUMNS * GROUPS; item += THREADS) {
    const int column = item % COLUMNS;
    const i64 b = row(column / (J_PADDED / 4));
    const int j = column % (J_PADDED / 4) * 4;
    UNROLL
    for (int share = item / COLUMNS; share < SHARES; share += GROUPS)
      copy_async(&shares[share][column], p.partial + (share * (i64)p.B + b) * p.row_partial + j);
  }
  float h[ROWS][STATES], x[ROWS], z[GATES];
  UNROLL
  for (int i = 0; i < ROWS; i++) {
    load_floats<STATES>(h[i], p.state + (row(i) * E + e) * N + lane * STATES);
    x[i] = load_here(p.x + row(i) * E + e);
  }
  UNROLL
  for (int i = 0; i < GATES; i++)
    z[i] = i * LANES + lane < ROWS ? gate_to_float(load_here(p.z + row(i * LANES + lane) * p.stride_z + e)) : 0.f;

  __syncthreads();  // keeps the assembler from moving the loads above behind the next wait
  copies_wait();
  for (int item = threadIdx.x; item < COLUMNS * GROUPS; item += THREADS) {
    const int column = item % COLUMNS, group = item / COLUMNS;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    UNROLL
    for (int share = group; share < SHARES; share += GROUPS) {
      const float4 q = shares[share][column];
      sum.x += q.x; sum.y += q.y; sum.z += q.z; sum.w += q.w;
    }
    shares[group][column] = sum;  // in the place of its own first one
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * J_PADDED; i += THREADS) {
    float sum = 0.f;
    UNROLL
    for (int g = 0; g < GROUPS; g++) sum += ((const float*)shares[g])[i];
    ((float*)projected)[i] = sum;
  }
  __syncthreads();

  UNROLL
  for (int i = 0; i < ROWS; i++) {
    float sum = 0.f;
    UNROLL
    for (int k = 0; k < RANKS; k++) sum = fmaf(dt_weight[k], projected[i][min(lane + k * LANES, R - 1)], sum);
    const float dt = softplus(sum_over<LANES>(sum) + bias), dx = dt * x[i];
    float out = 0.f;
    UNROLL
    for (int s = 0; s < STATES; s++) {
      const int n = lane * STATES + s;
      h[i][s] = fmaf(exp2_fast(dt * rate[s]), h[i][s], dx * projected[i][R + n]);
      out = fmaf(h[i][s], projected[i][R + N + n], out);
    }
    out = fmaf(skip, x[i], sum_over<LANES>(out));
    if (row0 + i >= p.B) continue;
    store_floats<STATES>(p.new_state + (row(i) * E + e) * N + lane * STATES, h[i]);
    if (i % LANES == lane) {
      const float gate = z[i / LANES];
      p.y[row(i) * E + e] = from_float(out * gate * sigmoid(gate));
    }
  }
}
