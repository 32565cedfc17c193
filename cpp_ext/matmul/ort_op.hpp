// Common parts of the operators of the domain "qwenvl_edge": their description for ONNX Runtime, and how their kernels
// read inputs and write outputs.
//
// The class of an operator derives from OpKernel and has
//     static constexpr const char* kName;
//     static constexpr std::size_t kInputCount, kFirstOptional;      inputs from kFirstOptional on may be left out
//     static constexpr std::size_t kOutputCount;                     1 unless it says otherwise
//     static ort::ElementType input_type(std::size_t), output_type(std::size_t);   float32 likewise
//     a constructor of (const Api*, const ort::KernelInfo*), and void compute(ort::KernelContext*) const.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "matmul/ort_call.hpp"

namespace qwenvl {

using Shape = std::vector<std::int64_t>;

class OpKernel {
public:
    static constexpr std::size_t kOutputCount = 1;
    static ort::ElementType output_type(std::size_t) { return ort::kFloat; }

    const Api* api() const { return api_; }

protected:
    OpKernel(const Api* api, const char* name) : api_(api), name_(name) {}

    // The numbers of an input, which must have this shape; nullptr for an optional one that is not there.
    template <typename T>
    const T* given(const ort::KernelContext* context, std::size_t index, const Shape& shape) const {
        const ort::Value* const value = input(api_, context, index);
        if (value == nullptr) return nullptr;
        if (shape_of(api_, value) != shape) {
            throw std::invalid_argument("the inputs of " + std::string(name_) + " do not fit together: number " +
                                        std::to_string(index) + " has another shape than the others ask for");
        }
        return data_of<const T>(api_, value);
    }

    // The memory of an output of this shape.
    template <typename T>
    T* made(ort::KernelContext* context, std::size_t index, const Shape& shape) const {
        ort::Value* value = nullptr;
        check(ort::GetOutput::call(api_, context, index, shape.data(), shape.size(), &value));
        return data_of<T>(api_, value);
    }

    const Api* const api_;
    const char* const name_;
};

// The description of an operator; it lives as long as the library.
template <typename Op>
const ort::CustomOp* describe() {
    static const ort::CustomOp described = [] {
        ort::CustomOp op{};
        op.version = ort::kApiVersion;
        op.get_name = [](const ort::CustomOp*) { return Op::kName; };
        op.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
        op.get_input_type_count = [](const ort::CustomOp*) -> std::size_t { return Op::kInputCount; };
        op.get_input_type = [](const ort::CustomOp*, std::size_t i) { return Op::input_type(i); };
        op.get_output_type_count = [](const ort::CustomOp*) -> std::size_t { return Op::kOutputCount; };
        op.get_output_type = [](const ort::CustomOp*, std::size_t i) { return Op::output_type(i); };
        op.get_input_characteristic = [](const ort::CustomOp*, std::size_t i) {
            return i >= Op::kFirstOptional ? ort::kOptional : ort::kRequired;
        };
        op.get_output_characteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
        op.get_input_memory_type = [](const ort::CustomOp*, std::size_t) { return 0; };
        op.get_variadic_input_min_arity = op.get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
        op.get_variadic_input_homogeneity = op.get_variadic_output_homogeneity = [](const ort::CustomOp*) { return 1; };
        op.create_kernel_v2 = [](const ort::CustomOp*, const Api* api, const ort::KernelInfo* info, void** kernel) {
            return guarded(api, [&] { *kernel = new Op(api, info); });
        };
        op.kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
            const auto* const made = static_cast<const Op*>(kernel);
            return guarded(made->api(), [&] { made->compute(context); });
        };
        op.kernel_destroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
        op.get_start_version = op.get_end_version = [](const ort::CustomOp*) { return 1; };
        return op;
    }();
    return &described;
}

}  // namespace qwenvl
