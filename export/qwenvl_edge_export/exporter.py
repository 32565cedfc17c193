"""Checkpoint to bundle: streamed, so that memory does not follow the model's size, and whole or not there at all."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qwenvl_edge.bundle import (
    FORMAT,
    Bundle,
    EmbeddingInfo,
    FileInfo,
    GenerationDefaults,
    Graphs,
    Manifest,
    ModelInfo,
    Precision,
    Provenance,
    sha256,
)
from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge.records import read_record
from qwenvl_edge_export.checkpoint import TOKENIZER_NAME, Checkpoint
from qwenvl_edge_export.graphs.attention import DIALECTS, ONNXRUNTIME, STANDARD
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.vision import build_vision
from qwenvl_edge_export.graphs.weights import HashingWriter, WeightFile, float_pieces
from qwenvl_edge_export.staging import staged_folder

Progress = Callable[[int, int, str], None]

FAMILY = "qwen_vl"
EMBEDDING_NAME = "embedding.bin"
VISION_NAME = "vision.onnx"
DECODER_NAMES = {STANDARD: "decoder.onnx", ONNXRUNTIME: "decoder.ort.onnx"}
_PACKAGES = ("torch", "onnx-ir", "numpy", "safetensors", "onnxruntime")
_GENERATION_DEFAULTS = {
    "do_sample": True,
    "top_p": 1.0,
    "top_k": 0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 512,
    "max_window_size": 6144,
}


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
        manifest = _Export(checkpoint, folder, progress).run(generation)
        manifest.write(folder)
    return Bundle.open(target)


def generation_defaults(raw: dict[str, Any]) -> GenerationDefaults:
    """The generation settings that a bundle keeps, from a generation_config.json's content.

    Raises:
        CheckpointError: chat_format is missing or unknown, or a value has the wrong type.
    """
    if raw.get("chat_format") not in ("chatml", "raw"):
        raise CheckpointError(
            f'generation_config.json: chat_format is {raw.get("chat_format")!r}; it must be "chatml" or "raw".'
        )
    fields = [field.name for field in dataclasses.fields(GenerationDefaults)]
    known = {name: raw[name] for name in fields if raw.get(name) is not None}
    return read_record(GenerationDefaults, _GENERATION_DEFAULTS | known, "generation_config.json", CheckpointError)


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
            model=self._model_info(),
            precision=Precision(vision="fp32", decoder="fp32"),
            graphs=Graphs(vision=VISION_NAME, decoder=DECODER_NAMES),
            embedding=EmbeddingInfo(file=EMBEDDING_NAME, dtype="float32", shape=table),
            tokenizer=TOKENIZER_NAME,
            generation=generation,
            files=self.files,
            provenance=Provenance(digest, f"qwenvl-edge {_version('qwenvl-edge')}", _versions()),
            parity={},
        )

    def _model_info(self) -> ModelInfo:
        config = self.checkpoint.config
        return ModelInfo(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            seq_length=config.seq_length,
            max_position_embeddings=config.max_position_embeddings,
            rope_base=config.rope_base,
            use_dynamic_ntk=config.use_dynamic_ntk,
            use_logn_attn=config.use_logn_attn,
            image_size=config.vision.image_size,
            image_tokens=config.vision.n_queries,
            image_start_id=config.vision.image_start_id,
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


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
