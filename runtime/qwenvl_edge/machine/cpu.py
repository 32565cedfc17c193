"""Features of this machine's processor, under the names that Linux gives them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_X86 = {"x86_64", "AMD64", "i686"}
_VNNI = {"avx512_vnni", "avx_vnni"}


def processor_features(root: Path = Path("/")) -> frozenset[str]:
    """The "flags" (x86) or "Features" (ARM) of `root`/proc/cpuinfo; empty if the system does not tell."""
    return frozenset(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(root), re.MULTILINE)).split())


def processor_name(root: Path = Path("/")) -> str:
    """The model in `root`/proc/cpuinfo; on Arm the numbers of its maker and parts; else what Python knows."""
    text = _cpuinfo(root)
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if model:
        return model[1].strip()
    parts = dict.fromkeys(re.findall(r"^CPU (?:implementer|part)\s*:\s*(\S+)", text, re.MULTILINE))
    return " ".join(parts) or platform.processor() or platform.machine()


def _cpuinfo(root: Path) -> str:
    try:
        return (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def signed_products_saturate() -> bool:
    """True on x86 without VNNI, where sums of products of unsigned with signed bytes may be cut off at 16 bits."""
    return platform.machine() in _X86 and not processor_features() & _VNNI
