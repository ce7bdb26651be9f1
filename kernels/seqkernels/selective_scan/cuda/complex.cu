// The scan with complex A, B, C at any size (equations: complex.cuh). Written to be right and short, not fast; complex_forward.cu
// and complex_backward.cu take the usual sizes. A warp walks one channel of one sequence, lanes hold the states n = lane,
// lane + 32, ...; any E and N, nothing is padded.
//
// Compiled per variant by -D: PER_LANE (states per lane), SAVE (0 or 1: states at tile starts), WARPS (channels per block).
#include "complex.cuh"

constexpr int THREADS = WARPS * WARP;

DEVICE Complex exp_of(Complex a) {
  float sine, cosine;
  sincosf(a.im, &sine, &cosine);
  return expf(a.re) * Complex{cosine, sine};
}

DEVICE float warp_sum(float v) {
  UNROLL
  for (int mask = WARP / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

DEVICE float element_to_float(const element* from) {
#if ELEMENT == 0
  return *from;
#else
  return word_to_float(*from, 0);
#endif
}
DEVICE void float_to_element(element* to, float v) {
#if ELEMENT == 0
  *to = v;
#else
  *to = (u16)floats_to_word(v, 0.f);
#endif
}

struct ComplexArgs {
  const element* x;         // row stride x_stride; dt and z alike
  const element* dt;
  const element* z;
  const Complex* a;         // (E, N)
  const Complex* b;         // (rows, groups, N)
  const Complex* c;
  const float* d;
  const float* dt_bias;
  const Complex* start;     // (sequences, E, N): initial state, in the backward pass gradient of the final one; or null
  Complex* states;          // (tiles, E, N) at tile starts
  Complex* end;             // (sequences, E, N): final state, in the backward pass gradient of the initial one; or null
  element* out;             // (rows, E)
  const element* dout;      // from here on: backward pass only
  element* dx;
  element* ddt;
  element* dz;
  Complex* db_partial;      // (blocks of channels, rows, N)
  Complex* dc_partial;
  Complex* da_partial;      // (sequences, E, N)
  float* dd_partial;        // (sequences, E)
  float* dbias_partial;
  const i64* cu_seqlens;
  i64 length;
  i64 rows;
  i64 x_stride;
  i64 dt_stride;
  i64 z_stride;
  int sequences;
  int chunks;
  int chunk_length;
  int E;
  int N;
  int groups;
};

// The warp's channel and sequence, and its lanes' states; padding lanes hold zeros everywhere.
struct Walker {
  Chunk chunk;
  int channel, group, block, lane;
  bool active;
  Complex a[PER_LANE], h[PER_LANE];

  DEVICE Walker(const ComplexArgs& p) {
    const int per_group = p.E / p.groups, blocks = (per_group + WARPS - 1) / WARPS;  // a block stays within a group
    block = blockIdx.x % (blocks * p.groups);
    chunk = chunk_of_slot(p, blockIdx.x / (blocks * p.groups));
    group = block / blocks;
    const int within = block % blocks * WARPS + threadIdx.x / WARP;
    active = within < per_group;
    channel = group * per_group + (active ? within : 0);
    lane = threadIdx.x % WARP;
    UNROLL
    for (int i = 0; i < PER_LANE; i++) {
      a[i] = has(p, i) ? p.a[(i64)channel * p.N + state(i)] : Complex{0.f, 0.f};
      h[i] = p.start && has(p, i) ? p.start[at_state(p, i)] : Complex{0.f, 0.f};
    }
  }
  DEVICE int state(int i) const { return lane + i * WARP; }
  DEVICE bool has(const ComplexArgs& p, int i) const { return active && state(i) < p.N; }
  DEVICE i64 at_state(const ComplexArgs& p, int i) const { return ((i64)chunk.sequence * p.E + channel) * p.N + state(i); }
  DEVICE Complex load(const ComplexArgs& p, const Complex* bc, i64 row, int i) const {
    return has(p, i) ? bc[(row * p.groups + group) * p.N + state(i)] : Complex{0.f, 0.f};
  }
};

struct Scalars {  // of one (row, channel)
  float x, delta, z;
  DEVICE Scalars(const ComplexArgs& p, const Walker& w, i64 row) {
    x = element_to_float(p.x + row * p.x_stride + w.channel);
    delta = to_delta(element_to_float(p.dt + row * p.dt_stride + w.channel) + p.dt_bias[w.channel]);
    z = HAS_GATE ? element_to_float(p.z + row * p.z_stride + w.channel) : 0.f;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) complex_forward(const __grid_constant__ ComplexArgs p) {
  Walker w(p);
  const float d = p.d[w.channel];
  for (int t = 0; t < w.chunk.length; t++) {
    const i64 row = w.chunk.row + t;
    if (SAVE && t % TILE == 0) {
      UNROLL
      for (int i = 0; i < PER_LANE; i++)
        if (w.has(p, i)) p.states[((w.chunk.tile + t / TILE) * p.E + w.channel) * p.N + w.state(i)] = w.h[i];
    }
    const Scalars s(p, w, row);
    float sum = 0.f;
    UNROLL
    for (int i = 0; i < PER_LANE; i++) {
      w.h[i] = exp_of(s.delta * w.a[i]) * w.h[i] + (s.delta * s.x) * w.load(p, p.b, row, i);
      sum += (w.load(p, p.c, row, i) * w.h[i]).re;
    }
    float y = 2.f * warp_sum(sum) + d * s.x;
    if (HAS_GATE) y *= s.z * sigmoid(s.z);
    if (w.lane == 0 && w.active) float_to_element(p.out + row * p.E + w.channel, y);
  }
  UNROLL
  for (int i = 0; i < PER_LANE; i++)
    if (w.has(p, i)) p.end[w.at_state(p, i)] = w.h[i];
}

// What the block's channels add to dB and dC of one position: summed over its warps in a fixed order.
DEVICE void store_bc(const ComplexArgs& p, const Walker& w, i64 row, const Complex* db, const Complex* dc) {
  __shared__ Complex sums[2][WARPS][PER_LANE * WARP];
  const int warp = threadIdx.x / WARP;
  UNROLL
  for (int i = 0; i < PER_LANE; i++) { sums[0][warp][w.state(i)] = db[i]; sums[1][warp][w.state(i)] = dc[i]; }
  __syncthreads();
  for (int n = threadIdx.x; n < 2 * p.N; n += THREADS) {
    const int which = n >= p.N, state = which ? n - p.N : n;
    Complex sum = sums[which][0][state];
    for (int i = 1; i < WARPS; i++) sum = sum + sums[which][i][state];
    (which ? p.dc_partial : p.db_partial)[(w.block * p.rows + row) * p.N + state] = sum;
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS) complex_backward(const __grid_constant__ ComplexArgs p) {
  Walker w(p);
  Complex r[PER_LANE], da[PER_LANE];  // the walker's h starts as the gradient of the final state
  UNROLL
  for (int i = 0; i < PER_LANE; i++) { r[i] = w.h[i]; da[i] = {0.f, 0.f}; }
  const float d = p.d[w.channel];
  float dd = 0.f, dbias = 0.f;  // of the chunk; a tile's part is added up on its own, which keeps digits
  for (int start = (w.chunk.length - 1) / TILE * TILE; start >= 0; start -= TILE) {
    const int rows = min_int(TILE, w.chunk.length - start);
    Complex h[TILE + 1][PER_LANE];  // h[t]: before position t of the tile
    UNROLL
    for (int i = 0; i < PER_LANE; i++)
      h[0][i] = w.has(p, i) ? p.states[((w.chunk.tile + start / TILE) * p.E + w.channel) * p.N + w.state(i)] : Complex{0.f, 0.f};
    for (int t = 0; t < rows; t++) {
      const i64 row = w.chunk.row + start + t;
      const Scalars s(p, w, row);
      UNROLL
      for (int i = 0; i < PER_LANE; i++) h[t + 1][i] = exp_of(s.delta * w.a[i]) * h[t][i] + (s.delta * s.x) * w.load(p, p.b, row, i);
    }
    float tile_dd = 0.f, tile_dbias = 0.f;
    for (int t = rows - 1; t >= 0; t--) {
      const i64 row = w.chunk.row + start + t, at = row * p.E + w.channel;
      const Scalars s(p, w, row);
      const float dout = w.active ? element_to_float(p.dout + at) : 0.f, gate = sigmoid(s.z), silu = s.z * gate;
      const float dy = HAS_GATE ? dout * silu : dout;
      Complex db[PER_LANE], dc[PER_LANE];
      float y = 0.f, dw = 0.f, ta = 0.f;
      UNROLL
      for (int i = 0; i < PER_LANE; i++) {
        const Complex b = w.load(p, p.b, row, i), c = w.load(p, p.c, row, i);
        const Complex g = (2.f * dy) * conj(c) + r[i];
        y += (c * h[t + 1][i]).re;
        dc[i] = (2.f * dy) * conj(h[t + 1][i]);
        db[i] = (s.delta * s.x) * g;
        dw += (g * conj(b)).re;
        r[i] = conj(exp_of(s.delta * w.a[i])) * g;
        const Complex turned = r[i] * conj(h[t][i]);
        da[i] = da[i] + s.delta * turned;
        ta += (turned * conj(w.a[i])).re;
      }
      store_bc(p, w, row, db, dc);
      y = 2.f * warp_sum(y) + d * s.x;
      dw = warp_sum(dw);
      const float ddt = (dw * s.x + warp_sum(ta)) * delta_slope(s.delta);
      tile_dd += dy * s.x;
      tile_dbias += ddt;
      if (w.lane == 0 && w.active) {
        float_to_element(p.dx + at, dw * s.delta + d * dy);
        float_to_element(p.ddt + at, ddt);
        if (HAS_GATE) float_to_element(p.dz + at, dout * y * gate * (1.f + s.z * (1.f - gate)));
      }
    }
    dd += tile_dd;
    dbias += tile_dbias;
  }
  if (!w.active) return;
  UNROLL
  for (int i = 0; i < PER_LANE; i++)
    if (w.has(p, i)) {
      p.da_partial[w.at_state(p, i)] = da[i];
      if (p.end) p.end[w.at_state(p, i)] = r[i];
    }
  if (w.lane == 0) {
    p.dd_partial[(i64)w.chunk.sequence * p.E + w.channel] = dd;
    p.dbias_partial[(i64)w.chunk.sequence * p.E + w.channel] = dbias;
  }
}
