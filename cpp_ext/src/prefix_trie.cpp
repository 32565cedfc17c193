#include "qwenvl/prefix_trie.hpp"

#include <algorithm>

namespace qwenvl {
namespace {

constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
constexpr std::size_t kFirst = 65536;
constexpr int kFilterBits = 22;

std::uint64_t hash(std::uint64_t key) { return key * 0x9E3779B97F4A7C15u; }

// Ids by length of the token, so that every prefix of a token comes before it.
std::vector<TokenId> by_length(const Vocabulary& vocabulary) {
    std::vector<std::uint32_t> start(vocabulary.longest_token() + 2);
    for (TokenId id = 0; id < vocabulary.size(); ++id) ++start[vocabulary.bytes(id).size() + 1];
    for (std::size_t length = 1; length < start.size(); ++length) start[length] += start[length - 1];
    std::vector<TokenId> order(vocabulary.size());
    for (TokenId id = 0; id < vocabulary.size(); ++id) order[start[vocabulary.bytes(id).size()]++] = id;
    return order;
}

}  // namespace

PrefixTrie::PrefixTrie(const Vocabulary& vocabulary)
    : filter_(std::size_t{1} << (kFilterBits - 6)),
      first_(kFirst, kNone),
      shorter_(vocabulary.size(), kNoToken),
      nodes_(static_cast<Node>(vocabulary.size())) {
    int bits = 10;
    while ((std::size_t{1} << bits) < vocabulary.size() * 3) ++bits;
    shift_ = 64 - bits;
    edges_.assign(std::size_t{1} << bits, kEmpty);
    max_nodes_ = static_cast<Node>(std::min<std::size_t>(kMaxNodes, edges_.size() / 4 * 3));
    partial_.assign((kMaxNodes + 64) / 64, 0);
    for (TokenId id : by_length(vocabulary)) {
        if (complete()) add(vocabulary.bytes(id), id);
    }
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

void PrefixTrie::put(Node node, Symbol symbol, Node child) {
    if (node == kRoot && symbol < kFirst) {
        first_[symbol] = child;
        return;
    }
    const std::uint64_t key = std::uint64_t{node} << 21 | symbol, h = hash(key), bit = h >> (64 - kFilterBits);
    filter_[bit / 64] |= std::uint64_t{1} << (bit % 64);
    const std::size_t mask = edges_.size() - 1;
    std::size_t at = h >> shift_;
    while (edges_[at] != kEmpty) at = (at + 1) & mask;
    edges_[at] = key << 22 | child;
    if (symbol >= kByteSymbol) partial_[node / 64] |= std::uint64_t{1} << (node % 64);
}

void PrefixTrie::add(std::string_view bytes, TokenId id) {
    Node node = kRoot;
    TokenId shorter = kNoToken;
    for (std::size_t at = 0; at < bytes.size();) {
        const SymbolAt next = any_symbol_at(bytes, at);
        if (next.length > 1) {
            const TokenId partial = partial_character(node, bytes, at, next.length);
            if (partial != kNoToken) shorter = partial;
        }
        at += next.length;
        Node below = node == kRoot ? first(next.symbol) : child(node, next.symbol);
        if (below == kNone) put(node, next.symbol, below = at == bytes.size() ? id : nodes_++);
        node = below;
        if (is_token(node) && node != id) shorter = node;
    }
    shorter_[id] = shorter;
}

// Longest token that goes from `node` into the character at `at` but not to its end; kNoToken when there is none.
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
