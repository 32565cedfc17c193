"""The reference: transformers' own modules, layer by layer, with weights that are read when they are needed.

Positions are computed here from a prompt's spans independently of the runtime's, so that an error there shows in the
comparison.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.checkpoint.listing import shortened
from qwenvl_edge_export.families.base import (
    ImageFeatures,
    PictureInputs,
    ReferenceLayer,
    ReferenceVision,
    text_mask,
    text_places,
)
from qwenvl_edge_export.families.dynamic_vl.config import VisionConfig
from qwenvl_edge_export.families.dynamic_vl.tensors import TEXT
from qwenvl_edge_export.families.streaming import streamed
from qwenvl_edge_export.graphs.roles import Tensors


@dataclass(frozen=True)
class Classes:
    """Names of transformers' classes of a family: tower, decoder layer, rotary embedding."""

    tower: str
    layer: str
    rotary: str


CLASSES: Mapping[str, Classes] = {
    "qwen2_vl": Classes("Qwen2VisionTransformerPretrainedModel", "Qwen2VLDecoderLayer", "Qwen2VLRotaryEmbedding"),
    "qwen2_5_vl": Classes(
        "Qwen2_5_VisionTransformerPretrainedModel", "Qwen2_5_VLDecoderLayer", "Qwen2_5_VLRotaryEmbedding"
    ),
    "qwen3_vl": Classes("Qwen3VLVisionModel", "Qwen3VLTextDecoderLayer", "Qwen3VLTextRotaryEmbedding"),
}


class Published:
    """transformers' modules and configuration of the family `name`, for a config.json's content.

    Raises:
        QwenVLError: transformers is not installed, does not know the family, or refuses the configuration.
    """

    def __init__(self, name: str, raw: Mapping[str, Any]):
        try:
            from transformers import CONFIG_MAPPING

            self.module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            config_type = CONFIG_MAPPING[name]
        except (ImportError, KeyError) as error:
            raise QwenVLError(
                f"comparing with PyTorch needs transformers 5.24 or newer ({error}): pip install "
                "'qwenvl-edge[export]', or export with --skip-verify."
            ) from None
        self.classes = CLASSES[name]
        try:
            config = config_type.from_dict(dict(raw))
        except Exception as error:  # classes of its own, which differ by version
            raise QwenVLError(
                f"transformers does not take the checkpoint's config.json ({shortened(str(error))}); correct it, or "
                "export with --skip-verify."
            ) from None
        self.text, self.vision = config.text_config, config.vision_config
        for part in (self.text, self.vision):
            part._attn_implementation = "sdpa"

    def tower(self) -> nn.Module:
        """The picture side without weights; its rotary frequencies are there."""
        with torch.device("meta"):
            tower: nn.Module = getattr(self.module, self.classes.tower)(self.vision)
        for path, module in list(tower.named_modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                tower.set_submodule(path, type(module)(self.vision))
        return tower

    def layer(self, index: int) -> nn.Module:
        """A decoder layer without weights."""
        with torch.device("meta"):
            layer: nn.Module = getattr(self.module, self.classes.layer)(self.text, index)
        return layer

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, as its layers take them, of positions [3, T]."""
        found: tuple[Tensor, Tensor] = getattr(self.module, self.classes.rotary)(self.text)(
            torch.empty(0), positions[:, None]
        )
        return found


class DynamicVLVision(ReferenceVision):
    """The tower, its modules called as the checkpoint's tensors."""

    wide_products = True

    def __init__(self, published: Published, config: VisionConfig, tensors: Tensors):
        super().__init__()
        self._merge = config.merge_size
        self.attention_heads = config.heads
        self.model = nn.ModuleDict({"visual": published.tower()})
        streamed(self, tensors)

    def forward(self, picture: PictureInputs) -> ImageFeatures:
        """See ReferenceVision."""
        frames, rows, columns = picture.layout.grid
        grid = torch.tensor([[frames, rows * self._merge, columns * self._merge]])
        pixels = torch.from_numpy(picture.arrays[PIXEL_VALUES]).flatten(0, 1)
        found = self.model["visual"](pixels, grid_thw=grid)
        deepstack = getattr(found, "deepstack_features", None)
        return ImageFeatures(found.pooler_output, torch.stack(list(deepstack)) if deepstack else None)


class DynamicVLLayer(ReferenceLayer):
    """Decoder layer `index` with weights that `tensors` reads."""

    def __init__(self, published: Published, index: int, tensors: Tensors, seconds: float):
        super().__init__()
        self._published = published
        self._seconds = seconds
        layer = published.layer(index)
        state = {name: tensors(f"{TEXT}.layers.{index}.{name}") for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True)
        for name, module in layer.named_children():
            self.add_module(name, module)
        self._layer = [layer]  # in a list, so that its modules have one name
        self.requires_grad_(False).eval()

    def forward(self, rows: Tensor, prompt: Prompt, answers: Sequence[int] = ()) -> Tensor:
        """See ReferenceLayer."""
        places = text_places(len(rows), prompt, answers)
        rotary = self._published.rotary(positions_of(prompt, places, self._seconds))
        mask = text_mask(len(rows), prompt, answers)[None, None]
        out = self._layer[0](rows[None], attention_mask=mask, position_embeddings=rotary)
        found: Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return found


def positions_of(prompt: Prompt, places: Tensor, seconds: float) -> Tensor:
    """Positions [3, T] of tokens at `places` of a text: time, row, column.

    seconds: steps of time for a second of a clip; 0 where each of its frames is one step.
    """
    axes = torch.empty(3, 0, dtype=torch.int64)
    for span in prompt.spans:
        axes = _with_words(axes, span.start)
        _, rows, columns = span.layout.grid
        steps = torch.arange(span.length // (rows * columns))
        if seconds:
            steps = (steps * (span.layout.seconds * seconds)).long()
        place = torch.stack(torch.meshgrid(steps, torch.arange(rows), torch.arange(columns), indexing="ij"))
        axes = torch.cat([axes, _following(axes) + place.flatten(1)], dim=1)
    return _with_words(axes, max(len(prompt.ids), int(places.max()) + 1))[:, places]


def _with_words(axes: Tensor, length: int) -> Tensor:
    """Positions [3, length]: those of `axes`, and then of words."""
    words = _following(axes) + torch.arange(length - axes.shape[1])
    return torch.cat([axes, words.expand(3, -1)], dim=1)


def _following(axes: Tensor) -> int:
    return int(axes.max()) + 1 if axes.numel() else 0
