#include "matmul/half_scales.hpp"

#include <cstring>

#include "attention/attention_rows.hpp"

namespace qwenvl {

AlignedVector<Half> halves_of(const float* scales, std::size_t count) {
    constexpr std::size_t kPart = 1024;
    AlignedVector<Half> halves(count);
    std::size_t i = 0;
    for (float back[kPart]; i + kPart <= count; i += kPart) {
        narrow_row(scales + i, kPart, halves.data() + i);
        widen_row(halves.data() + i, kPart, back);
        if (std::memcmp(back, scales + i, sizeof back) != 0) return {};
    }
    for (; i < count; ++i) {
        halves[i] = narrowed(scales[i]);
        if (bits_of(widened(halves[i])) != bits_of(scales[i])) return {};
    }
    return halves;
}

}  // namespace qwenvl
