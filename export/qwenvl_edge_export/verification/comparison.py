"""One comparison of a checkpoint's reference with the sides of its bundle, case by case."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from qwenvl_edge.backends.select import TENSORRT
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import PIXEL_VALUES, STANDARD
from qwenvl_edge.bundle.manifest import INT8_CACHE, Precision
from qwenvl_edge.families import open_family
from qwenvl_edge.families.pieces import Rows, Shown
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ImageFeatures
from qwenvl_edge_export.verification.calls import PROMPT_ROWS
from qwenvl_edge_export.verification.cases import Case, builtin_box_case, builtin_cases, case_builder
from qwenvl_edge_export.verification.float_range import RangeProbe, range_pictures
from qwenvl_edge_export.verification.limits import (
    INT8_CACHE_LIMITS,
    LIMITS,
    Choices,
    FloatArray,
    Limits,
    Report,
    Row,
    agreement,
    features_row,
    logits_row,
    overlap,
)
from qwenvl_edge_export.verification.sides import GREEDY_TOKENS, Replied, Side
from qwenvl_edge_export.verification.stages import Progress, Stages
from qwenvl_edge_export.verification.streamed_reference import Asked, StreamedReference

_CORRECTED_UP_TO_BYTES = 1 << 30  # of the decoder in float32; above it PyTorch's answer would take minutes per token
_UNIT = 1_000_000_000
_PATCH_VALUES = 3 * 14 * 14

Features: TypeAlias = Mapping[str, ImageFeatures]
"""Of pictures, by their digests."""
Chosen: TypeAlias = Mapping[tuple[int, ...], Choices]
"""PyTorch's choices, given an answer, by that answer."""


class Comparison:
    """Compares every side with the reference on the built-in cases.

    Rows have the cases' order: image features, then logits of each side.
    """

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint, sides: Sequence[Side], progress: Progress):
        self._bundle = bundle
        self._sides = sides
        self._reference = StreamedReference(checkpoint)
        self._builder = case_builder(bundle)
        self._cases = [*builtin_cases(self._builder), builtin_box_case(self._builder)]
        self._pictures = {each.digest(): each for case in self._cases for each in case.pictures}
        self._answerable = _answerable(bundle, self._cases)
        decoder = checkpoint.family.decoder
        weights = sum(math.prod(weight.shape) for weight in decoder.weights())
        self._corrects = 4 * weights <= _CORRECTED_UP_TO_BYTES
        tokens = sum(len(case.prompt.ids) + GREEDY_TOKENS for case in self._cases)
        patches = sum(each.arrays[PIXEL_VALUES].size // _PATCH_VALUES for each in self._pictures.values())
        tower = sum(math.prod(shape) for shape in checkpoint.family.tensors.values()) - weights
        self._vision_units = 1 + tower * patches // _UNIT
        self._decoder_units = 1 + weights * tokens // _UNIT
        graphs = len({side.vision for side in sides})
        total = (1 + graphs) * self._vision_units + (1 + len(sides)) * self._decoder_units
        self._stages = Stages(progress, total)
        self._range_rows: list[Row] = []

    def run(self) -> Report:
        """All rows.

        Raises:
            BackendError: a side cannot be run here, or yields NaN or infinity.
        """
        wanted = self._wanted_features()
        found = self._found_features()
        asked = [self._asked(case, wanted, found) for case in self._cases]
        replied: dict[str, list[Replied]] = {}
        for side in self._sides:
            if side.answers:
                replied[side.name] = self._replies(side, asked, found[side.vision])
                asked = [_answered(case, each) for case, each in zip(asked, replied[side.name], strict=True)]
        logits, chosen = self._wanted_logits(asked, wanted, replied)
        rows: list[list[Row]] = [self._vision_rows(case, wanted, found) for case in self._cases]
        rows.append(self._range_rows)
        for side in self._sides:
            own = replied.get(side.name)
            if own is not None:
                made = self._own_rows(side.name, asked, own, logits, chosen)
            else:
                drafts = next(iter(replied.values()), None)
                made = self._given_rows(side, asked, found[side.vision], drafts, logits, chosen)
            for of_case, row in zip(rows[:-1], made, strict=True):
                of_case.append(row)
        slow = ("greedy answers: no decoder answers quickly at this size here",) if self._sides and not replied else ()
        return Report(tuple(row for of_case in rows for row in of_case), slow)

    def _wanted_features(self) -> Features:
        done = self._stages.begin("comparing: pictures in PyTorch", self._vision_units, len(self._pictures))
        found = {}
        for digest, picture in self._pictures.items():
            found[digest] = self._reference.encode(picture)
            done()
        self._range_rows = list(self._ranges())
        return found

    def _ranges(self) -> Iterable[Row]:
        """The range of float16, where the picture side computes in it."""
        precision = self._bundle.manifest.precision
        if precision.compute["vision"] != "fp16":
            return
        probe = RangeProbe(self._reference.vision, precision)
        for size, picture in range_pictures(open_family(self._bundle.manifest)):
            probe.watch(size)
            self._reference.encode(picture)
        probe.close()
        yield probe.row()

    def _found_features(self) -> dict[str, Features]:
        """Of each vision graph, by its name."""
        found: dict[str, Features] = {}
        for side in self._sides:
            if side.vision not in found:
                done = self._stages.begin(f"comparing: {side.vision}", self._vision_units, side.vision_steps)
                encoded = side.encode(list(self._pictures.values()), done)
                found[side.vision] = dict(zip(self._pictures, encoded, strict=True))
        return found

    def _asked(self, case: Case, wanted: Features, found: Mapping[str, Features]) -> Case:
        """The case with the answer that all sides are given.

        Where it has none, PyTorch's own. Where that would take long, it stays without one if a side can answer it.
        """
        if len(case.answer):
            return case
        drafter = next((side for side in self._sides if side.answers), None)
        if drafter is None:
            return dataclasses.replace(case, answer=self._builder.answer_ids(self._builder.prompts.found))
        if not self._corrects:
            return case
        drafted = self._text(case, found[drafter.vision])
        answer = self._corrected(
            self._text(case, wanted), drafter, drafted, drafter.greedy(drafted, (), self._answerable)
        )
        return dataclasses.replace(case, answer=np.array(answer, np.int64))

    def _replies(self, side: Side, asked: Sequence[Case], features: Features) -> list[Replied]:
        """Return the answer to each case of a side that can answer by itself."""
        done = self._stages.begin(f"comparing: decoder {side.name}", self._decoder_units, len(asked))
        found = []
        for case in asked:
            answers = [case.answer] if len(case.answer) else []
            text = dataclasses.replace(self._text(case, features), answers=answers)
            found.append(side.reply(text, self._answerable))
            done()
        side.close()
        return found

    def _corrected(self, text: Asked, drafter: Side, drafted: Asked, draft: list[int]) -> list[int]:
        """PyTorch's own greedy answer, GREEDY_TOKENS ids, of which `draft` is a side's.

        The side drafts it and PyTorch corrects it, so that it takes a pass per difference, not per token (Leviathan et
        al., arXiv 2211.17192).
        """
        while True:
            ((rows,),) = self._reference.logits([dataclasses.replace(text, answers=[draft])], PROMPT_ROWS)
            chosen = self._choices(rows, draft).argmax(-1).tolist()
            if chosen == draft:
                return draft
            same = next(i for i, pair in enumerate(zip(draft, chosen, strict=True)) if pair[0] != pair[1])
            draft = drafter.greedy(drafted, chosen[: same + 1], self._answerable)

    def _wanted_logits(
        self, asked: Sequence[Case], wanted: Features, replied: Mapping[str, Sequence[Replied]]
    ) -> tuple[list[FloatArray], list[Chosen]]:
        """Of each case the logits of its answer, and by each side's own answer the tokens PyTorch would have chosen."""
        drafts = [list(dict.fromkeys(tuple(each[i].own) for each in replied.values())) for i in range(len(asked))]
        texts = [
            dataclasses.replace(self._text(case, wanted), answers=[case.answer, *answers])
            for case, answers in zip(asked, drafts, strict=True)
        ]
        layers = self._reference.layers
        done = self._stages.begin("comparing: answers in PyTorch", self._decoder_units, layers)
        found = self._reference.logits(texts, PROMPT_ROWS, lambda _: done())
        chosen: list[Chosen] = [
            {answer: self._choices(rows, answer).argmax(-1) for answer, rows in zip(answers, logits[1:], strict=True)}
            for answers, logits in zip(drafts, found, strict=True)
        ]
        return [logits[0] for logits in found], chosen

    def _vision_rows(self, case: Case, wanted: Features, found: Mapping[str, Features]) -> list[Row]:
        """The features of all vision graphs, one after another."""
        digests = [picture.digest() for picture in case.pictures]
        limits = LIMITS[self._bundle.manifest.precision.vision]
        rows = []
        for stage, part in (("image features", "rows"), ("deepstack features", "deepstack")):
            if digests and getattr(wanted[digests[0]], part) is not None:
                expected = np.tile(_rows(wanted, digests, part), (len(found), 1))
                values = np.concatenate([_rows(features, digests, part) for features in found.values()])
                rows.append(features_row("vision", case.name, values, expected, limits, stage=stage))
        return rows

    def _own_rows(
        self,
        name: str,
        asked: Sequence[Case],
        replied: Sequence[Replied],
        logits: Sequence[FloatArray],
        chosen: Sequence[Chosen],
    ) -> Iterable[Row]:
        """The rows of a side that answered by itself, in the order of the cases."""
        for i, (case, said) in enumerate(zip(asked, replied, strict=True)):
            greedy = agreement(said.own, np.array(said.own), chosen[i][tuple(said.own)])
            iou = None
            if not len(self._cases[i].answer):
                iou = self._shared_box(said.own, greedy)
                if self._corrects:
                    iou = overlap(self._builder.box(said.own), self._builder.box(case.answer.tolist()))
            yield self._row(name, case, said.logits, logits[i], greedy, iou)

    def _given_rows(
        self,
        side: Side,
        asked: Sequence[Case],
        features: Features,
        drafts: Sequence[Replied] | None,
        logits: Sequence[FloatArray],
        chosen: Sequence[Chosen],
    ) -> Iterable[Row]:
        """The rows of a side that cannot answer by itself: it and PyTorch are given the answers of one that can."""
        texts = [
            dataclasses.replace(
                self._text(case, features), answers=[case.answer] if drafts is None else [case.answer, drafts[i].own]
            )
            for i, case in enumerate(asked)
        ]
        done = self._stages.begin(f"comparing: decoder {side.name}", self._decoder_units, side.steps)
        results = side.logits(texts, done)
        for i, (case, found) in enumerate(zip(asked, results, strict=True)):
            greedy = iou = None
            if drafts is not None:
                draft = drafts[i].own
                greedy = agreement(draft, self._choices(found[1], draft).argmax(-1), chosen[i][tuple(draft)])
                if not len(self._cases[i].answer):
                    iou = self._shared_box(draft, greedy)
            yield self._row(side.name, case, found[0], logits[i], greedy, iou)

    def _row(
        self,
        name: str,
        case: Case,
        found: FloatArray,
        wanted: FloatArray,
        greedy: tuple[int, int] | None,
        iou: float | None,
    ) -> Row:
        limits = logits_limits(self._bundle.manifest.precision, name)
        return dataclasses.replace(logits_row(name, case.name, found, wanted, limits, greedy), iou=iou)

    def _shared_box(self, draft: Sequence[int], greedy: tuple[int, int] | None) -> float | None:
        """1 where a box ends before two answers part, as far as is known."""
        same = None if greedy is None else self._builder.box(draft[: greedy[0]])
        return overlap(same, same)

    def _text(self, case: Case, features: Features) -> Asked:
        return Asked(case.prompt, [features[picture.digest()] for picture in case.pictures])

    def _choices(self, rows: FloatArray, answer: Sequence[int]) -> FloatArray:
        """Of logits [rows, V] of a prompt and an answer those that chose the answer's tokens."""
        return rows[-len(answer) - 1 : -1, : self._answerable]


def _answered(case: Case, replied: Replied) -> Case:
    """A case that nobody gave an answer, with a side's own one."""
    return case if len(case.answer) else dataclasses.replace(case, answer=np.array(replied.own, np.int64))


def _rows(features: Features, digests: Sequence[str], part: str) -> FloatArray:
    """Rows [R, H] of some pictures' features, one after another."""
    rows: FloatArray = torch.cat([getattr(features[digest], part).flatten(0, -2) for digest in digests]).numpy()
    return rows


def logits_limits(precision: Precision, side: str) -> Limits:
    """Limits for logits: the loosest of the parts involved. "standard" and plans may have an int8 cache."""
    parts = [LIMITS[precision.vision], LIMITS[precision.decoder]]
    if side in (STANDARD, TENSORRT) and precision.kv_cache == INT8_CACHE:
        parts.append(INT8_CACHE_LIMITS)
    return max(parts, key=lambda limits: limits.max_relative)


def _answerable(bundle: Bundle, cases: Sequence[Case]) -> int:
    """Ids below may stand in an answer: those of pictures may not."""
    layout = next(span.layout for case in cases for span in case.prompt.spans)
    placed = open_family(bundle.manifest).picture(Shown(0, 1, 0, layout))
    return min(piece.id if isinstance(piece, Rows) else piece for piece in placed if isinstance(piece, (int, Rows)))
