"""bundle.json: the records that say what a bundle's files are, read and checked key by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from qwenvl_edge.bundle.embedding import EMBEDDING_DTYPES, embedding_bytes
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.records import Document, read_object, read_record
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.urls import show, shown

FORMAT = 2
MANIFEST_NAME = "bundle.json"
_COMPUTE = ("fp32", "fp16", "bf16")
_MOST_OF_A_MODEL = 1 << 28  # of any dimension: the largest vocabularies and contexts have a few million
_MOST_OF = {"head_dim": 1 << 13, "num_layers": 1 << 13}  # tables are as wide as a head; caches are made by layer
KV_CACHES = FLOAT_CACHE, INT8_CACHE = ("float", "int8")


@dataclass(frozen=True)
class FamilyInfo:
    """The model family and its own configuration, which the module of that family alone reads and checks."""

    name: str
    config: dict[str, Any]


@dataclass(frozen=True)
class ModelInfo:
    """Dimensions that a model of any family has; num_kv_heads is less than num_heads in grouped-query attention.

    deepstack_layers: how many of the first layers get rows of picture features of their own; most models have none.

    A head with the weights of the embedding table (a tied head) is not marked here. The decoder graph holds them like
    any other head's, so nothing that reads a manifest treats them differently; only the exporter knows whose they are.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    deepstack_layers: int = 0


@dataclass(frozen=True)
class Precision:
    """The types of stored weights ("fp32", "fp16", "bf16", "int8", "int4", "w8a8") and of what computes with them.

    compute: float type of the "vision" and the "decoder" graph. block_size: inputs that share a scale (0 without
    integers). method: where the decoder's integers come from. kept: patterns of layers that stayed in floats.
    kv_cache: "float", which is the decoder's compute type, or "int8" in the "standard" dialect and in plans made of it;
    the "onnxruntime" dialect's is float. A manifest without it means "float".
    """

    vision: str
    decoder: str
    lm_head: str
    compute: dict[str, str]
    block_size: int
    method: str
    kept: str
    kv_cache: str = FLOAT_CACHE


@dataclass(frozen=True)
class Graphs:
    """File names of the graphs; the decoder has one per dialect ("standard", "onnxruntime", "native").

    vision_ort: the picture side with ONNX Runtime's own attention, for its CPU provider; empty without one.
    vision_native: the picture side with the native core's operators; empty without one.
    """

    vision: str
    decoder: dict[str, str]
    vision_ort: str = ""
    vision_native: str = ""


@dataclass(frozen=True)
class EmbeddingInfo:
    """The raw little-endian embedding table [V, H] of "float32", "float16" or "bfloat16"."""

    file: str
    dtype: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class GenerationDefaults:
    """The checkpoint's generation_config.json: "chatml" or "raw", sampling, and limits in tokens."""

    chat_format: str
    do_sample: bool
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float
    max_new_tokens: int
    max_window_size: int


@dataclass(frozen=True)
class Workspace:
    """Bytes of intermediate values: for each token of a prefill (without attention scores), and for one picture.

    score_bytes: the picture's attention scores among them, which grow with its square. Attention in one kernel keeps
    none.
    """

    token_bytes: int
    picture_bytes: int
    score_bytes: int = 0


@dataclass(frozen=True)
class Provenance:
    """Origin of the bundle: digest of the checkpoint's files, exporter, versions of the tools."""

    checkpoint_sha256: str
    exporter: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Manifest(Document):
    """bundle.json. sensitivity: for each calibrated weight, the relative change of its layer's outputs."""

    FILE_NAME: ClassVar[str] = MANIFEST_NAME

    format: int
    family: FamilyInfo
    model: ModelInfo
    precision: Precision
    workspace: Workspace
    graphs: Graphs
    embedding: EmbeddingInfo
    tokenizer: str
    generation: GenerationDefaults
    files: dict[str, FileInfo]
    provenance: Provenance
    parity: dict[str, Any]
    sensitivity: dict[str, Any]

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the text of a bundle.json; unknown keys, missing keys and wrong types are errors.

        Raises:
            BundleError: says which key is wrong and how.
        """
        raw = read_object(text, MANIFEST_NAME, BundleError, "; this is not a Qwen-VL Edge bundle, or it is damaged")
        if "format" not in raw:
            raise BundleError(f'{MANIFEST_NAME} has no "format"; this is not a Qwen-VL Edge bundle.')
        if raw["format"] != FORMAT:
            raise BundleError(
                f"the bundle has format {show(raw['format'])}, this version reads format {FORMAT}; make it again with "
                "`qwenvl export CHECKPOINT BUNDLE --force`, or use the version that wrote it."
            )
        manifest = read_record(cls, raw, MANIFEST_NAME, BundleError)
        _check_manifest(manifest)
        return manifest


def _check_model(model: ModelInfo) -> None:
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if not value > 0 and field.name != "deepstack_layers":
            raise BundleError(f"{MANIFEST_NAME}: model.{field.name} is {value}; it must be positive.")
        if not 0 <= value <= _MOST_OF.get(field.name, _MOST_OF_A_MODEL):
            raise BundleError(f"{MANIFEST_NAME}: model.{field.name} is {value:,}, which no model has.")
    if not 0 <= model.deepstack_layers <= model.num_layers:
        raise BundleError(
            f"{MANIFEST_NAME}: model.deepstack_layers is {model.deepstack_layers}; it must be 0 to {model.num_layers}."
        )
    if model.num_heads % model.num_kv_heads:
        raise BundleError(f"{MANIFEST_NAME}: model.num_heads is not a multiple of model.num_kv_heads.")


def _check_ranges(manifest: Manifest) -> None:
    """Check numbers that nothing else in the manifest bounds."""
    generation, workspace = manifest.generation, manifest.workspace
    ranges = {
        "generation.top_p": (0 < generation.top_p <= 1, generation.top_p),
        "generation.top_k": (generation.top_k >= 0, generation.top_k),
        "generation.temperature": (generation.temperature >= 0, generation.temperature),
        "generation.repetition_penalty": (generation.repetition_penalty > 0, generation.repetition_penalty),
        "generation.max_new_tokens": (generation.max_new_tokens >= 1, generation.max_new_tokens),
        "generation.max_window_size": (generation.max_window_size >= 0, generation.max_window_size),
        "workspace.token_bytes": (workspace.token_bytes >= 0, workspace.token_bytes),
        "workspace.picture_bytes": (workspace.picture_bytes >= 0, workspace.picture_bytes),
        "workspace.score_bytes": (0 <= workspace.score_bytes <= workspace.picture_bytes, workspace.score_bytes),
        "precision.block_size": (manifest.precision.block_size >= 0, manifest.precision.block_size),
    }
    ranges |= {f'files["{shown(name)}"].size': (file.size >= 0, file.size) for name, file in manifest.files.items()}
    for name, (holds, value) in ranges.items():
        if not holds:
            raise BundleError(f"{MANIFEST_NAME}: {name} is {value}, which is out of range.")


def _check_manifest(manifest: Manifest) -> None:
    model, embedding = manifest.model, manifest.embedding
    _check_model(model)
    _check_ranges(manifest)
    _check_known("embedding.dtype", embedding.dtype, EMBEDDING_DTYPES)
    compute = manifest.precision.compute
    if set(compute) != {"vision", "decoder"} or not set(compute.values()) <= set(_COMPUTE):
        raise BundleError(f"{MANIFEST_NAME}: precision.compute must give {', '.join(_COMPUTE)} for vision and decoder.")
    _check_known("precision.kv_cache", manifest.precision.kv_cache, KV_CACHES)
    if embedding.shape != (model.vocab_size, model.hidden_size):
        raise BundleError(f"{MANIFEST_NAME}: embedding.shape is not [model.vocab_size, model.hidden_size].")
    for name in manifest.files:
        pure = PurePosixPath(name)
        if not name or "\\" in name or ":" in name or pure.is_absolute() or ".." in pure.parts:
            raise BundleError(f'{MANIFEST_NAME}: the file name "{shown(name)}" leaves the bundle\'s folder.')
    graphs = manifest.graphs
    used = [graphs.vision, *graphs.decoder.values(), embedding.file, manifest.tokenizer]
    for name in [*used, *filter(None, (graphs.vision_ort, graphs.vision_native))]:
        if name not in manifest.files:
            raise BundleError(f'{MANIFEST_NAME}: "{shown(name)}" is used but not listed under "files".')
    size = manifest.files[embedding.file].size
    if size != embedding_bytes(embedding.dtype, embedding.shape):
        raise BundleError(f'{MANIFEST_NAME}: "{embedding.file}" has {size:,} bytes, which is not its shape.')


def _check_known(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise BundleError(f'{MANIFEST_NAME}: {key} is "{shown(value)}"; it must be one of {", ".join(known)}.')
