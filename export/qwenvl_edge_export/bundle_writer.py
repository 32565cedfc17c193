"""The files of a bundle: graphs, weights, embedding, tokenizer and manifest, written as streams into one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from qwenvl_edge.bundle.contract import (
    DECODER_GRAPHS,
    EMBEDDING_FILE,
    NATIVE,
    ONNXRUNTIME,
    STANDARD,
    VISION_GRAPH,
    VISION_NATIVE_GRAPH,
    VISION_ORT_GRAPH,
)
from qwenvl_edge.bundle.embedding import embedding_bytes
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.bundle.manifest import (
    FORMAT,
    INT8_CACHE,
    EmbeddingInfo,
    Graphs,
    Manifest,
    Provenance,
)
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.sizes import in_words
from qwenvl_edge_export.checkpoint.importing import plan_import
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.examples import copy_examples, read_examples
from qwenvl_edge_export.files.thread_map import one_thread_an_operator
from qwenvl_edge_export.graphs.data_file import DataFile, HashingWriter
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.stored import GivenIntegers, float_pieces, no_integers
from qwenvl_edge_export.graphs.weight_layout import WeightLayout, decoder_layout, vision_layout
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.provenance import exporter_name, tool_versions
from qwenvl_edge_export.quantization.calibration import Calibration
from qwenvl_edge_export.quantization.results import Kept
from qwenvl_edge_export.weight_formats import no_scales

Progress = Callable[[int, int, str], None]


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    precision: ExportPrecision,
    calibrated: Calibration | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the bundle of `checkpoint` into the empty folder `folder`, uncompared; `export.export` does the rest.

    Weights are rounded and packed on the device that the checkpoint's tensors lie on. Returns the bytes that `progress`
    counts.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
        BundleError: the disk is too small.
    """
    work = _Writer(checkpoint, folder, precision, calibrated, progress)
    work.run().write(folder)
    return work.total


class _Writer:
    """One bundle, written into `folder`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        precision: ExportPrecision,
        calibrated: Calibration | None,
        progress: Progress | None,
    ):
        self.checkpoint = checkpoint
        self.folder = folder
        self.precision = precision
        self.calibrated = calibrated
        self._import = plan_import(checkpoint, precision)
        self.files: dict[str, FileInfo] = {}
        self._progress = progress
        self._done = self.total = 0

    def run(self) -> Manifest:
        checkpoint, family, precision = self.checkpoint, self.checkpoint.family, self.precision
        generation = family.generation_defaults(checkpoint.generation)
        examples = read_examples(checkpoint.path)
        scales = no_scales if self._kept is None else self._kept.input_scales
        vision = vision_layout(family.vision_weights, precision.vision, scales)
        decoder = decoder_layout(family.decoder, precision.decoder, scales)
        graphs = self._save_graphs(vision, decoder)
        table = EmbeddingInfo(
            EMBEDDING_FILE, precision.embedding, (family.decoder.vocab_size, family.decoder.hidden_size)
        )
        self._write_weights(vision, decoder, table)
        shutil.copyfile(checkpoint.tokenizer, self.folder / checkpoint.tokenizer.name)
        self._describe(checkpoint.tokenizer.name)
        if examples is not None:
            for name in copy_examples(examples, checkpoint.path, self.folder):
                self._describe(name)
        digest = checkpoint.digest(self._counter("hashing the checkpoint"))
        return Manifest(
            format=FORMAT,
            family=family.family_info(),
            model=family.model_info(),
            precision=precision.describe(self._method),
            workspace=family.workspace(vision_ort=bool(graphs.vision_ort)),
            graphs=graphs,
            embedding=table,
            tokenizer=checkpoint.tokenizer.name,
            generation=generation,
            files=self.files,
            provenance=Provenance(digest, exporter_name(), tool_versions()),
            parity={},
            sensitivity={} if self._kept is None else self._kept.losses(),
        )

    def _save_graphs(self, vision: WeightLayout, decoder: WeightLayout) -> Graphs:
        """Build and save every graph over the two layouts."""
        family, precision = self.checkpoint.family, self.precision
        # On the CPU MultiHeadAttention takes float32 only.
        own = VISION_ORT_GRAPH if precision.vision.compute == "fp32" else ""
        # Both or neither side runs natively. Towers in floats keep ONNX Runtime's float32.
        native = VISION_NATIVE_GRAPH if precision.has_native_vision else ""
        for name, dialect in ((VISION_GRAPH, STANDARD), (own, ONNXRUNTIME), (native, NATIVE)):
            if name:
                self._save(family.build_vision(vision, dialect), name)
        for dialect in precision.decoder.dialects:
            int8_cache = dialect == STANDARD and precision.decoder.cache == INT8_CACHE
            model = build_decoder(family.decoder, decoder, dialect, int8_cache=int8_cache)
            self._save(model, DECODER_GRAPHS[dialect])
        decoders = {dialect: DECODER_GRAPHS[dialect] for dialect in precision.decoder.dialects}
        return Graphs(VISION_GRAPH, decoders, own, native)

    def _write_weights(self, vision: WeightLayout, decoder: WeightLayout, table: EmbeddingInfo) -> None:
        """Write both data files and the embedding, whose size is known beforehand."""
        tensors, kept = self.checkpoint.tensor, self._kept
        needed = vision.size_bytes + decoder.size_bytes + embedding_bytes(table.dtype, table.shape)
        self._check_space(needed - (0 if kept is None else kept.bytes_in_place))
        self.total = needed + sum(path.stat().st_size for path in self.checkpoint.source_files)
        with one_thread_an_operator():
            count = self._counter(f"writing {vision.location}")
            self.files[vision.location] = DataFile(self.folder, vision).write(tensors, count)
            count = self._counter(f"writing {decoder.location}")
            if kept is None:
                info = DataFile(self.folder, decoder).write(tensors, count, self._imported)
            else:
                info = kept.write(decoder, tensors, self.folder, count, self._imported)
            self.files[decoder.location] = info
            self._write_embedding()

    @property
    def _imported(self) -> GivenIntegers:
        """The checkpoint's own integers, where the decoder keeps them."""
        return self._import.integers if self.calibrated is None else no_integers

    @property
    def _method(self) -> str:
        """The origin of the decoder's integers, for the manifest."""
        if self.calibrated is not None:
            return self.calibrated.method
        return self._import.method

    @property
    def _kept(self) -> Kept | None:
        return None if self.calibrated is None else self.calibrated.kept

    def _check_space(self, needed: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise BundleError(
                f'the bundle takes {in_words(needed)}, but the disk of "{self.folder.parent}" has {in_words(free)} '
                "free; make room or write it elsewhere."
            )

    def _save(self, model: ir.Model, name: str) -> None:
        ir.save(model, self.folder / name)
        self._describe(name)

    def _write_embedding(self) -> None:
        weight, dtype = self.checkpoint.family.decoder.embedding, getattr(torch, self.precision.embedding)
        with HashingWriter(self.folder / EMBEDDING_FILE, self._counter(f"writing {EMBEDDING_FILE}")) as out:
            for piece in float_pieces(weight.name, weight.read(self.checkpoint.tensor), dtype):
                out.write(piece)
        self.files[EMBEDDING_FILE] = out.info()

    def _describe(self, name: str) -> None:
        path = self.folder / name
        self.files[name] = FileInfo(path.stat().st_size, sha256(path))

    def _counter(self, what: str) -> Callable[[int], None]:
        def count(size: int) -> None:
            self._done += size
            if self._progress is not None:
                self._progress(min(self._done, self.total), self.total, what)

        return count
