// The new tokens' keys (rotated) and values go into the cache, as floats or as int8 with a scale per token and head.
#pragma once

#include "rotary.cuh"

namespace qwenvl {

constexpr int kWriteThreads = 128;
constexpr int kWriteLanes = 16;  // lanes of one vector: D/8 of them hold four elements of either half

__device__ __forceinline__ char4 quantized(const float (&x)[4], float scale) {
    return make_char4(static_cast<signed char>(rintf(x[0] / scale)), static_cast<signed char>(rintf(x[1] / scale)),
                      static_cast<signed char>(rintf(x[2] / scale)), static_cast<signed char>(rintf(x[3] / scale)));
}

// Lanes that are not `active` pass zeros and take part in the shuffles only.
template <int D>
__device__ __forceinline__ void store_int8(std::int8_t* vector, float* scale, int d, const HalfQuads& x, bool active) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fmaxf(fabsf(x.low[i]), fabsf(x.high[i])));
    const float s = lanes_max<kWriteLanes>(largest) / 127.0f;
    if (!active) return;
    const float divisor = s > 0.0f ? s : 1.0f;
    *reinterpret_cast<char4*>(vector + d) = quantized(x.low, divisor);
    *reinterpret_cast<char4*>(vector + d + D / 2) = quantized(x.high, divisor);
    if (d == 0) *scale = s;
}

// The key and value of one token and head, by a whole warp: lanes 0-15 take the key, lanes 16-31 the value.
// token: index in [B, T]. position: in the cache.
template <typename Float, typename Cache, int D>
__device__ __forceinline__ void write_token(const Arguments& args, std::int64_t token, int batch, int head,
                                            int position) {
    const Sizes& sizes = args.sizes;
    const bool is_value = threadIdx.x % kWarp >= kWriteLanes;
    const int d = static_cast<int>(threadIdx.x % kWriteLanes) * 4;
    const bool active = d < D / 2;
    const int width = sizes.heads + 2 * sizes.kv_heads;
    const int source = sizes.heads + (is_value ? sizes.kv_heads : 0) + head;
    HalfQuads x = {};
    if (active) {
        x = load_halves<D>(static_cast<const Float*>(args.qkv) + (token * width + source) * D, d);
        if (!is_value) x = rotated<D>(x, args, token, d, 1.0f);
    }
    const std::int64_t row = cache_index(sizes, batch, head) + position;
    Cache* vector = static_cast<Cache*>(is_value ? args.value : args.key) + row * D;
    if constexpr (sizeof(Cache) == 1) {
        store_int8<D>(vector, (is_value ? args.value_scale : args.key_scale) + row, d, x, active);
    } else if (active) {
        store_halves<D>(vector, d, x);
    }
}

// Grid: ceil(B T KVH / (kWriteThreads / 32)) blocks.
template <typename Float, typename Cache, int D>
__global__ void __launch_bounds__(kWriteThreads) write_cache(const Arguments args) {
    let_next_kernel_start();
    const Sizes& sizes = args.sizes;
    const std::int64_t pair = blockIdx.x * std::int64_t{kWriteThreads / kWarp} + threadIdx.x / kWarp;
    const int head = static_cast<int>(pair % sizes.kv_heads);
    const std::int64_t token = pair / sizes.kv_heads;
    if (token >= std::int64_t{sizes.batch} * sizes.tokens) return;
    const int batch = static_cast<int>(token / sizes.tokens), t = static_cast<int>(token % sizes.tokens);
    const int position = first_position(sizes, args.write_indices[batch]) + t;
    if (position >= 0 && position < sizes.capacity) write_token<Float, Cache, D>(args, token, batch, head, position);
}

}  // namespace qwenvl
