"""The page at / in headless Chromium."""

import contextlib
import json

import numpy as np
import pytest

from qwenvl_edge.inputs.pictures import load_picture
from support import chromium
from support.served import PICTURE, serving
from support.served_families import CALL, ONE, scripted

pytest.importorskip("websockets", reason="Chromium is driven over a websocket")
pytestmark = pytest.mark.skipif(chromium.program() is None, reason="Chromium is not installed")

KEY = "correct-horse-battery"
DONE = "document.querySelector('#stop').hidden"
LAST = "document.querySelector('#log li:last-child')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address):
    browser.requests.clear()
    browser.problems.clear()
    browser.resize(1200, 800)
    browser.open(address)
    browser.until("document.querySelector('#model').textContent === 'nano'")
    yield browser
    assert browser.problems == []
    assert all(url.startswith((address, "data:", "blob:")) for url in browser.requests)  # nothing from outside


def known(page, expression):
    """The value of an expression of what the page's modules have: state, talk.entry, drawing.drawPlaces, ..."""
    names = ("state", "talk", "drawing")
    modules = ", ".join(f"import('/static/{name}.js')" for name in names)
    return page.run(f"Promise.all([{modules}]).then(([{{state}}, talk, drawing]) => {expression})")


def wait_known(page, expression):
    chromium.wait(lambda: known(page, expression), expression)


def ask(page, words):
    page.run("document.querySelector('#question').focus()")
    page.type(words)
    page.press("Enter")
    page.until(f"{DONE} && {LAST}.className === 'assistant' && {LAST}.textContent !== ''")
    return page.run(f"{LAST}.textContent")


def open_picture(page, path=PICTURE):
    count = known(page, "state.items.length")
    page.choose_file("#file", path)
    wait_known(page, f"state.items.length === {count + 1} && !document.querySelector('#stage').hidden")
    page.until("document.activeElement.id === 'question'")


def coloured_pixels(page):
    """How many pixels of the drawing are not clear: on the first box's left side, and everywhere."""
    return known(
        page,
        """(() => {
        const canvas = document.querySelector('#places');
        const [box] = state.places;
        const clear = (data) => data.filter((value, i) => i % 4 === 3 && value > 0).length;
        const read = (x, y, w, h) => clear(canvas.getContext('2d').getImageData(x, y, w, h).data);
        const edge = box ? read(box.x1 - 3, box.y1 - 3, 6, box.y2 - box.y1 + 6) : 0;
        return [edge, read(0, 0, canvas.width, canvas.height)];
    })()""",
    )


def test_a_picture_is_asked_about_and_boxes_are_drawn(page, engine, tmp_path):
    open_picture(page)
    answer = ask(page, "Where is the red mug?")
    expected = engine.chat("Where is the red mug?", images=[PICTURE], do_sample=False)
    assert answer == expected.text
    (box,) = expected.boxes
    drawn = known(page, "state.places[0]")
    assert (drawn["x1"], drawn["y2"], drawn["label"]) == (box.x1, box.y2, box.label)
    left_edge, everywhere = coloured_pixels(page)
    assert left_edge > (box.y2 - box.y1) and everywhere > left_edge
    assert "the red mug" in page.run("document.querySelector('#found').textContent")
    # The drawing lies over the picture, point by point.
    frames = page.run(
        "['#picture', '#places'].map((id) => { const r = document.querySelector(id).getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height].map(Math.round); })"
    )
    assert frames[0] == frames[1]
    page.screenshot(tmp_path / "page.png")
    assert load_picture(tmp_path / "page.png").size == (1200, 800)


def test_a_second_question_goes_on_from_the_first(page):
    open_picture(page)
    page.run("document.querySelector('#afresh').click()")  # the nano bundle asks for it
    ask(page, "Where is the red mug?")
    ask(page, "What colour is the car?")
    assert known(page, "state.messages.map((each) => each.role)") == ["user", "assistant"] * 2
    assert "<box>" in known(page, "state.messages[1].qwenvl.raw_text")
    assert known(page, "state.messages[2].content.length") == 1  # the picture is sent once
    page.run("document.querySelector('#new').click()")
    assert known(page, "[state.messages.length, state.items.length]") == [0, 1]


def test_questions_are_asked_afresh_where_the_bundle_says_so(page, engine):
    open_picture(page)
    assert page.run("document.querySelector('#afresh').checked")
    for question in ("Where is the red mug?", "What colour is the car?"):
        assert ask(page, question) == engine.chat(question, images=[PICTURE], do_sample=False).text
    assert known(page, "state.messages.length") == 2


def test_an_example_is_a_right_answer_at_one_press(page):
    shown = "document.querySelectorAll('#examples > li')"
    assert page.run(f"{shown}.length") == 4
    page.run(f"[...{shown}[1].querySelectorAll('button')].find((b) => b.textContent === 'What changed?').click()")
    page.until(f"{DONE} && {LAST}?.className === 'assistant' && {LAST}.textContent !== ''")
    assert page.run(f"{LAST}.textContent") == "The green tree is now red."
    assert page.run("document.querySelectorAll('#tray li').length") == 2
    assert page.run("document.querySelector('#start').hidden")
    ideas = page.run("[...document.querySelectorAll('#ideas button')].map((each) => each.textContent)")
    assert ideas == ["What changed?", "两张图片里的东西一样吗?"]
    page.run("document.querySelector('#new').click()")
    assert not page.run("document.querySelector('#start').hidden")


def test_several_pictures_are_seen_and_asked_about(page, engine):
    later = PICTURE.with_name("later.png")
    open_picture(page)
    open_picture(page, later)
    assert "2 pictures" in page.run("document.querySelector('#about').textContent")
    answer = ask(page, "What changed?")
    assert answer == engine.chat("What changed?", images=[PICTURE, later], do_sample=False).text
    page.run("document.querySelector('#tray li:first-child button').click()")
    wait_known(page, "state.shown === state.items[0]")


def test_a_picture_that_is_removed_is_not_asked_about(page):
    open_picture(page)
    page.run("document.querySelector('#afresh').click()")
    ask(page, "Where is the red mug?")
    open_picture(page, PICTURE.with_name("later.png"))
    page.run("document.querySelector('#tray li:first-child .drop').click()")
    assert known(page, "[state.messages.length, state.places.length, state.items.length]") == [0, 0, 1]
    assert "new one begins" in page.run("document.querySelector('#status').textContent")
    page.run("document.querySelector('#tray li .drop').click()")
    page.until("document.querySelector('#stage').hidden && !document.querySelector('#hint').hidden")
    page.run("document.querySelector('#question').focus()")
    page.type("What is there?")
    page.press("Enter")
    page.until("document.querySelector('#status').textContent.startsWith('This model answers about pictures')")
    assert page.run("document.querySelector('#question').value") == "What is there?"


def test_escape_stops_an_answer(page, slow):
    open_picture(page)
    page.type("Describe the picture.")
    page.run("""void setInterval(() => {  // from here it would come after the answer's end
        const escape = new KeyboardEvent('keydown', {key: 'Escape'});
        if (!document.querySelector('#stop').hidden) document.dispatchEvent(escape);
    }, 1)""")
    page.press("Enter")
    page.until(f"{DONE} && {LAST}.textContent.endsWith('(stopped)')")


def test_a_dropped_picture_is_taken(page):
    page.run("""(async () => {
        const canvas = new OffscreenCanvas(40, 30);
        canvas.getContext('2d').fillRect(0, 0, 40, 30);
        const files = new DataTransfer();
        files.items.add(new File([await canvas.convertToBlob()], 'a.png', {type: 'image/png'}));
        document.querySelector('#drop').dispatchEvent(
            new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}));
    })()""")
    page.until("document.querySelector('#status').textContent === 'Picture: 40 × 30 pixels.'")


def test_a_file_that_is_no_picture_is_said_to_be_none(page):
    page.choose_file("#file", PICTURE.parent / "config.json")
    page.until("document.querySelector('#status').textContent.startsWith('config.json is no picture')")
    assert known(page, "state.items.length") == 0


def open_webcam(page):
    page.run("document.querySelector('#webcam').click()")
    page.until("!document.querySelector('#video').hidden && document.querySelector('#video').videoWidth > 0")


def test_the_webcam_gives_a_picture_or_is_left(page):
    open_webcam(page)
    page.run("document.querySelector('#leave').click()")
    assert known(page, "state.camera === null && state.items.length === 0")
    assert not page.run("document.querySelector('#sources').hidden")
    open_webcam(page)
    page.press("Escape")
    assert known(page, "state.camera === null")
    open_webcam(page)
    page.run("document.querySelector('#take').click()")
    wait_known(page, "state.items.length === 1 && !document.querySelector('#stage').hidden")
    assert known(page, "state.camera === null")
    assert ask(page, "What is there?")


def test_a_question_while_the_webcam_is_on_is_about_what_it_shows(page):
    open_picture(page)
    open_webcam(page)
    assert page.run("document.querySelector('#stage').hidden")
    assert page.run("document.querySelectorAll('#tray img').length") == 1  # no older picture is hidden
    page.run("document.querySelector('#tray .drop').click()")
    ask(page, "What is there?")
    assert known(page, "[state.items.length, state.camera === null]") == [1, True]
    part = known(page, "state.messages[0].content[0]")
    assert part["image_url"]["url"] == known(page, "state.shown.frames[0]")
    red, green, blue, _ = page.run("""(() => {
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 1;
        canvas.getContext('2d').drawImage(document.querySelector('#picture'), 0, 0, 1, 1);
        return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data];
    })()""")
    assert green > max(red, blue) + 50  # Chromium's test pattern


def test_the_keyboard_reaches_everything(page):
    open_picture(page)
    page.run("document.querySelector('#new').focus()")
    reached = []
    while len(reached) < 30 and reached[-1:] != ["send"]:
        reached.append(page.run("document.activeElement.id || document.activeElement.ariaLabel"))
        page.press("Tab")
    assert reached[:5] == ["new", "Show picture 1", "Remove picture 1", "file", "webcam"]
    assert reached[-2:] == ["question", "send"]


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(page, width):
    page.resize(width, 740)
    open_picture(page)
    ask(page, "Where is the red mug?")
    assert page.run("document.documentElement.scrollWidth") <= width
    heights = page.run("[...document.querySelectorAll('button')].map((b) => b.offsetHeight)")
    assert min(height for height in heights if height) >= 44
    assert page.run("document.querySelector('#talk').getBoundingClientRect().left") < 20  # below, not beside


@pytest.mark.parametrize(("width", "height"), [(1200, 700), (390, 740)])
def test_the_question_stays_in_sight(page, width, height):
    page.resize(width, height)
    open_picture(page)
    for number in range(8):
        known(page, f"void talk.entry('user', 'Question {number}')")
        known(page, f"void talk.entry('assistant', {'word ' * 60!r})")
    known(page, "void talk.entry('user', 'The last one')")
    seen = "document.querySelector('#question').getBoundingClientRect()"
    page.until(f"{seen}.top > 0 && {seen}.bottom <= innerHeight")
    page.until(f"{LAST}.getBoundingClientRect().bottom <= {seen}.top")
    assert page.run("document.querySelector('#log').lastChild.textContent") == "The last one"


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
