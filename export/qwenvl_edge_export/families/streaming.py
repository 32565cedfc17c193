"""A reference network without its weights: each module reads them when it runs and drops them afterwards.

So a checkpoint can be compared with its bundle on a machine that could not hold it in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from qwenvl_edge_export.graphs.roles import Tensors

Network = TypeVar("Network", bound=nn.Module)


def streamed(network: Network, tensors: Tensors, name_of: Callable[[str], str] = str) -> Network:
    """Have every module of a network that was made under `torch.device("meta")` read its parameters when it is called.

    Args:
        network: changed in place; no gradients are kept. Its modules must be called, not only their parameters read.
        tensors: reads the checkpoint; values are converted to float32.
        name_of: the checkpoint's name of a parameter, by its path in `network`; the same by default.
    """
    network.requires_grad_(False).eval()
    for prefix, module in _units(network, ""):
        _attach(module, prefix, tensors, name_of)
    return network


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that own parameters; MultiheadAttention counts as one, since it reads its child's weights itself."""
    if isinstance(module, nn.MultiheadAttention):
        yield prefix, module
        return
    if any(True for _ in module.parameters(recurse=False)):
        yield prefix, module
    for name, child in module.named_children():
        yield from _units(child, f"{prefix}.{name}" if prefix else name)


def _attach(module: nn.Module, prefix: str, tensors: Tensors, name_of: Callable[[str], str]) -> None:
    empty = dict(module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention)))

    def put(parameters: dict[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, parameter)

    def load(*_: Any) -> None:
        paths = {name: f"{prefix}.{name}" if prefix else name for name in empty}
        found = {name: tensors(name_of(path)).float() for name, path in paths.items()}
        put({name: nn.Parameter(tensor, requires_grad=False) for name, tensor in found.items()})

    def drop(*_: Any) -> None:
        put(empty)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
