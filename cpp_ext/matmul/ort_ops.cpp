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
#include "matmul/ort_op.hpp"
#include "matmul/row_op.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t { kX, kPacked, kScales, kBias, kNorm, kGate, kGateScales, kResidual, kInputs };

// From such blocks on the bytes of the scales hardly count, so none are held a second time.
constexpr std::int64_t kLongBlock = 128;

class BlockLinear : public OpKernel {
public:
    static constexpr std::size_t kFirstOptional = kBias;
    static ort::ElementType input_type(std::size_t i) { return i == kPacked || i == kGate ? ort::kUint8 : ort::kFloat; }

    BlockLinear(const Api* api, const ort::KernelInfo* info, const char* name, bool has_norm) : OpKernel(api, name) {
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

    void compute(ort::KernelContext* context) const {
        const ort::Value* const x = input(api_, context, kX);
        Shape shape = shape_of(api_, x);
        if (shape.empty() || shape.back() != inputs_) throw std::invalid_argument("x has another width than K");
        std::size_t count = 1;
        for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= static_cast<std::size_t>(shape[i]);
        shape.back() = outputs_;
        float* const y = made<float>(context, 0, shape);
        if (count == 0) return;
        const Around around{given<float>(context, kBias, {outputs_}), given<float>(context, kNorm, {inputs_}),
                            given<float>(context, kResidual, shape)};
        multiply_all(context, data_of<const float>(api_, x), count, around, y);
    }

private:
    // The numbers of a constant input of scales in half the bytes; empty if they are no halves, or it is no constant.
    AlignedVector<Half> halves_of_constant(const ort::KernelInfo* info, Input index) const {
        const ort::Value* value = nullptr;
        int is_constant = 0;
        check(ort::KernelInfoGetConstantInput::call(api_, info, std::size_t{index}, &is_constant, &value));
        if (is_constant == 0 || shape_of(api_, value) != Shape{outputs_, inputs_ / block_}) return {};
        return halves_of(data_of<const float>(api_, value), static_cast<std::size_t>(outputs_ * (inputs_ / block_)));
    }

    // Tensors of the steps around the products; nullptr where a layer has none.
    struct Around {
        const float *bias, *norm, *residual;
    };

    BlockMatrix matrix(const ort::KernelContext* context, const ort::Value* packed, Input scales_index) const {
        const ort::Value* const scales = input(api_, context, scales_index);
        const std::int64_t blocks = inputs_ / block_;
        const Shape packed_shape{outputs_, blocks, block_ * bits_ / 8}, scale_shape{outputs_, blocks};
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

    std::int64_t inputs_ = 0, outputs_ = 0, bits_ = 0, block_ = 0;
    float epsilon_ = 0;
    AlignedVector<Half> half_scales_, half_gate_scales_;
};

struct MatMulNBits : BlockLinear {
    static constexpr const char* kName = "MatMulNBits";
    static constexpr std::size_t kInputCount = kNorm;

    MatMulNBits(const Api* api, const ort::KernelInfo* info) : BlockLinear(api, info, kName, false) {}
};

struct Linear : BlockLinear {
    static constexpr const char* kName = "Linear";
    static constexpr std::size_t kInputCount = kInputs;

    Linear(const Api* api, const ort::KernelInfo* info) : BlockLinear(api, info, kName, true) {}
};

ort::CustomOpDomain* make_domain(const Api* api) {
    ort::CustomOpDomain* domain = nullptr;
    check(ort::CreateCustomOpDomain::call(api, "qwenvl_edge", &domain));
    for (const ort::CustomOp* op :
         {describe<MatMulNBits>(), describe<Linear>(), attention_op(), patch_attention_op(), rows_linear_op()}) {
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
