#include "sampler/logits_processor.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace qwenvl {
namespace {

using Float = std::numeric_limits<float>;

constexpr float kNegativeInfinity = -Float::infinity();

// The processed logit: any option a caller may give leaves a finite logit finite.
float changed(float before, float after) {
    return std::isfinite(before) ? std::clamp(after, Float::lowest(), Float::max()) : before;
}

float narrowed(double option) {
    return static_cast<float>(std::clamp<double>(option, Float::lowest(), Float::max()));
}

bool repeats_matter(const SamplingParams& params) {
    return params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
}

std::size_t index_of(std::int64_t id) {
    if (id < 0) throw std::invalid_argument("token id " + std::to_string(id) + " is negative; ids start at 0");
    return static_cast<std::size_t>(id);
}

}  // namespace

const float* LogitsProcessor::apply(const SamplingParams& params, const StepContext& step, const float* row,
                                    std::size_t size) {
    const bool penalties = repeats_matter(params) && step.previous_size > 0;
    if (!penalties && params.logit_bias.empty() && params.banned_ids.empty() && step.allowed == nullptr) return row;
    row_.assign(row, row + size);
    if (penalties) penalise(params, step);
    for (const auto& [id, bias] : params.logit_bias) {
        const std::size_t at = index_of(id);
        if (at < size) row_[at] = changed(row_[at], row_[at] + bias);
    }
    for (std::int64_t id : params.banned_ids) {
        if (index_of(id) < size) row_[index_of(id)] = kNegativeInfinity;
    }
    if (step.allowed != nullptr) {
        for (std::size_t i = 0; i < size; ++i) row_[i] = step.allowed[i] ? row_[i] : kNegativeInfinity;
    }
    return row_.data();
}

// The repetition penalty (Keskar et al. 2019, "CTRL") includes the prompt; presence and frequency count generated ids
// only.
void LogitsProcessor::penalise(const SamplingParams& params, const StepContext& step) {
    const float penalty = std::max(narrowed(params.repetition_penalty), Float::min());
    for (std::size_t i = 0; i < step.previous_size; ++i) index_of(step.previous[i]);
    counts_.resize(row_.size(), 0);
    for (std::size_t i = 0; i < step.previous_size; ++i) {
        const auto id = static_cast<std::size_t>(step.previous[i]);
        if (id >= row_.size() || counts_[id]++ > 0) continue;
        const float logit = row_[id];
        row_[id] = changed(logit, logit < 0 ? logit * penalty : logit / penalty);
    }
    const auto clear = [&](std::size_t from) {
        for (std::size_t i = from; i < step.previous_size; ++i) {
            const auto id = static_cast<std::size_t>(step.previous[i]);
            if (id < row_.size()) counts_[id] = 0;
        }
    };
    clear(0);
    for (std::size_t i = step.prompt_size; i < step.previous_size; ++i) {
        const auto id = static_cast<std::size_t>(step.previous[i]);
        if (id >= row_.size()) continue;
        if (counts_[id]++ == 0) row_[id] = changed(row_[id], row_[id] - narrowed(params.presence_penalty));
        row_[id] = changed(row_[id], row_[id] - narrowed(params.frequency_penalty));
    }
    clear(step.prompt_size);
}

}  // namespace qwenvl
