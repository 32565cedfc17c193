"""The bundle's side of a comparison: its decoder in one dialect on ONNX Runtime, or its TensorRT plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwenvl_edge.backends.base import Placed, check_finite
from qwenvl_edge.backends.onnxruntime.cpu import last_indices
from qwenvl_edge.backends.onnxruntime.session import vision_graph
from qwenvl_edge.backends.select import TENSORRT
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    DEEPSTACK_FEATURES,
    IMAGE_FEATURES,
    INPUTS_EMBEDS,
    LAST_INDICES,
    LOGITS,
    LOGITS_INDICES,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    TOTAL_LENGTH,
    WRITE_INDICES,
)
from qwenvl_edge_export.families.base import ImageFeatures, PictureInputs
from qwenvl_edge_export.verification.calls import (
    PROMPT_ROWS,
    SINGLE_STEPS,
    Call,
    answer_calls,
    by_answer,
    calls_of,
    prompt_call,
    token_call,
)
from qwenvl_edge_export.verification.graph_runner import Arrays, GraphRunner, array_of, as_values
from qwenvl_edge_export.verification.limits import FloatArray
from qwenvl_edge_export.verification.streamed_reference import Asked

GREEDY_TOKENS = 24
"""Number of tokens that the bundle answers by itself: a box has 21 at most, closing tag included."""

Done = Callable[[], object]


@dataclass(frozen=True)
class Replied:
    """A side's own greedy answer, and logits [rows, V] of the answer that it was given and of the prompt's end."""

    own: list[int]
    logits: FloatArray


class Side(ABC):
    """One of a bundle's decoders with its picture side.

    name: for the report. vision: the name of its vision graph: sides with one name have the same features.
    vision_steps: how often `encode` calls its `on_step`.
    answers: whether it can answer token by token within the memory that a comparison may take.
    steps: how often `logits` calls its `on_step`.
    """

    name: str
    vision: str
    vision_steps: int = 1
    answers: bool
    steps: int
    _bundle: Bundle

    @abstractmethod
    def encode(self, pictures: Sequence[PictureInputs], on_step: Done) -> list[ImageFeatures]:
        """The features of each picture.

        Raises:
            BackendError: the library failed, or features hold NaN or infinity.
        """

    @abstractmethod
    def logits(self, texts: Sequence[Asked], on_step: Done) -> list[list[FloatArray]]:
        """Return StreamedReference.logits for PROMPT_ROWS: the prompt is prefilled, and answers go on from it.

        The first answer's tokens come as single steps and a chunk, those of others in one chunk.

        Raises:
            BackendError: the library failed, or logits hold NaN or infinity.
        """

    def greedy(self, asked: Asked, begun: Sequence[int], answerable: int) -> list[int]:
        """The decoder's own greedy answer of ids below `answerable`, which begins with `begun`: GREEDY_TOKENS ids.

        Raises:
            BackendError: as `logits`.
        """
        length = len(asked.prompt.ids)
        cache = self._new_cache(length + GREEDY_TOKENS)
        rows = self._run(cache, asked, prompt_call(self._bundle, asked, length - 1))
        return self._continued(cache, asked, rows, begun, answerable)

    def reply(self, asked: Asked, answerable: int) -> Replied:
        """The decoder's own greedy answer, see `greedy`, and its logits of the first answer it is given, see `logits`.

        The prompt is computed once. Without an answer in `asked` the logits are those of its own.

        Raises:
            BackendError: as `logits`.
        """
        length = len(asked.prompt.ids)
        given = asked.answers[0] if asked.answers else ()
        cache = self._new_cache(length + max(GREEDY_TOKENS, len(given)))
        rows = [self._run(cache, asked, prompt_call(self._bundle, asked, max(length - PROMPT_ROWS, 0)))]
        own = self._continued(cache, asked, rows[0], (), answerable)
        answer = given if asked.answers else own
        rows += [self._run(cache, asked, call) for call in answer_calls(self._bundle, asked, answer, SINGLE_STEPS)]
        return Replied(own, np.concatenate(rows))

    def _continued(
        self, cache: Any, asked: Asked, rows: FloatArray, begun: Sequence[int], answerable: int
    ) -> list[int]:
        """A greedy answer after a prompt with these last logits, of which `cache` is full."""
        length, tokens = len(asked.prompt.ids), list(begun)
        new = tokens
        while len(tokens) < GREEDY_TOKENS:
            if new:
                rows = self._run(cache, asked, token_call(self._bundle, new, length + len(tokens) - len(new)))
            new = [int(rows[-1, :answerable].argmax())]
            tokens += new
        return tokens

    @abstractmethod
    def _new_cache(self, capacity: int) -> Any:
        """A cache for one text."""

    @abstractmethod
    def _run(self, cache: Any, asked: Asked, call: Call) -> FloatArray:
        """Logits [K, V] of a call."""

    def close(self) -> None:  # noqa: B027 - a plan stays open
        """Give back the memory of the decoder's session."""


class GraphSide(Side):
    """A dialect of the decoder on ONNX Runtime; `budget_bytes` as in GraphRunner."""

    def __init__(self, bundle: Bundle, dialect: str, *, budget_bytes: int):
        self.name = dialect
        self.vision = vision_graph(bundle, dialect)
        self._bundle = bundle
        self._pictures = GraphRunner(bundle, self.vision, "vision", budget_bytes)
        self.vision_steps = self._pictures.pieces
        self._decoder = GraphRunner(bundle, bundle.manifest.graphs.decoder[dialect], "decoder", budget_bytes)
        self.answers = self._decoder.is_whole
        self.steps = self._decoder.pieces

    def close(self) -> None:
        """See Side."""
        self._decoder.close()

    def encode(self, pictures: Sequence[PictureInputs], on_step: Done) -> list[ImageFeatures]:
        """See Side."""
        found = self._pictures.run([[picture.arrays] for picture in pictures], [0] * len(pictures), on_step)
        self._pictures.close()
        return [_features(outputs) for (outputs,) in found]

    def logits(self, texts: Sequence[Asked], on_step: Done) -> list[list[FloatArray]]:
        """See Side."""
        calls = [[self._inputs(asked, call) for call in calls_of(self._bundle, asked)] for asked in texts]
        capacities = [len(asked.prompt.ids) + max(map(len, asked.answers), default=0) for asked in texts]
        found = self._decoder.run(calls, capacities, on_step)
        return [
            by_answer((_finite(outputs) for outputs in done), asked) for done, asked in zip(found, texts, strict=True)
        ]

    def _new_cache(self, capacity: int) -> Any:
        return self._decoder.whole().new_caches(capacity)

    def _run(self, cache: Any, asked: Asked, call: Call) -> FloatArray:
        outputs = self._decoder.whole()(as_values(self._inputs(asked, call)), cache)
        return _finite({LOGITS: array_of(outputs[LOGITS])})

    def _inputs(self, asked: Asked, call: Call) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of a graph of any dialect and family, by name."""
        tokens = call.end - call.start
        rotary = asked.prompt.positions.rows(call.start, tokens)
        first = np.array([call.start])
        inputs: dict[str, npt.NDArray[Any]] = {
            INPUTS_EMBEDS: call.embeds,
            ROPE_COS: rotary.cos,
            ROPE_SIN: rotary.sin,
            LOGITS_INDICES: call.wanted,
            WRITE_INDICES: first,
            LAST_INDICES: last_indices(first, tokens),
            TOTAL_LENGTH: np.array([call.end], np.int32),
        }
        if rotary.query_scale is not None:
            inputs[QUERY_SCALE] = rotary.query_scale
        if DEEPSTACK in self._decoder.inputs:
            layers = self._decoder.inputs[DEEPSTACK].type.tensor_type.shape.dim[0].dim_value
            none = np.zeros((layers, 1, 1, call.embeds.shape[-1]), np.float32)
            inputs[DEEPSTACK] = none if call.deepstack is None else call.deepstack
        return inputs


class PlanSide(Side):
    """This machine's TensorRT plan."""

    name = TENSORRT
    answers = True
    steps = 1

    def __init__(self, bundle: Bundle, backend: TensorRTBackend):
        self.vision = TENSORRT
        self._bundle = bundle
        self._backend = backend

    def encode(self, pictures: Sequence[PictureInputs], on_step: Done) -> list[ImageFeatures]:
        """See Side."""
        found = [_features(self._backend.run_vision(picture.arrays)) for picture in pictures]
        on_step()
        return found

    def logits(self, texts: Sequence[Asked], on_step: Done) -> list[list[FloatArray]]:
        """See Side."""
        found = []
        for asked in texts:
            cache = self._new_cache(len(asked.prompt.ids) + max(map(len, asked.answers), default=0))
            calls = calls_of(self._bundle, asked)
            found.append(by_answer((self._run(cache, asked, call) for call in calls), asked))
        on_step()
        return found

    def _new_cache(self, capacity: int) -> Any:
        return self._backend.new_cache(1, capacity)

    def _run(self, cache: Any, asked: Asked, call: Call) -> FloatArray:
        rotary = asked.prompt.positions.rows(call.start, call.end - call.start)
        placed = []
        if call.deepstack is not None:  # a plan takes such rows of pictures only; those of words are zero
            count = call.embeds.shape[1]
            placed = [Placed(self._backend.hold(call.embeds[0], call.deepstack[:, 0]), 0, 0, count)]
        start = np.array([call.start])
        logits: FloatArray = self._backend.decode(cache, call.embeds, rotary, start, call.wanted, placed)[0]
        return logits


def _features(outputs: Arrays) -> ImageFeatures:
    """One picture's outputs, [1, Q, H] or a clip's [N, Q, H], as rows."""
    for values in outputs.values():
        check_finite(values, "image features")
    rows = torch.from_numpy(outputs[IMAGE_FEATURES]).flatten(0, 1)
    if DEEPSTACK_FEATURES not in outputs:
        return ImageFeatures(rows)
    return ImageFeatures(rows, torch.from_numpy(outputs[DEEPSTACK_FEATURES]).flatten(1, 2))


def _finite(outputs: Arrays) -> FloatArray:
    """Logits [K, V] of a call."""
    logits: FloatArray = outputs[LOGITS][0]
    check_finite(logits, "logits")
    return logits
