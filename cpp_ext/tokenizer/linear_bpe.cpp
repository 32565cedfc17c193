#include "tokenizer/linear_bpe.hpp"

#include "tokenizer/longest_prefixes.hpp"

namespace qwenvl {
namespace {

// Every prefix of every token is looked up, which takes too long for tokens longer than this.
constexpr std::size_t kLongestToken = 256;

}  // namespace

LinearBpe::LinearBpe(const Vocabulary& vocabulary)
    : vocabulary_(vocabulary), shorter_(longest_prefixes(vocabulary)), merges_(vocabulary.size()) {}

std::unique_ptr<LinearBpe> LinearBpe::make(const Vocabulary& vocabulary) {
    if (vocabulary.longest_token() > kLongestToken) return nullptr;
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
        if ((vocabulary.bytes(id).size() == 1) != (id < MergeTree::kFirstMerge)) return nullptr;
    }
    std::unique_ptr<LinearBpe> bpe(new LinearBpe(vocabulary));
    return bpe->add_merges() && bpe->make_trie() ? std::move(bpe) : nullptr;
}

bool LinearBpe::make_trie() {
    trie_ = std::make_unique<PrefixTrie>(vocabulary_, shorter_);
    return trie_->complete();
}

// A token's last merge is its only split into two lower tokens that the merges before it leave apart.
bool LinearBpe::add_merges() {
    for (TokenId id = MergeTree::kFirstMerge; id < vocabulary_.size(); ++id) {
        const std::string_view bytes = vocabulary_.bytes(id);
        TokenId left = shorter_[id];
        for (; left != kNoToken; left = shorter_[left]) {
            if (left > id) continue;
            const std::size_t border = vocabulary_.bytes(left).size();
            const TokenId right = vocabulary_.find(bytes.substr(border), Vocabulary::kPadding);
            if (right > id || !merges_.stays_apart(left, right)) continue;
            merges_.add(id, {left, right});
            borders_.add(bytes.substr(0, border), bytes.substr(border));
            break;
        }
        if (left == kNoToken) return false;
    }
    return true;
}

std::size_t LinearBpe::encode(std::string_view piece, OpenPlaces& open, std::vector<TokenId>& ids) const {
    open.reset(piece.size());
    const std::size_t first = ids.size();
    std::size_t at = 0;
    TokenId token = trie_->longest(piece);
    for (std::size_t tried = 1;; ++tried) {
        const std::size_t end = at + vocabulary_.bytes(token).size();
        if (open.at(end) && (ids.size() == first || merges_.stays_apart(ids.back(), token))) {
            ids.push_back(token);
            if (end == piece.size()) return tried;
            at = end;
            token = trie_->longest(piece.substr(at));
        } else if (shorter_[token] != kNoToken) {
            token = shorter_[token];
        } else {
            open.close(at);
            token = ids.back();
            ids.pop_back();
            at -= vocabulary_.bytes(token).size();
        }
    }
}

}  // namespace qwenvl
