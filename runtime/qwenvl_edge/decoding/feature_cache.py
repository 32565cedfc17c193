"""Image features, computed once per distinct picture."""

from __future__ import annotations

from collections import OrderedDict

from qwenvl_edge.backends.base import Backend, Features, check_features
from qwenvl_edge.backends.kept import FEATURES_KEPT
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.pictures import Picture


class FeatureCache:
    """Encodes pictures; the features of the FEATURES_KEPT last used ones stay where the backend wants them.

    They are found again by the pictures' content digests.
    """

    def __init__(self, backend: Backend, family: Family) -> None:
        self._backend = backend
        self._family = family
        self._kept: OrderedDict[str, Features] = OrderedDict()

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()

    def get(self, picture: Picture) -> tuple[Features, bool]:
        """Return the features [Q, H] of a picture and whether it had to be encoded for it."""
        missing = picture.digest not in self._kept
        if missing:
            # One at a time: a picture is work enough for every core, and what a cancellation waits for stays small.
            features = self._backend.encode(picture)
            check_features(features, self._family.layout(picture.size).tokens, self._backend.features_type)
            self._kept[picture.digest] = features
        self._kept.move_to_end(picture.digest)
        if len(self._kept) > FEATURES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[picture.digest], missing
