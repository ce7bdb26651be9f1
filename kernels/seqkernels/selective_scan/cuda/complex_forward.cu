// The complex scan, forward: one block walks one chunk for CHANNELS channels and all N states (equations: complex.cuh).
//
// As in forward.cu a block plays two roles in turn, on tiles of 16 positions: elementwise (convert, delta, w, gate) and scan
// (LANES lanes per channel, states in registers). Sine and cosine make a position so dear that reading delta and w
// untransposed costs nothing beside it. The next tile's copies run during the scan.
//
// Compiled per variant by -D: LANES, PER_LANE, WARPS, MIN_BLOCKS; SAVE 1: leave the state before each tile.
#include "complex.cuh"

constexpr int ARRAYS = 2 + HAS_GATE;
enum { X, DT, Z };

struct ComplexForwardArgs {
  const element* x;         // row stride x_stride, channels adjacent; dt and z alike
  const element* dt;
  const element* z;
  const Complex* b;         // row stride bc_stride
  const Complex* c;
  const Complex* a;         // (E, N)
  const float* d;           // (E)
  const float* dt_bias;     // (E)
  const Complex* h_in;      // (slots, E, N) state before each chunk, or null: zero
  element* out;             // (rows, E)
  Complex* states;          // (tiles, E, N)
  Complex* h_final;         // (sequences, E, N)
  const i64* cu_seqlens;
  i64 length;
  i64 x_stride;
  i64 dt_stride;
  i64 z_stride;
  i64 bc_stride;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int channels_per_group;
};

struct Shared {
  alignas(16) Stage stage[2][ARRAYS];  // two tiles: the last one's x and z are needed for the output
  alignas(16) States b[2];
  alignas(16) States c[2];
  alignas(16) Plane delta;
  alignas(16) Plane w;                 // overwritten by y position by position
  alignas(16) float d[CHANNELS];
  alignas(16) float bias[CHANNELS];
};
// The host reads the size of this symbol to know how much shared memory to reserve, in units of 16 bytes.
extern "C" __device__ char shared_units[sizeof(Shared) / 16];

DEVICE void fetch_tile(Shared& s, const ComplexForwardArgs& p, const Chunk& chunk, int start, int channel0, int buffer) {
  const i64 row = chunk.row + start, bc = row * p.bc_stride + channel0 / p.channels_per_group * N;
  const int rows = chunk.length - start;
  fetch_piece(s.stage[buffer][X], p.x + row * p.x_stride + channel0, p.x_stride, rows);
  fetch_piece(s.stage[buffer][DT], p.dt + row * p.dt_stride + channel0, p.dt_stride, rows);
  if constexpr (HAS_GATE) fetch_piece(s.stage[buffer][ARRAYS - 1], p.z + row * p.z_stride + channel0, p.z_stride, rows);
  fetch_states(s.b[buffer], p.b + bc, p.bc_stride, rows);
  fetch_states(s.c[buffer], p.c + bc, p.bc_stride, rows);
  copies_close();
}

DEVICE void prepare_tile(Shared& s, int buffer, int rows) {
  if (!has_piece()) return;
  Pack<VEC> x;
  Floats<VEC> w;
  const Floats<VEC> delta = piece_delta(s.stage[buffer][DT], s.bias, rows);
  x.load(s.stage[buffer][X][threadIdx.x]);
  UNROLL
  for (int k = 0; k < VEC; k++) w.v[k] = delta[k] * x[k];
  delta.store(piece_of(s.delta));
  w.store(piece_of(s.w));
}

DEVICE void finish_tile(Shared& s, const ComplexForwardArgs& p, int buffer, i64 row, int rows, int channel0) {
  if (!has_piece() || piece_position() >= rows) return;
  Floats<VEC> y, d;
  Pack<VEC> x, z;
  y.load(piece_of(s.w));
  d.load(s.d + piece_column());
  x.load(s.stage[buffer][X][threadIdx.x]);
  if constexpr (HAS_GATE) z.load(s.stage[buffer][ARRAYS - 1][threadIdx.x]);
  UNROLL
  for (int k = 0; k < VEC; k++) {
    y.v[k] = fmaf(2.f, y[k], d[k] * x[k]);
    if constexpr (HAS_GATE) y.v[k] *= z[k] * sigmoid(z[k]);
  }
  Pack<VEC>::from(y.v).store(p.out + (row + piece_position()) * p.E + channel0 + piece_column());
}

// Four positions; the lane's states, and y of position `lane & 3` in its place.
DEVICE void scan_4(Shared& s, Complex* h, const Rate* a, int buffer, int channel, int lane, int position) {
  float y[4];
  UNROLL
  for (int t = 0; t < 4; t++) {
    const float delta = s.delta[position + t][channel], w = s.w[position + t][channel];
    Floats<2 * PER_LANE> b, c;
    b.load(&s.b[buffer][position + t][lane * PER_LANE].re);
    c.load(&s.c[buffer][position + t][lane * PER_LANE].re);
    y[t] = 0.f;
    UNROLL
    for (int i = 0; i < PER_LANE; i++) {
      h[i] = fma(exp_of(delta, a[i]), h[i], w * Complex{b[2 * i], b[2 * i + 1]});
      y[t] = real_of_product(h[i], {c[2 * i], c[2 * i + 1]}, y[t]);
    }
  }
  const float sum = sum_over_lanes(y, lane);
  __syncwarp();  // the lanes of a channel have all read w here
  if (lane < 4) s.w[position + lane][channel] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) complex_forward_scan(const __grid_constant__ ComplexForwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *(Shared*)memory;
  const int blocks = p.E / CHANNELS, channel0 = blockIdx.x % blocks * CHANNELS;
  const i64 slot = blockIdx.x / blocks;
  const Chunk chunk = chunk_of_slot(p, slot);
  if (chunk.length == 0) return;

  const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES;
  const i64 state = (i64)(channel0 + channel) * N + lane * PER_LANE;
  Complex h[PER_LANE];
  Rate a[PER_LANE];
  UNROLL
  for (int i = 0; i < PER_LANE; i++) {
    a[i] = rate_of(p.a[state + i]);
    h[i] = p.h_in ? p.h_in[slot * p.E * N + state + i] : Complex{0.f, 0.f};
  }
  for (int i = threadIdx.x; i < CHANNELS; i += THREADS) { s.d[i] = p.d[channel0 + i]; s.bias[i] = p.dt_bias[channel0 + i]; }

  fetch_tile(s, p, chunk, 0, channel0, 0);
  __syncthreads();
  for (int start = 0, buffer = 0; start < chunk.length; start += TILE, buffer ^= 1) {
    const int rows = chunk.length - start;  // of this tile and after it
    copies_wait();
    prepare_tile(s, buffer, rows);
    __syncthreads();
    if (rows > TILE) fetch_tile(s, p, chunk, start + TILE, channel0, buffer ^ 1);
#if SAVE
    UNROLL
    for (int i = 0; i < PER_LANE; i++) p.states[(chunk.tile + start / TILE) * p.E * N + state + i] = h[i];
#endif
#pragma unroll 1
    for (int position = 0; position < TILE; position += 4) scan_4(s, h, a, buffer, channel, lane, position);
    __syncthreads();
    // No barrier after this: prepare_tile overwrites only the cells of s.w that the same thread reads here.
    finish_tile(s, p, buffer, chunk.row + start, rows, channel0);
  }
  if (chunk.last) {
    UNROLL
    for (int i = 0; i < PER_LANE; i++) p.h_final[(i64)chunk.sequence * p.E * N + state + i] = h[i];
  }
}
