"""Read off the machine code what nvcc made of the TensorRT plugin's kernels; no GPU is needed.

    python -m tools.plugin_code build/plugin/libqwenvl_tensorrt_plugin.so [--json FILE]

It prints architectures, and per kernel the most registers and spilled bytes of any float type and head size, beside
their limits, and the loads that a decode kernel has on their way before it waits for the first. It ends with 1 if a
limit is passed. cuobjdump and nvdisasm come with CUDA's toolkit, or from pip (nvidia-cuda-cuobjdump, -nvdisasm).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

REGISTERS = 65_536  # of a processor, on every architecture that the plugin is for
THREADS = 128  # of a block, in all kernels but the smallest
# Blocks on a processor at once that a kernel must leave registers for, and bytes that it may spill. By kernel, cache of
# integers or not, and rows (decode_attention) or tiles of rows (prefill_attention).
LIMITS = {
    ("decode_attention", False, 1): (5, 0),
    ("decode_attention", False, 2): (4, 0),
    ("decode_attention", False, 4): (2, 0),
    ("decode_attention", True, 1): (4, 0),
    ("decode_attention", True, 2): (3, 0),
    ("decode_attention", True, 4): (2, 0),
    ("prefill_attention", False, 1): (3, 0),
    ("prefill_attention", False, 2): (2, 64),  # a quarter of a register's worth per thread and tile: harmless
    ("prefill_attention", True, 1): (2, 0),
    ("write_cache", False, 0): (12, 0),
    ("write_cache", True, 0): (12, 0),
    ("combine_partials", False, 0): (10, 0),
}
AHEAD = 8  # vectors of keys and values: four of each

_NAME = re.compile(r"_ZN6qwenvl\d+([a-z_]+?)I(6__half|13__nv_bfloat16)(S1_|a)?Li(\d+)E(?:Li(\d+)E)?")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),", re.M)
_INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P[T\d]+ )?([A-Z][A-Z0-9_.]*)(.*?);", re.M)
_LABEL = re.compile(r"\.L_x_\d+")


@dataclass(frozen=True)
class Kernel:
    """One kernel in the code for one architecture. variant: rows or tiles of rows; 0 where there is one only.

    loads_ahead, loads: vector loads of a decode kernel's loop in front of its first product, and all of them.
    """

    architecture: str
    name: str
    int8: bool
    head_dim: int
    variant: int
    registers: int
    spilled: int
    loads_ahead: int = 0
    loads: int = 0

    @property
    def kind(self) -> tuple[str, bool, int]:
        """The key of LIMITS."""
        return self.name, self.int8, self.variant


def tool(name: str) -> str | None:
    """The path of a program of CUDA's: from PATH, the toolkit or a package of pip's."""
    packages = Path(sysconfig.get_paths()["purelib"]).glob(f"nvidia/*/bin/{name}")
    places = (shutil.which(name), "/usr/local/cuda/bin/" + name, *map(str, packages))
    return next((str(place) for place in places if place and Path(place).exists()), None)


def architectures(library: Path) -> tuple[list[str], list[str]]:
    """The architectures of a library's machine code, and those of its PTX: "sm_87", ..."""
    return tuple(  # type: ignore[return-value]
        sorted(set(re.findall(r"sm_\d+", _run("cuobjdump", option, library))), key=lambda name: int(name[3:]))
        for option in ("--list-elf", "--list-ptx")
    )


def kernels(library: Path, *, disassembled: tuple[str, ...] = ()) -> list[Kernel]:
    """All kernels of a library; disassembled: architectures whose decode loops are read, a second per head size."""
    found = []
    with tempfile.TemporaryDirectory() as work:
        _run("cuobjdump", "--extract-elf", "all", library.absolute(), folder=Path(work))
        for cubin in sorted(Path(work).glob("*.cubin")):
            match = re.search(r"sm_\d+", cubin.name)
            architecture = "" if match is None else match[0]
            loops = dict(decode_loops(_run("nvdisasm", "-c", cubin))) if architecture in disassembled else {}
            for mangled, registers, stack in _USAGE.findall(_run("cuobjdump", "--dump-resource-usage", cubin)):
                if (name := _NAME.match(mangled)) is None:
                    continue
                kind = (name[1], name[3] == "a", int(name[4]), int(name[5] or 0))
                found.append(Kernel(architecture, *kind, int(registers), int(stack), *loops.get(mangled, (0, 0))))
    return found


def decode_loops(assembly: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """(mangled name, (vector loads before the first product, all vector loads)) of each decode kernel's main loop."""
    parts = _SECTION.split(assembly)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if "decode_attention" in name:
            yield name, max((_loads(loop) for loop in _loops(body) if any("EX2" in op for op in loop)), default=(0, 0))


def excess(kernel: Kernel) -> str:
    """The limit that a kernel passes, in words; "" if none."""
    blocks, spilled = LIMITS[kernel.kind]
    most = REGISTERS // (blocks * THREADS)
    if kernel.registers > most:
        return f"{kernel.registers} registers, more than {most}"
    if kernel.spilled > spilled:
        return f"{kernel.spilled} bytes spilled, more than {spilled}"
    if kernel.loads and (kernel.loads_ahead < AHEAD or kernel.loads_ahead != kernel.loads):
        return f"{kernel.loads_ahead} of {kernel.loads} loads ahead of the first product"
    return ""


def table(found: list[Kernel]) -> str:
    """The kernels by kind: the most of each figure, and the limits."""
    lines = [f"{'kernel':18}{'cache':>6}{'rows':>5}{'registers':>11}{'limit':>7}{'spilled':>9}{'limit':>7}{'ahead':>7}"]
    for kind, (blocks, spilled) in LIMITS.items():
        mine = [kernel for kernel in found if kernel.kind == kind]
        ahead = min((kernel.loads_ahead for kernel in mine if kernel.loads), default=0)
        lines.append(
            f"{kind[0]:18}{'int8' if kind[1] else 'float':>6}{kind[2] or '':>5}{max(k.registers for k in mine):>11}"
            f"{REGISTERS // (blocks * THREADS):>7}{max(k.spilled for k in mine):>9}{spilled:>7}{ahead or '':>7}"
        )
    return "\n".join(lines)


def _loops(body: str) -> Iterator[list[str]]:
    """The instructions' names of every loop: from a label to a later branch back to it. Innermost ones are shortest."""
    names: list[str] = []
    labels: dict[str, int] = {}
    for line in body.splitlines():
        if (label := re.match(r"(\.L_x_\d+):", line)) is not None:
            labels[label[1]] = len(names)
        elif (found := _INSTRUCTION.match(line)) is not None:
            names.append(found[1])
            target = _LABEL.search(found[2]) if found[1].startswith("BRA") else None
            if target is not None and target[0] in labels:
                yield names[labels[target[0]] :]


def _loads(loop: list[str]) -> tuple[int, int]:
    """Vector loads ahead of the first product, and all, of a loop; a lane's vector has 8 or 16 bytes."""
    loads = [i for i, name in enumerate(loop) if re.match(r"LDG\.E\.(128|64)", name)]
    first = next((i for i, name in enumerate(loop) if name.startswith(("FFMA", "FMUL", "HFMA"))), len(loop))
    return sum(i < first for i in loads), len(loads)


def _run(program: str, *arguments: object, folder: Path | None = None) -> str:
    path = tool(program)
    if path is None:
        sys.exit(f"{program} is not found; pip install nvidia-cuda-{program}")
    command = [path, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Print the table of a library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all kernels there too")
    options = parser.parse_args()
    machine, virtual = architectures(options.library)
    found = kernels(options.library, disassembled=tuple(machine))
    print(f"machine code: {', '.join(machine)}; PTX: {', '.join(virtual) or 'none'}")
    print(table(found))
    if options.json:
        report = {"machine_code": machine, "ptx": virtual, "kernels": [asdict(kernel) for kernel in found]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    passed = [
        f"{kernel.architecture} {kernel.kind} {kernel.head_dim}: {why}" for kernel in found if (why := excess(kernel))
    ]
    print("\n".join(passed) or "all within their limits")
    sys.exit(bool(passed))


if __name__ == "__main__":
    main()
