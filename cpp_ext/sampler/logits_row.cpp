#include "sampler/logits_row.hpp"

#include <cstdint>
#include <cstring>

#include "sampler/row_kernels.hpp"

namespace qwenvl {
namespace {

template <typename Value>
Value value_at(const LogitsRow& row, std::size_t i) {
    Value value;
    std::memcpy(&value, static_cast<const char*>(row.data) + static_cast<std::ptrdiff_t>(i) * row.stride, sizeof value);
    return value;
}

bool dense(const LogitsRow& row, std::size_t item) {
    return (row.stride == static_cast<std::ptrdiff_t>(item) || row.size <= 1) &&
           reinterpret_cast<std::uintptr_t>(row.data) % item == 0;
}

}  // namespace

const float* LogitsReader::read(const LogitsRow& row) {
    if (row.type == FloatType::kFloat32) {
        if (dense(row, sizeof(float))) return static_cast<const float*>(row.data);
        wide_.resize(row.size);
        for (std::size_t i = 0; i < row.size; ++i) wide_[i] = value_at<float>(row, i);
        return wide_.data();
    }
    wide_.resize(row.size);
    const auto widen = row.type == FloatType::kFloat16 ? widen_float16 : widen_bfloat16;
    if (dense(row, sizeof(std::uint16_t))) {
        widen(static_cast<const std::uint16_t*>(row.data), row.size, wide_.data());
    } else {
        for (std::size_t i = 0; i < row.size; ++i) {
            const auto narrow = value_at<std::uint16_t>(row, i);
            widen(&narrow, 1, &wide_[i]);
        }
    }
    return wide_.data();
}

}  // namespace qwenvl
