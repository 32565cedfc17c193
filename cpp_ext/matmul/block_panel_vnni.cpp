// Products of many rows of activations: weights are unpacked once into a panel, so arithmetic bounds them.
#include "matmul/block_kernels.hpp"

#if defined(__x86_64__)

#include <cstring>
#include <vector>

#include "matmul/block_vnni.hpp"

namespace qwenvl::vnni {
namespace {

// The unpacked weights of 32 outputs, by chunk, plane, group and output, four bytes each. The scales, by block and
// output.
class Panel {
public:
    template <int kBits>
    QWENVL_VNNI void fill(const BlockMatrix& matrix, std::size_t first, std::size_t last) {
        constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
        const std::size_t bytes = matrix.row_bytes(), chunks = matrix.chunks();
        bytes_.resize(chunks * kPlanes * kGroups * 2 * kChunkBytes + kChunkBytes);
        std::uint8_t* const to = aligned(bytes_.data());
        for (std::size_t half = 0; half < 2; ++half) {
            for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
                __m512i low[16], high[16];
                for (std::size_t i = 0; i < kGroups; ++i) {
                    const std::size_t output = std::min(first + half * kGroups + i, last - 1);
                    const std::uint8_t* const at = matrix.packed + output * bytes + chunk * kChunkBytes;
                    const __m512i packed = _mm512_maskz_loadu_epi8(bytes_there(bytes - chunk * kChunkBytes), at);
                    low[i] = kBits == 4 ? low_halves(packed) : packed;
                    high[i] = kBits == 4 ? high_halves(packed) : packed;
                }
                transpose(low);
                if (kBits == 4) transpose(high);
                std::uint8_t* const there = to + chunk * kPlanes * kGroups * 2 * kChunkBytes;
                for (std::size_t i = 0; i < kGroups; ++i) {
                    _mm512_store_si512(there + (2 * i + half) * kChunkBytes, low[i]);
                    if (kBits == 4) {
                        _mm512_store_si512(there + (2 * (kGroups + i) + half) * kChunkBytes, high[i]);
                    }
                }
            }
        }
        scales_.resize(matrix.blocks() * kPanelRows);
        for (std::size_t i = 0; i < kPanelRows; ++i) {
            const float* const from = matrix.scales + std::min(first + i, last - 1) * matrix.blocks();
            for (std::size_t b = 0; b < matrix.blocks(); ++b) scales_[b * kPanelRows + i] = from[b];
        }
    }

    const std::uint8_t* bytes() { return aligned(bytes_.data()); }
    const float* scales() const { return scales_.data(); }

private:
    static std::uint8_t* aligned(std::uint8_t* pointer) {
        return reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(pointer) + 63) & ~std::uintptr_t{63});
    }

    std::vector<std::uint8_t> bytes_;
    std::vector<float> scales_;
};

QWENVL_VNNI inline __m512i four_bytes(const std::int8_t* at) {
    std::int32_t value;
    std::memcpy(&value, at, sizeof value);
    return _mm512_set1_epi32(value);
}

template <int kBits, int kCount>
QWENVL_VNNI void panel_rows(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row, Panel& panel,
                            const float* bias, std::size_t first, std::size_t last, float* y) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    const std::size_t groups = matrix.block / (4 * kPlanes);  // of a block
    const std::int8_t* values[kCount];
    for (int m = 0; m < kCount; ++m) values[m] = rows.values(row + m);
    __m512 totals[kCount][2];
    for (auto& total : totals) total[0] = total[1] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        __m512i sums[kCount][2];
        for (int m = 0; m < kCount; ++m) sums[m][0] = sums[m][1] = _mm512_set1_epi32(rows.block_starts(row + m)[b]);
        for (std::size_t done = 0; done < groups;) {
            const std::size_t chunk = (b * groups + done) / kGroups, from = (b * groups + done) % kGroups;
            const std::size_t count = std::min(groups - done, kGroups - from);
            for (std::size_t plane = 0; plane < kPlanes; ++plane) {
                const std::size_t place = (chunk * kPlanes + plane) * kGroups + from;
                const std::uint8_t* weights = panel.bytes() + place * 2 * kChunkBytes;
                for (std::size_t i = 0; i < count; ++i, weights += 2 * kChunkBytes) {
                    const __m512i left = _mm512_load_si512(weights), right = _mm512_load_si512(weights + kChunkBytes);
                    for (int m = 0; m < kCount; ++m) {
                        const __m512i value = four_bytes(values[m] + (place + i) * 4);
                        sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], left, value);
                        sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], right, value);
                    }
                }
            }
            done += count;
        }
        const __m512 left = _mm512_loadu_ps(panel.scales() + b * kPanelRows);
        const __m512 right = _mm512_loadu_ps(panel.scales() + b * kPanelRows + kGroups);
        for (int m = 0; m < kCount; ++m) {
            const __m512 scale = _mm512_set1_ps(rows.scales(row + m)[b]);
            totals[m][0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][0]), left), scale, totals[m][0]);
            totals[m][1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][1]), right), scale, totals[m][1]);
        }
    }
    for (std::size_t half = 0; half < 2 && first + half * kGroups < last; ++half) {
        const std::size_t output = first + half * kGroups, count = std::min(last - output, kGroups);
        const auto there = static_cast<__mmask16>((1u << count) - 1);
        const __m512 offset = bias ? _mm512_maskz_loadu_ps(there, bias + output) : _mm512_setzero_ps();
        for (int m = 0; m < kCount; ++m) {
            float* const to = y + (row + m) * matrix.outputs + output;
            _mm512_mask_storeu_ps(to, there, _mm512_add_ps(totals[m][half], offset));
        }
    }
}

template <int kBits>
QWENVL_VNNI void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                          std::size_t last, float* y) {
    thread_local Panel panel;
    panel.fill<kBits>(matrix, first, last);
    std::size_t row = 0;
    for (; row + 6 <= rows.count(); row += 6) panel_rows<kBits, 6>(matrix, rows, row, panel, bias, first, last, y);
    for (; row + 3 <= rows.count(); row += 3) panel_rows<kBits, 3>(matrix, rows, row, panel, bias, first, last, y);
    for (; row < rows.count(); ++row) panel_rows<kBits, 1>(matrix, rows, row, panel, bias, first, last, y);
}

}  // namespace

void multiply_panel(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y) {
    (matrix.bits == 4 ? all_rows<4> : all_rows<8>)(matrix, rows, bias, first, last, y);
}

}  // namespace qwenvl::vnni

#endif
