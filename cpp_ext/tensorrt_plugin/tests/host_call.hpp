// A call of the op in host memory, with the tensors in the plugin's order.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels/arguments.hpp"
#include "../plugin/tensors.hpp"
#include "../reference/reference.hpp"

namespace qwenvl::tests {

inline std::size_t bytes_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kINT64:
            return 8;
        case nvinfer1::DataType::kFLOAT:
            return 4;
        case nvinfer1::DataType::kINT8:
            return 1;
        default:
            return 2;
    }
}

inline std::vector<nvinfer1::PluginTensorDesc> input_descriptions(const Sizes& s, nvinfer1::DataType type, bool int8) {
    using nvinfer1::DataType;
    const DataType cache = int8 ? DataType::kINT8 : type;
    const auto desc = [](nvinfer1::Dims dims, DataType of) {
        return nvinfer1::PluginTensorDesc{dims, of, nvinfer1::TensorFormat::kLINEAR, 1.0f};
    };
    const nvinfer1::Dims past{4, {s.batch, s.kv_heads, s.capacity, s.head_dim}},
        rope{3, {s.batch, s.tokens, s.head_dim / 2}};
    const nvinfer1::Dims tokens{2, {s.batch, s.tokens}}, scale{3, {s.batch, s.kv_heads, s.capacity}};
    std::vector<nvinfer1::PluginTensorDesc> all{
        desc({3, {s.batch, s.tokens, (s.heads + 2 * s.kv_heads) * s.head_dim}}, type),
        desc(past, cache),
        desc(past, cache),
        desc(rope, DataType::kFLOAT),
        desc(rope, DataType::kFLOAT),
        desc({1, {s.batch}}, DataType::kINT64),
        desc(tokens, DataType::kFLOAT)};
    if (int8) all.insert(all.end(), 2, desc(scale, DataType::kFLOAT));
    return all;
}

// The inputs' memory, filled with values of about 1, and so that rows have 5, 40, 5, ... tokens already.
class HostCall {
public:
    HostCall(const Sizes& sizes, nvinfer1::DataType type, bool int8)
        : sizes(sizes), type(type), int8(int8), descriptions(input_descriptions(sizes, type, int8)) {
        std::mt19937 random(1);
        for (std::size_t i = 0; i < descriptions.size(); ++i) {
            const auto& desc = descriptions[i];
            std::size_t count = 1;
            for (int d = 0; d < desc.dims.nbDims; ++d) count *= desc.dims.d[d];
            memory.emplace_back(count * bytes_of(desc.type));
            fill(static_cast<int>(i), count, random);
        }
        out.resize(static_cast<std::size_t>(sizes.batch) * sizes.tokens * sizes.heads * sizes.head_dim);
    }

    std::vector<void const*> inputs() const {
        std::vector<void const*> pointers;
        for (const auto& bytes : memory) pointers.push_back(bytes.data());
        return pointers;
    }
    // Every output in its place: the caches in the inputs' memory.
    std::vector<void*> outputs() {
        std::vector<void*> pointers{out.data()};
        for (int i = kPresentKey; i < output_count(int8); ++i) pointers.push_back(memory[past_of(i)].data());
        return pointers;
    }

    // For the reference.
    Arguments arguments() {
        const auto pointer = [&](int input) -> void* { return memory[input].data(); };
        return {sizes,
                type == nvinfer1::DataType::kHALF ? FloatType::kHalf : FloatType::kBFloat16,
                int8,
                pointer(kQkv),
                static_cast<float*>(pointer(kRopeCos)),
                static_cast<float*>(pointer(kRopeSin)),
                static_cast<std::int64_t*>(pointer(kWriteIndices)),
                static_cast<float*>(pointer(kQueryScale)),
                pointer(kPastKey),
                pointer(kPastValue),
                int8 ? static_cast<float*>(pointer(kKeyScale)) : nullptr,
                int8 ? static_cast<float*>(pointer(kValueScale)) : nullptr,
                out.data(),
                nullptr,
                nullptr};
    }

    const Sizes sizes;
    const nvinfer1::DataType type;
    const bool int8;
    std::vector<nvinfer1::PluginTensorDesc> descriptions;
    std::vector<std::vector<unsigned char>> memory;
    std::vector<std::uint16_t> out;

private:
    void fill(int input, std::size_t count, std::mt19937& random) {
        std::uniform_int_distribution<int> small(-100, 100);
        for (std::size_t i = 0; i < count; ++i) {
            if (descriptions[input].type == nvinfer1::DataType::kINT64) {
                const std::int64_t value = i % 2 ? 40 : 5;
                std::memcpy(memory[input].data() + 8 * i, &value, 8);
            } else if (descriptions[input].type == nvinfer1::DataType::kFLOAT) {
                const bool odd = i % 2 != 0;  // angles that differ, so that a row read at another's place shows
                const float value = input == kRopeCos   ? (odd ? 0.6f : 0.8f)
                                    : input == kRopeSin ? (odd ? 0.8f : 0.6f)
                                                        : 0.01f * (i % 7 + 1);
                std::memcpy(memory[input].data() + 4 * i, &value, 4);
            } else if (descriptions[input].type == nvinfer1::DataType::kINT8) {
                memory[input][i] = static_cast<unsigned char>(small(random));
            } else {
                // 1.0 to 2.0, either sign, as fp16 or bf16: the exponent's bits, and a mantissa of seven
                const bool half = descriptions[input].type == nvinfer1::DataType::kHALF;
                const auto value = static_cast<std::uint16_t>((half ? 0x3C00 : 0x3F80) | (small(random) & 0x7F) |
                                                              (small(random) & 1) << 15);
                std::memcpy(memory[input].data() + 2 * i, &value, 2);
            }
        }
    }
};

// The largest difference of two tensors of 16-bit floats.
template <typename Float>
double difference(const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
    double most = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        Float x, y;
        std::memcpy(static_cast<void*>(&x), &a[i], sizeof x);
        std::memcpy(static_cast<void*>(&y), &b[i], sizeof y);
        const double apart = std::fabs(static_cast<float>(x) - static_cast<float>(y));
        most = apart <= most ? most : apart;  // NaN is a difference too
    }
    return most;
}

// True if `call` holds what the reference makes of `expected`, an equal call: the caches bit by bit, the result up to
// rounding of values of about 1.
inline bool agrees_with_reference(const HostCall& call, HostCall& expected) {
    reference_attention(expected.arguments());
    return call.memory == expected.memory &&
           (call.type == nvinfer1::DataType::kHALF ? difference<__half>(call.out, expected.out) < 4e-3
                                                   : difference<__nv_bfloat16>(call.out, expected.out) < 3e-2);
}

}  // namespace qwenvl::tests
