"""Findings about this machine: packages, hardware and backends, and the commands that install what is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_edge import __version__
from qwenvl_edge.cli.doctor_hardware import Finding, hardware, read
from qwenvl_edge.errors import QwenVLError

if TYPE_CHECKING:
    from qwenvl_edge.bundle.bundle import Bundle

_CHUNK = 128  # tokens of a prefill call, as the engine has it

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


def examine(root: Path = Path("/"), *, bundle: Bundle | None = None) -> list[Finding]:
    """Look at the machine whose file system is at `root`, and at what would run `bundle` on it."""
    findings = [*_software(root), *_extras(), *hardware(root)]
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
    system = re.search(r'PRETTY_NAME="?([^"\n]*)', read(root / "etc/os-release"))
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
