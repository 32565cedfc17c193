"""The Triton model on a stand-in for Triton's module."""

import base64
import importlib.util
import io
import json
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import QwenVLError
from support import triton_stand_in
from support.paths import ROOT
from support.triton_server import REPOSITORY

PICTURE = ROOT / "models" / "nano" / "demo.png"
WHERE = "Where is the red mug?"
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def engine(nano):
    return QwenVLEngine(nano, threads=1)


@pytest.fixture(scope="module")
def module():
    """The repository's model.py, as Triton loads it."""
    sys.modules["triton_python_backend_utils"] = triton_stand_in
    spec = importlib.util.spec_from_file_location("model", REPOSITORY / "qwenvl" / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("triton_python_backend_utils", "qwenvl_edge.fleet.triton"):
        del sys.modules[name]


def start(module, nano, **parameters):
    given = {name: {"string_value": value} for name, value in {"bundle": nano.name, **parameters}.items()}
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(nano.parents[1]),
            "model_version": nano.parent.name,
            "model_config": json.dumps({"parameters": given}),
        }
    )
    return model


@pytest.fixture(scope="module")
def model(module, nano):
    model = start(module, nano, threads="1", rows="4")
    yield model
    model.finalize()


def request(question=WHERE, *, images=(), pixels=None, options=GREEDY, leave_after=None):
    def words(*values):
        return np.array([each if isinstance(each, bytes) else each.encode() for each in values], np.object_)

    tensors = {"QUESTION": words(*question) if isinstance(question, list) else words(question)}
    if images:
        tensors["IMAGE"] = words(*images)
    if pixels is not None:
        tensors["PIXELS"] = pixels
    if options is not None:
        tensors["OPTIONS"] = words(options if isinstance(options, bytes) else json.dumps(options))
    return triton_stand_in.Request(tensors, leave_after)


def answered(model, *requests):
    """The pieces and the answer of each of some requests."""
    assert model.execute(list(requests)) is None
    found = []
    for each in requests:
        *pieces, last = each.sender.wait()
        assert last.error is None, last.error.message()
        assert all(set(piece.tensors) == {"TEXT"} for piece in pieces)
        found.append(
            (b"".join(piece.tensors["TEXT"][0] for piece in pieces).decode(), json.loads(last.tensors["ANSWER"][0]))
        )
    return found


def test_pieces_and_an_answer_for_every_way_to_send_a_picture(model, engine):
    data = PICTURE.read_bytes()
    uri = b"data:image/png;base64," + base64.b64encode(data)
    pixels = np.asarray(Image.open(PICTURE).convert("RGB"))
    questions = [WHERE, "Describe the picture.", "描述这张图片。"]
    requests = [request(each, images=[data]) for each in questions]
    requests += [request(images=[uri]), request(pixels=pixels), request("What changed?", images=[data, uri])]
    found = answered(model, *requests)
    expected = [engine.chat(each, images=[PICTURE], **GREEDY) for each in [*questions, WHERE, WHERE]]
    expected.append(engine.chat("What changed?", images=[PICTURE, PICTURE], **GREEDY))
    for (text, answer), reply in zip(found, expected, strict=True):
        assert text.strip() == reply.text == answer["text"] and answer["raw_text"] == reply.raw_text
        assert answer["finish_reason"] == "stop" and answer["new_tokens"] == reply.stats.new_tokens
    (box,) = found[0][1]["boxes"]
    place = expected[0].boxes[0]
    assert box == {"label": "the red mug", "image": 0, "x1": place.x1, "y1": place.y1, "x2": place.x2, "y2": place.y2}
    assert sum(answer["images_encoded"] for _, answer in found) == 1  # one picture, however it was sent


@pytest.mark.parametrize("as_files", [False, True])
def test_a_clip(module, tmp_path, as_files):
    """Frames in the order of time, at the rate that OPTIONS says, in a family that takes clips."""
    from support.families import scripted_engine

    engine, seen = scripted_engine(tmp_path, "qwen2_vl", "a red mug<|im_end|>")[0], []

    class Alone:
        """Answers one request as a batcher would: the scripted model takes no batches."""

        def submit(self, *, message, images, video, on_text, cancel, **overrides):
            seen.append(video)
            reply, future = engine.chat(message, images=images, video=video, cancel=cancel, **overrides), Future()
            on_text(reply.text)
            future.set_result(reply)
            return future

    model = module.TritonPythonModel()
    model._batcher = Alone()
    frames = np.stack([np.full((56, 56, 3), shade, np.uint8) for shade in (10, 20, 30, 40)])
    asked = request("What?", options={**GREEDY, "fps": 4})
    if as_files:
        asked.tensors["FRAMES"] = np.array([png(frame) for frame in frames], np.object_)
    else:
        asked.tensors["CLIP"] = frames
    ((text, answer),) = answered(model, asked)
    (video,) = seen
    assert text == answer["text"] == "a red mug" and list(video.seconds) == [0.0, 0.25, 0.5, 0.75]
    assert [each if as_files else each[0, 0, 0] for each in video.frames] == (
        [png(frame) for frame in frames] if as_files else [10, 20, 30, 40]
    )


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        (["CLIP"], GREEDY, "clip"),  # the nano model takes none
        (["CLIP", "FRAMES"], GREEDY, "both FRAMES and CLIP"),
        ([], {**GREEDY, "fps": 2}, "fps, but there is no clip"),
        (["CLIP"], {**GREEDY, "fps": 0}, "fps"),
    ],
)
def test_bad_clips_are_one_sentence(model, names, options, match):
    tensors = {"CLIP": np.zeros((2, 56, 56, 3), np.uint8), "FRAMES": np.array([png(np.zeros((9, 9, 3), np.uint8))] * 2)}
    asked = request("What?", options=options)
    asked.tensors.update({name: tensors[name] for name in names})
    model.execute([asked])
    (last,) = asked.sender.wait()
    assert match in last.error.message() and last.error.code() == triton_stand_in.TritonError.INVALID_ARG


def test_options(model, engine):
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    schema["additionalProperties"] = False
    history = [["Hello.", "Hi."]]
    (_, short), (_, later), (_, form) = answered(
        model,
        request("Describe the picture.", images=[PICTURE.read_bytes()], options={**GREEDY, "max_new_tokens": 3}),
        request("And?", options={**GREEDY, "history": history, "system": "Be brief."}),
        request(
            "How many?", images=[PICTURE.read_bytes()], options={**GREEDY, "json_schema": schema, "max_new_tokens": 30}
        ),
    )
    assert short["finish_reason"] == "length" and short["new_tokens"] == 3
    assert later["text"] == engine.chat("And?", history=history, system="Be brief.", **GREEDY).text
    assert set(json.loads(form["raw_text"])) == {"count"} and form["complete"] is True and short["complete"] is None


def test_the_answer_is_the_reply_in_the_form_of_the_server(model, engine):
    from qwenvl_edge.fleet import triton
    from qwenvl_edge.server.render import ChatRenderer, Form

    picture = PICTURE.read_bytes()
    reply = engine.chat(WHERE, images=[picture], logprobs=2, **GREEDY)
    ((_, answer),) = answered(model, request(images=[picture], options={**GREEDY, "logprobs": 2}))
    ((_, plain),) = answered(model, request(images=[picture]))
    choice = ChatRenderer(Form("nano")).whole(reply)["choices"][0]
    assert triton._answer(reply) == {**choice["message"]["qwenvl"], "logprobs": choice["logprobs"]["content"]}
    assert set(answer) - set(plain) == {"logprobs"} and set(plain) == set(reply.to_dict())
    assert [entry["bytes"] for entry in answer["logprobs"]] == [list(entry.data) for entry in reply.logprobs]
    ((_, fresh),) = answered(model, request(images=[picture], options={**GREEDY, "logprobs": 0}))
    measured = ("ttft_ms", "tokens_per_s", "images_encoded", "reused_tokens", "logprobs")
    assert {name: fresh[name] for name in fresh if name not in measured} == {
        name: value for name, value in reply.to_dict().items() if name not in measured
    }


def test_a_client_that_goes_away_ends_its_answer(model):
    (_, answer), (_, other) = answered(
        model,
        request("Describe the picture.", images=[PICTURE.read_bytes()], leave_after=2),
        request("Describe the picture.", images=[PICTURE.read_bytes()]),
    )
    assert answer["finish_reason"] == "cancelled" and other["finish_reason"] == "stop"
    assert answer["new_tokens"] < other["new_tokens"]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"images": [b"no picture"]}, "image"),
        ({"images": [b"data:image/png;base64,!"]}, "not valid base64"),
        ({"question": b"\xff"}, "QUESTION is not UTF-8"),
        ({"question": ""}, "empty"),
        ({"question": []}, "QUESTION has 0 values; give one"),
        ({"question": ["Hello", "Hi"]}, "QUESTION has 2 values; give one"),
        ({"options": b"[" * 100_000}, "OPTIONS is not JSON"),
        ({"options": b"{"}, "OPTIONS is not JSON"),
        ({"options": []}, "OPTIONS is not a JSON object"),
        ({"options": {"depth": 1}}, "OPTIONS has 'depth'; known are"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"logprobs": 21}}, "logprobs is 21"),
        ({"options": {"logprobs": True}}, "logprobs in OPTIONS is True"),
        ({"pixels": np.zeros((4, 4, 7), np.uint8)}, "picture"),
    ],
)
def test_bad_input_is_one_error_and_the_next_request_is_answered(model, bad, match):
    asked, after = request(**bad), request(images=[PICTURE.read_bytes()])
    model.execute([asked, after])
    (response,) = asked.sender.wait()
    assert match in response.error.message() and "\n" not in response.error.message()
    assert response.error.code() == triton_stand_in.TritonError.INVALID_ARG
    assert after.sender.wait()[-1].error is None


def test_a_failure_that_nobody_thought_of_is_the_request_s_own(model, monkeypatch):
    asked, after = request("Fail."), request(images=[PICTURE.read_bytes()])
    submit = model._batcher.submit

    def failing(message, **arguments):
        if message == "Fail.":
            raise KeyError("nobody thought of it")
        return submit(message, **arguments)

    monkeypatch.setattr(model._batcher, "submit", failing)
    model.execute([asked, after])
    (response,) = asked.sender.wait()
    assert "KeyError: 'nobody thought of it'" in response.error.message()
    assert after.sender.wait()[-1].error is None


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"row": "4"}, "parameter 'row'; known are"),
        ({"rows": "many"}, "rows in config.pbtxt"),
        ({"bundle": "no"}, "no bundle"),
    ],
)
def test_bad_parameters(module, nano, parameters, match):
    with pytest.raises(QwenVLError, match=match):
        start(module, nano, **parameters)
