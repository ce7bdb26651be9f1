// Convolution, SiLU, shifted state, and this block's share of x_proj: CHANNELS channels of ROWS rows of the batch.
//
// -D: CHANNELS a block, a multiple of 8 that divides E; ROWS rows of the batch a block; THREADS.
#include "common.cuh"

struct ConvolveArgs {
  const element* xz;         // (B, 2E), rows stride_xz apart
  const float* conv_weight;  // (E, W)
  const float* conv_bias;    // (E); null: none
  const element* x_proj;     // (J, E)
  const float* conv_state;   // (B, W-1, E), may be new_conv_state
  float* new_conv_state;
  float* signal;             // (B, E)
  float* partial;            // (E / CHANNELS, B, J_PADDED)
  i64 stride_xz;
  int B;
};

constexpr int OUTPUTS = (J + WARP - 1) / WARP * WARP;           // threads that share a row: one an output
constexpr int TEAMS = THREADS / OUTPUTS;                        // rows at a time
constexpr int ITEMS = (ROWS * CHANNELS + THREADS - 1) / THREADS;  // (row, channel) pairs a thread convolves

extern "C" __global__ void __launch_bounds__(THREADS) convolve(const __grid_constant__ ConvolveArgs p) {
  static_assert(CHANNELS % 8 == 0 && E % CHANNELS == 0 && TEAMS >= 1 && THREADS % CHANNELS == 0, "cut");
  __shared__ __align__(16) float made[ROWS][CHANNELS];
  let_next_begin();
  const int first = blockIdx.x * CHANNELS, row0 = blockIdx.y * ROWS;
  const int j = threadIdx.x % OUTPUTS, team = threadIdx.x / OUTPUTS;
  const bool projects = j < J && team < TEAMS;
  const int channel = threadIdx.x % CHANNELS, e = first + channel;  // the same for every item of a thread

  Piece share[CHANNELS / 8];
  UNROLL
  for (int c = 0; c < CHANNELS / 8; c++)
    if (projects) share[c].load_weights(p.x_proj + (i64)j * E + first + 8 * c);
  float taps[W];
  UNROLL
  for (int w = 0; w < W; w++) taps[w] = load_here(p.conv_weight + (i64)e * W + w);
  const float bias = p.conv_bias ? load_here(p.conv_bias + e) : 0.f;

  wait_for_previous();
  float old[ITEMS][W];
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    const i64 b = row0 + (threadIdx.x + i * THREADS) / CHANNELS;
    if (b >= p.B || b >= row0 + ROWS) continue;
    UNROLL
    for (int w = 0; w < W - 1; w++) old[i][w] = load_here(p.conv_state + (b * (W - 1) + w) * E + e);
    old[i][W - 1] = to_float(load_here(p.xz + b * p.stride_xz + e));
  }
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    const int row = (threadIdx.x + i * THREADS) / CHANNELS;
    const i64 b = row0 + row;
    if (row >= ROWS) continue;
    float sum = bias;
    UNROLL
    for (int w = 0; w < W; w++) sum = fmaf(taps[w], old[i][w], sum);
    sum *= sigmoid(sum);
    made[row][channel] = b < p.B ? sum : 0.f;
    if (b >= p.B) continue;
    UNROLL
    for (int w = 0; w < W - 1; w++) p.new_conv_state[(b * (W - 1) + w) * E + e] = old[i][w + 1];
    p.signal[b * E + e] = sum;
  }
  __syncthreads();
  if (!projects) return;
  for (int row = team; row < ROWS && row0 + row < p.B; row += TEAMS) {
    float sums[2] = {0.f, 0.f};  // two chains of additions take half the time of one
    UNROLL
    for (int c = 0; c < CHANNELS; c += 4) {
      const float4 x = *(const float4*)&made[row][c];
      sums[0] = fmaf(share[c / 8][c % 8], x.x, sums[0]);
      sums[1] = fmaf(share[c / 8][c % 8 + 1], x.y, sums[1]);
      sums[0] = fmaf(share[c / 8][c % 8 + 2], x.z, sums[0]);
      sums[1] = fmaf(share[c / 8][c % 8 + 3], x.w, sums[1]);
    }
    p.partial[((i64)blockIdx.x * p.B + row0 + row) * J_PADDED + j] = sums[0] + sums[1];
  }
}
