"""Where pictures may come from: nothing that the operator did not list."""

import asyncio
import base64
import io
import os
import random
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.inputs.pictures import load_picture, pixel_values
from qwenvl_edge.server import sources
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.places import Places, _data_uri
from qwenvl_edge.server.settings import ServerLimits, ServerSettings
from qwenvl_edge.server.sources import PictureSource
from qwenvl_edge.server.workers import Workers
from support.served import PICTURE, data_uri

PNG = PICTURE.read_bytes()


class Source:
    """A PictureSource whose pictures are asked for without an event loop; `side` is the size that the model sees."""

    def __init__(self, side=4096, limits=None, **settings):
        settings = ServerSettings(limits=ServerLimits(**(limits or {})), **settings)
        workers = Workers()
        places = Places(settings, workers)
        self._source = PictureSource(settings.limits, places, workers, lambda size, limits: (side, side))

    def load(self, url, attachments=None, salt=""):
        return asyncio.run(self._source.load(url, attachments or {}, "picture 1", salt))


def load(url, *, attachments=None, **settings):
    return Source(**settings).load(url, attachments)


def refused(match, url, **options):
    with pytest.raises(ApiError, match=match) as error:
        load(url, **options)
    assert error.value.status == 400


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_data_uris_and_attachments():
    assert load(data_uri()).size == Image.open(PICTURE).size
    assert load("attachment:photo", attachments={"photo": PNG}).digest == load(data_uri()).digest
    refused("part that the request does not have", "attachment:other", attachments={"photo": PNG})
    refused("without a comma", "data:image/png;base64")
    refused("not valid base64", "data:image/png;base64,@@@")
    refused("no picture in one of the formats", "data:text/plain,hello")


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "/etc/passwd", "gopher:x", "javascript:1", "C:\\a.png", ""])
def test_other_kinds_of_urls_are_refused(url):
    refused("unknown kind", url)


def test_size_is_looked_at_before_anything_is_decoded():
    small = encoded(Image.new("1", (1, 1)))
    for side in (5001, 100_000, 2**31 - 1):
        head = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        claimed = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
        refused("more than 25,000,000 pixels", "attachment:a", attachments={"a": claimed})


def test_rare_formats_are_not_decoded():
    refused("no picture in one of", "attachment:a", attachments={"a": encoded(Image.new("RGB", (8, 8)), "ICO")})


def test_a_picture_that_comes_again_is_not_decoded_again(monkeypatch):
    monkeypatch.setattr(sources, "_KEPT_BYTES", 3 * 8 * 8 * 2)
    source = Source()
    files = [encoded(Image.new("RGB", (8, 8), (shade, 0, 0))) for shade in range(3)]
    pictures = [source.load("attachment:a", {"a": data}) for data in files]
    again = [source.load("attachment:a", {"a": data}) for data in reversed(files)]
    assert again[0] is pictures[2] and again[1] is pictures[1]
    assert again[2] is not pictures[0] and again[2].digest == pictures[0].digest
    large = encoded(Image.new("RGB", (32, 32)))
    assert source.load("attachment:a", {"a": large}).size == (32, 32)
    assert source.load("attachment:a", {"a": files[0]}) is again[2]
    assert source.load("attachment:a", {"a": files[0]}, salt="another key's") is not again[2]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 49_151, 49_152, 49_153, 200_001])
def test_base64_of_any_length_is_read_in_pieces(count):
    data = random.Random(count).randbytes(count)
    text = base64.b64encode(data).decode()
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    escaped = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    for form in (
        text,
        lines,
        f"{lines}\n",
        text.rstrip("="),
        escaped,
        base64.urlsafe_b64encode(data).decode(),
        f" {text} ",
    ):
        assert _data_uri(f";base64,{form}", "a") == data
    for cut in range(65_530, 65_540):  # an escaped byte at the end of a piece
        body = f"{'A' * cut}%41{'A' * (-(cut + 1) % 4)}"
        assert _data_uri(f";base64,{body}", "a") == bytes((len(body) - 2) // 4 * 3)
    assert _data_uri(",".join(("", "".join(f"%{byte:02x}" for byte in data[:1000]))), "a") == data[:1000]


def test_wrong_base64_is_found_in_every_piece():
    whole = "A" * 200_000
    for place in (0, 65_535, 65_536, 131_073, 199_999):
        for wrong in ("=", "@", "%25", "é"):
            with pytest.raises(ApiError, match="not valid base64"):
                _data_uri(f";base64,{whole[:place]}{wrong}{whole[place:]}A", "a")
    with pytest.raises(ApiError, match="not valid base64"):
        _data_uri(";base64," + "%41" * 200_004, "a")
    with pytest.raises(ApiError, match="percent-encoded bytes; send it as base64"):
        _data_uri("," + "%41" * 200_001, "a")


def test_base64_is_read_as_browsers_read_it():
    data = PNG + b"\0" * (1 + (len(PNG) % 3 == 2))  # a length that needs padding
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[place : place + 76] for place in range(0, len(text), 76))
    wanted = load(f"data:image/png;base64,{text}").digest
    for url in (
        f"data:image/png;base64,{lines}\r\n",
        f"data:image/png;base64, {text}",
        f" data:image/png;base64,{text}\n",
        f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
        f"data:image/png;base64,{text.rstrip('=')}",
        f"data:image/png;base64;name=a.png,{text}",
        f"data:image/png;BASE64;charset=utf-8,{text}",
        f"data:;base64,{text.replace('+', '%2B')}",
    ):
        assert load(url).digest == wanted
    for url in (
        "data:image/png;base64,A",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,A===",
        "data:;base64,é",
    ):
        refused("not valid base64", url)


@pytest.mark.parametrize("side", [16, 60, 200])
def test_pictures_wait_in_the_size_that_the_model_sees(side):
    shades = np.random.default_rng(5).integers(0, 256, (60, 1500, 3), np.uint8)
    data = encoded(Image.fromarray(shades))
    kept, whole = load("attachment:a", attachments={"a": data}, side=side), load_picture(data)
    assert kept.size == whole.size == (1500, 60)
    assert kept.pixels.shape == ((side, side, 3) if side < 300 else whole.pixels.shape)
    preprocessing = Preprocessing(side, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    assert np.array_equal(pixel_values(kept, preprocessing), pixel_values(whole, preprocessing))
    wider = encoded(Image.fromarray(shades).resize((1501, 60)))
    assert load("attachment:a", attachments={"a": wider}, side=side).digest != kept.digest


def test_small_pictures_are_decoded_before_large_ones_that_wait():
    order = []

    async def decode_all():
        workers = Workers()
        gate = threading.Event()
        blocking = [asyncio.ensure_future(workers.decode("decode", 1, gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting = [
            asyncio.ensure_future(workers.decode("decode", size, lambda s=size: order.append(s))) for size in (9, 3, 5)
        ]
        await asyncio.sleep(0)
        left = asyncio.ensure_future(workers.decode("decode", 1, lambda: order.append(1)))
        await asyncio.sleep(0)
        left.cancel()
        gate.set()
        await asyncio.gather(*blocking, *waiting)
        assert await workers.decode("decode", 7, lambda: 7) == 7

    asyncio.run(decode_all())
    assert order[0] == 3 and sorted(order) == [3, 5, 9]


# file: URLs


@pytest.fixture
def folder(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "a b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "c.png").write_bytes(PNG)
    return allowed


def test_files_of_listed_folders_are_read(folder):
    (folder / "inner").symlink_to(folder / "a b.png")
    for name in ("a%20b.png", "inner", "../allowed/inner"):
        assert load(f"file://{folder}/{name}", picture_folders=(folder,)).size


def test_nothing_outside_them(folder):
    (folder / "out").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    names = ["../secret.png", "%2e%2e/secret.png", "..%2fsecret.png", "out", "up/secret.png", "../allowed-too/c.png"]
    names += ["loop", "missing.png", "a%00b", "x" * 5000, ""]
    messages = set()
    for name in names:
        with pytest.raises(ApiError) as error:
            load(f"file://{folder}/{name}", picture_folders=(folder,))
        messages.add(str(error.value))
    assert len(messages) == 1  # nobody learns what is there
    refused("may not be read", f"file://{folder}/a%20b.png")
    refused("may not be read", f"file://elsewhere{folder}/a%20b.png", picture_folders=(folder,))
    refused("may not be read", "file:///etc/passwd", picture_folders=(folder,))


def test_pipes_and_large_files_are_refused(folder):
    os.mkfifo(folder / "pipe")
    refused("may not be read", f"file://{folder}/pipe", picture_folders=(folder,))
    refused(
        "more than 1,000 bytes", f"file://{folder}/a%20b.png", picture_folders=(folder,), limits={"body_bytes": 1000}
    )
