// One call of a tower's attention over random numbers: with every kernel of this processor, and as the tiles compute
// it, written plainly. Every array ends where its memory ends, so that a sanitizer sees an access outside.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/attention_rows.hpp"
#include "attention/patch_attention.hpp"
#include "attention/patch_tiles.hpp"
#include "matmul/block_matmul.hpp"
#include "simd/instruction_set.hpp"

namespace qwenvl {

struct PatchCase {
    std::size_t heads, dim, pictures, patches;
    std::size_t window;  // patches of a window; 0: pictures are whole
    bool rotates;
    std::uint64_t seed;
};

// The nearest bfloat16, of two equally near the even one; numbers below the smallest normal one are zero.
inline std::uint16_t as_bfloat16(float value) {
    const std::uint32_t bits = bits_of(value), size = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
    if (size > 0x7F800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
    if (size < 0x00800000u) return static_cast<std::uint16_t>(sign);
    return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

inline float of_bfloat16(std::uint16_t half) { return float_of(static_cast<std::uint32_t>(half) << 16); }
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

// The value that TDPBF16PS adds to a sum: of all pairs of products the first ones and the second ones, summed apart.
inline float add_pairs(float sum, const float* a, const float* b) {
    float first = 0, second = 0;
    for (std::size_t i = 0; i < 32; i += 2) {
        first = flushed(std::fma(a[i], b[i], first));
        second = flushed(std::fma(a[i + 1], b[i + 1], second));
    }
    return flushed(sum + flushed(first + second));
}

inline float larger(float a, float b) { return a > b ? a : b; }  // as MAXPS: the second one where one is no number

inline float power_of_two(float x) {
    x = larger(-126.0f, x);
    const float shifted = x + 12582912.0f, part = x - (shifted - 12582912.0f);
    float p = 0.00957009941f;
    for (const float next : {0.0559178591f, 0.240247443f, 0.693121791f, 0.999999285f}) p = std::fma(p, part, next);
    return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

class PatchArrays {
public:
    explicit PatchArrays(const PatchCase& given) : given_(given), random_(given.seed) {
        const std::size_t rows = given.pictures * given.patches, width = given.heads * given.dim;
        size_ = rows * width;
        qkv_ = floats(rows * 3 * width, -3, 3);
        cos_ = floats(given.patches * (given.dim / 2), -1, 1);
        sin_ = floats(given.patches * (given.dim / 2), -1, 1);
        if (given.seed % 7 == 0) qkv_[random_() % (rows * 3 * width)] = std::numeric_limits<float>::quiet_NaN();
        if (given.seed % 11 == 0) qkv_[random_() % (rows * 3 * width)] = std::numeric_limits<float>::infinity();
        segments_.clear();
        for (std::size_t picture = 0; picture < given.pictures; ++picture) {
            std::vector<std::uint32_t> order(given.patches);
            for (std::size_t i = 0; i < given.patches; ++i) {
                order[i] = static_cast<std::uint32_t>(picture * given.patches + i);
            }
            if (given.window > 0) std::shuffle(order.begin(), order.end(), random_);
            const std::size_t each = given.window > 0 ? given.window : given.patches;
            for (std::size_t i = 0; i < given.patches; ++i) {
                segments_.add(order[i]);
                if ((i + 1) % each == 0 || i + 1 == given.patches) segments_.close();
            }
        }
    }

    // The output of the kernels in use; `backwards`: its parts in the other order.
    std::vector<float> run(bool backwards) {
        return run([&](std::size_t count, auto work) {
            for (std::size_t i = 0; i < count; ++i) work(backwards ? count - 1 - i : i);
        });
    }

    // The same with its parts as each(count, work) calls work(part).
    template <typename Each>
    std::vector<float> run(Each each) {
        const std::unique_ptr<float[]> out(new float[size_]);
        const PatchCall call = this->call(out.get());
        PreparedPatches prepared;
        prepared.reset(call);
        each(prepared.pieces(), [&](std::size_t piece) { prepared.prepare(call, piece); });
        each(prepared.tasks(call), [&](std::size_t task) { prepared.attend(call, task); });
        return {out.get(), out.get() + size_};
    }

    // The output as the tiles compute it.
    std::vector<float> as_tiles() {
        std::vector<float> out(size_);
        const PatchCall call = this->call(out.data());
        for (std::size_t head = 0; head < given_.heads; ++head) {
            for (std::size_t s = 0; s < segments_.count(); ++s) {
                const std::uint32_t* const rows = segments_.rows(s);
                std::vector<Row> keys, values;
                for (std::size_t k = 0; k < segments_.size(s); ++k) {
                    keys.push_back(head_of(call, rows[k], head, 1));
                    values.push_back(head_of(call, rows[k], head, 2));
                }
                for (std::size_t q = 0; q < keys.size(); ++q) {
                    attend_plainly(call, head, rows[q], head_of(call, rows[q], head, 0), keys, values);
                }
            }
        }
        return out;
    }

private:
    using Row = std::vector<float>;

    PatchCall call(float* out) const {
        const bool rotates = given_.rotates;
        return {given_.heads,
                given_.dim,
                given_.patches,
                qkv_.get(),
                rotates ? cos_.get() : nullptr,
                rotates ? sin_.get() : nullptr,
                &segments_,
                out};
    }

    std::unique_ptr<float[]> floats(std::size_t count, float low, float high) {
        std::unique_ptr<float[]> array(new float[count]);
        std::uniform_real_distribution<float> values(low, high);
        for (std::size_t i = 0; i < count; ++i) array[i] = values(random_);
        return array;
    }

    // One head of a row's queries (0), keys (1) or values (2) in bfloat16, as long as whole tiles are.
    Row head_of(const PatchCall& call, std::size_t row, std::size_t head, std::size_t part) const {
        const float* const x = call.qkv + (row * 3 + part) * call.width() + head * call.dim;
        const float scale = part == 0 ? 1.44269504f / std::sqrt(static_cast<float>(call.dim)) : 1.0f;
        Row found((call.dim + 31) / 32 * 32);
        if (part < 2 && call.cos != nullptr) {
            const std::size_t at = row % call.patches * (call.dim / 2);
            rotate_head(x, call.cos + at, call.sin + at, call.dim / 2, scale, found.data());
        } else {
            for (std::size_t i = 0; i < call.dim; ++i) found[i] = x[i] * scale;
        }
        for (float& value : found) value = of_bfloat16(as_bfloat16(value));
        return found;
    }

    static void attend_plainly(const PatchCall& call, std::size_t head, std::size_t row, const Row& q,
                               const std::vector<Row>& keys, const std::vector<Row>& values) {
        constexpr std::size_t kTogether = 256;
        Row totals(call.dim);
        float most = -std::numeric_limits<float>::infinity(), sum = 0;
        for (std::size_t at = 0; at < keys.size(); at += kTogether) {
            const std::size_t here = std::min(keys.size() - at, kTogether), padded = (here + 31) / 32 * 32;
            Row scores(here), weights(padded);
            for (std::size_t k = 0; k < here; ++k) {
                for (std::size_t c = 0; c < q.size(); c += 32)
                    scores[k] = add_pairs(scores[k], &keys[at + k][c], &q[c]);
            }
            float now = most;
            for (const float score : scores) now = larger(score, now);
            const float kept = power_of_two(most - now);
            float sums[2] = {sum * kept, 0};
            for (std::size_t k = 0; k < here; ++k) {
                const float weight = power_of_two(scores[k] - now);
                sums[k % 2] += weight;
                weights[k] = of_bfloat16(as_bfloat16(weight));
            }
            sum = sums[0] + sums[1], most = now;
            for (std::size_t d = 0; d < call.dim; ++d) {
                totals[d] *= kept;
                for (std::size_t k = 0; k < padded; k += 32) {
                    float of_values[32];
                    for (std::size_t i = 0; i < 32; ++i) of_values[i] = k + i < here ? values[at + k + i][d] : 0.0f;
                    totals[d] = add_pairs(totals[d], of_values, &weights[k]);
                }
            }
        }
        float* const to = call.out + row * call.width() + head * call.dim;
        for (std::size_t d = 0; d < call.dim; ++d) to[d] = totals[d] * (1.0f / sum);
    }

    PatchCase given_;
    std::mt19937_64 random_;
    std::size_t size_;
    std::unique_ptr<float[]> qkv_, cos_, sin_;
    Segments segments_;
};

inline bool are_same(const std::vector<float>& a, const std::vector<float>& b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
        const bool none = std::isnan(a[i]) && std::isnan(b[i]);
        if (!none && std::memcmp(&a[i], &b[i], sizeof a[i]) != 0) return false;
    }
    return a.size() == b.size();
}

// Names the first kernels whose results are not what they must be; empty if there are none. Rows of floats must have
// the bits of the portable ones, tiles those of the plain words above.
inline std::string other_patches(const PatchCase& given) {
    PatchArrays arrays(given);
    std::string other;
    if (patch_tiles::supported()) {
        const std::vector<float> wanted = arrays.as_tiles();
        for (const bool backwards : {false, true}) {
            if (!are_same(arrays.run(backwards), wanted)) other = "tiles";
        }
    }
    const std::string products = multiply_variant();
    use_multiply("portable");
    use_kernels("portable");
    const std::vector<float> wanted = arrays.run(false);
    for (const std::string& name : kernel_variants()) {
        use_kernels(name);
        for (const bool backwards : {false, true}) {
            if (!are_same(arrays.run(backwards), wanted)) other = name;
        }
    }
    use_kernels(kernel_variants()[0]);
    use_multiply(products);
    return other;
}

}  // namespace qwenvl
