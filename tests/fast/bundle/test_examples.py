"""Examples of a bundle: what is read, and what is refused in one sentence."""

import dataclasses
import json

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.examples import FOLDER, Example, Examples, examples_of
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.errors import BundleError
from support.paths import ROOT
from support.scripted import write_bundle

GOOD = {"examples": [{"pictures": ["a.png"], "questions": ["?"]}], "note": "n"}


def test_those_of_nano_name_pictures_that_are_there():
    folder = ROOT / "models" / "nano"
    examples = Examples.read(folder / "qwenvl-examples.json", BundleError)
    assert examples.asks_afresh and len(examples.examples) == 4
    assert all((folder / name).is_file() for name in examples.pictures)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ({"more": 1}, "more"),
        ({"examples": [{"pictures": ["../a.png"], "questions": []}]}, 'the picture "../a.png"'),
        ({"examples": [{"pictures": ["a.svg"], "questions": []}]}, 'the picture "a.svg"'),
        ({"examples": [{"pictures": ["a.png"] * 21, "questions": []}]}, "more than 20"),
        ({"note": "n" * 1001}, "more than 1000 characters"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, wrong, words):
    path = tmp_path / "examples.json"
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong), encoding="utf-8")
    with pytest.raises(BundleError) as error:
        Examples.read(path, BundleError)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle whose manifest lists the files that it is given, a dot in their names as two underscores."""

    def write(**files):
        (tmp_path / FOLDER).mkdir()
        plain = write_bundle(tmp_path)
        listed = dict(plain.manifest.files)
        for name, data in files.items():
            path = tmp_path / FOLDER / name.replace("__", ".")
            path.write_bytes(data)
            listed[f"{FOLDER}/{path.name}"] = FileInfo(len(data), sha256(path))
        return Bundle(tmp_path, dataclasses.replace(plain.manifest, files=listed))

    return write


def test_a_bundle_without_any_has_none(bundle):
    assert examples_of(bundle()) == Examples()


def test_a_bundle_has_what_its_manifest_lists(bundle):
    found = examples_of(bundle(examples__json=json.dumps(GOOD).encode(), a__png=b"png"))
    assert found == Examples((Example(("a.png",), ("?",)),), "n")


def test_a_picture_that_is_not_listed_is_an_error(bundle):
    with pytest.raises(BundleError, match=r'lists no file "examples/a.png"'):
        examples_of(bundle(examples__json=json.dumps(GOOD).encode()))
