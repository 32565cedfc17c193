// Products on Arm processors with USDOT and USMMLA, which take unsigned weights as they are stored (Neoverse V1 and
// later, Cortex-A710 and later). USMMLA multiplies two outputs by two rows, eight values of each.
#include "matmul/block_kernels.hpp"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <sys/auxv.h>

#include <limits>
#include <vector>

#if defined(__clang__)
#define QWENVL_TARGET __attribute__((target("dotprod,i8mm")))
#else
#define QWENVL_TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#endif

namespace qwenvl::neon_i8mm {
namespace {

#include "matmul/block_128.inc"

// Of 8 bits: the bytes.
template <int kBits>
QWENVL_TARGET inline Weights unpack(uint8x16_t packed) {
    if constexpr (kBits == 8) return {packed, packed};
    return {vandq_u8(packed, vdupq_n_u8(0xF)), vshrq_n_u8(packed, 4)};
}

template <int kBits>
QWENVL_TARGET inline int32x4_t products(int32x4_t start, const Weights& weights, int8x16_t even, int8x16_t odd) {
    const int32x4_t sums = vusdotq_s32(start, weights.first, even);
    return kBits == 4 ? vusdotq_s32(sums, weights.second, odd) : sums;
}

// Two numbers of two rows, as the lanes of a product have them: row 0, row 1, row 0, row 1.
template <typename Vector, typename Number>
QWENVL_TARGET inline Vector of_rows(Number first, Number second) {
    return Vector{first, second, first, second};
}

// Eight values of two rows.
QWENVL_TARGET inline int8x16_t two_rows(const std::int8_t* first, const std::int8_t* second) {
    return vcombine_s8(vld1_s8(first), vld1_s8(second));
}

// Two pairs of rows times eight of a panel's outputs, from `side` on. A row may be there twice.
template <int kBits>
QWENVL_TARGET inline void tile(const BlockMatrix& matrix, const RoundedRows& rows, const std::size_t (&row)[4],
                               const Panel<2>& panel, std::size_t side, float (&found)[4][8]) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    const std::size_t pairs = matrix.block / (8 * kPlanes);  // of groups, per block
    float32x4_t totals[2][4];
    for (auto& total : totals) {
        for (float32x4_t& each : total) each = vdupq_n_f32(0);
    }
    const std::uint8_t* weights = panel.bytes() + side * 2 * kGroupBytes;
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        int32x4_t sums[2][4];
        for (int m = 0; m < 2; ++m) {
            const std::int32_t first = rows.block_starts(row[2 * m])[b], second = rows.block_starts(row[2 * m + 1])[b];
            for (int32x4_t& sum : sums[m]) sum = of_rows<int32x4_t>(first, second);
        }
        for (std::size_t pair = b * pairs; pair < (b + 1) * pairs; ++pair) {
            for (std::size_t plane = 0; plane < kPlanes; ++plane, weights += 2 * kWordBytes) {
                const std::size_t place = (pair / 8 * kPlanes + plane) * kChunkBytes + pair % 8 * 8;
                int8x16_t values[2];
                for (int m = 0; m < 2; ++m) {
                    values[m] = two_rows(rows.values(row[2 * m]) + place, rows.values(row[2 * m + 1]) + place);
                }
                for (int i = 0; i < 4; ++i) {
                    const uint8x16_t two = vld1q_u8(weights + 16 * i);
                    for (int m = 0; m < 2; ++m) sums[m][i] = vusmmlaq_s32(sums[m][i], two, values[m]);
                }
            }
        }
        const float* const scales = panel.scales() + b * kPanelRows + side;
        for (int m = 0; m < 2; ++m) {
            const auto scale = of_rows<float32x4_t>(rows.scales(row[2 * m])[b], rows.scales(row[2 * m + 1])[b]);
            for (int i = 0; i < 4; ++i) {
                const float32x2_t two = vld1_f32(scales + 2 * i);
                const float32x4_t weight_scales = vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1));
                totals[m][i] = vfmaq_f32(totals[m][i], vmulq_f32(vcvtq_f32_s32(sums[m][i]), weight_scales), scale);
            }
        }
    }
    for (int m = 0; m < 2; ++m) {
        for (int i = 0; i < 4; ++i) {
            const float32x4_t both = totals[m][i];
            found[2 * m][2 * i] = both[0], found[2 * m + 1][2 * i] = both[1];
            found[2 * m][2 * i + 1] = both[2], found[2 * m + 1][2 * i + 1] = both[3];
        }
    }
}

template <int kBits>
QWENVL_TARGET void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                            std::size_t last, float* y) {
    thread_local Panel<2> panel;
    panel.fill<kBits>(matrix, first, last);
    for (std::size_t from = 0; from < rows.count(); from += 4) {
        std::size_t row[4];
        for (std::size_t m = 0; m < 4; ++m) row[m] = std::min(from + m, rows.count() - 1);
        for (std::size_t side = 0; first + side < last; side += 8) {
            float found[4][8];
            tile<kBits>(matrix, rows, row, panel, side, found);
            const std::size_t output = first + side, count = std::min<std::size_t>(last - output, 8);
            for (std::size_t m = 0; from + m < rows.count() && m < 4; ++m) {
                write(found[m], bias ? bias + output : nullptr, count, y + row[m] * matrix.outputs + output);
            }
        }
    }
}

void multiply_panel(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y) {
    (matrix.bits == 4 ? all_rows<4> : all_rows<8>)(matrix, rows, bias, first, last, y);
}

// HWCAP_ASIMDDP and HWCAP2_I8MM.
bool supported() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0 && (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }

}  // namespace
}  // namespace qwenvl::neon_i8mm

namespace qwenvl {

const MultiplyKernels kNeonI8mmKernels{"neon-i8mm", neon_i8mm::supported, neon_i8mm::round_row, neon_i8mm::multiply_few,
                                       neon_i8mm::multiply_panel};

}  // namespace qwenvl

#endif
