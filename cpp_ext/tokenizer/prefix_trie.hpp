// The longest token at the beginning of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/symbols.hpp"
#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

// A trie over symbols, so that a character of several bytes is one step. The edges lie in one hash table. The node of a
// token has the token's id; others are numbered above.
class PrefixTrie {
public:
    // `shorter`: of every token the longest one that is a proper prefix, or kNoToken.
    PrefixTrie(const Vocabulary& vocabulary, const std::vector<TokenId>& shorter);

    // False when the vocabulary's tokens are too many or too long for the table; nothing else may be used then.
    bool complete() const { return nodes_ <= max_nodes_; }

    // Longest token that `text` (valid UTF-8, perhaps cut at both ends, not empty) begins with.
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
    std::vector<std::uint64_t> filter_;   // one bit a hash: most symbols do not go on from most nodes
    std::vector<Node> first_;             // [65536] children of the root, of characters up to U+FFFF
    std::vector<std::uint64_t> partial_;  // bit a node: a token goes on with a part of a character
    Node tokens_, nodes_, max_nodes_;
    int shift_;
};

}  // namespace qwenvl
