#include "tokenizer/incremental_decoder.hpp"

#include <algorithm>
#include <stdexcept>

namespace qwenvl {

IncrementalDecoder::IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stop)
    : tokenizer_(std::move(tokenizer)), stop_(std::move(stop)) {
    for (const std::string& text : stop_) {
        if (text.empty()) throw std::invalid_argument("a stop string is empty; leave it out");
    }
}

std::string IncrementalDecoder::push(std::int64_t id) {
    const std::string_view bytes = tokenizer_->token_bytes(id);
    if (ended_) return {};
    characters_.push(bytes, held_);
    return take(false);
}

std::string IncrementalDecoder::finish() {
    if (ended_) return {};
    characters_.finish(held_);
    return take(true);
}

// The match that starts first. Of two that start together the shorter, since it is complete first.
IncrementalDecoder::Match IncrementalDecoder::first_match() const {
    Match best{held_.size(), nullptr};
    for (const std::string& stop : stop_) {
        const std::size_t at = held_.find(stop);
        if (at == std::string::npos) continue;
        if (best.stop == nullptr || at < best.start || (at == best.start && stop.size() < best.stop->size())) {
            best = {at, &stop};
        }
    }
    return best;
}

// First position below `before` such that the held text from there on is the beginning of a stop string.
std::size_t IncrementalDecoder::first_open_start(std::size_t before) const {
    for (const std::string& stop : stop_) {
        const std::size_t longest = std::min(stop.size() - 1, held_.size());
        for (std::size_t at = held_.size() - longest; at < before; ++at) {
            if (stop.compare(0, held_.size() - at, held_, at) == 0) {
                before = at;
                break;
            }
        }
    }
    return before;
}

std::string IncrementalDecoder::take(bool at_end) {
    const Match match = first_match();
    const std::size_t limit = match.start;
    const std::size_t open = at_end ? limit : first_open_start(limit);
    if (match.stop != nullptr && open == limit) {
        stopped_ = match.stop;
        ended_ = true;
    }
    std::string text = held_.substr(0, open);
    held_.erase(0, open);
    if (ended_ || at_end) {
        held_.clear();
        ended_ = true;
    }
    return text;
}

}  // namespace qwenvl
