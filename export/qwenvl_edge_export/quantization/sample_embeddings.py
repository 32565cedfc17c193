"""Embeddings of calibration samples: what goes into the first decoder layer, and the picture side's scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ImageFeatures, PictureInputs
from qwenvl_edge_export.graphs.roles import InputGroup
from qwenvl_edge_export.options import STATIC, GraphPrecision
from qwenvl_edge_export.quantization.input_groups import quantized_groups, watch
from qwenvl_edge_export.quantization.layer_calibration import Scales
from qwenvl_edge_export.quantization.smoothquant import InputSample, smooth
from qwenvl_edge_export.verification.cases import Case
from qwenvl_edge_export.verification.streamed_reference import Asked, StreamedReference
from qwenvl_edge_export.weight_formats import check_finite

_KNOWN = 8  # pictures whose features are kept
_ROWS = 128  # kept of each layer's inputs: the picture side's layers are all watched at once


class SampleEmbeddings:
    """Encodes `cases` with the reference network; `vision` is the picture side's precision.

    Raises:
        QwenVLError: the picture side needs scales, but no sample has a picture.
    """

    def __init__(self, checkpoint: Checkpoint, cases: Sequence[Case], vision: GraphPrecision):
        self._checkpoint = checkpoint
        self._cases = cases
        self._seen: dict[InputGroup, InputSample] = {}
        if vision.weights == STATIC:
            pictures = {picture.digest() for case in cases for picture in case.pictures}
            if not pictures:
                raise QwenVLError(
                    f"none of the calibration samples has a picture, but --vision-precision {STATIC} needs some."
                )
            groups = quantized_groups(checkpoint.family.vision_groups, vision)
            self._seen = {group: InputSample(len(pictures), _ROWS) for group in groups}

    def write(
        self,
        written: Iterator[Tensor],
        keep_deepstack: Callable[[int, Sequence[ImageFeatures]], None],
        on_case: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Fill each case's rows [T, H], taking note of the picture side's inputs where it needs scales.

        Args:
            written: the rows.
            keep_deepstack: given the number of a case and its pictures' features, where they have deepstack ones.
            on_case: told how many cases are done.

        Raises:
            CheckpointError: a tensor holds NaN or infinity.
        """
        reference = StreamedReference(self._checkpoint)
        features: dict[str, ImageFeatures] = {}
        with watch(reference.vision, {group: sample.add for group, sample in self._seen.items()}):
            for i, (case, rows) in enumerate(zip(self._cases, written, strict=True)):
                pictures = [_features(reference, picture, features) for picture in case.pictures]
                embeds = reference.embed(Asked(case.prompt, pictures, [case.answer]))
                if not torch.isfinite(embeds).all():
                    self._blame()
                rows.copy_(embeds)
                if any(features.deepstack is not None for features in pictures):
                    keep_deepstack(i, pictures)
                on_case(i + 1)

    def vision_scales(self) -> Scales:
        """For each linear layer of the picture side the name of its weight, its inputs' scales, and losses."""
        found: Scales = []
        for group, sample in self._seen.items():
            given, losses = smooth([weight.read(self._checkpoint.tensor).float() for weight in group.weights], sample)
            found += [(weight.name, given, losses) for weight in group.weights]
        return found

    def _blame(self) -> None:
        """Name the tensor that makes the embeddings of a sample NaN or infinite."""
        family = self._checkpoint.family
        later = {source for weight in family.decoder.weights() for source in weight.sources}
        for name in family.tensors:
            if name in family.decoder.embedding.sources or name not in later:
                check_finite(name, self._checkpoint.tensor(name))
        raise CheckpointError(
            "the picture side yields NaN or infinity on a calibration sample; its weights are broken."
        )


def _features(reference: StreamedReference, picture: PictureInputs, known: dict[str, ImageFeatures]) -> ImageFeatures:
    """The features of one picture; samples next to each other are often about the same one."""
    digest = picture.digest()
    if digest not in known:
        known[digest] = reference.encode(picture)
        if len(known) > _KNOWN:
            del known[next(iter(known))]
    return known[digest]
