"""Image features, computed once per distinct picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend
from qwenvl_edge.image import Picture, Preprocessing, pixel_values

FloatArray = npt.NDArray[np.float32]
_BATCH = 4  # bounds the vision graph's memory when a message brings many pictures


class FeatureCache:
    """Encodes pictures and keeps the features of the `capacity` last used ones, found again by content digest."""

    def __init__(self, backend: Backend, preprocessing: Preprocessing, capacity: int) -> None:
        self._backend = backend
        self._preprocessing = preprocessing
        self._capacity = capacity
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()

    def encode(self, pictures: Sequence[Picture]) -> tuple[list[FloatArray], int]:
        """Return the features [Q, H] of every picture and how many pictures had to be encoded for it."""
        missing = list({p.digest: p for p in pictures if p.digest not in self._kept}.values())
        found = {p.digest: self._kept[p.digest] for p in pictures if p.digest in self._kept}
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            pixels = np.stack([pixel_values(picture, self._preprocessing) for picture in batch])
            features = self._backend.encode_images(pixels)
            # Copies, so that a kept row does not keep its whole batch or a buffer of the backend.
            found.update((picture.digest, row.copy()) for picture, row in zip(batch, features, strict=True))
        for digest, row in found.items():
            self._kept[digest] = row
            self._kept.move_to_end(digest)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return [found[picture.digest] for picture in pictures], len(missing)
