"""Qwen-VL (arXiv 2308.12966): the family for the exporter, from a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge.families.qwen_vl import QwenVLFamily
from qwenvl_edge.inputs.tokenizer import Tokenizer
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.families.generation import unused_settings
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.decoder import decoder_of
from qwenvl_edge_export.families.qwen_vl.fine_tunes import added_tokens, chat_notes, token_notes
from qwenvl_edge_export.families.qwen_vl.metadata import (
    Added,
    family_info,
    family_of,
    generation_defaults,
    model_info,
    workspace,
)
from qwenvl_edge_export.families.qwen_vl.prompts import PROMPTS
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLLayer, QwenVLVision, expected_shapes
from qwenvl_edge_export.families.qwen_vl.vision import build_vision
from qwenvl_edge_export.families.qwen_vl.vision_roles import vision_of
from qwenvl_edge_export.graphs.roles import InputGroup, Role, Tensors
from qwenvl_edge_export.graphs.weight_layout import WeightLayout


class QwenVLExport(ExportFamily):
    """The family for one configuration."""

    name = "qwen_vl"
    label = "Qwen-VL"
    model_types = ("qwen",)
    architectures = ("QWenLMHeadModel",)
    tokenizer_file = "qwen.tiktoken"
    ignored = ("*.logn_tensor", "*.logn_list")
    default_prompts = PROMPTS
    config: QwenVLConfig

    def __init__(self, config: QwenVLConfig, added: Added = ()):
        self.config = config
        self.added = added
        self.decoder = decoder_of(config)
        self._vision = vision_of(config)

    @classmethod
    def from_checkpoint(cls, raw: Mapping[str, Any], folder: Path) -> QwenVLExport:
        """See ExportFamily; of the files beside config.json those about added tokens are read."""
        config = QwenVLConfig.from_dict(raw)
        return cls(config, added_tokens(folder, config))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> QwenVLExport:
        """Read the content of a config.json.

        Raises:
            CheckpointError: a key is missing, or a value describes a model this code does not compute.
        """
        return cls(QwenVLConfig.from_dict(raw))

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """See ExportFamily."""
        return expected_shapes(self.config)

    @property
    def vision_weights(self) -> Sequence[Role]:
        """See ExportFamily."""
        return tuple(self._vision)

    @property
    def vision_groups(self) -> Sequence[InputGroup]:
        """See ExportFamily."""
        return self._vision.groups

    def build_vision(self, layout: WeightLayout, dialect: str) -> ir.Model:
        """See ExportFamily."""
        return build_vision(self.config.vision, self._vision, layout, dialect)

    def reference_vision(self, tensors: Tensors) -> QwenVLVision:
        """See ExportFamily."""
        return QwenVLVision(self.config, tensors)

    def reference_layer(self, index: int, tensors: Tensors) -> QwenVLLayer:
        """See ExportFamily."""
        return QwenVLLayer(self.config, index, tensors)

    def model_info(self) -> ModelInfo:
        """See ExportFamily."""
        return model_info(self.config)

    def family_info(self) -> FamilyInfo:
        """See ExportFamily."""
        return family_info(self.config, self.added)

    def runtime_family(self) -> QwenVLFamily:
        """See ExportFamily."""
        return family_of(self.config, self.added)

    def workspace(self, *, vision_ort: bool) -> Workspace:
        """See ExportFamily."""
        return workspace(self.config, vision_ort=vision_ort)

    def generation_defaults(self, raw: Mapping[str, Any]) -> GenerationDefaults:
        """See ExportFamily."""
        return generation_defaults(raw)

    def notes(self, folder: Path, generation: Mapping[str, Any]) -> Sequence[str]:
        """See ExportFamily."""
        return [*token_notes(self.config, self.added), *chat_notes(generation), *unused_settings(generation)]

    def check_tokenizer(self, folder: Path) -> None:
        """See ExportFamily."""
        vision = self.config.vision
        try:
            family = self.runtime_family()
            ranks = Tokenizer(folder / self.tokenizer_file, family.special_tokens).rank_count
        except BundleError as error:
            raise CheckpointError(f'the checkpoint "{folder}" cannot be exported: {error}') from None
        if ranks != family.num_ranks or self.config.vocab_size < family.decodable:
            raise CheckpointError(
                f'the checkpoint "{folder}" does not fit its {self.tokenizer_file}: {ranks:,} ranks there, but '
                f"image_start_id {vision.image_start_id} and vocab_size {self.config.vocab_size} in config.json."
            )
