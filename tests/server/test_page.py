"""The page at / in headless Chromium: asking, pictures, the webcam, the keyboard, small screens."""

import pytest

from qwenvl_edge.inputs.pictures import load_picture
from support import chromium
from support.page import DONE, LAST, ask, known, open_picture, open_webcam, wait_known
from support.served import PICTURE

pytest.importorskip("websockets", reason="Chromium is driven over a websocket")
pytestmark = pytest.mark.skipif(chromium.program() is None, reason="Chromium is not installed")


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
