"""The page at / in headless Chromium."""

import pytest

from qwenvl_edge.inputs.pictures import load_picture
from support import chromium
from support.served import PICTURE, serving

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


def ask(page, words):
    page.run("document.querySelector('#question').focus()")
    page.type(words)
    page.press("Enter")
    page.until(f"{DONE} && {LAST}.className === 'assistant' && {LAST}.textContent !== ''")
    return page.run(f"{LAST}.textContent")


def open_picture(page):
    page.choose_file("#file", PICTURE)
    page.until("!document.querySelector('#stage').hidden")


def coloured_pixels(page):
    """How many pixels of the drawing are not clear: inside the first box's frame, and everywhere."""
    return page.run("""(() => {
        const canvas = document.querySelector('#boxes');
        const [box] = state.boxes;
        const clear = (data) => data.filter((value, i) => i % 4 === 3 && value > 0).length;
        const read = (x, y, w, h) => clear(canvas.getContext('2d').getImageData(x, y, w, h).data);
        const edge = box ? read(box.x1 - 3, box.y1 - 3, 6, box.y2 - box.y1 + 6) : 0;
        return [edge, read(0, 0, canvas.width, canvas.height)];
    })()""")


def test_a_picture_is_asked_about_and_boxes_are_drawn(page, engine, tmp_path):
    open_picture(page)
    answer = ask(page, "Where is the red mug?")
    expected = engine.chat("Where is the red mug?", images=[PICTURE], do_sample=False)
    assert answer == expected.text
    (box,) = expected.boxes
    drawn = page.run("state.boxes[0]")
    assert (drawn["x1"], drawn["y2"], drawn["label"]) == (box.x1, box.y2, box.label)
    left_edge, everywhere = coloured_pixels(page)
    assert left_edge > (box.y2 - box.y1) and everywhere > left_edge
    assert "the red mug" in page.run("document.querySelector('#found').textContent")
    # The drawing lies over the picture, point by point.
    frames = page.run(
        "['#picture', '#boxes'].map((id) => { const r = document.querySelector(id).getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height].map(Math.round); })"
    )
    assert frames[0] == frames[1]
    page.screenshot(tmp_path / "page.png")
    assert load_picture(tmp_path / "page.png").size == (1200, 800)


def test_a_second_question_goes_on_from_the_first(page):
    open_picture(page)
    ask(page, "Where is the red mug?")
    ask(page, "What colour is the car?")
    assert page.run("state.messages.map((each) => each.role)") == ["user", "assistant"] * 2
    assert "<box>" in page.run("state.messages[1].qwenvl.raw_text")
    page.run("document.querySelector('#new').click()")
    assert page.run("state.messages.length") == 0 and page.run("state.picture !== null")


def test_an_answer_streams_and_escape_stops_it(page, slow):
    page.run("document.querySelector('#question').focus()")
    page.type("Describe the picture. " * 3)
    page.press("Enter")
    page.until("state.running !== null")
    page.press("Escape")
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
    page.until("document.querySelector('#status').textContent.startsWith('This file is no picture')")
    assert page.run("state.picture === null")


def test_the_webcam(page):
    page.run("document.querySelector('#webcam').click()")
    page.until("!document.querySelector('#video').hidden && document.querySelector('#video').videoWidth > 0")
    page.run("document.querySelector('#webcam').click()")
    page.until("state.picture !== null && !document.querySelector('#stage').hidden")
    assert page.run("state.camera === null")
    assert ask(page, "What is there?")


def test_the_keyboard_reaches_everything(page):
    open_picture(page)
    page.run("document.querySelector('#new').focus()")
    reached = []
    for _ in range(6):
        reached.append(page.run("document.activeElement.id"))
        page.press("Tab")
    assert reached == ["new", "file", "webcam", "remove", "question", "send"]


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(page, width):
    page.resize(width, 740)
    open_picture(page)
    ask(page, "Where is the red mug?")
    assert page.run("document.documentElement.scrollWidth") <= width
    heights = page.run("[...document.querySelectorAll('button:not([hidden])')].map((b) => b.offsetHeight)")
    assert min(height for height in heights if height) >= 44
    assert page.run("document.querySelector('#talk').getBoundingClientRect().left") < 20  # below, not beside


@pytest.mark.parametrize(("width", "height"), [(1200, 700), (390, 740)])
def test_the_question_stays_in_sight(page, width, height):
    page.resize(width, height)
    open_picture(page)
    for number in range(8):
        page.run(f"entry('user', 'Question {number}')")
        page.run(f"entry('assistant', {'word ' * 60!r})")
    page.run("entry('user', 'The last one')")
    seen = "document.querySelector('#question').getBoundingClientRect()"
    page.until(f"{seen}.top > 0 && {seen}.bottom <= innerHeight")
    page.until(f"{LAST}.getBoundingClientRect().bottom <= {seen}.top")
    assert page.run("document.querySelector('#log').lastChild.textContent") == "The last one"


def test_a_label_at_the_right_edge_is_whole(page):
    open_picture(page)
    box = "{label: 'a rather long label', x1: 620, y1: 100, x2: 640, y2: 120}"
    left, width = page.run(f"""(() => {{
        const drawn = [];
        const context = $('boxes').getContext('2d');
        context.fillRect = (...rectangle) => drawn.push(rectangle);
        showBoxes([{box}]);
        delete context.fillRect;
        return [drawn[0][0], drawn[0][2]];
    }})()""")
    assert width > 20 and left >= 0 and left + width <= 640


def test_an_answer_is_words_not_markup(page):
    page.run("entry('assistant', '<img src=x onerror=alert(1)>')")
    assert page.run(f"{LAST}.children.length") == 0


def test_a_key_is_asked_for(browser, engine):
    with serving(engine, api_keys=(KEY,)) as address:
        browser.open(address)
        browser.until("!document.querySelector('#login').hidden && document.activeElement.id === 'key'")
        browser.type(KEY)
        browser.press("Enter")
        browser.until("document.querySelector('#model').textContent === 'nano'")
        assert browser.run("document.querySelector('#login').hidden")
    browser.problems.clear()  # the first request was refused, which Chromium notes
