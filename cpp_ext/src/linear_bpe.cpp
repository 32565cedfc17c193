#include "qwenvl/linear_bpe.hpp"

namespace qwenvl {
namespace {

// Places where a token may end; cleared where going on from there has failed.
class OpenPlaces {
public:
    void reset(std::size_t size) {
        if (size < 64) {
            small_ = ~std::uint64_t{0};
            words_ = &small_;
            return;
        }
        many_.assign(size / 64 + 1, ~std::uint64_t{0});
        words_ = many_.data();
    }

    bool at(std::size_t place) const { return words_[place / 64] >> (place % 64) & 1; }
    void close(std::size_t place) { words_[place / 64] &= ~(std::uint64_t{1} << (place % 64)); }

private:
    std::uint64_t small_ = 0;
    std::vector<std::uint64_t> many_;
    std::uint64_t* words_ = nullptr;
};

}  // namespace

LinearBpe::LinearBpe(const Vocabulary& vocabulary)
    : vocabulary_(vocabulary), trie_(vocabulary), merges_(vocabulary.size()) {}

std::unique_ptr<LinearBpe> LinearBpe::make(const Vocabulary& vocabulary) {
    for (TokenId id = 0; id < vocabulary.size(); ++id) {
        if ((vocabulary.bytes(id).size() == 1) != (id < MergeTree::kFirstMerge)) return nullptr;
    }
    std::unique_ptr<LinearBpe> bpe(new LinearBpe(vocabulary));
    return bpe->trie_.complete() && bpe->add_merges() ? std::move(bpe) : nullptr;
}

// The last merge of a token is the one split into two lower tokens that stay apart under the merges before it.
bool LinearBpe::add_merges() {
    for (TokenId id = MergeTree::kFirstMerge; id < vocabulary_.size(); ++id) {
        const std::string_view bytes = vocabulary_.bytes(id);
        TokenId left = trie_.shorter(id);
        for (; left != kNoToken; left = trie_.shorter(left)) {
            if (left > id) continue;
            const TokenId right = vocabulary_.find(bytes.substr(vocabulary_.bytes(left).size()), Vocabulary::kPadding);
            if (right > id || !merges_.stays_apart(left, right)) continue;
            merges_.add(vocabulary_, id, {left, right});
            break;
        }
        if (left == kNoToken) return false;
    }
    return true;
}

void LinearBpe::encode(std::string_view piece, std::vector<TokenId>& ids) const {
    thread_local OpenPlaces open;
    open.reset(piece.size());
    const std::size_t first = ids.size();
    std::size_t at = 0;
    bool may_merge = true;
    TokenId token = trie_.longest(piece);
    while (true) {
        const std::size_t end = at + vocabulary_.bytes(token).size();
        if (open.at(end) && (ids.size() == first || !may_merge || merges_.stays_apart(ids.back(), token))) {
            ids.push_back(token);
            if (end == piece.size()) return;
            at = end;
            token = trie_.longest(piece.substr(at));
            may_merge = merges_.may_merge_at(piece, at);
        } else if (trie_.shorter(token) != kNoToken) {
            token = trie_.shorter(token);
        } else {
            open.close(at);
            token = ids.back();
            ids.pop_back();
            at -= vocabulary_.bytes(token).size();
            may_merge = true;
        }
    }
}

}  // namespace qwenvl
