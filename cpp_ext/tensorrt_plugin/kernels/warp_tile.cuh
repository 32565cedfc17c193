// Work of a warp of the prefill kernel on one tile of keys and values, in mma fragments.
#pragma once

#include "kv_tile.cuh"

namespace qwenvl {

constexpr int kPrefillWarps = kPrefillThreads / kWarp;

template <typename Float, int D, int RowTiles>
struct PrefillShared {
    static constexpr int kRows = kPrefillWarps * RowTiles * 16;
    // 48 KB instead of 51: two blocks on a processor with 100 KB. Elsewhere no block more would fit.
    static constexpr bool kSwizzled = D == 128 && RowTiles == 1;
    using KeyTile = Tile<Float, D, kKeyTile, kSwizzled>;
    Tile<Float, D, kRows, kSwizzled> query;
    KeyTile key, value;
};

// The rows of a warp, and the positions that they see.
struct WarpRows {
    QueryRows rows;
    int first_row;  // the block's first query row
    int tile_row;   // the warp's first row in the block's tile
    int lane;
    int first_position, end;  // token t sees positions below min(end, first_position + t + 1)

    __device__ __forceinline__ int row(int m, int h) const { return first_row + tile_row + 16 * m + 8 * h + lane / 4; }
    __device__ __forceinline__ int limit(int m, int h) const {
        return smaller(end, first_position + rows.token(row(m, h)) + 1);
    }
};

// A warp's rows in the accumulators' layout: lane 4 g + c has rows 16 m + g (h = 0) and 16 m + g + 8 (h = 1) of each
// row tile m, and of every eight columns 2c and 2c + 1, as elements 2 h and 2 h + 1.
template <int D, int RowTiles>
struct WarpState {
    static constexpr int kColumnTiles = kTileWidth<D> / 8;
    float out[RowTiles][kColumnTiles][4] = {};
    float maximum[RowTiles][2], sum[RowTiles][2] = {};

    __device__ __forceinline__ WarpState() {
#pragma unroll
        for (int m = 0; m < RowTiles; ++m) maximum[m][0] = maximum[m][1] = -kInfinity;
    }
};

constexpr int kScoreTiles = kKeyTile / 8;
template <int RowTiles>
using Scores = float[RowTiles][kScoreTiles][4];

// scores = query key^T for a warp's rows and the tile's 64 keys.
template <typename Float, int D, int RowTiles>
__device__ __forceinline__ void tile_scores(const PrefillShared<Float, D, RowTiles>& shared, const WarpRows& warp,
                                            Scores<RowTiles>& scores) {
    const int lane = warp.lane;
    using Queries = decltype(shared.query);
    using Keys = decltype(shared.key);
    const SharedPlace query = shared_place(shared.query.at(warp.tile_row + lane % 16, lane / 16 * 8));
    const SharedPlace key = shared_place(shared.key.at(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0;
#pragma unroll
    for (int k = 0; k < kTileWidth<D>; k += 16) {
        std::uint32_t a[RowTiles][4];
        const SharedPlace query_k = Queries::moved(query, k), key_k = Keys::moved(key, k);
#pragma unroll
        for (int m = 0; m < RowTiles; ++m) load_matrices(a[m], Queries::below(query_k, 16 * m));
#pragma unroll
        for (int n = 0; n < kScoreTiles; n += 2) {
            std::uint32_t b[4];
            load_matrices(b, Keys::below(key_k, n * 8));
#pragma unroll
            for (int m = 0; m < RowTiles; ++m) {
                multiply_add<Float>(scores[m][n], a[m], b[0], b[1]);
                multiply_add<Float>(scores[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// -inf where the key at `first_key` + column is not below the row's limit.
template <int RowTiles>
__device__ __forceinline__ void mask_scores(int first_key, const WarpRows& warp, Scores<RowTiles>& scores) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int columns = warp.limit(m, i / 2) - first_key - warp.lane % 4 * 2 - i % 2;
#pragma unroll
            for (int n = 0; n < kScoreTiles; ++n)
                if (n * 8 >= columns) scores[m][n][i] = -kInfinity;
        }
}

// Scores become weights relative to the new maximum; what was summed before is scaled to it.
// `scale` is the softmax scale times log2 e. A lane's `sum` counts its own columns only.
template <int D, int RowTiles>
__device__ __forceinline__ void update_softmax(float scale, Scores<RowTiles>& scores, WarpState<D, RowTiles>& state) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float maximum = state.maximum[m][h];
#pragma unroll
            for (int n = 0; n < kScoreTiles; ++n)
                maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
            maximum = lanes_max<4>(maximum);
            const float subtracted = finite_max(maximum) * scale;
            const float factor = power_of_two(state.maximum[m][h] * scale - subtracted);
            state.maximum[m][h] = maximum;
            state.sum[m][h] *= factor;
#pragma unroll
            for (int n = 0; n < state.kColumnTiles; ++n)
                state.out[m][n][2 * h] *= factor, state.out[m][n][2 * h + 1] *= factor;
#pragma unroll
            for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; ++i) {
                    scores[m][n][i] = power_of_two(scores[m][n][i] * scale - subtracted);
                    state.sum[m][h] += scores[m][n][i];
                }
        }
}

// out += weights values: two neighbouring accumulators of the scores are one A fragment of this product.
template <typename Float, int D, int RowTiles>
__device__ __forceinline__ void add_values(const PrefillShared<Float, D, RowTiles>& shared, int lane,
                                           const Scores<RowTiles>& weights, WarpState<D, RowTiles>& state) {
    using Values = decltype(shared.value);
    const SharedPlace value = shared_place(shared.value.at(lane % 16, lane / 16 * 8));
#pragma unroll
    for (int k = 0; k < kKeyTile; k += 16) {
        std::uint32_t a[RowTiles][4];
#pragma unroll
        for (int m = 0; m < RowTiles; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &weights[m][k / 8 + i / 2][i % 2 * 2];
                a[m][i] = pack<Float>(pair[0], pair[1]);
            }
#pragma unroll
        for (int n = 0; n < state.kColumnTiles; n += 2) {
            std::uint32_t b[4];
            load_matrices_transposed(b, Values::below(Values::moved(value, n * 8), k));
#pragma unroll
            for (int m = 0; m < RowTiles; ++m) {
                multiply_add<Float>(state.out[m][n], a[m], b[0], b[1]);
                multiply_add<Float>(state.out[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

}  // namespace qwenvl
