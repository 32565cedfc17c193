// Operators of the domain "qwenvl_edge": the linear layers of a decoder, with the products of block_matmul.
//
// MatMulNBits is ONNX Runtime's operator of that name. Inputs x [..., K] float32, packed [N, K / block_size, bytes]
// uint8, scales [N, K / block_size] float32 and optionally bias [N]; attributes K, N, bits, block_size; output y
// [..., N]. Linear also takes what stands around a layer's products, so that a decoder has fewer operators:
//
//     y = residual + (norm(x) W^T + bias) * silu(norm(x) G^T)
//
// norm [K] is the weight of an RMS norm (attribute epsilon), gate and gate_scales are G, stored like W; residual is
// [..., N]. All four are optional.
// Weights are read where they are stored, also in a mapped file; nothing is prepacked. The session's own threads share
// the work.
#include <algorithm>
#include <string>

#include "attention/attention_op.hpp"
#include "attention/patch_op.hpp"
#include "matmul/block_matmul.hpp"
#include "matmul/half_scales.hpp"
#include "matmul/layer_rows.hpp"
#include "matmul/ort_call.hpp"
#include "matmul/row_op.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t { kX, kPacked, kScales, kBias, kNorm, kGate, kGateScales, kResidual, kInputs };

// From such blocks on the bytes of the scales hardly count, so none are held a second time.
constexpr std::int64_t kLongBlock = 128;

class Linear {
public:
    Linear(const Api* api, const ort::KernelInfo* info, bool has_norm) : api_(api) {
        inputs_ = attribute(api, info, "K");
        outputs_ = attribute(api, info, "N");
        bits_ = attribute(api, info, "bits");
        block_ = attribute(api, info, "block_size");
        const bool is_power = block_ >= 32 && (block_ & (block_ - 1)) == 0;
        if ((bits_ != 4 && bits_ != 8) || !is_power || inputs_ < 1 || outputs_ < 1 || inputs_ % block_ != 0) {
            throw std::invalid_argument(
                "the linear layers of qwenvl_edge take 4 or 8 bits and a block_size that is a "
                "power of two from 32 on and divides K; export the bundle again");
        }
        if (has_norm) check(ort::KernelInfoGetFloat::call(api, info, "epsilon", &epsilon_));
        if (block_ >= kLongBlock) return;
        half_scales_ = halves_of_constant(info, kScales);
        if (has_norm) half_gate_scales_ = halves_of_constant(info, kGateScales);
    }

    const Api* api() const { return api_; }

    void compute(ort::KernelContext* context) const {
        const ort::Value* const x = input(api_, context, kX);
        std::vector<std::int64_t> shape = shape_of(api_, x);
        if (shape.empty() || shape.back() != inputs_) throw std::invalid_argument("x has another width than K");
        std::size_t count = 1;
        for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= static_cast<std::size_t>(shape[i]);
        shape.back() = outputs_;
        ort::Value* y = nullptr;
        check(ort::GetOutput::call(api_, context, std::size_t{0}, static_cast<const std::int64_t*>(shape.data()),
                                   shape.size(), &y));
        if (count == 0) return;
        const Around around{vector(context, kBias, outputs_), vector(context, kNorm, inputs_),
                            residual(context, shape)};
        multiply_all(context, data_of<const float>(api_, x), count, around, data_of<float>(api_, y));
    }

private:
    // The numbers of a constant input of scales in half the bytes; empty if they are no halves, or it is no constant.
    AlignedVector<Half> halves_of_constant(const ort::KernelInfo* info, Input index) const {
        const ort::Value* value = nullptr;
        int is_constant = 0;
        check(ort::KernelInfoGetConstantInput::call(api_, info, std::size_t{index}, &is_constant, &value));
        if (is_constant == 0 || shape_of(api_, value) != std::vector<std::int64_t>{outputs_, inputs_ / block_}) return {};
        return halves_of(data_of<const float>(api_, value), static_cast<std::size_t>(outputs_ * (inputs_ / block_)));
    }

    // What stands around the products; nullptr where a layer has none.
    struct Around {
        const float *bias, *norm, *residual;
    };

    const float* vector(const ort::KernelContext* context, Input index, std::int64_t size) const {
        const ort::Value* const value = input(api_, context, index);
        if (value == nullptr) return nullptr;
        if (shape_of(api_, value) != std::vector<std::int64_t>{size}) {
            throw std::invalid_argument("the bias or the norm has another size than the layer");
        }
        return data_of<const float>(api_, value);
    }

    const float* residual(const ort::KernelContext* context, const std::vector<std::int64_t>& shape) const {
        const ort::Value* const value = input(api_, context, kResidual);
        if (value == nullptr) return nullptr;
        if (shape_of(api_, value) != shape) throw std::invalid_argument("the residual has another shape than y");
        return data_of<const float>(api_, value);
    }

    BlockMatrix matrix(const ort::KernelContext* context, const ort::Value* packed, Input scales_index) const {
        const ort::Value* const scales = input(api_, context, scales_index);
        const std::int64_t blocks = inputs_ / block_;
        const std::vector<std::int64_t> packed_shape{outputs_, blocks, block_ * bits_ / 8};
        const std::vector<std::int64_t> scale_shape{outputs_, blocks};
        if (scales == nullptr || shape_of(api_, packed) != packed_shape || shape_of(api_, scales) != scale_shape) {
            throw std::invalid_argument("the weights have another shape than K, N, bits and block_size say");
        }
        const AlignedVector<Half>& halves = scales_index == kScales ? half_scales_ : half_gate_scales_;
        return {static_cast<std::size_t>(outputs_),
                static_cast<std::size_t>(inputs_),
                static_cast<int>(bits_),
                static_cast<std::size_t>(block_),
                data_of<const std::uint8_t>(api_, packed),
                data_of<const float>(api_, scales),
                halves.empty() ? nullptr : halves.data()};
    }

    void round_all(const ort::KernelContext* context, const float* x, const float* norm, RoundedRows& rounded) const {
        constexpr std::size_t kTogether = kTileRows;
        const auto width = static_cast<std::size_t>(inputs_);
        const std::size_t count = rounded.count();
        share(api_, context, (count + kTogether - 1) / kTogether, [&](std::size_t task) {
            thread_local std::vector<float> normed;
            normed.resize(width);
            for (std::size_t row = task * kTogether; row < std::min(count, (task + 1) * kTogether); ++row) {
                const float* const values = x + row * width;
                if (norm != nullptr) rms_norm(values, norm, width, epsilon_, normed.data());
                rounded.round(row, norm == nullptr ? values : normed.data());
            }
        });
    }

    void multiply_all(const ort::KernelContext* context, const float* x, std::size_t count, const Around& around,
                      float* y) const {
        thread_local RoundedRows rows;
        thread_local std::vector<float> gated;
        RoundedRows& rounded = rows;  // a thread_local name would mean another object on the other threads
        const BlockMatrix weights = matrix(context, input(api_, context, kPacked), kScales);
        const ort::Value* const gate = input(api_, context, kGate);
        const BlockMatrix gates = gate == nullptr ? weights : matrix(context, gate, kGateScales);
        if (gate != nullptr) gated.resize(count * weights.outputs);
        float* const gate_values = gated.data();
        rounded.reset(weights, count);
        round_all(context, x, around.norm, rounded);
        const std::size_t each = outputs_per_task(weights, rounded), width = weights.outputs;
        share(api_, context, (width + each - 1) / each, [&](std::size_t task) {
            const std::size_t first = task * each, last = std::min(first + each, width);
            multiply(weights, rounded, around.bias, first, last, y);
            if (gate != nullptr) multiply(gates, rounded, nullptr, first, last, gate_values);
            for (std::size_t at = first; at < count * width; at += width) {
                if (gate != nullptr) multiply_silu(gate_values + at, last - first, y + at);
                if (around.residual != nullptr) add_row(around.residual + at, last - first, y + at);
            }
        });
    }

    const Api* api_;
    std::int64_t inputs_ = 0, outputs_ = 0, bits_ = 0, block_ = 0;
    float epsilon_ = 0;
    AlignedVector<Half> half_scales_, half_gate_scales_;
};

Status* compute(void* kernel, ort::KernelContext* context) {
    const auto* const op = static_cast<const Linear*>(kernel);
    return guarded(op->api(), [&] { op->compute(context); });
}

// An operator over the first kCount inputs of Linear.
template <std::size_t kCount>
ort::CustomOp make_op(const char* (*name)(const ort::CustomOp*)) {
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.get_name = name;
    made.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
    made.get_input_type_count = [](const ort::CustomOp*) { return kCount; };
    made.get_input_type = [](const ort::CustomOp*, std::size_t i) {
        return i == kPacked || i == kGate ? ort::kUint8 : ort::kFloat;
    };
    made.get_output_type_count = [](const ort::CustomOp*) -> std::size_t { return 1; };
    made.get_output_type = [](const ort::CustomOp*, std::size_t) { return ort::kFloat; };
    made.get_input_characteristic = [](const ort::CustomOp*, std::size_t i) {
        return i >= kBias ? ort::kOptional : ort::kRequired;
    };
    made.get_output_characteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
    made.get_input_memory_type = [](const ort::CustomOp*, std::size_t) { return 0; };
    made.get_variadic_input_min_arity = made.get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
    made.get_variadic_input_homogeneity = made.get_variadic_output_homogeneity = [](const ort::CustomOp*) { return 1; };
    made.create_kernel_v2 = [](const ort::CustomOp*, const Api* api, const ort::KernelInfo* info, void** kernel) {
        return guarded(api, [&] { *kernel = new Linear(api, info, kCount > kNorm); });
    };
    made.kernel_compute_v2 = compute;
    made.kernel_destroy = [](void* kernel) { delete static_cast<Linear*>(kernel); };
    made.get_start_version = [](const ort::CustomOp*) { return 1; };
    made.get_end_version = [](const ort::CustomOp*) { return 1; };
    return made;
}

ort::CustomOpDomain* make_domain(const Api* api) {
    ort::CustomOpDomain* domain = nullptr;
    check(ort::CreateCustomOpDomain::call(api, "qwenvl_edge", &domain));
    static const ort::CustomOp mat_mul_n_bits = make_op<kNorm>([](const ort::CustomOp*) { return "MatMulNBits"; });
    static const ort::CustomOp linear = make_op<kInputs>([](const ort::CustomOp*) { return "Linear"; });
    for (const ort::CustomOp* op :
         {&mat_mul_n_bits, &linear, attention_op(), patch_attention_op(), rows_linear_op()}) {
        check(ort::CustomOpDomainAdd::call(api, domain, op));
    }
    return domain;
}

}  // namespace
}  // namespace qwenvl

// ONNX Runtime looks for this function in the libraries that a session's options name.
extern "C" __attribute__((visibility("default"))) qwenvl::ort::Status* RegisterCustomOps(
    qwenvl::ort::SessionOptions* options, const qwenvl::ort::ApiBase* base) {
    using namespace qwenvl;
    const Api* const api = base->get_api(ort::kApiVersion);
    return guarded(api, [&] {
        static ort::CustomOpDomain* const domain = make_domain(api);  // must outlive all sessions
        check(ort::AddCustomOpDomain::call(api, options, domain));
    });
}
