"""Image files and Pillow images -> RGB pixels as a person sees them; docs/pictures.md has the table.

One decoder opens a file and reads its pixels, and it is one of FORMATS. An orientation tag is followed, transparency is
put on white, 16-bit gray is scaled by its range, and gray without a known range is refused. `as_published` instead
converts as the published model code does, `Image.open(...).convert("RGB")`: no orientation, alpha dropped, gray beyond
255 clipped. Both give the same bytes for plain pictures.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs import pictures
from qwenvl_edge.inputs.pictures import check_size, over_white
from qwenvl_edge.machine.urls import shown, url_of

Rgb = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are read; a JPEG may be the first of several in one file (MPO)."""

_KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
_ORIENTATION = 0x0112  # EXIF and TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE = 0x0102  # TIFF
_MAX_PIPE_BYTES = 1 << 30
_WHITE = 255
# Other kinds of files that people take for pictures: place and bytes of their signature.
_SIGNATURES = (
    (4, b"ftypheic", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyp", "a video"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "an EPS file, a drawing program"),
    (0, b"\xd7\xcd\xc6\x9a", "a WMF file, a drawing program"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"8BPS", "a Photoshop file"),
)


def read_file(source: str | os.PathLike[str], *, as_published: bool = False) -> Rgb:
    """Return the pixels of the image file at a path. Raises ImageError."""
    name = os.fspath(source)
    if not isinstance(name, str):
        raise ImageError(f"the path of a picture is of type {type(name).__name__}; give a str or a Path.")
    try:
        with Path(name).open("rb") as opened:
            # A pipe is read whole, because decoders go back and forth.
            file = opened if opened.seekable() else io.BytesIO(opened.read(_MAX_PIPE_BYTES))
            return decode(file, name, as_published=as_published)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if url := url_of(source):
            scheme = url.partition(":")[0].lower()
            remedy = {"data": "decode its base64", "file": "give the path without file://"}.get(scheme, "download it")
            bytes_too = "" if scheme == "file" else " and give its bytes"
            raise ImageError(f"{shown(url)} is a URL; {remedy}{bytes_too}.") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot open the picture {shown(name)!r}: {reason}.") from None


def decode(file: Any, name: str, *, as_published: bool = False) -> Rgb:
    """Return the pixels [H, W, 3] of an open image file.

    Raises:
        ImageError: it is none of FORMATS, damaged, too large, or of a kind of gray whose range is not known.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what the checks here decide, and of harmless damage
        return image_to_rgb(_open(file, name), name, as_published=as_published)


def image_to_rgb(image: Image.Image, name: str, *, as_published: bool = False) -> Rgb:
    """Return the pixels [H, W, 3] of a Pillow image's current frame. Raises ImageError as decode."""
    check_size(image.width, image.height, name)
    try:
        _scale_key(image)
        image.load()
        check_size(image.width, image.height, name)
        plain = image if as_published else _upright(image)
        return _pixels(plain.convert("RGB")) if as_published else _to_rgb(plain, image, name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"there is not enough memory for {name} ({image.width}x{image.height} pixels).") from None
    except Exception as error:  # a decoder may raise anything at damaged data
        raise ImageError(f"{name} is truncated or damaged: {error}.") from error


def _open(file: Any, name: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is {_kind_of(file)}; give {_KNOWN}.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more pixels than the limit of {pictures.MAX_PIXELS:,}; scale it down.") from None
    except Exception as error:  # a decoder may raise anything at a damaged header
        raise ImageError(f"{name} cannot be read as an image: {error}.") from error


def _kind_of(file: Any) -> str:
    with contextlib.suppress(OSError, ValueError):
        file.seek(0)
        start = file.read(16)
        for place, signature, kind in _SIGNATURES:
            if start[place:].startswith(signature):
                return f"{kind}, which is not read"
    return "not an image file of a known format"


def _scale_key(image: Image.Image) -> None:
    """Scale the level that stands for "transparent" in gray of 2 or 4 bits: Pillow scales the levels only."""
    tiles = getattr(image, "tile", ())
    scale = {"L;2": 85, "L;4": 17}.get(str(tiles[0][3]) if tiles else "")
    if scale and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = min(key * scale, _WHITE)


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its orientation tag says; a damaged tag counts as none, as in viewers."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the tags' reader may raise anything at damaged data
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, source: Image.Image, name: str) -> Rgb:
    """Convert by mode. source: the image as it was opened, which knows its file's format."""
    if image.mode.startswith("I"):
        return _wide_gray(image, _range(source, name))
    if image.mode == "F":
        raise _unknown_range("floating-point", name)
    if image.mode == "LAB":
        raise ImageError(f"{name} has L*a*b* colours, which are not read; convert it to RGB.")
    if image.has_transparency_data:
        return over_white(np.asarray(_with_alpha(image)))
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _with_alpha(image: Image.Image) -> Image.Image:
    """Convert to RGBA, a colour that stands for "transparent" included."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > _WHITE:
        image = image.copy()
        image.info["transparency"] = tuple(part >> 8 for part in key)  # of a file with 16 bits, whose pixels have 8 now
    if image.mode == "La":  # Pillow knows one way out of premultiplied gray
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _range(source: Image.Image, name: str) -> int:
    """Return what white is in a gray picture of more than 8 bits. Raises ImageError where nothing says so."""
    if source.mode.startswith("I;16"):
        bits = getattr(source, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        return (1 << int(bits[0])) - 1
    if source.format in ("PNG", "PPM"):  # Pillow has their 16 bits in 32
        return 0xFFFF
    raise _unknown_range("32-bit", name)


def _wide_gray(image: Image.Image, white: int) -> Rgb:
    """Scale gray levels 0 .. white to bytes, rounded; the level that stands for "transparent" becomes white."""
    levels = np.asarray(image).astype(np.uint32)
    gray = ((levels * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        gray[levels == key] = _WHITE
    return np.repeat(gray[:, :, None], 3, axis=2)


def _unknown_range(kind: str, name: str) -> ImageError:
    return ImageError(f"{name} holds {kind} gray, whose range is not known; scale it to 0..255 and give uint8.")


def _pixels(rgb: Image.Image) -> Rgb:
    # One copy; through Pillow's array interface it would be two.
    return np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.height, rgb.width, 3)
