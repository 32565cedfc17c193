// Bytes to valid UTF-8 as they come; errors become U+FFFD exactly as Python's errors="replace" makes them.
#pragma once

#include <string>
#include <string_view>

namespace qwenvl {

class Utf8Stream {
public:
    // Appends the characters that `bytes` completes to `out`; keeps at most 3 bytes of an unfinished one.
    void push(std::string_view bytes, std::string& out);

    // The stream ends: an unfinished character becomes one U+FFFD.
    void finish(std::string& out);

    bool pending() const { return !held_.empty(); }

private:
    std::string held_;
};

}  // namespace qwenvl
