// Text: encoding and back gives the text, and counting and truncating agree with encoding. Also damaged vocabularies.
#include <stdexcept>

#include "input.hpp"
#include "tokenizer/text_decoder.hpp"
#include "tokenizer/tokenizer.hpp"

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

template <typename Unit>
bool is_transcoded(std::string_view utf8, const qwenvl::UnitBuffer<Unit>& text) {
    std::basic_string<Unit> expected(qwenvl::summarize_utf8(utf8).characters, Unit{});
    return qwenvl::transcode_utf8(utf8, expected.data(), expected.data() + expected.size()) && text.view() == expected;
}

// Any ids, most of them parts of characters, some of them many times.
void check_decoder(fuzz::Input& input) {
    std::vector<std::int64_t> ids;
    while (input.left() > 2) {
        const std::size_t times = input.between(1, 70);
        ids.insert(ids.end(), times, input.take<std::uint16_t>() % 282);
    }
    const std::string bytes = tokenizer().decode(ids);
    fuzz::Input whole(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    const bool is_utf8 = whole.take_text() == bytes;  // nothing was replaced
    using Decoder = qwenvl::TextDecoder<qwenvl::UnitBuffer>;
    Decoder decoder(tokenizer(), ids.size());
    const bool is_text = decoder.run([&](std::size_t i) { return ids[i]; }) == Decoder::Result::kText;
    require(is_text == is_utf8, "the decoder gives text where the bytes are UTF-8");
    if (!is_text) return;
    const bool same = decoder.four()  ? is_transcoded(bytes, *decoder.four())
                      : decoder.two() ? is_transcoded(bytes, *decoder.two())
                                      : bytes == decoder.ascii()->view();
    require(same, "the decoder's characters are those of the bytes");
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
    const int kind = input.take<std::uint8_t>() % 8;
    if (kind == 0) {
        check_vocabulary(input);
    } else if (kind < 3) {
        check_decoder(input);
    } else {
        check_text(input);
    }
    return 0;
}
