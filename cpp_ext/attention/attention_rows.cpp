#include "attention/attention_rows.hpp"

#include <cmath>
#include <limits>

#include "simd/instruction_set.hpp"
#include "simd/intrinsics.hpp"

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16;

#define QWENVL_INLINE QWENVL_TARGET inline __attribute__((always_inline))
#define QWENVL_KERNELS "attention/attention_rows.inc"
#include "simd/each_instruction_set.inc"

}  // namespace

void rotate_head(const float* x, const float* cos, const float* sin, std::size_t half, float scale, float* out) {
    QWENVL_CHOOSE(rotate_head)(x, cos, sin, half, scale, out);
}

void narrow_row(const float* x, std::size_t size, Half* out) { QWENVL_CHOOSE(narrow_row)(x, size, out); }

void widen_row(const Half* x, std::size_t size, float* out) { QWENVL_CHOOSE(widen_row)(x, size, out); }

void score_keys(const float* query, const Half* keys, std::size_t count, std::size_t dim, float* out,
                const Half* next) {
    QWENVL_CHOOSE(score_rows)(query, keys, count, dim, out, next);
}

void make_panel(const Half* keys, std::size_t count, std::size_t dim, float* panel) {
    QWENVL_CHOOSE(panel_of_halves)(keys, count, dim, panel);
}

void make_panel(const float* keys, std::size_t count, std::size_t dim, float* panel) {
    QWENVL_CHOOSE(panel_of_floats)(keys, count, dim, panel);
}

void score_panel(const float* const (&queries)[2], const float* panel, std::size_t dim, float* const (&out)[2]) {
    QWENVL_CHOOSE(score_panel_pair)(queries, panel, dim, out);
}

Exponentials take_exponentials(float* scores, std::size_t count) {
    return QWENVL_CHOOSE(take_exponentials)(scores, count);
}

void add_values(const float* weights, const float* values, std::size_t count, std::size_t dim, float* out) {
    QWENVL_CHOOSE(add_wide)({weights}, values, count, dim, {out});
}

void add_values(const float* weights, const Half* values, std::size_t count, std::size_t dim, float* out,
                const Half* next) {
    QWENVL_CHOOSE(add_narrow)({weights}, values, count, dim, {out}, next);
}

void add_values(const float* const (&weights)[4], const float* values, std::size_t count, std::size_t dim,
                float* const (&out)[4]) {
    QWENVL_CHOOSE(add_wide_four)(weights, values, count, dim, out);
}

float exponential(float x) { return QWENVL_CHOOSE(exponential)(x); }

void merge_row(const float* x, float taken, float kept, std::size_t size, float* out) {
    QWENVL_CHOOSE(merge_row)(x, taken, kept, size, out);
}

}  // namespace qwenvl
