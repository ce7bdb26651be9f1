// Shared by the kernels of the scan with complex A, B, C (complex*.cu): y = 2 Re(sum_n C[n] h[n]).
//
// Gradients of complex numbers are dRe + i dIm, as torch defines them. With alpha = exp(delta A) and r handed back by t+1:
//   g     = 2 dy conj(C) + r            dC = 2 dy conj(h)       dB = w g        dw = sum_n Re(g conj(B))
//   r'    = conj(alpha) g               t  = r' conj(h[t-1])    dA = delta t    ddelta = dw x + sum_n Re(t conj(A))
//
// States and their gradients are fp32 whatever the dtype of x, and are held to the error of plain PyTorch: sums over positions
// and states cancel, so delta is exact here too, and the sine.
#pragma once
#define PRECISE 1
#include "common.cuh"

struct alignas(8) Complex { float re, im; };
DEVICE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
DEVICE Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
DEVICE Complex operator*(float s, Complex a) { return {s * a.re, s * a.im}; }
DEVICE Complex conj(Complex a) { return {a.re, -a.im}; }
DEVICE Complex fma(float s, Complex a, Complex sum) { return {fmaf(s, a.re, sum.re), fmaf(s, a.im, sum.im)}; }
DEVICE Complex fma(Complex a, Complex b, Complex sum) {
  return {fmaf(a.re, b.re, fmaf(-a.im, b.im, sum.re)), fmaf(a.re, b.im, fmaf(a.im, b.re, sum.im))};
}
DEVICE float real_of_product(Complex a, Complex b, float sum) { return fmaf(a.re, b.re, fmaf(-a.im, b.im, sum)); }

// ---------------------------------------------------------------------------------------------- exp(delta A)

// A in the units of its exponential: exp(delta A) = 2^(delta decay) (cos, sin)(pi delta turn), turn in half turns. Their whole
// number is taken off before the polynomials, exactly: a product in fma() has all its digits. The hardware's sine and cosine
// would save a third of the forward pass's instructions, but are off by up to 4e-7, and the states add that up.
struct Rate { float decay, turn, turn_low; };  // turn_low: what rounding took from turn

constexpr float PER_HALF_TURN = 0.3183098861837907f;  // 1 / pi, and what is missing in it
constexpr float PER_HALF_TURN_LOW = 1.2841276633e-8f;
constexpr float HALF_TURN = 3.141592653589793f;

DEVICE Rate rate_of(Complex a) {
  const float turn = a.im * PER_HALF_TURN;
  return {a.re * LOG2E, turn, fmaf(a.im, PER_HALF_TURN_LOW, fmaf(a.im, PER_HALF_TURN, -turn))};
}

struct Angle {
  float rest;  // in half turns, [-1/2, 1/2]
  u32 whole;   // the lowest bit: whether their whole number is odd
  DEVICE Angle(float delta, float turn) {
    constexpr float ROUNDS = 12582912.f;  // 1.5 * 2^23: adding it leaves a whole number, in the lowest bits
    const float shifted = fmaf(delta, turn, ROUNDS);
    rest = fmaf(delta, turn, -(shifted - ROUNDS));
    whole = __float_as_uint(shifted);
  }
};
// size * (cos, sin)(angle) for a positive size. Minimax over a quarter turn either way: cosine to 3e-10, sine to 5e-9, with
// all digits of pi in front: an error there would be a wrong frequency, which grows from position to position.
DEVICE Complex rotated(float size, const Angle& angle) {
  constexpr float PI = 3.14159274f, PI_LOW = -8.74227766e-8f;
  const float x = angle.rest, q = x * x, signed_size = __uint_as_float((angle.whole << 31) + __float_as_uint(size));
  float cosine = fmaf(q, -0.0244206991f, 0.234953925f), sine = fmaf(q, 0.0775052905f, -0.598217845f);
  cosine = fmaf(q, cosine, -1.33521605f);
  sine = fmaf(q, sine, 2.55006742f);
  cosine = fmaf(q, cosine, 4.05870962f);
  sine = fmaf(q, sine, -5.16770983f);
  cosine = fmaf(q, cosine, -4.93480206f);
  return {signed_size * fmaf(q, cosine, 1.f), signed_size * fmaf(x, PI, x * fmaf(q, sine, PI_LOW))};
}

DEVICE Complex exp_of(float delta, const Rate& a) {
  Angle angle(delta, a.turn);
  angle.rest = fmaf(delta, a.turn_low, angle.rest);
  return rotated(exp2_fast(delta * a.decay), angle);
}

// ---------------------------------------------------------------------------------------------- layout

// LANES lanes per channel hold PER_LANE states each, LANES * PER_LANE = N; a warp has WARP / LANES channels, a block WARPS
// warps. Rows of x, dt, ... are read in pieces of VEC channels, at most one per thread and tile; a thread converts
// the piece that it copied itself, to [position][channel] floats in shared memory, and stores the same piece of results.
#ifdef LANES
constexpr int N = LANES * PER_LANE;
constexpr int THREADS = WARPS * WARP;
constexpr int WARP_CHANNELS = WARP / LANES;
constexpr int CHANNELS = THREADS / LANES;
__host__ __device__ constexpr int max_int(int a, int b) { return a > b ? a : b; }
constexpr int VEC = max_int(TILE / LANES, PER_WORD);
constexpr int PIECE = VEC * (int)sizeof(element);  // bytes
constexpr int RUN = CHANNELS / VEC;                // pieces in one position
static_assert(LANES >= 4 && LANES <= WARP && TILE * RUN <= THREADS, "a piece per thread");
typedef float Plane[TILE][CHANNELS + 8];           // the 8: four positions of a warp's channels lie in different banks
typedef Complex States[TILE][N];                   // B or C of a tile
typedef char Stage[THREADS][PIECE];

DEVICE bool has_piece() { return TILE * RUN == THREADS || threadIdx.x < TILE * RUN; }
DEVICE int piece_position() { return threadIdx.x / RUN; }
DEVICE int piece_column() { return threadIdx.x % RUN * VEC; }

// The thread's piece of a tile whose first row starts at `row` (64 bits up to there, then 32); zeros past the last of `rows`.
DEVICE void fetch_piece(Stage& to, const element* row, i64 stride, int rows) {
  if (has_piece())
    copy_async<PIECE>(to[threadIdx.x], row + (piece_position() * (int)stride + piece_column()), piece_position() < rows);
}
DEVICE void fetch_states(States& to, const Complex* row, i64 stride, int rows) {
  constexpr int PAIRS = N / 2, ITEMS = (TILE * PAIRS + THREADS - 1) / THREADS;
  UNROLL
  for (int item = 0; item < ITEMS; item++) {
    const int i = threadIdx.x + item * THREADS, position = i / PAIRS, state = i % PAIRS * 2;
    if (TILE * PAIRS % THREADS == 0 || i < TILE * PAIRS)
      copy_async<16>(&to[position][state], row + (position * (int)stride + state), position < rows);
  }
}
// delta of the thread's piece; past the end 0, which leaves states alone.
DEVICE Floats<VEC> piece_delta(const Stage& stage, const float* bias, int rows) {
  Pack<VEC> dt;
  Floats<VEC> b, delta;
  dt.load(stage[threadIdx.x]);
  b.load(bias + piece_column());
  UNROLL
  for (int k = 0; k < VEC; k++) delta.v[k] = piece_position() < rows ? to_delta(dt[k] + b[k]) : 0.f;
  return delta;
}
DEVICE float* piece_of(Plane& plane) { return &plane[piece_position()][piece_column()]; }

// The lanes' parts v of four positions: the total of position `lane & 3`.
DEVICE float sum_over_lanes(float (&v)[4], int lane) {
  const bool upper2 = lane & 2, upper1 = lane & 1;
  UNROLL
  for (int k = 0; k < 2; k++) {
    const float send = upper2 ? v[k] : v[k + 2], keep = upper2 ? v[k + 2] : v[k];
    v[k] = keep + shuffle_xor(send, 2);
  }
  const float send = upper1 ? v[0] : v[1], keep = upper1 ? v[1] : v[0];
  float sum = keep + shuffle_xor(send, 1);
  UNROLL
  for (int mask = 4; mask < LANES; mask *= 2) sum += shuffle_xor(sum, mask);
  return sum;
}
#endif
