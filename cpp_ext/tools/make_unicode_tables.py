"""Writes cpp_ext/tokenizer/unicode_ranges.inc: which code points are letters, numbers and white space.

Token ids depend on the classes that tiktoken's regular expressions use, so tiktoken itself is asked: an encoding whose
pattern is one class drops everything else. Run it again when tiktoken moves to a newer Unicode version.
"""

from __future__ import annotations

from pathlib import Path

import tiktoken

CLASSES = {"letter": r"\p{L}", "number": r"\p{N}", "space": r"\s"}


def members(pattern: str) -> list[int]:
    """Code points that match the one-character `pattern`, ascending."""
    encoding = tiktoken.Encoding(
        "class", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    return sorted(map(ord, encoding.decode(encoding.encode_ordinary(everything))))


def ranges(points: list[int]) -> list[tuple[int, int]]:
    """Inclusive ranges that cover ascending `points`."""
    found: list[tuple[int, int]] = []
    for point in points:
        if found and found[-1][1] + 1 == point:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return found


def main() -> None:
    """Write the tables."""
    out = [f"// Made by cpp_ext/tools/make_unicode_tables.py from tiktoken {tiktoken.__version__}; do not edit."]
    for name, pattern in CLASSES.items():
        out.append(f"constexpr CodePointRange {name}_ranges[] = {{")
        cells = [f"{{0x{a:X},0x{b:X}}}," for a, b in ranges(members(pattern))]
        out += ["    " + " ".join(cells[i : i + 6]) for i in range(0, len(cells), 6)]
        out.append("};")
    target = Path(__file__).parent.parent / "tokenizer" / "unicode_ranges.inc"
    target.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
