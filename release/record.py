"""Compares the answers in work folders of release/try_wheel.sh with this machine's and writes the record.

python release/record.py RESULT.json EMULATOR FOLDER...; EMULATOR is its version, or "none".
"""

import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PACKAGES = ("numpy", "pillow", "onnxruntime", "pip", "auditwheel", "pytest", "tiktoken")


def tests(file: Path) -> dict[str, int]:
    """Passed, failed and skipped tests of a JUnit file."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(file).iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, "0"))
    bad = counts["failures"] + counts["errors"]
    return {"passed": counts["tests"] - bad - counts["skipped"], "failed": bad, "skipped": counts["skipped"]}


def tried(folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Return the name of the system, its results, and the questions that it answered differently."""
    here, there = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("here", "there"))
    machine, python = json.loads((folder / "python.json").read_text())
    versions = dict(line.split("==") for line in (folder / "freeze").read_text().split() if "==" in line)
    times = dict(line.split() for line in (folder / "seconds").read_text().splitlines())
    different = [row[0] for row, other in zip(here, there, strict=True) if row != other]
    found = {
        "wheel": next(folder.glob("dist/*.whl")).name,
        "answers_equal": f"{len(here) - len(different)} of {len(here)}",
        "tests": tests(folder / "tests.xml"),
        "seconds": {name: int(value) for name, value in times.items()},
        "compiler": (folder / "compiler").read_text().splitlines()[0],
        "versions": {name: versions[name] for name in PACKAGES},
    }
    return f"{machine}, Python {python}", found, different


def main() -> int:
    """Write RESULT.json; 1 if an answer differs."""
    result, emulator, *folders = sys.argv[1:]
    found, different = {}, []
    for folder in folders:
        name, item, wrong = tried(Path(folder))
        found[name] = item
        different += [f"{name} answers {question!r} differently: compare {folder}/*.json" for question in wrong]
    conditions = {
        "date": datetime.date.today().isoformat(),
        "host": f"{platform.machine()}, Python {platform.python_version()}",
        "emulator": emulator,
    }
    file = Path(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {"conditions": conditions, "headline": found}
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, item in found.items():
        print(f"{name}: {item['wheel']}, answers equal {item['answers_equal']}, tests {item['tests']}")
    print(*different, sep="\n", file=sys.stderr, end="\n" if different else "")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
