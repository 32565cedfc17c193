"""The number of runtime files that an answer and a picture cross: whoever follows one has to open as many."""

import numpy as np

from qwenvl_edge import Picture
from support.crossed import crossed
from support.scripted import ScriptedBackend, engine

ANSWER = "<ref>the mug</ref><box>(100,200),(500,1000)</box> stands here.<|im_end|>"
PIXELS = np.full((20, 40, 3), 200, np.uint8)

MOST_FOR_AN_ANSWER = 16
"""Two fewer than tests/e2e/test_nano.py allows: a real backend and an image file bring a file each."""
MOST_FOR_A_PICTURE = 12


def test_a_whole_answer(tmp_path):
    """Counts what the engine calls, without the checks that the scripted backend makes itself."""
    qwen, _ = engine(tmp_path, ANSWER)
    with crossed(inside=[ScriptedBackend._decode]) as files:
        reply = qwen.chat("Where is the mug?", images=[PIXELS])
    assert len(reply.boxes) == 1
    assert {"engine.py", "inputs/request.py", "decoding/sampler.py", "replies/answer_writer.py"} <= files
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
