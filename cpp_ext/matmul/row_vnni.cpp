// AVX-512 VNNI: VPDPBUSD takes activations unsigned, so 128 is added to them, and each sum starts from minus what that
// adds to it.
#if defined(__x86_64__)

#include "matmul/row_x86.hpp"

namespace qwenvl::row_kernels {
namespace {

constexpr std::size_t kRows = 6, kTiles = 4;  // whose sums fit into the registers
constexpr std::size_t kGroups = ByteRows::kInputs / kGroup;

// Minus 128 times the sums of the weights of 16 outputs.
QWENVL_VNNI __m512i starts_of(const std::int8_t* weights, std::size_t groups) {
    const __m512i each = _mm512_set1_epi8(1);
    __m512i sums = _mm512_setzero_si512();
    for (std::size_t g = 0; g < groups; ++g) {
        sums = _mm512_dpbusd_epi32(sums, each, _mm512_load_si512(weights + g * kGroupBytes));
    }
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
}

}  // namespace

QWENVL_VNNI void vnni(const RowMatrix& matrix, const ByteRows& rows, const float* bias, std::size_t first,
                      std::size_t last, float* y, const RowsDone& done) {
    thread_local PackedWeights weights;
    weights.fill(matrix, first, last);
    const std::size_t groups = weights.groups(), tile_bytes = groups * kGroupBytes;
    for (std::size_t at = first; at < last; at += kTiles * kLanes) {
        const std::int8_t* const packed = weights.tile((at - first) / kLanes);
        __m512i starts[kTiles];
        for (std::size_t t = 0; t < kTiles; ++t) starts[t] = starts_of(packed + t * tile_bytes, groups);
        for (std::size_t row = 0; row < rows.count(); row += kRows) {
            __m512i sums[kRows][kTiles];
            for (std::size_t r = 0; r < kRows; ++r) {
                for (std::size_t t = 0; t < kTiles; ++t) sums[r][t] = starts[t];
            }
            const std::int8_t* x[kRows];
            for (std::size_t r = 0; r < kRows; ++r) x[r] = rows.values(std::min(row + r, rows.count() - 1));
            for (std::size_t g = 0; g < groups; ++g) {
                __m512i of_tile[kTiles];
                for (std::size_t t = 0; t < kTiles; ++t) {
                    of_tile[t] = _mm512_load_si512(packed + t * tile_bytes + g * kGroupBytes);
                }
                for (std::size_t r = 0; r < kRows; ++r) {
                    std::uint32_t group;
                    std::memcpy(&group, x[r] + g / kGroups * ByteRows::kTileBytes + g % kGroups * kGroup, sizeof group);
                    const __m512i moved = _mm512_set1_epi32(static_cast<int>(group ^ 0x80808080u));
                    for (std::size_t t = 0; t < kTiles; ++t) {
                        sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], moved, of_tile[t]);
                    }
                }
            }
            for (std::size_t r = 0; r < std::min(kRows, rows.count() - row); ++r) {
                for (std::size_t t = 0; t < kTiles && at + t * kLanes < last; ++t) {
                    write_outputs(sums[r][t], matrix, rows.scale(row + r), bias, at + t * kLanes, last,
                                  y + (row + r) * matrix.outputs);
                }
            }
        }
    }
    done(0, rows.count());
}

}  // namespace qwenvl::row_kernels

#endif
