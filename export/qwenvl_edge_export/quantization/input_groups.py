"""The inputs of linear layers, watched while a reference network computes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from qwenvl_edge_export.graphs.roles import InputGroup
from qwenvl_edge_export.options import GraphPrecision


def quantized_groups(groups: Iterable[InputGroup], precision: GraphPrecision) -> Iterator[InputGroup]:
    """The groups with those of their weights that do not stay in floats, where there are some."""
    for group in groups:
        if weights := tuple(weight for weight in group.weights if precision.format(weight.name) is not None):
            yield dataclasses.replace(group, weights=weights)


@contextlib.contextmanager
def watch(network: nn.Module, takers: Mapping[InputGroup, Callable[[Tensor], None]]) -> Iterator[None]:
    """Give each group's inputs [..., in] to its taker whenever they reach their module of `network`."""

    def give(group: InputGroup, take: Callable[[Tensor], None], module: nn.Module, arguments: tuple[Any, ...]) -> None:
        take(group.take(module, *arguments))

    hooks = [
        network.get_submodule(group.module).register_forward_pre_hook(partial(give, group, take))
        for group, take in takers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
