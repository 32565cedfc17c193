"""The seam: what one model family decides, and everything else asks it for.

A new family is a new module beside qwen_vl.py and one line in `families.create_family`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Points: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a picture to pixel_values: side length in pixels, per-channel mean and standard deviation."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class PictureLayout:
    """The room that a picture takes in a prompt: `tokens` feature rows, which lie as `grid` (frames, rows, columns)."""

    tokens: int
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Span:
    """Feature rows in a prompt: `length` ids from `start` on stand for picture number `picture` of the prompt, from 0.

    A clip may have several spans with one number.
    """

    start: int
    length: int
    picture: int
    layout: PictureLayout


@dataclass(frozen=True)
class Marked:
    """Words whose grounding markup becomes control tokens: those that a model wrote."""

    text: str


@dataclass(frozen=True)
class Slot:
    """The place of picture number `picture` of a turn, from 0."""

    picture: int
    layout: PictureLayout


Piece: TypeAlias = "str | Marked | int | Slot"
"""Part of a turn: words (encoded apart from the piece before, control tokens in them stay text), the id of a control
token, or a picture's place."""


@dataclass(frozen=True)
class PictureIds:
    """Ids of a picture: those before its feature rows, one placeholder per row, those after."""

    before: tuple[int, ...]
    rows: tuple[int, ...]
    after: tuple[int, ...]


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


@dataclass(frozen=True)
class GridShape:
    """A box (2 points) or quad (4) as a model writes it; `offset` is its place in the clean text, `source` its markup.

    ref: number of the label that it follows, in the reader's `labels`; None if it has none.
    """

    label: str
    points: tuple[tuple[int, int], ...]
    offset: int
    source: str
    ref: int | None = None


class PlaceReader(ABC):
    """Splits an answer that arrives in pieces into clean text and the places that it names.

    shapes: boxes and quads so far. labels: the marked phrases so far. malformed: markup that names no place.
    """

    shapes: list[GridShape]
    labels: list[str]
    malformed: list[str]

    @abstractmethod
    def feed(self, text: str) -> str:
        """Read a piece of the answer; return the clean text that is now certain."""

    @abstractmethod
    def mark(self, label: str) -> int:
        """Take a marked phrase as it stands, whatever it looks like; return its length in the clean text."""

    @abstractmethod
    def finish(self) -> str:
        """End the answer; return the rest of the clean text. Markup still open is recorded as malformed."""


class Family(ABC):
    """One model family with the configuration of one bundle. Immutable to its users, and safe to share by threads.

    default_system: the system text of a conversation that gives none.
    """

    default_system: str

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
    def system_turn(self, text: str) -> Sequence[Piece]:
        """Return the pieces that open a conversation."""

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
    def picture_caption(self, number: int) -> tuple[str, str]:
        """Return the words before and after the ids of a turn's picture `number`, from 1."""

    @abstractmethod
    def picture_ids(self, layout: PictureLayout) -> PictureIds:
        """Return the ids of a picture."""

    @abstractmethod
    def named_pictures(self, text: str) -> list[int]:
        """Return the numbers of the pictures that `text` names ("Picture 2"), in order."""

    # Tasks

    @abstractmethod
    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """Return the items of a message whose completion is the boxes of `phrase`."""

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
    def layout(self, size: tuple[int, int]) -> PictureLayout:
        """Return the room that a picture of `size` (width, height) takes in a prompt."""

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
    def region(self, label: str | None, grid_boxes: Sequence[Points]) -> Sequence[Piece]:
        """Return what a user points at, a phrase or boxes on the grid 0..999 or both, in the model's notation."""

    @abstractmethod
    def reader(self) -> PlaceReader:
        """Return a reader at the beginning of an answer."""

    @abstractmethod
    def box_grammar(self) -> str:
        """Return a Lark grammar of one or more boxes, with or without labels; <[id]> is a control token."""

    @abstractmethod
    def to_pixels(self, points: Points, size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
        """Scale points as the model writes them to pixels of a picture of `size` (width, height)."""
