"""Options of `qwenvl chat` for an answer, and the forms in which it is printed."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from qwenvl_edge import cli
from qwenvl_edge import engine as engine_module
from qwenvl_edge.machine.terminal import harmless
from support.paths import DATA
from support.scripted import engine

PICTURE = DATA / "images" / "a.png"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Makes the program open an engine with scripted answers; returns what its calls were given."""

    def install(*answers):
        qwen, _ = engine(tmp_path, *answers)
        given = []
        stream = qwen.stream
        monkeypatch.setattr(qwen, "stream", lambda *args, **options: given.append(options) or stream(*args, **options))
        monkeypatch.setattr(engine_module, "QwenVLEngine", lambda bundle, **options: qwen)
        return given

    return install


def test_sampling_reaches_the_engine(scripted, capsys):
    given = scripted("hi<|im_end|>")
    options = "--temperature 0 --top-p 0.9 --top-k 40 --min-p 0.1 --repetition-penalty 1.1 --seed 3 --max-new-tokens 9"
    assert cli.main(["chat", "bundle", "hi", *options.split(), "--deadline-ms", "60000", "--stop", "x"]) == 0
    wanted = {"temperature": 0.0, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 3}
    wanted |= {"max_new_tokens": 9, "deadline_ms": 60000.0, "stop": ["x"], "do_sample": True}
    assert {name: given[0][name] for name in wanted} == wanted


def test_nothing_is_overridden_unasked(scripted, capsys):
    given = scripted("hi<|im_end|>")
    assert cli.main(["chat", "bundle", "hi"]) == 0
    assert set(given[0]) == {"images", "video", "history", "system"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--choice", "Yes.", "--choice", "No."], "No.<|im_end|>"),
        (["--regex", "[0-9]{2}"], "42<|im_end|>"),
        (["--json-schema", '{"type": "integer"}'], "42<|im_end|>"),
    ],
)
def test_forms(scripted, capsys, words, answer):
    given = scripted(answer)
    assert cli.main(["chat", "bundle", "hi", *words]) == 0
    assert given[0]["constraint"] is not None
    assert capsys.readouterr().out.strip() == answer.removesuffix("<|im_end|>")


def test_a_schema_in_a_file(scripted, capsys, tmp_path):
    given = scripted("42<|im_end|>")
    file = tmp_path / "schema.json"
    file.write_text('\ufeff{"type": "integer"}', encoding="utf-8")
    assert cli.main(["chat", "bundle", "hi", "--json-schema", str(file)]) == 0
    assert given[0]["constraint"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json-schema", "no-such.json"], 'cannot read the schema "no-such.json": No such file or directory.'),
        (["--json-schema", "{"], "--json-schema is no JSON: "),
        (["--top-p", "2"], "top_p is 2.0; it must be more than 0 and at most 1."),
        (["--image", "-", "--image", "-"], "the standard input holds one picture; give --image - once."),
    ],
)
def test_wrong_options_are_one_sentence(scripted, capsys, words, message):
    scripted("hi<|im_end|>")
    assert cli.main(["chat", "bundle", "hi", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"qwenvl: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("words", [["--json"], ["--image", "-"], ["--save", "x.png"]])
def test_options_that_need_a_prompt(scripted, capsys, words):
    scripted()
    assert cli.main(["chat", "bundle", *words]) == 2
    assert "goes with a PROMPT" in capsys.readouterr().err


def test_json(scripted, capsys):
    scripted(BOXED)
    assert cli.main(["chat", "bundle", "Where?", "--image", str(PICTURE), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "dots are here" and answer["boxes"][0]["label"] == "dots"


def test_a_picture_from_standard_input(scripted, capsys, monkeypatch):
    scripted(BOXED)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(PICTURE.read_bytes())))
    assert cli.main(["chat", "bundle", "Where?", "--image", "-"]) == 0
    assert "dots: (0, 0)" in capsys.readouterr().out


def test_times(scripted, capsys):
    scripted(BOXED)
    assert cli.main(["chat", "bundle", "Where?", "--image", str(PICTURE), "--verbose"]) == 0
    error = capsys.readouterr().err
    assert "first token after" in error and "1 picture in " in error and "tokens" in error


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_not_commanded_by_an_answer():
    hostile = "a\x1b[31mred\x07\x9b\u202e\ud800 \r\b"
    shown = harmless(hostile, Terminal())
    assert shown == "a\\x1b[31mred\\x07\\x9b\\u202e\\ud800 \\r\\x08"
    assert harmless(hostile, io.StringIO()) == hostile


def test_text_of_all_languages_stays():
    text = "它在这里。\u3000\n\tन\u200dमस्ते 👩\u200d🔧"
    assert harmless(text, Terminal()) == text
