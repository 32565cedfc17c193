"""Qwen-VL, the first generation (arXiv 2308.12966): tokens, prompt formats, wordings, pictures, positions, boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.bundle.records import read_record
from qwenvl_edge.errors import BundleError, ImageError, PromptError
from qwenvl_edge.families.base import Pixels, Preprocessing
from qwenvl_edge.families.boxes import Markup, MarkupFamily
from qwenvl_edge.families.pieces import NO_LIMITS, Marked, PictureLayout, Piece, PixelLimits, Rows, Shown, Span
from qwenvl_edge.families.positions import DynamicNTK, RotaryTable, ntk_factor, stretched_base
from qwenvl_edge.families.wording import PICTURE_NAME, wording

# Special tokens in the order of their ids, which follow the BPE ranks directly.
_EXTRAS = tuple(f"<|extra_{i}|>" for i in range(205))
_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *_EXTRAS,
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)
_IMAGE_START = _SPECIALS.index("<img>")
_MOST_ADDED = 1 << 20
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_READING = {"en": "OCR with grounding:", "zh": "带坐标的文字识别:"}
_CAPTION = {"en": "Describe the picture.", "zh": "描述这张图片。"}
_RAW_CAPTION = {"en": "Describe the image in English:", "zh": "Describe the image in Chinese:"}

_NO_TOOLS = "Qwen-VL's template knows no tools; leave them out, or describe them in the message."

CHATML = "chatml"
RAW = "raw"


@dataclass(frozen=True)
class QwenVLBundleConfig:
    """The family's entry in a manifest.

    image_start_id: the id of <img>. image_tokens: feature rows of a picture. image_size: side of the square that
    pictures are resized to, in pixels. seq_length: tokens of the training's sequences, from which dynamic NTK and log-n
    attention depart. rope_base: base of the rotary frequencies. added_tokens: texts and ids of a fine-tune's tokens,
    after the published ones or in the place of extra ones.
    """

    image_start_id: int
    image_tokens: int
    image_size: int
    seq_length: int
    rope_base: float
    use_dynamic_ntk: bool
    use_logn_attn: bool
    added_tokens: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class QwenVLFamily(MarkupFamily):
    """The family for one configuration and attention heads of `head_dim` channels.

    Raises:
        BundleError: a value of the configuration is impossible.
    """

    config: QwenVLBundleConfig
    head_dim: int
    _tables: dict[float, RotaryTable] = field(default_factory=dict, repr=False, compare=False)

    name = "qwen_vl"
    markup = Markup()
    coordinate = "0|[1-9][0-9]{0,2}"
    default_system = "You are a helpful assistant."

    def __post_init__(self) -> None:
        config = self.config
        if config.image_start_id < _IMAGE_START or config.image_tokens < 1:
            raise BundleError(
                f"image_start_id {config.image_start_id} with {config.image_tokens} image tokens is no Qwen-VL "
                "vocabulary."
            )
        self._check_added()
        for name in ("image_size", "seq_length", "rope_base"):
            if not getattr(config, name) > 0:
                raise BundleError(f"family.config.{name} is {getattr(config, name)}; it must be positive.")

    def _check_added(self) -> None:
        replaceable = {self.num_ranks + _SPECIALS.index(extra) for extra in _EXTRAS}
        first = self.num_ranks + len(_SPECIALS)
        texts, ids = set(_SPECIALS) - set(_EXTRAS), set[int]()
        for text, id_ in self.config.added_tokens:
            if (id_ < first and id_ not in replaceable) or id_ in ids:
                raise BundleError(f"the added token {text!r} has the id {id_}, which belongs to another token.")
            if text in texts or not text:
                raise BundleError(f"the added token {text!r} with the id {id_} exists already under another id.")
            texts.add(text)
            ids.add(id_)
        if ids and max(ids) > first + _MOST_ADDED:
            raise BundleError(f"the added token with the id {max(ids)} lies far beyond the {first} known ones.")

    @classmethod
    def from_config(cls, raw: Mapping[str, Any], head_dim: int) -> QwenVLFamily:
        """Read the configuration in a manifest. Raises BundleError, which says which key is wrong and how."""
        return cls(read_record(QwenVLBundleConfig, raw, "family.config", BundleError), head_dim)

    @property
    def num_ranks(self) -> int:
        """Number of BPE ranks, below the special tokens."""
        return self.config.image_start_id - _IMAGE_START

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """See Family.special_tokens."""
        table = {self.num_ranks + i: token for i, token in enumerate(_SPECIALS)}
        table |= {id_: text for text, id_ in self.config.added_tokens}
        # Ids between added ones belong to no token; they get a name, so that every id below the last can be decoded.
        ids = range(self.num_ranks, max(table) + 1)
        return {table.get(id_, f"<|unused_{id_}|>"): id_ for id_ in ids}

    @property
    def decodable(self) -> int:
        """See Family.decodable."""
        return self.num_ranks + len(self.special_tokens)

    @property
    def end_of_text(self) -> int:
        """See Family.end_of_text."""
        return self.special_tokens["<|endoftext|>"]

    @property
    def turn_start(self) -> int:
        """The id that opens a ChatML turn."""
        return self.special_tokens["<|im_start|>"]

    @property
    def turn_end(self) -> int:
        """The id that closes a ChatML turn."""
        return self.special_tokens["<|im_end|>"]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """See Family.end_ids."""
        return self.turn_end, self.end_of_text

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Every special token but the grounding markup and those that a fine-tune added."""
        shown = self.markup_tags
        return frozenset(id_ for token, id_ in self.special_tokens.items() if token not in shown)

    def read_vocabulary(self, file: Path) -> bytes:
        """See Family.read_vocabulary; the file is a qwen.tiktoken, which has that form."""
        try:
            return file.read_bytes()
        except OSError as error:
            raise BundleError(f'cannot read "{file}": {error.strerror}.') from None

    def check_vocabulary(self, ranks: int, vocab_size: int) -> None:
        """See Family.check_vocabulary."""
        if ranks != self.num_ranks:
            raise BundleError(
                f"the tokenizer file has {ranks} ranks, but image_start_id {self.config.image_start_id} belongs to "
                f"{self.num_ranks}; the file and the model do not go together."
            )
        if vocab_size < self.decodable:
            raise BundleError(f"the model has {vocab_size} vocabulary rows, fewer than its {self.decodable} tokens.")

    def can_chat(self, chat_format: str) -> bool:
        """See Family.can_chat."""
        return chat_format == CHATML

    def stop_sequences(self, chat_format: str, encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
        """See Family.stop_sequences."""
        if chat_format == CHATML:
            return (self.turn_end,), (self.turn_start,), (self.end_of_text,)
        if chat_format == RAW:
            return tuple(encode("Human:")), (self.end_of_text,)
        raise BundleError(f"the bundle's chat format is {chat_format!r}; this version knows 'chatml' and 'raw'.")

    def tool_result(self, text: str) -> list[Piece]:
        """See Family.tool_result."""
        raise PromptError(_NO_TOOLS)

    def tool_grammar(self, source: str) -> str:
        """See Family.tool_grammar."""
        raise PromptError(_NO_TOOLS)

    def system_turn(self, text: str | None, tools: Sequence[str] = ()) -> list[Piece]:
        """See Family.system_turn."""
        if tools:
            raise PromptError(_NO_TOOLS)
        return self._turn("system", [text or ""])

    def past_turn(self, user: Sequence[Piece], answer: str | None) -> list[Piece]:
        """See Family.past_turn."""
        asked: list[Piece] = ["\n", *self._turn("user", user), "\n"] if user else ["\n"]
        return asked if answer is None else [*asked, *self._turn("assistant", [Marked(answer)])]

    def question(self, user: Sequence[Piece]) -> list[Piece]:
        """See Family.question."""
        return ["\n", *self._turn("user", user), "\n", self.turn_start, "assistant", "\n"]

    def _turn(self, role: str, content: Sequence[Piece]) -> list[Piece]:
        # Role, newline and content are pieces of their own: BPE must not merge across them.
        return [self.turn_start, role, "\n", *content, self.turn_end]

    @property
    def numbers_pictures(self) -> bool:
        """See Family.numbers_pictures."""
        return True

    def picture(self, shown: Shown) -> list[Piece]:
        """See Family.picture."""
        tokens, layout = self.special_tokens, shown.layout
        rows = Rows(shown.picture, layout, 0, layout.tokens, tokens["<imgpad>"])
        return [f"Picture {shown.number}: ", tokens["<img>"], rows, tokens["</img>"], "\n"]

    def named_pictures(self, text: str) -> list[int]:
        """See Family.named_pictures; "Picture 2" and "图片2" name one."""
        return [int(max(groups)) for groups in PICTURE_NAME.findall(text)]

    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """See Family.grounding_items; the form of the training and of the RefCOCO figures."""
        return [{"ref": phrase}, {"text": self.markup.box[0]}]

    @property
    def grounds_in_chat(self) -> bool:
        """See Family.grounds_in_chat."""
        return False

    def pointing_prompt(self, phrase: str) -> str:
        """See Family.pointing_prompt."""
        raise PromptError("Qwen-VL writes no points; ask for boxes with ground().")

    def reading_prompt(self, language: str) -> str:
        """See Family.reading_prompt."""
        return wording(_READING, language)

    def caption_prompt(self, language: str, *, chat: bool) -> str:
        """See Family.caption_prompt."""
        return wording(_CAPTION if chat else _RAW_CAPTION, language)

    @property
    def preprocessing(self) -> Preprocessing:
        """See Family.preprocessing; pictures become squares, their aspect ratio is not kept."""
        return Preprocessing(self.config.image_size, MEAN, STD)

    def seen_size(self, layout: PictureLayout) -> tuple[int, int]:
        """See Family.seen_size."""
        return self.config.image_size, self.config.image_size

    def layout(self, size: tuple[int, int], limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """See Family.layout; the resampler's queries are one row for pictures of any size."""
        if limits != NO_LIMITS:
            raise PromptError(
                f"Qwen-VL resizes every picture to {self.config.image_size}x{self.config.image_size} pixels; leave "
                "min_pixels and max_pixels out."
            )
        return PictureLayout(self.config.image_tokens, (1, 1, self.config.image_tokens))

    def clip_layout(self, size: tuple[int, int], times: Sequence[float], limits: PixelLimits) -> PictureLayout:
        """See Family.clip_layout."""
        raise ImageError("Qwen-VL takes no clips; give some of their frames as pictures.")

    def largest_layout(self, limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """See Family.largest_layout."""
        return self.layout((1, 1), limits)

    def vision_inputs(self, frames: Sequence[Pixels], layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """See Family.vision_inputs."""
        side = self.config.image_size
        values = [_core.pixel_values(pixels, (side, side), MEAN, STD, "rgb") for pixels in frames]
        return {PIXEL_VALUES: np.stack(values)}

    def vision_tables(self, layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """See Family.vision_tables; there are none."""
        return {}

    @property
    def trained_length(self) -> int:
        """See Family.trained_length."""
        return self.config.seq_length

    def positions(self, length: int, spans: Sequence[Span] = ()) -> DynamicNTK:
        """See Family.positions; pictures count like words."""
        config = self.config
        factor = ntk_factor(length, config.seq_length) if config.use_dynamic_ntk else 1.0
        if factor not in self._tables:
            base = stretched_base(config.rope_base, factor, self.head_dim)
            self._tables[factor] = RotaryTable(self.head_dim, base)
        logn = config.seq_length if config.use_logn_attn else None
        return DynamicNTK(length, factor, self._tables[factor], logn)

    @property
    def markup_tags(self) -> tuple[str, ...]:
        """See Family.markup_tags; a fine-tune's own tokens are written in the same way."""
        return (*self.markup.tags, *(text for text, _ in self.config.added_tokens))
