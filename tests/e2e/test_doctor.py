"""The doctor on machines that the tests make up: files under a root folder."""

import dataclasses
import json

import pytest

from qwenvl_edge import cli
from qwenvl_edge.backends import memory_estimate as memory
from qwenvl_edge.backends import select as selection
from qwenvl_edge.cli import doctor
from qwenvl_edge.cli.doctor import examine, report
from qwenvl_edge.errors import BackendError

ORIN = {
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd asimddp\n",
    "proc/meminfo": "MemTotal:        7802000 kB\nMemAvailable:    5600000 kB\nSwapTotal:       3900000 kB\n",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    "etc/nvpmodel.conf": (
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
    ),
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1728000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
}
SERVER = {
    "proc/cpuinfo": "processor : 0\nmodel name : AMD EPYC 7763\nflags : sse2 avx2 avx512f avx512_vnni\n",
    "proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 100000 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 1\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.8.1"}}',
}


@pytest.fixture
def machine(tmp_path):
    """Writes the files of a machine; returns its findings by subject."""

    def machine(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {finding.subject: finding for finding in examine(tmp_path)}

    return machine


def test_a_jetson(machine):
    found = machine(ORIN)
    assert found["system"].found.startswith("Ubuntu 22.04.5 LTS")
    assert found["board"].found == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (found["JetPack"].found, found["JetPack"].grade) == ("6.2 (Jetson Linux 36.4.3)", "good")
    assert found["CPU"].found.endswith("2 threads: NEON, dot product") and found["CPU"].grade == "good"
    assert (found["power mode"].found, found["power mode"].fix) == ("15W", "sudo nvpmodel -m 2   # MAXN_SUPER")
    assert (found["GPU clock"].found, found["GPU clock"].fix) == ("306 to 1,020 MHz", "sudo jetson_clocks")
    assert (found["CPU clock"].grade, found["CPU clock"].fix) == ("good", "")
    assert found["memory"].found == "5.7 of 8.0 GB free, swap 4.0 GB" and "GPU" not in found


def test_a_jetson_at_full_power(machine):
    assert machine({**ORIN, "var/lib/nvpmodel/status": "pmode:0002"})["power mode"].grade == "good"


@pytest.mark.parametrize(
    ("release", "revision", "jetpack"),
    [
        ("36", "3.0", "6.0"),
        ("36", "4.0", "6.1"),
        ("36", "4.4", "6.2.1"),
        ("36", "5.0", "6"),
        ("38", "2.0", "7"),
        ("99", "1.0", "unknown"),
    ],
)
def test_jetpack_versions(machine, release, revision, jetpack):
    found = machine({"etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 1\n"})
    assert found["JetPack"].found.split(" (")[0] == jetpack


def test_an_old_jetpack_cannot_run_it(machine):
    found = machine({"etc/nv_tegra_release": "# R35 (release), REVISION: 5.0, GCID: 1\n"})["JetPack"]
    assert found.grade == "bad" and "flash JetPack 6.2" in found.fix


def test_a_server(machine):
    found = machine(SERVER)
    assert found["CPU"].found == "AMD EPYC 7763, 1 threads: AVX2, AVX-512, AVX-512 VNNI"
    assert [found[name].found for name in ("GPU", "driver", "CUDA toolkit")] == ["NVIDIA L4", "570.124.06", "12.8.1"]
    assert found["NVRTC"].grade in ("good", "note") and (found["NVRTC"].grade == "note") == bool(found["NVRTC"].fix)
    assert found["memory"].grade == "slow" and "multi-user.target" in found["memory"].fix
    assert "JetPack" not in found


def test_a_machine_that_tells_nothing(machine):
    found = machine({})
    assert found["GPU"].found == "no NVIDIA driver: bundles run on the CPU"
    assert found["CPU"].grade == "good" and "memory" not in found


def test_an_old_cpu(machine):
    found = machine({"proc/cpuinfo": "processor : 0\nmodel name : Atom\nflags : sse2 ssse3\n"})["CPU"]
    assert found.grade == "slow" and "no SIMD" in found.found and "fp32" in found.fix


def test_packages_that_are_missing(machine, monkeypatch):
    monkeypatch.setitem(doctor._PACKAGES, "no-such-package", "pip install it")
    found = machine({})
    assert (found["no-such-package"].grade, found["no-such-package"].fix) == ("note", "pip install it")
    assert found["onnxruntime"].grade == "good"


def test_what_each_command_lacks(machine, monkeypatch):
    requirements = [
        "numpy>=1.26",
        "torch>=2.6; extra == 'export'",
        "no-such-package>=1; extra == 'export'",
        "qwenvl-edge[constrained]; extra == 'server'",
        "nor_this.one[x]<2; python_version >= '3.11' and extra == \"constrained\"",
        "uvicorn; extra == 'server'",
        "of-another-python; python_version < '3.5' and extra == 'server'",
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    found = machine({})
    assert found["export, verify"].found == "lacks no-such-package"
    assert found["export, verify"].fix == "pip install 'qwenvl-edge[export]'"
    assert found["serve"].found == "lacks nor_this.one"
    assert found["chat --video"].found == "its packages are installed" and not found["chat --video"].fix


def test_which_backend_runs_a_bundle(tiny_bundle, tmp_path, monkeypatch):
    def refuse(request):
        raise BackendError("there is no GPU; buy one.")

    def take(request):
        return lambda: None

    monkeypatch.setattr(selection, "_CANDIDATES", {("a", "cuda"): refuse, ("b", "cuda"): take, ("c", "cpu"): take})
    monkeypatch.setattr(selection, "driver_absent", lambda: False)
    found = {finding.subject: finding for finding in examine(tmp_path, bundle=tiny_bundle)}
    assert [found[name].found for name in ("a, cuda", "b, cuda", "c, cpu")] == [
        *("cannot run it", "runs it", "could run it too"),
    ]
    assert found["a, cuda"].fix == "there is no GPU; buy one."
    monkeypatch.setattr(selection, "driver_absent", lambda: True)
    found = {finding.subject: finding for finding in examine(tmp_path, bundle=tiny_bundle)}
    assert (found["a, cuda"].found, found["a, cuda"].fix) == ("cannot run it: there is no NVIDIA driver", "")


def test_nothing_runs_a_bundle(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "_CANDIDATES", {("c", "cpu"): lambda request: None})
    monkeypatch.setattr(memory, "available_bytes", lambda: 50_000_000)
    found = {finding.subject: finding for finding in examine(tmp_path, bundle=tiny_bundle)}
    assert "GB of memory are free" in found["c, cpu"].fix and found["bundle"].grade == "bad"
    manifest = tiny_bundle.manifest
    precision = dataclasses.replace(manifest.precision, compute={"vision": "fp32", "decoder": "bf16"})
    half = dataclasses.replace(tiny_bundle, manifest=dataclasses.replace(manifest, precision=precision))
    found = {finding.subject: finding for finding in examine(tmp_path, bundle=half)}
    assert "no bfloat16" in found["c, cpu"].fix


def test_every_fix_has_its_line(machine):
    text = report(list(machine(ORIN).values()))
    assert "! power mode         15W\n                     -> sudo nvpmodel -m 2   # MAXN_SUPER" in text


def test_the_program(tiny_bundle, capsys):
    assert cli.main(["doctor", str(tiny_bundle.path), "--json"]) == 0
    findings = {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["onnxruntime, cpu"]["found"] in ("runs it", "could run it too")
    assert set(findings["python"]) == {"subject", "found", "grade", "fix"}


def test_something_bad_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda bundle: [doctor.Finding("JetPack", "5", "bad", "flash")])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "x JetPack            5\n                     -> flash\n"
