"""Prompts within the context: tokens are counted, and old turns make room for the answer."""

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import ContextError, PromptError
from support.scripted import ScriptedBackend, decode, engine

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((100, 50, 3), (0, 0, 255), np.uint8)


def test_tokens_are_counted_as_chat_counts_them(tmp_path):
    qwen, backend = engine(tmp_path, *["ok<|im_end|>"] * 3)
    history = [([{"image": RED}, {"text": "What is it?"}], "Red."), ("x " * 300, "y"), ("so", "yes")]
    calls = [
        ("hi", {}),
        ([{"image": None}, {"text": "Where?"}], {"images": [RED], "system": "Be brief."}),
        ("and now?", {"images": [BLUE, RED], "history": history}),  # the turns before "so" find no room
    ]
    for message, arguments in calls:
        count = qwen.count_tokens(message, **arguments)
        assert count == qwen.chat(message, **arguments).stats.prompt_tokens == len(backend.prompt_ids())


def test_counting_computes_nothing_and_counts_what_does_not_fit(tmp_path):
    qwen, backend = engine(tmp_path)
    assert qwen.count_tokens("word " * 600, images=[RED]) > 600 > qwen.max_context
    assert backend.encoded == backend.steps == 0
    with pytest.raises(PromptError, match="empty"):
        qwen.count_tokens("")
    base, _ = engine(tmp_path, generation={"chat_format": "raw"})
    with pytest.raises(PromptError, match="base model"):
        base.count_tokens("hi")


def test_a_prompt_that_does_not_fit_says_by_how_much(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>", max_context=64)
    words = " a" * 100
    with pytest.raises(ContextError, match=r"more than the context of 64") as caught:
        qwen.chat(words)
    total, excess = [int(word) for word in str(caught.value).split() if word.isdigit()][:2]
    assert total - excess == 64 and excess > 0
    assert backend.prompts == []
    with pytest.raises(ContextError):
        qwen.complete(words)


def test_a_prompt_that_just_fits(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>")
    length = qwen.chat("hi").stats.prompt_tokens
    small = QwenVLEngine(qwen.bundle, backend=ScriptedBackend("ok<|im_end|>"), max_context=length)
    reply = small.chat("hi")
    assert (reply.finish_reason, reply.stats.new_tokens) == ("context", 1)
    smaller = QwenVLEngine(qwen.bundle, backend=ScriptedBackend(), max_context=length - 1)
    with pytest.raises(ContextError, match=r"\b1 more than"):
        smaller.chat("hi")


def test_old_turns_make_room_for_the_answer(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>", "ok<|im_end|>", max_context=120)
    history = [(f"question {i} " + "word " * 10, "answer") for i in range(5)]
    reply = qwen.chat("hi", history=history, max_new_tokens=20)
    assert 0 < reply.stats.history_turns_dropped < 5
    assert reply.stats.prompt_tokens + 20 <= 120
    text = decode(backend.prompt_ids())
    assert "question 4" in text and "question 0" not in text
    assert len(reply.history) == 6


def test_a_small_context_still_keeps_history(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>", max_context=120)
    reply = qwen.chat("hi", history=[("a", "b")], max_new_tokens=512)
    assert reply.stats.history_turns_dropped == 0


def test_the_bundles_window_limits_history(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>", generation={"max_window_size": 30})
    reply = qwen.chat("hi", history=[("question", "answer")] * 3)
    assert reply.stats.history_turns_dropped == 3
