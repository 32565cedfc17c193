"""Qwen-VL v1 (arXiv 2308.12966): special tokens, prompt formats, stop words, picture wording, preprocessing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qwenvl_edge.errors import BundleError, PromptError
from qwenvl_edge.families.markup import Markup
from qwenvl_edge.inputs.pictures import Preprocessing

# Special tokens in the order of their ids, which follow the BPE ranks directly.
_EXTRAS = tuple(f"<|extra_{i}|>" for i in range(205))
_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *_EXTRAS,
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)
_IMAGE_START = _SPECIALS.index("<img>")
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PICTURE_NAME = re.compile(r"(?:[Pp]icture|图片?)\s*(\d{1,2})|第\s*(\d{1,2})\s*[张幅]")

_READING = {"en": "OCR with grounding:", "zh": "带坐标的文字识别:"}
_CAPTION = {"en": "Describe the picture.", "zh": "描述这张图片。"}
_RAW_CAPTION = {"en": "Describe the image in English:", "zh": "Describe the image in Chinese:"}

CHATML = "chatml"
RAW = "raw"


@dataclass(frozen=True)
class QwenVL:
    """The family for a vocabulary of `num_ranks` BPE tokens and `image_tokens` feature rows a picture."""

    num_ranks: int
    image_tokens: int

    markup = Markup()
    default_system = "You are a helpful assistant."
    user_role = "user"
    assistant_role = "assistant"
    system_role = "system"

    @classmethod
    def from_image_start(cls, image_start_id: int, image_tokens: int) -> QwenVL:
        """Derive the family from the id of <img>, which a checkpoint's configuration states."""
        if image_start_id < _IMAGE_START or image_tokens < 1:
            raise BundleError(
                f"image_start_id {image_start_id} with {image_tokens} image tokens is no Qwen-VL vocabulary."
            )
        return cls(image_start_id - _IMAGE_START, image_tokens)

    def check_vocabulary(self, tokenizer_file: Path, vocab_size: int) -> None:
        """Raise BundleError unless the tokenizer file's ranks and the model's rows agree with the special tokens."""
        num_ranks = _count_ranks(tokenizer_file)
        if num_ranks != self.num_ranks:
            raise BundleError(
                f"the tokenizer file has {num_ranks} ranks, but image_start_id {self.image_start_id} belongs to "
                f"{self.num_ranks}; the file and the model do not go together."
            )
        if vocab_size < self.decodable:
            raise BundleError(f"the model has {vocab_size} vocabulary rows, fewer than its {self.decodable} tokens.")

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Special token -> id."""
        return {token: self.num_ranks + i for i, token in enumerate(_SPECIALS)}

    @property
    def decodable(self) -> int:
        """How many ids can be decoded; logits from there on belong to unused rows."""
        return self.num_ranks + len(_SPECIALS)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
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
    def image_start_id(self) -> int:
        """The id before a picture's features."""
        return self.special_tokens["<img>"]

    @property
    def image_span(self) -> list[int]:
        """The ids of a picture: start, one placeholder per feature row, end."""
        tokens = self.special_tokens
        return [tokens["<img>"], *[tokens["<imgpad>"]] * self.image_tokens, tokens["</img>"]]

    def preprocessing(self, image_size: int) -> Preprocessing:
        """Return the picture preprocessing for a square input of `image_size` pixels."""
        return Preprocessing(image_size, _MEAN, _STD)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Ids that never show in an answer: every special token but the grounding markup."""
        return frozenset(id_ for token, id_ in self.special_tokens.items() if token not in self.markup.tags)

    def picture_caption(self, number: int) -> tuple[str, str]:
        """Return the words before and after the span of a turn's picture `number` (from 1)."""
        return f"Picture {number}: ", "\n"

    def named_pictures(self, text: str) -> list[int]:
        """Return the numbers of the pictures that `text` names ("Picture 2", "图片2"), in order."""
        return [int(max(groups)) for groups in _PICTURE_NAME.findall(text)]

    def grounding_items(self, phrase: str) -> list[dict[str, str]]:
        """Items whose completion is the boxes of `phrase`: the form of its training and of the RefCOCO figures."""
        return [{"ref": phrase}, {"text": f"<{self.markup.box}>"}]

    def reading_prompt(self, language: str) -> str:
        """Words that ask for the text in a picture with its places. Raises PromptError for an unknown language."""
        return _wording(_READING, language)

    def caption_prompt(self, language: str, *, chat: bool) -> str:
        """Words that ask for a description. Raises PromptError for an unknown language."""
        return _wording(_CAPTION if chat else _RAW_CAPTION, language)

    def can_chat(self, chat_format: str) -> bool:
        """Whether a model with this chat format was trained on conversations."""
        return chat_format == CHATML

    def stop_sequences(self, chat_format: str, encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
        """Return the id sequences that end an answer. Raises BundleError for an unknown format."""
        if chat_format == CHATML:
            return (self.turn_end,), (self.turn_start,), (self.end_of_text,)
        if chat_format == RAW:
            return tuple(encode("Human:")), (self.end_of_text,)
        raise BundleError(f"the bundle's chat format is {chat_format!r}; this version knows 'chatml' and 'raw'.")


def _wording(wordings: Mapping[str, str], language: str) -> str:
    if language not in wordings:
        raise PromptError(f"the language is {language!r}; there are {', '.join(wordings)}.")
    return wordings[language]


def _count_ranks(tokenizer_file: Path) -> int:
    """Return the number of BPE ranks (non-empty lines) of a qwen.tiktoken file."""
    try:
        with tokenizer_file.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise BundleError(f'cannot read "{tokenizer_file}": {error.strerror}.') from None
