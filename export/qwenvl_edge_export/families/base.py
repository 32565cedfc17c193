"""The interface of a model family for the exporter. A new family is a folder here and a line in detect.py."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qwenvl_edge.bundle.manifest import FamilyInfo, GenerationDefaults, ModelInfo, Workspace
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PictureLayout
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


@dataclass(frozen=True)
class PictureInputs:
    """One picture, or clip, as the vision graph takes it.

    arrays: by the names of the graph's inputs. layout: of its features in a prompt.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    layout: PictureLayout

    def digest(self) -> str:
        """SHA-256 over the names, shapes and bytes of the arrays."""
        total = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


@dataclass(frozen=True)
class ImageFeatures:
    """Features [Q, H] of one picture, or clip, in the order of its places in a prompt.

    deepstack: [L, Q, H], added to the picture's rows after each of the first L decoder layers; None in most families.
    """

    rows: Tensor
    deepstack: Tensor | None = None


class ReferenceVision(nn.Module, ABC):
    """The picture side of the reference; `InputGroup.module` names modules within it.

    It must compute a picture with little more memory than the picture's activations take: families/streaming.py has
    each module read its weights when it is called.

    attention_heads: heads of the attention whose queries, keys and values the layers named "...qkv" give, in this
    order; 0 where there are none. wide_products: a float16 graph has its linear layers as WideLinear.
    """

    attention_heads = 0
    wide_products = False

    @abstractmethod
    def forward(self, picture: PictureInputs) -> ImageFeatures:
        """Features of one picture. The reference computes the tables of its grid itself: those among the arrays are the
        runtime's, which it is to check."""


class ReferenceLayer(nn.Module, ABC):
    """One decoder layer of the reference with its weights; `DecoderLayer.groups` name modules within it."""

    @abstractmethod
    def forward(self, rows: Tensor, prompt: Prompt, answers: Sequence[int] = ()) -> Tensor:
        """Rows [T, H] -> [T, H], before deepstack features are added.

        Args:
            rows: of one text of any length that begins with `prompt`; or where `answers` are given, of the prompt and
                then of each answer, one after another.
            prompt: decides the positions.
            answers: tokens of each answer. An answer sees the prompt and itself: `text_places` and `text_mask`.
        """


def text_places(rows: int, prompt: Prompt, answers: Sequence[int] = ()) -> Tensor:
    """The place of each row in its text, int64 [T]: answers all begin after the prompt. See ReferenceLayer."""
    length = len(prompt.ids)
    if not answers:
        return torch.arange(rows)
    return torch.cat([torch.arange(length), *(torch.arange(length, length + count) for count in answers)])


def text_mask(rows: int, prompt: Prompt, answers: Sequence[int] = ()) -> Tensor:
    """The rows that each row sees, bool [T, T], true where row i sees row j. See ReferenceLayer."""
    places = text_places(rows, prompt, answers)
    counts = torch.tensor([len(prompt.ids), *answers] if answers else [rows])
    texts = torch.arange(len(counts)).repeat_interleave(counts)
    same = (texts[:, None] == texts) | (texts == 0)
    return same & (places[:, None] >= places)


class ExportFamily(ABC):
    """A configuration that was read and checked, and all that follows from it without a checkpoint's weights.

    name: as manifests call the family. label: as people call it. model_types, architectures: values of a config.json
    that announce it. tokenizer_file: of the checkpoint, taken over into bundles. side_files: further small files that
    an export reads where they are there. config: in the family's own form.
    """

    name: str
    label: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    tokenizer_file: str
    side_files: tuple[str, ...] = ("tokenizer_config.json", "added_tokens.json")
    config: Any
    decoder: Decoder
    default_prompts: DefaultPrompts

    ignored: tuple[str, ...] = ()
    """Patterns of tensors that a checkpoint may hold and that nothing reads, besides the buffers that all leave out."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Tensors that a checkpoint may hold besides, and those that they repeat: the head of a tied model."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, raw: Mapping[str, Any], folder: Path) -> ExportFamily:
        """Read a config.json's content, and what else the family needs of the checkpoint in `folder`.

        Raises:
            CheckpointError: a value is missing, wrong, or describes a model that this family does not compute.
        """

    def limited(self, min_pixels: int | None, max_pixels: int | None) -> ExportFamily:
        """The same with other limits of a picture's pixels; None keeps one.

        Raises:
            QwenVLError: they leave no size, or pictures of this family have one size.
        """
        raise QwenVLError(f"pictures of {self.label} have one size, so they have no limits to be set.")

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint of this configuration has."""

    def rename(self, name: str) -> str:
        """The name in `tensors` of what a file calls `name`, in any of the family's naming schemes.

        Names of parts of quantized layers (`....qweight`) come too. Prefixes that training leaves behind
        (`base_model.model.`, `module.`) are taken off before.
        """
        return name

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
    def reference_vision(self, tensors: Tensors) -> ReferenceVision:
        """The picture side of the reference; it keeps `tensors` and reads its weights when they are needed."""

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

    def notes(self, folder: Path, generation: Mapping[str, Any]) -> Sequence[str]:
        """Sentences for the user about what a bundle of the checkpoint in `folder` will not do as its owner expects."""
        return ()

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
