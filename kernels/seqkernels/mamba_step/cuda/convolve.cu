// Convolution, SiLU, shifted state, and this block's share of x_proj: CHANNELS channels of ROWS rows of the batch.
//
// -D: CHANNELS a block, which divide E and THREADS; ROWS rows of the batch a block; TEAMS of threads, one an output of x_proj,
// that take 8 channels each, or 16, ...; THREADS; TENSOR_CORES 1 for x_proj on them.
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

constexpr int ITEMS = (ROWS * CHANNELS + THREADS - 1) / THREADS;  // (row, channel) pairs a thread convolves

#if TENSOR_CORES
static_assert(ELEMENT == 1 && ROWS >= 8 && ROWS <= 16 && CHANNELS % 16 == 0, "tiles of 16 rows and channels, bf16");
// x_proj on tensor cores. The signal keeps fp32's accuracy as the sum of three bf16 numbers; the weights are bf16 anyway.
struct Share {
  static constexpr int PARTS = 3, ROW = CHANNELS + 8;  // 16 bytes more: rows lie in other banks
  static constexpr int TILES = (J + 7) / 8, WARPS_HERE = THREADS / WARP, EACH = (TILES + WARPS_HERE - 1) / WARPS_HERE;
  static constexpr int STEPS = CHANNELS / 16;
  struct Shared { u16 part[PARTS][ROWS > 8 ? 16 : 8][ROW]; };
  u32 weight[EACH][STEPS][2];

  DEVICE static int tile(int i) { return threadIdx.x / WARP + i * WARPS_HERE; }
  DEVICE void load(const element* x_proj, int first) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    UNROLL
    for (int i = 0; i < EACH; i++) {
      const int j = tile(i) * 8 + g;
      UNROLL
      for (int s = 0; s < STEPS; s++)
        UNROLL
        for (int half = 0; half < 2; half++)
          weight[i][s][half] = j < J ? load_here((const u32*)(x_proj + (i64)j * E + first + 16 * s + 8 * half) + t) : 0;
    }
  }
  DEVICE static void put(Shared& shared, int row, int channel, float v) {
    UNROLL
    for (int k = 0; k < PARTS; k++) {
      const u16 part = from_float(v);
      shared.part[k][row][channel] = part;
      v -= to_float(part);
    }
  }
  // Rows of `partial` are J_PADDED apart.
  DEVICE void add_up(const Shared& shared, float* partial, int rows) const {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    UNROLL
    for (int i = 0; i < EACH; i++) {
      if (tile(i) >= TILES) break;
      float sums[4] = {0.f, 0.f, 0.f, 0.f};
      UNROLL
      for (int s = 0; s < STEPS; s++)
        UNROLL
        for (int k = PARTS - 1; k >= 0; k--) {  // small ones first
          const u32* low = (const u32*)&shared.part[k][g][16 * s] + t;
          u32 a[4] = {low[0], 0, low[4], 0};
          if constexpr (ROWS > 8) a[1] = low[8 * ROW / 2], a[3] = low[8 * ROW / 2 + 4];
          multiply_add(sums, a, weight[i][s]);
        }
      const int j = tile(i) * 8 + 2 * t;
      if (j >= J) continue;
      if (g < rows) *(float2*)(partial + (i64)g * J_PADDED + j) = make_float2(sums[0], sums[1]);
      if (g + 8 < rows) *(float2*)(partial + (i64)(g + 8) * J_PADDED + j) = make_float2(sums[2], sums[3]);
    }
  }
};
#else
// x_proj in fp32: a thread an output, of every row; TEAMS of threads share the channels.
struct Share {
  static constexpr int OUTPUTS = (J + WARP - 1) / WARP * WARP;  // threads of a team
  static constexpr int SLICE = CHANNELS / TEAMS;                // channels of a team
  static_assert(SLICE % 8 == 0 && SLICE * TEAMS == CHANNELS && TEAMS * OUTPUTS <= THREADS, "cut");
  struct Shared {
    float made[ROWS][CHANNELS];
    float sums[TEAMS][ROWS][OUTPUTS];
  };
  Piece weight[SLICE / 8];

  DEVICE static int team() { return threadIdx.x / OUTPUTS; }
  DEVICE void load(const element* x_proj, int first) {
    const int j = threadIdx.x % OUTPUTS;
    if (j >= J || team() >= TEAMS) return;
    UNROLL
    for (int c = 0; c < SLICE / 8; c++) weight[c].load_weights(x_proj + (i64)j * E + first + team() * SLICE + 8 * c);
  }
  DEVICE static void put(Shared& shared, int row, int channel, float v) { shared.made[row][channel] = v; }
  DEVICE void add_up(Shared& shared, float* partial, int rows) const {
    if (team() < TEAMS) {
      float mine[ROWS];
      UNROLL
      for (int row = 0; row < ROWS; row++) mine[row] = 0.f;
      UNROLL
      for (int c = 0; c < SLICE; c += 4) {
        const Piece& w = weight[c / 8];
        const float w0 = w[c % 8], w1 = w[c % 8 + 1], w2 = w[c % 8 + 2], w3 = w[c % 8 + 3];
        UNROLL
        for (int row = 0; row < ROWS; row++) {
          const float4 q = *(const float4*)&shared.made[row][team() * SLICE + c];
          mine[row] = fmaf(w3, q.w, fmaf(w2, q.z, fmaf(w1, q.y, fmaf(w0, q.x, mine[row]))));
        }
      }
      UNROLL
      for (int row = 0; row < ROWS; row++) shared.sums[team()][row][threadIdx.x % OUTPUTS] = mine[row];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * J; i += THREADS) {
      float sum = 0.f;
      UNROLL
      for (int t = 0; t < TEAMS; t++) sum += shared.sums[t][i / J][i % J];
      partial[(i64)(i / J) * J_PADDED + i % J] = sum;
    }
  }
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS) convolve(const __grid_constant__ ConvolveArgs p) {
  static_assert(E % CHANNELS == 0 && THREADS % CHANNELS == 0 && THREADS % WARP == 0, "cut");
  __shared__ __align__(16) Share::Shared shared;
  let_next_begin();
  const int first = blockIdx.x * CHANNELS, row0 = blockIdx.y * ROWS;
  const int rows = min(ROWS, p.B - row0);  // that exist
  const int channel = threadIdx.x % CHANNELS, e = first + channel;  // the same for every item of a thread

  Share share;
  share.load(p.x_proj, first);
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
    Share::put(shared, row, channel, sum);
    if (row >= rows) continue;
    float* new_conv_state = p.new_conv_state + ((i64)(row0 + row) * (W - 1)) * E + e;
    UNROLL
    for (int w = 0; w < W - 1; w++) new_conv_state[w * E] = old[i][w + 1];
    p.signal[(i64)(row0 + row) * E + e] = sum;
  }
  __syncthreads();
  share.add_up(shared, p.partial + ((i64)blockIdx.x * p.B + row0) * J_PADDED, rows);
}
