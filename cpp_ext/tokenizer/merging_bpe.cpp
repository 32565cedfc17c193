#include "tokenizer/merging_bpe.hpp"

#include <algorithm>
#include <array>
#include <functional>

#include "tokenizer/unicode.hpp"

namespace qwenvl {
namespace {

// From this length on a heap finds the lowest rank faster than a scan of all parts.
constexpr std::size_t kHeapFrom = 96;

// A part of the piece: its start, the rank of its concatenation with the next part, and its own rank.
struct Part {
    std::uint32_t start;
    TokenId pair_rank, rank;
};

class Merger {
public:
    Merger(const Vocabulary& vocabulary, std::string_view piece, std::size_t readable)
        : vocabulary_(vocabulary), piece_(piece), readable_(readable) {}

    TokenId rank(std::size_t first, std::size_t last) const {
        const std::string_view bytes = piece_.substr(first, last - first);
        if (bytes.size() > ShortWord::kMost) return vocabulary_.find(bytes);
        return vocabulary_.words().find_unlikely(ShortWord::of(bytes.data(), bytes.size(), readable_ - first));
    }

protected:
    const Vocabulary& vocabulary_;
    std::string_view piece_;
    std::size_t readable_;
};

// The parts of a short piece, in order.
class ShortMerger : Merger {
public:
    using Merger::Merger;

    void add(std::size_t start, TokenId rank) {
        parts_[count_++] = {static_cast<std::uint32_t>(start), kNoToken, rank};
    }

    // Merges the added parts and appends their ids.
    void run(std::vector<TokenId>& ids) {
        parts_[count_].start = static_cast<std::uint32_t>(piece_.size());
        for (std::size_t i = 0; i < count_; ++i) update(i);
        while (true) {
            std::size_t best = 0;
            for (std::size_t i = 1; i < count_; ++i) {
                if (parts_[i].pair_rank < parts_[best].pair_rank) best = i;
            }
            if (parts_[best].pair_rank == kNoToken) break;
            parts_[best].rank = parts_[best].pair_rank;
            std::copy(&parts_[best + 2], &parts_[count_ + 1], &parts_[best + 1]);
            --count_;
            update(best);
            if (best > 0) update(best - 1);
        }
        for (std::size_t i = 0; i < count_; ++i) ids.push_back(parts_[i].rank);
    }

private:
    void update(std::size_t i) {
        parts_[i].pair_rank = i + 1 < count_ ? rank(parts_[i].start, parts_[i + 2].start) : kNoToken;
    }

    std::array<Part, kHeapFrom + 1> parts_;
    std::size_t count_ = 0;
};

// Parts as a doubly linked list over byte positions, candidate merges in a heap; stale heap entries are skipped.
class HeapMerger : Merger {
public:
    using Merger::Merger;

    void run(std::vector<TokenId>& ids) {
        const auto size = static_cast<std::uint32_t>(piece_.size());
        nodes_.resize(size + 1);
        for (std::uint32_t i = 0; i <= size; ++i) nodes_[i] = {i - 1, i + 1, kNoToken};
        for (std::uint32_t i = 0; i + 1 < size; ++i) propose(i);
        while (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end(), std::greater<>{});
            const std::uint64_t top = heap_.back();
            heap_.pop_back();
            const auto at = static_cast<std::uint32_t>(top);
            if (nodes_[at].pair_rank == static_cast<TokenId>(top >> 32)) merge(at);
        }
        for (std::uint32_t i = 0; i < size; i = nodes_[i].next) ids.push_back(rank(i, nodes_[i].next));
    }

private:
    struct Node {
        std::uint32_t previous, next;
        TokenId pair_rank;
    };

    void propose(std::uint32_t at) {
        const std::uint32_t next = nodes_[at].next;
        nodes_[at].pair_rank = next < piece_.size() ? rank(at, nodes_[next].next) : kNoToken;
        if (nodes_[at].pair_rank == kNoToken) return;
        heap_.push_back(static_cast<std::uint64_t>(nodes_[at].pair_rank) << 32 | at);
        std::push_heap(heap_.begin(), heap_.end(), std::greater<>{});
    }

    void merge(std::uint32_t at) {
        const std::uint32_t gone = nodes_[at].next;
        nodes_[at].next = nodes_[gone].next;
        nodes_[gone].pair_rank = kNoToken;
        nodes_[nodes_[at].next].previous = at;
        propose(at);
        if (at > 0) propose(nodes_[at].previous);
    }

    std::vector<Node> nodes_;
    std::vector<std::uint64_t> heap_;
};

}  // namespace

void merge_piece(const Vocabulary& vocabulary, std::string_view piece, std::size_t readable,
                 std::vector<TokenId>& ids) {
    if (piece.size() >= kHeapFrom) return HeapMerger(vocabulary, piece, readable).run(ids);
    ShortMerger merger(vocabulary, piece, readable);
    for (std::size_t i = 0; i < piece.size(); ++i) merger.add(i, vocabulary.byte(piece[i]));
    merger.run(ids);
}

bool merge_characters(const Vocabulary& vocabulary, const LinearBpe& linear, std::string_view part,
                      std::size_t readable, std::vector<TokenId>& ids) {
    ShortMerger merger(vocabulary, part, readable);
    const auto* text = reinterpret_cast<const unsigned char*>(part.data());
    CodePoint before{};
    for (std::size_t at = 0; at < part.size(); at += before.length) {
        const CodePoint after = decode_utf8(text + at);
        const TokenId character = linear.character(after.value);
        if (character == kNoToken) return false;
        if (at > 0 && linear.borders().may_merge_part(before.value, after.value)) return false;
        merger.add(at, character);
        before = after;
    }
    merger.run(ids);
    return true;
}

}  // namespace qwenvl
