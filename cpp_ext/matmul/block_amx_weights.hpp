// The weights of a task of products, unpacked for AMX's tiles.
#pragma once

#include <algorithm>

#include "matmul/block_vnni.hpp"
#include "simd/aligned.hpp"

namespace qwenvl::amx {

constexpr std::size_t kTile = kTileRows;  // outputs or rows of a tile

// The weights of a task as signed integers by tile, four inputs and output; their scales by tile, block and output.
class Weights {
public:
    template <int kBits>
    QWENVL_VNNI void fill(const BlockMatrix& matrix, std::size_t first, std::size_t last) {
        tile_bytes_ = matrix.inputs * kTile;
        blocks_ = matrix.blocks();
        tiles_ = (last - first + kTile - 1) / kTile;
        bytes_.resize(tiles_ * tile_bytes_);
        scales_.resize(tiles_ * blocks_ * kTile);
        are_short_ = true;
        for (std::size_t i = 0; i < tiles_; ++i) {
            fill_bytes<kBits>(matrix, first + i * kTile, last, bytes_.data() + i * tile_bytes_);
            fill_scales(matrix, first + i * kTile, last, scales_.data() + i * blocks_ * kTile);
        }
    }

    std::size_t tiles() const { return tiles_; }
    const std::int8_t* bytes(std::size_t tile) const { return bytes_.data() + tile * tile_bytes_; }
    const float* scales(std::size_t tile) const { return scales_.data() + tile * blocks_ * kTile; }
    // True if every scale is positive, and three times its digits are digits of a float.
    bool are_short() const { return are_short_; }

private:
    template <int kBits>
    QWENVL_VNNI static void fill_bytes(const BlockMatrix& matrix, std::size_t output, std::size_t last,
                                       std::int8_t* to) {
        const std::size_t bytes = matrix.row_bytes();
        for (std::size_t at = 0; at < bytes; at += kChunkBytes) {
            __m512i lanes[kTile];
            for (std::size_t i = 0; i < kTile; ++i) {
                const std::uint8_t* const row = matrix.packed + std::min(output + i, last - 1) * bytes;
                lanes[i] = _mm512_maskz_loadu_epi8(vnni::bytes_there(bytes - at), row + at);
            }
            vnni::transpose(lanes);
            const std::size_t groups = std::min(bytes - at, kChunkBytes) / kGroupBytes;
            for (std::size_t i = 0; i < groups; ++i) {
                if constexpr (kBits == 8) {
                    put(to, _mm512_xor_si512(lanes[i], _mm512_set1_epi8(static_cast<char>(0x80))));
                } else {
                    const __m512i zero = _mm512_set1_epi8(8);
                    put(to, _mm512_sub_epi8(vnni::low_halves(lanes[i]), zero));
                    put(to, _mm512_sub_epi8(vnni::high_halves(lanes[i]), zero));
                }
            }
        }
    }

    QWENVL_VNNI static void put(std::int8_t*& to, __m512i bytes) {
        _mm512_store_si512(to, bytes);
        to += kPieceBytes;
    }

    QWENVL_VNNI void fill_scales(const BlockMatrix& matrix, std::size_t output, std::size_t last, float* to) {
        const __m512i most = _mm512_set1_epi32(0x71FFFFFC), digits = _mm512_set1_epi32(3);
        for (std::size_t b = 0; b < blocks_; b += kTile) {
            const std::size_t count = std::min(kTile, blocks_ - b);
            const auto there = static_cast<__mmask16>((1u << count) - 1);
            __m512i lanes[kTile];
            __mmask16 is_long = 0;
            for (std::size_t i = 0; i < kTile; ++i) {
                const float* const row = matrix.scales + std::min(output + i, last - 1) * blocks_;
                lanes[i] = _mm512_maskz_loadu_epi32(there, row + b);
                is_long |= _mm512_test_epi32_mask(lanes[i], digits) | _mm512_cmpgt_epu32_mask(lanes[i], most);
            }
            are_short_ = are_short_ && is_long == 0;
            vnni::transpose(lanes);
            for (std::size_t i = 0; i < count; ++i) _mm512_store_si512(to + (b + i) * kTile, lanes[i]);
        }
    }

    std::size_t tiles_ = 0, tile_bytes_ = 0, blocks_ = 0;
    bool are_short_ = true;
    AlignedVector<std::int8_t> bytes_;
    AlignedVector<float> scales_;
};

}  // namespace qwenvl::amx
