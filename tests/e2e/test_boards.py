import dataclasses

import pytest

from qwenvl_edge import cli
from qwenvl_edge.backends.memory_estimate import estimate_memory
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.cli.boards import BOARDS, find_board, gpu_of, kind_of, plan_for
from qwenvl_edge.errors import QwenVLError


@pytest.fixture
def large(tiny_bundle):
    """The tiny bundle, said to have 5 GB of decoder weights."""
    files = {**tiny_bundle.manifest.files, "decoder.data": FileInfo(5 * 10**9, "")}
    return dataclasses.replace(tiny_bundle, manifest=dataclasses.replace(tiny_bundle.manifest, files=files))


def test_a_gpu_holds_the_weights_once(tiny_bundle):
    files = tiny_bundle.manifest.files
    fit = plan_for(tiny_bundle, find_board("orin-nano-8gb"), max_context=512)
    cpu = estimate_memory(tiny_bundle, max_context=512)
    assert fit.plan.weights == files["vision.data"].size + files["decoder.data"].size
    assert (fit.plan.cache, fit.plan.workspace) == (cpu.cache, cpu.workspace) and fit.plan.process > 500e6
    assert plan_for(tiny_bundle, find_board("raspberry-pi-5-8gb"), max_context=512).plan == cpu


def test_the_verdict_follows_the_memory(large):
    small, big = (plan_for(large, find_board(name), max_context=512) for name in ("orin-nano-4gb", "orin-nano-8gb"))
    assert not small.fits and big.fits
    assert "it does not fit: " in small.describe() and "it fits, with " in big.describe()
    assert small.spare_bytes == small.board.free_bytes - small.plan.total < 0


def test_bandwidth_bounds_the_speed(large):
    fit = plan_for(large, find_board("orin-nano-8gb"), max_context=512)
    assert fit.tokens_per_s == pytest.approx(102e9 / (5e9 + fit.plan.cache))
    batch = plan_for(large, find_board("orin-nano-8gb"), max_context=512, max_batch=4)
    assert batch.tokens_per_s == fit.tokens_per_s and batch.plan.total > fit.plan.total


def test_the_system_shares_unified_memory():
    assert BOARDS["agx-orin-64gb"].free_bytes == pytest.approx(64 * 2**30 * 0.93 - 2**30)
    assert BOARDS["l4"].free_bytes == pytest.approx(23034 * 2**20, rel=0.01)
    assert all(board.name == name for name, board in BOARDS.items())


def test_an_unknown_board():
    with pytest.raises(QwenVLError, match=r'"toaster" is unknown; there are raspberry-pi-5-8gb, .*h200'):
        find_board("toaster")


def test_the_program_plans_for_a_board(tiny_bundle, capsys):
    assert cli.main(["plan", str(tiny_bundle.path), "--max-context", "512", "--target", "orin-nano-8gb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weights") and "not added: they take turns" in "".join(lines[3:5])
    assert lines[-3].startswith("Jetson Orin Nano 8GB: 8 GB, 102 GB/s")


def test_the_program_lists_all_boards(tiny_bundle, capsys):
    assert cli.main(["plan", str(tiny_bundle.path), "--target", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(BOARDS)


def test_what_does_not_fit_is_an_exit_code(tiny_bundle, monkeypatch, capsys):
    small = dataclasses.replace(BOARDS["orin-nano-4gb"], memory_gib=1)
    monkeypatch.setitem(BOARDS, "orin-nano-4gb", small)
    assert cli.main(["plan", str(tiny_bundle.path), "--target", "orin-nano-4gb"]) == 1
    assert "it does not fit" in capsys.readouterr().out


def test_every_command_takes_the_same_names_of_machines():
    pytest.importorskip("qwenvl_edge_export.tensorrt.targets", reason="the exporter is not installed")
    assert [kind_of(name) for name in ("cpu", "gpu", "raspberry-pi-5-8gb", "orin-nano-8gb", "SM_86", "orin")] == [
        *("cpu", "gpu", "cpu", "gpu", "gpu", "gpu"),
    ]
    assert [gpu_of(name) for name in ("local", "sm_86", "orin", "h200", "orin-nano-8gb", "agx-orin-64gb")] == [
        *("local", "sm_86", "orin", "h200", "sm_87", "sm_87"),
    ]
    for board in BOARDS.values():
        assert kind_of(board.name) == ("cpu" if board.compute_capability is None else "gpu")
    with pytest.raises(QwenVLError, match="raspberry-pi-5-8gb has no GPU that TensorRT builds for"):
        gpu_of("raspberry-pi-5-8gb")
    with pytest.raises(QwenVLError, match='"toaster" is unknown; say cpu or gpu, name a machine'):
        kind_of("toaster")


def test_an_export_and_a_build_for_a_board(tiny_checkpoint, tmp_path, capsys):
    assert cli.main(["export", str(tiny_checkpoint), str(tmp_path / "b"), "--target", "l4", "--skip-verify"]) == 0
    capsys.readouterr()
    assert cli.main(["build", str(tmp_path / "b"), "--target", "raspberry-pi-5-8gb"]) == 2
    assert "raspberry-pi-5-8gb has no GPU" in capsys.readouterr().err
    assert Bundle.open(tmp_path / "b").manifest.precision.decoder == "fp16"
