"""The vocabulary of the conversation models: byte-pair merges learnt from their own questions and answers.

What stands on signs is left out, so that words in pictures are read letter by letter and not as known wholes.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

from qwenvl_edge.families.vocabulary import byte_alphabet
from tools.nano.scenes import WORDS
from tools.nano.talk.chatting import converse
from tools.nano.talk.forms import JsonForm, TagForm
from tools.nano.talk.kinds import COLOUR_ZH, COLOURS, KINDS
from tools.nano.talk.questions import wordings
from tools.nano.talk.scenes import Stock, change_scene, sample_scene
from tools.nano.vocabulary import COMMON, SYSTEM, WORDS_ZH, learn

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
SHOWN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_WORDS_ZH = (
    *(kind.chinese for kind in KINDS.values()),
    *COLOUR_ZH.values(),
    *WORDS_ZH,
    *"图片 没有 看到 这张 哪里 颜色 多少 更大 小模型 看不出来 不客气 你好 再见 谢谢".split(),
)
ZH = re.compile("|".join((*sorted(set(_WORDS_ZH), key=len, reverse=True), "[\u4e00-\u9fff]")))


def corpus(stock: Stock, seed: int = 0, scenes: int = 3000) -> list[str]:
    """Texts of the conversations about many scenes, and every name and wording several times."""
    rng = random.Random(seed)
    texts: list[str] = []
    forms = JsonForm(), TagForm()
    for index in range(scenes):
        scene = sample_scene(stock, index)
        later, change = change_scene(stock, scene, index)
        talks = [converse(rng, [scene]), converse(rng, [scene, later], change), converse(rng, [])]
        for turn in (turn for talk in talks if talk for turn in talk.turns):
            texts += [turn.question, *(form.write(turn.answer).text for form in forms)]
    texts += [SYSTEM, "system", "user", "assistant", "Picture 1: ", "Picture 2: "] * scenes
    texts += [text for trained, _ in wordings().values() for text in trained for _ in range(20)]
    names = [w for kind in KINDS.values() for w in (kind.name, kind.plural, kind.chinese)]
    words = [*names, *COLOURS, *COLOUR_ZH.values(), *COMMON]
    texts += [form for word in words for form in (word, f" {word}") for _ in range(60)]
    texts += [colour.capitalize() for colour in COLOURS for _ in range(60)]
    hidden = re.compile("|".join(rf"\b{word}\b" for word in WORDS) + r"|</?(?:ref|box)>|\{\w+\}")
    return [piece for text in texts for piece in hidden.split(text)]


def tokens(stock: Stock, ranks: int = 1664, scenes: int = 2000) -> list[bytes]:
    """At most `ranks` tokens, the 256 bytes first."""
    return learn(corpus(stock, scenes=scenes), ranks, ZH)


def write_vocab_json(found: list[bytes], folder: Path) -> dict[str, int]:
    """Write vocab.json, merges.txt and tokenizer_config.json; return the ids of the special tokens."""
    characters = {byte: char for char, byte in byte_alphabet().items()}
    found = [bytes([byte]) for byte in byte_alphabet().values()] + found[256:]

    def written(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    ranks = {token: rank for rank, token in enumerate(found)}
    merges = [" ".join(map(written, _parts(token, ranks))) for token in found[256:]]
    special = {token: len(found) + number for number, token in enumerate(SPECIAL)}
    added = {str(id_): {"content": token, "special": token not in SHOWN} for token, id_ in special.items()}
    files = {
        "vocab.json": json.dumps({written(token): rank for token, rank in ranks.items()}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": added, "tokenizer_class": "Qwen2Tokenizer"}),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return special


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that make one: merge by rank until two are left."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
