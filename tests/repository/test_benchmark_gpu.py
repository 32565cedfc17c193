"""benchmarks/gpu.py without a GPU: a dry run through every part, what is merged, and the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
KEYS = (
    "device copy_gbps matmul_tflops kernel_decode_share kernel_prefill_vs_sdpa kernel_int8_vs_fp16 token_ms "
    "token_share decode_fp16_share decode_int4_vs_fp16 vision_share decode_vs_torch_compile"
).split()


def run(*options, check=True):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    command = [sys.executable, BENCHMARKS / "gpu.py", "--preset", "tiny", "--device", "cpu", *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Path and content of the report of all parts, and the last line."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    folder = tmp_path_factory.mktemp("gpu-benchmark")
    done = run("--json", folder / "gpu.json", "--plot", folder / "gpu.png", "--library", folder / "none.so")
    assert (folder / "gpu.png").stat().st_size > 10_000
    return folder / "gpu.json", json.loads((folder / "gpu.json").read_text()), json.loads(done.stdout.splitlines()[-1])


def test_every_part_runs_and_computes_what_pytorch_computes(report):
    _, content, _ = report
    details = content["details"]
    assert list(details) == ["device", "kernels", "token", "torch", "fp16", "int4"]
    assert all("run: make plugin" in details[part]["skipped"] for part in ("kernels", "token"))
    assert min(details["torch"]["compiled"]["cosine"].values()) > 0.9999
    assert min(details["fp16"]["cosine"].values()) > 0.9999
    assert 0.9 < details["int4"]["cosine"]["decode"] < 0.9999
    assert details["int4"]["decoder_bytes"] < 0.6 * details["fp16"]["decoder_bytes"]


def test_the_last_line(report):
    _, content, line = report
    assert list(line) == KEYS and line == content["headline"]
    assert {key for key, value in line.items() if value is None} == {
        key for key in KEYS if key.startswith(("kernel_", "token_"))
    }
    details = content["details"]
    ms = {part: details[part]["ms"]["decode"]["median"] for part in ("fp16", "int4")}
    assert line["decode_int4_vs_fp16"] == pytest.approx(ms["fp16"] / ms["int4"], rel=1e-2)
    bytes_per_ms = details["device"]["copy_gbps"]["median"] * 1e6
    share = details["fp16"]["decoder_bytes"] / bytes_per_ms / ms["fp16"]
    assert line["decode_fp16_share"] == pytest.approx(share, rel=1e-2)


def test_one_part_again_keeps_the_others(report, tmp_path):
    _, content, _ = report
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(content))
    run("--only", "device", "--json", file)
    again = json.loads(file.read_text())
    assert {p: d for p, d in again["details"].items() if p != "device"} == {
        p: d for p, d in content["details"].items() if p != "device"
    }
    assert again["details"]["device"] != content["details"]["device"]
    file.write_text(json.dumps(content | {"conditions": content["conditions"] | {"on": "cuda"}}))
    assert "of another preset or device" in run("--only", "device", "--json", file, check=False).stderr


def session(tmp_path, **environment):
    """Runs the script of a lent GPU, with a Python that fails at one part; its exit status and steps.txt."""
    (tmp_path / "kit").mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {
        "nvidia-smi": "exit ${GPU_STATUS:-0}",
        "python": 'echo "$@"; case "$*" in *"--only token"*) exit 3;; esac',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": "python", **environment}
    command = ["bash", BENCHMARKS / "gpu_session.sh", tmp_path / "kit", tmp_path / "out"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    steps = (tmp_path / "out" / "steps.txt").read_text().splitlines()
    return done.returncode, dict(line.split(": ", 1) for line in steps if ": " in line)


def test_a_session_on_a_lent_gpu_loses_nothing(tmp_path):
    """Every step has its exit status and its log, whatever becomes of the others."""
    status, steps = session(tmp_path)
    assert status == 1
    names = "device gpu_test kernels token test_kernels racecheck memcheck torch bundles ncu".split()
    assert list(steps) == names
    expected = {
        "device": "0",
        "gpu_test": "127",
        "kernels": "0",
        "token": "3",
        "test_kernels": "0",
        "torch": "0",
        "bundles": "0",
    }
    assert {name: steps[name].split(",")[0] for name in expected} == expected
    log = (tmp_path / "out" / "kernels.log").read_text()
    assert "--only device --only kernels" in log and str(tmp_path / "kit" / "plugin") in log


def test_a_session_ends_when_its_time_is_over(tmp_path):
    status, steps = session(tmp_path, GPU_SECONDS="0")
    assert status == 1 and steps == {"device": "no time left"}


def test_a_session_without_a_gpu_ends_at_once(tmp_path):
    assert session(tmp_path, GPU_STATUS="9")[1].keys() == {"device"}


def test_a_part_that_takes_too_long_or_fails_loses_no_other(report, tmp_path):
    file = tmp_path / "gpu.json"
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    done = run("--only", "kernels", "--only", "device", "--json", file, "--library", broken, check=False)
    details = json.loads(file.read_text())["details"]
    assert done.returncode == 1 and details["kernels"]["failed"] == "exit status 1"
    assert any("broken.so" in line for line in details["kernels"]["log"])
    assert details["device"]["device"] == "CPU"
    done = run("--only", "int4", "--json", file, "--seconds", "1", check=False)
    assert done.returncode == 1 and json.loads(done.stdout.splitlines()[-1])["device"] == "CPU"
    assert json.loads(file.read_text())["details"]["int4"]["failed"] == "it took longer than 1 s"
