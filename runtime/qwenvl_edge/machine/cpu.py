"""What this machine's processor can do, in the words of Linux."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_X86 = {"x86_64", "AMD64", "i686"}
_VNNI = {"avx512_vnni", "avx_vnni"}


def processor_features(root: Path = Path("/")) -> frozenset[str]:
    """The "flags" (x86) or "Features" (ARM) of `root`/proc/cpuinfo; empty where the system does not tell."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)).split())


def signed_products_saturate() -> bool:
    """Whether sums of products of unsigned with signed bytes may be cut off at 16 bits: on x86 without VNNI."""
    return platform.machine() in _X86 and not processor_features() & _VNNI
