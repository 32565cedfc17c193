"""Random conversations on a small random model, asked of two engines: what they sample and from which logits."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import hypothesis
import numpy as np

import qwenvl_edge.decoding.decode_loop
from qwenvl_edge import ContextError
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.inputs.options import SamplingParams

PICTURES = [np.random.default_rng(seed).integers(0, 256, (9 + seed, 7, 3), np.uint8) for seed in range(4)]
WORDS = ["What is it?", "Where?", "And now?", "红色的杯子在哪里?", "Compare them. " * 3, "a"]
TOLERANCE = 2e-4


def examples(usual: int) -> int:
    """How many random examples to try: as usual, or with `--hypothesis-profile soak` thirty times as many."""
    return usual * hypothesis.settings.default.max_examples // 100


def item(seed):
    """The arguments of a call of chat, drawn at random."""
    rng = random.Random(seed)
    return {
        "message": rng.choice(WORDS) * rng.randint(1, 4),
        "images": [PICTURES[i] for i in rng.sample(range(4), rng.randrange(3))],
        "history": [(rng.choice(WORDS), "yes")] * rng.randrange(2),
        "max_new_tokens": rng.randint(1, 24),
        "do_sample": rng.random() < 0.5,
        "top_p": 1.0,
        "seed": seed,
    }


@dataclass
class Recorded:
    """Tokens sampled, the logits that they were sampled from, and by which settings."""

    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    params: SamplingParams | None = None


@contextlib.contextmanager
def recording():
    """Record every token sampled by any engine meanwhile."""
    recorded = Recorded()

    class Recorder(Sampler):
        def sample(self, logits, *arguments, **options):
            token = super().sample(logits, *arguments, **options)
            recorded.params = self.params
            recorded.tokens.append(token)
            recorded.logits.append(logits.copy())
            return token

    plain, qwenvl_edge.decoding.decode_loop.Sampler = qwenvl_edge.decoding.decode_loop.Sampler, Recorder
    try:
        yield recorded
    finally:
        qwenvl_edge.decoding.decode_loop.Sampler = plain


def ask(qwen, message, history, **options):
    """The reply and what was sampled for it; (None, message of the error) where the prompt does not fit."""
    with recording() as recorded:
        try:
            return qwen.chat(message, history=history, **options), recorded
        except ContextError as error:
            return None, str(error)


def check_conversations(reusing, plain, steps, turn):
    """Ask an engine that keeps what it computed, and one that is made to forget, the same; their answers are the same.

    turn: gives the message, history and options of a step from its number, the step and the conversations so far.
    """
    reusing.forget()
    conversations = [[]]
    for number, step in enumerate(steps):
        message, history, options = turn(number, step, conversations)
        plain.forget()
        reply, ours = ask(reusing, message, history, **options)
        expected, theirs = ask(plain, message, history, lookup=False, **options)
        if reply is None or expected is None:
            assert ours == theirs
            continue
        if not assert_same(ours, theirs):
            return
        assert expected.stats.reused_tokens == 0
        assert (reply.raw_text, reply.finish_reason) == (expected.raw_text, expected.finish_reason)
        conversations.append([*history, (message, reply.raw_text)])


def assert_same(ours, theirs):
    """The same tokens from logits within the tolerance; return whether they are.

    Logits that differ by rounding may lie on two sides of the border between two tokens, once in some hundred thousand
    draws. Then both tokens must be what a draw of that number gives, and nothing behind it can be compared.
    """
    pairs = zip(ours.tokens, theirs.tokens, strict=False)
    parted = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    end = None if parted is None else parted + 1
    np.testing.assert_allclose(ours.logits[:end], theirs.logits[:end], rtol=0, atol=TOLERANCE)
    if parted is None:
        assert ours.tokens == theirs.tokens
        return True
    assert np.abs(ours.logits[parted] - theirs.logits[parted]).max() > 0
    for one in (ours, theirs):
        assert _drawn(one, parted) == one.tokens[parted]
    return False


def _drawn(recorded, number):
    """What a draw gives that comes behind as many others."""
    sampler = Sampler(recorded.params)
    return [sampler.sample(logits) for logits in recorded.logits[: number + 1]][-1]
