"""Profile of the native tokenizer: the share of each function in encoding and decoding, by sampling.

    python benchmarks/core_profile.py [--vocabulary .cache/qwen.tiktoken] [--seconds 5] [--json FILE]

The texts are those of tokenizer.py. A process of its own does one thing again and again while Linux's perf looks which
function runs, 4,000 times a second by the processor's clock (virtual machines often have no other counters). Caches are
warmer than between the calls of tokenizer.py, where the peers run. A function's time includes what the compiler has put
into it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from common import VOCABULARY, arguments, conditions, finish, needed_vocabulary

CASES = {f"{call}_{text.lower()}": (call, text) for call in ("encode", "decode") for text in ("English", "Chinese")}
SAMPLES_PER_SECOND = 4000
SMALLEST_SHARE = 0.005


def plain_name(symbol: str) -> str:
    """A C++ function's name without namespaces, arguments and template arguments."""
    name = symbol.replace("(anonymous namespace)", "").replace("operator()", "call")
    for inner in (r"<[^<>]*>", r"\([^()]*\)", r"\{[^{}]*\}"):
        while re.search(inner, name):
            name = re.sub(inner, "", name)
    words = name.removesuffix(" const").split(" ")[-1].split("::")
    return "::".join(word for word in words if word not in ("", "qwenvl", "pybind11", "std", "__cxx11")) or symbol


def shares(report: str) -> dict[str, float]:
    """Share of all samples by "object: function", largest first, of perf report's lines `samples|object|[.] symbol`."""
    samples: Counter[str] = Counter()
    for line in report.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        count, binary, symbol = line.split("|", 2)
        space, name = symbol.strip().split(" ", 1)
        owner = "kernel" if space == "[k]" else binary.strip().split(".")[0]
        samples[f"{owner}: {plain_name(name) if owner == '_core' else name.strip()}"] += int(count)
    total = samples.total()
    if total == 0:
        raise ValueError("perf report holds no samples; give --seconds more time")
    return {name: count / total for name, count in samples.most_common() if count / total >= SMALLEST_SHARE}


def work(call: str, text_name: str, vocabulary: Path) -> NoReturn:
    """Encode or decode until the process is ended; print the start and, after a second, the time of a call."""
    from tokenizer import texts

    from qwenvl_edge.inputs.tokenizer import Tokenizer

    tokenizer = Tokenizer(vocabulary, {})
    text = texts()[text_name]
    ids = tokenizer.encode(text)
    calls, started = 0, time.perf_counter()
    while True:
        if call == "encode":
            tokenizer.encode(text)
        else:
            tokenizer.decode(ids)
        calls += 1
        if time.perf_counter() - started > 1:
            print(json.dumps({"ids": len(ids), "ms": (time.perf_counter() - started) * 1e3 / calls}), flush=True)
            calls, started = 0, float("inf")


def profile(perf: str, call: str, text: str, vocabulary: Path, seconds: float) -> dict[str, Any]:
    """The shares of one case, with its number of ids and the milliseconds of a call."""
    worker = [sys.executable, __file__, "--work", call, text, "--vocabulary", str(vocabulary)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(worker, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit(f"The process that was to {call} {text} has ended; its error stands above.")
            data = Path(folder) / "perf.data"
            record = [perf, "record", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-o", str(data)]
            record += ["-p", str(process.pid), "--", "sleep", str(seconds)]
            recorded = subprocess.run(record, capture_output=True, text=True, check=False)
            if recorded.returncode != 0:
                sys.exit(f"perf may not sample here (see kernel.perf_event_paranoid): {recorded.stderr.strip()}")
        finally:
            process.kill()
        show = [perf, "report", "-i", str(data), "--stdio", "--no-children", "-F", "sample,dso,symbol", "-t", "|"]
        report = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    return {**json.loads(line), "shares": shares(report)}


def main() -> None:
    """Profile every case, print the largest shares, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--vocabulary", type=Path, default=VOCABULARY)
    parser.add_argument("--seconds", type=float, default=5, help="how long each case is sampled")
    parser.add_argument("--work", nargs=2, metavar=("CALL", "TEXT"), help="be the process that is looked at")
    options = parser.parse_args()
    needed_vocabulary(options.vocabulary)
    if options.work:
        work(*options.work, options.vocabulary)
    perf = shutil.which("perf")
    if perf is None:
        sys.exit("A profile needs Linux's perf: install it (Debian: apt-get install linux-perf).")
    before = conditions()
    details = {}
    for name, (call, text) in CASES.items():
        details[name] = profile(perf, call, text, options.vocabulary, options.seconds)
        print(f"{name}: {details[name]['ms']:.2f} ms")
        for function, share in list(details[name]["shares"].items())[:10]:
            print(f"  {share:6.1%}  {function}")
    largest = {name: next(iter(case["shares"].values())) for name, case in details.items()}
    finish(options, before, {f"{name}_largest_share": share for name, share in largest.items()}, details)


if __name__ == "__main__":
    main()
