// Convolution, SiLU, shifted state, and this block's share of x_proj: CHANNELS channels of ROWS rows of the batch.
//
// -D: CHANNELS a block, which divide E and THREADS; ROWS rows of the batch a block; TEAMS of threads, one an output of x_proj,
// that take 8 channels each, or 16, ...; THREADS.
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

constexpr int OUTPUTS = (J + WARP - 1) / WARP * WARP;  // threads of a team: one an output
constexpr int SLICE = CHANNELS / TEAMS;                 // channels of a team, for every row
constexpr int ITEMS = (ROWS * CHANNELS + THREADS - 1) / THREADS;  // (row, channel) pairs a thread convolves

extern "C" __global__ void __launch_bounds__(THREADS) convolve(const __grid_constant__ ConvolveArgs p) {
  static_assert(E % CHANNELS == 0 && THREADS % CHANNELS == 0 && SLICE % 8 == 0 && SLICE * TEAMS == CHANNELS, "cut");
  static_assert(TEAMS * OUTPUTS <= THREADS && THREADS % WARP == 0, "cut");
  __shared__ __align__(16) float made[ROWS][CHANNELS];
  __shared__ float sums[TEAMS][ROWS][OUTPUTS];
  let_next_begin();
  const int first = blockIdx.x * CHANNELS, row0 = blockIdx.y * ROWS;
  const int rows = min(ROWS, p.B - row0);  // that exist
  const int j = threadIdx.x % OUTPUTS, team = threadIdx.x / OUTPUTS;
  const int channel = threadIdx.x % CHANNELS, e = first + channel;  // the same for every item of a thread

  Piece share[SLICE / 8];
  if (j < J && team < TEAMS) {
    UNROLL
    for (int c = 0; c < SLICE / 8; c++) share[c].load_weights(p.x_proj + (i64)j * E + first + team * SLICE + 8 * c);
  }
  float taps[W];
  UNROLL
  for (int w = 0; w < W; w++) taps[w] = load_here(p.conv_weight + (i64)e * W + w);
  const float bias = p.conv_bias ? load_here(p.conv_bias + e) : 0.f;

  wait_for_previous();
  const element* x = p.xz + row0 * p.stride_xz + e;
  const float* conv_state = p.conv_state + (i64)row0 * (W - 1) * E + e;
  float old[ITEMS][W];
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    const int row = (threadIdx.x + i * THREADS) / CHANNELS;
    if (row >= rows) continue;
    UNROLL
    for (int w = 0; w < W - 1; w++) old[i][w] = load_here(conv_state + (row * (W - 1) + w) * E);
    old[i][W - 1] = to_float(load_here(x + row * p.stride_xz));
  }
  UNROLL
  for (int i = 0; i < ITEMS; i++) {
    const int row = (threadIdx.x + i * THREADS) / CHANNELS;
    if (row >= ROWS) continue;
    float sum = bias;
    UNROLL
    for (int w = 0; w < W; w++) sum = fmaf(taps[w], old[i][w], sum);
    sum = row < rows ? sum * sigmoid(sum) : 0.f;
    made[row][channel] = sum;
    if (row >= rows) continue;
    float* new_conv_state = p.new_conv_state + ((i64)(row0 + row) * (W - 1)) * E + e;
    UNROLL
    for (int w = 0; w < W - 1; w++) new_conv_state[w * E] = old[i][w + 1];
    p.signal[(i64)(row0 + row) * E + e] = sum;
  }
  __syncthreads();
  if (team < TEAMS) {
    float mine[ROWS];
    UNROLL
    for (int row = 0; row < ROWS; row++) mine[row] = 0.f;
    UNROLL
    for (int c = 0; c < SLICE; c += 4) {
      const Piece& w = share[c / 8];
      const float w0 = w[c % 8], w1 = w[c % 8 + 1], w2 = w[c % 8 + 2], w3 = w[c % 8 + 3];
      UNROLL
      for (int row = 0; row < ROWS; row++) {
        const float4 q = *(const float4*)&made[row][team * SLICE + c];
        mine[row] = fmaf(w3, q.w, fmaf(w2, q.z, fmaf(w1, q.y, fmaf(w0, q.x, mine[row]))));
      }
    }
    UNROLL
    for (int row = 0; row < ROWS; row++) sums[team][row][j] = mine[row];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * J; i += THREADS) {
    float sum = 0.f;
    UNROLL
    for (int t = 0; t < TEAMS; t++) sum += sums[t][i / J][i % J];
    p.partial[((i64)blockIdx.x * p.B + row0 + i / J) * J_PADDED + i % J] = sum;
  }
}
