// Rotary embedding in the rotate_half form, four elements of either half at a time (Su et al., arXiv 2104.09864).
#pragma once

#include "arguments.hpp"
#include "float_types.cuh"
#include "layout.hpp"

namespace qwenvl {

// Elements d .. d+3 and d + D/2 .. d + D/2 + 3 of a head's vector. Four, because D/2 = 52 is no multiple of eight.
struct HalfQuads {
    float low[4], high[4];
};

template <typename Float>
__device__ __forceinline__ void load_quad(const Float* x, float (&quad)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(x);
    const float2 a = unpack<Float>(words.x), b = unpack<Float>(words.y);
    quad[0] = a.x, quad[1] = a.y, quad[2] = b.x, quad[3] = b.y;
}

template <typename Float>
__device__ __forceinline__ void store_quad(Float* x, const float (&quad)[4]) {
    *reinterpret_cast<uint2*>(x) = make_uint2(pack<Float>(quad[0], quad[1]), pack<Float>(quad[2], quad[3]));
}

template <int D, typename Float>
__device__ __forceinline__ HalfQuads load_halves(const Float* vector, int d) {
    HalfQuads x;
    load_quad(vector + d, x.low);
    load_quad(vector + d + D / 2, x.high);
    return x;
}

template <int D, typename Float>
__device__ __forceinline__ void store_halves(Float* vector, int d, const HalfQuads& x) {
    store_quad(vector + d, x.low);
    store_quad(vector + d + D / 2, x.high);
}

// x rotated by the cosines and sines of token `token` (its index in [B, T]), then multiplied by `scale`. Products are
// not fused with the sum, so that the cache holds the same bits as any implementation in float32 puts there.
template <int D>
__device__ __forceinline__ HalfQuads rotated(const HalfQuads& x, const Arguments& args, std::int64_t token, int d,
                                             float scale) {
    const std::int64_t row = token * (D / 2) + d;
    const float4 cos4 = *reinterpret_cast<const float4*>(args.rope_cos + row);
    const float4 sin4 = *reinterpret_cast<const float4*>(args.rope_sin + row);
    const float cos[4] = {cos4.x, cos4.y, cos4.z, cos4.w}, sin[4] = {sin4.x, sin4.y, sin4.z, sin4.w};
    HalfQuads y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        y.low[i] = (__fmul_rn(x.low[i], cos[i]) - __fmul_rn(x.high[i], sin[i])) * scale;
        y.high[i] = (__fmul_rn(x.high[i], cos[i]) + __fmul_rn(x.low[i], sin[i])) * scale;
    }
    return y;
}

// Elements of query row `row` as attention takes them: rotated and scaled.
template <int D, typename Float>
__device__ __forceinline__ HalfQuads rotated_query(const Arguments& args, const QueryRows& rows, int row, int d) {
    const std::int64_t token = rows.token_index(row);
    const auto x = load_halves<D>(static_cast<const Float*>(args.qkv) + rows.query_offset(row), d);
    return rotated<D>(x, args, token, d, args.query_scale[token]);
}

}  // namespace qwenvl
