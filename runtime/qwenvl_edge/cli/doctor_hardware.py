"""Findings about the machine itself: processor, memory, GPU, Jetson; and what a finding is."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwenvl_edge.machine.cpu import processor_features

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


@dataclass(frozen=True)
class Finding:
    """One fact: its subject, what was found, what that means, and the command that would improve it ("" if none)."""

    subject: str
    found: str
    grade: Grade = "good"
    fix: str = ""


def hardware(root: Path) -> Iterator[Finding]:
    """Look at the machine whose file system is at `root`."""
    for look in (_cpu, _memory, _gpu, _nvrtc, _jetson):
        yield from look(root)


def _cpu(root: Path) -> Iterator[Finding]:
    text = read(root / "proc/cpuinfo")
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
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read(root / "proc/meminfo"), re.MULTILINE)
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
    driver = re.search(r"Kernel Module[^\n]*?\s(\d+\.[\d.]+)", read(root / "proc/driver/nvidia/version"))
    gpus = [
        match[1].strip()
        for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (match := re.search(r"^Model:\s*(.+)$", read(path), re.MULTILINE))
    ]
    if driver is None and not gpus:
        if not read(root / "etc/nv_tegra_release"):
            yield Finding("GPU", "no NVIDIA driver: bundles run on the CPU", "note")
        return
    yield Finding("GPU", ", ".join(gpus) or "unknown")
    yield Finding("driver", driver[1] if driver else "unknown")
    cuda = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([^"]+)"', read(root / "usr/local/cuda/version.json"))
    yield Finding("CUDA toolkit", cuda[1] if cuda else "not installed; only building the plugin needs it")


def _nvrtc(root: Path) -> Iterator[Finding]:
    """Find the library that compiles the kernels for frames in the GPU's memory, where there is a GPU."""
    from qwenvl_edge.backends.cuda.kernels import NVRTC_FIX, nvrtc_problem

    if not any(read(root / path) for path in ("proc/driver/nvidia/version", "etc/nv_tegra_release")):
        return
    if nvrtc_problem():
        yield Finding("NVRTC", "not found: frames in the GPU's memory are copied to the host", "note", NVRTC_FIX)
    else:
        yield Finding("NVRTC", "found: frames in the GPU's memory stay there")


def _jetson(root: Path) -> Iterator[Finding]:
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release"))
    if release is None:
        return
    board = read(root / "proc/device-tree/model").rstrip("\0\n")
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
    state = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status"))
    names: dict[str, str] = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read(root / "etc/nvpmodel.conf"))
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


def read(path: Path) -> str:
    """A file's text; "" if it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = read(path).strip()
    return int(text) if text.isdigit() else 0
