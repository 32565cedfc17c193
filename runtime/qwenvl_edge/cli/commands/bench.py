"""`qwenvl bench`: how fast a bundle is here, in the words of llama-bench: pp, tg, and the time to the first token."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.errors import ContextError
from qwenvl_edge.machine.terminal import ProgressBar, say

if TYPE_CHECKING:
    from qwenvl_edge.engine import QwenVLEngine
    from qwenvl_edge.replies.reply import Stats

_WORD = " the"
_SIZE = (640, 480)  # of the picture, which is noise
_QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Measured:
    """A figure over the repeats. what: "pp", "tg", "picture" or "ttft". tokens: of what was computed."""

    what: str
    tokens: int
    unit: str
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The median and the extremes."""
        median = round(statistics.median(self.values), 2)
        low, high = round(min(self.values), 2), round(max(self.values), 2)
        return {"what": self.what, "tokens": self.tokens, "unit": self.unit, "median": median, "min": low, "max": high}


def add_bench(commands: Any) -> None:
    """Add the command to the program's parser."""

    parser = commands.add_parser("bench", help="measure how fast a bundle is on this machine")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the prompt (default 512)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens of the answer (default 128)")
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="measurements, after one that does not count (default 5)"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture (default: noise of 640 x 480)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    parser.add_argument("--backend", default="auto", metavar="B", help="auto (default), tensorrt or onnxruntime")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cuda or cpu")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.engine import QwenVLEngine
    from qwenvl_edge.inputs.options import check, whole

    at_least_1 = whole("a whole number of at least 1", least=1)
    for name in ("prompt", "tokens", "repeats"):
        check(f"--{name}", getattr(arguments, name), at_least_1)
    engine = QwenVLEngine(
        arguments.bundle, threads=arguments.threads, backend=arguments.backend, device=arguments.device
    )
    picture = _noise() if arguments.image is None else engine.load_picture(arguments.image)
    with ProgressBar(sys.stderr) as progress:
        measured = measure(engine, picture, arguments.prompt, arguments.tokens, arguments.repeats, progress)
    if arguments.json:
        figures = [each.to_dict() for each in measured]
        say(json.dumps({"bundle": str(arguments.bundle), "runs": engine.describe(), "figures": figures}))
        return 0
    say(engine.describe())
    for each in map(Measured.to_dict, measured):
        name = f"{each['what']} {each['tokens']}"
        say(f"{name:<16}{each['median']:>10,.2f} {each['unit']:<9}({each['min']:,.2f} to {each['max']:,.2f})")
    return 0


def measure(
    engine: QwenVLEngine,
    picture: Any,
    prompt: int,
    tokens: int,
    repeats: int,
    progress: Callable[[int, int, str], object],
) -> list[Measured]:
    """Measure a text prompt, an answer without guessed tokens, and a question about a picture, nothing of it kept.

    Raises:
        ContextError: prompt and answer are longer than the context.
    """
    if prompt + tokens > engine.max_context:
        raise ContextError(
            f"a prompt of {prompt:,} tokens and an answer of {tokens:,} do not fit into the context of "
            f"{engine.max_context:,}; give smaller --prompt and --tokens."
        )
    text = _words(engine, prompt)
    ask = engine.chat if engine.can_chat else engine.complete
    written: list[Stats] = []
    shown: list[Stats] = []
    for number in range(repeats + 1):
        progress(number, repeats + 1, "measuring")
        engine.forget()
        written.append(_answer(engine.complete, text, tokens))
        engine.forget()
        shown.append(_answer(ask, [{"image": picture}, {"text": _QUESTION}], 1))
    progress(repeats + 1, repeats + 1, "measuring")
    written, shown = written[1:], shown[1:]

    def figure(what: str, count: int, unit: str, values: list[float]) -> Measured:
        return Measured(what, count, unit, tuple(values))

    prefills = [1e3 * stats.prefill_tokens / stats.prefill_ms for stats in written]
    figures = [figure("pp", written[0].prefill_tokens, "tokens/s", prefills)]
    if tokens > 1:
        figures.append(figure("tg", tokens, "tokens/s", [stats.tokens_per_s for stats in written]))
    figures.append(figure("picture", shown[0].image_tokens, "ms", [stats.image_ms for stats in shown]))
    figures.append(figure("ttft", shown[0].prompt_tokens, "ms", [stats.ttft_ms for stats in shown]))
    return figures


def _answer(ask: Callable[..., Any], message: Any, tokens: int) -> Stats:
    stats: Stats = ask(message, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, lookup=False).stats
    return stats


def _words(engine: QwenVLEngine, tokens: int) -> str:
    """Return a text of so many tokens, as nearly as its words allow."""
    sample = 32
    found = _answer(engine.complete, _WORD * sample, 1).prompt_tokens
    return _WORD * max(1, round(tokens * sample / found))


def _noise() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (*_SIZE[::-1], 3), np.uint8)
