"""A bundle of links, as the Hub's cache lays it, is opened, run in every dialect, verified and built as any other."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from qwenvl_edge import cli
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import sha256
from support.decoding import rotary
from support.dialects import OF_BLOCKS

# The files that stay in the folder; the others are links to files in another one.
LAYOUTS = {"as on the Hub": (), "weights elsewhere": (".onnx", ".json"), "graphs elsewhere": (".data", ".bin")}


@pytest.fixture(scope="module")
def plain(tiny_exports):
    return tiny_exports("int8")


def linked(bundle, folder, stay=(), name_of=sha256):
    """A copy in `folder`, of which all files but those with an ending of `stay` are links to blobs."""
    snapshot = folder / "models--a--b" / "snapshots" / "01"
    blobs = folder / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in bundle.path.iterdir():
        place = snapshot / path.name
        if path.suffix in stay:
            shutil.copyfile(path, place)
        else:
            shutil.copyfile(path, blobs / name_of(path))
            place.symlink_to(f"../../blobs/{name_of(path)}")
    return Bundle.open(snapshot)


def computed(bundle, dialect):
    """Features of a picture, and logits of three tokens after none."""
    backend = OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)
    size = backend.family.preprocessing.image_size
    pixels = np.linspace(-1, 1, 3 * size * size, dtype=np.float32).reshape(1, 3, size, size)
    embeds = bundle.embedding[[[5, 6, 7]]]
    cache = backend.new_cache(1, 8)
    logits = backend.decode(cache, embeds, rotary(backend, [0], 3), np.zeros(1, np.int64), np.array([[2]]))
    return backend.encode_pixels(pixels), logits


@pytest.mark.parametrize("dialect", OF_BLOCKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dialect_reads_the_weights_behind_links(plain, tmp_path, layout, dialect):
    found, expected = computed(linked(plain, tmp_path, LAYOUTS[layout]), dialect), computed(plain, dialect)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dialect", OF_BLOCKS)
def test_weights_elsewhere_under_their_own_names(plain, tmp_path, dialect):
    bundle = linked(plain, tmp_path, LAYOUTS["weights elsewhere"], name_of=lambda path: path.name)
    for ours, theirs in zip(computed(bundle, dialect), computed(plain, dialect), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_program_takes_it(plain, tiny_checkpoint, tmp_path, capsys):
    path = str(linked(plain, tmp_path).path)
    for words in (["plan", path], ["doctor", path], ["verify", path, "--checkpoint", str(tiny_checkpoint)]):
        assert cli.main(words) in (0, 1), words  # doctor says 1 where something of the machine is missing
        assert "links" not in capsys.readouterr().err


def test_lowering_reads_it(plain, tmp_path):
    """The graph that TensorRT gets is the same, and its weights are found."""
    lowering = pytest.importorskip("qwenvl_edge_export.tensorrt.lowering")
    made = []
    for bundle in (plain, linked(plain, tmp_path)):
        folder = tmp_path / f"lowered-{len(made)}"
        folder.mkdir()
        model = lowering.Lowering(bundle, "decoder.onnx", folder).decoder(64)
        made.append((model, (folder / "decoder.data").read_bytes(), (folder / lowering.SIGNED_NAME).read_bytes()))
    assert made[0] == made[1]
