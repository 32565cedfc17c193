// One row of logits where it lies in memory, in any of the float types that models compute in.
#pragma once

#include <cstddef>
#include <vector>

namespace qwenvl {

enum class FloatType { kFloat32, kFloat16, kBFloat16 };

struct LogitsRow {
    const void* data;
    std::size_t size;
    std::ptrdiff_t stride;  // bytes from one logit to the next, any sign
    FloatType type;
};

class LogitsReader {
public:
    // The row as float32, exactly: itself where it is that, aligned and dense, otherwise a copy that lives until the
    // next call.
    const float* read(const LogitsRow& row);

private:
    std::vector<float> wide_;
};

}  // namespace qwenvl
