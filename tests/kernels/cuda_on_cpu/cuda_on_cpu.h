// Just enough of CUDA to run the kernels of this project on a CPU, block by block, a thread per CUDA thread: for tests of
// their logic where there is no GPU. Included before common.cuh by test_cuda_emulated.py, which compiles with g++.
//
// Copies are asynchronous here too, at their worst: a copy fills its destination with NaN when it is issued and writes it
// only when its group is waited for, so that reading too early, or waiting for the wrong group, is seen.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

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
struct Block {
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<float> exchange;
  char* shared;
  Block(int threads, char* memory) : all(threads), exchange(threads), shared(memory) {
    for (int i = 0; i < threads / 32; i++) warps.push_back(std::make_unique<std::barrier<>>(32));
  }
};
struct Copy { char* to; std::vector<char> bytes; };
inline thread_local Index thread, block;
inline thread_local Block* current;
inline thread_local std::vector<std::vector<Copy>> groups;
inline thread_local std::vector<Copy> open_group;

inline float shuffle_xor(float v, int mask) {
  auto& warp = *current->warps[thread.x / 32];
  current->exchange[thread.x] = v;
  warp.arrive_and_wait();
  const float other = current->exchange[thread.x ^ mask];
  warp.arrive_and_wait();
  return other;
}
inline void copy(void* to, const void* from, int bytes, bool valid) {
  Copy c{(char*)to, std::vector<char>(bytes, 0)};
  if (valid) memcpy(c.bytes.data(), from, bytes);
  memset(to, 0xff, bytes);
  open_group.push_back(std::move(c));
}
inline void close_group() { groups.push_back(std::move(open_group)); open_group.clear(); }
inline void wait(int pending) {
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
template <typename Kernel, typename Args>
void launch(Kernel kernel, const Args& args, int blocks_x, int blocks_y, int threads, int shared_bytes) {
  for (int y = 0; y < blocks_y; y++)
    for (int x = 0; x < blocks_x; x++) {
      std::unique_ptr<char[]> raw(new char[shared_bytes + 128]);
      memset(raw.get(), 0xff, shared_bytes + 128);  // NaN: shared memory starts with anything
      Block shared(threads, (char*)(((uintptr_t)raw.get() + 127) / 128 * 128));
      std::vector<std::thread> all;
      for (int t = 0; t < threads; t++)
        all.emplace_back([&, t] {
          thread = {t, 0};
          block = {x, y};
          current = &shared;
          groups.clear();
          open_group.clear();
          kernel(args);
          shared.all.arrive_and_drop();
          shared.warps[t / 32]->arrive_and_drop();
        });
      for (auto& t : all) t.join();
    }
}
}  // namespace cpu

#define threadIdx cpu::thread
#define blockIdx cpu::block
inline void __syncthreads() { cpu::current->all.arrive_and_wait(); }
inline void __syncwarp() { cpu::current->warps[cpu::thread.x / 32]->arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float v, int mask) { return cpu::shuffle_xor(v, mask); }
