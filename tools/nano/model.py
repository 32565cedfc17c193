"""The nano model: its dimensions, and how its weights start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
from qwenvl_edge_export.families.qwen_vl.reference_vision import VisionTransformer
from tools.nano.dense import GRID
from tools.nano.pools import IMAGE_SIZE

POSITION_CHANNELS = 8  # for each axis and each of sin and cos, the fastest ones


def config_dict(ranks: int) -> dict[str, Any]:
    """config.json of a nano model with a vocabulary of `ranks` BPE tokens."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "kv_channels": 64,
        "intermediate_size": 1024,
        "vocab_size": -(-(ranks + 217) // 64) * 64,
        "seq_length": 2048,
        "max_position_embeddings": 8192,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "layer_norm_epsilon": 1e-6,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "visual": {
            "width": 192,
            "layers": 5,
            "heads": 6,
            "mlp_ratio": 3.0,
            "patch_size": 14,
            "image_size": IMAGE_SIZE,
            "output_dim": 256,
            "image_start_id": ranks + 214,
            "n_queries": GRID * GRID,
        },
    }


def sincos_positions(side: int, dim: int, spacing: float = 1.0) -> Tensor:
    """[side * side, dim]: first half of the channels encodes x, second half y, each sin | cos."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = []
    for axis in (x, y):
        angles = axis.flatten().double()[:, None] * spacing * omega
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


def init_weights(model: QwenVLNetwork) -> None:
    """Words as strong as picture features; residual outputs small (ViT) or zero (decoder); a local resampler."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "pos_embed" in name:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            continue
        std = 0.8 / math.sqrt(parameter[0].numel())
        if "wte" in name:
            std = 0.5
        elif "lm_head" in name:
            std = 0.005
        elif name.endswith("c_proj.weight") and ".h." in name:
            std = 0.0
        elif name.endswith(("c_proj.weight", "out_proj.weight")):
            std *= 0.3
        nn.init.normal_(parameter, std=std)
    table = model.transformer.visual.positional_embedding  # attention finds neighbours from the first step on
    table.data.copy_(0.7 * sincos_positions(16, table.shape[1], spacing=GRID / 16))
    init_resampler(model.transformer.visual)


@torch.no_grad()
def init_resampler(visual: VisionTransformer) -> None:
    """Start with query i reading patch i: the fastest position channels compared, the other channels passed through."""
    pool = visual.attn_pool
    dim = pool.pos_embed.shape[1]
    pool.pos_embed.copy_(sincos_positions(math.isqrt(pool.pos_embed.shape[0]), dim))
    pool.query.zero_()
    quarter = dim // 4
    channels = torch.cat([torch.arange(i * quarter, i * quarter + POSITION_CHANNELS) for i in range(4)])
    pool.kv_proj.weight[channels] = 0
    heads = pool.attn.num_heads
    w_q, w_k, w_v = pool.attn.in_proj_weight.chunk(3)
    for weight in (w_q, w_k):
        weight.mul_(0.1)
        for head in range(heads):  # every head compares all position channels
            rows = head * (dim // heads) + torch.arange(len(channels))
            weight[rows] = 0
            weight[rows, channels] = 3.2
    w_v.mul_(0.05).add_(torch.eye(dim))
    pool.attn.out_proj.weight.mul_(0.05).add_(torch.eye(dim))
    visual.proj.mul_(0.05).add_(torch.eye(dim))


def new_model(ranks: int, seed: int) -> QwenVLNetwork:
    """A fresh model in fp32."""
    torch.manual_seed(seed)
    model = QwenVLNetwork(QwenVLConfig.from_dict(config_dict(ranks)))
    init_weights(model)
    return model


def optimizers(modules: list[nn.Module], muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices, AdamW for embeddings, norms, biases and read-outs."""
    inner, patches, rest = [], [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            outer = parameter.dim() != 2 or any(
                key in name for key in ("wte", "lm_head", "embed", "positional", "query", "classify", "read")
            )
            (patches if parameter.dim() >= 4 else rest if outer else inner).append(parameter)
    groups = [{"params": rest}, {"params": patches, "lr": adam_lr / 4}]
    return [
        torch.optim.Muon(inner, lr=muon_lr, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=adam_lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True
        ),
    ]
