// Helpers of the fuzz targets: values taken from the fuzzer's bytes, a small vocabulary, and checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/utf8_stream.hpp"

namespace fuzz {

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::abort();
}

class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    std::size_t left() const { return size_; }

    template <typename Value>
    Value take() {
        Value value{};
        const std::string_view bytes = take_bytes(sizeof value);
        std::memcpy(&value, bytes.data(), bytes.size());
        return value;
    }

    // From `low` to `high`, both included.
    std::size_t between(std::size_t low, std::size_t high) { return low + take<std::uint16_t>() % (high - low + 1); }

    std::string_view take_bytes(std::size_t count) {
        count = count < size_ ? count : size_;
        const std::string_view bytes(reinterpret_cast<const char*>(data_), count);
        data_ += count;
        size_ -= count;
        return bytes;
    }

    // The rest, or `count` bytes of it, with U+FFFD where it is not UTF-8.
    std::string take_text(std::size_t count = SIZE_MAX) {
        qwenvl::Utf8Stream stream;
        std::string text;
        stream.push(take_bytes(count), text);
        stream.finish(text);
        return text;
    }

private:
    const std::uint8_t* data_;
    std::size_t size_;
};

inline std::string base64(std::string_view bytes) {
    const char* alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t bits = 0;
        for (std::size_t j = 0; j < 3; ++j)
            bits = bits << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
        for (std::size_t j = 0; j < 4; ++j) text += j <= bytes.size() - i ? alphabet[bits >> (18 - 6 * j) & 63] : '=';
    }
    return text;
}

// Every byte, and words that are merged from shorter ones of the list.
inline std::vector<std::string> small_vocabulary() {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    for (const char* word : {"th",
                             "he",
                             "in",
                             "the",
                             " the",
                             "ing",
                             "aa",
                             "aaaa",
                             "aaaaaaaa",
                             "  ",
                             "    ",
                             "\n\n",
                             "\xE4\xBD",
                             "\xE4\xBD\xA0",
                             "\xE5\xA5",
                             "\xE5\xA5\xBD",
                             "\xE4\xBD\xA0\xE5\xA5\xBD",
                             "\xF0\x9F",
                             "\xF0\x9F\x98",
                             "\xF0\x9F\x98\x80",
                             "ab",
                             "abc",
                             "abcd",
                             "abcdabcd",
                             "abcdabcdabcdabcd",
                             "abcdabcdabcdabcdabcdabcdabcdabcd"})
        tokens.emplace_back(word);
    return tokens;
}

inline std::string vocabulary_file(const std::vector<std::string>& tokens) {
    std::string file;
    for (std::size_t i = 0; i < tokens.size(); ++i) file += base64(tokens[i]) + " " + std::to_string(i) + "\n";
    return file;
}

}  // namespace fuzz
