// One call of attention over a cache of random numbers, computed with every instruction set of this processor and in
// several ways that must not matter. Every array ends where its memory ends, so that a sanitizer sees an access outside.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/cached_attention.hpp"
#include "simd/instruction_set.hpp"

namespace qwenvl {

struct AttentionCase {
    AttentionShape shape;
    std::size_t before;  // tokens in the cache, of the last row; earlier rows have fewer
    bool scaled, normed;
    std::uint64_t seed;
};

class AttentionArrays {
public:
    explicit AttentionArrays(const AttentionCase& given) : given_(given), random_(given.seed) {
        const AttentionShape& shape = given.shape;
        const std::size_t tokens = shape.batch * shape.tokens;
        qkv_ = floats(tokens * shape.width(), -3, 3);
        cos_ = floats(tokens * shape.dim / 2, -1, 1);
        sin_ = floats(tokens * shape.dim / 2, -1, 1);
        scale_ = floats(tokens, 1, 2);
        norms_ = floats(2 * shape.dim, 0.5, 2);
        count_ = shape.batch * shape.kv_heads * shape.capacity * shape.dim;
        const auto wide = floats(2 * count_, -3, 3);
        past_.reset(new Half[2 * count_]);
        for (std::size_t i = 0; i < 2 * count_; ++i) past_[i] = narrowed(wide[i]);
        for (std::size_t i = 0; i < shape.batch; ++i) {
            const std::size_t before = given.before - given.before * (shape.batch - 1 - i) / shape.batch;
            last_.push_back(static_cast<std::int32_t>(before + shape.tokens - 1));
        }
        if (given.seed % 7 == 0) qkv_[random_() % (tokens * shape.width())] = 1e30f;
        if (given.seed % 11 == 0) {
            qkv_[random_() % (tokens * shape.width())] = std::numeric_limits<float>::quiet_NaN();
        }
    }

    // The output and the cache after it, one after the other; `apart`: a span of keys at a time.
    std::vector<float> run(bool apart) {
        const AttentionShape& shape = given_.shape;
        std::unique_ptr<Half[]> keys(new Half[count_]), values(new Half[count_]);
        std::memcpy(keys.get(), past_.get(), count_ * sizeof(Half));
        std::memcpy(values.get(), past_.get() + count_, count_ * sizeof(Half));
        const std::size_t tokens = shape.batch * shape.tokens, width = shape.heads * shape.dim;
        std::vector<float> out(tokens * width + 2 * count_);
        std::unique_ptr<float[]> queries(new float[tokens * width]);
        AttentionCall call{shape,         qkv_.get(), cos_.get(), sin_.get(), last_.data(), nullptr, nullptr,
                           nullptr,       1e-6f,      keys.get(), values.get(), out.data()};
        if (given_.scaled) call.query_scale = scale_.get();
        if (given_.normed) call.q_norm = norms_.get(), call.k_norm = norms_.get() + shape.dim;
        for (std::size_t i = 0; i < tokens; ++i) prepare_token(call, i, queries.get());
        for (std::size_t row = 0; row < shape.batch; ++row) {
            for (std::size_t head = 0; head < shape.kv_heads; ++head) {
                const std::size_t all = shape.tokens * shape.group();
                for (std::size_t first = 0; first < all; first += kMostQueries) {
                    const QueryBlock block{row, head, first, std::min(first + kMostQueries, all)};
                    apart ? by_spans(call, queries.get(), block) : attend(call, queries.get(), block);
                }
            }
        }
        for (std::size_t i = 0; i < count_; ++i) {
            out[tokens * width + i] = widened(keys[i]);
            out[tokens * width + count_ + i] = widened(values[i]);
        }
        return out;
    }

private:
    std::unique_ptr<float[]> floats(std::size_t count, float low, float high) {
        std::unique_ptr<float[]> array(new float[count]);
        std::uniform_real_distribution<float> values(low, high);
        for (std::size_t i = 0; i < count; ++i) array[i] = values(random_);
        return array;
    }

    static void by_spans(const AttentionCall& call, const float* queries, const QueryBlock& block) {
        const std::size_t spans = spans_of(call, block), each = (block.last - block.first) * call.shape.dim;
        std::vector<SpanResult> results(spans);
        std::vector<float> values(spans * each);
        for (std::size_t i = spans; i-- > 0;) {
            results[i].values = values.data() + i * each;
            attend_span(call, queries, block, i, results[i]);
        }
        join_spans(call, block, results.data(), spans);
    }

    AttentionCase given_;
    std::mt19937_64 random_;
    std::size_t count_;
    std::unique_ptr<float[]> qkv_, cos_, sin_, scale_, norms_;
    std::unique_ptr<Half[]> past_;
    std::vector<std::int32_t> last_;
};

// Names the first way of computing a case whose bits are not those of the portable kernels; empty if there is none.
inline std::string other_attention(const AttentionCase& given) {
    AttentionArrays arrays(given);
    use_kernels("portable");
    const std::vector<float> wanted = arrays.run(false);
    std::string other;
    for (const std::string& name : kernel_variants()) {
        use_kernels(name);
        for (const bool apart : {false, true}) {
            const std::vector<float> found = arrays.run(apart);
            for (std::size_t i = 0; i < found.size() && other.empty(); ++i) {
                const bool same = (std::isnan(found[i]) && std::isnan(wanted[i])) ||
                                  std::memcmp(&found[i], &wanted[i], sizeof wanted[i]) == 0;
                if (!same) other = name + (apart ? ", by spans" : "");
            }
        }
    }
    use_kernels(kernel_variants()[0]);
    return other;
}

}  // namespace qwenvl
