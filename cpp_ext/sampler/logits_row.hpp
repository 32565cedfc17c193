// One row of logits in the caller's memory, in any of the float types that models compute in.
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
    // The row as float32, exactly. A dense, aligned row of float32 is returned itself, any other as a copy that is
    // valid until the next call.
    const float* read(const LogitsRow& row);

private:
    std::vector<float> wide_;
};

}  // namespace qwenvl
