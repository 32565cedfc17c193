import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qwenvl_edge
from qwenvl_edge import cli
from qwenvl_edge import engine as engine_module
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.terminal import ProgressBar
from support.paths import DATA
from support.scripted import engine, ids

PICTURE = DATA / "images" / "a.png"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Makes `qwenvl chat` open an engine with scripted answers, and records how."""
    calls = {}

    def install(*answers, **settings):
        qwen, backend = engine(tmp_path, *answers, **settings)

        def open_engine(bundle, **options):
            calls.update(bundle=bundle, **options)
            return qwen

        monkeypatch.setattr(engine_module, "QwenVLEngine", open_engine)
        return backend, calls

    return install


def converse(monkeypatch, *lines):
    """Feed lines to the conversation; an exception among them is raised instead."""
    rest = list(lines)

    def read(prompt):
        line = rest.pop(0) if rest else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    return cli.main(["chat", "bundle"])


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
    assert (code, output.err) == (0, "")
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


def test_a_conversation(scripted, monkeypatch, capsys, tmp_path):
    target = tmp_path / "boxes.jpg"
    backend, _ = scripted(BOXED, "second<|im_end|>", "third<|im_end|>")
    lines = [
        *("/help", "", "/save x.png", "/image missing.png", f"/image {PICTURE}", "Where are dots?", f"/save {target}"),
        *("/save boxes.nonsense", "And now?", "/reset", "Hello", "/dance", KeyboardInterrupt(), "/quit", "never read"),
    ]
    assert converse(monkeypatch, *lines) == 0
    out = capsys.readouterr().out
    for expected in (
        *("/image FILE", "there is no answer yet", "cannot open the picture 'missing.png'", "1 picture(s) wait"),
        *("dots are here", f"{target} is written", 'cannot write "boxes.nonsense"', "second", "forgotten", "third"),
        *("no command /dance", "/quit leaves"),
    ):
        assert expected in out
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
    assert "1 picture(s) wait" in capsys.readouterr().out


def test_a_command_without_its_file(scripted, monkeypatch, capsys, tmp_path):
    scripted(BOXED)
    assert converse(monkeypatch, "/image", f"/image {PICTURE}", "Where?", "/save ", f"/save {tmp_path}/no/x.png") == 0
    out = capsys.readouterr().out
    assert "/image needs a file: /image FILE." in out and "/save needs a file: /save FILE." in out
    assert f'cannot write "{tmp_path}/no/x.png": No such file or directory.' in out


def test_the_end_of_input_ends_the_conversation(scripted, monkeypatch):
    scripted()
    assert converse(monkeypatch) == 0


def test_an_error_does_not_end_the_conversation(scripted, monkeypatch, capsys):
    scripted("fine<|im_end|>", max_context=60)
    assert converse(monkeypatch, "word " * 100, "hi") == 0
    out = capsys.readouterr().out
    assert "more than the context of 60" in out and "fine" in out


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


def test_usage(capsys):
    for arguments in ([], ["dance"], ["export"], ["verify", "bundle"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and "qwenvl 0" in capsys.readouterr().out


def package(monkeypatch, name, **functions):
    parts = ("qwenvl_edge_export", *name.split("."))
    for length in range(1, len(parts) + 1):
        whole = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, whole, types.ModuleType(whole))
    vars(sys.modules[whole]).update(functions)


def test_interruption_elsewhere(monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    plain = types.SimpleNamespace(choose=lambda *arguments, **options: None)
    package(monkeypatch, "export", export=interrupt, ExportPrecision=plain)
    assert cli.main(["export", "a", "b"]) == 130


@pytest.mark.parametrize("module", ["qwenvl_edge", "qwenvl_edge.cli"])
def test_modules_that_are_the_program(module):
    def run(*arguments):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("--version").stdout == f"qwenvl {qwenvl_edge.__version__}\n"
    failed = run("plan", "no-bundle-here")
    assert (failed.returncode, failed.stdout) == (2, "") and failed.stderr.startswith("qwenvl: ")


def test_export_shows_its_steps(monkeypatch, capsys):
    def choose(precision, **options):
        assert (precision, options["vision"], options["keep"]) == ("int4", "fp32", ["*.w1.weight", "lm_head.*"])
        assert (options["target"], options["block"], options["head"]) == ("gpu", 64, "int4")
        return "chosen"

    def export(checkpoint, bundle, *, precision, force, allow_loss, calibration, check, progress, note, **more):
        limits = {"min_pixels": None, "max_pixels": 50_000}
        assert more == limits | {"restart_calibration": True, "wait": True, "revision": "v2", "chat_format": "chatml"}
        note("the checkpoint is quantized.")
        assert (str(checkpoint), str(bundle), precision, force, allow_loss) == ("in", "out", "chosen", True, True)
        assert (calibration, check) == (Path("shots"), False)
        for done, what in ((0, "reading"), (1, "writing"), (2, "writing")):
            progress(done, 2, what)
        kept = types.SimpleNamespace(kept="*.w1.weight, lm_head.*, h.*.down.weight")
        return types.SimpleNamespace(manifest=types.SimpleNamespace(precision=kept))

    package(monkeypatch, "export", export=export, ExportPrecision=types.SimpleNamespace(choose=choose))
    options = "--precision int4 --vision-precision fp32 --keep-fp16 *.w1.weight --keep-fp16 lm_head.* --target gpu"
    more = "--block-size 64 --head-precision int4 --force --allow-loss --skip-verify --calibrate shots --wait"
    more += " --restart-calibration --revision v2 --chat-format chatml --max-pixels 50000"
    assert cli.main(["export", "in", "out", *options.split(), *more.split()]) == 0
    output = capsys.readouterr()
    note = "no block size divides the inputs of h.*.down.weight: they stay floats\n"
    said = "qwenvl: the checkpoint is quantized.\n"  # at once, and again below the progress
    assert (output.out, output.err) == (f"{note}out is written\n", f"{said}reading\nwriting\n{said}")


def test_export_errors(monkeypatch, capsys):
    def export(*arguments, **options):
        raise BundleError("it exists.")

    plain = types.SimpleNamespace(choose=lambda *arguments, **options: None)
    package(monkeypatch, "export", export=export, ExportPrecision=plain)
    assert cli.main(["export", "checkpoint", "bundle"]) == 2
    assert capsys.readouterr().err == "qwenvl: it exists.\n"


@pytest.mark.parametrize(
    ("option", "function", "passed", "code"),
    [
        ("--checkpoint", "verify", True, 0),
        ("--checkpoint", "verify", False, 1),
        ("--golden", "verify_golden", True, 0),
        ("--golden", "verify_golden", False, 2),
    ],
)
def test_verify_prints_the_table(monkeypatch, capsys, option, function, passed, code):
    def verify(bundle, other, backend, progress, **source):
        assert (str(bundle), str(other), backend) == ("bundle", "org/name", "onnxruntime")
        assert source == ({"revision": "v2"} if option == "--checkpoint" else {})
        progress(0, 2, "comparing")
        progress(1, 2, "comparing")
        return types.SimpleNamespace(table=lambda: "stage  limit", passed=passed)

    package(monkeypatch, "verification.verify", **{function: verify})
    assert cli.main(["verify", "bundle", option, "org/name", "--revision", "v2"]) == code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("stage  limit\n", "comparing\n")


def test_a_missing_export_package_is_explained(monkeypatch, capsys):
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("qwenvl_edge_export"):
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    for name in [name for name in sys.modules if name.startswith("qwenvl_edge_export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    assert cli.main(["export", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert "needs torch" in error and "qwenvl-edge[export]" in error and error.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_overwrites_itself():
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar(0, 0, "a long beginning")
        bar(5, 10, "half")
        bar(5, 10, "half")
        bar(10, 10, "all")
    lines = stream.getvalue().split("\r")
    assert len(lines) == 4 and lines[2].startswith("[" + "#" * 15 + "." * 15 + "]  50% half")
    assert lines[3].endswith("\n") and len(lines[2]) >= len(lines[1])


def test_the_progress_bar_says_how_much_time_is_left(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("qwenvl_edge.machine.terminal.time.monotonic", lambda: clock.now)
    stream = Terminal()

    def told(done, total, what, seconds):
        clock.now += seconds
        stream.seek(0)
        stream.truncate()
        bar(done, total, what)
        return stream.getvalue().strip().split("% ")[1]

    with ProgressBar(stream) as bar:
        assert told(2, 10, "a", 50) == "a"  # what was done before is not in this time
        assert told(4, 10, "b", 20) == "b, 1 min left"
        assert told(8, 10, "b", 40) == "b, 20 s left"
        assert told(10, 10, "b", 10) == "b"
        assert told(1, 3, "c", 10) == "c"
        assert told(2, 3, "c, 7 min left", 60) == "c, 7 min left"
        assert told(2, 3, "w" * 99, 60).endswith("w, 2 min left")
        assert len(stream.getvalue().strip("\r")) <= 79


def test_pictures_are_read_once(scripted, monkeypatch):
    backend, _ = scripted("a<|im_end|>", "b<|im_end|>")
    assert converse(monkeypatch, f"/image {PICTURE}", f"/image {PICTURE}", "Same?", "Sure?") == 0
    assert backend.encoded == 1
    assert np.count_nonzero(np.array(backend.prompt_ids(1)) == -1) == 8
