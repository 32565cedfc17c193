// MatMulNBits of the domain "qwenvl_edge": ONNX Runtime's operator of that name, with the products of block_matmul.
//
// Inputs x [..., K] float32, packed [N, K / block_size, bytes] uint8, scales [N, K / block_size] float32 and optionally
// bias [N]; attributes K, N, bits, block_size; output y [..., N]. Weights are read where they are stored, also in a
// mapped file; nothing is prepacked. The session's own threads share the work.
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "matmul/block_matmul.hpp"
#include "matmul/ort_abi.hpp"

namespace qwenvl {
namespace {

using ort::Api;
using ort::Status;

// A failed call to ONNX Runtime, with the status that is returned to it.
struct Failure {
    Status* status;
};

void check(Status* status) {
    if (status != nullptr) throw Failure{status};
}

// Calls work() and turns an exception into a status.
template <typename Work>
Status* guarded(const Api* api, Work work) {
    try {
        work();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return ort::CreateStatus::call(api, ort::kInvalidArgument, error.what());
    }
}

std::vector<std::int64_t> shape_of(const Api* api, const ort::Value* value) {
    ort::ShapeInfo* info = nullptr;
    check(ort::GetTensorTypeAndShape::call(api, value, &info));
    std::size_t rank = 0;
    Status* status = ort::GetDimensionsCount::call(api, info, &rank);
    std::vector<std::int64_t> shape(rank);
    if (status == nullptr) status = ort::GetDimensions::call(api, info, shape.data(), rank);
    ort::ReleaseShapeInfo::call(api, info);
    check(status);
    return shape;
}

template <typename T>
T* data_of(const Api* api, const ort::Value* value) {
    void* data = nullptr;
    check(ort::GetTensorMutableData::call(api, const_cast<ort::Value*>(value), &data));
    return static_cast<T*>(data);
}

const ort::Value* input(const Api* api, const ort::KernelContext* context, std::size_t index) {
    const ort::Value* value = nullptr;
    check(ort::GetInput::call(api, context, index, &value));
    return value;
}

// Calls work(i) for every i below `count` on the session's threads.
template <typename Work>
void share(const Api* api, const ort::KernelContext* context, std::size_t count, Work work) {
    if (count == 1) return work(0);
    const auto call = [](void* given, std::size_t i) { (*static_cast<Work*>(given))(i); };
    check(ort::ParallelFor::call(api, context, +call, count, count, static_cast<void*>(&work)));
}

class MatMulNBits {
public:
    MatMulNBits(const Api* api, const ort::KernelInfo* info) : api_(api) {
        inputs_ = attribute(info, "K");
        outputs_ = attribute(info, "N");
        bits_ = attribute(info, "bits");
        block_ = attribute(info, "block_size");
        const bool is_power = block_ >= 32 && (block_ & (block_ - 1)) == 0;
        if ((bits_ != 4 && bits_ != 8) || !is_power || inputs_ < 1 || outputs_ < 1 || inputs_ % block_ != 0) {
            throw std::invalid_argument("qwenvl_edge.MatMulNBits takes 4 or 8 bits and a block_size that is a power of "
                                        "two from 32 on and divides K; export the bundle again");
        }
    }

    const Api* api() const { return api_; }

    void compute(ort::KernelContext* context) const {
        const ort::Value* const x = input(api_, context, 0);
        std::vector<std::int64_t> shape = shape_of(api_, x);
        if (shape.empty() || shape.back() != inputs_) throw std::invalid_argument("x has another width than K");
        std::size_t count = 1;
        for (std::size_t i = 0; i + 1 < shape.size(); ++i) count *= static_cast<std::size_t>(shape[i]);
        shape.back() = outputs_;
        ort::Value* y = nullptr;
        check(ort::GetOutput::call(api_, context, std::size_t{0}, static_cast<const std::int64_t*>(shape.data()),
                                   shape.size(), &y));
        if (count == 0) return;
        const ort::Value* const bias = input(api_, context, 3);
        multiply_all(context, data_of<const float>(api_, x), count, matrix(context),
                     bias ? data_of<const float>(api_, bias) : nullptr, data_of<float>(api_, y));
    }

private:
    std::int64_t attribute(const ort::KernelInfo* info, const char* name) const {
        std::int64_t value = 0;
        check(ort::KernelInfoGetInt64::call(api_, info, name, &value));
        return value;
    }

    BlockMatrix matrix(const ort::KernelContext* context) const {
        const ort::Value* const packed = input(api_, context, 1);
        const ort::Value* const scales = input(api_, context, 2);
        const std::int64_t blocks = inputs_ / block_;
        const std::vector<std::int64_t> packed_shape{outputs_, blocks, block_ * bits_ / 8};
        const std::vector<std::int64_t> scale_shape{outputs_, blocks};
        if (shape_of(api_, packed) != packed_shape || shape_of(api_, scales) != scale_shape) {
            throw std::invalid_argument("the weights have another shape than K, N, bits and block_size say");
        }
        return {static_cast<std::size_t>(outputs_), static_cast<std::size_t>(inputs_), static_cast<int>(bits_),
                static_cast<std::size_t>(block_), data_of<const std::uint8_t>(api_, packed),
                data_of<const float>(api_, scales)};
    }

    void multiply_all(const ort::KernelContext* context, const float* x, std::size_t count, const BlockMatrix& matrix,
                      const float* bias, float* y) const {
        thread_local RoundedRows rows;
        RoundedRows& rounded = rows;  // a thread_local name would mean another object on the other threads
        rounded.reset(matrix, count);
        constexpr std::size_t kTogether = 8;
        share(api_, context, (count + kTogether - 1) / kTogether, [&](std::size_t task) {
            for (std::size_t row = task * kTogether; row < std::min(count, (task + 1) * kTogether); ++row) {
                rounded.round(row, x + row * matrix.inputs);
            }
        });
        const std::size_t each = outputs_per_task(matrix, count);
        share(api_, context, (matrix.outputs + each - 1) / each, [&](std::size_t task) {
            multiply(matrix, rounded, bias, task * each, std::min((task + 1) * each, matrix.outputs), y);
        });
    }

    const Api* api_;
    std::int64_t inputs_ = 0, outputs_ = 0, bits_ = 0, block_ = 0;
};

Status* create(const ort::CustomOp*, const Api* api, const ort::KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = new MatMulNBits(api, info); });
}

Status* compute(void* kernel, ort::KernelContext* context) {
    const auto* const op = static_cast<const MatMulNBits*>(kernel);
    return guarded(op->api(), [&] { op->compute(context); });
}

const ort::CustomOp& mat_mul_n_bits() {
    static const ort::CustomOp op = [] {
        ort::CustomOp made{};
        made.version = ort::kApiVersion;
        made.get_name = [](const ort::CustomOp*) { return "MatMulNBits"; };
        made.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
        made.get_input_type_count = [](const ort::CustomOp*) -> std::size_t { return 4; };
        made.get_input_type = [](const ort::CustomOp*, std::size_t i) { return i == 1 ? ort::kUint8 : ort::kFloat; };
        made.get_output_type_count = [](const ort::CustomOp*) -> std::size_t { return 1; };
        made.get_output_type = [](const ort::CustomOp*, std::size_t) { return ort::kFloat; };
        made.get_input_characteristic = [](const ort::CustomOp*, std::size_t i) {
            return i == 3 ? ort::kOptional : ort::kRequired;
        };
        made.get_output_characteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
        made.get_input_memory_type = [](const ort::CustomOp*, std::size_t) { return 0; };
        made.get_variadic_input_min_arity = made.get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
        made.get_variadic_input_homogeneity = made.get_variadic_output_homogeneity = [](const ort::CustomOp*) {
            return 1;
        };
        made.create_kernel_v2 = create;
        made.kernel_compute_v2 = compute;
        made.kernel_destroy = [](void* kernel) { delete static_cast<MatMulNBits*>(kernel); };
        made.get_start_version = [](const ort::CustomOp*) { return 1; };
        made.get_end_version = [](const ort::CustomOp*) { return 1; };
        return made;
    }();
    return op;
}

ort::CustomOpDomain* make_domain(const Api* api) {
    ort::CustomOpDomain* domain = nullptr;
    check(ort::CreateCustomOpDomain::call(api, "qwenvl_edge", &domain));
    check(ort::CustomOpDomainAdd::call(api, domain, &mat_mul_n_bits()));
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
