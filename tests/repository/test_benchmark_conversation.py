"""The benchmark of look-up decoding: what it dictates is said, and repeats its prompt."""

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_what_is_dictated_is_said_and_looked_up(nano, monkeypatch):
    pytest.importorskip("llguidance", reason="constraints need the extra [constrained]")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import conversation

    bench = conversation.Bench(str(nano), 1, (64, 48))
    for repeating in conversation.REPEATING.values():
        frame = bench.frame()
        alone, guessed = (bench.dictate(repeating, frame, on) for on in (False, True))
        assert alone.raw_text == guessed.raw_text == repeating.answer and alone.finish_reason == "stop"
        assert alone.stats.accepted_tokens == 0 < guessed.stats.accepted_tokens
        drawn = guessed.stats.new_tokens - guessed.stats.forced_tokens
        assert guessed.stats.accepted_tokens > drawn / 3
