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

// Grid: [rows, KVH, B] blocks of D threads, an element each.
template <typename Float, int D>
__global__ void __launch_bounds__(D) combine_partials(const Arguments args, const int splits) {
    const QueryRows rows{args.sizes, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y)};
    const int row = static_cast<int>(blockIdx.x), d = static_cast<int>(threadIdx.x);
    const int first = first_position(args.sizes, args.write_indices[rows.batch]);
    const int filled = KeySplit(used_keys(args.sizes, first), splits).filled();
    const Partials<D> partials(args, splits);
    const std::int64_t index = rows.index(row);
    wait_for_previous_kernel();

    float maximum = -kInfinity;
    for (int s = 0; s < filled; ++s) maximum = fmaxf(maximum, partials.max_sum_of(index, s).x);
    maximum = finite_max(maximum);
    float sum = 0.0f, out = 0.0f;
#pragma unroll 4
    for (int s = 0; s < filled; ++s) {
        const float2 max_sum = partials.max_sum_of(index, s);
        const float weight = exp2f(max_sum.x - maximum);
        sum += weight * max_sum.y;
        out += weight * partials.out_of(index, s)[d];
    }
    static_cast<Float*>(args.out)[rows.out_offset(row) + d] = from_float<Float>(sum > 0.0f ? out / sum : 0.0f);
}

}  // namespace qwenvl
