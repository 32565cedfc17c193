// Changes of single logits before the distribution is formed: penalties, bias, banned and allowed ids.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace qwenvl {

struct SamplingParams {
    double temperature = 1.0;  // 0: greedy
    std::int64_t top_k = 0;    // 0: off
    double top_p = 1.0;
    double min_p = 0.0;
    double typical_p = 1.0;
    double repetition_penalty = 1.0;
    double presence_penalty = 0.0;
    double frequency_penalty = 0.0;
    std::vector<std::pair<std::int64_t, float>> logit_bias;
    std::vector<std::int64_t> banned_ids;
    std::uint64_t seed = 0;
};

// The tokens so far and the constraint of one step.
struct StepContext {
    const std::int64_t* previous = nullptr;  // prompt and generated ids
    std::size_t previous_size = 0;
    std::size_t prompt_size = 0;            // how many of them are the prompt
    const std::uint8_t* allowed = nullptr;  // [V], 0 where an id may not be chosen; may be null
};

class LogitsProcessor {
public:
    // `row` [size] itself, or a changed copy that is valid until the next call. Throws std::invalid_argument for
    // negative ids.
    const float* apply(const SamplingParams& params, const StepContext& step, const float* row, std::size_t size);

private:
    void penalise(const SamplingParams& params, const StepContext& step);

    std::vector<float> row_;
    std::vector<std::uint32_t> counts_;  // [V], all zero between calls
};

}  // namespace qwenvl
