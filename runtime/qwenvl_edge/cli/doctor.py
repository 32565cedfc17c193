"""Findings about this machine: the parts that bundles need, and the commands that install what is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qwenvl_edge import __version__
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.cpu import processor_features

if TYPE_CHECKING:
    from qwenvl_edge.bundle.bundle import Bundle

_CHUNK = 128  # tokens of a prefill call, as the engine has it

Grade = Literal["good", "note", "slow", "bad"]

# Jetson Linux (L4T) release -> JetPack, by NVIDIA's archive; the longest entry that fits counts.
_JETPACK = {
    **{"35": "5", "36.2": "6.0 (preview)", "36.3": "6.0", "36.4": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1"},
    **{"36": "6", "38": "7"},
}
# What makes a CPU quick with integers: /proc/cpuinfo's words and what they are called.
_SIMD = {
    **{"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI"},
    **{"avx512_bf16": "AVX-512 BF16", "amx_int8": "AMX INT8"},
    **{"asimd": "NEON", "asimddp": "dot product", "i8mm": "INT8 matrices", "bf16": "BF16", "sve": "SVE"},
}
_INTEGER_SIMD = {"avx2", "asimddp"}
_PACKAGES = {
    "onnxruntime": "pip install qwenvl-edge",
    "tensorrt": "JetPack brings it (sudo apt install python3-libnvinfer); elsewhere: pip install tensorrt",
    "cuda-bindings": "pip install 'qwenvl-edge[cuda]'",
    "llguidance": "pip install 'qwenvl-edge[constrained]'",
}
# Extra -> what it is for.
_EXTRAS = {
    **{"export": "export, verify", "hub": "export org/name", "tensorrt": "build", "server": "serve"},
    **{"video": "chat --video", "completion": "completion", "dora": "dora node", "zenoh": "Zenoh node"},
    **{"replay": "replay", "rerun": "replay --rerun", "camera": "watch", "mqtt": "watch --mqtt"},
    **{"dds": "DDS node"},
}


@dataclass(frozen=True)
class Finding:
    """One fact: its subject, what was found, what that means, and the command that would improve it ("" if none)."""

    subject: str
    found: str
    grade: Grade = "good"
    fix: str = ""


def examine(root: Path = Path("/"), *, bundle: Bundle | None = None) -> list[Finding]:
    """Look at the machine whose file system is at `root`, and at what would run `bundle` on it."""
    findings = [*_software(root), *_extras(), *_cpu(root), *_memory(root), *_gpu(root), *_nvrtc(root), *_jetson(root)]
    return findings + ([] if bundle is None else list(_backends(bundle)))


def hash_files(bundle: Bundle) -> list[Finding]:
    """Hash every file of a bundle and of its plans, whatever was proven before."""
    from qwenvl_edge.bundle.engines import Plan, plan_targets

    def plan_check(target: str) -> None:
        Plan.open(bundle, target).check_files()

    checks: dict[str, Callable[[], object]] = {"files": bundle.check_files}
    checks |= {f"files of {target}": functools.partial(plan_check, target) for target in plan_targets(bundle.path)}
    findings = []
    for subject, check in checks.items():
        try:
            check()
        except QwenVLError as error:
            findings.append(Finding(subject, str(error), "bad"))
        else:
            findings.append(Finding(subject, "every file has its SHA-256"))
    return findings


def report(findings: Sequence[Finding]) -> str:
    """Return the findings for a terminal, each fix on a line of its own."""
    marks = {"good": " ", "note": " ", "slow": "!", "bad": "x"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.grade]} {finding.subject:<19}{finding.found}")
        if finding.fix:
            lines.append(f"{'':<21}-> {finding.fix}")
    return "\n".join(lines)


def _software(root: Path) -> Iterator[Finding]:
    system = re.search(r'PRETTY_NAME="?([^"\n]*)', _read(root / "etc/os-release"))
    name = system[1] if system else platform.system()
    yield Finding("system", f"{name}, {platform.machine()}")
    yield Finding("python", f"{platform.python_version()}, qwenvl-edge {__version__}")
    if importlib.util.find_spec("qwenvl_edge._core") is None:
        yield Finding("native core", "missing", "bad", "pip install --force-reinstall qwenvl-edge")
    for package, fix in _PACKAGES.items():
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            needed = package == "onnxruntime"
            yield Finding(package, "not installed", "bad" if needed else "note", fix)


def _extras() -> Iterator[Finding]:
    """Say of each command that needs an extra whether the extra's packages are installed."""
    try:
        requirements = importlib.metadata.requires("qwenvl-edge") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, without an installation
        return
    for extra, command in _EXTRAS.items():
        if lacking := [name for name in _needed(extra, requirements) if not _installed(name)]:
            found = f"lacks {', '.join(lacking)}"
            yield Finding(command, found, "note", f"pip install 'qwenvl-edge[{extra}]'")
        else:
            yield Finding(command, "its packages are installed")


def _needed(extra: str, requirements: Sequence[str]) -> list[str]:
    """Names of the packages of an extra, those of the extras that it includes among them."""
    names: list[str] = []
    for requirement in requirements:
        if not re.search(rf"""extra == ['"]{extra}['"]""", requirement) or not _applies(requirement, extra):
            continue
        included = re.match(r"qwenvl[-_]edge\[([\w,-]+)\]", requirement)
        if included is None:
            names.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
            continue
        for each in included[1].split(","):
            names += _needed(each, requirements)
    return names


def _applies(requirement: str, extra: str) -> bool:
    """True if a requirement is meant for this Python and system."""
    try:
        from packaging.requirements import Requirement  # ONNX Runtime brings it
    except ModuleNotFoundError:
        return True
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": extra})


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu(root: Path) -> Iterator[Finding]:
    text = _read(root / "proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    words = processor_features(root)
    have = [name for word, name in _SIMD.items() if word in words]
    count = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    name = model[1] if model else platform.processor() or "unknown"
    found = f"{name}, {count} threads: {', '.join(have) or 'no SIMD'}"
    if words and not words & _INTEGER_SIMD:
        yield Finding("CPU", found, "slow", "integers are slow on it; export with --precision fp32")
    else:
        yield Finding("CPU", found)


def _memory(root: Path) -> Iterator[Finding]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    sizes = {key: int(size) * 1024 for key, size in lines}
    if "MemTotal" in sizes:
        free, total = sizes.get("MemAvailable", 0), sizes["MemTotal"]
        scarce = free < total / 4
        fix = "stop what you do not need; on a board without a screen: sudo systemctl set-default multi-user.target"
        yield Finding(
            "memory",
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, swap {sizes.get('SwapTotal', 0) / 1e9:.1f} GB",
            "slow" if scarce else "good",
            fix if scarce else "",
        )


def _gpu(root: Path) -> Iterator[Finding]:
    driver = re.search(r"Kernel Module[^\n]*?\s(\d+\.[\d.]+)", _read(root / "proc/driver/nvidia/version"))
    gpus = [
        match[1].strip()
        for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (match := re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE))
    ]
    if driver is None and not gpus:
        if not _read(root / "etc/nv_tegra_release"):
            yield Finding("GPU", "no NVIDIA driver: bundles run on the CPU", "note")
        return
    yield Finding("GPU", ", ".join(gpus) or "unknown")
    yield Finding("driver", driver[1] if driver else "unknown")
    cuda = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([^"]+)"', _read(root / "usr/local/cuda/version.json"))
    yield Finding("CUDA toolkit", cuda[1] if cuda else "not installed; only building the plugin needs it")


def _nvrtc(root: Path) -> Iterator[Finding]:
    """Find the library that compiles the kernels for frames in the GPU's memory, where there is a GPU."""
    from qwenvl_edge.backends.cuda.kernels import NVRTC_FIX, nvrtc_problem

    if not any(_read(root / path) for path in ("proc/driver/nvidia/version", "etc/nv_tegra_release")):
        return
    if nvrtc_problem():
        yield Finding("NVRTC", "not found: frames in the GPU's memory are copied to the host", "note", NVRTC_FIX)
    else:
        yield Finding("NVRTC", "found: frames in the GPU's memory stay there")


def _jetson(root: Path) -> Iterator[Finding]:
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _read(root / "etc/nv_tegra_release"))
    if release is None:
        return
    board = _read(root / "proc/device-tree/model").rstrip("\0\n")
    yield Finding("board", board or "an unknown Jetson")
    l4t = f"{release[1]}.{release[2]}"
    known = [name for name in _JETPACK if f"{l4t}.".startswith(f"{name}.")]
    jetpack = _JETPACK[max(known, key=len)] if known else "unknown"
    old = int(release[1]) < 36
    fix = "flash JetPack 6.2 or newer: this package needs its Python 3.10 and TensorRT 10" if old else ""
    yield Finding("JetPack", f"{jetpack} (Jetson Linux {l4t})", "bad" if old else "good", fix)
    yield from _power(root)
    yield from _clocks(root)


def _power(root: Path) -> Iterator[Finding]:
    """The power mode: nvpmodel keeps the number of the one in force and a table of all, the largest last or first."""
    state = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    names: dict[str, str] = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _read(root / "etc/nvpmodel.conf"))
    )
    if state is None or not names:
        return
    number = str(int(state[1]))
    current = names.get(number, number)
    best, name = max(names.items(), key=lambda item: _watts(item[1]))
    slow = _watts(current) < _watts(name)
    yield Finding(
        "power mode", current, "slow" if slow else "good", f"sudo nvpmodel -m {best}   # {name}" if slow else ""
    )


def _watts(name: str) -> float:
    """A power mode's rank: its watts; MAXN and MAXN_SUPER have no limit."""
    number = re.match(r"(?:MODE_)?(\d+)W", name)
    return float(number[1]) if number else {"MAXN": 1000.0, "MAXN_SUPER": 1001.0}.get(name, 0.0)


def _clocks(root: Path) -> Iterator[Finding]:
    """GPU and CPU clocks, as ranges: a clock that fell between two questions is slow to rise again."""
    gpus = sorted(root.glob("sys/class/devfreq/*gpu*"))
    if gpus:
        yield _clock("GPU clock", gpus[0] / "min_freq", gpus[0] / "max_freq", 1e6)
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    if cpu.is_dir():
        yield _clock("CPU clock", cpu / "scaling_min_freq", cpu / "scaling_max_freq", 1e3)


def _clock(subject: str, low: Path, high: Path, per_mhz: float) -> Finding:
    lowest, highest = _number(low), _number(high)
    found = f"{lowest / per_mhz:,.0f} to {highest / per_mhz:,.0f} MHz"
    return Finding(subject, found, "slow", "sudo jetson_clocks") if lowest < highest else Finding(subject, found)


def _backends(bundle: Bundle) -> Iterator[Finding]:
    """Find the backends that would run the bundle, in the order of preference, and why the rest would not."""
    from qwenvl_edge.backends.select import BackendOptions, driver_absent, survey

    context = bundle.manifest.model.max_position_embeddings
    chosen = False
    for name, reason in survey(BackendOptions(bundle, threads=None, max_context=context, chunk=_CHUNK)):
        obstacle = _cpu_obstacle(bundle) if reason is None and name.endswith("cpu") else reason
        if obstacle is not None and name.endswith("cuda") and driver_absent():
            yield Finding(name, "cannot run it: there is no NVIDIA driver", "note")  # what else it lacks is no use
        elif obstacle is not None:
            yield Finding(name, "cannot run it", "note", obstacle)
        else:
            yield Finding(name, "could run it too" if chosen else "runs it")
            chosen = True
    if not chosen:
        yield Finding("bundle", f"nothing here runs {bundle.path}", "bad", "see the lines above, one is enough")


def _cpu_obstacle(bundle: Bundle) -> str | None:
    """Return the reason that would stop ONNX Runtime's CPU provider when it opens the bundle, or None."""
    from qwenvl_edge.backends.memory_estimate import check_fits, estimate_memory

    if "bf16" in bundle.manifest.precision.compute.values():
        return "a CPU computes no bfloat16 here; export with --precision fp32, int8 or int4"
    try:
        check_fits(estimate_memory(bundle, max_context=bundle.manifest.model.max_position_embeddings, chunk=_CHUNK))
    except QwenVLError as error:
        return str(error)
    return None


def _read(path: Path) -> str:
    """A file's text; "" if it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0
