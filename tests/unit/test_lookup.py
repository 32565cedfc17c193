import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import engine, ids

from qwenvl_edge.lookup import MOST, Lookup, NGrams

LIST = "<ref>a mug</ref><box>(1,2),(3,4)</box>" * 6 + "<|im_end|>"


def brute_force(tokens, limit, shortest):
    """The definition: the latest earlier place of the last three tokens, else of the last two."""
    for length in (3, 2)[: 4 - shortest]:
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[len(tokens) - length :]:
                return tokens[start + length :][:limit]
    return []


@given(
    st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3)), st.integers(0, 5), st.sampled_from([2, 3])
)
def test_continuations_are_what_followed_last(prompt, answer, limit, shortest):
    seen = NGrams(np.array(prompt, np.int64))
    for token in answer:
        seen.append(token)
    assert seen.continuation(limit, shortest=shortest) == brute_force([*prompt, *answer], limit, shortest)


def lookup_behind(tokens):
    lookup = Lookup()
    lookup.start(np.array(tokens))
    return lookup


def test_proposals_grow_while_they_are_right():
    lookup = lookup_behind([*range(40), 0, 1])
    sizes = []
    for _ in range(4):
        sizes.append(len(lookup.propose(100)))
        lookup.report(sizes[-1], sizes[-1])
    assert sizes == [4, 8, 12, 12] and MOST == 12
    assert lookup.propose(3).tolist() == [2, 3, 4]
    lookup.report(12, 5)
    assert len(lookup.propose(100)) == 6


def test_misses_pause_longer_and_longer():
    lookup, asked = lookup_behind([0, 1, 2, 3, 4, 0, 1, 2]), []
    for step in range(260):
        proposed = lookup.propose(10)
        if len(proposed):
            asked.append(step)
            lookup.report(len(proposed), 0)
    assert np.diff(asked).tolist() == [3, 5, 9, 17, 33, 65, 65]
    lookup.start(np.array([0, 1, 2, 3, 4, 0, 1, 2]))
    lookup.report(3, 2)
    assert len(lookup.propose(10)) == 3  # trusted again


def test_short_matches_are_not_believed_after_a_miss():
    tokens = [1, 2, 9, 9, 1, 2]
    lookup = lookup_behind(tokens)
    assert len(lookup.propose(10))
    lookup.report(4, 0)
    lookup.report(4, 0)
    lookup.start(np.array(tokens))
    assert not any(len(lookup.propose(10)) for _ in range(10))
    lookup.start(np.array(tokens))  # half of two misses, then of one
    assert len(lookup.propose(10))


@pytest.mark.parametrize("sampled", [False, True])
def test_repeating_answers_take_fewer_steps(tmp_path, sampled):
    plain, slow = engine(tmp_path, LIST)
    quick, fast = engine(tmp_path, LIST)
    options = {"do_sample": sampled, "top_k": 1, "seed": 1, "max_new_tokens": 500}
    expected = plain.chat("hi", lookup=False, **options)
    reply = quick.chat("hi", **options)
    assert reply.raw_text == expected.raw_text and reply.finish_reason == expected.finish_reason == "stop"
    assert reply.stats.new_tokens == expected.stats.new_tokens == slow.steps == len(reply.stats.token_ms) + 1
    assert fast.steps < slow.steps / 2
    assert (expected.stats.proposed_tokens, expected.stats.accepted_tokens) == (0, 0)
    assert reply.stats.proposed_tokens >= reply.stats.accepted_tokens > 30
    assert fast.steps == reply.stats.new_tokens - reply.stats.accepted_tokens


def test_a_conversation_goes_on_behind_rejected_proposals(tmp_path):
    qwen, backend = engine(tmp_path, LIST, "done<|im_end|>")
    first = qwen.chat("hi", max_new_tokens=500)
    stats = qwen.chat("more", history=first.history, max_new_tokens=500).stats
    assert first.stats.accepted_tokens < first.stats.proposed_tokens
    assert stats.reused_tokens == first.stats.prompt_tokens + first.stats.new_tokens - 1
    assert backend.prompt_ids(1)[: stats.reused_tokens] == [*backend.prompt_ids(0), *ids(LIST)[:-1]]


def test_text_that_never_repeats_is_hardly_slowed(tmp_path):
    text = "".join(f"{chr(97 + i % 26)}{i * 7919 % 1000}" for i in range(40)) + "<|im_end|>"
    qwen, backend = engine(tmp_path, text)
    stats = qwen.chat("hi", max_new_tokens=500).stats
    assert backend.steps == stats.new_tokens - stats.accepted_tokens
    assert stats.proposed_tokens < stats.new_tokens / 4


@pytest.mark.parametrize("limit", range(1, 30))
def test_limits_hold_inside_a_proposal(tmp_path, limit):
    qwen, _ = engine(tmp_path, LIST, LIST)
    reply = qwen.chat("hi", max_new_tokens=limit + 20)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("length", limit + 20)
    small, _ = engine(tmp_path, LIST, max_context=reply.stats.prompt_tokens + limit)
    reply = small.chat("hi", max_new_tokens=500)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("context", limit + 1)


def test_a_stop_string_inside_a_proposal(tmp_path):
    for stop in ("mug</ref><box>(1,2),(3,4)</box><ref>a mug</ref><box>(1", "x"):
        qwen, _ = engine(tmp_path, LIST.replace("mug", "jug", 1).replace("(3,4)", "(3,x)", 4))
        reply = qwen.chat("hi", stop=[stop], max_new_tokens=500)
        assert reply.finish_reason == "stop_string" and stop not in reply.raw_text
