"""The process in which a server tries constraints before its own process compiles them, and looks for the ends of those
that were cut; run as a script.

Some forms of a few hundred bytes compile for hours or need gigabytes, and no limit of llguidance's holds there. So each
is compiled here first: this process has its own limits of memory and computing time, and whoever started it ends it.
Ends are sought here because a search computes in Python, which every token of every answer needs in the server.

    trial.py MEGABYTES SECONDS

reads a line of JSON per form on stdin. {"grammar": ...} is answered with {"error": null or a sentence}, and
{"ending": ...}, a record of ending.py, with {"ids": [...]}. A form beyond the limits ends the process. It imports
nothing of this package but the search, so that it begins at once and small.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

from qwenvl_edge.constraints.ending import Ending, find_end

_BYTES = 256


class _Bytes:
    """A vocabulary of single bytes; the time to compile a form depends little on the vocabulary."""

    eos_token_id = _BYTES
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(_BYTES)), b"<end>"]  # noqa: RUF012
    special_token_ids = [_BYTES]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main(megabytes: int, seconds: float) -> None:
    """Try the forms that come on stdin until it ends."""
    with contextlib.suppress(OSError):
        os.nice(5)  # answers come first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides when to end
    import llguidance

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), n_vocab=_BYTES + 1, eos_token=[_BYTES])
    limit_memory(megabytes << 20)
    _say({})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, wherever it is
        asked = json.loads(line)
        if "ending" in asked:
            answer: dict[str, Any] = {"ids": find_end(Ending.of_record(asked["ending"]))}
        else:
            answer = {"error": _try(llguidance, tokenizer, asked["grammar"])}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _try(llguidance: Any, tokenizer: Any, grammar: str) -> str | None:
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_ff_tokens()
        matcher.compute_bitmask()
    return str(matcher.get_error())[:1000] if matcher.is_error() else None


def limit_memory(room: int) -> None:
    """Limit the address space to what is taken now and `room` bytes more, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123
            taken = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = taken + room
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are not meant to be found by their short names
    main(int(sys.argv[1]), float(sys.argv[2]))
