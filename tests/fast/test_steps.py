"""The number of runtime files that an answer and a picture cross: whoever follows one has to open as many."""

import contextlib
import sys
from pathlib import Path

import numpy as np

import qwenvl_edge
from qwenvl_edge import Picture
from support.scripted import engine

PACKAGE = Path(qwenvl_edge.__file__).parent
ANSWER = "<ref>the mug</ref><box>(100,200),(500,1000)</box> stands here.<|im_end|>"
PIXELS = np.full((20, 40, 3), 200, np.uint8)

MOST_FOR_AN_ANSWER = 24
MOST_FOR_A_PICTURE = 12


@contextlib.contextmanager
def crossed(counts):
    """Collects the files of the package with a function that `counts`, given its frame, at its call or return."""
    files = set()

    def note(frame, event, result):
        path = Path(frame.f_code.co_filename)
        if event in ("call", "return") and path.is_relative_to(PACKAGE) and counts(frame, result):
            files.add(str(path.relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)


def test_a_whole_answer(tmp_path):
    qwen, _ = engine(tmp_path, ANSWER)
    with crossed(lambda frame, result: True) as files:
        reply = qwen.chat("Where is the mug?", images=[PIXELS])
    assert len(reply.boxes) == 1
    assert {"engine.py", "inputs/request.py", "decoding/sampler.py", "replies/reply.py"} <= files
    assert len(files) <= MOST_FOR_AN_ANSWER, sorted(files)


def test_a_picture_until_it_is_features(tmp_path):
    """Counts functions that hold the picture, or the array that it is made of, alone or in a list or tuple."""
    qwen, backend = engine(tmp_path, ANSWER)

    def holds(frame, result):
        values = [result, *frame.f_locals.values()]
        values += [each for value in values if isinstance(value, (list, tuple)) for each in value]
        return not backend.steps and any(value is PIXELS or isinstance(value, Picture) for value in values)

    with crossed(holds) as files:
        qwen.chat("Where is the mug?", images=[PIXELS])
    assert backend.encoded == 1 and {"engine.py", "inputs/pictures.py", "decoding/pipeline.py"} <= files
    assert len(files) <= MOST_FOR_A_PICTURE, sorted(files)
