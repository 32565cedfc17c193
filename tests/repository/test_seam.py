"""The seam: what one family decides is known to families/ alone, in the runtime and in the exporter."""

import re

from support.paths import ROOT

WORDS = re.compile(r"image_tokens|ntk|logn|n_queries|transformer\.h|qwen\.tiktoken|im_start|448")
FOLDERS = (ROOT / "runtime", ROOT / "export")
# A reply's public count of picture tokens, and the message of the vocabulary's reader about its file.
ELSEWHERE = {
    "replies/reply.py": {"image_tokens"},
    "decoding/decode_loop.py": {"image_tokens"},
    "cli/commands/bench.py": {"image_tokens"},
    "inputs/tokenizer.py": {"qwen.tiktoken"},
}


def test_words_of_a_family_stand_in_families_alone():
    inside, outside = set(), {}
    for folder in FOLDERS:
        for path in folder.rglob("*.py"):
            found = set(WORDS.findall(path.read_text(encoding="utf-8")))
            if "families" in path.parts:
                inside |= found
            elif found:
                outside[path.relative_to(folder / path.relative_to(folder).parts[0]).as_posix()] = found
    assert outside == ELSEWHERE
    assert inside >= {"ntk", "logn", "n_queries", "transformer.h", "im_start"}  # else the search finds nothing
