"""The nano model's qwen.tiktoken: byte-pair merges learnt from the generator's own questions and answers.

What stands on signs is left out, so that words in pictures are read letter by letter and not as known wholes.
"""

from __future__ import annotations

import base64
import itertools
import random
import re
from collections import Counter
from pathlib import Path

import tiktoken

from tools.nano.phrases import COLOUR_ZH, KIND_ZH
from tools.nano.scenes import COLOURS, KINDS, WORDS, change_scene, sample_scene
from tools.nano.several_tasks import several_dialogues
from tools.nano.tasks import Dialogue, single_dialogues

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKUP = re.compile(r"(</?(?:ref|box|quad)>)")
SYSTEM = "You are a helpful assistant."
WORDS_ZH = (  # Chinese is cut into these before merges are learnt; a run of characters has no spaces to cut at
    *COLOUR_ZH.values(),
    *KIND_ZH.values(),
    *"东西 哪里 找出 指出 所有 什么 颜色 物体 几个 图中 图片 没有 牌子".split(),
    *"写着 左边 右边 还是 变成了 变化 不同 不见了 多了".split(),
    *"描述 这张 哪张 两张 一样 这个 坐标 文字 识别 读出".split(),
)
ZH = re.compile("|".join((*WORDS_ZH, "[\u4e00-\u9fff]")))
COMMON = (  # words that users are likely to write beside the generator's own
    "the a an is are was of to in on at and or not it this that what where which who how many much there here can you "
    "please show me tell find see look left right top bottom big small large little near next behind front picture "
    "image photo text word number read say says yes no"
).split()


def corpus(seed: int = 0, scenes: int = 4000) -> list[str]:
    """Texts of the dialogues of many scenes, and every name once."""
    rng = random.Random(seed)
    dialogues: list[Dialogue] = []
    for index in range(scenes):
        scene = sample_scene(index)
        dialogues += single_dialogues(rng, scene, 6)
        changed, change = change_scene(scene, index)
        dialogues += several_dialogues(rng, [scene, changed], change, 3)
    texts = [text for d in dialogues for turn in d.turns for text in (turn.question, turn.answer)]
    texts += [SYSTEM, "system", "user", "assistant", "Picture 1: ", "Picture 2: "] * scenes
    texts += [w for w in (*COLOURS, *KINDS, *COLOUR_ZH.values(), *KIND_ZH.values()) for _ in range(20)]
    texts += [form for w in COMMON for form in (w, " " + w) for _ in range(20)]
    signs = re.compile("|".join(rf"\b{word}\b" for word in WORDS))
    return [signs.sub(" ", piece) for text in texts for piece in MARKUP.split(text) if not MARKUP.fullmatch(piece)]


def learn(texts: list[str], ranks: int, words: re.Pattern[str] = ZH) -> list[bytes]:
    """Byte-pair merges by frequency over the pieces that the published pattern cuts; at most `ranks` tokens.

    words: Chinese ones, which are cut out before.
    """
    import regex

    cut = re.compile(f"({words.pattern})")
    counted = Counter(piece for text, n in Counter(texts).items() for piece in regex.findall(PATTERN, text) * n)
    pieces: Counter[bytes] = Counter()
    for piece, n in counted.items():
        for part in filter(None, cut.split(piece)):
            pieces[part.encode()] += n
    parts = {tuple(bytes([b]) for b in piece): n for piece, n in pieces.items()}
    tokens = [bytes([b]) for b in range(256)]
    known = set(tokens)
    while len(tokens) < ranks:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in parts.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        (left, right), n = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if n < 15:
            break
        if left + right not in known:  # other merges may have made it before
            tokens.append(left + right)
            known.add(left + right)
        parts = {_merge(word, left, right): n for word, n in parts.items()}
    return tokens


def _merge(word: tuple[bytes, ...], left: bytes, right: bytes) -> tuple[bytes, ...]:
    out: list[bytes] = []
    for token in word:
        if out and out[-1] == left and token == right:
            out[-1] = left + right
        else:
            out.append(token)
    return tuple(out)


def write(path: Path, ranks: int = 1024) -> int:
    """Write qwen.tiktoken and return the number of its ranks."""
    tokens = learn(corpus(), ranks)
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return len(tokens)


class Codec:
    """Text with markup -> ids, for training (tiktoken's encoder with the published pattern)."""

    def __init__(self, path: Path):
        lines = [line.split() for line in path.read_text().splitlines()]
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self.ranks = len(ranks)
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
        names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
        self.special = {name: self.ranks + i for i, name in enumerate(names)}
        self._encoding = tiktoken.Encoding("nano", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special)

    def encode(self, text: str) -> list[int]:
        """Ids; special tokens written in `text` become their ids."""
        return self._encoding.encode(text, allowed_special="all")

    def decode(self, ids: list[int]) -> str:
        """Text with special tokens as they are written."""
        return self._encoding.decode(ids)
