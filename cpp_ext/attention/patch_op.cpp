#include "attention/patch_op.hpp"

#include <algorithm>

#include "attention/patch_attention.hpp"
#include "matmul/ort_call.hpp"
#include "simd/lent.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t { kQkv, kCos, kSin, kGather, kKeys, kInputs };

using Shape = std::vector<std::int64_t>;

constexpr std::int64_t kMostDims = 256;  // of a head

class PatchAttention {
public:
    PatchAttention(const Api* api, const ort::KernelInfo* info) : api_(api) {
        heads_ = attribute(api, info, "num_heads");
        if (heads_ < 1) throw std::invalid_argument("num_heads must be at least 1; export the bundle again");
    }

    const Api* api() const { return api_; }

    void compute(ort::KernelContext* context) const {
        const ort::Value* const qkv = input(api_, context, kQkv);
        const Shape shape = shape_of(api_, qkv);
        if (shape.size() != 3 || shape[2] % (3 * heads_) != 0 || shape[2] == 0 || shape[2] / (3 * heads_) > kMostDims) {
            throw std::invalid_argument("PatchAttention takes [N, P, 3 * num_heads * D] with D up to 256");
        }
        const std::int64_t pictures = shape[0], patches = shape[1], dim = shape[2] / (3 * heads_);
        PatchCall call{};
        call.heads = static_cast<std::size_t>(heads_), call.dim = static_cast<std::size_t>(dim);
        call.patches = static_cast<std::size_t>(patches);
        call.qkv = data_of<const float>(api_, qkv);
        call.cos = given<float>(context, kCos, {patches, dim / 2});
        call.sin = given<float>(context, kSin, {patches, dim / 2});
        if ((call.cos == nullptr) != (call.sin == nullptr) || (call.cos != nullptr && dim % 2 != 0)) {
            throw std::invalid_argument("the rotary rows of PatchAttention are incomplete");
        }
        Segments segments;
        fill(context, segments, pictures, patches);
        call.segments = &segments;
        const Shape made{pictures, patches, heads_ * dim};
        ort::Value* out = nullptr;
        check(ort::GetOutput::call(api_, context, std::size_t{0}, made.data(), made.size(), &out));
        call.out = data_of<float>(api_, out);
        if (input(api_, context, kGather) != nullptr) {
            std::fill_n(call.out, static_cast<std::size_t>(pictures * patches * heads_ * dim), 0.0f);
        }
        run(context, call);
    }

private:
    template <typename T>
    const T* given(const ort::KernelContext* context, Input index, const Shape& shape) const {
        const ort::Value* const value = input(api_, context, index);
        if (value == nullptr) return nullptr;
        if (shape_of(api_, value) != shape) {
            throw std::invalid_argument("the inputs of PatchAttention do not fit together");
        }
        return data_of<const T>(api_, value);
    }

    // A segment per picture, or per window of each.
    void fill(const ort::KernelContext* context, Segments& segments, std::int64_t pictures, std::int64_t patches) const {
        segments.clear();
        const ort::Value* const keys = input(api_, context, kKeys);
        if (keys == nullptr) {
            for (std::int64_t row = 0; row < pictures * patches; ++row) {
                segments.add(static_cast<std::uint32_t>(row));
                if ((row + 1) % patches == 0) segments.close();
            }
            return;
        }
        const Shape windows = shape_of(api_, keys);
        if (windows.size() != 4) throw std::invalid_argument("the windows of PatchAttention must be [W, 1, 1, G]");
        const auto* const gather = given<std::int64_t>(context, kGather, {windows[0] * windows[3]});
        if (gather == nullptr) throw std::invalid_argument("the windows of PatchAttention have no patches");
        const bool* const filled = data_of<const bool>(api_, keys);
        for (std::int64_t row = 0; row < pictures * patches; row += patches) {
            for (std::int64_t i = 0; i < windows[0] * windows[3]; ++i) {
                if (filled[i] && (gather[i] < 0 || gather[i] >= patches)) {
                    throw std::invalid_argument("a window of PatchAttention names a patch that does not exist");
                }
                if (filled[i]) segments.add(static_cast<std::uint32_t>(row + gather[i]));
                if ((i + 1) % windows[3] == 0) segments.close();
            }
        }
    }

    void run(const ort::KernelContext* context, const PatchCall& call) const {
        const Lent<PreparedPatches> lent;
        PreparedPatches& prepared = *lent;
        prepared.reset(call);
        if (prepared.pieces() == 0) return;
        share(api_, context, prepared.pieces(), [&](std::size_t piece) { prepared.prepare(call, piece); });
        share(api_, context, prepared.tasks(call), [&](std::size_t task) { prepared.attend(call, task); });
    }

    const Api* api_;
    std::int64_t heads_ = 0;
};

ort::ElementType type_of(std::size_t input) {
    if (input == kGather) return ort::kInt64;
    return input == kKeys ? ort::kBool : ort::kFloat;
}

ort::CustomOp make_op() {
    ort::CustomOp made{};
    made.version = ort::kApiVersion;
    made.get_name = [](const ort::CustomOp*) { return "PatchAttention"; };
    made.get_execution_provider_type = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
    made.get_input_type_count = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
    made.get_input_type = [](const ort::CustomOp*, std::size_t i) { return type_of(i); };
    made.get_output_type_count = [](const ort::CustomOp*) -> std::size_t { return 1; };
    made.get_output_type = [](const ort::CustomOp*, std::size_t) { return ort::kFloat; };
    made.get_input_characteristic = [](const ort::CustomOp*, std::size_t i) {
        return i >= kCos ? ort::kOptional : ort::kRequired;
    };
    made.get_output_characteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
    made.get_input_memory_type = [](const ort::CustomOp*, std::size_t) { return 0; };
    made.get_variadic_input_min_arity = made.get_variadic_output_min_arity = [](const ort::CustomOp*) { return 1; };
    made.get_variadic_input_homogeneity = made.get_variadic_output_homogeneity = [](const ort::CustomOp*) { return 1; };
    made.create_kernel_v2 = [](const ort::CustomOp*, const Api* api, const ort::KernelInfo* info, void** kernel) {
        return guarded(api, [&] { *kernel = new PatchAttention(api, info); });
    };
    made.kernel_compute_v2 = [](void* kernel, ort::KernelContext* context) {
        const auto* const op = static_cast<const PatchAttention*>(kernel);
        return guarded(op->api(), [&] { op->compute(context); });
    };
    made.kernel_destroy = [](void* kernel) { delete static_cast<PatchAttention*>(kernel); };
    made.get_start_version = [](const ort::CustomOp*) { return 1; };
    made.get_end_version = [](const ort::CustomOp*) { return 1; };
    return made;
}

}  // namespace

const ort::CustomOp* patch_attention_op() {
    static const ort::CustomOp made = make_op();
    return &made;
}

}  // namespace qwenvl
