// Text: encoding and back gives the text, with and without the linear-time encoder, and counting agrees. Also damaged
// vocabularies.
#include <cstdint>
#include <stdexcept>

#include "input.hpp"
#include "tokenizer/tokenizer.hpp"

using fuzz::require;
using qwenvl::TokenId;
using qwenvl::Tokenizer;

namespace {

constexpr std::size_t kNever = SIZE_MAX;

const Tokenizer& tokenizer(bool linear) {
    static const std::vector<qwenvl::SpecialToken> special{{"<|end|>", 300}, {"<|endoftext|>", 301}, {"<img>", 302}};
    static const Tokenizer merging(fuzz::vocabulary_file(fuzz::small_vocabulary()), special, kNever);
    static const Tokenizer linear_time(fuzz::vocabulary_file(fuzz::small_vocabulary()), special, 0);
    return linear ? linear_time : merging;
}

std::vector<TokenId> encode(const Tokenizer& tokenizer, std::string_view text, const qwenvl::SpecialMatcher& allowed) {
    std::vector<TokenId> ids;
    tokenizer.encode(text, allowed, ids);
    return ids;
}

void check_text(fuzz::Input& input) {
    const bool all = input.take<std::uint8_t>() % 2 == 0;
    const std::string text = input.take_text();
    const qwenvl::SpecialMatcher none;
    const qwenvl::SpecialMatcher& allowed = all ? tokenizer(true).special_tokens().all() : none;
    const std::vector<TokenId> ids = encode(tokenizer(true), text, allowed);
    require(encode(tokenizer(false), text, allowed) == ids, "merging gives the same ids");
    require(tokenizer(true).decode({ids.begin(), ids.end()}) == text, "decoding gives the text");
    require(tokenizer(true).count(text, allowed) == ids.size(), "count is the number of ids");
}

void check_vocabulary(fuzz::Input& input) {
    std::string file = fuzz::vocabulary_file(fuzz::small_vocabulary());
    while (input.left() > 4 && input.left() > 64) {
        const std::size_t at = input.take<std::uint16_t>() % file.size();
        file.replace(at, input.between(0, 3), input.take_bytes(input.between(0, 3)));
        if (file.empty()) return;
    }
    const std::size_t linear_after = input.take<std::uint8_t>() % 2 == 0 ? 0 : kNever;
    const std::string text = input.take_text();
    try {
        const Tokenizer changed(file, {}, linear_after);
        std::vector<TokenId> ids;
        changed.encode(text, changed.special_tokens().all(), ids);
        require(changed.decode({ids.begin(), ids.end()}) == text, "a changed vocabulary decodes its own ids");
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    const int kind = input.take<std::uint8_t>() % 8;
    if (kind == 0) {
        check_vocabulary(input);
    } else {
        check_text(input);
    }
    return 0;
}
