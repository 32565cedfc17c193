#include "attention/patch_op.hpp"

#include <algorithm>

#include "attention/patch_attention.hpp"
#include "matmul/ort_op.hpp"
#include "simd/lent.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t { kQkv, kCos, kSin, kGather, kKeys, kInputs };

constexpr std::int64_t kMostDims = 256;  // of a head

class PatchAttention : public OpKernel {
public:
    static constexpr const char* kName = "PatchAttention";
    static constexpr std::size_t kInputCount = kInputs, kFirstOptional = kCos;
    static ort::ElementType input_type(std::size_t i) {
        if (i == kGather) return ort::kInt64;
        return i == kKeys ? ort::kBool : ort::kFloat;
    }

    PatchAttention(const Api* api, const ort::KernelInfo* info) : OpKernel(api, kName) {
        heads_ = attribute(api, info, "num_heads");
        if (heads_ < 1) throw std::invalid_argument("num_heads must be at least 1; export the bundle again");
    }

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
        call.out = made<float>(context, 0, {pictures, patches, heads_ * dim});
        if (input(api_, context, kGather) != nullptr) {
            std::fill_n(call.out, static_cast<std::size_t>(pictures * patches * heads_ * dim), 0.0f);
        }
        run(context, call);
    }

private:
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

    std::int64_t heads_ = 0;
};

}  // namespace

const ort::CustomOp* patch_attention_op() { return describe<PatchAttention>(); }

}  // namespace qwenvl
