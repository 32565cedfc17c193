import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.decoding.prompt_lookup import MOST, Lookup, Repetition
from support.scripted import engine, ids

LIST = "<ref>a mug</ref><box>(1,2),(3,4)</box>" * 6 + "<|im_end|>"


@pytest.fixture
def steady(monkeypatch):
    """Steps cost what is assumed at first: how long a scripted one takes depends on what else the machine does."""
    monkeypatch.setattr(Lookup, "report", lambda *_: None)


def repetition(tokens):
    seen = Repetition()
    for token in tokens:
        seen.append(token)
    return seen


def places(tokens):
    """How many tokens before each place are those at the end of the sequence."""
    for place in range(1, len(tokens)):
        length = 0
        while length < place and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        yield length


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2)))
def test_the_guess_followed_the_same_tokens_before(prompt, answer):
    seen, tokens = repetition(prompt), list(prompt)
    for token in [None, *answer]:
        if token is not None:
            seen.append(token)
            tokens.append(token)
        longest = max(places(tokens), default=0)
        assert (seen.length >= 3) == (longest >= 3) and seen.length <= longest
        if seen.length:  # what is guessed came behind such a match, and goes on with what came there
            found = seen.continuation(5)
            assert seen.foretells(found[0]) and not seen.foretells(found[0] + 1)
            starts = [place for place, length in enumerate(places(tokens), 1) if length >= min(seen.length, 8)]
            assert found in [(tokens[place:] * 5)[:5] for place in starts]
        else:
            assert not any(map(seen.foretells, range(3)))


def test_the_latest_place_is_followed_while_it_is_right():
    seen = repetition([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3])
    assert (seen.length, seen.continuation(2)) == (3, [8, 1])
    seen.append(7)
    assert (seen.length, seen.continuation(2)) == (4, [1, 2])
    for token in (1, 2, 3, 8):
        seen.append(token)
    assert (seen.length, seen.continuation(4)) == (8, [1, 2, 3, 7])


def lookup_behind(tokens):
    lookup = Lookup()
    lookup.start(np.array(tokens), 0)
    return lookup


def test_proposals_grow_while_they_are_right():
    lookup, sizes = lookup_behind([*range(40), 0, 1]), []
    for _ in range(5):
        for token in (*range(2, 40), 0, 1):
            sizes.append(len(lookup.propose(100)))
            lookup.append(token)
    assert sizes[0] < sizes[20] < sizes[-1] == MOST
    lookup.start(np.array([*range(40), 0, 1, 2]), 0)
    assert lookup.propose(3).tolist() == [3, 4, 5]


def test_guesses_that_are_wrong_end_the_proposals_and_right_ones_bring_them_back():
    lookup, sizes = lookup_behind([*range(5), 0, 1, 2]), []

    def hear(tokens):
        for token in tokens:
            sizes.append(len(lookup.propose(10)))
            lookup.append(token)

    hear(token for i in range(30) for token in (50 + i, 0, 1, 2))
    assert sizes[0] and not any(sizes[-40::4])  # behind 0, 1, 2 everything was wrong
    hear(token for _ in range(30) for token in (99, 0, 1, 2))  # not proposed at first, but guessed
    assert sizes[-4]


def test_what_more_tokens_cost_decides_how_many_are_proposed():
    sizes = []
    for seconds in (0.001, 0.0012, 0.003, 0.01):  # of a step of three tokens, where one of one token takes 0.001
        lookup = lookup_behind([*range(40), 0, 1, 2])
        for _ in range(40):
            lookup.report(1, 0.001)
            lookup.report(3, seconds)
        sizes.append(len(lookup.propose(MOST)))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == 0


def test_one_slow_step_changes_little():
    lookup = lookup_behind([*range(40), 0, 1, 2])
    for _ in range(40):
        lookup.report(1, 0.001)
        lookup.report(3, 0.0011)
    before = len(lookup.propose(MOST))
    lookup.report(1, 5.0)
    lookup.report(3, 5.0)
    assert before > 0 and abs(len(lookup.propose(MOST)) - before) < 2


def test_what_was_said_is_remembered_up_to_a_limit():
    lookup = Lookup()
    sizes = []
    for answer in range(400):
        lookup.start(np.arange(30) + 10**6 + 30 * answer, 0)
        for token in range(100 * answer, 100 * answer + 50):
            lookup.append(token)
        sizes.append(len(lookup._seen))
    assert 10_000 < max(sizes) <= 16384 + 80 and min(sizes[200:]) == 80
    last, first = np.arange(39900, 39908), np.arange(100, 108)
    lookup.start(last, 0)
    assert lookup.propose(1).tolist() == [39908]
    lookup.start(first, 0)
    assert not len(lookup.propose(1))


def test_nothing_is_proposed_behind_the_end_of_an_answer():
    lookup = Lookup(ends={99})
    lookup.start(np.array([*range(6), 99, *range(50, 60), 0, 1, 2]), 0)
    assert lookup.propose(MOST).tolist() == [3, 4, 5]
    for token in (3, 4, 5):
        lookup.append(token)
    assert not len(lookup.propose(MOST))


@pytest.mark.usefixtures("steady")
def test_an_answer_given_before_takes_few_steps(tmp_path):
    answer = "There are three mugs, two of them red, and a plate with 12 apples.<|im_end|>"
    qwen, _ = engine(tmp_path, answer, "No.<|im_end|>", answer, answer)
    frames = [np.full((20, 40, 3), shade, np.uint8) for shade in range(4)]
    first, _, again = (
        qwen.chat(question, images=[frame], max_new_tokens=500)
        for question, frame in zip(["What is there?", "Is it dark?", "What is there?"], frames, strict=False)
    )
    assert again.raw_text == first.raw_text and again.stats.images_encoded == 1
    assert again.stats.accepted_tokens > again.stats.new_tokens / 2
    qwen.forget()
    assert qwen.chat("What is there?", images=[frames[3]], max_new_tokens=500).stats.accepted_tokens == 0


@pytest.mark.usefixtures("steady")
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


@pytest.mark.usefixtures("steady")
def test_a_conversation_goes_on_behind_rejected_proposals(tmp_path):
    other = LIST.removesuffix("<|im_end|>") + "<ref>a mug</ref><box>(1,2),(3,9)</box><|im_end|>"
    qwen, backend = engine(tmp_path, other, "done<|im_end|>")
    first = qwen.chat("hi", max_new_tokens=500)
    stats = qwen.chat("more", history=first.history, max_new_tokens=500).stats
    assert first.stats.accepted_tokens < first.stats.proposed_tokens
    assert stats.reused_tokens == first.stats.prompt_tokens + first.stats.new_tokens - 1
    assert backend.prompt_ids(1)[: stats.reused_tokens] == [*backend.prompt_ids(0), *ids(other)[:-1]]


@pytest.mark.usefixtures("steady")
def test_text_that_never_repeats_is_hardly_slowed(tmp_path):
    text = "".join(f"{chr(97 + i % 26)}{i * 7919 % 1000}" for i in range(40)) + "<|im_end|>"
    qwen, backend = engine(tmp_path, text)
    stats = qwen.chat("hi", max_new_tokens=500).stats
    assert backend.steps == stats.new_tokens - stats.accepted_tokens
    assert stats.proposed_tokens < stats.new_tokens / 4


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("limit", range(1, 30))
def test_limits_hold_inside_a_proposal(tmp_path, limit):
    qwen, _ = engine(tmp_path, LIST, LIST)
    reply = qwen.chat("hi", max_new_tokens=limit + 20)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("length", limit + 20)
    small, _ = engine(tmp_path, LIST, max_context=reply.stats.prompt_tokens + limit)
    reply = small.chat("hi", max_new_tokens=500)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("context", limit + 1)


@pytest.mark.usefixtures("steady")
def test_a_stop_string_inside_a_proposal(tmp_path):
    for stop in ("mug</ref><box>(1,2),(3,4)</box><ref>a mug</ref><box>(1", "x"):
        qwen, _ = engine(tmp_path, LIST.replace("mug", "jug", 1).replace("(3,4)", "(3,x)", 4))
        reply = qwen.chat("hi", stop=[stop], max_new_tokens=500)
        assert reply.finish_reason == "stop_string" and stop not in reply.raw_text
