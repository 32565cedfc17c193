#include "attention/attention_op.hpp"

#include <algorithm>
#include <cstring>

#include "attention/cached_attention.hpp"
#include "matmul/ort_op.hpp"
#include "simd/aligned.hpp"

namespace qwenvl {
namespace {

enum Input : std::size_t { kQkv, kCos, kSin, kLast, kPastKey, kPastValue, kQueryScale, kQNorm, kKNorm, kInputs };
enum Output : std::size_t { kOut, kPresentKey, kPresentValue, kOutputs };

constexpr std::size_t kPreparedTogether = 4;  // tokens of a task
constexpr std::size_t kManyBlocks = 8;        // so many blocks of queries occupy the threads without being divided

class CachedAttention : public OpKernel {
public:
    static constexpr const char* kName = "CachedAttention";
    static constexpr std::size_t kInputCount = kInputs, kFirstOptional = kQueryScale, kOutputCount = kOutputs;
    static ort::ElementType input_type(std::size_t i) {
        if (i == kLast) return ort::kInt32;
        return i == kPastKey || i == kPastValue ? ort::kFloat16 : ort::kFloat;
    }
    static ort::ElementType output_type(std::size_t i) { return i == kOut ? ort::kFloat : ort::kFloat16; }

    CachedAttention(const Api* api, const ort::KernelInfo* info) : OpKernel(api, kName) {
        heads_ = attribute(api, info, "num_heads");
        kv_heads_ = attribute(api, info, "kv_num_heads");
        check(ort::KernelInfoGetFloat::call(api, info, "epsilon", &epsilon_));
        if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_ != 0) {
            throw std::invalid_argument("num_heads must be a multiple of kv_num_heads; export the bundle again");
        }
    }

    void compute(ort::KernelContext* context) const {
        const Shape cache = shape_of(api_, input(api_, context, kPastKey));
        const Shape rope = shape_of(api_, input(api_, context, kCos));
        if (cache.size() != 4 || rope.size() != 3 || cache[1] != kv_heads_ || cache[3] % 16 != 0) {
            throw std::invalid_argument("the cache must be [B, kv_num_heads, C, D] with D a multiple of 16");
        }
        const std::int64_t batch = cache[0], tokens = rope[1], dim = cache[3];
        AttentionCall call{};
        call.shape = {size(batch), size(tokens), size(heads_), size(kv_heads_), size(dim), size(cache[2])};
        call.epsilon = epsilon_;
        call.qkv = given<float>(context, kQkv, {batch * tokens, (heads_ + 2 * kv_heads_) * dim});
        call.cos = given<float>(context, kCos, {batch, tokens, dim / 2});
        call.sin = given<float>(context, kSin, {batch, tokens, dim / 2});
        call.last = given<std::int32_t>(context, kLast, {batch});
        call.query_scale = given<float>(context, kQueryScale, {batch, tokens});
        call.q_norm = given<float>(context, kQNorm, {dim});
        call.k_norm = given<float>(context, kKNorm, {dim});
        for (std::int64_t i = 0; i < batch; ++i) {
            if (call.last[i] < tokens - 1 || call.last[i] >= cache[2]) {
                throw std::invalid_argument("last_indices lie outside the cache");
            }
        }
        call.out = made<float>(context, kOut, {batch * tokens, heads_ * dim});
        call.keys = present(context, kPastKey, kPresentKey, cache);
        call.values = present(context, kPastValue, kPresentValue, cache);
        if (batch * tokens > 0) run(context, call);
    }

private:
    static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

    // The cache after the call, with the rows before it; nothing is copied where both are bound to the same memory.
    Half* present(ort::KernelContext* context, Input past, Output index, const Shape& shape) const {
        const Half* const before = given<Half>(context, past, shape);
        Half* const after = made<Half>(context, index, shape);
        const std::size_t count = size(shape[0] * shape[1] * shape[2] * shape[3]);
        if (after != before) std::memcpy(after, before, count * sizeof(Half));
        return after;
    }

    void run(const ort::KernelContext* context, const AttentionCall& call) const {
        thread_local AlignedVector<float> rotated;
        const AttentionShape& shape = call.shape;
        const std::size_t count = shape.batch * shape.tokens, width = shape.heads * shape.dim;
        rotated.resize(count * width);
        float* const queries = rotated.data();  // a thread_local name would mean another object on the other threads
        share(api_, context, (count + kPreparedTogether - 1) / kPreparedTogether, [&](std::size_t task) {
            const std::size_t first = task * kPreparedTogether, last = std::min(first + kPreparedTogether, count);
            for (std::size_t i = first; i < last; ++i) prepare_token(call, i, queries);
        });
        const std::size_t of_head = shape.tokens * shape.group();
        const std::size_t per_head = (of_head + kMostQueries - 1) / kMostQueries;
        const std::size_t blocks = shape.batch * shape.kv_heads * per_head;
        const auto block_of = [&](std::size_t task) {
            const std::size_t head = task / per_head, first = task % per_head * kMostQueries;
            return QueryBlock{head / shape.kv_heads, head % shape.kv_heads, first,
                              std::min(first + kMostQueries, of_head)};
        };
        if (blocks >= kManyBlocks) {
            share(api_, context, blocks, [&](std::size_t task) { attend(call, queries, block_of(task)); });
        } else {
            for (std::size_t i = 0; i < blocks; ++i) divided(context, call, queries, block_of(i));
        }
    }

    // Attends with one block of queries, a span of keys per task.
    void divided(const ort::KernelContext* context, const AttentionCall& call, const float* queries,
                 const QueryBlock& block) const {
        thread_local std::vector<SpanResult> results;
        thread_local AlignedVector<float> kept;
        const std::size_t spans = spans_of(call, block), each = (block.last - block.first) * call.shape.dim;
        results.resize(spans);
        kept.resize(spans * each);
        for (std::size_t i = 0; i < spans; ++i) results[i].values = kept.data() + i * each;
        SpanResult* const found = results.data();
        share(api_, context, spans, [&](std::size_t i) { attend_span(call, queries, block, i, found[i]); });
        join_spans(call, block, found, spans);
    }

    std::int64_t heads_ = 0, kv_heads_ = 0;
    float epsilon_ = 0;
};

}  // namespace

const ort::CustomOp* attention_op() { return describe<CachedAttention>(); }

}  // namespace qwenvl
