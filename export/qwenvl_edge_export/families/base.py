"""The seam: what a model family gives the exporter. A new family is a folder here and a line in detect.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.graphs.roles import Decoder, InputGroup, Role, Tensors
from qwenvl_edge_export.graphs.weight_layout import WeightLayout


@dataclass(frozen=True)
class DefaultPrompts:
    """Questions and answers as the family writes them, for calibration and verification without a user's own.

    about_pictures, words: pairs of a question and its answer, the former about any picture, the latter without one.
    found: the answer that marks a red disc in a picture.
    """

    about_pictures: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...]
    found: str


class ReferenceNetwork(nn.Module, ABC):
    """The family's network in PyTorch; modules are called as the checkpoint's tensors."""

    @abstractmethod
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Pictures [N, 3, S, S] -> image features [N, Q, H]."""

    @abstractmethod
    def embed(self, input_ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> [B, T, H], with the features in the pictures' places, in order."""

    @abstractmethod
    def logits(self, inputs_embeds: Tensor, prompt: Prompt, last: int) -> Tensor:
        """Logits [B, last, V] of the last positions of embeddings [B, T, H], which begin with those of `prompt`."""


class ReferenceLayer(nn.Module, ABC):
    """One decoder layer of the reference with its weights; `DecoderLayer.groups` name modules within it."""

    @abstractmethod
    def forward(self, rows: Tensor, prompt: Prompt) -> Tensor:
        """Rows [T, H] of a text that begins with `prompt` -> [T, H]."""


class ExportFamily(ABC):
    """A configuration that was read and checked, and all that follows from it without a checkpoint's weights.

    name: as manifests call the family. tokenizer_file: of the checkpoint, taken over into bundles.
    config: in the family's own form.
    """

    name: str
    tokenizer_file: str
    config: Any
    decoder: Decoder
    default_prompts: DefaultPrompts

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint of this configuration has."""

    @property
    @abstractmethod
    def vision_weights(self) -> Sequence[Role]:
        """The vision graph's weights, in the order in which they are stored."""

    @property
    @abstractmethod
    def vision_groups(self) -> Sequence[InputGroup]:
        """The linear weights of the picture side by the inputs that they share."""

    @abstractmethod
    def build_vision(self, layout: WeightLayout, dialect: str) -> ir.Model:
        """The vision graph over the weights of `layout`, in a dialect of bundle/contract.py."""

    @abstractmethod
    def new_network(self) -> ReferenceNetwork:
        """The reference network without values; to be made under `torch.device("meta")`."""

    @abstractmethod
    def reference_layer(self, index: int, tensors: Tensors) -> ReferenceLayer:
        """Decoder layer `index` of the reference, with weights [out, in] float32 as `tensors` reads them."""

    @abstractmethod
    def model_info(self) -> ModelInfo:
        """The dimensions that a manifest holds."""

    @abstractmethod
    def family_info(self) -> FamilyInfo:
        """The family's name and the configuration that the runtime's member of it reads."""

    @abstractmethod
    def runtime_family(self) -> Family:
        """The runtime's member of the family, as a bundle of this configuration opens it.

        Raises:
            BundleError: its special tokens cannot be where the configuration says.
        """

    @abstractmethod
    def workspace(self, *, vision_ort: bool) -> Workspace:
        """Bytes of intermediate values; vision_ort: whether bundles have a vision graph of ONNX Runtime's own."""

    @abstractmethod
    def generation_defaults(self, raw: Mapping[str, Any]) -> GenerationDefaults:
        """The settings that a bundle keeps of a generation_config.json's content.

        Raises:
            CheckpointError: a value is missing or has the wrong type.
        """

    @abstractmethod
    def check_tokenizer(self, folder: Path) -> None:
        """Check that the tokenizer in a checkpoint's folder fits the configuration.

        Raises:
            CheckpointError: it is damaged, or of another vocabulary.
        """

    def linear_names(self) -> Iterator[str]:
        """The names of all linear layers' weights, the decoder's before the picture side's."""
        for weight in self.decoder.linear_weights():
            yield weight.name
        for group in self.vision_groups:
            for weight in group.weights:
                yield weight.name
