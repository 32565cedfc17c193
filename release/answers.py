"""Prints greedy answers as JSON, equal on every machine: python release/answers.py BUNDLE PICTURE."""

import json
import sys

from qwenvl_edge import QwenVLEngine

QUESTIONS = ("Where is the red mug?", "Describe the picture.", "What does the sign say?", "汽车在哪里?")


def main() -> None:
    """Print [question, answer with its markup, number of tokens] for each question."""
    bundle, picture = sys.argv[1:]
    engine = QwenVLEngine(bundle, threads=1)
    replies = [engine.chat(question, images=[picture], do_sample=False) for question in QUESTIONS]
    rows = [
        [question, reply.raw_text, reply.stats.new_tokens] for question, reply in zip(QUESTIONS, replies, strict=True)
    ]
    print(json.dumps(rows, ensure_ascii=False))


if __name__ == "__main__":
    main()
