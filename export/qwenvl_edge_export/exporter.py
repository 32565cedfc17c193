"""Checkpoint to bundle: streamed, so that memory does not follow the model's size, and whole or not there at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from qwenvl_edge.bundle import (
    FORMAT,
    Bundle,
    EmbeddingInfo,
    FileInfo,
    GenerationDefaults,
    Graphs,
    Manifest,
    Precision,
    Provenance,
    sha256,
)
from qwenvl_edge.errors import BundleError
from qwenvl_edge_export.checkpoint import TOKENIZER_NAME, Checkpoint
from qwenvl_edge_export.graphs.attention import DIALECTS, ONNXRUNTIME, STANDARD
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.vision import build_vision
from qwenvl_edge_export.graphs.weights import HashingWriter, WeightFile, float_pieces
from qwenvl_edge_export.metadata import exporter_name, generation_defaults, model_info, tool_versions
from qwenvl_edge_export.staging import staged_folder
from qwenvl_edge_export.verify import compare

Progress = Callable[[int, int, str], None]

FAMILY = "qwen_vl"
EMBEDDING_NAME = "embedding.bin"
VISION_NAME = "vision.onnx"
DECODER_NAMES = {STANDARD: "decoder.onnx", ONNXRUNTIME: "decoder.ort.onnx"}


def export(
    checkpoint_path: str | Path, bundle_path: str | Path, *, force: bool = False, progress: Progress | None = None
) -> Bundle:
    """Export the checkpoint in folder `checkpoint_path` to a new bundle at `bundle_path`.

    Args:
        checkpoint_path: a Qwen-VL checkpoint in the published layout.
        bundle_path: the folder to write; it appears when it is whole.
        force: replace what is at `bundle_path`; the old bundle goes when the new one is whole.
        progress: called with (bytes done, bytes in total, what is being done).

    Returns:
        The bundle, opened.

    Raises:
        CheckpointError: the checkpoint is not whole, or does not fit its configuration.
        BundleError: `bundle_path` exists and `force` is not set, or cannot be written (disk full, no permission).
    """
    target = Path(bundle_path)
    if target.exists() and not force:
        raise BundleError(f'"{target}" exists already; choose another name, or replace it with --force.')
    checkpoint = Checkpoint.open(checkpoint_path)
    generation = generation_defaults(checkpoint.generation)
    with staged_folder(target) as folder:
        _Export(checkpoint, folder, progress).run(generation).write(folder)
        _record_parity(folder, checkpoint)
    return Bundle.open(target)


def _record_parity(folder: Path, checkpoint: Checkpoint) -> None:
    """Compare the written bundle with its checkpoint and keep the figures in its manifest."""
    bundle = Bundle.open(folder)
    report = compare(bundle, checkpoint)
    if not report.passed:
        raise BundleError(
            f"the exported graphs do not compute what the checkpoint computes, so nothing was kept: {report.failures}."
        )
    dataclasses.replace(bundle.manifest, parity=report.to_dict()).write(folder)


class _Export:
    """One export into `folder`."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, progress: Progress | None):
        self.checkpoint = checkpoint
        self.folder = folder
        self.files: dict[str, FileInfo] = {}
        self._progress = progress
        self._done = self._total = 0

    def run(self, generation: GenerationDefaults) -> Manifest:
        checkpoint, config = self.checkpoint, self.checkpoint.config
        vision_weights = WeightFile("vision.data", checkpoint)
        decoder_weights = WeightFile("decoder.data", checkpoint)
        self._save(build_vision(checkpoint, vision_weights), VISION_NAME)
        for dialect in DIALECTS:
            self._save(build_decoder(config, decoder_weights, dialect), DECODER_NAMES[dialect])
        table = (config.vocab_size, config.hidden_size)
        sources = sum(path.stat().st_size for path in checkpoint.source_files)
        self._total = vision_weights.size_bytes + decoder_weights.size_bytes + 4 * table[0] * table[1] + sources

        for weights in (vision_weights, decoder_weights):
            self.files[weights.location] = weights.write(self.folder, self._counter(f"writing {weights.location}"))
        self._write_embedding()
        shutil.copyfile(checkpoint.path / TOKENIZER_NAME, self.folder / TOKENIZER_NAME)
        self._describe(TOKENIZER_NAME)
        digest = checkpoint.digest(self._counter("hashing the checkpoint"))
        return Manifest(
            format=FORMAT,
            family=FAMILY,
            model=model_info(config),
            precision=Precision(vision="fp32", decoder="fp32"),
            graphs=Graphs(vision=VISION_NAME, decoder=DECODER_NAMES),
            embedding=EmbeddingInfo(file=EMBEDDING_NAME, dtype="float32", shape=table),
            tokenizer=TOKENIZER_NAME,
            generation=generation,
            files=self.files,
            provenance=Provenance(digest, exporter_name(), tool_versions()),
            parity={},
        )

    def _save(self, model: ir.Model, name: str) -> None:
        ir.save(model, self.folder / name)
        self._describe(name)

    def _write_embedding(self) -> None:
        name = "transformer.wte.weight"
        with HashingWriter(self.folder / EMBEDDING_NAME, self._counter(f"writing {EMBEDDING_NAME}")) as out:
            for piece in float_pieces(name, self.checkpoint.tensor(name)):
                out.write(piece)
        self.files[EMBEDDING_NAME] = out.info()

    def _describe(self, name: str) -> None:
        path = self.folder / name
        self.files[name] = FileInfo(path.stat().st_size, sha256(path))

    def _counter(self, what: str) -> Callable[[int], None]:
        def count(size: int) -> None:
            self._done += size
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total, what)

        return count
