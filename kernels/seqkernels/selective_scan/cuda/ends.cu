// First pass of a scan whose sequence is cut over blocks: what each chunk does to a state, as an affine map.
//
// A chunk takes the state h to exp(A * sum delta) * h + end. This kernel computes `end` (the chunk run from a zero state)
// and `sum delta`; carry.cu then chains the chunks. One thread per channel, all 16 states in its registers.
//
//   REVERSE 0   h[n] = exp(delta A[n]) h[n] + delta x B[n]             the state, forward in time
//   REVERSE 1   r[n] = exp(delta A[n]) (dy C[n] + r[n])                its adjoint, backward in time; r is what a position
//               hands to the one before it, dy = dout * silu(z)
#include "common.cuh"

constexpr int CHANNELS = THREADS;
constexpr int VEC = 16 / (int)sizeof(element);
constexpr int ARRAYS = 2 + (REVERSE && HAS_GATE);
enum { DT, DRIVE, Z };  // DRIVE: x, or dout in reverse
using Work = Pieces<CHANNELS, THREADS, VEC>;
using Tile = TransposedTile<VEC>;
constexpr int ITEMS = Work::ITEMS;
constexpr int QUADS = TILE * STATES / 4;
constexpr int QUAD = 4 * (int)sizeof(element);
static_assert(THREADS >= QUADS, "one piece of B or C per thread");

struct EndsArgs {
  const element* dt;
  const element* drive;     // x, or dout in reverse
  const element* z;
  const element* bc;        // B, or C in reverse
  const float* a;           // (E, N)
  const float* dt_bias;     // (E)
  float* ends;              // (slots, E, N)
  float* delta_sum;         // (slots, E)
  const i64* cu_seqlens;
  i64 length;
  i64 dt_stride;
  i64 drive_stride;
  i64 z_stride;
  i64 bc_stride;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int N;
  int first_state;
  int channels_per_group;
};

struct Shared {
  alignas(16) char stage[ARRAYS][ITEMS][THREADS][16];
  alignas(16) char bc_stage[QUADS][QUAD];
  alignas(16) float delta[Tile::floats(CHANNELS)];
  alignas(16) float drive[Tile::floats(CHANNELS)];  // delta * x, or dy
  alignas(16) float bc[TILE * STATES];
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

DEVICE void fetch_tile(Shared& s, const EndsArgs& p, i64 row, int channel0, int rows) {
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int position = Work::position(item), column = channel0 + Work::channel(item);
    const bool valid = position < rows;
    copy_async<16>(s.stage[DT][item][threadIdx.x], p.dt + (row + position) * p.dt_stride + column, valid);
    copy_async<16>(s.stage[DRIVE][item][threadIdx.x], p.drive + (row + position) * p.drive_stride + column, valid);
    if constexpr (ARRAYS == 3)
      copy_async<16>(s.stage[ARRAYS - 1][item][threadIdx.x], p.z + (row + position) * p.z_stride + column, valid);
  }
  const int quad = threadIdx.x;
  if (quad < QUADS)
    copy_async<QUAD>(s.bc_stage[quad], p.bc + (row + quad / 4) * p.bc_stride + (channel0 / p.channels_per_group) * (i64)p.N +
                     p.first_state + quad % 4 * 4, quad / 4 < rows);
  copies_close();
}

DEVICE void prepare_tile(Shared& s, int rows) {
  Pack<VEC> raw[ARRAYS][ITEMS];
  Floats<VEC> bias[ITEMS];
  Pack<4> bc;
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    UNROLL
    for (int array = 0; array < ARRAYS; array++) raw[array][item].load(s.stage[array][item][threadIdx.x]);
    bias[item].load(s.bias + Work::channel(item));
  }
  if (threadIdx.x < QUADS) bc.load(s.bc_stage[threadIdx.x]);
  float delta[ITEMS][VEC], drive[ITEMS][VEC];
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    UNROLL
    for (int k = 0; k < VEC; k++) {
      delta[item][k] = to_delta(raw[DT][item][k] + bias[item][k]);
      drive[item][k] = raw[DRIVE][item][k];
      if constexpr (!REVERSE) drive[item][k] *= delta[item][k];
      if constexpr (ARRAYS == 3) { const float z = raw[ARRAYS - 1][item][k]; drive[item][k] *= z * sigmoid(z); }
    }
    if (Work::position(item) >= rows) {  // past the end: the identity
      UNROLL
      for (int k = 0; k < VEC; k++) delta[item][k] = 0.f;
    }
  }
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int at = Tile::index(Work::channel(item), Work::position(item));
    UNROLL
    for (int k = 0; k < VEC; k++) { s.delta[at + k * Tile::ROW] = delta[item][k]; s.drive[at + k * Tile::ROW] = drive[item][k]; }
  }
  if (threadIdx.x < QUADS) *(float4*)(s.bc + threadIdx.x * 4) = make_float4(bc[0], bc[1], bc[2], bc[3]);
}

DEVICE void walk_4(const Shared& s, float* h, const float* a2, float& delta_sum, int at, int position) {
  Floats<4> delta, drive;
  delta.load(s.delta + at + position);
  drive.load(s.drive + at + position);
  delta_sum += (delta[0] + delta[1]) + (delta[2] + delta[3]);
  UNROLL
  for (int step = 0; step < 4; step++) {
    const int t = REVERSE ? 3 - step : step;
    UNROLL
    for (int n = 0; n < STATES; n += 4) {
      Floats<4> bc;
      bc.load(s.bc + (position + t) * STATES + n);
      UNROLL
      for (int k = 0; k < 4; k++) {
        const float decay = exp2_fast(delta[t] * a2[n + k]);
        if constexpr (REVERSE) h[n + k] = decay * fmaf(drive[t], bc[k], h[n + k]);
        else h[n + k] = fmaf(decay, h[n + k], drive[t] * bc[k]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) chunk_ends(const __grid_constant__ EndsArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS;
  const i64 slot = blockIdx.x / blocks;
  const int channel0 = blockIdx.x % blocks * CHANNELS, channel = channel0 + threadIdx.x;
  const Chunk chunk = chunk_of_slot(p, slot);
  // Nobody needs the end of the chunk at which the walk over a sequence stops.
  if (chunk.length == 0 || (REVERSE ? chunk.first : chunk.last)) return;

  float a2[STATES], h[STATES], delta_sum = 0.f;
  UNROLL
  for (int n = 0; n < STATES; n++) { a2[n] = p.a[(i64)channel * p.N + p.first_state + n] * LOG2E; h[n] = 0.f; }
  s.bias[threadIdx.x] = p.dt_bias[channel];

  const int tiles = (chunk.length + TILE - 1) / TILE;
  const auto start_of = [&](int i) { return (REVERSE ? tiles - 1 - i : i) * TILE; };
  fetch_tile(s, p, chunk.row + start_of(0), channel0, chunk.length - start_of(0));
  __syncthreads();
  for (int i = 0; i < tiles; i++) {
    copies_wait();
    prepare_tile(s, chunk.length - start_of(i));
    __syncthreads();
    if (i + 1 < tiles) fetch_tile(s, p, chunk.row + start_of(i + 1), channel0, chunk.length - start_of(i + 1));
    const int at = Tile::index(threadIdx.x, 0);
#pragma unroll 1
    for (int position = 0; position < TILE; position += 4) walk_4(s, h, a2, delta_sum, at, REVERSE ? TILE - 4 - position : position);
    __syncthreads();
  }
  UNROLL
  for (int n = 0; n < STATES; n++) p.ends[(slot * p.E + channel) * p.N + p.first_state + n] = h[n];
  if (p.first_state == 0) p.delta_sum[slot * p.E + channel] = delta_sum;
}
