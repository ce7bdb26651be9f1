// Just enough of CUDA to run the kernels of this project on a CPU, block by block: for tests of their logic where there is
// no GPU. Included before common.cuh by the tests of emulated kernels, which compile with g++.
//
// A CUDA thread is a fibre: it runs until it has to wait at a barrier, then the next one of its warp runs, first to last
// in one round and last to first in the next. A warp goes on as long as it need not wait for others, then the next one
// does. So a barrier that is missing is seen, every time: somebody reads what others have yet to write. A barrier that not
// all threads come to ends the launch.
//
// Copies are asynchronous here too, at their worst: a copy fills its destination with NaN when it is issued and writes it
// only when its group is waited for, so that reading too early, or waiting for the wrong group, is seen.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// What Python calls; everything else is hidden, or libraries of other macros would share their variables.
#define EXPORTED __attribute__((visibility("default")))

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) alignas(n)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned v; memcpy(&v, &f, 4); return v; }

namespace cpu {
struct Index { int x = 0, y = 0; };
struct Copy { char* to; std::vector<char> bytes; };
struct Barrier {
  int members = 0, arrived = 0, opened = 0;
  void open_if_complete() { if (members > 0 && arrived == members) arrived = 0, opened++; }
};
struct Fibre {
  ucontext_t place;
  Index thread;
  Barrier* barrier = nullptr;  // where it waits, until that has opened so many times
  int until = 0;
  bool done = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
};
struct Block {
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<float> exchange;
  char* shared;
};
inline ucontext_t scheduler;
inline Index thread, block;
inline Block* current;
inline Fibre* fibre;

inline void wait_at(Barrier& barrier) {
  fibre->barrier = &barrier;
  fibre->until = barrier.opened + 1;
  barrier.arrived++;
  barrier.open_if_complete();
  swapcontext(&fibre->place, &scheduler);
}
inline void leave(Barrier& barrier) {
  barrier.members--;
  barrier.open_if_complete();
}
inline Barrier& warp() { return current->warps[thread.x / 32]; }

inline float shuffle_xor(float v, int mask) {
  current->exchange[thread.x] = v;
  wait_at(warp());
  const float other = current->exchange[thread.x ^ mask];
  wait_at(warp());
  return other;
}
inline void copy(void* to, const void* from, int bytes, bool valid) {
  Copy c{(char*)to, std::vector<char>(bytes, 0)};
  if (valid) memcpy(c.bytes.data(), from, bytes);
  memset(to, 0xff, bytes);
  fibre->open_group.push_back(std::move(c));
}
inline void close_group() {
  fibre->groups.push_back(std::move(fibre->open_group));
  fibre->open_group.clear();
}
inline void wait(int pending) {
  auto& groups = fibre->groups;
  while ((int)groups.size() > pending) {
    for (auto& c : groups.front()) memcpy(c.to, c.bytes.data(), c.bytes.size());
    groups.erase(groups.begin());
  }
}
inline unsigned short bf16(float f) {  // round to nearest even
  unsigned v = __float_as_uint(f);
  if ((v & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (unsigned short)((v + 0x7fff + ((v >> 16) & 1)) >> 16);
}
// One round of a warp: every thread that need not wait runs up to its next barrier. False if there was none.
inline bool run_round(Fibre* warp, bool backwards) {
  bool any = false;
  for (int i = 0; i < 32; i++) {
    Fibre& next = warp[backwards ? 31 - i : i];
    if (next.done || (next.barrier && next.barrier->opened < next.until)) continue;
    any = true, next.barrier = nullptr, fibre = &next, thread = next.thread;
    swapcontext(&scheduler, &next.place);
  }
  return any;
}
// One turn: every warp runs as far as it can alone. False if none could.
inline bool run_turn(std::vector<Fibre>& fibres, bool backwards) {
  bool any = false, direction = backwards;
  const int warps = fibres.size() / 32;
  for (int i = 0; i < warps; i++)
    for (Fibre* warp = &fibres[32 * (backwards ? warps - 1 - i : i)]; run_round(warp, direction); direction = !direction) any = true;
  return any;
}
template <typename Kernel, typename Args>
struct Call {
  static inline Kernel kernel;
  static inline const Args* args;
  static void run() {
    kernel(*args);
    fibre->done = true;
    leave(current->all);
    leave(warp());
    setcontext(&scheduler);
  }
};
// Threads that were left waiting at a barrier others never came to: 0, or the kernel is wrong.
template <typename Kernel, typename Args>
int launch(Kernel kernel, const Args& args, int blocks_x, int blocks_y, int threads, int shared_bytes) {
  constexpr size_t STACK = 1 << 18;
  std::vector<char> stacks(threads * STACK);
  Call<Kernel, Args>::kernel = kernel;
  Call<Kernel, Args>::args = &args;
  for (int number = 0; number < blocks_x * blocks_y; number++) {
    block = {number % blocks_x, number / blocks_x};
    std::vector<char> raw(shared_bytes + 128, (char)0xff);  // NaN: shared memory starts with anything
    Block shared{{threads}, std::vector<Barrier>(threads / 32, {32}), std::vector<float>(threads),
                 (char*)(((uintptr_t)raw.data() + 127) / 128 * 128)};
    current = &shared;
    std::vector<Fibre> fibres(threads);
    for (int t = 0; t < threads; t++) {
      Fibre& made = fibres[t];
      made.thread = {t, 0};
      getcontext(&made.place);
      made.place.uc_stack.ss_sp = stacks.data() + t * STACK;
      made.place.uc_stack.ss_size = STACK;
      makecontext(&made.place, Call<Kernel, Args>::run, 0);
    }
    for (int turn = number; run_turn(fibres, turn % 2); turn++) {}
    int waiting = 0;
    for (const Fibre& one : fibres) waiting += !one.done;
    if (waiting) return waiting;
  }
  return 0;
}
}  // namespace cpu

#define threadIdx cpu::thread
#define blockIdx cpu::block
inline void __syncthreads() { cpu::wait_at(cpu::current->all); }
inline void __syncwarp() { cpu::wait_at(cpu::warp()); }
inline float __shfl_xor_sync(unsigned, float v, int mask) { return cpu::shuffle_xor(v, mask); }
