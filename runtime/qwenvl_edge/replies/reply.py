"""An answer as the caller gets it (Reply), and what it cost (Stats).

A reply holds clean text, places in the pictures, and the history to go on from.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qwenvl_edge.errors import ImageError
from qwenvl_edge.families.places import Box, Place, Point, Quad, Ref
from qwenvl_edge.families.tools import ToolCall
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.prompt import Turn
from qwenvl_edge.replies.drawing import draw_shapes

if TYPE_CHECKING:
    from PIL import Image

FinishReason: TypeAlias = Literal["stop", "stop_string", "length", "context", "deadline", "cancelled"]


@dataclass(frozen=True)
class Stats:
    """Times in milliseconds and token counts of one answer.

    ttft_ms runs from the call to the first token (waiting, pictures and prefill included; 0 if there was none);
    token_ms holds the computing time of each token after it. reused_tokens of the prompt were computed for an earlier
    answer and prefill_tokens for this one: all others, unless it ended before its first token. new_tokens counts every
    token taken, a stop token included; a constraint left no choice for forced_tokens of them. Look-up decoding proposed
    proposed_tokens, of which accepted_tokens were right.
    thinking_tokens are those of the reasoning before the answer.
    images_encoded are those not found in the feature cache. history_turns_dropped did not fit into the window.
    """

    image_ms: float
    prefill_ms: float
    ttft_ms: float
    token_ms: tuple[float, ...]
    prompt_tokens: int
    reused_tokens: int
    prefill_tokens: int
    image_tokens: int
    new_tokens: int
    forced_tokens: int
    proposed_tokens: int
    accepted_tokens: int
    images_encoded: int
    history_turns_dropped: int
    thinking_tokens: int = 0

    @property
    def decode_ms(self) -> float:
        """Computing time of all tokens after the first."""
        return math.fsum(self.token_ms)

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens per second, without the first token, which the prefill yields; 0 if there was only that."""
        return (self.new_tokens - 1) / self.decode_ms * 1000 if self.new_tokens > 1 and self.decode_ms > 0 else 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely the model found it.

    data: its bytes, for a control token its name. logprob: natural logarithm of its probability by the model's logits
    alone, before penalties, bias, masks, temperature and cuts. top: the likeliest tokens at its place, likeliest first,
    each without a `top` of its own.
    """

    id: int
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `logprobs.content` in OpenAI's chat completions."""
        return {**self._entry(), "top_logprobs": [each._entry() for each in self.top]}

    def _entry(self) -> dict[str, Any]:
        return {"token": self.data.decode(errors="replace"), "logprob": self.logprob, "bytes": list(self.data)}


@dataclass(frozen=True, repr=False)
class Reply:
    """An answer.

    text: the words, grounding markup removed. raw_text: with markup, as the model wrote it.
    boxes, quads, points: in pixels of the original pictures; their `image` indexes `pictures`, so "Picture 1" is 0.
    refs: the phrases that the answer marked, each with its boxes, quads and points.
    pictures: the pictures and clips that the answer is about: this turn's, or if it has none, those of the latest turn
        that has some.
    malformed: markup that names no place (unclosed, off the grid, or no picture to place it in).
    history: the turns so far, to be given to the next call.
    thinking: the reasoning before the answer, which is no part of text, raw_text and history; None in models without.
    tool_calls: the tools that the answer calls, with their arguments; they are no part of text.
    finish_reason: "stop" (the model ended), "stop_string" (one of `stop` came), "length" (max_new_tokens), "context"
        (no room left), "deadline" or "cancelled".
    pixel_text: raw_text, but its places are in pixels of the original pictures, rounded.
    complete: whether raw_text is the whole form that a constraint asked for, so that it parses; None without one.
    logprobs: an entry for each of stats.new_tokens, if the option `logprobs` asked for them; else None. Tokens that a
        constraint forced last lack theirs where a deadline or a cancellation came before they were computed.
    """

    text: str
    raw_text: str
    boxes: tuple[Box, ...]
    quads: tuple[Quad, ...]
    refs: tuple[Ref, ...]
    malformed: tuple[str, ...]
    pictures: tuple[Visual, ...]
    history: tuple[Turn, ...]
    finish_reason: FinishReason
    stats: Stats
    complete: bool | None = None
    pixel_text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    points: tuple[Point, ...] = ()
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def __repr__(self) -> str:
        """The answer in short: its words, how many places it names, and how it ended."""
        places = {"boxes": self.boxes, "quads": self.quads, "points": self.points, "tool_calls": self.tool_calls}
        found = "".join(f", {name}={len(each)}" for name, each in places.items() if each)
        return f"<Reply {self.text!r}{found}, {self.stats.new_tokens} tokens, {self.finish_reason!r}>"

    def draw(self, image: int | None = None) -> Image.Image:
        """Return a copy of picture number `image` with its places (None: the first with some, or the last).

        Of a clip the first frame is drawn on.

        Raises:
            ImageError: there is no such picture.
        """
        if image is None:
            places: tuple[Place, ...] = (*self.boxes, *self.quads, *self.points)
            placed = [place.image for place in places]
            image = min(placed, default=len(self.pictures) - 1)
        if not isinstance(image, int):
            raise ImageError(f"the picture to draw on is {image!r}; give its number, or None.")
        if not 0 <= image < len(self.pictures):
            raise ImageError(f"there is no picture {image} to draw on: the answer is about {len(self.pictures)}.")
        boxes = [box for box in self.boxes if box.image == image]
        quads = [quad for quad in self.quads if quad.image == image]
        points = [point for point in self.points if point.image == image]
        return draw_shapes(self.pictures[image].to_pil(), boxes, quads, points)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold of the answer: text, places, how it ended and what it cost.

        Coordinates are pixels of the original pictures, which `image` counts from 0. Pictures, history and
        log-probabilities are left out.
        """
        stats = self.stats
        return {
            "text": self.text,
            **({} if self.thinking is None else {"thinking": self.thinking}),
            "raw_text": self.raw_text,
            "boxes": [dataclasses.asdict(box) for box in self.boxes],
            "quads": [dataclasses.asdict(quad) for quad in self.quads],
            "points": [dataclasses.asdict(point) for point in self.points],
            **({"tool_calls": [dataclasses.asdict(call) for call in self.tool_calls]} if self.tool_calls else {}),
            "malformed": list(self.malformed),
            "finish_reason": self.finish_reason,
            "complete": self.complete,
            "prompt_tokens": stats.prompt_tokens,
            "reused_tokens": stats.reused_tokens,
            "new_tokens": stats.new_tokens,
            "images_encoded": stats.images_encoded,
            "ttft_ms": round(stats.ttft_ms, 3),
            "tokens_per_s": round(stats.tokens_per_s, 3),
        }
