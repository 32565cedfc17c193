// Functions that the kernels take from CUDA. Compiled by nvcc the kernels run on a GPU; compiled by a C++ compiler they
// run on the emulation in tests/simt.hpp, thread by thread, so that indices are tested on machines without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include "../tests/simt.hpp"
#endif

namespace qwenvl {

constexpr int kWarp = 32;
constexpr float kInfinity = __builtin_huge_valf();
constexpr int kSharedAlignment = 256;  // bytes, of dynamic shared memory
constexpr float kLog2E = 1.4426950408889634f;

#ifdef __CUDACC__

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(kSharedAlignment) unsigned char memory[];
    return memory;
}

__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// In a kernel launched by launch_after(): what the kernel before it wrote may be read from here on.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

// A kernel that launch_after() launches next may take up room as soon as there is some; it still waits for results.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// 2^x in one instruction. Results below 2^-126 become zero; a weight of a softmax as small changes no sum.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Reads what other multiprocessors wrote, around this one's cache.
__device__ __forceinline__ float load_shared_result(const float* x) { return __ldcg(x); }
__device__ __forceinline__ float2 load_shared_result(const float2* x) { return __ldcg(x); }

// One more of `count` blocks is done; true for the last of them, which leaves the counter at zero.
__device__ __forceinline__ bool is_last_of(std::uint32_t* counter, std::uint32_t count) {
    return atomicInc(counter, count - 1) == count - 1;
}

__device__ __forceinline__ void publish_results() { __threadfence(); }

#endif

// Sum or maximum over `Lanes` lanes that lie `Stride` apart (powers of two), known to all of them; every lane calls.
template <int Lanes, int Stride = 1>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int mask = Stride * Lanes / 2; mask >= Stride; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

template <int Lanes, int Stride = 1>
__device__ __forceinline__ float lanes_max(float x) {
#pragma unroll
    for (int mask = Stride * Lanes / 2; mask >= Stride; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}

// The maximum to subtract before exp2: 0 where no key is visible yet, so that -inf - -inf never arises.
__device__ __forceinline__ float finite_max(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

}  // namespace qwenvl
