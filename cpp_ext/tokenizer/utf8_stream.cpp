#include "tokenizer/utf8_stream.hpp"

#include <cstddef>

namespace qwenvl {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Form {
    std::size_t length;       // of a whole character, 0 when the byte cannot start one
    unsigned char low, high;  // allowed second bytes
};

// Well-formed byte sequences, Unicode Standard table 3-7.
Form form_of(unsigned char lead) {
    if (lead < 0x80) return {1, 0, 0};
    if (lead < 0xC2 || lead > 0xF4) return {0, 0, 0};
    if (lead < 0xE0) return {2, 0x80, 0xBF};
    if (lead < 0xF0) {
        return {3, static_cast<unsigned char>(lead == 0xE0 ? 0xA0 : 0x80),
                static_cast<unsigned char>(lead == 0xED ? 0x9F : 0xBF)};
    }
    return {4, static_cast<unsigned char>(lead == 0xF0 ? 0x90 : 0x80),
            static_cast<unsigned char>(lead == 0xF4 ? 0x8F : 0xBF)};
}

}  // namespace

void Utf8Stream::push(std::string_view bytes, std::string& out) {
    held_.append(bytes);
    std::size_t at = 0;
    while (at < held_.size()) {
        const Form form = form_of(static_cast<unsigned char>(held_[at]));
        if (form.length == 0) {
            out.append(kReplacement);
            ++at;
            continue;
        }
        std::size_t good = 1;
        while (good < form.length && at + good < held_.size()) {
            const auto byte = static_cast<unsigned char>(held_[at + good]);
            const bool fits = good == 1 ? byte >= form.low && byte <= form.high : byte >= 0x80 && byte <= 0xBF;
            if (!fits) break;
            ++good;
        }
        if (good < form.length && at + good == held_.size()) break;  // later bytes may complete it
        out.append(good == form.length ? std::string_view(held_).substr(at, good) : kReplacement);
        at += good;
    }
    held_.erase(0, at);
}

void Utf8Stream::finish(std::string& out) {
    if (!held_.empty()) out.append(kReplacement);
    held_.clear();
}

}  // namespace qwenvl
