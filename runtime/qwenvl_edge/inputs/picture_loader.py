"""The pictures of one engine: those that come again, pixel by pixel, are the ones that came before.

Comparing takes a fifth of a digest's time, which a robot that asks about one frame again and again would pay each time.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from qwenvl_edge.inputs.pictures import ChannelOrder, Picture, load_picture

_COMPARED = 4


class PictureLoader:
    """Loads pictures. Those used last are only looked at, not kept: they live while a reply or the caller has them.

    load_frame: Backend.load_frame of the backend that they are for.
    """

    def __init__(
        self, channel_order: ChannelOrder, load_frame: Callable[[Any, ChannelOrder, str], Picture | None]
    ) -> None:
        self._channel_order = channel_order
        self._load_frame = load_frame
        self._latest: deque[weakref.ref[Picture]] = deque(maxlen=_COMPARED)

    def load(self, source: Any, name: str) -> Picture:
        """See image.load_picture, whose errors it raises; `name` is kept of the picture that came first."""
        picture = self.load_anew(source, name)
        for known in (reference() for reference in list(self._latest)):
            if known is not None and (known is picture or known.same_pixels(picture)):
                return known
        self._latest.append(weakref.ref(picture))
        return picture

    def load_anew(self, source: Any, name: str, channel_order: ChannelOrder | None = None) -> Picture:
        """As load, without looking whether the picture came before; channel_order: another one than usual."""
        order = self._channel_order if channel_order is None else channel_order
        return self._load_frame(source, order, name) or load_picture(source, channel_order=order, name=name)
