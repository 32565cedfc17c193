"""Rendered scenes on disk: chunks of pictures of one size, made once from their seeds and then mapped.

`python -m tools.nano.talk.pictures WORK --chunks N` renders the first N chunks of every sort; a training run uses those
that are there and picks up new ones when it goes on. Scenes are not stored, they follow from the seeds. Training seeds
stay below EVALUATION_SEED.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwenvl_edge_export.files.path_lock import sole_writer
from tools.nano.talk.drawing import render
from tools.nano.talk.icons import prepare
from tools.nano.talk.scenes import CANVASES, Change, Scene, Stock, change_scene, sample_scene, sample_signs

EVALUATION_SEED = 1_000_000_000
SORTS = {"few": 256, "many": 256, "pairs": 96, "signs": 96}  # and how many make a chunk
_THINGS = {"few": (1, 3), "many": (2, 6), "pairs": (1, 4)}
_SIGNS = {"few": 0.4, "many": 0.45, "pairs": 0.15}


@dataclass(frozen=True)
class Shown:
    """Scenes of one index with their pictures [n, H, W, 3] uint8; change: from the first to the second."""

    scenes: tuple[Scene, ...]
    pictures: np.ndarray
    change: Change | None = None


class Pictures:
    """The chunks in WORK; `refresh` finds them."""

    def __init__(self, work: Path, stock: Stock):
        self.work, self.stock = work, stock
        self._maps: dict[tuple[str, int], list[np.ndarray]] = {}

    def refresh(self) -> None:
        """Look for new chunks.

        Raises:
            SystemExit: there are none of some sort.
        """
        for sort in SORTS:
            for canvas in range(len(CANVASES)):
                maps = self._maps.setdefault((sort, canvas), [])
                while (path := self._path(sort, canvas, len(maps))).exists():
                    maps.append(np.load(path, mmap_mode="r"))
                if not maps:
                    raise SystemExit(
                        f"{path} is missing; render it with python -m tools.nano.talk.pictures {self.work}"
                    )

    @property
    def count(self) -> int:
        """All pictures there are."""
        return sum(each.shape[0] * each.shape[1] for maps in self._maps.values() for each in maps)

    def draw(self, rng: random.Random, sort: str, canvas: int) -> Shown:
        """Any one of a sort, on canvas number `canvas`."""
        maps = self._maps[sort, canvas]
        chunk, index = rng.randrange(len(maps)), rng.randrange(SORTS[sort])
        scenes, change = self.scenes(sort, canvas, chunk, index)
        return Shown(scenes, np.asarray(maps[chunk][index]), change)

    def scenes(self, sort: str, canvas: int, chunk: int, index: int) -> tuple[tuple[Scene, ...], Change | None]:
        """The scenes at an index."""
        seed = (list(SORTS).index(sort) * 10 + canvas) * 10_000_000 + chunk * SORTS[sort] + index
        if sort == "signs":
            return (sample_signs(seed, CANVASES[canvas]),), None
        scene = sample_scene(self.stock, seed, _THINGS[sort], _SIGNS[sort], CANVASES[canvas])
        if sort != "pairs":
            return (scene,), None
        later, change = change_scene(self.stock, scene, seed)
        return (scene, later), change

    def _path(self, sort: str, canvas: int, chunk: int) -> Path:
        width, height = CANVASES[canvas]
        return self.work / "pictures" / f"{sort}-{width}x{height}-{chunk:04d}.npy"

    def render_chunk(self, sort: str, canvas: int, chunk: int) -> None:
        """Write one chunk, if it is not there, whole or not at all."""
        path = self._path(sort, canvas, chunk)
        if path.exists():
            return
        pictures = [
            [np.asarray(render(scene, self.stock)) for scene in self.scenes(sort, canvas, chunk, index)[0]]
            for index in range(SORTS[sort])
        ]
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.array(pictures))
        partial.rename(path)


def render_chunks(work: Path, chunks: int) -> None:
    """Render the first `chunks` chunks of every sort and size."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(work, Stock(prepare(work)))
    todo = [(s, c, chunk) for chunk in range(chunks) for s in SORTS for c in range(len(CANVASES))]
    started = time.time()
    with sole_writer(folder.absolute(), "a rendering of pictures", wait=True):
        for number, job in enumerate(todo):
            pictures.render_chunk(*job)
            print(f"\r{number + 1}/{len(todo)} chunks, {time.time() - started:.0f} s ", end="", file=sys.stderr)
    print(file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    arguments = parser.parse_args()
    render_chunks(arguments.work, arguments.chunks)
