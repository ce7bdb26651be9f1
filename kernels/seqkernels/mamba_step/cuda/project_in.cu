// First kernel of a decode step of a whole block, for few rows: residual add, RMS norm, in_proj, convolution, SiLU, and this
// block's share of x_proj. A warp owns ROWS rows of in_proj and does the norm for itself, so nothing is exchanged before
// x_proj. The first half of the blocks makes the signal x, the second half the gate z.
//
// -D: BATCH rows of activations, ROWS rows of in_proj a warp, WARPS warps a block; WARPS * ROWS is a multiple of 8 and
// divides E; BATCH * ROWS <= 32.
#include "common.cuh"

struct InputArgs {
  const element* x;           // (BATCH, D)
  const float* residual;      // (BATCH, D); null: none
  const float* norm_weight;   // (D)
  const element* in_proj;     // (2E, D)
  const element* in_bias;     // (2E); null: none
  const float* conv_weight;   // (E, W)
  const float* conv_bias;     // (E); null: none
  const element* x_proj;      // (J, E)
  const float* conv_state;    // (BATCH, W-1, E), may be new_conv_state
  float* new_conv_state;
  float* new_residual;        // (BATCH, D)
  float* signal;              // (BATCH, E)
  float* gate;                // (BATCH, E)
  float* partial;             // (E / (WARPS * ROWS), BATCH, J_PADDED)
  float eps;
};

constexpr int THREADS = WARPS * WARP;
constexpr int CHANNELS = WARPS * ROWS;
constexpr int X_PROJ_ROWS = (J + THREADS - 1) / THREADS;  // a thread
typedef Dealt<D> Model;

extern "C" __global__ void __launch_bounds__(THREADS) project_in(const __grid_constant__ InputArgs p) {
  static_assert(CHANNELS % 8 == 0 && E % CHANNELS == 0 && BATCH * ROWS <= WARP, "cut");
  __shared__ float made[BATCH][CHANNELS];
  let_next_begin();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int first = blockIdx.x * CHANNELS, row0 = first + warp * ROWS;
  const bool makes_signal = first < E;

  Piece weight[ROWS][Model::PIECES];
  float scale[Model::PIECES][8];
  UNROLL
  for (int i = 0; i < Model::PIECES; i++) {
    const bool inside = Model::inside(i);
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      if (inside) weight[r][i].load_weights(p.in_proj + (i64)(row0 + r) * D + Model::start(i));
      else weight[r][i].clear();
    }
    UNROLL
    for (int k = 0; k < 8; k += 4) {
      const uint4 q = inside ? load_here((const void*)(p.norm_weight + Model::start(i) + k)) : make_uint4(0, 0, 0, 0);
      scale[i][k] = __uint_as_float(q.x); scale[i][k + 1] = __uint_as_float(q.y);
      scale[i][k + 2] = __uint_as_float(q.z); scale[i][k + 3] = __uint_as_float(q.w);
    }
  }
  Piece share[X_PROJ_ROWS][CHANNELS / 8];
  if (makes_signal) {
    UNROLL
    for (int i = 0; i < X_PROJ_ROWS; i++) {
      const int j = threadIdx.x + i * THREADS;
      UNROLL
      for (int c = 0; c < CHANNELS / 8; c++)
        if (j < J) share[i][c].load_weights(p.x_proj + (i64)j * E + first + 8 * c);
    }
  }
  // Lane i finishes row i % ROWS of the warp's for batch row i / ROWS.
  const int own = row0 + lane % ROWS, own_b = lane / ROWS;
  const bool finishes = lane < BATCH * ROWS;
  float taps[W], bias = 0.f, conv_bias = 0.f;
  if (finishes) {
    if (p.in_bias) bias = to_float(load_here(p.in_bias + own));
    if (makes_signal) {
      UNROLL
      for (int w = 0; w < W; w++) taps[w] = load_here(p.conv_weight + (i64)own * W + w);
      if (p.conv_bias) conv_bias = load_here(p.conv_bias + own);
    }
  }

  wait_for_previous();
  float old[W];
  const i64 spot = (i64)own_b * (W - 1) * E + own;
  if (finishes && makes_signal) {
    UNROLL
    for (int w = 0; w < W - 1; w++) old[w] = load_here(p.conv_state + spot + (i64)w * E);
  }
  float total[BATCH][Model::PIECES][8];
  UNROLL
  for (int b = 0; b < BATCH; b++) {
    UNROLL
    for (int i = 0; i < Model::PIECES; i++) {
      const i64 at = (i64)b * D + Model::start(i);
      Piece x;
      x.clear();
      if (Model::inside(i)) x.load(p.x + at);
      UNROLL
      for (int k = 0; k < 8; k++) total[b][i][k] = x[k];
      if (p.residual && Model::inside(i)) {
        UNROLL
        for (int k = 0; k < 8; k += 4) {
          const float4 q = load_quad_here(p.residual + at + k);
          total[b][i][k] += q.x; total[b][i][k + 1] += q.y; total[b][i][k + 2] += q.z; total[b][i][k + 3] += q.w;
        }
      }
    }
  }
  float result = 0.f;
  UNROLL
  for (int b = 0; b < BATCH; b++) {
    float squares = 0.f;
    float sums[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) sums[r] = 0.f;
    UNROLL
    for (int i = 0; i < Model::PIECES; i++) {
      if (blockIdx.x == b && warp == 0 && Model::inside(i)) {
        UNROLL
        for (int k = 0; k < 8; k += 4)
          *(float4*)(p.new_residual + (i64)b * D + Model::start(i) + k) =
              make_float4(total[b][i][k], total[b][i][k + 1], total[b][i][k + 2], total[b][i][k + 3]);
      }
      UNROLL
      for (int k = 0; k < 8; k++) {
        const float v = total[b][i][k], scaled = v * scale[i][k];
        squares = fmaf(v, v, squares);
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[r] = fmaf(weight[r][i][k], scaled, sums[r]);
      }
    }
    const float inverse_rms = 1.f / sqrtf(sum_over<WARP>(squares) / D + p.eps);
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      const float sum = sum_over<WARP>(sums[r]) * inverse_rms;
      if (lane == b * ROWS + r) result = sum;
    }
  }
  result += bias;
  if (!makes_signal) {
    if (finishes) p.gate[(i64)own_b * E + own - E] = result;
    return;
  }
  if (finishes) {
    old[W - 1] = result;
    float sum = conv_bias;
    UNROLL
    for (int w = 0; w < W; w++) sum = fmaf(taps[w], old[w], sum);
    UNROLL
    for (int w = 0; w < W - 1; w++) p.new_conv_state[spot + (i64)w * E] = old[w + 1];
    sum *= sigmoid(sum);
    p.signal[(i64)own_b * E + own] = sum;
    made[own_b][warp * ROWS + lane % ROWS] = sum;
  }
  __syncthreads();
  UNROLL
  for (int i = 0; i < X_PROJ_ROWS; i++) {
    const int j = threadIdx.x + i * THREADS;
    if (j >= J) break;
    UNROLL
    for (int b = 0; b < BATCH; b++) {
      float sum = 0.f;
      UNROLL
      for (int c = 0; c < CHANNELS; c++) sum = fmaf(share[i][c / 8][c % 8], made[b][c], sum);
      p.partial[((i64)blockIdx.x * BATCH + b) * J_PADDED + j] = sum;
    }
  }
}
