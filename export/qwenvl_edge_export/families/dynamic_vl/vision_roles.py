"""The tower's roles: which tensors play them.

Norms, biases, the patches' projection and the position table are stored in float32 at every precision: the residual
stream stays in float32, and a rounded position table costs more than its few megabytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.tensors import VISUAL, Shapes
from qwenvl_edge_export.graphs.roles import InputGroup, LinearRole, NormRole, Role, Weight, stored


@dataclass(frozen=True)
class TowerBlock:
    """One block. qkv: rows of all queries, all keys, all values. gate: None in an MLP without one."""

    attention_norm: NormRole
    qkv: LinearRole
    out: LinearRole
    mlp_norm: NormRole
    up: LinearRole
    gate: LinearRole | None
    down: LinearRole

    def __iter__(self) -> Iterator[Role]:
        yield from (self.attention_norm, self.qkv, self.out, self.mlp_norm, self.up)
        yield from () if self.gate is None else (self.gate,)
        yield self.down


@dataclass(frozen=True)
class Merger:
    """Patches to tokens. The norm is as wide as a patch and comes before the merge, or as a token and comes after."""

    norm: NormRole
    first: LinearRole
    second: LinearRole

    def __iter__(self) -> Iterator[Role]:
        yield from (self.norm, self.first, self.second)


@dataclass(frozen=True)
class Tower:
    """The vision graph's weights; iteration yields them in the order in which they are stored.

    patches: weight [W, values of a patch] and bias. deepstack: by the number of the block that they follow.
    """

    patches: Weight
    patch_bias: Weight | None
    positions: Weight | None
    blocks: tuple[TowerBlock, ...]
    merger: Merger
    deepstack: dict[int, Merger]
    groups: tuple[InputGroup, ...]

    def __iter__(self) -> Iterator[Role]:
        yield self.patches
        yield from (weight for weight in (self.patch_bias, self.positions) if weight is not None)
        for block in self.blocks:
            yield from block
        for merger in (self.merger, *self.deepstack.values()):
            yield from merger


def tower_of(config: DynamicVLSource, shapes: Shapes) -> Tower:
    """The roles that follow from a configuration."""
    return _Reader(config, shapes).tower()


class _Reader:
    def __init__(self, config: DynamicVLSource, shapes: Shapes):
        self.vision = config.vision
        self.variant = config.variant
        self.shapes = shapes

    def tower(self) -> Tower:
        vision, patches = self.vision, f"{VISUAL}.patch_embed.proj"
        blocks = tuple(self._block(f"{VISUAL}.blocks.{i}") for i in range(vision.depth))
        merger = self._merger(f"{VISUAL}.merger")
        deepstack = {
            block: self._merger(f"{VISUAL}.deepstack_merger_list.{i}") for i, block in enumerate(vision.deepstack)
        }
        return Tower(
            patches=Weight(
                f"{patches}.weight",
                (vision.width, vision.patch_values),
                lambda tensors: tensors(f"{patches}.weight").flatten(1),
                wide=True,
            ),
            patch_bias=self._wide(f"{patches}.bias"),
            positions=self._wide(f"{VISUAL}.pos_embed.weight"),
            blocks=blocks,
            merger=merger,
            deepstack=deepstack,
            groups=(
                *(group for block in blocks for group in _block_groups(block)),
                *(group for each in (merger, *deepstack.values()) for group in _groups(each.first, each.second)),
            ),
        )

    def _block(self, name: str) -> TowerBlock:
        up, down, *gate = self.variant.mlp
        return TowerBlock(
            attention_norm=self._norm(f"{name}.norm1"),
            qkv=self._linear(f"{name}.attn.qkv"),
            out=self._linear(f"{name}.attn.proj"),
            mlp_norm=self._norm(f"{name}.norm2"),
            up=self._linear(f"{name}.mlp.{up}"),
            gate=self._linear(f"{name}.mlp.{gate[0]}") if gate else None,
            down=self._linear(f"{name}.mlp.{down}"),
        )

    def _merger(self, name: str) -> Merger:
        norm, first, second = self.variant.merger
        return Merger(self._norm(f"{name}.{norm}"), self._linear(f"{name}.{first}"), self._linear(f"{name}.{second}"))

    def _norm(self, name: str) -> NormRole:
        weight = self._wide(f"{name}.weight")
        assert weight is not None  # every norm has one
        return NormRole(weight, self._wide(f"{name}.bias"))

    def _linear(self, name: str) -> LinearRole:
        return LinearRole(stored(f"{name}.weight", *self.shapes[f"{name}.weight"]), self._wide(f"{name}.bias"))

    def _wide(self, name: str) -> Weight | None:
        """A tensor that is stored in float32; None where the checkpoint has none of this name."""
        return dataclasses.replace(stored(name, *self.shapes[name]), wide=True) if name in self.shapes else None


def _block_groups(block: TowerBlock) -> Iterator[InputGroup]:
    yield from _groups(block.qkv, block.out)
    shared = (block.up,) if block.gate is None else (block.up, block.gate)
    yield InputGroup(tuple(role.weight for role in shared), _module(block.up))
    yield from _groups(block.down)


def _groups(*roles: LinearRole) -> Iterator[InputGroup]:
    for role in roles:
        yield InputGroup((role.weight,), _module(role))


def _module(role: LinearRole) -> str:
    return role.weight.name.removesuffix(".weight")
