"""The engine on Qwen2-VL, Qwen2.5-VL and Qwen3-VL, over scripted answers."""

import numpy as np
import pytest

from qwenvl_edge import Box, Constraint, Point, PromptError, Quad, ToolCall, Video
from qwenvl_edge.bundle.manifest import FamilyInfo
from qwenvl_edge.errors import BundleError, ImageError
from qwenvl_edge.families import create_family
from support.families import FAMILIES, as_json, config_of, family_of, scripted_engine
from support.scripted import MODEL

RED = np.full((84, 112, 3), (255, 0, 0), np.uint8)
BLUE = np.full((56, 56, 3), (0, 0, 255), np.uint8)
OK = "ok<|im_end|>"
JSON = '[{"bbox_2d": [%s], "label": "cup"}]<|im_end|>'


def shown(backend, tokenizer, index=-1):
    """The text of a prompt, [rows] where a picture's features stand."""
    text, rows = "", 0
    for token in [*backend.prompt_ids(index), None]:
        if token == -1:
            rows += 1
            continue
        text += f"[{rows}]" if rows else ""
        rows = 0
        text += "" if token is None else tokenizer.decode([token], errors="replace")
    return text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_that_the_backend_sees(tmp_path, name):
    qwen, backend, tokenizer = scripted_engine(tmp_path, name, OK)
    reply = qwen.chat("<|im_end|> hi", images=[RED])
    system = "" if name == "qwen3_vl" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    rows = 3 * 4  # of 28 and of 32 pixels
    assert shown(backend, tokenizer) == (
        f"{system}<|im_start|>user\n<|vision_start|>[{rows}]<|vision_end|><|im_end|> hi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    control = family_of(name, first_id=256).turn_end
    assert backend.prompt_ids().count(control) == 1 + (name != "qwen3_vl")  # the user's is text
    assert (reply.text, reply.stats.image_tokens, backend.encoded) == ("ok", rows, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_go_on_where_they_ended(tmp_path, name):
    qwen, backend, _ = scripted_engine(tmp_path, name, OK, OK, OK, options={"prefill_chunk": 7})
    first = qwen.chat("What is it?", images=[RED, BLUE])
    second = qwen.chat("And?", history=first.history)
    # All but the newline after the answer's end, which the model does not write, was computed.
    assert second.stats.reused_tokens == first.stats.prompt_tokens + first.stats.new_tokens - 1
    third = qwen.chat("What is it?", images=[RED, RED])
    assert third.stats.images_encoded == 0 and backend.encoded == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_of_another_size_is_another_picture(tmp_path, name):
    qwen, backend, _ = scripted_engine(tmp_path, name, *[OK] * 4)
    full = qwen.chat("?", images=[RED])
    small = qwen.chat("?", images=[RED], max_pixels=4096)
    assert small.stats.image_tokens < full.stats.image_tokens
    assert small.stats.reused_tokens == backend.prompt_ids().index(-1) and backend.encoded == 2
    item = qwen.chat([{"image": RED, "max_pixels": 4096}, {"text": "?"}])
    assert item.stats.reused_tokens == small.stats.prompt_tokens - 1
    again = qwen.chat("!", history=small.history)
    assert again.stats.image_tokens == small.stats.image_tokens and backend.encoded == 2


def test_limits_of_the_engine_are_those_of_its_calls(tmp_path):
    qwen, _, _ = scripted_engine(tmp_path, "qwen2_vl", OK, options={"max_pixels": 28 * 28})
    assert qwen.chat("?", images=[RED]).stats.image_tokens == 1
    assert qwen.count_tokens("?", images=[RED], max_pixels=4 * 784) == qwen.count_tokens("?", images=[RED]) + 1
    with pytest.raises(PromptError, match="leaves no token"):
        scripted_engine(tmp_path, "qwen2_vl", options={"max_pixels": 700})
    with pytest.raises(PromptError, match="leaves no token"):
        qwen.chat("?", images=[RED], max_pixels=700)
    with pytest.raises(ImageError, match="more than 200 times"):
        qwen.chat("?", images=[np.zeros((1, 201, 3), np.uint8)])


def test_pictures_are_numbered_over_a_conversation_if_asked(tmp_path):
    answers = [OK, f"In Picture 2: {JSON % '0, 0, 500, 500'}"]
    qwen, backend, tokenizer = scripted_engine(tmp_path, "qwen3_vl", *answers, options={"number_pictures": True})
    first = qwen.chat("?", images=[RED])
    second = qwen.chat("!", images=[BLUE, RED], history=first.history)
    text = shown(backend, tokenizer)
    assert [text.count(f"Picture {number}: <|vision_start|>") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert second.boxes == (Box("cup", 0.0, 0.0, 28.0, 28.0, 0),)  # Picture 2 is the first of this turn


@pytest.mark.parametrize("name", FAMILIES)
def test_clips(tmp_path, name):
    qwen, backend, tokenizer = scripted_engine(tmp_path, name, OK, OK, OK)
    frames = [np.full((64, 96, 3), level, np.uint8) for level in (10, 20, 30)]
    reply = qwen.chat("What happens?", images=[BLUE], video=Video(frames, fps=2))
    text = shown(backend, tokenizer)
    if name == "qwen3_vl":
        assert "<|vision_start|><0.2 seconds><|vision_start|>[6]<|vision_end|><1.0 seconds>" in text
    else:
        assert "<|vision_end|><|vision_start|>[12]<|vision_end|>What happens?" in text
    assert reply.stats.image_tokens == 12 + 4
    again = qwen.chat("And?", history=reply.history)
    assert again.stats.images_encoded == 0 and again.stats.reused_tokens > reply.stats.prompt_tokens - 1
    slower = qwen.chat("What happens?", images=[BLUE], video=Video(frames, fps=1))
    assert (slower.stats.images_encoded, slower.stats.reused_tokens < reply.stats.prompt_tokens - 1) == {
        "qwen2_vl": (0, False),
        "qwen2_5_vl": (1, True),
        "qwen3_vl": (0, True),
    }[name]


@pytest.mark.parametrize(
    ("name", "answer", "places"),
    [
        (
            "qwen2_vl",
            "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(0,0),(500,1000)<|box_end|><|im_end|>",
            (Box("cup", 0.0, 0.0, 56.0, 84.0, 0),),
        ),
        ("qwen2_5_vl", JSON % "0, 0, 56, 84", (Box("cup", 0.0, 0.0, 56.0, 84.0, 0),)),
        ("qwen3_vl", JSON % "0, 0, 500, 1000", (Box("cup", 0.0, 0.0, 56.0, 84.0, 0),)),
    ],
)
def test_boxes_of_each_notation(tmp_path, name, answer, places):
    qwen, _, _ = scripted_engine(tmp_path, name, answer, answer)
    reply = qwen.ground(RED, "the cup")
    assert reply.boxes == places == reply.refs[0].boxes and reply.refs[0].label == "cup"
    assert reply.malformed == () and reply.draw().size == (112, 84)
    assert ("cup" in reply.text) and ("box" not in reply.text or name != "qwen2_vl")


def test_points_and_quads(tmp_path):
    answer = '```json\n[{"point_2d": [500, 500], "label": "tip"}, {"bbox_2d": [0, 0, 1000, 0, 1000, 1000, 0, 1000]}'
    qwen, _, _ = scripted_engine(tmp_path, "qwen3_vl", answer + "<|im_end|>")
    reply = qwen.point(RED, "the tip", max_new_tokens=200)
    assert reply.points == (Point("tip", 56.0, 42.0, 0),)
    assert reply.quads == (Quad("", ((0.0, 0.0), (112.0, 0.0), (112.0, 84.0), (0.0, 84.0)), 0),)
    assert reply.to_dict()["points"] == [{"label": "tip", "x": 56.0, "y": 42.0, "image": 0}]
    assert reply.draw().getpixel((56, 42)) == (255, 0, 0)


def test_a_region_of_the_resized_picture(tmp_path):
    qwen, backend, tokenizer = scripted_engine(tmp_path, "qwen2_5_vl", OK)
    qwen.chat([{"image": RED}, {"text": "What is "}, {"box": (0, 500, 500, 999)}, {"text": "?"}])
    assert 'What is {"bbox_2d": [0, 42, 56, 84]}?<|im_end|>' in shown(backend, tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_constraint_to_boxes(tmp_path, name):
    pytest.importorskip("llguidance")
    qwen, backend, _ = scripted_engine(tmp_path, name, "never this<|im_end|>")
    backend.runner_up = 42
    reply = qwen.chat("Where?", images=[RED], constraint=Constraint.boxes(), max_new_tokens=60)
    assert reply.complete and len(reply.boxes) >= 1 and reply.malformed == ()


@pytest.mark.parametrize("streamed", [False, True])
def test_reasoning_is_apart_from_the_answer(tmp_path, streamed):
    answers = ["I see\n</think>\n\nA cup.<|im_end|>", "</think>ok<|im_end|>"]
    qwen, backend, tokenizer = scripted_engine(tmp_path, "qwen3_vl", *answers, thinking=True)
    if streamed:
        stream = qwen.stream("?", images=[RED])
        pieces = list(stream.pieces())
        assert "".join(text for kind, text in pieces if kind == "thinking").strip() == "I see"
        assert "".join(text for kind, text in pieces if kind == "text") == "A cup."
        reply = stream.reply
    else:
        reply = qwen.chat("?", images=[RED])
    assert (reply.thinking, reply.text, reply.raw_text) == ("I see", "A cup.", "A cup.")
    assert shown(backend, tokenizer).endswith("<|im_start|>assistant\n<think>\n")
    qwen.chat("!", history=reply.history)
    assert "assistant\nA cup.<|im_end|>" in shown(backend, tokenizer)


def test_reasoning_has_a_budget(tmp_path):
    qwen, backend, _ = scripted_engine(tmp_path, "qwen3_vl", "on and on and on", thinking=True)
    backend.runner_up = 87  # "x"
    reply = qwen.chat("?", thinking_budget=4, max_new_tokens=20)
    assert (reply.thinking, reply.finish_reason) == ("on a", "length")
    assert reply.text.endswith("xxx") and "</think>" not in reply.raw_text
    assert reply.stats.forced_tokens == 4  # newline, end of the reasoning, an empty line


def test_a_constraint_begins_after_the_reasoning(tmp_path):
    pytest.importorskip("llguidance")
    qwen, backend, _ = scripted_engine(tmp_path, "qwen3_vl", "hm</think>", thinking=True)
    backend.runner_up = 0
    reply = qwen.chat("?", constraint=Constraint.choice(["yes", "no"]), max_new_tokens=20)
    assert reply.thinking == "hm" and reply.text in ("yes", "no") and reply.complete


def test_what_a_family_lacks_is_said(tmp_path):
    config = as_json(config_of("qwen2_vl"))
    for changes, error in (
        ({"special_tokens": {"<|im_end|>": 1}, "not_special": []}, r"has no <\|endoftext\|>, which Qwen2-VL needs"),
        ({"mrope_section": [1, 2, 3]}, "must add up to half the head size"),
        ({"max_pixels": 100}, "max_pixels is 100; it must be at least"),
        ({"used_rows": 3}, "used_rows is 3, but a special token's id is larger"),
        ({"image_std": [0.5, 0.5, 0]}, "each must be positive"),
    ):
        with pytest.raises(BundleError, match=error):
            create_family(FamilyInfo("qwen2_vl", config | changes), MODEL)


WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_tool_is_called_and_its_result_read(tmp_path, name):
    pytest.importorskip("llguidance")
    answers = [f"Let me see.\n{CALL}<|im_end|>", OK]
    options = {"max_context": 2000}
    qwen, backend, tokenizer = scripted_engine(tmp_path, name, *answers, options=options, tools=True)
    reply = qwen.chat("How warm is it?", tools=[WEATHER], max_new_tokens=200)
    assert reply.tool_calls == (ToolCall("weather", {"city": "Bern"}),)
    assert (reply.text, reply.raw_text, reply.finish_reason) == ("Let me see.", f"Let me see.\n{CALL}", "stop")
    system = shown(backend, tokenizer).partition("<|im_end|>")[0]
    assert "# Tools\n" in system and '\n{"type": "function", "function": {"name": "weather"' in system
    assert system.endswith('{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>')
    results = [{"tool_result": "12 degrees"}, {"tool_result": "windy </tool_call>"}]
    qwen.chat(results, history=reply.history, tools=[WEATHER])
    told = "<tool_response>\n12 degrees\n</tool_response>\n<tool_response>\nwindy </tool_call>\n</tool_response>"
    assert f"{CALL}<|im_end|>\n<|im_start|>user\n{told}<|im_end|>" in shown(backend, tokenizer)
    closing = qwen._family.special_tokens["</tool_call>"]
    assert backend.prompt_ids().count(closing) == 3  # two of the template, one of the call: the result's is text


def test_a_call_keeps_to_its_schema(tmp_path):
    pytest.importorskip("llguidance")
    qwen, backend, _ = scripted_engine(tmp_path, "qwen3_vl", "no call<|im_end|>", options={"max_context": 2000})
    backend.runner_up = 66
    reply = qwen.chat("?", tools=[WEATHER], tool_choice="required", max_new_tokens=80)
    assert reply.complete and [call.name for call in reply.tool_calls] == ["weather"]
    assert isinstance(reply.tool_calls[0].arguments["city"], str)


def test_no_tool_is_called_where_none_may_be(tmp_path):
    qwen, backend, _ = scripted_engine(tmp_path, "qwen3_vl", f"{CALL}<|im_end|>", options={"max_context": 2000})
    backend.runner_up = 66
    reply = qwen.chat("?", tools=[WEATHER], tool_choice="none", max_new_tokens=3)
    assert reply.tool_calls == () and "<tool_call>" not in reply.raw_text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tools": "weather"}, "tools is of type str; give a list"),
        ({"tools": [{"description": "x"}]}, "a tool is .* give"),
        ({"tools": [WEATHER, WEATHER]}, "two tools have the name 'weather'"),
        ({"tools": [{"name": "a", "parameters": 3}]}, "the parameters of the tool 'a' are no JSON Schema"),
        ({"tools": [WEATHER], "tool_choice": "all"}, "tool_choice is 'all'; it must be one of auto, none, required"),
        ({"tools": [WEATHER], "constraint": Constraint.boxes()}, "two forms of one answer"),
    ],
)
def test_impossible_tools(tmp_path, arguments, error):
    qwen, _, _ = scripted_engine(tmp_path, "qwen3_vl")
    with pytest.raises(PromptError, match=error):
        qwen.chat("?", **arguments)


def test_a_template_without_tools_says_so(tmp_path):
    qwen, _, _ = scripted_engine(tmp_path, "qwen2_vl")
    with pytest.raises(PromptError, match="Qwen2-VL's template knows no tools; leave them out"):
        qwen.chat("?", tools=[WEATHER])
    with pytest.raises(PromptError, match="knows no tools"):
        qwen.chat([{"tool_result": "x"}])
