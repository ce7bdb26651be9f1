// out_proj for few rows: a warp owns ROWS rows of the weight and reads the whole of y.
//
// -D: BATCH rows of activations, ROWS rows of out_proj a warp, WARPS warps a block; BATCH * ROWS <= 32.
#include "common.cuh"

struct OutputArgs {
  const element* y;       // (BATCH, E)
  const element* weight;  // (D, E)
  const element* bias;    // (D); null: none
  element* out;           // (BATCH, D)
};

typedef Dealt<E> Inner;

extern "C" __global__ void __launch_bounds__(WARPS * WARP) project_out(const __grid_constant__ OutputArgs p) {
  static_assert(BATCH * ROWS <= WARP && E % 8 == 0, "cut");
  __shared__ __align__(16) element y[BATCH][E];
  let_next_begin();
  const int lane = threadIdx.x % WARP;
  const int row0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
  const int own = row0 + lane % ROWS, own_b = lane / ROWS;
  const bool finishes = lane < BATCH * ROWS && own < D;

  Piece weight[ROWS][Inner::PIECES];
  UNROLL
  for (int r = 0; r < ROWS; r++)
    UNROLL
    for (int i = 0; i < Inner::PIECES; i++) {
      if (Inner::inside(i) && row0 + r < D) weight[r][i].load_weights(p.weight + (i64)(row0 + r) * E + Inner::start(i));
      else weight[r][i].clear();
    }
  const float bias = p.bias && finishes ? to_float(load_here(p.bias + own)) : 0.f;

  wait_for_previous();
  constexpr int QUADS = BATCH * E * sizeof(element) / 16;
  for (int i = threadIdx.x; i < QUADS; i += WARPS * WARP) copy_async((uint4*)y + i, (const uint4*)p.y + i);
  copies_wait();
  __syncthreads();
  float result = 0.f;
  UNROLL
  for (int b = 0; b < BATCH; b++) {
    float sums[ROWS][2] = {};  // two chains of additions take half the time of one
    UNROLL
    for (int i = 0; i < Inner::PIECES; i++) {
      if (!Inner::inside(i)) continue;
      Piece piece;
      piece.load(y[b] + Inner::start(i));
      UNROLL
      for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int k = 0; k < 8; k++) sums[r][k % 2] = fmaf(weight[r][i][k], piece[k], sums[r][k % 2]);
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      const float sum = sum_over<WARP>(sums[r][0] + sums[r][1]);
      if (lane == b * ROWS + r) result = sum;
    }
  }
  if (finishes) p.out[(i64)own_b * D + own] = from_float(result + bias);
}
