"""A small Qwen-VL for training: the exporter's own network, its decoder over packed conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import Block, QwenVLNetwork, rotary_tables, rotate
from tools.nano.loop import mixed_precision, normalise
from tools.nano.model import config_dict as nano_config
from tools.nano.model import init_weights
from tools.nano.pools import pixels
from tools.nano.talk.guiding import Teacher
from tools.nano.talk.packing import Packed
from tools.nano.talk.talker import Talker

LAYERS = 6  # of the decoder: more kinds and longer talks than models/nano has four for


def config_dict(ranks: int) -> dict[str, Any]:
    """config.json of a model with a vocabulary of `ranks` BPE tokens."""
    return nano_config(ranks) | {"num_hidden_layers": LAYERS}


class QwenVL(Talker):
    """See Talker."""

    precision = staticmethod(mixed_precision)

    def __init__(self, config: dict[str, Any], seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.network = QwenVLNetwork(QwenVLConfig.from_dict(config))
        init_weights(self.network)
        self.width = self.network.config.hidden_size

    @property
    def lm_head(self) -> nn.Module:  # type: ignore[override]
        """See Talker."""
        return self.network.lm_head

    @property
    def tower(self) -> nn.Module:
        """See Talker."""
        return self.network.transformer.visual

    @property
    def speaker(self) -> nn.Module:
        """See Talker."""
        transformer = self.network.transformer
        return nn.ModuleList([transformer.wte, transformer.h, transformer.ln_f, self.network.lm_head])

    def seen(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """See Talker; pictures are resized as the family does it."""
        square = np.stack([pixels(Image.fromarray(picture)) for picture in pictures])
        return self.network.encode_images(normalise(square)).float().flatten(0, 1)

    def encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """See Talker."""
        return self.seen(pictures)[None]

    def decode(
        self,
        ids: Tensor,
        positions: Tensor,
        packed: Packed,
        places: Tensor,
        features: Tensor,
        guides: Sequence[Teacher] = (),
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """See Talker."""
        transformer = self.network.transformer
        hidden = transformer.wte(ids).index_copy(0, places, features[0])
        cos, sin = rotary_tables(positions[0], self.network.config, alpha=1.0)
        rope = cos[:, None], sin[:, None]
        guided, figures = hidden.new_zeros(()), {}
        for number, block in enumerate(transformer.h):
            q, k, v = _heads(block, hidden, rope)
            for guide in guides:
                if guide.layer == number:
                    part = guide.loss(q, k, hidden)
                    figures[guide.name] = float((-part.detach()).exp())
                    guided = guided + part
            hidden = hidden + block.attn.c_proj(packed.attend(q, k, v))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return transformer.ln_f(hidden), guided, figures

    def published(self) -> Mapping[str, Tensor]:
        """See Talker."""
        return self.network.state_dict()


def _heads(block: Block, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer [T, heads, D]."""
    mixed = block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1)
    q, k, v = (each.unflatten(-1, (block.attn.heads, -1)) for each in mixed)
    return rotate(q, *rope), rotate(k, *rope), v
