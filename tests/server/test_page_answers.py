"""Answers on the page at /: places drawn, reasoning, tools, clips, and what goes wrong."""

import contextlib
import json

import numpy as np
import pytest

from support import chromium
from support.page import DONE, LAST, ask, known, open_picture, open_webcam, wait_known
from support.served import serving
from support.served_families import CALL, ONE, scripted

pytest.importorskip("websockets", reason="Chromium is driven over a websocket")
pytestmark = pytest.mark.skipif(chromium.program() is None, reason="Chromium is not installed")

KEY = "correct-horse-battery"


def draw(page, **reply):
    """Draw the places of an answer's field `qwenvl`; return the rectangles that were filled."""
    return known(
        page,
        f"""(() => {{
        const drawn = [];
        const context = document.querySelector('#places').getContext('2d');
        context.fillRect = (...rectangle) => drawn.push(rectangle);
        state.asked = state.items;
        state.places = drawing.placesOf({json.dumps(reply)});
        drawing.drawPlaces();
        delete context.fillRect;
        return drawn;
    }})()""",
    )


def drawn_at(page, x, y):
    return page.run(f"""[...document.querySelector('#places').getContext('2d')
        .getImageData({x - 2}, {y - 2}, 5, 5).data].some((value, i) => i % 4 === 3 && value > 0)""")


def test_a_label_at_the_right_edge_is_whole(page):
    open_picture(page)
    box = {"label": "a rather long label", "x1": 620, "y1": 100, "x2": 640, "y2": 120, "image": 0}
    ((left, _, width, _),) = draw(page, boxes=[box])
    assert width > 20 and left >= 0 and left + width <= 640


def test_quads_and_points_are_drawn_and_listed(page):
    open_picture(page)
    draw(page, quads=[{"label": "door", "points": [[100, 100], [200, 120], [190, 220], [90, 200]], "image": 0}])
    assert drawn_at(page, 150, 110) and not drawn_at(page, 145, 165)  # on an edge, in the middle
    draw(page, points=[{"label": "", "x": 300, "y": 50, "image": 0}])
    assert drawn_at(page, 300, 50) and not drawn_at(page, 150, 110)
    assert page.run("document.querySelector('#found').textContent") == "point (300, 50)"


def test_an_answer_is_words_not_markup(page):
    known(page, "void talk.entry('assistant', '<img src=x onerror=alert(1)>')")
    assert page.run(f"{LAST}.children.length") == 0


def test_a_key_is_asked_for_and_a_wrong_one_is_said_to_be_wrong(browser, engine):
    with serving(engine, api_keys=(KEY,)) as address:
        browser.open(address)
        for key, words in (("wrong", "This server asks for a key"), (KEY, "This key is not one of the server")):
            browser.until(f"document.querySelector('#status').textContent.startsWith('{words}')")
            browser.until("!document.querySelector('#login').hidden && document.activeElement.id === 'key'")
            browser.type(key)
            browser.press("Enter")
        browser.until("document.querySelector('#model').textContent === 'nano'")
        assert browser.run("document.querySelector('#login').hidden")
        assert browser.run("document.querySelectorAll('#examples canvas').length") == 5
    browser.problems.clear()  # requests were refused, which Chromium notes


def test_a_server_that_has_gone_is_said_to_have_gone(browser, engine):
    with serving(engine) as address:
        browser.open(address)
        browser.until("document.querySelector('#model').textContent === 'nano'")
        open_picture(browser)
    browser.type("Where is the red mug?")
    browser.press("Enter")
    browser.until(f"{DONE} && {LAST}?.className === 'error'")
    assert browser.run(f"{LAST}.textContent").startswith("The server does not answer.")
    assert browser.run("document.querySelector('#question').value") == "Where is the red mug?"
    browser.problems.clear()


def stream(*deltas, end=True):
    """A script that reads a streamed answer of these deltas; its value is the message for the conversation."""
    chunks = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    text = "".join(chunks) + "data: [DONE]\n\n" * end
    return f"talk.readAnswer(new Response({json.dumps(text)}), talk.entry('assistant', ''), [])"


def test_reasoning_is_folded_when_the_answer_begins(page):
    known(page, stream({"reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"content": "Yes."}))
    fold = f"{LAST}.querySelector('details')"
    assert page.run(f"[{fold}.open, {fold}.querySelector('div').textContent]") == [False, "Let me see."]
    assert page.run(f"{LAST}.lastChild.textContent") == "Yes."


def test_a_stream_that_is_cut_is_no_answer(page):
    words = known(page, stream({"content": "Yes"}, end=False) + ".catch((error) => error.message)")
    assert words.startswith("The server went away")


@pytest.fixture
def family_page(browser, tmp_path):
    """Opens the page of scripted answers of a newer family."""
    with contextlib.ExitStack() as stack:

        def open_page(*answers, **changes):
            engine, _, _ = scripted(tmp_path, "qwen3_vl", *answers, **changes)
            browser.open(stack.enter_context(serving(engine, limits=ONE)))
            browser.until("document.querySelector('#model').textContent === 'nano'")
            return browser

        yield open_page


def test_calls_of_tools_are_shown_and_their_results_sent(family_page):
    page = family_page(f"Let me see.\n{CALL}<|im_end|>", "It is warm.<|im_end|>", tools=True)
    weather = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    tools = json.dumps([{"type": "function", "function": weather}])
    page.run(f"document.querySelector('#tools').value = {json.dumps(tools)}")
    page.run("document.querySelector('#question').focus()")
    page.type("How warm is it?")
    page.press("Enter")
    page.until(f"{DONE} && {LAST}?.querySelector('.calls input') != null")
    assert page.run(f"{LAST}.querySelector('code').textContent") == 'weather({"city": "Bern"})'
    page.run(f"{LAST}.querySelector('.calls input').focus()")
    page.type("20 degrees")
    page.press("Enter")
    page.until(f"{DONE} && {LAST}.textContent === 'It is warm.'")
    _, call, result, _ = known(page, "state.messages")
    assert (result["role"], result["content"]) == ("tool", "20 degrees")
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]


def test_a_clip_of_the_webcam_is_asked_about(family_page):
    page = family_page("A circle turns.<|im_end|>")
    open_webcam(page)
    page.run("document.querySelector('#record').click()")
    page.until("/End clip .[5-7] s/.test(document.querySelector('#record').textContent)")
    page.run("document.querySelector('#record').click()")
    wait_known(page, "state.items.length === 1 && state.items[0].kind === 'clip'")
    assert known(page, "state.items[0].frames.length") >= 2
    assert ask(page, "What happens?") == "A circle turns."
    assert known(page, "state.messages[0].content[0].type") == "video"


def test_a_video_file_is_asked_about(family_page, tmp_path):
    av = pytest.importorskip("av", reason="a video file is made with the extra [video]")
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as file:
        track = file.add_stream("libvpx", rate=10)
        track.width = track.height = 64
        track.pix_fmt = "yuv420p"
        for number in range(20):
            frame = np.full((64, 64, 3), number * 10, np.uint8)
            file.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(track.encode())
    page = family_page("It becomes light.<|im_end|>")
    open_picture(page, path)
    assert known(page, "[state.items[0].kind, state.items[0].frames.length]") in (["clip", 4], ["clip", 3])
    assert ask(page, "What happens?") == "It becomes light."
