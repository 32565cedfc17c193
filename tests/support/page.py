"""What a person does on the server's page, done in headless Chromium."""

from __future__ import annotations

from support import chromium
from support.served import PICTURE

DONE = "document.querySelector('#stop').hidden"
LAST = "document.querySelector('#log li:last-child')"


def known(page, expression):
    """The value of an expression of what the page's modules have: state, talk.entry, drawing.drawPlaces, ..."""
    names = ("state", "talk", "drawing")
    modules = ", ".join(f"import('/static/{name}.js')" for name in names)
    return page.run(f"Promise.all([{modules}]).then(([{{state}}, talk, drawing]) => {expression})")


def wait_known(page, expression):
    """Wait until an expression is true."""
    chromium.wait(lambda: known(page, expression), expression)


def ask(page, words):
    """Ask a question; the text of the answer."""
    page.run("document.querySelector('#question').focus()")
    page.type(words)
    page.press("Enter")
    page.until(f"{DONE} && {LAST}.className === 'assistant' && {LAST}.textContent !== ''")
    return page.run(f"{LAST}.textContent")


def open_picture(page, path=PICTURE):
    """Open a picture, and wait until it is shown."""
    count = known(page, "state.items.length")
    page.choose_file("#file", path)
    wait_known(page, f"state.items.length === {count + 1} && !document.querySelector('#stage').hidden")
    page.until("document.activeElement.id === 'question'")


def open_webcam(page):
    """Turn the webcam on."""
    page.run("document.querySelector('#webcam').click()")
    page.until("!document.querySelector('#video').hidden && document.querySelector('#video').videoWidth > 0")
