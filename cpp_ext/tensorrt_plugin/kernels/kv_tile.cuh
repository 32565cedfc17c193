// Tiles of kKeyTile keys or values on their way from the cache into shared memory, as floats.
#pragma once

#include "cache_vector.cuh"
#include "layout.hpp"
#include "mma.cuh"

namespace qwenvl {

constexpr int kPrefillThreads = 128;

// Rows of 16-bit floats in shared memory. Their width is a multiple of an mma's 16. So that ldmatrix reads eight rows
// without a bank conflict, either a row's 16-byte units change places by its number, which takes no room, or, where the
// width does not allow that, rows are an odd number of units apart.
template <int D>
constexpr int kTileWidth = divide_up(D, 16) * 16;

template <typename Float, int D, int Rows, bool Swizzled>
struct Tile {
    static constexpr int kStride = Swizzled ? kTileWidth<D> : kTileWidth<D> + 8;
    static_assert(!Swizzled || kStride * sizeof(Float) == kSharedAlignment, "a row's places differ in their low bits");
    alignas(kSharedAlignment) Float elements[Rows * kStride];

    // The address of element d of a row; elements d .. d | 7 follow each other.
    __device__ __forceinline__ Float* at(int row, int d) { return elements + offset(row, d); }
    __device__ __forceinline__ const Float* at(int row, int d) const { return elements + offset(row, d); }
    // From the place of one element to that `d` elements on in its row, a multiple of 16, if it is among the first 16.
    __device__ __forceinline__ static SharedPlace moved(SharedPlace place, int d) {
        constexpr int kBytes = sizeof(Float);
        return Swizzled ? flipped(place, d * kBytes) : place + d * kBytes;
    }
    // `rows` rows down, a multiple of 8.
    __device__ __forceinline__ static SharedPlace below(SharedPlace place, int rows) {
        return place + rows * kStride * int{sizeof(Float)};
    }

private:
    __device__ __forceinline__ static int offset(int row, int d) {
        return row * kStride + (Swizzled ? d ^ row % 8 * 8 : d);
    }
};

// The division of a tile's vectors among threads: Vector::kLanes threads per row, those beyond D without work, and
// further rows at a constant distance, so that addresses cost no registers.
template <typename Cache, int D>
struct TileShare {
    using Vector = CacheVector<Cache, D>;
    static constexpr int kRowsAtOnce = kPrefillThreads / Vector::kLanes, kSteps = kKeyTile / kRowsAtOnce;
    static_assert(kRowsAtOnce % 8 == 0, "a thread's rows have the same places");
    int row = static_cast<int>(threadIdx.x) / Vector::kLanes;
    int d = static_cast<int>(threadIdx.x) % Vector::kLanes * Vector::kSize;
};

// start(): positions first .. first + kKeyTile - 1 set out, zeros from `end` on. finish(): this thread's part is there.
template <typename Tile, typename Float, typename Cache, int D>
class TileLoader;

// Floats are copied by hardware while the block computes.
template <typename Tile, typename Float, int D>
class TileLoader<Tile, Float, Float, D> {
public:
    __device__ __forceinline__ TileLoader(Tile& tile, const void* cache, const float*, std::int64_t head)
        : tile_(tile.at(share_.row, share_.d)),
          cache_(static_cast<const Float*>(cache) + (head + share_.row) * D + share_.d) {}

    __device__ __forceinline__ void start(int first, int end) {
        if (share_.d >= D) return;
        const Float* source = cache_ + first * std::int64_t{D};
#pragma unroll
        for (int n = 0; n < Share::kSteps; ++n) {
            const int row = n * Share::kRowsAtOnce;
            const bool valid = first + share_.row + row < end;
            copy_async(tile_ + row * Tile::kStride, valid ? source + row * D : cache_, valid);
        }
    }
    __device__ __forceinline__ void finish() { wait_for_copies(); }

private:
    using Share = TileShare<Float, D>;
    Share share_;
    Float* tile_;         // this thread's part of row 0
    const Float* cache_;  // and of position 0
};

// Integers wait in registers, and are multiplied by their scales on the way into shared memory.
template <typename Tile, typename Float, int D>
class TileLoader<Tile, Float, std::int8_t, D> {
public:
    __device__ __forceinline__ TileLoader(Tile& tile, const void* cache, const float* scale, std::int64_t head)
        : tile_(tile),
          cache_(static_cast<const std::int8_t*>(cache) + (head + share_.row) * D + share_.d),
          scale_(scale + head + share_.row) {}

    __device__ __forceinline__ void start(int first, int end) {
#pragma unroll
        for (int n = 0; n < Share::kSteps; ++n) {
            const int row = n * Share::kRowsAtOnce;
            const bool valid = share_.d < D && first + share_.row + row < end;
            loaded_[n].load(cache_ + (first + row) * std::int64_t{D}, valid);
            scales_[n] = valid ? scale_[first + row] : 0.0f;
        }
    }

    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int n = 0; n < Share::kSteps; ++n) {
            if (share_.d >= D) return;
            float x[Vector::kSize];
            loaded_[n].widen(x);
#pragma unroll
            for (int j = 0; j < Vector::kSize; j += 8) {
                uint4 words;
                words.x = pack<Float>(x[j] * scales_[n], x[j + 1] * scales_[n]);
                words.y = pack<Float>(x[j + 2] * scales_[n], x[j + 3] * scales_[n]);
                words.z = pack<Float>(x[j + 4] * scales_[n], x[j + 5] * scales_[n]);
                words.w = pack<Float>(x[j + 6] * scales_[n], x[j + 7] * scales_[n]);
                *reinterpret_cast<uint4*>(tile_.at(share_.row + n * Share::kRowsAtOnce, share_.d + j)) = words;
            }
        }
    }

private:
    using Share = TileShare<std::int8_t, D>;
    using Vector = typename Share::Vector;
    Share share_;
    Tile& tile_;
    const std::int8_t* cache_;
    const float* scale_;
    Vector loaded_[Share::kSteps];
    float scales_[Share::kSteps];
};

}  // namespace qwenvl
