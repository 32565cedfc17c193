"""`qwenvl chat` with a PROMPT: one answer, and its options."""

import pytest
from PIL import Image

from qwenvl_edge import cli
from support.paths import DATA
from support.scripted import ids

PICTURE = DATA / "images" / "a.png"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


def test_one_answer(scripted, capsys, tmp_path):
    backend, calls = scripted(BOXED)
    target = tmp_path / "boxes.png"
    code = cli.main(
        [
            "chat",
            "bundle",
            "Where?",
            "--image",
            str(PICTURE),
            "--save",
            str(target),
            "--threads",
            "1",
            "--max-context",
            "99",
        ]
    )
    output = capsys.readouterr()
    assert (code, output.err) == (0, f"{target} is written\n")
    width, height = Image.open(PICTURE).size
    assert output.out.splitlines()[:2] == ["dots are here", f"  dots: (0, 0) to ({width / 2:.0f}, {height / 2:.0f})"]
    assert Image.open(target).size == (width, height)
    assert backend.encoded == 1
    assert (str(calls["bundle"]), calls["threads"], calls["max_context"]) == ("bundle", 1, 99)


def test_options_may_stand_before_the_prompt(scripted, capsys):
    backend, _ = scripted(BOXED)
    assert cli.main(["chat", "bundle", "--image", str(PICTURE), "Where?"]) == 0
    assert backend.encoded == 1
    assert capsys.readouterr().out.startswith("dots are here")


def test_options_reach_the_engine(scripted, capsys):
    backend, _ = scripted("a b c d<|im_end|>", generation={"do_sample": True})
    assert cli.main(["chat", "b", "hi", "--greedy", "--max-new-tokens", "2", "--seed", "3", "--system", "zz"]) == 0
    assert backend.steps == 2
    assert "ended early: length" in capsys.readouterr().out
    assert ids("zz")[0] in backend.prompt_ids()


def test_a_base_model_continues(scripted, capsys):
    scripted("(0,0),(500,500)</box><|endoftext|>", generation={"chat_format": "raw"})
    assert cli.main(["chat", "bundle", "<ref>dots</ref><box>", "--image", str(PICTURE)]) == 0
    assert "  dots: (0, 0) to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "no/such/bundle", "hi"], "there is no bundle at"),
        (["chat", "no/such/bundle", "--save", "x.png"], "--save goes with a PROMPT"),
    ],
)
def test_errors_are_one_line_and_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and message in output.err and output.err.count("\n") == 1


def test_a_wrong_picture_path_is_one_line(scripted, capsys):
    scripted()
    assert cli.main(["chat", "bundle", "hi", "--image", "no.png"]) == 2
    assert capsys.readouterr().err == "qwenvl: cannot open the picture 'no.png': No such file or directory.\n"


def test_drawing_without_a_picture_is_an_error(scripted, capsys, tmp_path):
    scripted("hi<|im_end|>")
    assert cli.main(["chat", "bundle", "hi", "--save", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == "qwenvl: --save needs a picture to draw on; give one with --image.\n"
    assert cli.main(["chat", "bundle", "hi", "--image", str(PICTURE), "--save", "x.xyz"]) == 2
    assert 'x.xyz" has the suffix of no picture' in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
