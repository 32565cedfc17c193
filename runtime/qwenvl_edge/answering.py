"""A request becomes a reply: pictures encoded, prompt prefilled, tokens generated, boxes placed."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.answer import AnswerWriter
from qwenvl_edge.control import Control
from qwenvl_edge.conversation import Part, Text, Turn
from qwenvl_edge.decoder import SequenceDecoder
from qwenvl_edge.families import QwenVL
from qwenvl_edge.features import FeatureCache
from qwenvl_edge.generation import Generation
from qwenvl_edge.grounding import boxes_of, place, quads_of, refs_of
from qwenvl_edge.lookup import Lookup
from qwenvl_edge.reply import FinishReason, Reply
from qwenvl_edge.request import Request
from qwenvl_edge.stats import Stats
from qwenvl_edge.tokenizer import Tokenizer
from qwenvl_edge.turns import Turns

FloatArray = npt.NDArray[np.float32]


@dataclass
class _Costs:
    """What was spent before the first token."""

    image_s: float = 0.0
    prefill_s: float = 0.0
    images_encoded: int = 0
    reused_tokens: int = 0
    prefill_tokens: int = 0


class Answerer:
    """Answers requests one after another, in the order in which they came.

    Args:
        stop: id sequences that end an answer.
    """

    def __init__(
        self,
        family: QwenVL,
        tokenizer: Tokenizer,
        features: FeatureCache,
        decoder: SequenceDecoder,
        *,
        stop: Sequence[tuple[int, ...]],
    ) -> None:
        self._family = family
        self._tokenizer = tokenizer
        self._features = features
        self._decoder = decoder
        self._stop = stop
        self._lookup = Lookup()
        self._turns = Turns()

    def answer(self, request: Request, control: Control) -> Generator[str, None, Reply]:
        """Compute an answer, yielding its text as it comes."""
        writer, costs = self._writer(request), _Costs()
        run: Generation | None = None
        with self._turns.take(lambda: control.reason is not None) as granted:
            logits = self._prefill(request, control, costs) if granted else None
            if logits is not None:
                run = Generation(self._decoder, self._lookup, writer, request.options, request.matcher, logits)
                ttft_s = time.perf_counter() - request.started
                yield run.piece
                while run.finish_reason is None and control.reason is None:
                    yield run.step()
            yield writer.finish()
        stats = Stats(
            image_ms=costs.image_s * 1e3,
            prefill_ms=costs.prefill_s * 1e3,
            ttft_ms=ttft_s * 1e3 if run else 0.0,
            token_ms=tuple(run.token_ms) if run else (),
            prompt_tokens=len(request.prompt.ids),
            reused_tokens=costs.reused_tokens,
            prefill_tokens=costs.prefill_tokens,
            image_tokens=self._family.image_tokens * len(request.prompt.pictures),
            new_tokens=run.new_tokens if run else 0,
            proposed_tokens=self._lookup.proposed if run else 0,
            accepted_tokens=self._lookup.accepted if run else 0,
            images_encoded=costs.images_encoded,
            history_turns_dropped=len(request.history) - request.prompt.turns,
        )
        reason = run.finish_reason if run else None
        return self._reply(request, writer, reason or control.reason or "cancelled", stats)

    def forget(self) -> None:
        """Drop computed prefixes and features, when it is this caller's turn."""
        with self._turns.take():
            self._decoder.forget()
            self._features.forget()

    def _prefill(self, request: Request, control: Control, costs: _Costs) -> FloatArray | None:
        """Encode pictures and compute the prompt; return the logits after it, or None if the answer must end."""
        clock = time.perf_counter()
        prompt = request.prompt
        wanted = self._decoder.begin(prompt)
        costs.reused_tokens = self._decoder.reused
        found: dict[str, FloatArray] = {}
        for picture in (prompt.pictures[i] for i in wanted):
            if control.reason is not None:
                return None
            if picture.digest not in found:
                found[picture.digest], encoded = self._features.get(picture)
                costs.images_encoded += encoded
        self._decoder.load(prompt, {i: found[prompt.pictures[i].digest] for i in wanted})
        costs.image_s = time.perf_counter() - clock
        logits = None
        while logits is None and control.reason is None:
            logits = self._decoder.prefill()
        costs.prefill_s = time.perf_counter() - clock - costs.image_s
        costs.prefill_tokens = self._decoder.computed - costs.reused_tokens
        return logits

    def _writer(self, request: Request) -> AnswerWriter:
        family = self._family
        # Where a constraint rules, stop words are words like others: only control tokens end the answer.
        stop = self._stop if request.matcher is None else [ids for ids in self._stop if len(ids) == 1]
        return AnswerWriter(
            self._tokenizer,
            family.markup,
            stop=stop,
            stop_strings=request.options.stop,
            hidden=family.hidden_ids,
            lead=request.lead,
        )

    def _reply(self, request: Request, writer: AnswerWriter, reason: FinishReason, stats: Stats) -> Reply:
        turn = Turn(request.message, writer.raw_text)
        kept = request.history[len(request.history) - request.prompt.turns :]
        pictures = next((each.pictures for each in (turn, *reversed(kept)) if each.pictures), ())
        malformed = list(writer.malformed)
        shapes = list(writer.shapes)
        if not pictures:
            malformed += [shape.source for shape in shapes]
            shapes = []
        asked = self._asked_picture(request.message, len(pictures))
        images = [self._named(writer.text_before(shape), len(pictures), asked) for shape in shapes]
        places = place(shapes, images, [picture.size for picture in pictures])
        return Reply(
            text=writer.text,
            raw_text=writer.raw_text,
            boxes=boxes_of(places),
            quads=quads_of(places),
            refs=refs_of(writer.labels, shapes, places),
            malformed=tuple(malformed),
            pictures=pictures,
            history=(*request.history, turn) if request.is_chat else (),
            finish_reason=reason,
            stats=stats,
        )

    def _asked_picture(self, message: Sequence[Part], count: int) -> int:
        """Return the index of the one picture that the question names, else of the last one."""
        named = set(self._family.named_pictures("\n".join(part.text for part in message if isinstance(part, Text))))
        number = named.pop() if len(named) == 1 else count
        return number - 1 if 1 <= number <= count else count - 1

    def _named(self, text_before: str, count: int, otherwise: int) -> int:
        """Return the index of the picture that the answer named last before a shape, or `otherwise`."""
        named = self._family.named_pictures(text_before)
        return named[-1] - 1 if named and 1 <= named[-1] <= count else otherwise
