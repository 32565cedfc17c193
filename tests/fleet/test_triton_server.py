"""The model repository of the examples in a real Triton Inference Server, where one is installed."""

import base64
import io
import json
import subprocess

import httpx
import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine, Video
from support.paths import DATA, ROOT
from support.patience import PATIENCE_S
from support.served import free_port
from support.triton_server import ASK, PYTHON, packages, triton_server

PICTURE = ROOT / "models" / "nano" / "demo.png"
GOLDEN = DATA / "families"
WHERE = "Where is the red mug?"
WHAT = "What moves?"
GREEDY = {"do_sample": False}
TOKENS = 16  # of an answer about a clip, by random weights
CLOSE = 1e-3  # of log-probabilities: the server's Python has another ONNX Runtime
FRAMES = [np.full((56, 84, 3), 10, np.uint8) + np.arange(84, dtype=np.uint8)[:, None] * number for number in range(6)]


@pytest.fixture(scope="module")
def engine(nano):
    return QwenVLEngine(nano, threads=1)


@pytest.fixture(scope="module")
def served(nano, tmp_path_factory):
    with triton_server(nano, tmp_path_factory.mktemp("triton")) as ports:
        yield ports


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def clips(request, family_exports, tmp_path_factory):
    """An engine of a family that takes clips, and the ports of a server on the same bundle."""
    packages()
    bundle = family_exports(request.param)().path
    with triton_server(bundle, tmp_path_factory.mktemp("triton")) as ports:
        yield QwenVLEngine(bundle, threads=1), ports


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def events(ports, **body):
    url = f"http://127.0.0.1:{ports['http']}/v2/models/qwenvl/generate_stream"
    with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as response:
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def asking(ports, seen, question, *options):
    """The example program, begun."""
    command = [PYTHON, ASK, seen, question, f"127.0.0.1:{ports['grpc']}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def told(process):
    """The text and the answer that the example program printed."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    text, _, answer = out.strip().rpartition("\n")
    return text.strip(), json.loads(answer)


def test_an_answer_streams_over_http(served, engine):
    found = events(served, QUESTION=WHERE, IMAGE=uri(PICTURE.read_bytes()), OPTIONS=json.dumps(GREEDY))
    expected = engine.chat(WHERE, images=[PICTURE], **GREEDY)
    assert "".join(event["TEXT"] for event in found).strip() == expected.text and len(found) > 2
    answer = json.loads(found[-1]["ANSWER"])
    assert answer["boxes"][0]["x1"] == expected.boxes[0].x1 and answer["finish_reason"] == "stop"
    (error,) = events(served, QUESTION="")
    assert "empty" in error["error"]


def test_the_example_asks_over_grpc(served, engine):
    """Two at once, about one array."""
    questions = (WHERE, "Describe the picture.")
    begun = [asking(served, PICTURE, question) for question in questions]
    for question, process in zip(questions, begun, strict=True):
        text, answer = told(process)
        assert text == engine.chat(question, images=[PICTURE], **GREEDY).text == answer["text"]


def test_a_clip_of_image_files_over_http(clips):
    """The answer is the engine's own, token by token, and follows from the frames and from their pace."""
    engine, ports = clips
    first = []
    for fps, frames in ((4, FRAMES), (1, FRAMES), (4, FRAMES[::-1])):
        options = {**GREEDY, "max_new_tokens": TOKENS, "logprobs": 0}
        files = [uri(png(frame)) for frame in frames]
        *_, last = events(ports, QUESTION=WHAT, FRAMES=files, OPTIONS=json.dumps({**options, "fps": fps}))
        answer = json.loads(last["ANSWER"])
        expected = engine.chat(WHAT, video=Video(frames, fps=fps), **options)
        assert answer["raw_text"] == expected.raw_text and answer["prompt_tokens"] == expected.stats.prompt_tokens
        probabilities = [token["logprob"] for token in answer["logprobs"]]
        np.testing.assert_allclose(probabilities, [token.logprob for token in expected.logprobs], atol=CLOSE)
        first.append(probabilities[0])
    assert all(abs(first[0] - other) > 10 * CLOSE for other in first[1:])


def test_the_example_sends_a_folder_of_frames_as_a_clip(clips, tmp_path):
    engine, ports = clips
    for number, frame in enumerate(FRAMES):
        (tmp_path / f"{number:04}.png").write_bytes(png(frame))
    _, answer = told(asking(ports, tmp_path, WHAT, "--fps", "4"))
    expected = engine.chat(WHAT, video=Video(FRAMES, fps=4), **GREEDY)
    assert answer["raw_text"] == expected.raw_text and len(expected.raw_text) > TOKENS
    assert answer["prompt_tokens"] == expected.stats.prompt_tokens


def test_a_clip_that_the_model_does_not_take_is_one_sentence(served):
    (error,) = events(served, QUESTION=WHAT, FRAMES=[uri(png(frame)) for frame in FRAMES])
    assert "clip" in error["error"] and "\n" not in error["error"]


@pytest.mark.parametrize(
    ("seen", "match"),
    [
        ("missing.png", '"missing.png" cannot be read as a picture'),
        (__file__, "cannot be read as a picture: cannot identify"),
        (PICTURE, "failed to connect"),
        (GOLDEN / "qwen2_vl" / "images", "holds no frames of one size"),
    ],
)
def test_what_the_example_lacks_is_one_sentence(seen, match):
    packages()
    command = [PYTHON, ASK, seen, WHERE, f"127.0.0.1:{free_port()}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert run.returncode == 1 and match in run.stderr and run.stderr.count("\n") == 1
