"""The interface of a model family: what it decides, and everything else asks it for.

A new family is a new module beside qwen_vl.py and one line in `families.create_family`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qwenvl_edge.families.pieces import NO_LIMITS, PictureLayout, Piece, PixelLimits, Shown, Span
from qwenvl_edge.families.readers import PlaceReader, Points

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Patches:
    """Patches of `side` x `side` pixels and `frames` frames, of which merge x merge are a token."""

    side: int
    merge: int
    frames: int


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a picture to pixel_values: per-channel mean and standard deviation.

    image_size: side in pixels of the square that pictures become; 0 where they keep their shape. patches: how those are
    cut up.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patches: Patches | None = None


class RotaryRows(NamedTuple):
    """Cosines and sines [B, T, D / 2] float32 of tokens; query_scale [B, T] float32 is None in a family without one."""

    cos: FloatArray
    sin: FloatArray
    query_scale: FloatArray | None

    def repeated(self, rows: int) -> RotaryRows:
        """Return a copy with the first row `rows` times."""
        scale = self.query_scale
        scales = None if scale is None else np.repeat(scale[:1], rows, axis=0)
        return RotaryRows(np.repeat(self.cos[:1], rows, axis=0), np.repeat(self.sin[:1], rows, axis=0), scales)

    def put(self, row: int, other: RotaryRows) -> None:
        """Write the first row of `other` over row `row`."""
        self.cos[row], self.sin[row] = other.cos[0], other.sin[0]
        if self.query_scale is not None and other.query_scale is not None:
            self.query_scale[row] = other.query_scale[0]

    def first(self, rows: int) -> RotaryRows:
        """Return a view of the first `rows` rows."""
        return RotaryRows(
            self.cos[:rows], self.sin[:rows], None if self.query_scale is None else self.query_scale[:rows]
        )


class Positions(ABC):
    """Rotary rows of a sequence that begins with a prompt of `length` tokens, also of the tokens after it."""

    length: int

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """The key of a cache of rotated keys: another prompt may continue it only under an equal one."""

    @abstractmethod
    def rows(self, start: int, count: int) -> RotaryRows:
        """Return the rows of `count` sequence indices from `start` on, with B = 1."""


class Family(ABC):
    """One model family with the configuration of one bundle. Immutable to its users, and safe to share by threads.

    default_system: the system text of a conversation that gives none; None: it has no system turn then.
    thinking_end: the id that ends the reasoning with which every answer begins; None in a model that answers at once.
    has_tools: True if its template describes tools. has_clips: True if it takes clips.
    """

    thinking_end: int | None = None
    has_tools: bool = False
    has_clips: bool = False

    default_system: str | None

    # Vocabulary

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, int]:
        """Text and id of every special token."""

    @property
    @abstractmethod
    def decodable(self) -> int:
        """Number of ids that can be decoded; logits from there on belong to unused rows."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """The id that ends a document."""

    @property
    @abstractmethod
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, whatever its form."""

    @property
    @abstractmethod
    def hidden_ids(self) -> frozenset[int]:
        """Ids that never show in an answer."""

    @abstractmethod
    def read_vocabulary(self, file: Path) -> bytes:
        """Return the BPE ranks of a tokenizer file as lines "base64 rank". Raises BundleError if it cannot be read."""

    @abstractmethod
    def check_vocabulary(self, ranks: int, vocab_size: int) -> None:
        """Check that a number of BPE ranks, the special tokens and the model's rows agree. Raises BundleError."""

    # Prompts

    @abstractmethod
    def can_chat(self, chat_format: str) -> bool:
        """Tell whether a model with this chat format was trained on conversations."""

    @abstractmethod
    def stop_sequences(self, chat_format: str, encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
        """Return the id sequences that end an answer. Raises BundleError for an unknown format."""

    @abstractmethod
    def system_turn(self, text: str | None, tools: Sequence[str] = ()) -> Sequence[Piece]:
        """Return the pieces that open a conversation.

        Args:
            text: None where nobody gives one.
            tools: descriptions of the tools that the model may call, as JSON.

        Raises:
            PromptError: there are tools, of which the family's template knows nothing.
        """

    @abstractmethod
    def tool_result(self, text: str) -> Sequence[Piece]:
        """Return what a tool gave back, in a message. Raises PromptError as system_turn."""

    @abstractmethod
    def tool_grammar(self, source: str) -> str:
        """Return the Lark grammar of an answer that may call tools; source: of families.tools.Tools.source."""

    @abstractmethod
    def past_turn(self, user: Sequence[Piece], answer: str | None) -> Sequence[Piece]:
        """Return the pieces of an exchange.

        Args:
            user: none where the assistant spoke first; then there is no turn of the user.
            answer: with its markup, None if there was none.
        """

    @abstractmethod
    def question(self, user: Sequence[Piece]) -> Sequence[Piece]:
        """Return the pieces of a message and of the opening of its answer."""

    @abstractmethod
    def picture(self, shown: Shown) -> Sequence[Piece]:
        """Return the pieces of a picture or clip; words at either end join the user's beside them."""

    @property
    def numbers_pictures(self) -> bool:
        """True if every picture is numbered, in each turn from 1; False: only if asked, over the conversation."""
        return False

    @abstractmethod
    def named_pictures(self, text: str) -> list[int]:
        """Return the numbers of the pictures that `text` names ("Picture 2"), in order."""

    # Tasks

    @abstractmethod
    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """Return the items of a message that asks for the boxes of `phrase`."""

    @property
    @abstractmethod
    def grounds_in_chat(self) -> bool:
        """True if `grounding_items` is a question, False if it is the beginning of a text to complete."""

    @abstractmethod
    def pointing_prompt(self, phrase: str) -> str:
        """Return words that ask for the points of `phrase`. Raises PromptError: the model writes no points."""

    @abstractmethod
    def reading_prompt(self, language: str) -> str:
        """Return words that ask for the text in a picture with its places. Raises PromptError: unknown language."""

    @abstractmethod
    def caption_prompt(self, language: str, *, chat: bool) -> str:
        """Return words that ask for a description. Raises PromptError: unknown language."""

    # Pictures and positions

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of pictures."""

    @abstractmethod
    def seen_size(self, layout: PictureLayout) -> tuple[int, int]:
        """Return the (width, height) to which a picture, or a frame of a clip, of a layout is resized."""

    @abstractmethod
    def layout(self, size: tuple[int, int], limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """Return the room that a picture of `size` (width, height) takes in a prompt.

        Raises:
            ImageError: the family takes no picture of this shape.
            PromptError: it takes no such limits.
        """

    @abstractmethod
    def clip_layout(self, size: tuple[int, int], times: Sequence[float], limits: PixelLimits) -> PictureLayout:
        """Return the room that a clip takes whose frames of `size` were taken at `times` (seconds).

        Raises:
            ImageError: the family takes no clips, or none of this shape.
            PromptError: it takes no such limits.
        """

    @abstractmethod
    def largest_layout(self, limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """Return the layout of the picture that takes the most room. Raises PromptError as `layout`."""

    @abstractmethod
    def vision_inputs(self, frames: Sequence[Pixels], layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """Return the vision graph's inputs by name for a picture (one frame) or a clip.

        frames: uint8 [H, W, 3] of one size. layout: `layout` or `clip_layout` gave it for them.
        """

    @abstractmethod
    def vision_tables(self, layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """Return those inputs of the vision graph that follow from a layout alone: all but the pixels."""

    @abstractmethod
    def positions(self, length: int, spans: Sequence[Span] = ()) -> Positions:
        """Return the positions of a sequence whose prompt has `length` tokens, `spans` among them."""

    @property
    @abstractmethod
    def trained_length(self) -> int:
        """Tokens of the longest sequences in training: the context that a plan has unless another is asked for."""

    # Places in pictures

    @property
    @abstractmethod
    def markup_tags(self) -> tuple[str, ...]:
        """Control tokens of the grounding markup, which answers and raw prompts may hold; none in a JSON family."""

    @property
    @abstractmethod
    def closing_tags(self) -> tuple[str, ...]:
        """The markup tags that close something."""

    @abstractmethod
    def region(
        self, label: str | None, grid_boxes: Sequence[Points], layout: PictureLayout | None = None
    ) -> Sequence[Piece]:
        """Return what a user points at, a phrase or boxes on the grid 0..999 or both, in the model's notation.

        layout: that of the picture before it.
        """

    @abstractmethod
    def reader(self) -> PlaceReader:
        """Return a reader at the beginning of an answer."""

    @abstractmethod
    def box_grammar(self) -> str:
        """Return a Lark grammar of one or more boxes, with or without labels; <[id]> is a control token."""

    @abstractmethod
    def to_pixels(
        self, points: Points, size: tuple[int, int], layout: PictureLayout
    ) -> tuple[tuple[float, float], ...]:
        """Scale points as the model writes them to pixels of a picture of `size` (width, height).

        layout: that with which it was encoded.
        """
