// Logits to the next token: the distribution that Hugging Face's processors define, drawn with a counter-based
// generator.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sampler/logits_processor.hpp"

namespace qwenvl {

struct Candidate {
    float weight;  // not normalised; the most likely token of the row has weight 1
    std::uint32_t id;
};

struct TokenLogProb {
    std::uint32_t id;
    double log_prob;
};

class Sampler {
public:
    explicit Sampler(SamplingParams params) : params_(std::move(params)) {}

    // Next token for logits `row` [size]. Throws std::invalid_argument for NaN, +infinity, or no id left to choose.
    std::uint32_t sample(const float* row, std::size_t size, const StepContext& step);

    // The tokens that sample() chooses from, by id, and the sum of their weights.
    const std::vector<Candidate>& distribution(const float* row, std::size_t size, const StepContext& step,
                                               double& total);

    // Log-probability of `id` and of the `count` likeliest ids, under the logits as they are (before any setting).
    TokenLogProb log_prob(const float* row, std::size_t size, std::uint32_t id);
    std::vector<TokenLogProb> top_log_probs(const float* row, std::size_t size, std::size_t count);

private:
    struct Row {
        const float* logits;
        std::size_t size;
        float max;
    };

    bool greedy() const { return params_.temperature == 0.0; }
    void reserve(std::size_t size);
    Row scan(const float* row, std::size_t size);
    std::uint32_t first_of(const Row& row) const;
    float inverse_temperature() const;
    bool filtered(std::size_t size) const;
    float kth_largest(const Row& row, std::size_t k);
    void gather_logits(const Row& row, float threshold, float inverse_temperature);
    double form_weights(const Row& row, float inverse_temperature);
    void form_candidates(const Row& row);
    void form_group_weights(const Row& row, float inverse_temperature);
    float top_p_bound(double target);
    void gather_weights(const Row& row, float threshold);
    std::uint32_t draw(double point) const;
    std::uint32_t draw_from_row(const Row& row, double point) const;
    double total_weight() const;
    void keep_top_p(double total);
    void keep_min_p();
    void keep_typical(const Row& row, float inverse_temperature);
    double log_normaliser(const Row& row);

    SamplingParams params_;
    std::uint64_t drawn_ = 0;
    std::size_t reserved_ = 0;  // row size that the buffers have room for
    LogitsProcessor processor_;
    std::vector<float> group_max_, weights_, values_;
    std::vector<double> block_sums_, group_sums_;
    std::vector<Candidate> candidates_;
};

}  // namespace qwenvl
