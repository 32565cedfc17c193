// Products on AVX2 without VNNI. PMADDUBSW adds pairs of products of bytes in 16 bits: pairs of 4-bit weights fit, and
// of 8-bit weights those whose sign was moved to the activation, |w| <= 128 and |a| <= 127.
#include "matmul/block_kernels.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <limits>
#include <vector>

#define QWENVL_TARGET __attribute__((target("avx2,fma,f16c")))

namespace qwenvl::avx2_products {
namespace {

constexpr int kTileRows = 4;  // rows of a tile: their sums and the weights fill the 16 registers

#include "matmul/block_256.inc"

// Of 8 bits: weights less their zero, and their sizes.
template <int kBits>
QWENVL_TARGET inline Weights unpack(__m256i packed) {
    if constexpr (kBits == 4) {
        const __m256i half = _mm256_set1_epi8(0xF);
        return {_mm256_and_si256(packed, half), _mm256_and_si256(_mm256_srli_epi16(packed, 4), half)};
    }
    const __m256i centred = _mm256_xor_si256(packed, _mm256_set1_epi8(-128));
    return {centred, _mm256_abs_epi8(centred)};
}

// The sums of neighbours in 32 bits.
QWENVL_TARGET inline __m256i widened(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

QWENVL_TARGET inline __m256i signed_pairs(const Weights& weights, __m256i values) {
    return _mm256_maddubs_epi16(weights.second, _mm256_sign_epi8(values, weights.first));
}

template <int kBits>
QWENVL_TARGET inline __m256i products(__m256i start, const Weights& weights, __m256i even, __m256i odd) {
    if constexpr (kBits == 4) {
        const __m256i pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(weights.first, even), _mm256_maddubs_epi16(weights.second, odd));
        return _mm256_add_epi32(start, widened(pairs));
    }
    return widened(signed_pairs(weights, even));
}

template <int kBits>
QWENVL_TARGET inline __m256i start_of(std::int32_t start) {
    return _mm256_set1_epi32(kBits == 4 ? start : 0);
}

// Adds the products of four groups. Eight sums of pairs of 4-bit products fit into 16 bits: 8 * 2 * 15 * 127 = 30,480.
template <int kBits, int kRows>
QWENVL_TARGET inline void add_quad(__m256i (&sums)[kRows][2], const std::uint8_t* weights,
                                   const std::int8_t* const (&values)[kRows], std::size_t place) {
    if constexpr (kBits == 4) {
        __m256i pairs[kRows][2];
        for (auto& pair : pairs) pair[0] = pair[1] = _mm256_setzero_si256();
        for (int word = 0; word < 8; ++word, weights += kWordBytes) {
            const __m256i left = load(weights), right = load(weights + 32);
            const std::size_t from = place + word % 2 * kChunkBytes + word / 2 * kGroupBytes;
            for (int m = 0; m < kRows; ++m) {
                const __m256i value = four_bytes(values[m] + from);
                pairs[m][0] = _mm256_add_epi16(pairs[m][0], _mm256_maddubs_epi16(left, value));
                pairs[m][1] = _mm256_add_epi16(pairs[m][1], _mm256_maddubs_epi16(right, value));
            }
        }
        for (int m = 0; m < kRows; ++m) {
            for (int i = 0; i < 2; ++i) sums[m][i] = _mm256_add_epi32(sums[m][i], widened(pairs[m][i]));
        }
    } else {
        for (int word = 0; word < 4; ++word, weights += kWordBytes) {
            const Weights left = unpack<8>(load(weights)), right = unpack<8>(load(weights + 32));
            for (int m = 0; m < kRows; ++m) {
                const __m256i value = four_bytes(values[m] + place + word * kGroupBytes);
                sums[m][0] = _mm256_add_epi32(sums[m][0], widened(signed_pairs(left, value)));
                sums[m][1] = _mm256_add_epi32(sums[m][1], widened(signed_pairs(right, value)));
            }
        }
    }
}

bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace
}  // namespace qwenvl::avx2_products

namespace qwenvl {

const MultiplyKernels kAvx2Kernels{"avx2", avx2_products::supported, avx2_products::round_row,
                                   avx2_products::multiply_few, avx2_products::multiply_panel};

}  // namespace qwenvl

#endif
