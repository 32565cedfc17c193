"""Fills the figures of README.md and docs/figures.md from benchmarks/results/: `python benchmarks/figures.py`.

A block between `<!-- figures: NAME -->` and `<!-- end -->` is the text that the function NAME below makes of the result
files. So every figure on these pages comes from a file, and a test compares the pages with the files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from figure_text import conditions, load, number, prose, table
from figures_models import families, peers, scale, token_profile

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "figures.md")
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TASKS = {
    "ground": "phrase -> box",
    "ground_all": "phrase -> all boxes",
    "absent": "a thing that is not there: says so",
    "refer": "box -> phrase",
    "colour": "colour",
    "kind": "kind",
    "count": "count",
    "yes_no": "yes or no",
    "side": "left or right",
    "read": "read the sign",
    "ocr": "read with corners",
    "caption": "caption, word for word",
    "follow_up": 'follow-up "where is it?"',
    "same": "same things in two pictures?",
    "changed": "what changed",
    "which": "which of 2-3 pictures",
    "ground_in": "box in a named picture",
}
PROMISES = {  # figure: its name, floor, goal
    "box_acc50": ("boxes at IoU 0.5", 0.80, 0.90),
    "box_miou": ("mean IoU of boxes", 0.65, 0.75),
    "attributes": ("colour, kind, count, yes-no", 0.90, 0.95),
    "text_exact": ("text read without a mistake", 0.75, 0.90),
    "multi_picture": ("several pictures", 0.80, 0.90),
    "chinese_gap_points": ("English ahead of Chinese, percentage points", 5.0, 2.0),
}


def headline() -> str:
    """The README's three figures, each with the command that measures it."""
    small, model = load("latency-small"), load("latency-1b")["details"]["milliseconds"]
    times = small["details"]["conversation"]["cases"]
    cold, second = times["cold picture"]["p50"], times["second question"]["p50"]
    exported, answered = load("export-full-int4-verified")["headline"], load("export-full-int4")["details"]["answer"]
    smaller = load("export-1b-int4")["headline"]
    ours, theirs = model["int4"]["decode"]["median"], model["torch-bf16"]["decode"]["median"]
    items = (
        f"**A second question about a picture starts after {number(second, 'ms')}, the first one after "
        f"{number(cold, 'ms')}**: picture features and computed prefixes are kept (int8, random weights in the "
        "published proportions; `python benchmarks/latency.py out/small`, results/latency-small.json).",
        f"**A token takes {number(ours, 'ms')}, in PyTorch {number(theirs, 'ms')}**: the native core multiplies "
        "4-bit weights where they lie in the file (1.1 billion weights, two cores, PyTorch in bfloat16; "
        "`python benchmarks/latency.py --model 1b`, results/latency-1b.json).",
        f"**{exported['parameters'] / 1e9:.2f} billion weights become int4 and are compared with PyTorch in "
        f"{exported['seconds'] / 60:.0f} minutes with {number(exported['peak_anonymous_gb'], 'GB')} of memory, and "
        f"answer with {number(answered['peak_anonymous_gb'], 'GB')}** beside the mapped files; "
        f"{smaller['parameters'] / 1e9:.1f} billion in {number(smaller['seconds'], 's')} with "
        f"{number(smaller['peak_anonymous_gb'], 'GB')} (random weights, two cores; "
        "`python benchmarks/export_scale.py --preset full --precision int4`, "
        "results/export-full-int4-verified.json, and "
        "with `--ask`, results/export-full-int4.json).",
    )
    return "".join(
        textwrap.fill(item, 119, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False) + "\n"
        for item in items
    )


def latency() -> str:
    """Speed of the nano model next to PyTorch."""
    details = load("latency")["details"]
    ours, theirs = details["stages"]["runtime"], details["stages"]["PyTorch eager"]
    ratios = details["pytorch_over_runtime"]
    names = {
        "image_ms": "picture (decode, resize, ViT, adapter)",
        "prefill_ms": "prefill",
        "ttft_ms": "time to first token",
        "token_ms": "each further token",
        "answer_ms": "whole answer",
    }
    rows = []
    for key, name in names.items():
        ratio = ratios.get(key)
        told = f"{ratio['median']:.2f} ({ratio['q25']:.2f} to {ratio['q75']:.2f})" if ratio else ""
        rows.append([name, number(ours[key]["median"], "ms"), number(theirs[key]["median"], "ms"), told])
    head = ["stage", "runtime", "PyTorch eager", "PyTorch / runtime (quartiles)"]
    return f"{table(head, rows)}\n({conditions('latency')}.)\n"


def core() -> str:
    """Tokenizer, sampler and picture preprocessing next to their peers."""
    texts = load("tokenizer")["details"]["texts"]
    rows = [
        ["encode, MB/s", *[number(t["encode_mb_s"]["ours"]) for t in texts.values()]],
        ["... times tiktoken", *[number(t["encode_vs_tiktoken"]["median"]) for t in texts.values()]],
        ["... times Hugging Face tokenizers", *[number(t["encode_vs_tokenizers"]["median"]) for t in texts.values()]],
        ["decode, times tiktoken", *[number(t["decode_vs_tiktoken"]["median"]) for t in texts.values()]],
    ]
    sampler = load("sampler")["headline"]
    pillow = [ratio["median"] for ratio in load("image")["details"]["ratios"].values()]
    said = prose(
        f"Loading the vocabulary takes {load('tokenizer')['headline']['load_ms']:.0f} ms.",
        f"Drawing a greedy token from 151,936 logits takes {sampler['greedy_us']:.0f} µs,",
        f"{sampler['greedy_vs_read']:.2f} times as long as reading the row. The default chain (top-p) takes",
        f"{sampler['top_p_us']:.0f} µs and is {sampler['top_p_vs_torch']:.0f} times as fast as the same chain in",
        f"PyTorch, {sampler['top_p_vs_numpy']:.0f} times as fast as in NumPy.",
        f"Resizing and normalising a picture is {min(pillow):.1f} to {max(pillow):.1f} times as fast as Pillow and",
        f"NumPy. ({conditions('tokenizer')}.)",
    )
    return f"{table(['text', *texts], rows)}\n{said}"


LOOKUPS = {
    "an answer that repeats the prompt's boxes / list / JSON / JSON by a schema": (
        *("the prompt's text and boxes", "the prompt's list"),
        *("the prompt's JSON", "the prompt's JSON, constrained"),
    ),
    "the boxes of the answer before": ("text and boxes again",),
    "new boxes / words / JSON by a schema": ("new text and boxes", "new words", "new JSON"),
}


def speedups(found: dict[str, Any], cases: Sequence[str]) -> str:
    """Medians of cases of look-up decoding; a dash for one that was not measured, an empty cell if none was."""
    medians = [found.get(f"look-up, {case}", {}).get("p50") for case in cases]
    return " / ".join("-" if median is None else number(median) for median in medians) if any(medians) else ""


def conversation() -> str:
    """Times and gains of reuse, look-up decoding, constraints and batches, on nano and on random weights."""
    nano, small = load("latency"), load("latency-small")
    cases = ("cold picture", "same picture again", "second question", "tenth turn", "fork after five turns")
    measured = [found["details"]["conversation"]["cases"] for found in (nano, small)]
    times = [
        [case, *[number(found[case][key]) for found in measured for key in ("p50", "p90", "p99", "jitter")]]
        for case in cases
    ]
    columns = ["p50", "p90", "p99", "jitter"]
    head = ["time to first token, ms", *[f"nano {name}" for name in columns], *[f"random {name}" for name in columns]]
    opening, soak = nano["headline"], load("soak")["headline"]
    repeats = [found["cold picture"]["n"] for found in measured]
    said = prose(
        f"nano is measured in fp32 with {repeats[0]} repeats, the random weights in int8 with the full vocabulary and",
        f"{repeats[1]} repeats; jitter is p99 - p50. Opening the nano engine takes {opening['load_ms']:.0f} ms, its",
        f"resident peak is {opening['peak_memory_mb']:.0f} MB. ({conditions('latency')}.)",
        f"`make soak`, sixteen threads on one engine: {soak['requests']:,} requests in {soak['minutes']:.0f} minutes,",
        f"{soak['wrong_answers']} wrong answers, memory {soak['soak_growth_mb']:+.1f} MB.",
    )
    return f"{table(head, times)}\n{gains(nano, small)}\n{said}"


def gains(nano: dict[str, Any], small: dict[str, Any]) -> str:
    """Ratios of reuse, constraints, batches and look-up decoding, as a table and a sentence."""
    names = {
        "second_question_ttft_ratio": "second question: time to first token / the cold picture's",
        "tenth_turn_ttft_ratio": "tenth turn: time to first token / the cold picture's",
        "constrained_overhead": "a constraint that masks every token: extra time / a step's time",
        "schema_ms_a_token_ratio": "JSON Schema: time per token / a free answer's",
        "batch4_speedup": "four answers together: tokens per second / one answer's",
        "soak_growth_mb": "memory grown over 1,000 requests, MB",
    }
    rows = [
        [name, *[number(found["headline"][key]) if key in found["headline"] else "" for found in (nano, small)]]
        for key, name in names.items()
    ]
    lookups = [load("lookup")["details"]["cases"], small["details"]["conversation"]["cases"]]
    rows += [
        [f"look-up decoding, {name}: speed / without it", *[speedups(found, cases) for found in lookups]]
        for name, cases in LOOKUPS.items()
    ]
    said = prose(
        "The answers of the look-up rows are dictated: the model computes every token's logits, and a given text is",
        "taken instead of the drawn one, so that it repeats the prompt as wanted",
        f"(`benchmarks/conversation.py --cases lookup`, {lookups[0]['look-up, new words']['n']} repeats).",
    )
    return f"{table(['ratio', 'nano, fp32', 'random weights, int8'], rows)}\n{said}"


def footprint() -> str:
    """Size of an installation, import times, and the wheels that were tried."""
    found = load("install_size")
    sizes = sorted(found["details"]["installed_mb"].items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name.partition(' ')[0]} {size:.0f} MB" for name, size in sizes[:3])
    headline = found["headline"]
    times = {name: f"{times['median']:.0f} ms" for name, times in found["details"]["import_ms"].items()}
    wheels = load("pythons")["headline"] | load("arm64")["headline"]
    tried = [
        f"{name} ({run['tests']['passed']}/{run['tests']['failed']})"
        for name, run in wheels.items()
        if len(set(run["answers_equal"].split(" of "))) == 1
    ]
    return prose(
        f"`pip install qwenvl-edge` installs {headline['packages']} packages, {headline['installed_mb']:.0f} MB",
        f"({largest}; its own {headline['own_mb']:.1f} MB). `import qwenvl_edge` takes {times['import qwenvl_edge']},",
        f"with `QwenVLEngine` {times['import QwenVLEngine']}, of which ONNX Runtime {times['import onnxruntime']}.",
        f"({conditions('install_size')}.)",
        "Wheels that were built and installed, and whose four answers equalled those of this machine, with the native",
        f"core's tests passed/failed: {'; '.join(tried)}. The record does not name the failed test.",
    )


def serving() -> str:
    """Speed of `qwenvl serve` with several clients, and the check that every answer is the right one."""
    found = load("server")
    cases, headline = found["details"]["cases"], found["headline"]
    names = {"1 client": "", "4 clients": "", "16 clients": "clients16_speedup"}
    rows = []
    for clients, key in names.items():
        speeds = [number(cases[f"{clients}, {kind}"]["median"]) for kind in ("whole", "streamed")]
        times = f"{headline[key]:.2f}, {headline[f'{key}_streamed']:.2f}" if key else ""
        rows.append([clients, *speeds, times])
    compared = load("server-soak")["headline"]
    wrong = compared["wrong"]
    verdict = f"{wrong:,} answers differed from" if wrong else "every answer equalled"
    verdict += " that of a lone engine"
    said = prose(
        f"({conditions('server')}.)",
        f"{compared['answers']:,} requests of 16 clients, of which {compared['left']:,} were abandoned early:",
        f"{verdict} (`make server-soak`).",
    )
    head = ["tokens/s of all clients", "whole answers", "streamed", "times one client (whole, streamed)"]
    return f"{table(head, rows)}\n{said}"


def answers() -> str:
    """Right answers of the nano model, task by task."""
    tasks = load("accuracy")["details"]["tasks"]["fp32"]
    rows = []
    for key, name in TASKS.items():
        en, zh = tasks[key]["en"], tasks[key]["zh"]
        iou = f"{(en['iou'] + zh['iou']) / 2:.2f}" if "iou" in en else ""
        rows.append([name, f"{en['right']:.2f}", f"{zh['right']:.2f}", iou])
    return table(["task", "English", "Chinese", "mean IoU"], rows)


def promises() -> str:
    """The project's promises for the nano model, and the figures that it reaches."""
    found = load("accuracy")["headline"]["fp32"]
    rows = [[name, f"{floor:g}", f"{goal:g}", f"{found[key]:.3g}"] for key, (name, floor, goal) in PROMISES.items()]
    return table(["figure", "floor", "goal", "reached"], rows)


def precisions() -> str:
    """Right answers of each precision, on the same questions."""
    result = load("accuracy-precisions")
    found = result["headline"]
    rows = [[name, *[f"{figures[key]:.3g}" for figures in found.values()]] for key, (name, _, _) in PROMISES.items()]
    lost = [f"{figures['worst_loss_points']:.1f} ± {figures['worst_loss_error']:.1f}" for figures in found.values()]
    rows.append(["points lost on the worst task (standard error)", *lost])
    count = result["details"]["count_per_task_and_language"]
    said = prose(f"({count} questions per task and language; {conditions('accuracy-precisions')}.)")
    return f"{table(['figure', *found], rows)}\n{said}"


MAKERS: dict[str, Callable[[], str]] = {
    maker.__name__: maker
    for maker in (
        headline,
        latency,
        conversation,
        serving,
        core,
        footprint,
        scale,
        families,
        peers,
        token_profile,
        answers,
        promises,
        precisions,
    )
}


def filled(text: str) -> str:
    """`text` with every block made anew; a block of an unknown name is a KeyError."""
    return BLOCK.sub(lambda found: f"{found[1]}{MAKERS[found[2]]()}{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
