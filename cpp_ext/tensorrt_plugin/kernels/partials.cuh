// Results of one piece of the keys each, and their combination: flash decoding's second step.
#pragma once

#include "float_types.cuh"
#include "layout.hpp"

namespace qwenvl {

// In the workspace, for row i of [B, KVH, rows] and piece s: out [i, splits + s, D] not yet divided by the sum, and the
// maximum (of scores in units of log 2) and sum belonging to it. Empty pieces leave theirs unwritten.
template <int D>
struct Partials {
    float* out;
    float2* max_sum;
    int splits;

    __device__ __forceinline__ Partials(const Arguments& args, int splits)
        : out(static_cast<float*>(args.workspace)), splits(splits) {
        const std::int64_t rows = std::int64_t{args.sizes.batch} * args.sizes.heads * args.sizes.tokens;
        max_sum = reinterpret_cast<float2*>(out + rows * splits * D);
    }
    __device__ __forceinline__ float* out_of(std::int64_t row, int split) const {
        return out + (row * splits + split) * D;
    }
    __device__ __forceinline__ float2& max_sum_of(std::int64_t row, int split) const {
        return max_sum[row * splits + split];
    }
};

// Element d of the result of row `index`, of its first `filled` pieces.
template <int D>
__device__ __forceinline__ float combined(const Partials<D>& partials, std::int64_t index, int filled, int d) {
    float maximum = -kInfinity;
    for (int s = 0; s < filled; ++s) maximum = fmaxf(maximum, load_shared_result(&partials.max_sum_of(index, s)).x);
    maximum = finite_max(maximum);
    float sum = 0.0f, out = 0.0f;
#pragma unroll 4
    for (int s = 0; s < filled; ++s) {
        const float2 max_sum = load_shared_result(&partials.max_sum_of(index, s));
        const float weight = power_of_two(max_sum.x - maximum);
        sum += weight * max_sum.y;
        out += weight * load_shared_result(partials.out_of(index, s) + d);
    }
    return sum > 0.0f ? out / sum : 0.0f;
}

// Grid: [rows, KVH, B] blocks of D threads, an element each. unit: that of the pieces.
template <typename Float, int D>
__global__ void __launch_bounds__(D) combine_partials(const Arguments args, const int splits, const int unit) {
    const QueryRows rows{args.sizes, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y)};
    const int row = static_cast<int>(blockIdx.x), d = static_cast<int>(threadIdx.x);
    const int first = first_position(args.sizes, args.write_indices[rows.batch]);
    const int filled = KeySplit(used_keys(args.sizes, first), splits, unit).filled();
    wait_for_previous_kernel();
    const float result = combined(Partials<D>(args, splits), rows.index(row), filled, d);
    static_cast<Float*>(args.out)[rows.out_offset(row) + d] = from_float<Float>(result);
}

}  // namespace qwenvl
