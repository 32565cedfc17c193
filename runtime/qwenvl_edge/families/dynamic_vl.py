"""Common parts of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: vocabulary, chat template, pictures of any size, M-RoPE.

A family of this kind is a subclass that says how it differs: in clips, in the vision graph's tables, in the notation of
places, and in its wordings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.bundle.contract import PATCH_COS, PATCH_SIN, PIXEL_VALUES
from qwenvl_edge.errors import BundleError, PromptError
from qwenvl_edge.families.base import Family, Patches, Pixels, Preprocessing
from qwenvl_edge.families.dynamic_config import DynamicVLConfig
from qwenvl_edge.families.mrope import MRope, contiguous_axes, interleaved_axes, positions_of
from qwenvl_edge.families.picture_sizes import Bounds, picture_size
from qwenvl_edge.families.pieces import NO_LIMITS, Marked, PictureLayout, Piece, PixelLimits, Rows, Shown, Span, joined
from qwenvl_edge.families.positions import RotaryTable
from qwenvl_edge.families.tools import CALL_TAGS, FORM, HEAD, HOW, RESULT_TAGS, tool_grammar
from qwenvl_edge.families.vision_tables import rotary_tables
from qwenvl_edge.families.vocabulary import read_byte_vocabulary
from qwenvl_edge.families.wording import PICTURE_NAME, wording

CHATML = "chatml"
_NEEDED = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_THINK = "<think>"


class DynamicVLFamily(Family):
    """The family for one configuration and attention heads of `head_dim` channels.

    name: in manifests. title: for people. caption, reading: wordings by language.

    Raises:
        BundleError: the configuration lacks a token, or its sections do not fit the head.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    caption: ClassVar[Mapping[str, str]] = {"en": "Describe this image.", "zh": "描述这张图片。"}
    reading: ClassVar[Mapping[str, str]]
    grounds_in_chat = True
    has_clips = True

    def __init__(self, config: DynamicVLConfig, head_dim: int) -> None:
        self.config = config
        needed = (*_NEEDED, _THINK, "</think>") if config.thinking else (*_NEEDED, *self.markup_tags)
        if missing := [token for token in needed if token not in config.special_tokens]:
            raise BundleError(f"family.config.special_tokens has no {missing[0]}, which {self.title} needs.")
        if sum(config.mrope_section) * 2 != head_dim:
            raise BundleError(
                f"family.config.mrope_section is {list(config.mrope_section)}; the sections must add up to half the "
                f"head size, {head_dim // 2}."
            )
        self.thinking_end = config.special_tokens["</think>"] if config.thinking else None
        self.has_tools = config.tools
        self._axes = (interleaved_axes if config.mrope_interleaved else contiguous_axes)(config.mrope_section)
        self._table = RotaryTable(head_dim, config.rope_theta)
        self._bounds = Bounds(config.factor, config.min_pixels, config.max_pixels)

    @classmethod
    def from_config(cls, raw: Mapping[str, Any], head_dim: int) -> DynamicVLFamily:
        """Read the configuration in a manifest. Raises BundleError, which says which key is wrong and how."""
        return cls(DynamicVLConfig.read(raw), head_dim)

    # Vocabulary

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """See Family.special_tokens."""
        return self.config.special_tokens

    @property
    def decodable(self) -> int:
        """See Family.decodable."""
        return self.config.used_rows

    @property
    def end_of_text(self) -> int:
        """See Family.end_of_text."""
        return self.special_tokens["<|endoftext|>"]

    @property
    def turn_start(self) -> int:
        """The id that opens a turn."""
        return self.special_tokens["<|im_start|>"]

    @property
    def turn_end(self) -> int:
        """The id that closes a turn."""
        return self.special_tokens["<|im_end|>"]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """See Family.end_ids."""
        return self.turn_end, self.end_of_text

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Every special token but the grounding markup and those that the checkpoint shows."""
        shown = {*self.markup_tags, *self.config.not_special}
        return frozenset(id_ for token, id_ in self.special_tokens.items() if token not in shown)

    def read_vocabulary(self, file: Path) -> bytes:
        """See Family.read_vocabulary; the file is a vocab.json."""
        return read_byte_vocabulary(file, self.special_tokens)

    def check_vocabulary(self, ranks: int, vocab_size: int) -> None:
        """See Family.check_vocabulary."""
        first = min(self.special_tokens.values())
        if ranks > first:
            raise BundleError(
                f"the tokenizer file has {ranks} tokens, but the first special token has the id {first}; the file and "
                "the model do not go together."
            )
        if vocab_size < self.decodable:
            raise BundleError(f"the model has {vocab_size} vocabulary rows, fewer than its {self.decodable} tokens.")

    # Prompts

    def can_chat(self, chat_format: str) -> bool:
        """See Family.can_chat."""
        return chat_format == CHATML

    def stop_sequences(self, chat_format: str, encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
        """See Family.stop_sequences."""
        if chat_format != CHATML:
            raise BundleError(f"the bundle's chat format is {chat_format!r}; {self.title} has {CHATML!r}.")
        return (self.turn_end,), (self.turn_start,), (self.end_of_text,)

    def system_turn(self, text: str | None, tools: Sequence[str] = ()) -> list[Piece]:
        """See Family.system_turn."""
        if not tools:
            return [] if text is None else self._turn("system", [text])
        self._check_tools()
        opening, closing = (self.special_tokens[tag] for tag in CALL_TAGS)
        lines = "".join(f"\n{tool}" for tool in tools)
        head = HEAD if text is None else f"{text}\n\n{HEAD}"
        return self._turn("system", [f"{head}{lines}{HOW}", opening, closing, " XML tags:\n", opening, FORM, closing])

    def tool_result(self, text: str) -> list[Piece]:
        """See Family.tool_result."""
        self._check_tools()
        opening, closing = (self.special_tokens.get(tag, tag) for tag in RESULT_TAGS)
        return joined([opening, f"\n{text}\n", closing])

    def tool_grammar(self, source: str) -> str:
        """See Family.tool_grammar."""
        self._check_tools()
        return tool_grammar(source, self.special_tokens)

    def _check_tools(self) -> None:
        if not self.config.tools:
            raise PromptError(
                f"{self.title}'s template knows no tools; leave them out, or describe them in the message."
            )

    def past_turn(self, user: Sequence[Piece], answer: str | None) -> list[Piece]:
        """See Family.past_turn."""
        asked = self._turn("user", user) if user else []
        return asked if answer is None else [*asked, *self._turn("assistant", [Marked(answer)])]

    def question(self, user: Sequence[Piece]) -> list[Piece]:
        """See Family.question."""
        opening: list[Piece] = [self.turn_start, "assistant\n"]
        if self.config.thinking:
            opening += [self.special_tokens[_THINK], "\n"]
        return [*self._turn("user", user), *opening]

    def _turn(self, role: str, content: Sequence[Piece]) -> list[Piece]:
        """Role and words are encoded as one text, as in the published tokenization; the newline after it is another."""
        return [self.turn_start, *joined([f"{role}\n", *content]), self.turn_end, "\n"]

    def picture(self, shown: Shown) -> list[Piece]:
        """See Family.picture."""
        clip = bool(shown.times)
        number = f"{'Video' if clip else 'Picture'} {shown.overall}: " if shown.overall else ""
        return joined([number, *(self._clip(shown) if clip else self._visual(shown, "<|image_pad|>"))])

    def _visual(self, shown: Shown, pad: str, *, first: int = 0, count: int | None = None) -> list[Piece]:
        tokens, layout = self.special_tokens, shown.layout
        rows = Rows(shown.picture, layout, first, layout.tokens if count is None else count, tokens[pad])
        return [tokens["<|vision_start|>"], rows, tokens["<|vision_end|>"]]

    def _clip(self, shown: Shown) -> list[Piece]:
        return self._visual(shown, "<|video_pad|>")

    def named_pictures(self, text: str) -> list[int]:
        """See Family.named_pictures; "Picture 2" and "图片2" name one."""
        return [int(max(groups)) for groups in PICTURE_NAME.findall(text)]

    def reading_prompt(self, language: str) -> str:
        """See Family.reading_prompt."""
        return wording(self.reading, language)

    def caption_prompt(self, language: str, *, chat: bool) -> str:
        """See Family.caption_prompt."""
        return wording(self.caption, language)

    # Pictures and positions

    @property
    def preprocessing(self) -> Preprocessing:
        """See Family.preprocessing."""
        config = self.config
        patches = Patches(config.patch_size, config.merge_size, config.temporal_patch_size)
        return Preprocessing(0, config.image_mean, config.image_std, patches)

    def seen_size(self, layout: PictureLayout) -> tuple[int, int]:
        """See Family.seen_size."""
        _, rows, columns = layout.grid
        return columns * self.config.factor, rows * self.config.factor

    def layout(self, size: tuple[int, int], limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """See Family.layout."""
        return self._laid_out(1, *picture_size(*size, self._bounds.within(limits)))

    def clip_layout(self, size: tuple[int, int], times: Sequence[float], limits: PixelLimits) -> PictureLayout:
        """See Family.clip_layout."""
        config = self.config
        bounds = Bounds(config.factor, config.video_min_pixels, config.video_max_pixels).within(limits)
        frames = -(-len(times) // config.temporal_patch_size)
        width, height = self._frame_size(size, len(times), bounds)
        return self._laid_out(frames, width, height, self._seconds(times))

    def _laid_out(self, frames: int, width: int, height: int, seconds: float = 0.0) -> PictureLayout:
        grid = frames, height // self.config.factor, width // self.config.factor
        return PictureLayout(grid[0] * grid[1] * grid[2], grid, seconds)

    @abstractmethod
    def _frame_size(self, size: tuple[int, int], frames: int, bounds: Bounds) -> tuple[int, int]:
        """Return the (width, height) that the frames of a clip are resized to."""

    def _seconds(self, times: Sequence[float]) -> float:
        """Return the seconds between rows of tokens as far as positions depend on them."""
        return 0.0

    @abstractmethod
    def _time_steps(self, layout: PictureLayout) -> Sequence[int]:
        """Return the time position of each frame of a grid, counted from the first."""

    def largest_layout(self, limits: PixelLimits = NO_LIMITS) -> PictureLayout:
        """See Family.largest_layout."""
        tokens = self._bounds.within(limits).most_tokens
        return PictureLayout(tokens, (1, 1, tokens))

    def vision_inputs(self, frames: Sequence[Pixels], layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """See Family.vision_inputs."""
        return {PIXEL_VALUES: self._patches(frames, *self._grid(layout))} | self.vision_tables(layout)

    def vision_tables(self, layout: PictureLayout) -> dict[str, npt.NDArray[Any]]:
        """See Family.vision_tables."""
        _, rows, columns = self._grid(layout)
        cos, sin = rotary_tables(rows, columns, self.config.merge_size, self.config.vision_head_dim)
        return {PATCH_COS: cos, PATCH_SIN: sin} | self._tables(rows, columns)

    def _grid(self, layout: PictureLayout) -> tuple[int, int, int]:
        """Return the patches of a layout: in time, rows, columns."""
        frames, rows, columns = layout.grid
        return frames, rows * self.config.merge_size, columns * self.config.merge_size

    def _tables(self, rows: int, columns: int) -> dict[str, npt.NDArray[Any]]:
        """Return the vision graph's further tables for a grid of patches."""
        return {}

    def _patches(self, frames: Sequence[Pixels], count: int, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Resize and cut up frames: [count, P, C] float32; the last frame fills up the last patch in time."""
        config = self.config
        depth, side = config.temporal_patch_size, config.patch_size
        patches = np.empty((count, rows * columns, 3 * depth * side**2), np.float32)
        how = config.image_mean, config.image_std, "rgb"
        for number, pixels in enumerate(frames):
            part, time = divmod(number, depth)
            end = depth if number == len(frames) - 1 else time + 1
            grid = (rows, columns), side, config.merge_size, depth, (time, end)
            _core.write_patch_values(pixels, patches[part], *grid, *how)
        return patches

    @property
    def trained_length(self) -> int:
        """See Family.trained_length."""
        return self.config.trained_length

    def positions(self, length: int, spans: Sequence[Span] = ()) -> MRope:
        """See Family.positions."""
        return MRope(positions_of(length, spans, self._time_steps), self._axes, self._table)
