"""torch.compile for the pieces of a network between its products, where element by element takes longer than they do.

Only training asks for it; without a C++ compiler the same functions run as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece", bound=Callable[..., Any])


def can_compile() -> bool:
    """Tell if torch.compile works here, by trying it."""
    try:
        torch.compile(lambda x: x.sin() + x)(torch.ones(2))
    except Exception as error:  # a missing compiler, missing headers: as many kinds of errors as of machines
        print(f"training without torch.compile, more slowly: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def fused(piece: Piece, sizes: tuple[int, ...] = (0,)) -> Piece:
    """A function compiled once for tensors of any size in the dimensions `sizes`."""
    compiled = torch.compile(piece)

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Tensor):
                for dimension in sizes:
                    torch._dynamo.maybe_mark_dynamic(argument, dimension)
        return compiled(*arguments)

    return call  # type: ignore[return-value]
