// Ids to text in the form of Python's strs: one byte a character while that is ASCII, else two, or four.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/tokenizer.hpp"
#include "tokenizer/utf8_text.hpp"

namespace qwenvl {

// The text begins as ASCII and is widened where the first token stands that needs it. From there on tokens of whole
// characters are copied as such; the bytes of others are gathered until one of those comes, and must then be UTF-8.
// `Buffer`: UnitBuffer or what acts like one.
template <template <typename> class Buffer>
class TextDecoder {
public:
    // For `count` ids, read by id_at(0) .. id_at(count - 1).
    TextDecoder(const Tokenizer& tokenizer, std::size_t count)
        : tokenizer_(tokenizer), left_(count), ascii_(count * kLikelyBytes) {}

    enum class Result { kText, kNoUtf8, kNegativeId };

    // Once; the text is there where the result is kText. Throws for an id from 0 on that has no token.
    template <typename IdAt>
    Result run(IdAt id_at) {
        std::array<std::int64_t, kMany> ids;
        for (std::size_t start = 0; left_ > 0; start += kMany) {
            const std::size_t count = std::min(left_, kMany);
            if (!read(start, count, id_at, ids.data())) return Result::kNegativeId;
            if (!append(ids.data(), count)) return Result::kNoUtf8;
            left_ -= count;
        }
        return finish() ? Result::kText : Result::kNoUtf8;
    }

    // Exactly one of them holds the text: the first that exists. Units of two bytes may all be below 0x100.
    Buffer<char32_t>* four() { return four_ ? &*four_ : nullptr; }
    Buffer<char16_t>* two() { return two_ ? &*two_ : nullptr; }
    Buffer<char>* ascii() { return &ascii_; }

private:
    static constexpr std::size_t kMany = 512, kLikelyBytes = 6, kLikelyCharacters = 2;
    static constexpr int kBatchesByBytes = 8;

    enum class Step { kDone, kWiden, kNoUtf8 };

    // Not inlined, nor is copy_characters, so that a profile tells them apart. False where an id is negative.
    template <typename IdAt>
    [[gnu::noinline]] bool read(std::size_t start, std::size_t count, IdAt id_at, std::int64_t* ids) {
        const std::uintptr_t table = tokenizer_.vocabulary().table(by_bytes_ == 0);
        std::int64_t all = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const std::int64_t id = ids[i] = id_at(start + i);
            all |= id;
            prefetch(table, id);
        }
        return all >= 0;
    }

    // By their bytes or, where those are not ASCII, by their characters: one or the other is faster. False where the
    // bytes are not UTF-8.
    bool append(const std::int64_t* ids, std::size_t count) {
        return by_bytes_ > 0 ? append_bytes(ids, count) : append_characters(ids, count);
    }

    bool append_bytes(const std::int64_t* ids, std::size_t count) {
        if (is_wide()) ascii_.extend_to(ascii_.view().data());
        const std::size_t before = ascii_.view().size();
        ascii_.append(open_);
        tokenizer_.append_tokens(ids, count, ascii_);
        const std::string_view bytes = ascii_.view().substr(before);
        if (is_ascii(bytes)) return !is_wide() || append_ascii(bytes);
        if (!is_wide()) widen(ascii_.view().substr(0, before), two_);
        const std::string_view whole = bytes.substr(0, whole_characters(bytes));
        open_ = bytes.substr(whole.size());
        const Utf8Summary summary = summarize_utf8(whole);
        if (4 * whole.size() > 5 * summary.characters) --by_bytes_;
        return in_widest([&](auto& out) { return put(whole, summary, out); });
    }

    // Behind whole characters.
    bool append_ascii(std::string_view bytes) {
        return in_widest([&](auto& out) {
            out.extend_to(std::copy(bytes.begin(), bytes.end(), out.reserve(bytes.size())));
            return Step::kDone;
        });
    }

    bool append_characters(const std::int64_t* ids, std::size_t count) {
        std::size_t done = 0, whole = 0;
        const bool good = in_widest([&](auto& out) {
            while (done < count) {
                if (tokenizer_.wide_word(ids[done]) == nullptr) {
                    open_.append(tokenizer_.token_bytes(ids[done++]));
                    continue;
                }
                if (const Step step = close(out); step != Step::kDone) return step;
                const std::size_t copied = copy_characters(ids + done, count - done, out);
                whole += copied;
                done += copied;
            }
            return Step::kDone;
        });
        if (8 * whole < 7 * count) by_bytes_ = kBatchesByBytes;
        return good;
    }

    bool finish() {
        return !is_wide() || in_widest([&](auto& out) { return close(out); });
    }

    bool is_wide() const { return two_ || four_; }

    // Where two bytes are too few, the step goes on in four.
    template <typename Next>
    bool in_widest(Next next) {
        if (!four_) {
            const Step step = next(*two_);
            if (step != Step::kWiden) return step == Step::kDone;
            widen(two_->view(), four_);
            two_.reset();
        }
        return next(*four_) == Step::kDone;
    }

    template <typename Narrow, typename Wide>
    void widen(std::basic_string_view<Narrow> text, std::optional<Buffer<Wide>>& out) {
        out.emplace(text.size() + kLikelyCharacters * left_);
        out->extend_to(std::copy(text.begin(), text.end(), out->reserve(text.size())));
    }

    // As many ids as have such a form.
    template <typename Unit>
    [[gnu::noinline]] std::size_t copy_characters(const std::int64_t* ids, std::size_t count, Buffer<Unit>& out) {
        const std::vector<WideWord>& all = tokenizer_.vocabulary().wide_words();
        const WideWord* const words = all.data();  // the stores might change what is no local variable
        const std::size_t ranks = all.size();
        Unit* end = out.reserve(count * (WideWord::kMost + 1));
        std::size_t done = 0;
        for (; done < count && static_cast<std::uint64_t>(ids[done]) < ranks; ++done) {
            const WideWord& word = words[ids[done]];
            const std::size_t size = word.size;
            if (size > WideWord::kMost) break;
            word.copy_to(end);  // of fixed size; the next one overwrites its end
            end += size;
        }
        out.extend_to(end);
        return done;
    }

    // Appends the bytes gathered, which must be whole characters now.
    template <typename Unit>
    Step close(Buffer<Unit>& out) {
        if (open_.empty()) return Step::kDone;
        const Step step = put(open_, summarize_utf8(open_), out);
        if (step == Step::kDone) open_.clear();
        return step;
    }

    template <typename Unit>
    Step put(std::string_view bytes, const Utf8Summary& summary, Buffer<Unit>& out) {
        if (sizeof(Unit) == 2 && summary.largest_byte >= kFourBytes) return Step::kWiden;
        Unit* const end = out.reserve(summary.characters);
        if (!transcode_utf8(bytes, end, end + summary.characters)) return Step::kNoUtf8;
        out.extend_to(end + summary.characters);
        return Step::kDone;
    }

    const Tokenizer& tokenizer_;
    std::size_t left_;
    std::string open_;  // bytes of tokens that are no whole characters
    int by_bytes_ = 1;  // how many batches that are not ASCII to append so, before the other way is tried
    Buffer<char> ascii_;
    std::optional<Buffer<char16_t>> two_;
    std::optional<Buffer<char32_t>> four_;
};

}  // namespace qwenvl
