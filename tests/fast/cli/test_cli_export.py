"""`qwenvl export` and `qwenvl verify` before a stand-in of the exporter."""

import sys
import types
from pathlib import Path

import pytest

from qwenvl_edge import cli
from qwenvl_edge.errors import BundleError


def package(monkeypatch, name, **functions):
    parts = ("qwenvl_edge_export", *name.split("."))
    for length in range(1, len(parts) + 1):
        whole = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, whole, types.ModuleType(whole))
    vars(sys.modules[whole]).update(functions)


def test_interruption_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    plain = types.SimpleNamespace(choose=lambda *arguments, **options: None)
    package(monkeypatch, "export", export=interrupt, ExportPrecision=plain)
    assert cli.main(["export", "a", "b"]) == 130


def test_export_shows_its_steps(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

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


def test_export_errors(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

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


def test_what_is_in_the_way_is_said_before_the_exporter_is_loaded(monkeypatch, capsys, tmp_path):
    def import_nothing(*arguments, **options):
        raise AssertionError("the exporter was loaded")

    monkeypatch.setattr("qwenvl_edge.cli.commands.export.import_export", import_nothing)
    for options, said in (([], "exists already; choose another name"), (["--force"], "is not a bundle, so it is not")):
        assert cli.main(["export", "checkpoint", str(tmp_path), *options]) == 2
        assert said in capsys.readouterr().err
