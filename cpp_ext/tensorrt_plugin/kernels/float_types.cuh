// fp16 and bf16 under the same names, one element, two or eight at a time.
#pragma once

#include "device.cuh"

namespace qwenvl {

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Float>
__device__ __forceinline__ Float from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

__device__ __forceinline__ std::uint32_t bits(__half2 x) {
    std::uint32_t word;
    memcpy(&word, &x, sizeof word);
    return word;
}
__device__ __forceinline__ std::uint32_t bits(__nv_bfloat162 x) {
    std::uint32_t word;
    memcpy(&word, &x, sizeof word);
    return word;
}

// Two floats as one word, the first in the low half: the layout of mma fragments and of memory.
template <typename Float>
__device__ __forceinline__ std::uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t pack<__half>(float low, float high) {
    return bits(__floats2half2_rn(low, high));
}
template <>
__device__ __forceinline__ std::uint32_t pack<__nv_bfloat16>(float low, float high) {
    return bits(__floats2bfloat162_rn(low, high));
}

template <typename Float>
__device__ __forceinline__ float2 unpack(std::uint32_t word);
template <>
__device__ __forceinline__ float2 unpack<__half>(std::uint32_t word) {
    __half2 pair;
    memcpy(static_cast<void*>(&pair), &word, sizeof word);
    return __half22float2(pair);
}
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(std::uint32_t word) {
    __nv_bfloat162 pair;
    memcpy(static_cast<void*>(&pair), &word, sizeof word);
    return __bfloat1622float2(pair);
}

}  // namespace qwenvl
