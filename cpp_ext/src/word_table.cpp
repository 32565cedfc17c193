#include "qwenvl/word_table.hpp"

namespace qwenvl {

WordTable::WordTable(const Vocabulary& vocabulary) {
    std::size_t short_count = 0, long_count = 0;
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
        const std::size_t size = vocabulary.bytes(id).size();
        (size <= 8 ? short_count : long_count) += size <= kLongest;
    }
    short_.resize(short_count);
    long_.resize(long_count);
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
        const std::string_view bytes = vocabulary.bytes(id);
        if (bytes.size() > kLongest) continue;
        const Key key = key_of(bytes.data(), bytes.size(), bytes.size());
        if (bytes.size() <= 8) {
            short_.slots[short_.place(key)] = {key.low, id, key.size};
        } else {
            long_.slots[long_.place(key)] = {key.low, key.high, id, key.size};
        }
    }
}

}  // namespace qwenvl
