"""The reference network from a mapped checkpoint: one decoder layer's weights in memory at a time, for all texts.

The picture side reads each module's weights when it runs (families/streaming.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl_edge.families.pieces import Span
from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ImageFeatures, PictureInputs
from qwenvl_edge_export.verification.limits import FloatArray

_HEAD_ROWS = 8192


@dataclass(frozen=True)
class Asked:
    """A prompt, the features of its pictures, and answers, each of which follows the prompt by itself."""

    prompt: Prompt
    features: Sequence[ImageFeatures]
    answers: Sequence[Sequence[int] | npt.NDArray[np.int64]] = ()


class StreamedReference:
    """The reference network of a checkpoint, for inference in float32."""

    def __init__(self, checkpoint: Checkpoint):
        self._family = checkpoint.family
        self._decoder = checkpoint.family.decoder
        self._stored = checkpoint.tensor
        self.vision = self._family.reference_vision(self._floats)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._decoder.layers)

    @torch.no_grad()
    def encode(self, picture: PictureInputs) -> ImageFeatures:
        """The features of one picture."""
        features: ImageFeatures = self.vision(picture)
        return features

    def embed(self, asked: Asked) -> Tensor:
        """Embeddings [T, H] of the prompt and then of each answer, with the features in the pictures' places."""
        ids = np.concatenate([asked.prompt.ids, *(np.array(answer, np.int64) for answer in asked.answers)])
        rows = F.embedding(torch.from_numpy(ids), self._decoder.embedding.read(self._stored)).float()
        for place, picture, part in picture_rows(asked.prompt.spans):
            rows[place] = asked.features[picture].rows[part]
        return rows

    @torch.no_grad()
    def logits(
        self, texts: Sequence[Asked], last: int, on_layer: Callable[[int], object] = lambda done: None
    ) -> list[list[FloatArray]]:
        """For each text and each of its answers, logits [rows, V] of the prompt's `last` last positions and the answer.

        The layers are read once, and each computes all texts before the next is read; `on_layer` is told how many are
        done.
        """
        rows = [self.embed(asked) for asked in texts]
        for i in range(self.layers):
            layer = self._family.reference_layer(i, self._floats)
            for asked, values in zip(texts, rows, strict=True):
                values.copy_(layer(values, asked.prompt, [len(answer) for answer in asked.answers]))
                add_deepstack(values, asked.prompt, asked.features, i)
            del layer
            on_layer(i + 1)
        wanted = [max(len(asked.prompt.ids) - last, 0) for asked in texts]
        logits = self._head(torch.cat([values[first:] for first, values in zip(wanted, rows, strict=True)]))
        pieces = torch.split(logits, [len(values) - first for first, values in zip(wanted, rows, strict=True)])
        return [list(_answers(piece.numpy(), asked, last)) for piece, asked in zip(pieces, texts, strict=True)]

    def _head(self, rows: Tensor) -> Tensor:
        """Rows [M, H] -> logits [M, V]; the weight is converted some of its rows at a time."""
        decoder = self._decoder
        norm, head = decoder.final_norm.read(self._stored).float(), decoder.head.weight.read(self._stored)
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + decoder.norm_eps) * norm
        logits = torch.empty(len(rows), len(head))
        for start in range(0, len(head), _HEAD_ROWS):
            logits[:, start : start + _HEAD_ROWS] = F.linear(rows, head[start : start + _HEAD_ROWS].float())
        return logits

    def _floats(self, name: str) -> Tensor:
        return self._stored(name).float()


def picture_rows(spans: Sequence[Span]) -> Iterator[tuple[slice, int, slice]]:
    """For each span its place in the prompt, its picture's number, and which of the picture's rows it shows."""
    for span in spans:
        place = slice(span.start, span.start + span.length)
        yield place, span.picture, slice(span.first, span.first + span.length)


def add_deepstack(rows: Tensor, prompt: Prompt, features: Sequence[ImageFeatures], layer: int) -> None:
    """Add the deepstack features that come after decoder layer `layer`, if there are some, to rows [T, H] in place."""
    for place, picture, part in picture_rows(prompt.spans):
        deepstack = features[picture].deepstack
        if deepstack is not None and layer < len(deepstack):
            rows[place] += deepstack[layer, part]


def _answers(logits: FloatArray, asked: Asked, last: int) -> Iterator[FloatArray]:
    """For each answer the logits of the prompt's last positions and of its own; of the prompt alone without answers."""
    start = min(last, len(asked.prompt.ids))
    head = logits[:start]
    for answer in asked.answers:
        yield np.concatenate([head, logits[start : start + len(answer)]])
        start += len(answer)
    if not asked.answers:
        yield head
