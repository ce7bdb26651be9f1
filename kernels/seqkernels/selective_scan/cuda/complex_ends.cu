// First pass of a complex scan whose sequence is cut over blocks: what each chunk does to a state, as an affine map (as
// ends.cu does it for real states; complex_carry.cu chains the chunks).
//
//   REVERSE 0   h[n] = exp(delta A[n]) h[n] + delta x B[n]                     the state, forward in time
//   REVERSE 1   r[n] = conj(exp(delta A[n])) (2 dy conj(C[n]) + r[n])          its adjoint, backward in time
//
// Compiled per variant by -D: LANES, PER_LANE, WARPS, MIN_BLOCKS, REVERSE.
#include "complex.cuh"

constexpr int ARRAYS = 2 + (REVERSE && HAS_GATE);
enum { DT, DRIVE, Z };  // DRIVE: x, or dout in reverse

struct ComplexEndsArgs {
  const element* dt;
  const element* drive;     // x, or dout in reverse
  const element* z;
  const Complex* bc;        // B, or C in reverse
  const Complex* a;         // (E, N)
  const float* dt_bias;     // (E)
  Complex* ends;            // (slots, E, N)
  float2* delta_sum;        // (slots, E): the sum, and what rounding took from it
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
  int channels_per_group;
};

struct Shared {
  alignas(16) Stage stage[ARRAYS];
  alignas(16) States bc[2];
  alignas(16) Plane delta;
  alignas(16) Plane drive;  // delta * x, or 2 dy
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

DEVICE void fetch_tile(Shared& s, const ComplexEndsArgs& p, const Chunk& chunk, int start, int channel0, int buffer) {
  const i64 row = chunk.row + start;
  const int rows = chunk.length - start;
  fetch_piece(s.stage[DT], p.dt + row * p.dt_stride + channel0, p.dt_stride, rows);
  fetch_piece(s.stage[DRIVE], p.drive + row * p.drive_stride + channel0, p.drive_stride, rows);
  if constexpr (ARRAYS == 3) fetch_piece(s.stage[ARRAYS - 1], p.z + row * p.z_stride + channel0, p.z_stride, rows);
  fetch_states(s.bc[buffer], p.bc + row * p.bc_stride + channel0 / p.channels_per_group * N, p.bc_stride, rows);
  copies_close();
}

DEVICE void prepare_tile(Shared& s, int rows) {
  if (!has_piece()) return;
  Pack<VEC> raw, z;
  Floats<VEC> drive;
  const Floats<VEC> delta = piece_delta(s.stage[DT], s.bias, rows);
  raw.load(s.stage[DRIVE][threadIdx.x]);
  if constexpr (ARRAYS == 3) z.load(s.stage[ARRAYS - 1][threadIdx.x]);
  UNROLL
  for (int k = 0; k < VEC; k++) {
    drive.v[k] = raw[k] * (REVERSE ? 2.f : delta[k]);
    if constexpr (ARRAYS == 3) drive.v[k] *= z[k] * sigmoid(z[k]);
  }
  delta.store(piece_of(s.delta));
  drive.store(piece_of(s.drive));
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) complex_chunk_ends(const __grid_constant__ ComplexEndsArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS, channel0 = blockIdx.x % blocks * CHANNELS;
  const i64 slot = blockIdx.x / blocks;
  const Chunk chunk = chunk_of_slot(p, slot);
  // Nobody needs the end of the chunk at which the walk over a sequence stops.
  if (chunk.length == 0 || (REVERSE ? chunk.first : chunk.last)) return;

  const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES;
  const i64 state = (i64)(channel0 + channel) * N + lane * PER_LANE;
  Complex h[PER_LANE];
  Rate a[PER_LANE];
  UNROLL
  for (int i = 0; i < PER_LANE; i++) { a[i] = rate_of(p.a[state + i]); h[i] = {0.f, 0.f}; }
  for (int i = threadIdx.x; i < CHANNELS; i += THREADS) s.bias[i] = p.dt_bias[channel0 + i];
  float sum = 0.f, sum_low = 0.f;  // a phase is the sum times A: over thousands of positions it needs more than 24 bits

  const int tiles = (chunk.length + TILE - 1) / TILE;
  const auto start_of = [&](int i) { return (REVERSE ? tiles - 1 - i : i) * TILE; };
  fetch_tile(s, p, chunk, start_of(0), channel0, 0);
  __syncthreads();
  for (int tile = 0; tile < tiles; tile++) {
    const int buffer = tile & 1;
    copies_wait();
    prepare_tile(s, chunk.length - start_of(tile));
    __syncthreads();
    if (tile + 1 < tiles) fetch_tile(s, p, chunk, start_of(tile + 1), channel0, buffer ^ 1);
    float tile_sum = 0.f;
#pragma unroll 4
    for (int step = 0; step < TILE; step++) {
      const int position = REVERSE ? TILE - 1 - step : step;
      const float delta = s.delta[position][channel], drive = s.drive[position][channel];
      Floats<2 * PER_LANE> bc;
      bc.load(&s.bc[buffer][position][lane * PER_LANE].re);
      tile_sum += delta;
      UNROLL
      for (int i = 0; i < PER_LANE; i++) {
        const Complex alpha = exp_of(delta, a[i]), v = {bc[2 * i], bc[2 * i + 1]};
        if constexpr (REVERSE) h[i] = conj(alpha) * fma(drive, conj(v), h[i]);
        else h[i] = fma(alpha, h[i], drive * v);
      }
    }
    const float added = tile_sum + sum_low, before = sum;
    sum = before + added;
    sum_low = added - (sum - before);
    __syncthreads();
  }
  UNROLL
  for (int i = 0; i < PER_LANE; i++) p.ends[slot * p.E * N + state + i] = h[i];
  if (lane == 0) p.delta_sum[slot * p.E + channel0 + channel] = make_float2(sum, sum_low);
}
