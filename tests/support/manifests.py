"""Manifests that tests give only what they are about."""

from __future__ import annotations

from typing import Any

from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.manifest import (
    FORMAT,
    EmbeddingInfo,
    FamilyInfo,
    GenerationDefaults,
    Graphs,
    Manifest,
    ModelInfo,
    Precision,
    Provenance,
    Workspace,
)


def make_model(**dimensions: int) -> ModelInfo:
    """The dimensions of a very small model with one layer and one head, but for those given."""
    defaults = {
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 4,
        "vocab_size": 2304,
        "max_position_embeddings": 512,
    }
    return ModelInfo(**defaults | dimensions)


def make_manifest(model: ModelInfo, family: FamilyInfo, files: dict[str, FileInfo], **changes: Any) -> Manifest:
    """A float32 manifest of these files; changes: other fields of Manifest."""
    fields: dict[str, Any] = {
        "precision": Precision("fp32", "fp32", "fp32", {"vision": "fp32", "decoder": "fp32"}, 0, "", ""),
        "workspace": Workspace(1, 1),
        "graphs": Graphs("vision.onnx", {}),
        "embedding": EmbeddingInfo("embedding.bin", "float32", (model.vocab_size, model.hidden_size)),
        "tokenizer": "qwen.tiktoken",
        "generation": GenerationDefaults("chatml", False, 0.3, 0, 1.0, 1.0, 64, 6144),
        "provenance": Provenance("", "", {}),
        "parity": {},
        "sensitivity": {},
    }
    return Manifest(format=FORMAT, family=family, model=model, files=files, **fields | changes)
