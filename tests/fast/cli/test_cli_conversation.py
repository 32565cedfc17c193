"""`qwenvl chat` without a PROMPT: a conversation."""

import io
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import cli
from qwenvl_edge.bundle import examples
from support.paths import DATA
from support.scripted import ids

PICTURE = DATA / "images" / "a.png"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def converse(monkeypatch, *lines, prompts=("",)):
    """Feed lines to the conversation; an exception among them is raised instead."""
    rest = list(lines)

    def read(prompt):
        assert prompt in prompts
        line = rest.pop(0) if rest else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    return cli.main(["chat", "bundle"])


def test_a_conversation(scripted, monkeypatch, capsys, tmp_path):
    target = tmp_path / "boxes.jpg"
    backend, _ = scripted(BOXED, "second<|im_end|>", "third<|im_end|>")
    lines = [
        *("/help", "", "/save x.png", "/image missing.png", f"/image {PICTURE}", "Where are dots?", f"/save {target}"),
        *("/save boxes.nonsense", "And now?", "/reset", "Hello", "/dance", KeyboardInterrupt(), "/quit", "never read"),
    ]
    assert converse(monkeypatch, *lines) == 0
    out, remarks = capsys.readouterr()
    size = tuple(side / 2 for side in Image.open(PICTURE).size)
    places = "  dots: (0, 0) to ({:.0f}, {:.0f})".format(*size)
    assert out == f"dots are here\n{places}\n\nsecond\n\nthird\n"
    for expected in (
        *("/image FILE", "there is no answer yet", "cannot open the picture 'missing.png'", "1 picture for your next"),
        *(
            f"{target} is written",
            'cannot write "boxes.nonsense"',
            "the conversation is forgotten",
            "no command /dance",
            "/quit leaves",
        ),
    ):
        assert expected in remarks
    assert "Ask about your pictures" not in remarks
    assert target.is_file()
    assert [-1 in backend.prompt_ids(i) for i in range(3)] == [True, True, False]
    assert len(backend.prompt_ids(2)) < len(backend.prompt_ids(0))


@pytest.mark.parametrize(
    "typed",
    ["my picture.png", "'my picture.png'", '"my picture.png"', r"my\ picture.png", "~/my picture.png", "it's.png"],
)
def test_files_are_named_as_in_a_shell(scripted, monkeypatch, capsys, tmp_path, typed):
    scripted()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("my picture.png", "it's.png"):
        (tmp_path / name).write_bytes(PICTURE.read_bytes())
    assert converse(monkeypatch, f"/image {typed}") == 0
    assert "1 picture for your next message" in capsys.readouterr().err


def test_a_command_without_its_file(scripted, monkeypatch, capsys, tmp_path):
    scripted(BOXED)
    assert converse(monkeypatch, "/image", f"/image {PICTURE}", "Where?", "/save ", f"/save {tmp_path}/no/x.png") == 0
    out = capsys.readouterr().err
    assert "/image needs a file: /image FILE." in out and "/save needs a file: /save FILE." in out
    assert f'cannot write "{tmp_path}/no/x.png": No such file or directory.' in out


def test_the_end_of_input_ends_the_conversation(scripted, monkeypatch):
    scripted()
    assert converse(monkeypatch) == 0


def test_an_error_does_not_end_the_conversation(scripted, monkeypatch, capsys):
    scripted("fine<|im_end|>", max_context=60)
    assert converse(monkeypatch, "word " * 100, "hi") == 0
    out, remarks = capsys.readouterr()
    assert "more than the context of 60" in remarks and out == "fine\n"


def test_interrupting_ends_the_answer_only(scripted, monkeypatch, capsys):
    backend, _ = scripted(ids("one two three four<|im_end|>"), "again<|im_end|>")
    step = backend.decode_unchecked

    def interrupt_once(*arguments):
        if backend.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    backend.decode_unchecked = interrupt_once
    handler = signal.getsignal(signal.SIGINT)
    assert converse(monkeypatch, "count", "hi") == 0
    out = capsys.readouterr().out
    assert "ended early: cancelled" in out and "four" not in out and "again" in out
    assert signal.getsignal(signal.SIGINT) is handler


def test_pictures_are_read_once(scripted, monkeypatch):
    backend, _ = scripted("a<|im_end|>", "b<|im_end|>")
    assert converse(monkeypatch, f"/image {PICTURE}", f"/image {PICTURE}", "Same?", "Sure?") == 0
    assert backend.encoded == 1
    assert np.count_nonzero(np.array(backend.prompt_ids(1)) == -1) == 8


def test_on_a_terminal_prompts_and_remarks_stand_between_the_answers(scripted, monkeypatch):
    scripted("hi<|im_end|>")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", screen)
    assert converse(monkeypatch, "/dance", "hello", prompts=("> ",)) == 0
    begun, remark, answer, end = screen.getvalue().split("\n", 3)
    assert begun.startswith("Ask about your pictures") and remark.startswith("there is no command /dance")
    assert (answer, end) == ("hi", "\n")


def try_with(monkeypatch, **what):
    """Give the bundle examples, which are read from its own file."""
    given = examples.Examples(examples=(examples.Example(("a.png", "b.png"), ("What is it?",)),), **what)
    monkeypatch.setattr("qwenvl_edge.cli.console.examples_of", lambda bundle: given)


def test_help_lists_what_the_model_can_be_tried_with(scripted, monkeypatch, capsys, tmp_path):
    scripted()
    try_with(monkeypatch, note="Drawn scenes only.")
    assert converse(monkeypatch, "/help") == 0
    lines = capsys.readouterr().err.splitlines()
    folder = tmp_path / "examples"
    assert [line.split(maxsplit=1)[-1] for line in lines if line.startswith("  /image")] == [
        *(f"{folder}/a.png", f"{folder}/b.png"),
    ]
    assert "  What is it?" in lines and lines[-1] == "Drawn scenes only."


def test_a_model_that_knows_few_second_questions_gets_each_afresh(scripted, monkeypatch, capsys):
    backend, _ = scripted("a<|im_end|>", "b<|im_end|>", "c<|im_end|>", "d<|im_end|>")
    try_with(monkeypatch, asks_afresh=True)
    more = (f"/image {DATA / 'images' / 'b.png'}", "C?", "/reset", "D?")
    assert converse(monkeypatch, f"/image {PICTURE}", "A?", "B?", *more) == 0
    assert capsys.readouterr().out == "a\n\nb\n\nc\n\nd\n"
    assert [backend.prompt_ids(i).count(-1) > 0 for i in range(4)] == [True, True, True, False]
    assert len(backend.prompt_ids(1)) == len(backend.prompt_ids(0)) == len(backend.prompt_ids(2))
    assert backend.encoded == 2
