// Tokens to text as they come: whole characters only, up to the first stop string.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.hpp"
#include "tokenizer/utf8_stream.hpp"

namespace qwenvl {

// The pieces joined are the whole text up to the beginning of the first stop string. Text that may be the beginning of
// a stop string is held back until that is decided.
class IncrementalDecoder {
public:
    IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stop);
    IncrementalDecoder(const IncrementalDecoder&) = delete;  // stopped_ points into stop_
    IncrementalDecoder& operator=(const IncrementalDecoder&) = delete;

    // Takes the next id; returns the text that is certain now, often empty. After a stop string it is always empty.
    std::string push(std::int64_t id);

    // Ends the text; returns what was still held back.
    std::string finish();

    // The stop string that ended the text, or nullptr.
    const std::string* stopped() const { return stopped_; }

private:
    struct Match {
        std::size_t start;
        const std::string* stop;  // nullptr: none was found
    };

    Match first_match() const;
    std::size_t first_open_start(std::size_t before) const;
    std::string take(bool at_end);

    std::shared_ptr<const Tokenizer> tokenizer_;
    const std::vector<std::string> stop_;
    Utf8Stream characters_;
    std::string held_;
    const std::string* stopped_ = nullptr;
    bool ended_ = false;
};

}  // namespace qwenvl
