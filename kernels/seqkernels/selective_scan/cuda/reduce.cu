// Adds the per-block partial sums of backward.cu in a fixed order.
#include "common.cuh"

constexpr int SUMS = 2 * STATES;          // dB and dC of one position
constexpr int PARAMETERS = STATES + 2;    // dA, dD, dbias of one channel

struct ReduceBcArgs {
  const float* partial;     // (groups * blocks_per_group, rows, 32)
  element* db;              // rows of (groups, N), out_stride apart
  element* dc;
  i64 rows;
  i64 out_stride;
  int groups;
  int blocks_per_group;     // of backward.cu
  int N;
  int first_state;
};

// One thread per 4 states of dB or dC of one (row, group).
extern "C" __global__ void __launch_bounds__(256) reduce_bc(const __grid_constant__ ReduceBcArgs p) {
  constexpr int QUADS = SUMS / 4;
  const i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, row = thread / QUADS % p.rows, group = thread / QUADS / p.rows;
  const int at = (int)(thread % QUADS) * 4;
  if (group >= p.groups) return;
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
  for (int block = 0; block < p.blocks_per_group; block++) {
    const float4 v = *(const float4*)&p.partial[((group * p.blocks_per_group + block) * p.rows + row) * SUMS + at];
    sum[0] += v.x; sum[1] += v.y; sum[2] += v.z; sum[3] += v.w;
  }
  element* to = (at < STATES ? p.db : p.dc) + row * p.out_stride + group * p.N + p.first_state + at % STATES;
  Pack<4>::from(sum).store(to);
}

struct ReduceParametersArgs {
  const float* partial;     // (slots, 18, E)
  float* da;                // (E, N)
  float* dd;                // (E)
  float* dbias;             // (E)
  i64 slots;
  int E;
  int N;
  int first_state;
};

// One warp-wide team of TEAM rows of threads per 32 channels of one parameter: thread (lane, row) adds every TEAM-th slot.
extern "C" __global__ void __launch_bounds__(256) reduce_parameters(const __grid_constant__ ReduceParametersArgs p) {
  constexpr int TEAM = 8;
  __shared__ float sums[TEAM][WARP];
  const int lane = threadIdx.x % WARP, member = threadIdx.x / WARP;
  const int channel = blockIdx.x * WARP + lane, parameter = blockIdx.y;
  float sum = 0.f;
#pragma unroll 4
  for (i64 slot = member; slot < p.slots; slot += TEAM) sum += p.partial[(slot * PARAMETERS + parameter) * p.E + channel];
  sums[member][lane] = sum;
  __syncthreads();
  if (member) return;
  UNROLL
  for (int i = 1; i < TEAM; i++) sum += sums[i][lane];
  if (parameter < STATES) p.da[(i64)channel * p.N + p.first_state + parameter] = sum;
  else (parameter == STATES ? p.dd : p.dbias)[channel] = sum;
}
