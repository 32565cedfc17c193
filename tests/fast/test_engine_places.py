"""Boxes, quads and marked phrases of an answer, in the pictures that they belong to."""

import numpy as np
import pytest

from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.families.places import Box, Quad
from support.scripted import FAMILY, decode, engine

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((100, 50, 3), (0, 0, 255), np.uint8)


def test_an_answer_with_boxes(tmp_path):
    qwen, backend = engine(tmp_path, "<ref> the mug</ref><box>(100,200),(500,1000)</box> stands here.<|im_end|>")
    reply = qwen.chat("Where is the mug?", images=[RED])
    assert reply.text == "the mug stands here."
    assert reply.raw_text == "<ref> the mug</ref><box>(100,200),(500,1000)</box> stands here."
    assert reply.boxes == (Box("the mug", 4.0, 4.0, 20.0, 20.0, 0),)
    assert (reply.quads, reply.malformed, reply.finish_reason) == ((), (), "stop")
    assert reply.draw().size == (40, 20)
    assert backend.encoded == 1


def test_boxes_belong_to_the_named_or_the_last_picture(tmp_path):
    answer = (
        "<box>(0,0),(1000,1000)</box> In Picture 1: <box>(0,0),(1000,1000)</box> "
        "Picture 7 <quad>(0,0),(0,1),(1,1),(1,0)</quad>"
    )
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    reply = qwen.chat("Compare", images=[RED, BLUE], max_new_tokens=200)
    assert [box.image for box in reply.boxes] == [1, 0]
    assert (reply.boxes[0].x2, reply.boxes[0].y2) == (50.0, 100.0)
    assert reply.quads == (Quad("", ((0.0, 0.0), (0.0, 0.1), (0.05, 0.1), (0.05, 0.0)), 1),)
    assert reply.draw().size == (40, 20) and reply.draw(1).size == (50, 100)
    with pytest.raises(QwenVLError, match="no picture 2"):
        reply.draw(2)


@pytest.mark.parametrize(
    ("question", "answer", "image"),
    [
        ("Where is the red mug in picture 1?", "<box>(0,0),(9,9)</box>", 0),
        ("图片1里的红色的杯子在哪里?", "<box>(0,0),(9,9)</box>", 0),
        ("Where is it in picture 1?", "Picture 2: <box>(0,0),(9,9)</box>", 1),
        ("Is it in picture 1 or picture 2?", "<box>(0,0),(9,9)</box>", 1),
        ("Where is it in picture 3?", "<box>(0,0),(9,9)</box>", 1),
    ],
)
def test_boxes_belong_to_the_picture_that_the_question_names(tmp_path, question, answer, image):
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    assert [box.image for box in qwen.chat(question, images=[RED, BLUE]).boxes] == [image]


def test_boxes_without_a_picture_are_reported(tmp_path):
    qwen, _ = engine(tmp_path, "<box>(0,0),(9,9)</box>x<box>(1<|im_end|>")
    reply = qwen.chat("hi")
    assert reply.boxes == ()
    assert sorted(reply.malformed) == ["<box>(0,0),(9,9)</box>", "<box>(1"]
    with pytest.raises(QwenVLError, match="no picture"):
        reply.draw()


def test_complete_continues_markup(tmp_path):
    raw = {"chat_format": "raw"}
    qwen, backend = engine(tmp_path, "(0,0),(500,500)</box><|endoftext|>", " a dog.\nHuman: and", generation=raw)
    reply = qwen.complete([{"image": RED}, {"text": "<ref>the red mug</ref><box>"}])
    assert reply.boxes == (Box("the red mug", 0.0, 0.0, 20.0, 10.0, 0),)
    assert (reply.text, reply.raw_text, reply.history) == ("", "(0,0),(500,500)</box>", ())
    assert FAMILY.special_tokens["<box>"] in backend.prompt_ids()
    assert qwen.complete("This is").text == "a dog."
    assert not qwen.can_chat
    for call in (qwen.chat, qwen.stream):
        with pytest.raises(PromptError, match="base model"):
            call("hi")


def test_complete_does_not_report_the_boxes_of_its_prompt(tmp_path):
    qwen, _ = engine(tmp_path, "yes<box>(5,5),(6,6)</box><|im_end|>")
    reply = qwen.complete("<ref>a</ref><box>(1,1),(2,2)</box> b</box>", images=[RED])
    assert [box.label for box in reply.boxes] == [""] and reply.boxes[0].x1 == 0.2
    assert (reply.text, reply.malformed) == ("yes", ())


def test_refs_hold_what_was_marked(tmp_path):
    answer = (
        "<ref>mugs</ref><box>(0,0),(500,500)</box><box>(0,0),(1000,1000)</box> and <ref>air</ref> on "
        "<box>(0,0),(9,9)</box><ref>a sign</ref><quad>(0,0),(1,0),(1,1),(0,1)</quad>"
    )
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    reply = qwen.chat("What is there?", images=[RED], max_new_tokens=200)
    mugs, air, sign = reply.refs
    assert (mugs.label, mugs.boxes, mugs.quads) == ("mugs", reply.boxes[:2], ())
    assert (air.label, air.boxes, air.quads) == ("air", (), ())
    assert (sign.label, sign.boxes, sign.quads) == ("a sign", (), reply.quads)
    assert len(reply.boxes) == 3 and reply.boxes[2].label == ""


def test_refs_without_a_picture_have_no_places(tmp_path):
    qwen, _ = engine(tmp_path, "<ref>a</ref><box>(0,0),(9,9)</box><|im_end|>")
    (ref,) = qwen.chat("hi").refs
    assert (ref.label, ref.boxes) == ("a", ())


def test_grounding(tmp_path):
    qwen, backend = engine(tmp_path, "(0,0),(500,500)</box><box>(500,500),(1000,1000)</box><|im_end|>")
    reply = qwen.ground(RED, "the <box> red</ref> mug")
    start, prompt = FAMILY.special_tokens["<ref>"], backend.prompt_ids()
    assert decode(prompt[prompt.index(start) :]) == "<ref>the <box> red</ref> mug</ref><box>"
    assert [token for token in prompt if token in FAMILY.special_tokens.values()] == [
        FAMILY.special_tokens[tag] for tag in ("<img>", "</img>", "<ref>", "</ref>", "<box>")
    ]
    assert [(box.x1, box.x2) for box in reply.boxes] == [(0.0, 20.0), (20.0, 40.0)]
    assert [ref.label for ref in reply.refs] == ["the <box> red</ref> mug"]
    for phrase in ("", "  ", None):
        with pytest.raises(PromptError, match="the phrase is"):
            qwen.ground(RED, phrase)


@pytest.mark.parametrize(
    ("generation", "language", "reading", "caption"),
    [
        ("chatml", "en", "OCR with grounding:<|im_end|>", "Describe the picture.<|im_end|>"),
        ("chatml", "zh", "带坐标的文字识别:<|im_end|>", "描述这张图片。<|im_end|>"),
        ("raw", "en", "OCR with grounding:", "Describe the image in English:"),
    ],
)
def test_reading_and_captions(tmp_path, generation, language, reading, caption):
    end = "<|im_end|>" if generation == "chatml" else "<|endoftext|>"
    generation = {"chat_format": generation, "do_sample": True, "temperature": 9.0}
    answers = ["<ref>OPEN</ref><quad>(0,0),(1000,0),(1000,1000),(0,1000)</quad>" + end, "A sign." + end]
    qwen, backend = engine(tmp_path, *answers, generation=generation)
    reply = qwen.read(RED, language=language)
    assert (reply.text, reply.refs[0].label, len(reply.quads)) == ("OPEN", "OPEN", 1)
    assert qwen.caption(RED, language=language).text == "A sign."
    for index, words in enumerate((reading, caption)):
        assert f"</img>\n{words}" in decode([token for token in backend.prompt_ids(index) if token >= 0])
    for ask in (qwen.read, qwen.caption):
        with pytest.raises(PromptError, match="the language is 'fr'"):
            ask(RED, language="fr")
