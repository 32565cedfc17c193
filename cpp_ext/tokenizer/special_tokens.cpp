#include "tokenizer/special_tokens.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace qwenvl {

SpecialMatcher::SpecialMatcher(std::vector<SpecialToken> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(),
              [](const SpecialToken& a, const SpecialToken& b) { return a.text < b.text; });
    const auto same_text = [](const SpecialToken& a, const SpecialToken& b) { return a.text == b.text; };
    tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), same_text), tokens_.end());
    for (const SpecialToken& token : tokens_) starts_[static_cast<unsigned char>(token.text[0])] = true;
    shared_start_ = !tokens_.empty() && std::count(starts_.begin(), starts_.end(), true) == 1;
    if (shared_start_) only_start_ = tokens_[0].text[0];
}

// Narrows the sorted tokens, byte by byte, to those that begin like the text. A token is sorted before its extensions.
const SpecialToken* SpecialMatcher::match(std::string_view text, std::size_t at) const {
    auto low = tokens_.begin(), high = tokens_.end();
    const SpecialToken* found = nullptr;
    for (std::size_t depth = 0; low != high && at + depth < text.size(); ++depth) {
        const auto byte = static_cast<unsigned char>(text[at + depth]);
        const auto byte_of = [&](const SpecialToken& token) { return static_cast<unsigned char>(token.text[depth]); };
        low = std::partition_point(low, high, [&](const SpecialToken& token) { return byte_of(token) < byte; });
        high = std::partition_point(low, high, [&](const SpecialToken& token) { return byte_of(token) == byte; });
        if (low != high && low->text.size() == depth + 1) found = &*low++;
    }
    return found;
}

std::pair<std::size_t, const SpecialToken*> SpecialMatcher::find(std::string_view text, std::size_t start) const {
    if (tokens_.empty()) return {text.size(), nullptr};
    for (std::size_t at = start; at < text.size(); ++at) {
        if (shared_start_) {
            const void* hit = std::memchr(text.data() + at, only_start_, text.size() - at);
            if (hit == nullptr) break;
            at = static_cast<std::size_t>(static_cast<const char*>(hit) - text.data());
        } else if (!starts_[static_cast<unsigned char>(text[at])]) {
            continue;
        }
        if (const SpecialToken* token = match(text, at)) return {at, token};
    }
    return {text.size(), nullptr};
}

SpecialTokens::SpecialTokens(std::vector<SpecialToken> tokens, std::size_t vocabulary_size)
    : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
        const SpecialToken& token = tokens_[i];
        if (token.text.empty()) throw std::invalid_argument("a special token has no text; give each one a text");
        if (token.id < vocabulary_size) {
            throw std::invalid_argument("special token " + token.text + " has id " + std::to_string(token.id) +
                                        ", which belongs to the vocabulary of " + std::to_string(vocabulary_size) +
                                        " ranks; use ids above it");
        }
        if (i > 0 && tokens_[i - 1].id == token.id) {
            throw std::invalid_argument("special tokens " + tokens_[i - 1].text + " and " + token.text + " share id " +
                                        std::to_string(token.id) + "; give each its own");
        }
    }
    all_ = SpecialMatcher(tokens_);
}

SpecialMatcher SpecialTokens::only(const std::vector<std::string>& texts) const {
    std::vector<SpecialToken> chosen;
    for (const std::string& text : texts) {
        const auto same = [&](const SpecialToken& token) { return token.text == text; };
        const auto found = std::find_if(tokens_.begin(), tokens_.end(), same);
        if (found == tokens_.end()) {
            throw std::invalid_argument("allowed_special names " + text +
                                        ", which is not a special token of this tokenizer");
        }
        chosen.push_back(*found);
    }
    return SpecialMatcher(std::move(chosen));
}

const SpecialToken* SpecialTokens::find(TokenId id) const {
    const auto at = std::lower_bound(tokens_.begin(), tokens_.end(), id,
                                     [](const SpecialToken& token, TokenId value) { return token.id < value; });
    return at != tokens_.end() && at->id == id ? &*at : nullptr;
}

}  // namespace qwenvl
