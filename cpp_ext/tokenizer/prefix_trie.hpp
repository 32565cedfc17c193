// The longest token at the beginning of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/symbols.hpp"
#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

// A trie over symbols, so that a character of several bytes is one step. The edges lie in one hash table. A token's
// node has the token's id; other nodes have higher numbers.
class PrefixTrie {
public:
    // `shorter`: by id, the longest token that is a proper prefix, or kNoToken.
    PrefixTrie(const Vocabulary& vocabulary, const std::vector<TokenId>& shorter);

    // False when the vocabulary's tokens are too many or too long for the table. Then nothing else may be called.
    bool complete() const { return nodes_ <= max_nodes_; }

    // Longest token that `text` (valid UTF-8, not empty, possibly cut inside a character at both ends) begins with.
    // There always is one: every single byte is a token.
    TokenId longest(std::string_view text) const;

    // The token that is this symbol alone, or kNoToken.
    TokenId character(Symbol symbol) const;

private:
    using Node = std::uint32_t;
    static constexpr Node kMaxNodes = (1u << 21) - 1;  // the edge table packs a node into 21 bits
    static constexpr Node kNone = 0xFFFFFFFFu, kRoot = kMaxNodes;

    void add(const Vocabulary& vocabulary, const std::vector<TokenId>& shorter, TokenId id);
    Node child(Node node, Symbol symbol) const;
    Node first(Symbol symbol) const;
    Node put(Node node, Symbol symbol, Node child);
    TokenId partial_character(Node node, std::string_view text, std::size_t at, std::size_t length) const;
    bool is_token(Node node) const { return node < tokens_; }

    std::vector<std::uint64_t> edges_;    // node: 21 bits, symbol: 21 bits, child: 22 bits; all ones: empty
    std::vector<std::uint64_t> filter_;   // one bit per hash: most nodes have no edge for most symbols
    std::vector<Node> first_;             // [65536] children of the root, for characters up to U+FFFF
    std::vector<std::uint64_t> partial_;  // one bit per node: some token goes on with a part of a character
    Node tokens_, nodes_, max_nodes_;
    int shift_;
};

}  // namespace qwenvl
