"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL against tensors that transformers computed."""

import itertools
import json

import numpy as np
import pytest

from qwenvl_edge import ImageError, Video, load_picture
from qwenvl_edge.families.mrope import positions_of
from qwenvl_edge.families.pieces import PictureLayout, PixelLimits, Span
from qwenvl_edge.inputs.clips import load_clip
from qwenvl_edge.inputs.parts import Text
from qwenvl_edge.inputs.prompt import PromptBuilder, Turn
from support.families import (
    FAMILIES,
    GOLDEN,
    family_of,
    golden,
    golden_json,
    load,
    picture_file,
    prompt_of,
    tokenizer_of,
    video_of,
)

pytestmark = pytest.mark.parametrize("name", FAMILIES)


def test_every_text_is_encoded_as_published_but_for_control_tokens(name):
    tokenizer, differing = tokenizer_of(name), []
    for case in golden_json(name, "tokenizer")["encode"]:
        plain = tokenizer.encode(case["text"])
        assert tokenizer.encode(case["text"], allowed_special="all") == case["ids"]
        assert tokenizer.decode(plain) == tokenizer.decode(case["ids"]) == case["decoded"]
        if plain != case["ids"]:
            differing.append(case["text"])
    known = family_of(name).special_tokens
    assert differing == [
        case["text"]
        for case in golden_json(name, "tokenizer")["encode"]
        if any(token in case["text"] for token in known)
    ]


def built(name, messages, show, numbered):
    """A prompt of messages; show: makes a picture or clip of its kind."""

    def parts(content):
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return tuple(Text(item["text"]) if item["type"] == "text" else show[item["type"]]() for item in items)

    family = family_of(name)
    system = messages[0]["content"] if messages[0]["role"] == "system" else family.default_system
    talk = [message for message in messages if message["role"] != "system"]
    pairs = zip(talk[:-1:2], talk[1::2], strict=True)
    history = [Turn(parts(asked["content"]), answered["content"]) for asked, answered in pairs]
    builder = PromptBuilder(family, tokenizer_of(name), numbered=numbered)
    return builder.chat(parts(talk[-1]["content"]), history=history, system=system, window=10**6)


@pytest.mark.parametrize("numbered", [False, True])
def test_conversations_are_rendered_as_the_published_templates_do(name, numbered):
    """Every picture is one of 2 x 2 tokens here, every clip of one frame, so that runs of pads are known."""
    family, tokenizer = family_of(name), tokenizer_of(name)
    side = 2 * family.config.factor
    pixels = np.zeros((side, side, 3), np.uint8)
    video = load_clip(Video([pixels], times=[0.0]), load, "clip")
    show = {"image": lambda: load_picture(pixels), "video": lambda: video}
    count = 0
    for case in golden_json(name, "tokenizer")["renders"]:
        last = case["messages"][-1]["role"]
        if case["add_vision_id"] is not numbered or not case["add_generation_prompt"] or last != "user":
            continue
        count += 1
        text = case["rendered"]
        for pad in ("<|image_pad|>", "<|video_pad|>"):
            text = text.replace(pad, pad * 4)
        if name == "qwen3_vl":
            run = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
            text = text.replace(run, f"<|vision_start|><0.0 seconds>{run}<|vision_end|>")
        prompt = built(name, case["messages"], show, numbered=numbered)
        assert tokenizer.decode(prompt.ids) == text
        assert prompt.ids.tolist() == tokenizer.encode(text, allowed_special="all")
    assert count >= 6


def test_target_sizes(name):
    family = family_of(name)
    for height, width, factor, low, high, new_height, new_width in golden_json(name, "tokenizer")["smart_resize"]:
        assert factor == family.config.factor
        layout = family.layout((width, height), PixelLimits(low, high))
        assert (layout.grid[1] * factor, layout.grid[2] * factor) == (new_height, new_width), (width, height)


@pytest.mark.parametrize("letter", "abcdef")
def test_pictures_become_the_recorded_inputs(name, letter):
    family, recorded = family_of(name), golden(name, "vision")
    picture = load_picture(picture_file(name, letter))
    inputs, layout = picture.vision_inputs(family), picture.layout(family)
    _, rows, columns = recorded[f"{letter}.grid_thw"].tolist()
    assert layout.grid == (1, rows // 2, columns // 2)
    np.testing.assert_allclose(inputs["pixel_values"][0], recorded[f"{letter}.pixel_values"], rtol=0, atol=1e-6)
    if letter in "ab":
        _check_tables(name, inputs, {key[2:]: value for key, value in recorded.items() if key[0] == letter})


def _check_tables(name, inputs, recorded):
    half = recorded["rope_cos"].shape[1] // 2
    np.testing.assert_allclose(inputs["patch_cos"], recorded["rope_cos"][:, :half], rtol=0, atol=1e-6)
    np.testing.assert_allclose(inputs["patch_sin"], recorded["rope_sin"][:, :half], rtol=0, atol=1e-6)
    if name == "qwen2_5_vl":
        order, bounds = recorded["window_index"], recorded["cu_window_seqlens"]
        keys = inputs["window_keys"][:, 0, 0]
        gather = inputs["window_gather"].reshape(keys.shape)
        patches = (order[:, None] * 4 + np.arange(4)).reshape(-1)
        windows = [patches[a:b] for a, b in itertools.pairwise(bounds) if b > a]
        assert len(windows) == len(keys)
        for window, places, filled in zip(windows, gather, keys, strict=True):
            np.testing.assert_array_equal(places[filled], window)
        np.testing.assert_array_equal(gather.reshape(-1)[inputs["window_back"]], np.arange(len(inputs["window_back"])))
    if name == "qwen3_vl":
        dense = [np.zeros((len(recorded["rope_cos"]), 144)) for _ in range(2)]
        pairs = (
            (inputs["position_index"], inputs["position_weight"]),
            (recorded["interpolation_index"], recorded["interpolation_weight"]),
        )
        for table, (index, weight) in zip(dense, pairs, strict=True):
            np.add.at(table, (np.arange(len(table))[:, None], index), weight)
        np.testing.assert_allclose(*dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("prompt", ["one", "two", "text", "video2", "video5", "mixed"])
def test_prompts_have_the_recorded_ids_and_positions(name, prompt):
    recorded, found = golden(name, "text"), prompt_of(name, prompt)
    np.testing.assert_array_equal(found.ids, recorded[f"{prompt}.input_ids"])
    kinds = np.zeros(len(found.ids), int)
    for span in found.spans:
        kinds[span.start : span.start + span.length] = 1 + (type(found.pictures[span.picture]).__name__ == "Clip")
    np.testing.assert_array_equal(kinds, recorded[f"{prompt}.mm_token_type_ids"])
    positions = found.positions
    np.testing.assert_array_equal(
        positions_of(len(found.ids), found.spans, family_of(name)._time_steps), recorded[f"{prompt}.position_ids"]
    )
    assert positions.delta == int(recorded[f"{prompt}.rope_delta"].item())
    rows = positions.rows(0, len(found.ids))
    np.testing.assert_allclose(rows.cos[0], recorded[f"{prompt}.rope_cos"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.sin[0], recorded[f"{prompt}.rope_sin"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", ["video2", "video5"])
def test_clips_become_the_recorded_inputs(name, prompt):
    recorded, clip = golden(name, "text"), load_clip(video_of(name, prompt), load, "clip")
    inputs = clip.vision_inputs(family_of(name))
    values = recorded[f"{prompt}.pixel_values_videos"]
    np.testing.assert_allclose(inputs["pixel_values"].reshape(values.shape), values, rtol=0, atol=1e-6)


def test_positions_of_long_and_mixed_prompts(name):
    cases = [case for case in json.loads((GOLDEN / "position_cases.json").read_text()) if case["family"] == name]
    assert len(cases) >= 8
    family = family_of(name)
    for case in cases:
        spans, at, number = [], 0, 0
        visuals = [part for part in case["parts"] if part[0] != "text"]
        rows = iter([count for kind, count in case["tokens"] if kind.endswith("_pad")])
        layouts = []
        for kind, *grid in visuals:
            frames, seconds = (grid[0], grid[3]) if kind == "clip" else (1, 0.0)
            height, width = grid[-3:-1] if kind == "clip" else grid
            layouts.append(PictureLayout(frames * height * width, (frames, height, width), seconds))
        first = 0
        for kind, count in case["tokens"]:
            if kind.endswith("_pad"):
                assert count == next(rows)
                spans.append(Span(at, count, number, layouts[number], first))
                first += count
                if first == layouts[number].tokens:
                    number, first = number + 1, 0
            at += count
        np.testing.assert_array_equal(positions_of(at, spans, family._time_steps), case["positions"])
        assert family.positions(at, spans).delta == case["delta"]


def test_sides_that_differ_too_much_are_refused(name):
    with pytest.raises(ImageError, match="201x1 pixels: one side is more than 200 times the other"):
        family_of(name).layout((201, 1))
