"""Samples of use for calibration: lines of JSON with pictures, and folders of pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.cases import source_case_builder
from support.random_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return source_case_builder(Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("sampled") / "checkpoint")))


def test_a_folder_of_pictures(builder, tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    notes = []
    cases = read_samples(tmp_path, builder, notes.append)
    assert notes == ["1 of 3 pictures unreadable"]
    assert [len(case.pictures) for case in cases] == [1, 1]
    assert [case.prompt.turns for case in cases] == [3, 0]  # every second one is asked once, as most pictures are
    assert all(len(case.answer) > 5 for case in cases)
    assert list(cases[0].answer) != list(cases[1].answer)  # each time another question is the last one


def test_marks_that_windows_and_unicode_put_into_text(builder, tmp_path):
    """A byte order mark, carriage returns, and a line separator within a string."""
    text = '\ufeff{"prompt": "a\u2028b"}\r\n{"prompt": "c"}\r\n'
    (tmp_path / "own.jsonl").write_bytes(text.encode())
    assert len(read_samples(tmp_path / "own.jsonl", builder)) == 2


def test_of_many_samples_evenly_spread_ones_are_taken(builder, tmp_path):
    """As many as a number of tokens has room for; pictures of the others are not even read."""
    lines = [{"prompt": f"Count to {i:03}.", "image": [] if i % 8 == 0 else "missing.png"} for i in range(100)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    notes = []
    (one,) = read_samples(tmp_path / "own.jsonl", builder, notes.append, most_tokens=1)
    length = len(one.prompt.ids) + len(one.answer)
    cases = read_samples(tmp_path / "own.jsonl", builder, notes.append, most_tokens=10 * length)
    assert notes == ["1 of 100 samples", "10 of 100 samples"]
    numbers = [int(case.name.split()[1]) - 1 for case in cases]
    assert numbers == sorted(numbers) and max(np.diff(numbers)) <= 16 and numbers[-1] >= 80


def test_lines_with_pictures(builder, tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "prompt": "What?", "answer": "A mug."},
        {"image": ["a.png", "a.png"], "prompt": "What?"},
        {"prompt": "Hello"},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cases = read_samples(tmp_path / "own.jsonl", builder)
    assert [len(case.pictures) for case in cases] == [1, 2, 0]
    assert [len(case.answer) for case in cases] == [7, 1, 1]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, QwenVLError, "there are no calibration samples at .*missing"),
        ("", QwenVLError, "holds no calibration sample"),
        ("{", QwenVLError, "line 1: it is not JSON"),
        ('{"prompt": "a"}\n["b"]', QwenVLError, 'line 2: it must be an object with "prompt"'),
        ('{"question": "a"}', QwenVLError, 'line 1: it must be an object with "prompt"'),
        ('{"image": "nowhere.png", "prompt": "a"}', ImageError, 'own.jsonl", line 1: .*nowhere.png'),
        ('{"image": 5, "prompt": "a"}', QwenVLError, 'own.jsonl", line 1: "image" must be a file\'s name or a list'),
        (
            '\n{"image": [5], "prompt": "a"}',
            QwenVLError,
            'own.jsonl", line 2: "image" must be a file\'s name or a list',
        ),
        ('{"image": null, "prompt": "a"}', QwenVLError, 'line 1: "image" must be .*; leave it out where there is none'),
        ('{"prompt": "a", "answer": null}', QwenVLError, 'own.jsonl", line 1: "answer" must be a text; leave it out'),
        ('{"prompt": "a", "answer": 5}', QwenVLError, 'own.jsonl", line 1: "answer" must be a text'),
        ('{"prompt": "a"}\n{"prompt": "\udcff"}', QwenVLError, 'own.jsonl", line 2: it is not UTF-8 .*at byte 12'),
    ],
)
def test_malformed_samples(builder, tmp_path, content, error, match):
    path = tmp_path / ("missing" if content is None else "own.jsonl")
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error, match=match):
        read_samples(path, builder)


def test_a_folder_without_a_picture(builder, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(QwenVLError, match="holds no readable picture"):
        read_samples(tmp_path, builder)
