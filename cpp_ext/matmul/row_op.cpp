#include "matmul/row_op.hpp"

#include <algorithm>

#include "matmul/layer_rows.hpp"
#include "matmul/ort_call.hpp"
#include "matmul/row_matmul.hpp"
#include "simd/lent.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t {
    kX,
    kWeight,
    kScales,
    kBias,
    kNorm,
    kNormBias,
    kGate,
    kGateScales,
    kGateBias,
    kResidual,
    kInputs
};

using Shape = std::vector<std::int64_t>;

// A layer's tensors; nullptr where it has none.
struct Around {
    const float *bias, *norm, *norm_bias, *gate_bias, *residual;
};

struct Workspace {
    ByteRows rows;
    AlignedVector<float> gated;
};

class RowsLinear {
public:
    RowsLinear(const Api* api, const ort::KernelInfo* info) : api_(api) {
        check(ort::KernelInfoGetFloat::call(api, info, "epsilon", &epsilon_));
        const std::int64_t number = attribute(api, info, "activation");
        if (number < 0 || number > static_cast<std::int64_t>(Activation::kQuickGelu)) {
            throw std::invalid_argument("RowsLinear knows no such activation; export the bundle again");
        }
        activation_ = static_cast<Activation>(number);
    }

    const Api* api() const { return api_; }

    void compute(ort::KernelContext* context) const {
        const ort::Value* const x = input(api_, context, kX);
        const Shape shape = shape_of(api_, x), weight = shape_of(api_, input(api_, context, kWeight));
        if (shape.size() != 2 || weight.size() != 2 || weight[0] != shape[1] || weight[0] < 1 || weight[1] < 1 ||
            weight[0] > static_cast<std::int64_t>(kMostRowInputs)) {
            throw std::invalid_argument("RowsLinear takes rows [M, K] and a weight [K, N]");
        }
        const std::int64_t rows = shape[0], inputs = weight[0], outputs = weight[1];
        const RowMatrix matrix = this->matrix(context, kWeight, kScales, inputs, outputs);
        const bool is_gated = input(api_, context, kGate) != nullptr;
        const RowMatrix gate = is_gated ? this->matrix(context, kGate, kGateScales, inputs, outputs) : matrix;
        const Around around{given<float>(context, kBias, {outputs}), given<float>(context, kNorm, {inputs}),
                            given<float>(context, kNormBias, {inputs}), given<float>(context, kGateBias, {outputs}),
                            given<float>(context, kResidual, {rows, outputs})};
        const Shape made{rows, outputs};
        ort::Value* y = nullptr;
        check(ort::GetOutput::call(api_, context, std::size_t{0}, made.data(), made.size(), &y));
        if (rows == 0) return;
        const Lent<Workspace> work;
        round(context, data_of<const float>(api_, x), static_cast<std::size_t>(rows), matrix, around, (*work).rows);
        multiply_all(context, matrix, is_gated ? &gate : nullptr, around, *work, data_of<float>(api_, y));
    }

private:
    template <typename T>
    const T* given(const ort::KernelContext* context, Input index, const Shape& shape) const {
        const ort::Value* const value = input(api_, context, index);
        if (value == nullptr) return nullptr;
        if (shape_of(api_, value) != shape) throw std::invalid_argument("the inputs of RowsLinear do not fit together");
        return data_of<const T>(api_, value);
    }

    RowMatrix matrix(const ort::KernelContext* context, Input weight, Input scales, std::int64_t inputs,
                     std::int64_t outputs) const {
        const auto* const integers = given<std::int8_t>(context, weight, {inputs, outputs});
        const auto* const factors = given<float>(context, scales, {outputs});
        if (factors == nullptr) throw std::invalid_argument("a weight of RowsLinear has no scales");
        return {static_cast<std::size_t>(outputs), static_cast<std::size_t>(inputs), integers, factors};
    }

    void round(const ort::KernelContext* context, const float* x, std::size_t count, const RowMatrix& matrix,
               const Around& around, ByteRows& rounded) const {
        const std::size_t width = matrix.inputs;
        rounded.reset(count, width);
        constexpr std::size_t kTogether = ByteRows::kTile;
        share(api_, context, (count + kTogether - 1) / kTogether, [&](std::size_t task) {
            thread_local AlignedVector<float> normed;
            normed.resize(width);
            for (std::size_t row = task * kTogether; row < std::min(count, (task + 1) * kTogether); ++row) {
                const float* values = x + row * width;
                if (around.norm_bias != nullptr && around.norm != nullptr) {
                    layer_norm(values, around.norm, around.norm_bias, width, epsilon_, normed.data());
                } else if (around.norm != nullptr) {
                    rms_norm(values, around.norm, width, epsilon_, normed.data());
                }
                rounded.round(row, around.norm == nullptr ? values : normed.data());
            }
        });
    }

    void multiply_all(const ort::KernelContext* context, const RowMatrix& matrix, const RowMatrix* gate,
                      const Around& around, Workspace& work, float* y) const {
        const ByteRows& rounded = work.rows;
        const std::size_t width = matrix.outputs, each = outputs_per_task(matrix), count = rounded.count();
        if (gate != nullptr) work.gated.resize(count * width);
        float* const gate_values = work.gated.data();
        share(api_, context, (width + each - 1) / each, [&](std::size_t task) {
            const std::size_t first = task * each, last = std::min(first + each, width);
            if (gate != nullptr) {
                multiply(*gate, rounded, around.gate_bias, first, last, gate_values, [](std::size_t, std::size_t) {});
            }
            multiply(matrix, rounded, around.bias, first, last, y, [&](std::size_t from, std::size_t to) {
                for (std::size_t at = from * width + first; at < to * width; at += width) {
                    activate(activation_, last - first, y + at);
                    if (gate != nullptr) multiply_silu(gate_values + at, last - first, y + at);
                    if (around.residual != nullptr) add_row(around.residual + at, last - first, y + at);
                }
            });
        });
    }

    const Api* api_;
    float epsilon_ = 0;
    Activation activation_ = Activation::kNone;
};

ort::CustomOp make_op() {
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.get_name = [](const ort::CustomOp*) { return "RowsLinear"; };
    made.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
    made.get_input_type_count = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
    made.get_input_type = [](const ort::CustomOp*, std::size_t i) {
        return i == kWeight || i == kGate ? ort::kInt8 : ort::kFloat;
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
        return guarded(api, [&] { *kernel = new RowsLinear(api, info); });
    };
    made.kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
        const auto* const op = static_cast<const RowsLinear*>(kernel);
        return guarded(op->api(), [&] { op->compute(context); });
    };
    made.kernel_destroy = [](void* kernel) { delete static_cast<RowsLinear*>(kernel); };
    made.get_start_version = [](const ort::CustomOp*) { return 1; };
    made.get_end_version = [](const ort::CustomOp*) { return 1; };
    return made;
}

}  // namespace

const ort::CustomOp* rows_linear_op() {
    static const ort::CustomOp made = make_op();
    return &made;
}

}  // namespace qwenvl
