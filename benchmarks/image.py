"""pixel_values of the native core beside Pillow and NumPy, from pixels in memory to [3, 448, 448], same process.

    python benchmarks/image.py [--side 448] [--repeats 30] [--json FILE] [--plot FILE]

The peer is the published preprocessing: Image.fromarray, resize (bicubic), and three NumPy operations; for NV12 after
NumPy's conversion to RGB, in the integer arithmetic that gives the same bits. The time does not depend on what is in
the picture, so the frames are noise. Repeats alternate; a ratio is the median over pairs of
neighbours, with quartiles, and the last line has the smallest over the frame sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import arguments, conditions, finish, interleaved, ratio, spread
from PIL import Image

from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.inputs.pictures import pixel_values

FRAMES = {"640 x 480": (480, 640), "1280 x 720": (720, 1280), "1920 x 1080": (1080, 1920), "3840 x 2160": (2160, 3840)}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# BT.601's factors, Y from 16 to 235, U and V from 16 to 240, times 2^16.
FIXED = {
    name: int(factor * 65536 + 0.5)
    for name, factor in {
        "luma": 255 / 219,
        "red_v": 255 * 1.402 / 224,
        "blue_u": 255 * 1.772 / 224,
        "green_u": 255 * (0.114 * 1.772 / 0.587) / 224,
        "green_v": 255 * (0.299 * 1.402 / 0.587) / 224,
    }.items()
}

Pixels = npt.NDArray[np.uint8]


def with_pillow(pixels: Pixels, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """[3, S, S] as the published code makes it."""
    side = preprocessing.image_size
    values = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    values = values / np.float32(255)
    values -= np.asarray(preprocessing.mean, dtype=np.float32)
    values /= np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def nv12_to_rgb(frame: Pixels) -> Pixels:
    """[3H/2, W] to [H, W, 3] by BT.601, limited range, with 16 fractional bits; chroma once per four pixels."""
    height, width = frame.shape[0] // 3 * 2, frame.shape[1]
    luma = (frame[:height].astype(np.int32) - 16) * FIXED["luma"] + (1 << 15)
    u, v = (frame[height:].reshape(height // 2, width // 2, 2).astype(np.int32) - 128).transpose(2, 0, 1)
    added = (v * FIXED["red_v"], -u * FIXED["green_u"] - v * FIXED["green_v"], u * FIXED["blue_u"])
    blocks = luma.reshape(height // 2, 2, width // 2, 2)
    rgb = np.empty((height, width, 3), np.uint8)
    for channel, change in enumerate(added):
        values = (blocks + change[:, None, :, None]) >> 16
        rgb[:, :, channel] = np.clip(values, 0, 255).reshape(height, width)
    return rgb


def measure(shape: tuple[int, int], preprocessing: Preprocessing, repeats: int) -> dict[str, list[float]]:
    """Seconds of ours and theirs on one frame size, after a check that the values are equal."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    nv12 = np.random.default_rng(1).integers(0, 256, (shape[0] * 3 // 2, shape[1]), dtype=np.uint8)
    if not np.array_equal(pixel_values(pixels, preprocessing), with_pillow(pixels, preprocessing)):
        sys.exit("The values differ, so that a comparison of speed would mean nothing.")
    if not np.array_equal(
        pixel_values(nv12, preprocessing, layout="nv12"), with_pillow(nv12_to_rgb(nv12), preprocessing)
    ):
        sys.exit("The values of NV12 differ, so that a comparison of speed would mean nothing.")
    calls: dict[str, Callable[[], Any]] = {
        "RGB": lambda: pixel_values(pixels, preprocessing),
        "BGR": lambda: pixel_values(pixels, preprocessing, layout="bgr"),
        "NV12": lambda: pixel_values(nv12, preprocessing, layout="nv12"),
        "Pillow + NumPy": lambda: with_pillow(pixels, preprocessing),
        "NV12, Pillow + NumPy": lambda: with_pillow(nv12_to_rgb(nv12), preprocessing),
    }
    return interleaved(calls, repeats)


def draw(path: Path, figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """Milliseconds a frame, by size and library."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    names = list(next(iter(figures.values())))
    for i, name in enumerate(names):
        places = np.arange(len(figures)) + (i - (len(names) - 1) / 2) / (len(names) + 1)
        axes.bar(places, [size[name]["median"] for size in figures.values()], 1 / (len(names) + 1), label=name)
    axes.set_xticks(np.arange(len(figures)), list(figures))
    axes.set_yscale("log")
    axes.set_ylabel("ms a frame")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print the table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    before = conditions()
    preprocessing = Preprocessing(options.side, MEAN, STD)
    figures, ratios, nv12_ratios = {}, {}, {}
    for name, shape in FRAMES.items():
        seconds = measure(shape, preprocessing, options.repeats)
        figures[name] = {kind: spread([s * 1e3 for s in samples]) for kind, samples in seconds.items()}
        ratios[name] = ratio(seconds["RGB"], seconds["Pillow + NumPy"])
        nv12_ratios[name] = ratio(seconds["NV12"], seconds["NV12, Pillow + NumPy"])
        row = "  ".join(f"{kind} {figure['median']:.2f} ms" for kind, figure in figures[name].items())
        told = (f"{r['median']:.1f}x ({r['q25']:.1f} - {r['q75']:.1f})" for r in (ratios[name], nv12_ratios[name]))
        print(f"{name:12} {row}  RGB {next(told)}, NV12 {next(told)}")
    if options.plot:
        draw(options.plot, figures)
    headline = {
        "vs_pillow": min(figure["median"] for figure in ratios.values()),
        "nv12_vs_pillow": min(figure["median"] for figure in nv12_ratios.values()),
    }
    details = {"ms": figures, "ratios": ratios, "nv12_ratios": nv12_ratios, "side": options.side}
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
