"""The interface between training and a family's network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from tools.nano.talk.guiding import Teacher
from tools.nano.talk.packing import Packed


class Talker(nn.Module, ABC):
    """A model that is trained. width: of its states and features. precision: what products are computed in."""

    width: int
    lm_head: nn.Module
    precision: ClassVar[Callable[[], AbstractContextManager[None]]]

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The picture side."""

    @property
    @abstractmethod
    def speaker(self) -> nn.Module:
        """All the rest."""

    @abstractmethod
    def seen(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures [H, W, 3] uint8 -> the features that the decoder reads first [n, width], in their order."""

    @abstractmethod
    def encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures [H, W, 3] uint8 -> all features [1 or more, n, width]."""

    @abstractmethod
    def decode(
        self,
        ids: Tensor,
        positions: Tensor,
        packed: Packed,
        places: Tensor,
        features: Tensor,
        guides: Sequence[Teacher] = (),
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """States [T, width] of ids [T], the guides' loss and figures.

        positions: [1 or 3, T]. packed: the tokens that each token sees. places: of the pictures' tokens [n]. features:
        [1 or more, n, width].
        """

    @abstractmethod
    def published(self) -> Mapping[str, Tensor]:
        """The weights by the names of a published checkpoint."""

    def fuse(self) -> None:
        """Compile the pieces between the products for faster training; a network without any leaves it."""
