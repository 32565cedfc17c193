"""Reuse, chunks and look-up decoding change nothing: random conversations against an engine that has none of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import QwenVLEngine
from support.conversations import PICTURES, WORDS, ask, assert_same, check_conversations, examples
from support.random_checkpoint import GENERATION, write_checkpoint

MESSAGES = st.tuples(st.lists(st.integers(0, len(PICTURES) - 1), max_size=2), st.sampled_from(WORDS))
# A step asks `message` behind the conversation number `branch` (modulo those that there are), cut to `turns` turns;
# with `swap`, the pictures of the first of these turns are other ones.
STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans(), MESSAGES, st.integers(1, 40)),
    min_size=2,
    max_size=7,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """seq_length is 16: nearly every prompt has a dynamic-NTK factor of its own. The window drops old turns."""
    exporter = pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
    folder = tmp_path_factory.mktemp("reuse")
    checkpoint = write_checkpoint(folder / "checkpoint", seed=5, generation={**GENERATION, "max_window_size": 300})
    return exporter.export(checkpoint, folder / "bundle", precision=exporter.ExportPrecision.choose("fp32"))


@pytest.fixture(scope="module")
def engines(bundle):
    reusing = {chunk: QwenVLEngine(bundle, threads=1, max_context=400, prefill_chunk=chunk) for chunk in (1, 7, 64)}
    return reusing, QwenVLEngine(bundle, threads=1, max_context=400, prefill_chunk=400)


def items(pictures, words):
    return [*({"image": PICTURES[i]} for i in pictures), {"text": words}]


@given(STEPS, st.sampled_from([1, 7, 64]), st.booleans())
@settings(max_examples=examples(60), deadline=None)
def test_random_conversations(engines, steps, chunk, sampled):
    def turn(number, step, conversations):
        branch, turns, swap, (pictures, words), length = step
        history = conversations[branch % len(conversations)][-turns or None :]
        if swap and history:
            (message, answer), *rest = history
            history = [(items([number % len(PICTURES)], message[-1]["text"]), answer), *rest]
        options = {"do_sample": sampled, "seed": number, "top_p": 1.0, "max_new_tokens": length}
        return items(pictures, words), history, options

    check_conversations(engines[0][chunk], engines[1], steps, turn)


def test_the_conversations_do_reuse(engines):
    """Guards the test above: what it compares is not twice the same computation."""
    reusing = engines[0][64]
    reusing.forget()
    first = reusing.chat(items([0], WORDS[4]), max_new_tokens=2, do_sample=False)
    again = reusing.chat(items([0], WORDS[4]), max_new_tokens=2, do_sample=False)
    assert again.raw_text == first.raw_text
    looping = reusing.chat(items([0], WORDS[4]), max_new_tokens=100, do_sample=False).stats
    assert looping.proposed_tokens > looping.accepted_tokens > 20
    assert again.stats.prefill_tokens == 1 and again.stats.images_encoded == 0


def test_branches_repeats_other_pictures_and_overflow_do_occur(engines):
    """One conversation that has all of them, so that none is left to chance."""
    reusing, plain = engines[0][7], engines[1]
    reusing.forget()
    greedy = {"do_sample": False, "max_new_tokens": 6}

    def both(message, history):
        plain.forget()
        reply, ours = ask(reusing, message, history, **greedy)
        _, theirs = ask(plain, message, history, lookup=False, **greedy)
        assert assert_same(ours, theirs)
        return reply

    root = both(items([0], WORDS[0]), [])
    left = both(items([], WORDS[1]), root.history)
    right = both(items([], WORDS[2]), root.history)
    assert min(left.stats.reused_tokens, right.stats.reused_tokens) > root.stats.prompt_tokens // 2
    assert both(items([], WORDS[1]), root.history).stats.prefill_tokens < left.stats.prompt_tokens // 2
    swapped = both(items([], WORDS[1]), [(items([1], WORDS[0]), root.raw_text)])
    assert swapped.stats.images_encoded == 1 and swapped.stats.reused_tokens < root.stats.prompt_tokens
    history = right.history
    while not (reply := both(items([], WORDS[4]), history)).stats.history_turns_dropped:
        history = reply.history
    assert reply.stats.reused_tokens > 0
