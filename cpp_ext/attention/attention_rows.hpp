// The arithmetic of attention on rows of numbers. Every instruction set gives the same bits.
//
// A product of two vectors is added up in 16 lanes by the place of its terms, then one half to the other, again and
// again. Sums over keys are added in the keys' order. So results do not depend on how many keys or queries are
// computed together. Sizes of heads are multiples of 16.
#pragma once

#include <cstddef>

#include "attention/half.hpp"

namespace qwenvl {

// out = rotary(x) * scale, of a head of 2 * half numbers; cos and sin have `half`.
void rotate_head(const float* x, const float* cos, const float* sin, std::size_t half, float scale, float* out);

void narrow_row(const float* x, std::size_t size, Half* out);
void widen_row(const Half* x, std::size_t size, float* out);

// out[i] = query . keys[i], of `count` keys that lie one after the other. As many numbers from `next` on are fetched
// from memory meanwhile, unless it is null.
void score_keys(const float* query, const Half* keys, std::size_t count, std::size_t dim, float* out,
                const Half* next);

// For many queries keys are turned into panels [dim, kPanelKeys], so that a register has a score of each of its keys
// and no sum runs across lanes. Where there are fewer keys the others are zero.
constexpr std::size_t kPanelKeys = 32;
void make_panel(const Half* keys, std::size_t count, std::size_t dim, float* panel);
void make_panel(const float* keys, std::size_t count, std::size_t dim, float* panel);

// The scores of two queries with all keys of a panel.
void score_panel(const float* const (&queries)[2], const float* panel, std::size_t dim, float* const (&out)[2]);

struct Exponentials {
    float most, sum;
};

// scores[i] = exp(scores[i] - most), `most` being the largest; up to the next multiple of 16 they become zero.
Exponentials take_exponentials(float* scores, std::size_t count);

// out += sum of weights[i] * values[i]; `next` as above.
void add_values(const float* weights, const float* values, std::size_t count, std::size_t dim, float* out);
void add_values(const float* weights, const Half* values, std::size_t count, std::size_t dim, float* out,
                const Half* next);
void add_values(const float* const (&weights)[4], const float* values, std::size_t count, std::size_t dim,
                float* const (&out)[4]);

// exp(x) of a number that is not above zero.
float exponential(float x);

// out = out * kept + x * taken
void merge_row(const float* x, float taken, float kept, std::size_t size, float* out);

}  // namespace qwenvl
