"""Size of an installation (`pip install qwenvl-edge`) and cost of importing it.

Sizes are those of the files that each distribution lists, as installed here: the package's own and everything that its
base dependencies need. Bytecode that Python writes later is left out. Import times are medians over fresh processes,
alternating with a process that imports nothing, whose time is subtracted.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

from common import arguments, conditions, finish, spread
from packaging.requirements import Requirement

PACKAGE = "qwenvl-edge"
IMPORTS = {
    "import qwenvl_edge": "import qwenvl_edge",
    "import QwenVLEngine": "from qwenvl_edge import QwenVLEngine",
    "import onnxruntime": "import onnxruntime",
}


def closure(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Add a distribution and everything that it requires without extras to `found`."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    found[key] = importlib.metadata.distribution(name)
    for line in found[key].requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, found)


def installed_bytes(distribution: importlib.metadata.Distribution) -> int:
    """Bytes of a distribution's files; of an editable one, those of its packages."""
    files = [Path(str(file.locate())) for file in distribution.files or ()]
    if any("__editable__" in file.name for file in files):
        import qwenvl_edge
        import qwenvl_edge_export

        roots = [Path(module.__path__[0]) for module in (qwenvl_edge, qwenvl_edge_export)]
        files = [file for root in roots for file in root.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


def seconds(code: str) -> float:
    """Wall time of a fresh process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def import_times(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each import, the interpreter's own start subtracted pair by pair."""
    samples: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for code in IMPORTS.values():
        seconds(code)  # bytecode and the disk's cache
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            nothing = seconds("pass")
            samples[name].append((seconds(code) - nothing) * 1e3)
    return {name: spread(values) for name, values in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=11, metavar="N", help="processes for each import (default 11)")
    options = parser.parse_args()
    before = conditions()
    found: dict[str, importlib.metadata.Distribution] = {}
    closure(PACKAGE, found)
    sizes = {f"{name} {item.version}": installed_bytes(item) / 1e6 for name, item in found.items()}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{name:<32}{size:>9.1f} MB")
    print(f"{'together':<32}{sum(sizes.values()):>9.1f} MB")
    times = import_times(options.repeats)
    for name, figures in times.items():
        print(f"{name:<32}{figures['median']:>9.0f} ms ({figures['q25']:.0f} to {figures['q75']:.0f})")
    headline = {
        "installed_mb": sum(sizes.values()),
        "own_mb": installed_bytes(found[PACKAGE]) / 1e6,
        "packages": len(sizes),
        "import_ms": times["import qwenvl_edge"]["median"],
        "import_engine_ms": times["import QwenVLEngine"]["median"],
    }
    finish(options, before, headline, {"installed_mb": sizes, "import_ms": times})


if __name__ == "__main__":
    main()
