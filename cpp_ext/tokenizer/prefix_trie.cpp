#include "tokenizer/prefix_trie.hpp"

#include <algorithm>

namespace qwenvl {
namespace {

constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
constexpr std::size_t kFirst = 65536;
constexpr int kFilterBits = 22;

std::uint64_t hash(std::uint64_t key) { return key * 0x9E3779B97F4A7C15u; }

// True when a character of `bytes` begins before `at` and ends after it.
bool is_inside_character(std::string_view bytes, std::size_t at) {
    if (!is_continuation(static_cast<unsigned char>(bytes[at]))) return false;
    for (std::size_t back = 1; back <= std::min<std::size_t>(at, 3); ++back) {
        if (any_symbol_at(bytes, at - back).length > back) return true;
    }
    return false;
}

}  // namespace

PrefixTrie::PrefixTrie(const Vocabulary& vocabulary, const std::vector<TokenId>& shorter)
    : filter_(std::size_t{1} << (kFilterBits - 6)),
      first_(kFirst, kNone),
      tokens_(static_cast<Node>(vocabulary.size())),
      nodes_(tokens_) {
    int bits = 10;
    while ((std::size_t{1} << bits) < vocabulary.size() * 3) ++bits;
    shift_ = 64 - bits;
    edges_.assign(std::size_t{1} << bits, kEmpty);
    max_nodes_ = static_cast<Node>(std::min<std::size_t>(kMaxNodes, edges_.size() / 4 * 3));
    partial_.assign((kMaxNodes + 64) / 64, 0);
    for (TokenId id = 0; id < tokens_ && complete(); ++id) add(vocabulary, shorter, id);
}

inline PrefixTrie::Node PrefixTrie::child(Node node, Symbol symbol) const {
    const std::uint64_t key = std::uint64_t{node} << 21 | symbol, h = hash(key), bit = h >> (64 - kFilterBits);
    if (!(filter_[bit / 64] >> (bit % 64) & 1)) return kNone;
    const std::size_t mask = edges_.size() - 1;
    for (std::size_t at = h >> shift_;; at = (at + 1) & mask) {
        if (edges_[at] >> 22 == key) return edges_[at] & 0x3FFFFF;
        if (edges_[at] == kEmpty) return kNone;
    }
}

inline PrefixTrie::Node PrefixTrie::first(Symbol symbol) const {
    return symbol < kFirst ? first_[symbol] : child(kRoot, symbol);
}

TokenId PrefixTrie::character(Symbol symbol) const {
    const Node node = first(symbol);
    return is_token(node) ? node : kNoToken;
}

PrefixTrie::Node PrefixTrie::put(Node node, Symbol symbol, Node child) {
    if (node == kRoot && symbol < kFirst) return first_[symbol] = child;
    const std::uint64_t key = std::uint64_t{node} << 21 | symbol, h = hash(key), bit = h >> (64 - kFilterBits);
    filter_[bit / 64] |= std::uint64_t{1} << (bit % 64);
    const std::size_t mask = edges_.size() - 1;
    std::size_t at = h >> shift_;
    while (edges_[at] != kEmpty) at = (at + 1) & mask;
    edges_[at] = key << 22 | child;
    if (symbol >= kByteSymbol) partial_[node / 64] |= std::uint64_t{1} << (node % 64);
    return child;
}

// Tokens may be added in any order, since a token's node is known before its path exists. The path starts at the
// longest prefix that is a token and ends between symbols; nodes between the two may exist already, made for another
// token.
void PrefixTrie::add(const Vocabulary& vocabulary, const std::vector<TokenId>& shorter, TokenId id) {
    const std::string_view bytes = vocabulary.bytes(id);
    const auto size_of = [&](TokenId prefix) { return vocabulary.bytes(prefix).size(); };
    TokenId prefix = shorter[id];
    while (prefix != kNoToken && is_inside_character(bytes, size_of(prefix))) prefix = shorter[prefix];
    Node node = prefix == kNoToken ? kRoot : prefix;
    for (std::size_t at = prefix == kNoToken ? 0 : size_of(prefix); at < bytes.size();) {
        const SymbolAt next = any_symbol_at(bytes, at);
        at += next.length;
        const Node below = at == bytes.size() ? kNone : node == kRoot ? first(next.symbol) : child(node, next.symbol);
        node = below == kNone ? put(node, next.symbol, at == bytes.size() ? id : nodes_++) : below;
    }
}

// Longest token that goes on from `node` with a part of the character at `at`; kNoToken when there is none.
TokenId PrefixTrie::partial_character(Node node, std::string_view text, std::size_t at, std::size_t length) const {
    TokenId token = kNoToken;
    if (!(partial_[node / 64] >> (node % 64) & 1)) return token;
    for (std::size_t i = 0; i + 1 < length; ++i) {
        node = child(node, kByteSymbol | static_cast<unsigned char>(text[at + i]));
        if (node == kNone) break;
        if (is_token(node)) token = node;
    }
    return token;
}

TokenId PrefixTrie::longest(std::string_view text) const {
    SymbolAt next = symbol_at(text, 0);
    Node node = first(next.symbol);
    TokenId token = node;
    // The root has tokens for parts of every character.
    if (!is_token(node)) token = partial_character(kRoot, text, 0, next.length);
    for (std::size_t at = next.length; node != kNone && at < text.size(); at += next.length) {
        next = symbol_at(text, at);
        if (next.length > 1) {
            const TokenId partial = partial_character(node, text, at, next.length);
            if (partial != kNoToken) token = partial;
        }
        node = child(node, next.symbol);
        if (is_token(node)) token = node;
    }
    return token;
}

}  // namespace qwenvl
