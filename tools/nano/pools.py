"""Rendered scenes on disk: pools of pictures at the model's resolution, made once from their seeds and then mapped.

`python -m tools.nano.pools FOLDER` renders all training pools. A pool is one .npy of [count, S, S, 3] uint8; scenes are
not stored, they follow from the seeds. Training seeds stay below EVALUATION_SEED.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qwenvl_edge_export.files.path_lock import sole_writer
from tools.nano.drawing import render
from tools.nano.scenes import Change, Scene, change_scene, sample_scene, sample_signs

IMAGE_SIZE = 112
EVALUATION_SEED = 1_000_000_000


@dataclass(frozen=True)
class Pool:
    """`count` scenes of `things` objects from consecutive seeds; in a pool of pairs each is followed by its change."""

    name: str
    first_seed: int
    count: int
    things: tuple[int, int]
    sign_share: float
    pairs: bool = False
    letters: bool = False  # pictures full of signs instead of scenes

    def scenes(self, index: int) -> tuple[list[Scene], Change | None]:
        """The scene, or the scene and its changed copy, at `index`."""
        seed = self.first_seed + index
        if self.letters:
            return [sample_signs(seed)], None
        scene = sample_scene(seed, self.things, self.sign_share)
        if not self.pairs:
            return [scene], None
        changed, change = change_scene(scene, seed)
        return [scene, changed], change


TRAINING = (
    Pool("one", 0, 10_000, (1, 1), 0.25),
    Pool("few", 100_000, 16_000, (1, 3), 0.45),
    Pool("many", 200_000, 40_000, (1, 5), 0.45),
    Pool("pairs", 400_000, 12_000, (1, 3), 0.2, pairs=True),
    Pool("letters", 600_000, 30_000, (0, 0), 0.0, letters=True),
)


def pixels(image: Image.Image) -> np.ndarray:
    """[S, S, 3] uint8, resized as the model's preprocessing does."""
    return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _render(job: tuple[Pool, int]) -> np.ndarray:
    pool, index = job
    return np.stack([pixels(render(scene)) for scene in pool.scenes(index)[0]])


def load_pool(pool: Pool, folder: Path, workers: int = 2) -> np.ndarray:
    """The pool's pictures, [count, 1 or 2, S, S, 3] uint8, mapped from disk; rendered if not there yet."""
    path = folder / f"{pool.name}-{pool.first_seed}-{pool.count}.npy"
    if not path.exists():
        with sole_writer(path.absolute(), "a rendering of pictures", wait=True):  # two trainings may share a folder
            if not path.exists():
                _render_pool(pool, path, workers)
    return np.load(path, mmap_mode="r")


def _render_pool(pool: Pool, path: Path, workers: int) -> None:
    partial = path.with_suffix(".partial.npy")
    shape = (pool.count, 2 if pool.pairs else 1, IMAGE_SIZE, IMAGE_SIZE, 3)
    store = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    started = time.time()
    with multiprocessing.Pool(workers) as crew:
        jobs = ((pool, i) for i in range(pool.count))
        for i, picture in enumerate(crew.imap(_render, jobs, chunksize=64)):
            store[i] = picture
            if i % 1000 == 999:
                left = (time.time() - started) / (i + 1) * (pool.count - i - 1)
                print(f"\r{pool.name}: {i + 1}/{pool.count}, {left:.0f} s left ", end="", file=sys.stderr)
    print(file=sys.stderr)
    store.flush()
    partial.rename(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    for each in TRAINING:
        load_pool(each, target)
