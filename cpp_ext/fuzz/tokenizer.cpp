// Text: encoding and back gives the text, and counting and truncating agree with encoding. Also damaged vocabularies.
#include <stdexcept>

#include "input.hpp"
#include "qwenvl/tokenizer.hpp"

using fuzz::require;
using qwenvl::TokenId;
using qwenvl::Tokenizer;

namespace {

const Tokenizer& tokenizer() {
    static const Tokenizer instance(fuzz::vocabulary_file(fuzz::small_vocabulary()),
                                    {{"<|end|>", 300}, {"<|endoftext|>", 301}, {"<img>", 302}});
    return instance;
}

std::vector<TokenId> encode(std::string_view text, const qwenvl::SpecialMatcher& allowed) {
    std::vector<TokenId> ids;
    tokenizer().encode(text, allowed, ids);
    return ids;
}

void check_text(fuzz::Input& input) {
    const bool all = input.take<std::uint8_t>() % 2 == 0;
    const std::size_t limit = input.between(0, 40);
    const std::string text = input.take_text();
    const qwenvl::SpecialMatcher none;
    const qwenvl::SpecialMatcher& allowed = all ? tokenizer().special_tokens().all() : none;
    const std::vector<TokenId> ids = encode(text, allowed);
    require(tokenizer().decode({ids.begin(), ids.end()}) == text, "decoding gives the text");
    require(tokenizer().count(text, allowed) == ids.size(), "count is the number of ids");
    const std::size_t end = tokenizer().truncate(text, allowed, limit);
    require(end <= text.size(), "a truncated text is a prefix");
    require(tokenizer().count(std::string_view(text).substr(0, end), allowed) <= limit, "truncation keeps the limit");
    require(ids.size() > limit || end == text.size(), "a text within the limit stays whole");
}

void check_vocabulary(fuzz::Input& input) {
    std::string file = fuzz::vocabulary_file(fuzz::small_vocabulary());
    while (input.left() > 4 && input.left() > 64) {
        const std::size_t at = input.take<std::uint16_t>() % file.size();
        file.replace(at, input.between(0, 3), input.take_bytes(input.between(0, 3)));
        if (file.empty()) return;
    }
    const std::string text = input.take_text();
    try {
        const Tokenizer changed(file, {});
        std::vector<TokenId> ids;
        changed.encode(text, changed.special_tokens().all(), ids);
        require(changed.decode({ids.begin(), ids.end()}) == text, "a changed vocabulary decodes its own ids");
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    if (input.take<std::uint8_t>() % 8 == 0) {
        check_vocabulary(input);
    } else {
        check_text(input);
    }
    return 0;
}
