"""Every option of every call with values of other types and ranges: it works, or a QwenVLError names the option."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import numpy as np
import pytest

from qwenvl_edge import ContextError, FrameSource, QwenVLEngine, QwenVLError, load_picture
from qwenvl_edge.inputs.clips import Video
from qwenvl_edge.inputs.options import GenerationOptions, SamplingParams
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from support.scripted import engine

RECORDS = (SamplingParams, GenerationOptions)
OPTIONS = sorted({field.name for cls in RECORDS for field in dataclasses.fields(cls)} - {"sampling"})
OPTIONS += ["min_pixels", "max_pixels"]
# What an error calls otherwise, such as "picture 1" for images.
UNNAMED = {"message", "messages", "images", "video", "phrase", "source", "image", "question", "frame"}
BAD = [
    *(None, "5", "", "RGB", b"x", 5, -1, 0, 2.5, float("nan"), float("inf"), 10**400, 1j, True),
    *(
        [],
        [None],
        ["a", 5],
        {},
        {"a": "b"},
        {None: 1},
        {5: None},
        set(),
        object(),
        len,
        ...,
        np.float32(3),
        np.zeros(3),
    ),
    *(iter(()), "\ud800", "a" * 10_000),
]


@pytest.fixture
def qwen(tmp_path):
    qwen, backend = engine(tmp_path, *["fine<|im_end|>"] * 2000)
    backend.runner_up = 5  # an option may make another token the likeliest
    return qwen


def survives(call, name, value) -> None:
    """The call returns, or raises a QwenVLError of one short sentence that names the option."""
    try:
        call()
    except ContextError:
        pass  # words of that length do not fit
    except QwenVLError as error:
        words = str(error)
        assert name in words or name in UNNAMED, words
        assert len(words) < 700 and "\n" not in words, words


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_an_answer(qwen, name):
    for value in BAD:
        for call in (qwen.chat, qwen.complete):
            survives(lambda call=call, value=value: call("hi", **{"max_new_tokens": 2, name: value}), name, value)


METHODS = "chat stream complete count_tokens chat_many ground read caption load_picture batcher"


@pytest.mark.parametrize("method", METHODS.split())
def test_arguments_of_the_engine(qwen, method):
    call = getattr(qwen, method)
    usual = {"message": "hi", "messages": [], "image": np.zeros((4, 4, 3), np.uint8), "phrase": "dots"}
    usual["source"] = usual["image"]
    parameters = inspect.signature(call).parameters
    needed = {name: usual[name] for name, each in parameters.items() if each.default is each.empty and name in usual}
    for name, parameter in parameters.items():
        for value in BAD if parameter.kind is not parameter.VAR_KEYWORD else ():
            arguments = needed | {name: value}

            def run(arguments=arguments):
                found = call(**arguments)
                if method == "stream":
                    found.finish()
                if method == "batcher":
                    found.close()

            survives(run, name, value)


def test_none_is_a_new_conversation(qwen):
    assert qwen.chat("hi", history=None).text == qwen.chat("hi", history=[]).text == "fine"


@pytest.mark.parametrize("name", [each for each in inspect.signature(QwenVLEngine).parameters if each != "bundle"])
def test_options_of_an_engine(qwen, name):
    backend = qwen._selection.backend
    for value in BAD:
        survives(lambda value=value: QwenVLEngine(qwen.bundle, **{"backend": backend, name: value}), name, value)


@pytest.mark.parametrize("value", BAD)
def test_bundles(value):
    with pytest.raises(QwenVLError):
        QwenVLEngine(value)


@pytest.mark.parametrize("value", BAD)
def test_nodes_and_cameras(qwen, value):
    for field in dataclasses.fields(NodeSettings):
        survives(lambda name=field.name: NodeSettings(**{name: value}), field.name, value)
    survives(lambda: FrameSource(channel_order=value), "channel_order", value)
    frames, node, pixels = FrameSource(), VlmNode(qwen), np.zeros((2, 2), np.uint8)
    survives(lambda: frames.put(value), "frame", value)
    survives(lambda: frames.put(pixels, captured=value), "captured", value)
    frames.put(pixels)
    survives(lambda: frames.take(max_age_ms=value if isinstance(value, str) else [value]), "max_age_ms", value)
    survives(lambda: frames.take(timeout_s=value if isinstance(value, str) else [value]), "timeout_s", value)
    survives(lambda: node.put_question(value), "question", value)


@pytest.mark.parametrize("value", BAD)
def test_clips(value):
    frames = [np.zeros((2, 2), np.uint8)] * 2
    survives(lambda: Video(value), "frames", value)
    survives(lambda: Video(frames, fps=value), "fps", value)
    survives(lambda: Video(frames, times=value), "times", value)
    survives(lambda: Video(frames, times=[0, value]), "time", value)


def test_pictures():
    gray = np.zeros((4, 4), np.uint8)
    for value in BAD:
        survives(lambda value=value: load_picture(value), "source", value)
        survives(lambda value=value: load_picture(gray, channel_order=value), "channel_order", value)


def test_every_option_is_typed():
    """A field without a Kind would not be checked."""
    for cls in (SamplingParams, GenerationOptions, NodeSettings):
        hints = typing.get_type_hints(cls, include_extras=True)
        assert all(hasattr(hints[field.name], "__metadata__") for field in dataclasses.fields(cls))
