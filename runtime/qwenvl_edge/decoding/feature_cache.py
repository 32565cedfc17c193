"""Image features, computed once per distinct picture."""

from __future__ import annotations

from collections import OrderedDict

from qwenvl_edge.backends.base import Backend, Features
from qwenvl_edge.inputs.pictures import Picture, Preprocessing

KEPT = 16
"""Pictures whose features are kept for follow-up questions."""


class FeatureCache:
    """Encodes pictures; the features of the KEPT last used ones stay where the backend wants them.

    They are found again by the pictures' content digests.
    """

    def __init__(self, backend: Backend, preprocessing: Preprocessing) -> None:
        self._backend = backend
        self._preprocessing = preprocessing
        self._kept: OrderedDict[str, Features] = OrderedDict()

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()

    def get(self, picture: Picture) -> tuple[Features, bool]:
        """Return the features [Q, H] of a picture and whether it had to be encoded for it."""
        missing = picture.digest not in self._kept
        if missing:
            # One at a time: a picture is work enough for every core, and what a cancellation waits for stays small.
            self._kept[picture.digest] = self._backend.keep_picture(picture, self._preprocessing)
        self._kept.move_to_end(picture.digest)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[picture.digest], missing
