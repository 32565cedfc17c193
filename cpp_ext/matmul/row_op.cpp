#include "matmul/row_op.hpp"

#include <algorithm>

#include "matmul/layer_rows.hpp"
#include "matmul/ort_op.hpp"
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

// A layer's tensors; nullptr where it has none.
struct Around {
    const float *bias, *norm, *norm_bias, *gate_bias, *residual;
};

struct Workspace {
    ByteRows rows;
    AlignedVector<float> gated;
};

class RowsLinear : public OpKernel {
public:
    static constexpr const char* kName = "RowsLinear";
    static constexpr std::size_t kInputCount = kInputs, kFirstOptional = kBias;
    static ort::ElementType input_type(std::size_t i) { return i == kWeight || i == kGate ? ort::kInt8 : ort::kFloat; }

    RowsLinear(const Api* api, const ort::KernelInfo* info) : OpKernel(api, kName) {
        check(ort::KernelInfoGetFloat::call(api, info, "epsilon", &epsilon_));
        const std::int64_t number = attribute(api, info, "activation");
        if (number < 0 || number > static_cast<std::int64_t>(Activation::kQuickGelu)) {
            throw std::invalid_argument("RowsLinear knows no such activation; export the bundle again");
        }
        activation_ = static_cast<Activation>(number);
    }

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
        float* const y = made<float>(context, 0, {rows, outputs});
        if (rows == 0) return;
        const Lent<Workspace> work;
        round(context, data_of<const float>(api_, x), static_cast<std::size_t>(rows), matrix, around, (*work).rows);
        multiply_all(context, matrix, is_gated ? &gate : nullptr, around, *work, y);
    }

private:
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

    float epsilon_ = 0;
    Activation activation_ = Activation::kNone;
};

}  // namespace

const ort::CustomOp* rows_linear_op() { return describe<RowsLinear>(); }

}  // namespace qwenvl
