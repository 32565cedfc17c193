"""PyTorch against the bundle, stage by stage: image features, then teacher-forced logits of both decoder dialects.

The bundle's side goes through the runtime's own prompt, preprocessing, cache and backend. The answer's tokens reach the
decoder as single steps and as a chunk, so the cache, positions and offsets are part of what is compared. The bundle
also answers greedily: PyTorch, given that answer, shows the first token that it would have chosen otherwise:
there the two greedy answers part.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from qwenvl_edge.backends.base import KVCache
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.session import can_run, missing, vision_graph
from qwenvl_edge.backends.select import ONNXRUNTIME, TENSORRT, BackendOptions, select_backend
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import PIXEL_VALUES, STANDARD
from qwenvl_edge.bundle.manifest import INT8_CACHE, Precision
from qwenvl_edge.errors import BackendError, CheckpointError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.pieces import Rows, Shown
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.verification.cases import Case, builtin_box_case, builtin_cases, case_builder
from qwenvl_edge_export.verification.limits import (
    INT8_CACHE_LIMITS,
    LIMITS,
    FloatArray,
    Limits,
    Report,
    Row,
    agreement,
    features_row,
    logits_row,
    overlap,
)
from qwenvl_edge_export.verification.streamed_reference import Asked, StreamedReference
from qwenvl_edge_export.verification.widened import HOW_IT_RAN, NO_BFLOAT16, WIDEN_UP_TO_BYTES, weight_bytes, widened

PROMPT_ROWS = 16
"""Number of a prompt's last positions that are compared; of the answer all are."""
SINGLE_STEPS = 2
"""Number of the answer's tokens that are decoded one at a time, before the rest in one chunk."""
GREEDY_TOKENS = 24
"""Number of tokens that the bundle answers by itself: a box has 21 at most, closing tag included."""


def verify(bundle: Bundle | str | Path, checkpoint: Checkpoint | str | Path, *, backend: str = ONNXRUNTIME) -> Report:
    """Check the SHA-256 of every file of `bundle` and compare it with the `checkpoint` it was made from.

    Args:
        bundle: the bundle.
        checkpoint: its checkpoint.
        backend: "onnxruntime" compares the graphs on the CPU, in each dialect; "tensorrt" the plan for this machine.

    Raises:
        BundleError: the bundle is missing or damaged.
        CheckpointError: the checkpoint is not whole, or has other dimensions than the bundle.
        BackendError: the bundle's graphs, or its plan, cannot be run here, or yield NaN or infinity.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    bundle.check_files()
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    return compare(bundle, checkpoint, backend=backend)


def compare(bundle: Bundle, checkpoint: Checkpoint, *, backend: str = ONNXRUNTIME) -> Report:
    """Compare like `verify`, for a bundle whose files are known to be whole."""
    _check_same_model(bundle, checkpoint)
    if backend == TENSORRT or "bf16" not in bundle.manifest.precision.compute.values():
        return _compare(bundle, checkpoint, backend)
    if weight_bytes(bundle) > WIDEN_UP_TO_BYTES:
        return Report((), (f"anything: {NO_BFLOAT16}, and the bundle is too large to be widened",))
    with tempfile.TemporaryDirectory(prefix="qwenvl-verify-") as folder:
        report = _compare(widened(bundle, Path(folder)), checkpoint, backend)
    return dataclasses.replace(report, skipped=(*report.skipped, f"bfloat16 arithmetic: {NO_BFLOAT16}, {HOW_IT_RAN}"))


def _open(bundle: Bundle, backend: str) -> Mapping[str, OnnxRuntimeBackend | TensorRTBackend]:
    """Backends that can run here, by name: the plan, or ONNX Runtime in each dialect."""
    if backend == TENSORRT:
        opened = select_backend(BackendOptions(bundle, None, None, 1), TENSORRT, "auto").backend
        return {TENSORRT: cast("TensorRTBackend", opened)}
    if backend != ONNXRUNTIME:
        raise BackendError(f'a bundle is verified with "{ONNXRUNTIME}" or "{TENSORRT}", not with "{backend}".')
    return {name: OnnxRuntimeBackend(bundle, dialect=name) for name in bundle.manifest.graphs.decoder if can_run(name)}


def _compare(bundle: Bundle, checkpoint: Checkpoint, backend: str) -> Report:
    precision = bundle.manifest.precision
    network = StreamedReference(checkpoint)
    sides = {name: _Side(bundle, opened) for name, opened in _open(bundle, backend).items()}
    builder = case_builder(bundle)
    rows: list[Row] = []
    for case in (*builtin_cases(builder), builtin_box_case(builder)):
        first = next(iter(sides.values()))
        features = _features(sides, case)
        own = {name: side.answer(case, features[name]) for name, side in sides.items()}
        reference = _Reference(network, case, first.answerable)
        asked = case
        if not len(case.answer):
            answer = reference.answer(first, features[next(iter(sides))])
            asked = dataclasses.replace(case, answer=np.array(answer, np.int64))
        wanted = reference.logits([asked.answer.tolist(), *own.values()])
        if case.pictures:
            found = np.concatenate(list(features.values()))  # of every dialect, one after another
            expected = np.tile(torch.stack([each.rows for each in reference.features]).numpy(), (len(features), 1, 1))
            rows.append(features_row("vision", case.name, found, expected, LIMITS[precision.vision]))
        for (name, side), chosen in zip(sides.items(), wanted[1:], strict=True):
            greedy = agreement(own[name], chosen[-len(own[name]) - 1 : -1, : first.answerable])
            logits = side.decode(asked, features[name])
            row = logits_row(name, case.name, logits, wanted[0], _limits(precision, name), greedy)
            if asked is not case:
                boxes = (builder.box(answer) for answer in (own[name], asked.answer.tolist()))
                row = dataclasses.replace(row, iou=overlap(*boxes))
            rows.append(row)
    dialects = bundle.manifest.graphs.decoder if backend == ONNXRUNTIME else ()
    skipped = (f'"{name}", which needs {missing(name)}' for name in dialects if name not in sides)
    return Report(tuple(rows), tuple(skipped))


def _features(sides: Mapping[str, _Side], case: Case) -> dict[str, FloatArray]:
    """Image features [N, Q, H] by dialect; those with the same graph share them."""
    by_graph: dict[str, FloatArray] = {}
    found = {}
    for name, side in sides.items():
        graph = vision_graph(side.bundle, name)
        if graph not in by_graph:
            by_graph[graph] = side.encode(case)
        found[name] = by_graph[graph]
    return found


def _limits(precision: Precision, side: str) -> Limits:
    """Limits for logits: the loosest of the parts involved. "standard" and plans may have an int8 cache."""
    parts = [LIMITS[precision.vision], LIMITS[precision.decoder]]
    if side in (STANDARD, TENSORRT) and precision.kv_cache == INT8_CACHE:
        parts.append(INT8_CACHE_LIMITS)
    return max(parts, key=lambda limits: limits.max_relative)


def _check_same_model(bundle: Bundle, checkpoint: Checkpoint) -> None:
    manifest, family = bundle.manifest, checkpoint.family
    want = dataclasses.asdict(manifest.model) | manifest.family.config
    have = dataclasses.asdict(family.model_info()) | family.family_info().config
    if different := [f"{name} {have[name]} instead of {want[name]}" for name in want if have[name] != want[name]]:
        raise CheckpointError(
            f'the bundle "{bundle.path}" was not made from the checkpoint "{checkpoint.path}", which has '
            f"{', '.join(different)}."
        )


class _Reference:
    """PyTorch's side of one case, in passes without a cache."""

    def __init__(self, network: StreamedReference, case: Case, answerable: int):
        self._network = network
        self._case = case
        self._answerable = answerable
        self.features = [network.encode(picture) for picture in case.pictures]

    def logits(self, answers: Sequence[list[int]]) -> list[FloatArray]:
        """For each answer the logits [rows, V] of the prompt's last PROMPT_ROWS positions and the answer's."""
        return self._network.logits([Asked(self._case.prompt, self.features, answers)], PROMPT_ROWS)[0]

    def answer(self, side: _Side, features: FloatArray) -> list[int]:
        """PyTorch's own greedy answer, GREEDY_TOKENS ids.

        The bundle drafts it and PyTorch corrects it, so that it takes a pass per difference, not per token (Leviathan
        et al., arXiv 2211.17192).
        """
        tokens: list[int] = []
        while len(tokens) < GREEDY_TOKENS:
            draft = side.answer(self._case, features, tokens)
            (rows,) = self.logits([draft])
            chosen = rows[-len(draft) - 1 : -1, : self._answerable].argmax(-1).tolist()
            same, _ = agreement(draft, rows[-len(draft) - 1 : -1, : self._answerable])
            tokens = chosen[: same + 1]
        return tokens


class _Side:
    """The bundle's side of a comparison, in one dialect."""

    def __init__(self, bundle: Bundle, backend: OnnxRuntimeBackend | TensorRTBackend):
        model = bundle.manifest.model
        family = open_family(bundle.manifest)
        side = family.preprocessing.image_size
        layout = family.layout((side, side))
        placed = family.picture(Shown(0, 1, 0, layout))
        ids = [piece.id if isinstance(piece, Rows) else piece for piece in placed if isinstance(piece, (int, Rows))]
        self.bundle = bundle
        self.backend = backend
        self.answerable = min(ids)  # ids below may stand in an answer
        self.no_features = np.empty((0, layout.tokens, model.hidden_size), np.float32)

    def encode(self, case: Case) -> FloatArray:
        """Features [N, Q, H] of a case's pictures."""
        if not case.pictures:
            return self.no_features
        pixels = np.concatenate([picture.arrays[PIXEL_VALUES] for picture in case.pictures])
        return self.backend.encode_pixels(pixels)

    def decode(self, case: Case, features: FloatArray) -> FloatArray:
        """Logits [rows, V]: prefill of the prompt, then the given answer through the cache."""
        embeds = self._embed(case, np.concatenate([case.prompt.ids, case.answer]), features)
        length, total = len(case.prompt.ids), embeds.shape[1]
        cache = self.backend.new_cache(1, total)
        bounds = [0, *range(length, min(length + SINGLE_STEPS, total - 1) + 1), total]
        return np.concatenate(
            [
                self._run(case, cache, embeds[:, start:end], start, max(start, length - PROMPT_ROWS))
                for start, end in itertools.pairwise(bounds)
            ]
        )

    def answer(self, case: Case, features: FloatArray, begun: Sequence[int] = ()) -> list[int]:
        """The graph's own greedy answer, which begins with `begun`: always GREEDY_TOKENS ids."""
        length = len(case.prompt.ids) + len(begun)
        cache = self.backend.new_cache(1, len(case.prompt.ids) + GREEDY_TOKENS)
        ids = np.concatenate([case.prompt.ids, np.array(begun, np.int64)])
        logits = self._run(case, cache, self._embed(case, ids, features), 0, length - 1)
        tokens = [*begun, int(logits[-1, : self.answerable].argmax())]
        while len(tokens) < GREEDY_TOKENS:
            start = cache.length
            logits = self._run(case, cache, self.bundle.embedding[[tokens[-1:]]], start, start)
            tokens.append(int(logits[-1, : self.answerable].argmax()))
        return tokens

    def _embed(self, case: Case, ids: npt.NDArray[np.int64], features: FloatArray) -> FloatArray:
        """The embeddings of `ids`, with the features in the pictures' places, [1, T, H]."""
        embeds = self.bundle.embedding[ids][None]
        for span in case.prompt.spans:
            embeds[0, span.start : span.start + span.length] = features[span.picture]
        return embeds

    def _run(self, case: Case, cache: KVCache, embeds: FloatArray, start: int, first: int) -> FloatArray:
        """Decode embeds [1, T, H] at position `start`; logits [rows, V] of the positions from `first`."""
        end = start + embeds.shape[1]
        rotary = case.prompt.positions.rows(start, end - start)
        wanted = np.arange(first, end, dtype=np.int64)[None]
        logits: FloatArray = self.backend.decode(cache, embeds, rotary, np.array([start]), wanted - start)[0]
        return logits
