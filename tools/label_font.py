"""Makes the font of drawn labels from WenQuanYi Micro Hei: `python tools/label_font.py WQY-MICROHEI.TTC TARGET.ttf`.

Debian's package fonts-wqy-microhei has the source. Kept are Latin letters with their accents and every character of
GB 2312 (6,763 Chinese ones, punctuation, Greek, Cyrillic, kana); hinting and layout tables are dropped. It needs
fonttools, which Matplotlib brings. The same source gives the same bytes.
"""

from __future__ import annotations

import sys

from fontTools import subset
from fontTools.ttLib import TTFont

VERSION_NAME = 5
WINDOWS_ENGLISH = (3, 1, 0x409)


def characters() -> set[int]:
    """Code points of Latin text and of GB 2312."""
    found = {*range(0x20, 0x7F), *range(0xA0, 0x180)}
    for row in range(0xA1, 0xF8):
        for cell in range(0xA1, 0xFF):
            found.update(map(ord, bytes((row, cell)).decode("gb2312", "ignore")))
    return found


def main() -> None:
    """Write the subset, and into its version name that it is one."""
    source, target = sys.argv[1:]
    options = subset.Options(hinting=False, layout_features=[], notdef_outline=True, name_IDs=["*"])
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "vhea", "vmtx"]
    font = TTFont(source, fontNumber=0, recalcTimestamp=False)
    wanted = characters()
    missing = wanted - set(font.getBestCmap())
    if missing:
        sys.exit(f"{source} has no glyph for {len(missing)} characters, such as {chr(min(missing))!r}")
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    version = font["name"].getName(VERSION_NAME, *WINDOWS_ENGLISH)
    font["name"].setName(f"{version}; changed: reduced to GB 2312 and Latin", VERSION_NAME, *WINDOWS_ENGLISH)
    font.save(target)


if __name__ == "__main__":
    main()
