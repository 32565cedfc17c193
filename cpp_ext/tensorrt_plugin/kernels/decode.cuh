// Attention of few query rows: bound by reading the cache once, so plain arithmetic and many loads in flight.
//
// Flash decoding (Dao et al., 2023): blocks share out the keys, each with a softmax of its own; combine_partials joins
// them, or the last block of a head does. Within a block every group of lanes has keys of its own, so that the loop
// needs no barrier. A block writes the new keys and values of its own piece first; no other block reads them.
#pragma once

#include "cache_vector.cuh"
#include "cache_write.cuh"
#include "partials.cuh"
#include "rotary.cuh"

namespace qwenvl {

constexpr int kDecodeThreads = 128;
constexpr int kDecodeWarps = kDecodeThreads / kWarp;
constexpr int kDecodeUnroll =
    4;  // keys, and values, that a lane has in flight: neighbours, so that int8 scales are vectors

// Blocks on a processor to be compiled for. Without this hint the compiler saves registers by loading late, one value
// after another; more than this would spill.
template <typename Cache, int Rows>
constexpr int kDecodeBlocksAtOnce = Rows == 1   ? 4
                                    : Rows == 2 ? 3
                                                : 2;

template <int D, int Rows>
struct DecodeShared {
    float query[Rows][D];
    float out[kDecodeWarps][Rows][D];
    float maximum[kDecodeWarps][Rows], sum[kDecodeWarps][Rows];
    bool is_last;
};

// The state of one group of lanes over its keys: a lane holds Size of the D elements of `out`.
template <int Rows, int Size>
struct DecodeState {
    float maximum[Rows], sum[Rows], out[Rows][Size];

    __device__ __forceinline__ DecodeState() {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            maximum[r] = -kInfinity, sum[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < Size; ++i) out[r][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void rescale(int r, float new_maximum) {
        const float factor = power_of_two(maximum[r] - finite_max(new_maximum));
        maximum[r] = new_maximum;
        sum[r] *= factor;
#pragma unroll
        for (int i = 0; i < Size; ++i) out[r][i] *= factor;
    }
};

// Queries, rotated, rounded as the op's definition says, times softmax scale and log2 e.
template <typename Float, int D, int Rows>
__device__ __forceinline__ void load_queries(const Arguments& args, const QueryRows& rows, float (&query)[Rows][D]) {
    const float scale = rsqrtf(static_cast<float>(D)) * kLog2E;
    for (int i = static_cast<int>(threadIdx.x); i < Rows * (D / 8); i += kDecodeThreads) {
        const int r = i / (D / 8), d = i % (D / 8) * 4;
        const HalfQuads x = r < rows.count() ? rotated_query<D, Float>(args, rows, r, d) : HalfQuads{};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            query[r][d + j] = to_float(from_float<Float>(x.low[j])) * scale;
            query[r][d + j + D / 2] = to_float(from_float<Float>(x.high[j])) * scale;
        }
    }
}

// One head's cache as a lane sees it: vectors of Size elements from element d on.
template <typename Cache, int D>
struct LaneCache {
    using Vector = CacheVector<Cache, D>;
    static constexpr int kLanes = Vector::kLanes;  // lanes of a group; those beyond D are idle
    static constexpr int kGroups = kDecodeThreads / kLanes;

    const Cache *key, *value;
    const float *key_scale = nullptr, *value_scale = nullptr;  // set with an int8 cache only
    int d;

    __device__ __forceinline__ LaneCache(const Arguments& args, const QueryRows& rows)
        : d(static_cast<int>(threadIdx.x) % kLanes * Vector::kSize) {
        const std::int64_t head = cache_index(args.sizes, rows.batch, rows.kv_head);
        key = static_cast<const Cache*>(args.key) + head * D + d;
        value = static_cast<const Cache*>(args.value) + head * D + d;
        if constexpr (sizeof(Cache) == 1) key_scale = args.key_scale + head, value_scale = args.value_scale + head;
    }
    __device__ __forceinline__ bool active() const { return d < D; }
};

// Loads that a lane has in flight, of kDecodeUnroll neighbouring keys or values: its vectors, and their scales.
template <typename Cache, int D>
struct LaneLoads {
    CacheVector<Cache, D> vectors[kDecodeUnroll];
    float scales[kDecodeUnroll];  // of int8

    __device__ __forceinline__ float scaled(float x, int u) const {
        if constexpr (sizeof(Cache) == 1) return x * scales[u];
        return x;
    }

    // From cache position `position` on, a multiple of kDecodeUnroll; zeros from `end` on, but scales may be anything
    // there. Nothing here looks at what was loaded, so that all loads are on their way before the first is waited for.
    __device__ __forceinline__ void load(const Cache* source, const float* scale, int position, int end, bool active,
                                         bool whole_vectors) {
#pragma unroll
        for (int u = 0; u < kDecodeUnroll; ++u)
            vectors[u].load(source + (position + u) * std::int64_t{D}, position + u < end && active);
        if constexpr (sizeof(Cache) == 1) {
            static_assert(kDecodeUnroll == 4);
            if (whole_vectors && position < end) {
                const float4 four = *reinterpret_cast<const float4*>(scale + position);
                scales[0] = four.x, scales[1] = four.y, scales[2] = four.z, scales[3] = four.w;
            } else {
#pragma unroll
                for (int u = 0; u < kDecodeUnroll; ++u) scales[u] = position + u < end ? scale[position + u] : 0.0f;
            }
        }
    }
};

// scores[r][u] = query row r times the key at position + u; -inf where that is not below limit[r].
template <typename Cache, int D, int Rows, int Size = CacheVector<Cache, D>::kSize>
__device__ __forceinline__ void decode_scores(const LaneLoads<Cache, D>& keys, const float (&query)[Rows][Size],
                                              int position, const int (&limit)[Rows],
                                              float (&scores)[Rows][kDecodeUnroll]) {
#pragma unroll
    for (int u = 0; u < kDecodeUnroll; ++u) {
        float x[Size];
        keys.vectors[u].widen(x);
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < Size; ++i) dot += query[r][i] * x[i];
            dot = keys.scaled(lanes_sum<CacheVector<Cache, D>::kLanes>(dot), u);
            scores[r][u] = position + u < limit[r] ? dot : -kInfinity;
        }
    }
}

// The same keys' values join the state.
template <typename Cache, int D, int Rows, int Size = CacheVector<Cache, D>::kSize>
__device__ __forceinline__ void decode_add(const LaneLoads<Cache, D>& values, int position, int end,
                                           float (&scores)[Rows][kDecodeUnroll], DecodeState<Rows, Size>& state) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        float maximum = state.maximum[r];
#pragma unroll
        for (int u = 0; u < kDecodeUnroll; ++u) maximum = fmaxf(maximum, scores[r][u]);
        state.rescale(r, maximum);
#pragma unroll
        for (int u = 0; u < kDecodeUnroll; ++u) {
            scores[r][u] = power_of_two(scores[r][u] - finite_max(maximum));
            state.sum[r] += scores[r][u];
        }
    }
#pragma unroll
    for (int u = 0; u < kDecodeUnroll; ++u) {
        float x[Size];
        values.vectors[u].widen(x);
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
            const float weight = position + u < end ? values.scaled(scores[r][u], u) : 0.0f;
#pragma unroll
            for (int i = 0; i < Size; ++i) state.out[r][i] += weight * x[i];
        }
    }
}

// The states of a warp's lane groups become one, which its first group leaves in shared memory.
template <typename Cache, int D, int Rows, int Size = CacheVector<Cache, D>::kSize>
__device__ __forceinline__ void share_warp_state(const LaneCache<Cache, D>& cache, DecodeState<Rows, Size>& state,
                                                 DecodeShared<D, Rows>& shared) {
    constexpr int kLanes = LaneCache<Cache, D>::kLanes;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const bool writes = threadIdx.x % kWarp < kLanes && cache.active();
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        state.rescale(r, lanes_max<kWarp / kLanes, kLanes>(state.maximum[r]));
        const float sum = lanes_sum<kWarp / kLanes, kLanes>(state.sum[r]);
        if (threadIdx.x % kWarp == 0) shared.maximum[warp][r] = state.maximum[r], shared.sum[warp][r] = sum;
#pragma unroll
        for (int i = 0; i < Size; ++i) {
            const float out = lanes_sum<kWarp / kLanes, kLanes>(state.out[r][i]);
            if (writes) shared.out[warp][r][cache.d + i] = out;
        }
    }
}

// The warps' states become the block's: the result, or one of `splits` partial ones.
template <typename Float, int D, int Rows>
__device__ __forceinline__ void store_decoded(const Arguments& args, const QueryRows& rows, int split, int splits,
                                              const DecodeShared<D, Rows>& shared) {
    for (int i = static_cast<int>(threadIdx.x); i < Rows * D; i += kDecodeThreads) {
        const int r = i / D, d = i % D;
        if (r >= rows.count()) break;
        float maximum = -kInfinity, sum = 0.0f, out = 0.0f;
#pragma unroll
        for (int w = 0; w < kDecodeWarps; ++w) maximum = fmaxf(maximum, shared.maximum[w][r]);
#pragma unroll
        for (int w = 0; w < kDecodeWarps; ++w) {
            const float weight = power_of_two(shared.maximum[w][r] - finite_max(maximum));
            sum += weight * shared.sum[w][r];
            out += weight * shared.out[w][r][d];
        }
        if (splits == 1) {
            static_cast<Float*>(args.out)[rows.out_offset(r) + d] = from_float<Float>(sum > 0.0f ? out / sum : 0.0f);
        } else {
            const Partials<D> partials(args, splits);
            partials.out_of(rows.index(r), split)[d] = out;
            if (d == 0) partials.max_sum_of(rows.index(r), split) = make_float2(maximum, sum);
        }
    }
}

// The new tokens whose positions are in [begin, end) go into the cache, a warp each.
template <typename Float, typename Cache, int D>
__device__ __forceinline__ void write_piece(const Arguments& args, const QueryRows& rows, int first, int begin,
                                            int end) {
    for (int t = static_cast<int>(threadIdx.x) / kWarp; t < args.sizes.tokens; t += kDecodeWarps) {
        const std::int64_t token = std::int64_t{rows.batch} * args.sizes.tokens + t;
        if (first + t >= begin && first + t < end)
            write_token<Float, Cache, D>(args, token, rows.batch, rows.kv_head, first + t);
    }
}

// The last block of a head that gets here combines the pieces of all.
template <typename Float, int D, int Rows>
__device__ __forceinline__ void combine_if_last(const Arguments& args, const QueryRows& rows, int splits, int filled,
                                                DecodeShared<D, Rows>& shared) {
    publish_results();
    __syncthreads();
    if (threadIdx.x == 0)
        shared.is_last = is_last_of(args.counters + rows.batch * args.sizes.kv_heads + rows.kv_head, filled);
    __syncthreads();
    if (!shared.is_last) return;
    publish_results();  // and what the others published is seen from here on
    const Partials<D> partials(args, splits);
    for (int i = static_cast<int>(threadIdx.x); i < rows.count() * D; i += kDecodeThreads) {
        const int r = i / D, d = i % D;
        static_cast<Float*>(args.out)[rows.out_offset(r) + d] =
            from_float<Float>(combined(partials, rows.index(r), filled, d));
    }
}

// Grid: [splits, KVH, B] blocks. A key/value head has at most `Rows` query rows.
template <typename Float, typename Cache, int D, int Rows>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocksAtOnce<Cache, Rows>)
    decode_attention(const Arguments args, const int splits) {
    using Lane = LaneCache<Cache, D>;
    constexpr int kSize = Lane::Vector::kSize;
    auto& shared = *reinterpret_cast<DecodeShared<D, Rows>*>(dynamic_shared());
    const QueryRows rows{args.sizes, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y)};
    const int first = first_position(args.sizes, args.write_indices[rows.batch]);
    const KeySplit pieces(used_keys(args.sizes, first), splits, kDecodeKeys);
    const int split = static_cast<int>(blockIdx.x), end = pieces.end(split);
    if (split > 0 && pieces.begin(split) >= end) return;  // the first one works even on no keys: it writes zeros then
    write_piece<Float, Cache, D>(args, rows, first, pieces.begin(split), end);
    load_queries<Float, D, Rows>(args, rows, shared.query);
    __syncthreads();

    const Lane cache(args, rows);
    float query[Rows][kSize];
    int limit[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
        limit[r] = r < rows.count() ? smaller(end, first + rows.token(r) + 1) : end;
#pragma unroll
        for (int i = 0; i < kSize; ++i) query[r][i] = cache.active() ? shared.query[r][cache.d + i] : 0.0f;
    }
    DecodeState<Rows, kSize> state;
    const int group = static_cast<int>(threadIdx.x) / Lane::kLanes;
    const bool whole_vectors = args.sizes.capacity % kDecodeUnroll == 0;  // then a head's scales are aligned
    for (int base = pieces.begin(split); base < end; base += kDecodeUnroll * Lane::kGroups) {
        const int position = base + kDecodeUnroll * group;
        LaneLoads<Cache, D> keys, values;
        keys.load(cache.key, cache.key_scale, position, end, cache.active(), whole_vectors);
        values.load(cache.value, cache.value_scale, position, end, cache.active(), whole_vectors);
        if (splits < 1) break;  // never, but no load sinks below a branch: one after another would save registers
        float scores[Rows][kDecodeUnroll];
        decode_scores<Cache, D>(keys, query, position, limit, scores);
        decode_add<Cache, D>(values, position, end, scores, state);
    }
    share_warp_state(cache, state, shared);
    __syncthreads();
    store_decoded<Float>(args, rows, split, splits, shared);
    if (splits > 1 && args.counters != nullptr)
        combine_if_last<Float>(args, rows, splits, larger(1, pieces.filled()), shared);
}

}  // namespace qwenvl
