"""Wordings that families share: questions in the languages that the models know, and names of pictures in answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qwenvl_edge.errors import PromptError
from qwenvl_edge.machine.urls import show

PICTURE_NAME = re.compile(r"(?:[Pp]icture|图片?)\s*(\d{1,2})|第\s*(\d{1,2})\s*[张幅]")
"""The name of a picture, "Picture 2" or "图片2", its number in one of the groups."""


def wording(wordings: Mapping[str, str], language: str) -> str:
    """Return the wording in a language. Raises PromptError if there is none."""
    if language not in wordings:
        raise PromptError(f"the language is {show(language)}; there are {', '.join(wordings)}.")
    return wordings[language]
