// Decoding token by token: the pieces are whole characters, and joined they are the text up to the earliest stop
// string.
#include <algorithm>
#include <stdexcept>

#include "input.hpp"
#include "tokenizer/incremental_decoder.hpp"

using fuzz::require;

namespace {

std::shared_ptr<const qwenvl::Tokenizer> tokenizer() {
    static const auto instance = std::make_shared<const qwenvl::Tokenizer>(
        fuzz::vocabulary_file(fuzz::small_vocabulary()), std::vector<qwenvl::SpecialToken>{{"<|end|>", 300}});
    return instance;
}

bool valid(const std::string& text) {
    qwenvl::Utf8Stream stream;
    std::string out;
    stream.push(text, out);
    return out == text && !stream.pending();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    std::vector<std::string> stop;
    for (std::size_t count = input.between(0, 3); count > 0; --count) {
        const std::string text = input.take_text(input.between(1, 5));
        if (!text.empty()) stop.push_back(text);
    }
    qwenvl::IncrementalDecoder decoder(tokenizer(), stop);
    std::vector<std::int64_t> ids;
    std::string pieces;
    while (input.left() > 0) {
        const std::int64_t id = input.take<std::int16_t>() % 320;
        try {
            const std::string piece = decoder.push(id);
            require(valid(piece), "a piece is whole characters");
            pieces += piece;
        } catch (const std::invalid_argument&) {
            continue;  // an id without a token changes nothing
        }
        ids.push_back(id);
    }
    pieces += decoder.finish();
    std::string text;
    qwenvl::Utf8Stream stream;
    stream.push(tokenizer()->decode(ids), text);
    stream.finish(text);
    std::size_t end = text.size();
    for (const std::string& each : stop) end = std::min(end, text.find(each));
    require(pieces == text.substr(0, end), "the pieces are the text up to the first stop string");
    require((decoder.stopped() != nullptr) == (end < text.size()), "it tells whether a stop string came");
    return 0;
}
