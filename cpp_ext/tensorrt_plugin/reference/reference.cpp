#include "reference.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../kernels/layout.hpp"

namespace qwenvl {
namespace {

template <typename Float>
double widen(Float x) {
    return static_cast<double>(static_cast<float>(x));
}

// The rounding that the definition asks for, float32 first.
template <typename Float>
Float rounded(double x) {
    return Float(static_cast<float>(x));
}

// A head's vector of one token, as rotate_half turns it for its position; in float32, as the kernels do.
template <typename Float>
std::vector<float> rotate(const Float* x, const Arguments& args, std::int64_t token, float scale) {
    const int half = args.sizes.head_dim / 2;
    const std::int64_t row = token * half;
    std::vector<float> y(2 * half);
    for (int i = 0; i < half; ++i) {
        const auto low = static_cast<float>(x[i]), high = static_cast<float>(x[i + half]);
        const float cos = args.rope_cos[row + i], sin = args.rope_sin[row + i];
        y[i] = (low * cos - high * sin) * scale;
        y[i + half] = (high * cos + low * sin) * scale;
    }
    return y;
}

// One side of the cache: the keys or the values.
struct Side {
    void* data;
    float* scale;
    bool int8;
    int head_dim;

    template <typename Float>
    void store(std::int64_t row, const std::vector<float>& x) const {
        if (!int8) {
            std::transform(x.begin(), x.end(), static_cast<Float*>(data) + row * head_dim, rounded<Float>);
            return;
        }
        float largest = 0.0f;
        for (const float v : x) largest = std::max(largest, std::fabs(v));
        scale[row] = largest / 127.0f;
        const float divisor = scale[row] > 0.0f ? scale[row] : 1.0f;
        for (int i = 0; i < head_dim; ++i)
            static_cast<std::int8_t*>(data)[row * head_dim + i] =
                static_cast<std::int8_t>(std::nearbyint(x[i] / divisor));
    }

    template <typename Float>
    double at(std::int64_t row, int i) const {
        if (int8) return static_cast<double>(scale[row]) * static_cast<std::int8_t*>(data)[row * head_dim + i];
        return widen(static_cast<Float*>(data)[row * head_dim + i]);
    }
};

template <typename Float>
struct Reference {
    const Arguments& args;
    const Sizes& sizes = args.sizes;
    Side key{args.key, args.key_scale, args.int8_cache != 0, sizes.head_dim};
    Side value{args.value, args.value_scale, args.int8_cache != 0, sizes.head_dim};

    // k (kind 0) or v (kind 1) of a token, in qkv.
    const Float* source(std::int64_t token, int kind, int head) const {
        const int width = sizes.heads + 2 * sizes.kv_heads, column = sizes.heads + kind * sizes.kv_heads + head;
        return static_cast<const Float*>(args.qkv) + (token * width + column) * sizes.head_dim;
    }

    void write(int batch, int head, int t) const {
        const int position = first_position(sizes, args.write_indices[batch]) + t;
        if (position < 0 || position >= sizes.capacity) return;
        const std::int64_t token = std::int64_t{batch} * sizes.tokens + t;
        const std::int64_t row = cache_index(sizes, batch, head) + position;
        const Float* v = source(token, 1, head);
        key.store<Float>(row, rotate(source(token, 0, head), args, token, 1.0f));
        value.store<Float>(row, std::vector<float>(v, v + sizes.head_dim));
    }

    void attend(const QueryRows& rows, int row) const {
        const int first = first_position(sizes, args.write_indices[rows.batch]);
        const int end = std::min(used_keys(sizes, first), first + rows.token(row) + 1);
        const std::int64_t token = rows.token_index(row), head = cache_index(sizes, rows.batch, rows.kv_head);
        auto query =
            rotate(static_cast<const Float*>(args.qkv) + rows.query_offset(row), args, token, args.query_scale[token]);
        std::vector<double> scores(std::max(end, 0)), out(sizes.head_dim);
        for (float& q : query) q = static_cast<float>(rounded<Float>(q));
        for (int c = 0; c < end; ++c)
            for (int i = 0; i < sizes.head_dim; ++i)
                scores[c] += query[i] * key.at<Float>(head + c, i) / std::sqrt(sizes.head_dim);
        const double maximum = scores.empty() ? 0.0 : *std::max_element(scores.begin(), scores.end());
        double sum = 0.0;
        for (int c = 0; c < end; ++c) {
            const double weight = std::exp(scores[c] - maximum);
            sum += weight;
            for (int i = 0; i < sizes.head_dim; ++i) out[i] += weight * value.at<Float>(head + c, i);
        }
        for (int i = 0; i < sizes.head_dim; ++i)
            static_cast<Float*>(args.out)[rows.out_offset(row) + i] = rounded<Float>(sum > 0.0 ? out[i] / sum : 0.0);
    }

    void operator()() const {
        for (int b = 0; b < sizes.batch; ++b)
            for (int h = 0; h < sizes.kv_heads; ++h) {
                for (int t = 0; t < sizes.tokens; ++t) write(b, h, t);
                const QueryRows rows{sizes, b, h};
                for (int r = 0; r < rows.count(); ++r) attend(rows, r);
            }
    }
};

}  // namespace

void reference_attention(const Arguments& args) {
    if (args.float_type == FloatType::kHalf)
        Reference<__half>{args}();
    else
        Reference<__nv_bfloat16>{args}();
}

}  // namespace qwenvl
