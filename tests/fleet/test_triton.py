"""The Triton model on a stand-in for Triton's module, and in a real server where one is installed."""

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import QwenVLError
from support import triton_stand_in
from support.paths import ROOT
from support.patience import PATIENCE_S
from support.served import free_port, is_up, until

REPOSITORY = ROOT / "examples" / "triton" / "models"
PICTURE = ROOT / "models" / "nano" / "demo.png"
WHERE = "Where is the red mug?"
GREEDY = {"do_sample": False}
START_S = PATIENCE_S


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

    tensors = {"QUESTION": words(question)}
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


def installed():
    """The packages of the server that `make triton-test` installs, or skip."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    packages = ROOT / ".cache" / "triton" / "lib" / f"python{version}" / "site-packages"
    if not (packages / "pytriton").is_dir():
        pytest.skip("there is no Triton Inference Server; `make triton-test` installs the one of nvidia-pytriton")
    return packages, packages / "pytriton" / "tritonserver" / "python_backend_stubs" / version


@pytest.fixture(scope="module")
def served(nano, tmp_path_factory):
    """A real server on the model repository; yields its ports."""
    packages, stub = installed()
    folder = tmp_path_factory.mktemp("triton")
    ignored = shutil.ignore_patterns("python_backend_stubs")
    server = shutil.copytree(stub.parents[1], folder / "server", ignore=ignored)
    backend = server / "backends" / "python"
    shutil.copy(stub / "triton_python_backend_stub", backend)
    # The backend runs the system's Python, isolated, with its own folder on the path: what it needs is linked there.
    for package in (ROOT / "runtime" / "qwenvl_edge", *packages.iterdir()):
        if not (backend / package.name).exists():
            (backend / package.name).symlink_to(package)
    models = shutil.copytree(REPOSITORY, folder / "models")
    shutil.copytree(nano, models / "qwenvl" / "1" / "bundle")
    ports = {name: free_port() for name in ("http", "grpc")}
    command = [server / "bin" / "tritonserver", f"--model-repository={models}", f"--backend-directory={backend.parent}"]
    command += ["--allow-metrics=false", "--exit-timeout-secs=5", *(f"--{k}-port={v}" for k, v in ports.items())]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")}
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:

            def ready():
                assert process.poll() is None, log.read_text()[-3000:]
                return is_up(f"http://127.0.0.1:{ports['http']}/v2/health/ready")

            until(ready, START_S)
            yield ports
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def test_a_real_server_streams_over_http(served, engine):
    uri = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    url = f"http://127.0.0.1:{served['http']}/v2/models/qwenvl/generate_stream"

    def events(**body):
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as response:
            return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]

    found = events(QUESTION=WHERE, IMAGE=uri, OPTIONS=json.dumps(GREEDY))
    expected = engine.chat(WHERE, images=[PICTURE], **GREEDY)
    assert "".join(event["TEXT"] for event in found).strip() == expected.text and len(found) > 2
    answer = json.loads(found[-1]["ANSWER"])
    assert answer["boxes"][0]["x1"] == expected.boxes[0].x1 and answer["finish_reason"] == "stop"
    (error,) = events(QUESTION="")
    assert "empty" in error["error"]


def test_the_example_asks_a_real_server_over_grpc(served, engine):
    """Two at once, about one array."""
    packages, _ = installed()
    questions = (WHERE, "Describe the picture.")
    program = [packages.parents[2] / "bin" / "python", ROOT / "examples" / "triton" / "ask.py", PICTURE]
    asking = [
        subprocess.Popen(
            [*program, question, f"127.0.0.1:{served['grpc']}"], stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        for question in questions
    ]
    for question, process in zip(questions, asking, strict=True):
        out, _ = process.communicate(timeout=START_S)
        assert process.returncode == 0
        *text, answer = out.strip().splitlines()
        expected = engine.chat(question, images=[PICTURE], **GREEDY)
        assert "\n".join(text).strip() == expected.text == json.loads(answer)["text"]


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        ("missing.png", '"missing.png" cannot be read as a picture'),
        (__file__, "cannot be read as a picture: cannot identify"),
        (PICTURE, "failed to connect"),
    ],
)
def test_what_the_example_lacks_is_one_sentence(picture, match):
    packages, _ = installed()
    program = [packages.parents[2] / "bin" / "python", ROOT / "examples" / "triton" / "ask.py", picture, WHERE]
    command = [*program, f"127.0.0.1:{free_port()}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert run.returncode == 1 and match in run.stderr and run.stderr.count("\n") == 1
