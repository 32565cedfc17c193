"""The three families for the exporter, from a checkpoint's configuration and the files beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge.families import create_family
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.dynamic_config import DynamicVLConfig
from qwenvl_edge.inputs.tokenizer import open_tokenizer
from qwenvl_edge_export.checkpoint.shards import open_shard
from qwenvl_edge_export.checkpoint.weight_files import find_weights
from qwenvl_edge_export.families.base import ExportFamily, ReferenceLayer, ReferenceVision
from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.decoder import decoder_of
from qwenvl_edge_export.families.dynamic_vl.metadata import bundled, generation_defaults, model_info, workspace
from qwenvl_edge_export.families.dynamic_vl.processor import FILES as PROCESSOR_FILES
from qwenvl_edge_export.families.dynamic_vl.processor import read_processor
from qwenvl_edge_export.families.dynamic_vl.prompts import PROMPTS
from qwenvl_edge_export.families.dynamic_vl.reference import DynamicVLLayer, DynamicVLVision, Published
from qwenvl_edge_export.families.dynamic_vl.tensors import EMBEDDING, HEAD, canonical, tensor_shapes
from qwenvl_edge_export.families.dynamic_vl.variants import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, Variant
from qwenvl_edge_export.families.dynamic_vl.vision import build_vision
from qwenvl_edge_export.families.dynamic_vl.vision_roles import tower_of
from qwenvl_edge_export.families.dynamic_vl.vocabulary import SIDE_FILES, Vocabulary
from qwenvl_edge_export.families.generation import unused_settings
from qwenvl_edge_export.graphs.roles import InputGroup, Role, Tensors
from qwenvl_edge_export.graphs.weight_layout import WeightLayout
from qwenvl_edge_export.options import HEAD_UNIT


class DynamicVLExport(ExportFamily):
    """The family of one configuration; `folder` is the checkpoint's, whose small files are read when they are needed.

    min_pixels, max_pixels: limits of a picture that replace the checkpoint's and the default.
    """

    variant: ClassVar[Variant]
    side_files = (*PROCESSOR_FILES, *SIDE_FILES)

    def __init__(self, raw: Mapping[str, Any], folder: Path, limits: tuple[int | None, int | None] = (None, None)):
        raw = {**raw, "model_type": self.name}  # a config.json may name its class alone
        config = DynamicVLSource.from_dict(raw)
        if not config.tie_given:
            config = dataclasses.replace(config, text=dataclasses.replace(config.text, tied=not has_head(folder)))
        self.config: DynamicVLSource = config
        self._raw = raw
        self._folder = folder
        self._limits = limits
        self._vocabulary = Vocabulary(folder)
        self.tokenizer_file = self._vocabulary.file
        self.copies = {HEAD: EMBEDDING} if config.text.tied else {}
        self._shapes = tensor_shapes(config)
        self.decoder = decoder_of(config, self._shapes)
        self._tower = tower_of(config, self._shapes)

    @classmethod
    def from_checkpoint(cls, raw: Mapping[str, Any], folder: Path) -> DynamicVLExport:
        """Read a config.json's content, and what else is needed of the checkpoint in `folder`.

        Raises:
            CheckpointError: a value is missing, wrong, or describes a model that this family does not compute.
        """
        return cls(raw, folder)

    def limited(self, min_pixels: int | None, max_pixels: int | None) -> DynamicVLExport:
        """See ExportFamily."""
        return type(self)(self._raw, self._folder, (min_pixels, max_pixels))

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """See ExportFamily."""
        return self._shapes

    def rename(self, name: str) -> str:
        """See ExportFamily."""
        return canonical(name)

    @property
    def vision_weights(self) -> Sequence[Role]:
        """See ExportFamily."""
        return tuple(self._tower)

    @property
    def vision_groups(self) -> Sequence[InputGroup]:
        """See ExportFamily."""
        return self._tower.groups

    def build_vision(self, layout: WeightLayout, dialect: str) -> ir.Model:
        """See ExportFamily."""
        return build_vision(self.config.variant, self.config.vision, self._tower, layout, dialect)

    def model_info(self) -> ModelInfo:
        """See ExportFamily."""
        return model_info(self.config)

    def family_info(self) -> FamilyInfo:
        """See ExportFamily."""
        entry = dataclasses.asdict(self._bundled)
        return FamilyInfo(self.name, {key: list(x) if isinstance(x, tuple) else x for key, x in entry.items()})

    def runtime_family(self) -> Family:
        """See ExportFamily."""
        return create_family(self.family_info(), self.model_info())

    def workspace(self, *, vision_ort: bool) -> Workspace:
        """See ExportFamily."""
        return workspace(self.config, self._bundled.max_pixels, vision_ort=vision_ort)

    def generation_defaults(self, raw: Mapping[str, Any]) -> GenerationDefaults:
        """See ExportFamily."""
        return generation_defaults(raw, self.config.text.max_position_embeddings)

    def notes(self, folder: Path, generation: Mapping[str, Any]) -> Sequence[str]:
        """See ExportFamily."""
        width, unused = self.decoder.head_dim, tuple(unused_settings(generation))
        if not width % HEAD_UNIT:
            return unused
        return (
            *unused,
            f"The attention heads are {width} channels wide, no multiple of {HEAD_UNIT}, which ONNX Runtime's own "
            "attention needs: the bundle has the standard decoder graph alone, which is slower on a CPU.",
        )

    def check_tokenizer(self, folder: Path) -> None:
        """See ExportFamily."""
        self._vocabulary.check_merges()
        try:
            open_tokenizer(self.runtime_family(), folder / self.tokenizer_file, self.config.text.vocab_size)
        except BundleError as error:
            raise CheckpointError(f'the checkpoint "{folder}" cannot be exported: {error}') from None

    def reference_vision(self, tensors: Tensors) -> ReferenceVision:
        """See ExportFamily."""
        return DynamicVLVision(self._published, self.config.vision, tensors)

    def reference_layer(self, index: int, tensors: Tensors) -> ReferenceLayer:
        """See ExportFamily."""
        return DynamicVLLayer(self._published, index, tensors, self.config.vision.tokens_per_second)

    @cached_property
    def _published(self) -> Published:
        return Published(self.name, self._raw)

    @cached_property
    def _bundled(self) -> DynamicVLConfig:
        processor = read_processor(self._folder, self.config.vision, whole_clips=self.config.variant is QWEN3_VL)
        return bundled(self.config, processor.limited(*self._limits), self._vocabulary)


def has_head(folder: Path) -> bool:
    """Tell if the weights in a checkpoint's folder have a head of their own."""
    return any(name.endswith(HEAD) for file in find_weights(folder) for name in open_shard(file).names())


class Qwen2VLExport(DynamicVLExport):
    """Qwen2-VL."""

    name, label, variant = QWEN2_VL.name, QWEN2_VL.title, QWEN2_VL
    model_types, architectures = (QWEN2_VL.name,), ("Qwen2VLForConditionalGeneration",)
    default_prompts = PROMPTS[QWEN2_VL.name]


class Qwen25VLExport(DynamicVLExport):
    """Qwen2.5-VL."""

    name, label, variant = QWEN2_5_VL.name, QWEN2_5_VL.title, QWEN2_5_VL
    model_types, architectures = (QWEN2_5_VL.name,), ("Qwen2_5_VLForConditionalGeneration",)
    default_prompts = PROMPTS[QWEN2_5_VL.name]


class Qwen3VLExport(DynamicVLExport):
    """Qwen3-VL, Instruct and Thinking."""

    name, label, variant = QWEN3_VL.name, QWEN3_VL.title, QWEN3_VL
    model_types, architectures = (QWEN3_VL.name,), ("Qwen3VLForConditionalGeneration",)
    default_prompts = PROMPTS[QWEN3_VL.name]
