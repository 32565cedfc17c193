"""Pictures of the kinds in several styles, from freely licensed icon sets: `python -m tools.nano.talk.icons WORK`.

The sets are npm packages, which npm itself fetches into WORK; none of them is part of this repository. Each picture is
drawn once, cut to what is drawn, and kept in WORK/sprites.npz. Licences: LICENCES.md beside this file.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.nano.talk.colours import dominant
from tools.nano.talk.kinds import COLOURS, KINDS

SIDE = 128  # of a sprite in pixels


@dataclass(frozen=True)
class IconSet:
    """One style: the npm package that holds it, and the version."""

    package: str
    version: str
    licence: str


SETS = {
    "fluent": IconSet("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "flat": IconSet("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "noto": IconSet("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "blob": IconSet("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "outline": IconSet("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0"),
    "twemoji": IconSet("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
}
STYLES = tuple(SETS)
KEPT_OUT = "twemoji"  # never trained on: measures what was learnt of the things and not of the drawings


@dataclass(frozen=True)
class Sprite:
    """A picture of a kind: RGBA [H, W, 4] uint8 cut to its edges, and its colour if one name fits it."""

    pixels: np.ndarray
    colour: str | None

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.pixels.shape[1] / self.pixels.shape[0]


def fetch(which: IconSet, folder: Path) -> dict[str, Any]:
    """The content of a set's icons.json; npm brings the package into `folder` if it is not there.

    Raises:
        SystemExit: npm is missing or cannot reach a registry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = which.package.lstrip("@").replace("/", "-")
    archive = folder / f"{name}-{which.version}.tgz"
    if not archive.exists():
        command = ["npm", "pack", "--silent", f"{which.package}@{which.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SystemExit("npm is missing; install Node.js, which fetches the icon sets.") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"npm cannot fetch {which.package}: {error.stderr.strip()[-300:]}") from None
    with tarfile.open(archive) as packed:
        member = packed.extractfile("package/icons.json")
        assert member is not None
        found: dict[str, Any] = json.load(member)
    return found


def draw_icon(icons: dict[str, Any], name: str) -> np.ndarray | None:
    """An icon of a set as RGBA [H, W, 4], cut to its edges, its longer side SIDE pixels; None if the set lacks it."""
    import resvg_py

    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    entry = icons["icons"].get(name)
    if entry is None:
        return None
    width, height = (entry.get(key, icons.get(key, 16)) for key in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))))
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox()
    if box is None:
        return None
    cut = image.crop(box)
    scale = SIDE / max(cut.size)
    return np.asarray(cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))))


def prepare(work: Path) -> Path:
    """Write WORK/sprites.npz if it is not there: pixels by "kind/style", and colours by the same names."""
    path = work / "sprites.npz"
    if path.exists():
        return path
    arrays: dict[str, np.ndarray] = {}
    for style, which in SETS.items():
        icons = fetch(which, work / "icons")
        for kind in KINDS.values():
            pixels = draw_icon(icons, kind.icon)
            if pixels is not None:
                arrays[f"{kind.name}/{style}"] = pixels
    partial = work / "sprites.partial.npz"
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)
    return path


@lru_cache(maxsize=4)
def load(path: Path) -> dict[tuple[str, str], Sprite]:
    """The sprites of a file by kind and style."""
    with np.load(path) as arrays:
        pixels = {tuple(name.split("/")): arrays[name] for name in arrays.files}
    return {(kind, style): Sprite(each, dominant(each)) for (kind, style), each in pixels.items()}


def main() -> None:
    """Fetch, draw, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    sprites = load(prepare(parser.parse_args().work))
    print(f"{len(sprites)} pictures of {len(KINDS)} kinds in {len(SETS)} styles")
    for colour in (*COLOURS, None):
        print(f"{colour}: {sum(sprite.colour == colour for sprite in sprites.values())}")


if __name__ == "__main__":
    main()
