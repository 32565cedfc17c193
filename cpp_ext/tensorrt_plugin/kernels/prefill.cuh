// Attention of many query rows on tensor cores: FlashAttention-2 (Dao, arXiv 2307.08691) with mma.m16n8k16.
//
// A block of four warps takes 64 * RowTiles query rows of one key/value head and passes over the keys in tiles of 64. A
// warp owns 16 * RowTiles rows alone, so that softmax needs no other warp. While scores are computed the values of the
// same tile arrive, and while values are summed the next tile's keys.
#pragma once

#include "partials.cuh"
#include "rotary.cuh"
#include "warp_tile.cuh"

namespace qwenvl {

// Blocks on a processor to be compiled for: with more registers the compiler would keep addresses in them.
template <typename Cache, int RowTiles>
constexpr int kPrefillBlocksAtOnce = sizeof(Cache) == 1 || RowTiles > 1 ? 2 : 3;

// Writes rotated queries, and zeros into the rows and columns that only fill up the tile.
template <typename Float, int D, int RowTiles>
__device__ __forceinline__ void load_query_tile(const Arguments& args, const QueryRows& rows, int first_row,
                                                PrefillShared<Float, D, RowTiles>& shared) {
    constexpr int kQuads = D / 8;
    for (int i = static_cast<int>(threadIdx.x); i < shared.kRows * kQuads; i += kPrefillThreads) {
        const int r = i / kQuads, d = i % kQuads * 4;
        const bool exists = first_row + r < rows.count();
        const HalfQuads x = exists ? rotated_query<D, Float>(args, rows, first_row + r, d) : HalfQuads{};
        store_quad(shared.query.at(r, d), x.low);
        store_quad(shared.query.at(r, d + D / 2), x.high);
    }
    if constexpr (kTileWidth < D >> D) {
        const uint4 zeros = make_uint4(0, 0, 0, 0);
        for (int r = static_cast<int>(threadIdx.x); r < shared.kRows; r += kPrefillThreads)
            *reinterpret_cast<uint4*>(shared.query.at(r, D)) = zeros;
        for (int r = static_cast<int>(threadIdx.x); r < kKeyTile; r += kPrefillThreads) {
            *reinterpret_cast<uint4*>(shared.key.at(r, D)) = zeros;
            *reinterpret_cast<uint4*>(shared.value.at(r, D)) = zeros;
        }
    }
}

// Writes out / sum by way of the warp's own rows of shared.query, so that stores to memory have 16 bytes.
template <typename Float, int D, int RowTiles>
__device__ __forceinline__ void store_result(const Arguments& args, const WarpRows& warp,
                                             const WarpState<D, RowTiles>& state,
                                             PrefillShared<Float, D, RowTiles>& shared) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float factor = state.sum[m][h] > 0.0f ? 1.0f / state.sum[m][h] : 0.0f;
            const int row = warp.tile_row + 16 * m + 8 * h + warp.lane / 4;
#pragma unroll
            for (int n = 0; n < state.kColumnTiles; ++n)
                *reinterpret_cast<std::uint32_t*>(shared.query.at(row, n * 8 + warp.lane % 4 * 2)) =
                    pack<Float>(state.out[m][n][2 * h] * factor, state.out[m][n][2 * h + 1] * factor);
        }
    __syncwarp();
    constexpr int kChunks = D / 8;
    for (int i = warp.lane; i < 16 * RowTiles * kChunks; i += kWarp) {
        const int r = i / kChunks, d = i % kChunks * 8;
        const int row = warp.first_row + warp.tile_row + r;
        if (row >= warp.rows.count()) break;
        *reinterpret_cast<uint4*>(static_cast<Float*>(args.out) + warp.rows.out_offset(row) + d) =
            *reinterpret_cast<const uint4*>(shared.query.at(warp.tile_row + r, d));
    }
}

template <int D, int RowTiles>
__device__ __forceinline__ void store_partial(const Partials<D>& partials, const WarpRows& warp, int split, float scale,
                                              const WarpState<D, RowTiles>& state) {
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp.row(m, h);
            if (row >= warp.rows.count()) continue;
            const std::int64_t index = warp.rows.index(row);
            float* out = partials.out_of(index, split) + warp.lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; ++n)
                *reinterpret_cast<float2*>(out + n * 8) =
                    make_float2(state.out[m][n][2 * h], state.out[m][n][2 * h + 1]);
            if (warp.lane % 4 == 0)
                partials.max_sum_of(index, split) = make_float2(state.maximum[m][h] * scale, state.sum[m][h]);
        }
}

// All tiles from position `begin` on. Keys below `unmasked` are visible to every row of the block.
template <typename Float, typename Cache, int D, int RowTiles>
__device__ __forceinline__ void attend_tiles(const Arguments& args, const WarpRows& warp, int begin, int unmasked,
                                             float scale, PrefillShared<Float, D, RowTiles>& shared,
                                             WarpState<D, RowTiles>& state) {
    const std::int64_t head = cache_index(args.sizes, warp.rows.batch, warp.rows.kv_head);
    const int end = warp.end;
    using Loader = TileLoader<typename PrefillShared<Float, D, RowTiles>::KeyTile, Float, Cache, D>;
    Loader keys(shared.key, args.key, args.key_scale, head);
    Loader values(shared.value, args.value, args.value_scale, head);
    if (begin < end) keys.start(begin, end);
    for (int first = begin; first < end; first += kKeyTile) {
        keys.finish();
        __syncthreads();  // the tile's keys are there, and no warp reads the last tile's values any more
        values.start(first, end);
        Scores<RowTiles> scores;
        tile_scores<Float, D, RowTiles>(shared, warp, scores);
        if (first + kKeyTile > unmasked) mask_scores<RowTiles>(first, warp, scores);
        update_softmax<D, RowTiles>(scale, scores, state);
        values.finish();
        __syncthreads();  // the tile's values are there, and no warp reads its keys any more
        if (first + kKeyTile < end) keys.start(first + kKeyTile, end);
        add_values<Float, D, RowTiles>(shared, warp.lane, scores, state);
    }
}

// Grid: [KVH * splits, ceil(rows / (64 RowTiles)), B] blocks; the last rows, which see most, start first.
template <typename Float, typename Cache, int D, int RowTiles>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocksAtOnce<Cache, RowTiles>)
    prefill_attention(const Arguments args, const int splits) {
    auto& shared = *reinterpret_cast<PrefillShared<Float, D, RowTiles>*>(dynamic_shared());
    const int split = static_cast<int>(blockIdx.x) % splits;
    const QueryRows rows{args.sizes, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.x) / splits};
    const int first_row = static_cast<int>(gridDim.y - 1 - blockIdx.y) * shared.kRows;
    const int last_row = smaller(first_row + shared.kRows, rows.count()) - 1;
    const int first = first_position(args.sizes, args.write_indices[rows.batch]);
    const KeySplit pieces(used_keys(args.sizes, first), splits, kKeyTile);
    const int end = smaller(pieces.end(split), first + rows.token(last_row) + 1);
    load_query_tile<Float, D, RowTiles>(args, rows, first_row, shared);
    __syncthreads();
    wait_for_previous_kernel();

    const int tile_row = static_cast<int>(threadIdx.x) / kWarp * 16 * RowTiles;
    const WarpRows warp{rows, first_row, tile_row, static_cast<int>(threadIdx.x) % kWarp, first, end};
    const int unmasked = smaller(end, first + rows.token(first_row) + 1);
    const float scale = rsqrtf(static_cast<float>(D)) * kLog2E;
    WarpState<D, RowTiles> state;
    attend_tiles<Float, Cache>(args, warp, pieces.begin(split), unmasked, scale, shared, state);
#pragma unroll
    for (int m = 0; m < RowTiles; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) state.sum[m][h] = lanes_sum<4>(state.sum[m][h]);
    if (splits == 1) {
        store_result<Float, D, RowTiles>(args, warp, state, shared);
    } else if (pieces.begin(split) < pieces.end(split)) {
        store_partial<D, RowTiles>(Partials<D>(args, splits), warp, split, scale, state);
    }
}

}  // namespace qwenvl
