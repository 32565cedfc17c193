"""Places that a model writes as JSON, read tolerantly.

An answer may hold `[{"bbox_2d": [x1, y1, x2, y2], "label": "cup"}, {"point_2d": [x, y], "label": "tip"}]`, in a fence
or among words, with single quotes or commas too many, or cut off at its end. What can be read is read item by item;
an item with a place that cannot be is malformed. Other values are left alone: the text of an answer stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from qwenvl_edge.families.readers import GridShape, PlaceReader

_PLACES = {"bbox_2d": (4, 8), "point_2d": (2,)}
"""Keys of places, and how many numbers one has: corners of a box or of a quad, or a point."""
_LABELS = ("label", "text_content", "text", "name")
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[^\s,\[\]{}:\"']+")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_DEPTH = 20
_MOST_DIGITS = 1000  # of a whole number; Python reads some thousand
_FARTHEST = 1_000_000  # a coordinate in pixels; no picture is so large


class _CutError(Exception):
    """The text ends inside a value."""


class _GarbageError(Exception):
    """Here is no JSON."""


class Item(NamedTuple):
    """An object in a text: its values, its place, and whether the text ends inside it."""

    values: dict[str, Any]
    start: int
    end: int
    cut: bool


class JsonReader(PlaceReader):
    """Reads an answer with places in JSON; they are there once it has ended.

    Args:
        grid: the largest coordinate; None takes any.
        call_tags: the tags around tool calls, which come whole; their contents go to `calls`.
    """

    def __init__(self, grid: int | None, call_tags: tuple[str, str] = ("", "")) -> None:
        self._grid = grid
        self._call_tags = call_tags
        self.call = None
        self.calls: list[str] = []
        self._text = ""
        self._begins = 0
        self.shapes: list[GridShape] = []
        self.labels: list[str] = []
        self.malformed: list[str] = []

    def feed(self, text: str) -> str:
        """See PlaceReader.feed; the JSON of places is part of the text, that of tool calls is not."""
        opening, closing = self._call_tags
        clean, rest = "", text
        while rest:
            if self.call is None:
                before, found, rest = rest.partition(opening) if opening else (rest, "", "")
                clean += before
                self.call = "" if found else None
            else:
                body, found, rest = rest.partition(closing)
                self.call += body
                if found:
                    self.calls.append(self.call.strip())
                    self.call = None
        self._text += clean
        return clean

    def mark(self, label: str) -> int:
        """See PlaceReader.mark."""
        self.labels.append(label.strip())
        self._text += label
        return len(label)

    def begin(self) -> None:
        """See PlaceReader.begin."""
        self._begins = len(self._text)

    def finish(self) -> str:
        """See PlaceReader.finish; a call that is cut off is malformed."""
        if self.call is not None:
            self.malformed.append(f"{self._call_tags[0]}{self.call}")
        for item in find_objects(self._text):
            if item.end > self._begins:
                self._take(item)
        return ""

    def _take(self, item: Item) -> None:
        places = [(key, item.values[key]) for key in _PLACES if key in item.values]
        if not places:
            return
        source = self._text[item.start : item.end]
        label = next((item.values[key] for key in _LABELS if isinstance(item.values.get(key), str)), "").strip()
        ref = len(self.labels) if label else None
        found = [(key, self._points(key, numbers)) for key, value in places for numbers in _each(value)]
        if label and any(points for _, points in found):
            self.labels.append(label)
        for _, points in found:
            if points is None:
                self.malformed.append(source)
            else:
                self.shapes.append(GridShape(label, points, item.start, source, ref))

    def _points(self, key: str, numbers: Any) -> tuple[tuple[int, int], ...] | None:
        if not isinstance(numbers, list) or len(numbers) not in _PLACES[key]:
            return None
        if not all(type(number) in (int, float) and abs(number) <= _FARTHEST for number in numbers):
            return None
        rounded = [round(number) for number in numbers]
        if self._grid is not None and not all(0 <= number <= self._grid for number in rounded):
            return None
        return tuple(zip(rounded[::2], rounded[1::2], strict=True))


def _each(value: Any) -> list[Any]:
    """Return the places of a value, which is one or a list of them."""
    several = isinstance(value, list) and value and all(isinstance(each, list) for each in value)
    return value if several else [value]


def find_objects(text: str) -> Iterator[Item]:
    """Yield the objects in a text that hold no others, and those around them, in the order of their ends."""
    at = 0
    while (at := _next_bracket(text, at)) < len(text):
        parser = _Parser(text)
        try:
            at = parser.value(at, 0)[1]
        except _CutError:
            at = len(text)
        except _GarbageError:
            at += 1  # what is read already is found again from here
            continue
        yield from parser.objects


def _next_bracket(text: str, at: int) -> int:
    places = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
    return min(places, default=len(text))


class _Parser:
    """A reader of JSON that takes single quotes, bare words and commas too many; `objects`: those read so far."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.objects: list[Item] = []

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        """Read the value at a place; return it and the place after it."""
        at = self._skip(at)
        char = self._text[at]
        if depth > _DEPTH:
            raise _GarbageError
        if char == "{":
            return self._object(at, depth)
        if char == "[":
            return self._list(at, depth)
        if char in "\"'":
            return self._string(at)
        return self._bare(at)

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        at = match.end() if match else at
        if at >= len(self._text):
            raise _CutError
        return at

    def _object(self, start: int, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        at = start + 1
        try:
            while (at := self._after_commas(at)) and self._text[at] != "}":
                key, at = self._string(at) if self._text[at] in "\"'" else self._bare(at)
                at = self._skip(at)
                if self._text[at] != ":":
                    raise _GarbageError
                value, at = self.value(at + 1, depth + 1)
                values[str(key)] = value
        except _CutError:
            self.objects.append(Item(values, start, len(self._text), True))
            raise
        self.objects.append(Item(values, start, at + 1, False))
        return values, at + 1

    def _list(self, start: int, depth: int) -> tuple[list[Any], int]:
        values = []
        at = start + 1
        while (at := self._after_commas(at)) and self._text[at] != "]":
            value, at = self.value(at, depth + 1)
            values.append(value)
        return values, at + 1

    def _after_commas(self, at: int) -> int:
        at = self._skip(at)
        while self._text[at] == ",":
            at = self._skip(at + 1)
        return at

    def _string(self, start: int) -> tuple[str, int]:
        quote, at = self._text[start], start + 1
        parts: list[str] = []
        while at < len(self._text):
            char = self._text[at]
            if char == quote and (quote == '"' or self._closes(at)):
                return whole_characters("".join(parts)), at + 1
            if char == "\\" and at + 1 < len(self._text):
                at += 1
                char = self._text[at]
                code = self._text[at + 1 : at + 5]
                if char == "u" and re.fullmatch("[0-9a-fA-F]{4}", code):
                    char, at = chr(int(code, 16)), at + 4
                else:
                    char = _ESCAPES.get(char, char)
            parts.append(char)
            at += 1
        raise _CutError

    def _closes(self, at: int) -> bool:
        """Tell whether a single quote ends its string: an apostrophe inside a word does not."""
        rest = self._text[at + 1 :].lstrip()
        return not rest or rest[0] in ",:]}"

    def _bare(self, at: int) -> tuple[Any, int]:
        if match := _NUMBER.match(self._text, at):
            end = match.end()
            if end == len(self._text):
                raise _CutError  # more digits may have been to come
            text = match.group()
            whole = len(text) <= _MOST_DIGITS and text.lstrip("+-").isdigit()
            return (int(text) if whole else finite(text)), end
        match = _WORD.match(self._text, at)
        if match is None:
            raise _GarbageError
        return _WORDS.get(match.group(), match.group()), match.end()


def finite(number: str) -> float:
    """Return the nearest number that JSON can be written with; 1e999 is in its grammar, too."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(number)))


def whole_characters(text: str) -> str:
    """Join the halves of characters that \\u escapes wrote apart; lone halves become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def json_box_grammar(number: str) -> str:
    """Return the Lark grammar of a list of one or more labelled boxes; number: a regular expression of a coordinate."""
    return rf"""
        start: "[" item (SEPARATOR item)* "]"
        item: "{{\"bbox_2d\": [" NUMBER ", " NUMBER ", " NUMBER ", " NUMBER "], \"label\": \"" LABEL "\"}}"
        SEPARATOR: /,[ \n\t]{{0,3}}/
        NUMBER: /{number}/
        LABEL: /[^"\\\n]{{1,80}}/
    """
