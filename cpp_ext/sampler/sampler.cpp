#include "sampler/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

#include "sampler/mass_select.hpp"
#include "sampler/philox.hpp"
#include "sampler/row_kernels.hpp"

namespace qwenvl {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr std::uint32_t kOneBits = 0x3F800000u;  // of 1.0f, the largest weight

std::size_t parts_of(std::size_t size, std::size_t part) { return (size + part - 1) / part; }

}  // namespace

// Makes room for everything that a row of this size may need, so that later rows allocate nothing.
void Sampler::reserve(std::size_t size) {
    if (size <= reserved_) return;
    group_max_.reserve(parts_of(size, kGroup));
    group_sums_.reserve(parts_of(parts_of(size, kGroup), kBlock));
    block_sums_.reserve(parts_of(size, kBlock));
    weights_.reserve(size);
    values_.reserve(size);
    candidates_.reserve(size + kGroup);
    reserved_ = size;
}

Sampler::Row Sampler::scan(const float* row, std::size_t size) {
    if (size == 0) throw std::invalid_argument("the row of logits is empty; give one logit for every id");
    reserve(size);
    group_max_.resize(parts_of(size, kGroup));
    const RowScan found = scan_row(row, size, group_max_.data());
    if (found.invalid) {
        throw std::invalid_argument(
            "the logits hold NaN or +infinity; the model's arithmetic overflowed, use a wider precision");
    }
    if (found.max == kNegativeInfinity) {
        throw std::invalid_argument("every logit is -infinity, so no id can be chosen; allow at least one id");
    }
    return {row, size, found.max};
}

std::uint32_t Sampler::first_of(const Row& row) const {
    std::size_t group = 0;
    while (group_max_[group] != row.max) ++group;
    std::size_t id = group * kGroup;
    while (row.logits[id] != row.max) ++id;
    return static_cast<std::uint32_t>(id);
}

// The k-th largest of the groups' maxima is a lower bound; few logits are above it.
float Sampler::kth_largest(const Row& row, std::size_t k) {
    float bound = kNegativeInfinity;
    const auto nth = static_cast<std::ptrdiff_t>(k) - 1;
    if (k <= group_max_.size()) {
        values_.assign(group_max_.begin(), group_max_.end());
        std::nth_element(values_.begin(), values_.begin() + nth, values_.end(), std::greater<>{});
        bound = values_[k - 1];
    }
    values_.clear();
    for (std::size_t group = 0; group < group_max_.size(); ++group) {
        if (group_max_[group] < bound) continue;
        const std::size_t end = std::min(row.size, (group + 1) * kGroup);
        for (std::size_t i = group * kGroup; i < end; ++i) {
            if (row.logits[i] >= bound) values_.push_back(row.logits[i]);
        }
    }
    std::nth_element(values_.begin(), values_.begin() + nth, values_.end(), std::greater<>{});
    return values_[k - 1];
}

void Sampler::gather_logits(const Row& row, float threshold, float inverse_temperature) {
    candidates_.clear();
    values_.clear();
    for (std::size_t group = 0; group < group_max_.size(); ++group) {
        if (group_max_[group] < threshold) continue;
        const std::size_t end = std::min(row.size, (group + 1) * kGroup);
        for (std::size_t i = group * kGroup; i < end; ++i) {
            if (row.logits[i] < threshold) continue;
            values_.push_back(row.logits[i]);
            candidates_.push_back({0, static_cast<std::uint32_t>(i)});
        }
    }
    weights_.resize(values_.size());
    block_sums_.resize(parts_of(values_.size(), kBlock));
    exp_row(values_.data(), values_.size(), row.max, inverse_temperature, weights_.data(), block_sums_.data());
    std::size_t kept = 0;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
        if (weights_[i] > 0) candidates_[kept++] = {weights_[i], candidates_[i].id};
    }
    candidates_.resize(kept);
}

double Sampler::form_weights(const Row& row, float inverse_temperature) {
    weights_.resize(row.size);
    block_sums_.resize(parts_of(row.size, kBlock));
    exp_row(row.logits, row.size, row.max, inverse_temperature, weights_.data(), block_sums_.data());
    double total = 0;
    for (double sum : block_sums_) total += sum;
    return total;
}

// Writes the weight of each group's largest logit to values_.
void Sampler::form_group_weights(const Row& row, float inverse_temperature) {
    values_.resize(group_max_.size());
    group_sums_.resize(parts_of(group_max_.size(), kBlock));
    exp_row(group_max_.data(), group_max_.size(), row.max, inverse_temperature, values_.data(), group_sums_.data());
}

// A weight below which no token of the nucleus lies: the groups' largest weights alone may reach its mass.
float Sampler::top_p_bound(double target) {
    const auto key_of = [&](std::size_t i) { return kOneBits - ordered_bits(values_[i]); };
    const auto weight_of = [&](std::size_t i) { return static_cast<double>(values_[i]); };
    const Crossing crossing = find_crossing(values_.size(), target, key_of, weight_of);
    return crossing.found ? float_of_bits(kOneBits - crossing.key) : 0.0f;
}

void Sampler::gather_weights(const Row& row, float threshold) {
    std::size_t count = 0;
    for (std::size_t group = 0; group < group_max_.size(); ++group) {
        // A margin for the last bit of the exponential, which is not always monotonic.
        if (values_[group] * 1.0001f < threshold) continue;
        candidates_.resize(count + kGroup);
        const std::size_t end = std::min(row.size, (group + 1) * kGroup);
        for (std::size_t i = group * kGroup; i < end; ++i) {
            candidates_[count] = {weights_[i], static_cast<std::uint32_t>(i)};
            count += weights_[i] >= threshold && weights_[i] > 0;
        }
    }
    candidates_.resize(count);
}

double Sampler::total_weight() const {
    double total = 0;
    for (const Candidate& candidate : candidates_) total += static_cast<double>(candidate.weight);
    return total;
}

// The bound keeps 0 * inverse temperature a number. At the bound only the likeliest tokens have any weight.
float Sampler::inverse_temperature() const { return static_cast<float>(std::min(1.0 / params_.temperature, 1e30)); }

// Order of Hugging Face's warpers: temperature, top-k, top-p, min-p, typical.
void Sampler::form_candidates(const Row& row) {
    const float inverse_temperature = this->inverse_temperature();
    const auto top_k = static_cast<std::size_t>(params_.top_k);
    if (top_k > 0 && top_k < row.size) {
        gather_logits(row, kth_largest(row, top_k), inverse_temperature);
        if (params_.top_p < 1.0) keep_top_p(total_weight());
    } else {
        const double total = form_weights(row, inverse_temperature);
        form_group_weights(row, inverse_temperature);
        auto threshold = static_cast<float>(params_.min_p * 0.999);
        if (params_.top_p < 1.0) {
            // All weights below this together are less than the mass that top-p leaves out.
            const double rest = (1.0 - params_.top_p) * total / static_cast<double>(row.size) * 0.999;
            const float bound = top_p_bound(params_.top_p * total * 1.001);
            threshold = std::max({threshold, static_cast<float>(rest), bound});
        }
        gather_weights(row, threshold);
        if (params_.top_p < 1.0) keep_top_p(total);
    }
    if (params_.min_p > 0.0) keep_min_p();
    if (params_.typical_p < 1.0) keep_typical(row, inverse_temperature);
}

// Keeps a token if the mass of all likelier ones is below top_p. Of equally likely ones the lower ids come first.
void Sampler::keep_top_p(double total) {
    const double target = params_.top_p * total;
    const auto key_of = [&](std::size_t i) { return kOneBits - ordered_bits(candidates_[i].weight); };
    const auto weight_of = [&](std::size_t i) { return static_cast<double>(candidates_[i].weight); };
    const Crossing crossing = find_crossing(candidates_.size(), target, key_of, weight_of);
    if (!crossing.found) return;
    double mass = crossing.mass_before;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
        const std::uint32_t key = key_of(i);
        if (key > crossing.key || (key == crossing.key && mass >= target)) continue;
        if (key == crossing.key) mass += weight_of(i);
        candidates_[kept++] = candidates_[i];
    }
    candidates_.resize(kept);
}

void Sampler::keep_min_p() {
    const auto below = [&](const Candidate& candidate) {
        return static_cast<double>(candidate.weight) < params_.min_p;
    };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), below), candidates_.end());
}

// Locally typical sampling (Meister et al. 2023): tokens whose surprise is nearest to the entropy.
void Sampler::keep_typical(const Row& row, float inverse_temperature) {
    const double total = total_weight(), log_total = portable_log(total);
    const auto weight_of = [&](std::size_t i) { return static_cast<double>(candidates_[i].weight); };
    const auto surprise = [&](std::size_t i) {
        return log_total - static_cast<double>((row.logits[candidates_[i].id] - row.max) * inverse_temperature);
    };
    double entropy = 0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) entropy += weight_of(i) / total * surprise(i);
    values_.clear();
    for (std::size_t i = 0; i < candidates_.size(); ++i)
        values_.push_back(static_cast<float>(std::fabs(surprise(i) - entropy)));
    const auto key_of = [&](std::size_t i) { return ordered_bits(values_[i]); };
    const Crossing crossing = find_crossing(candidates_.size(), params_.typical_p * total, key_of, weight_of);
    if (!crossing.found) return;
    std::size_t kept = 0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
        if (key_of(i) <= crossing.key) candidates_[kept++] = candidates_[i];
    }
    candidates_.resize(kept);
}

const std::vector<Candidate>& Sampler::distribution(const float* row, std::size_t size, const StepContext& step,
                                                    double& total) {
    const Row scanned = scan(processor_.apply(params_, step, row, size), size);
    if (greedy()) {
        candidates_.assign(1, {1.0f, first_of(scanned)});
    } else {
        form_candidates(scanned);
    }
    total = total_weight();
    return candidates_;
}

bool Sampler::filtered(std::size_t size) const {
    const bool top_k = params_.top_k > 0 && static_cast<std::size_t>(params_.top_k) < size;
    return top_k || params_.top_p < 1.0 || params_.min_p > 0.0 || params_.typical_p < 1.0;
}

std::uint32_t Sampler::sample(const float* row, std::size_t size, const StepContext& step) {
    const Row scanned = scan(processor_.apply(params_, step, row, size), size);
    if (greedy()) return first_of(scanned);
    const double random = uniform(params_.seed, drawn_++);
    if (!filtered(size)) return draw_from_row(scanned, random * form_weights(scanned, inverse_temperature()));
    form_candidates(scanned);
    return draw(random * total_weight());
}

std::uint32_t Sampler::draw(double point) const {
    for (const Candidate& candidate : candidates_) {
        point -= static_cast<double>(candidate.weight);
        if (point < 0) return candidate.id;
    }
    return candidates_.back().id;
}

// Finds the block first. If rounding carries the point past the last weight, the last id with any weight is drawn.
std::uint32_t Sampler::draw_from_row(const Row& row, double point) const {
    std::size_t block = 0;
    while (block + 1 < block_sums_.size() && point >= block_sums_[block]) point -= block_sums_[block++];
    std::size_t last = first_of(row);
    const std::size_t end = std::min(row.size, (block + 1) * kBlock);
    for (std::size_t i = block * kBlock; i < end; ++i) {
        if (weights_[i] == 0) continue;
        last = i;
        point -= static_cast<double>(weights_[i]);
        if (point < 0) break;
    }
    return static_cast<std::uint32_t>(last);
}

double Sampler::log_normaliser(const Row& row) {
    return portable_log(form_weights(row, 1.0f)) + static_cast<double>(row.max);
}

TokenLogProb Sampler::log_prob(const float* row, std::size_t size, std::uint32_t id) {
    const Row scanned = scan(row, size);
    return {id, static_cast<double>(row[id]) - log_normaliser(scanned)};
}

std::vector<TokenLogProb> Sampler::top_log_probs(const float* row, std::size_t size, std::size_t count) {
    const Row scanned = scan(row, size);
    count = std::min(count, size);
    std::vector<TokenLogProb> top;
    if (count == 0) return top;
    const double normaliser = log_normaliser(scanned);
    const float threshold = kth_largest(scanned, count);
    for (std::size_t i = 0; i < size; ++i) {
        if (row[i] >= threshold)
            top.push_back({static_cast<std::uint32_t>(i), static_cast<double>(row[i]) - normaliser});
    }
    std::stable_sort(top.begin(), top.end(), [](const auto& a, const auto& b) { return a.log_prob > b.log_prob; });
    top.resize(count);
    return top;
}

}  // namespace qwenvl
