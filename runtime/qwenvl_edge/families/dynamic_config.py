"""Configuration of the families whose pictures keep their size: Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.bundle.records import read_record
from qwenvl_edge.errors import BundleError


@dataclass(frozen=True)
class DynamicVLConfig:
    """The family's entry in a manifest, the same for all three.

    patch_size, merge_size, temporal_patch_size: a patch's side in pixels, merged patches along a side of a token, and
    frames of a patch. vision_head_dim: of the vision tower's attention. window_size: side of an attention window in
    pixels, 0 without windows. position_side: side of the learned position table, 0 without one.
    min_pixels, max_pixels: limits of a picture after resizing; video_min_pixels, video_max_pixels: of a whole clip
    (frames x height x width). image_mean, image_std: of the channels, which lie in 0..1 before.
    rope_theta, mrope_section, mrope_interleaved: the decoder's rotary positions; the sections of time, rows and columns
    add up to half the head's channels. tokens_per_second: steps of time positions, 0 where clips have no time in them.
    special_tokens: text and id of every added token. not_special: those of them that show in an answer.
    used_rows: the first vocabulary row that belongs to no token. thinking: answers begin with reasoning.
    tools: the chat template knows tools. trained_length: tokens of the context that a plan has unless asked otherwise.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    vision_head_dim: int
    window_size: int
    position_side: int
    min_pixels: int
    max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rope_theta: float
    mrope_section: tuple[int, int, int]
    mrope_interleaved: bool
    tokens_per_second: float
    special_tokens: dict[str, int]
    not_special: tuple[str, ...]
    used_rows: int
    thinking: bool
    tools: bool
    trained_length: int

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> DynamicVLConfig:
        """Read the configuration in a manifest. Raises BundleError, which says which key is wrong and how."""
        return read_record(cls, raw, "family.config", BundleError)

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return self.patch_size * self.merge_size

    def __post_init__(self) -> None:
        positive = ("patch_size", "merge_size", "temporal_patch_size", "vision_head_dim", "min_pixels")
        for name in (*positive, "video_min_pixels", "rope_theta", "used_rows", "trained_length"):
            if not getattr(self, name) > 0:
                raise BundleError(f"family.config.{name} is {getattr(self, name)}; it must be positive.")
        for name in ("window_size", "position_side", "tokens_per_second"):
            if getattr(self, name) < 0:
                raise BundleError(f"family.config.{name} is {getattr(self, name)}; it must not be negative.")
        if self.vision_head_dim % 4:
            raise BundleError(f"family.config.vision_head_dim is {self.vision_head_dim}; it must be a multiple of 4.")
        if self.window_size % self.factor:
            raise BundleError(
                f"family.config.window_size is {self.window_size}; it must be a multiple of a token's side, "
                f"{self.factor} pixels."
            )
        for kind in ("", "video_"):
            least, most = getattr(self, f"{kind}min_pixels"), getattr(self, f"{kind}max_pixels")
            if most < max(least, self.factor**2):
                raise BundleError(
                    f"family.config.{kind}max_pixels is {most}; it must be at least {kind}min_pixels, {least}, and a "
                    f"token's {self.factor**2} pixels."
                )
        if not all(std > 0 and math.isfinite(std) for std in self.image_std):
            raise BundleError(f"family.config.image_std is {list(self.image_std)}; each must be positive.")
        if min(self.mrope_section) < 0:
            raise BundleError(f"family.config.mrope_section is {list(self.mrope_section)}; none may be negative.")
        if unknown := sorted(set(self.not_special) - set(self.special_tokens)):
            raise BundleError(f"family.config.not_special names {unknown[0]!r}, which is no special token.")
        if max(self.special_tokens.values(), default=0) >= self.used_rows:
            raise BundleError(f"family.config.used_rows is {self.used_rows}, but a special token's id is larger.")
