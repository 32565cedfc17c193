"""Figures of models of real size, and beside other programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from figure_text import RESULTS, conditions, load, number, prose, table


def scale() -> str:
    """A model of 1.1 billion weights beside PyTorch, and the full-size model."""
    small = load("latency-1b")
    times = small["details"]["milliseconds"]
    columns = ("int4", "int4-32", "int8", "int8-32", "torch-fp32", "torch-bf16")
    names = {"vision": "a picture, ms", "prefill": "prefill of 288 tokens, ms", "decode": "a token, ms"}
    rows = [[name, *[number(times[each][stage]["median"]) for each in columns]] for stage, name in names.items()]
    share = {each: small["details"]["ratios"][f"bandwidth_share_{each}"]["median"] for each in columns[:4]}
    rows.append(["share of the read bandwidth used by a token", *map(number, share.values()), "", ""])
    said = prose(f"1.1 billion random weights. ({conditions('latency-1b')}.)")
    titles = ["work", "int4", "int4, blocks of 32", "int8", "int8, blocks of 32", "PyTorch fp32", "PyTorch bf16"]
    return f"{table(titles, rows)}\n{said}\n{full_size()}\n{verified_exports()}"


def verified_exports() -> str:
    """Time, memory and disk of exports as users run them: with the comparison with PyTorch at their end."""
    sizes = {"1b": "Qwen-VL", "qwen3-vl-2b": "Qwen3-VL", "qwen3-vl-8b": "Qwen3-VL", "full": "Qwen-VL"}
    files = {f"export-{size}-{bits}": family for size, family in sizes.items() for bits in ("int4", "int8")}
    # Without the ending: exports that were not compared.
    files = {f"{name}-verified" if "full" in name else name: family for name, family in files.items()}
    files = {name: family for name, family in files.items() if (RESULTS / f"{name}.json").exists()}
    exports = [load(name)["headline"] for name in files]
    rows = [
        ["export altogether, s", *[number(each["seconds"]) for each in exports]],
        ["of it the comparison, s", *[number(each["verify_seconds"]) for each in exports]],
        ["GB beside mapped files", *[number(each["peak_anonymous_gb"]) for each in exports]],
        ["bundle, GB", *[number(each["disk_gb"]) for each in exports]],
        ["comparison", *[each["verified"] for each in exports]],
    ]
    titles = [
        f"{family}, {each['parameters'] / 1e9:.3g} billion, {each['precision']}"
        for family, each in zip(files.values(), exports, strict=True)
    ]
    said = prose(
        "With the comparison, random weights, not calibrated; why random weights of Qwen3-VL fail in 4 bits: "
        f"[verification](design/verification.md#random-weights-in-4-bits). ({conditions('export-full-int4-verified')}.)"
    )
    return f"{table(['figure', *titles], rows)}\n{said}"


def full_size() -> str:
    """Time, memory and disk of the full-size model: its exports and its answers."""
    found = [load(f"export-full-{name}") for name in ("fp16", "int4")]
    exports = [each["headline"] for each in found]
    asked = [each["details"].get("answer") for each in found]

    def cells(figure: Callable[[Any], float]) -> list[str]:
        return ["" if each is None else number(figure(each)) for each in asked]

    rows = [
        ["export, s", *[number(each["seconds"]) for each in exports]],
        ["export, GB beside mapped files", *[number(each["peak_anonymous_gb"]) for each in exports]],
        ["bundle, GB", *[number(each["disk_gb"]) for each in exports]],
        ["answering, GB beside mapped files", *cells(lambda each: each["peak_anonymous_gb"])],
        ["answering, GB with mapped pages that may be dropped", *cells(lambda each: each["peak_resident_gb"])],
        ["a token, ms", *cells(lambda each: each["token_ms"]["median"])],
        ["share of the read bandwidth used by a token", *cells(lambda each: each["bandwidth_share"]["median"])],
        ["a picture, ms", *cells(lambda each: each["image_ms"]["median"])],
        ["a picture in PyTorch fp32 / here", *cells(lambda each: each["vision_vs_torch"]["float32"]["median"])],
        ["a picture in PyTorch bf16 / here", *cells(lambda each: each["vision_vs_torch"]["bfloat16"]["median"])],
    ]
    titles = [f"{exports[0]['parameters']:,} random weights", "fp16", "int4"]
    said = prose(
        "Not compared with PyTorch in these runs. The bandwidth is that of sums over a large buffer, a lower limit "
        f"than the one below. ({conditions('export-full-int4')}.)"
    )
    return f"{table(titles, rows)}\n{said}"


def families() -> str:
    """Answers of published sizes of the later families, those that were measured."""
    names = sorted(path.stem for path in RESULTS.glob("latency-qwen*.json"))
    if not names:
        return prose("Not measured on an idle machine yet.")
    found = [load(name) for name in names]
    eager = [each["details"]["torch_vision_ms"] for each in found]
    rows = [
        [title, *[number(each["headline"][key]) for each in found]]
        for title, key in (
            ("first token of a first question, ms", "ttft_ms"),
            ("of it the picture, ms", "vision_ms"),
            ("of it the prompt, ms", "prefill_ms"),
            ("a second question, as a share of the first", "second_question_share"),
            ("tokens a second", "tokens_per_s"),
            ("share of the read bandwidth used by a token", "decode_bandwidth_share"),
            ("the picture in PyTorch, bf16 or fp32, / here", "vision_vs_torch"),
            ("MB beside mapped files", "peak_memory_mb"),
        )
    ]
    rows[3:3] = [
        [f"the picture in PyTorch {kind}, ms", *[number(each[label]["median"]) for each in eager]]
        for kind, label in (("bf16", "bfloat16"), ("fp32", "float32"))
    ]
    said = prose(
        "A picture of 640 x 480 pixels and a question of about 30 tokens, int4, random weights; the second question "
        "has other words. The read bandwidth is the best of sixteen ways of reading as many bytes on as many threads, "
        f"without computing anything. ({conditions(names[0])}.)"
    )
    return f"{table(['figure', *[each['headline']['family'] for each in found]], rows)}\n{said}"


def token_profile() -> str:
    """Table of the time of a token and of a prompt by kind of operator, beside the limit of reading."""
    if not (RESULTS / "token-profile.json").exists():
        return prose("Not measured on an idle machine yet.")
    details = load("token-profile")["details"]
    settings = details.pop("settings")
    kinds = [
        kind for kind, row in next(iter(details.values()))["decode"].items() if isinstance(row, dict) and "part" in row
    ]
    rows = []
    for kind in kinds:
        row = [kind]
        for each in details.values():
            token, prompt = each["decode"][kind], each["prefill"][kind]
            share = f" ({token['share']:.2f})" if "share" in token else ""
            speed = f" ({number(prompt['g_per_s'])} G/s)" if "g_per_s" in prompt else ""
            row += [f"{number(token['median'])}{share}", f"{number(prompt['median'] / 1e3)}{speed}"]
        rows.append(row)
    for title, key in (("altogether, profiled", None), ("a call without the profile", "plain")):
        row = [title]
        for each in details.values():
            for stage, unit in (("decode", 1), ("prefill", 1e3)):
                parts = each[stage]
                row.append(number((parts[key]["median"] if key else sum(parts[k]["median"] for k in kinds)) / unit))
        rows.append(row)
    limits = [cell for each in details.values() for cell in (number(each["decode"]["limit"]), "")]
    rows.append(["limit of reading weights and cache", *limits])
    titles = [
        "operators",
        *(title for name in details for title in (f"{name}: a token, µs", f"a prompt of {settings['prompt']}, ms")),
    ]
    said = prose(
        "In brackets: the limit's part of a token's time, and billions of multiply-adds per second. "
        f"({conditions('token-profile')}.)"
    )
    return f"{table(titles, rows)}\n{said}"


_PEER_CASES = (  # title, model, ours, stage, figure of each run
    ("a token, SmolLM2-135M", "135m", "int4", "decode", "decode_135m"),
    ("prompt, SmolLM2-135M", "135m", "int4", "prefill", "prefill_135m"),
    ("a token, 1.1 billion, blocks of 32", "1b", "int4, 32", "decode", "decode_1b_b32"),
    ("a token, 1.1 billion, blocks of 128", "1b", "int4, 128", "decode", "decode_1b_b128"),
    ("prompt, 1.1 billion, blocks of 32", "1b", "int4, 32", "prefill", "prefill_1b"),
    ("prompt, 1.1 billion, blocks of 128", "1b", "int4, 128", "prefill", ""),
)


def peers() -> str:
    """Speeds beside llama.cpp's, of the same weights in as many bits."""
    result = load("peers")
    details, found = result["details"], result["headline"]
    genai = wide = ""
    if found.get("decode_1b_int8_vs_llamacpp"):
        ratios = [
            f"{found[f'{stage}_{model}_int8_vs_llamacpp']:.2f}"
            for stage in ("decode", "prefill")
            for model in ("135m", "1b")
        ]
        wide = "In 8 bits (Q8_0): {} and {} times as fast for a token, {} and {} for a prompt. ".format(*ratios)
    if theirs := details["135m"].get("int4, ONNX Runtime's operators"):
        token, prompt = (_milliseconds(theirs[stage]) for stage in ("decode", "prefill"))
        genai = (
            f"ONNX Runtime's own operators, which its library GenAI runs, take {token} and {prompt} ms for SmolLM2. "
        )
    peer = result["conditions"]["peer"]["llama-cpp-python"]
    said = prose(
        f"Two threads each, in turns; times of the last of {len(details['runs'])} runs, quartiles in brackets. A token "
        f"of the 1.1 billion takes at least {number(found['decode_1b_bandwidth_share'])} of the read bandwidth. "
        f"{wide}{genai}`make peers` builds llama.cpp (llama-cpp-python {peer}) and repeats this, results/peers.json. "
        f"({conditions('peers')}.)"
    )
    titles = ["work", "here, ms", "llama.cpp, ms", "times as fast", "in each of the runs"]
    return f"{table(titles, _peer_rows(details))}\n{said}"


def _peer_rows(details: dict[str, Any]) -> list[list[str]]:
    runs = details["runs"]

    def every(figure: str) -> str:
        return ", ".join(f"{run[f'{figure}_vs_llamacpp']:.2f}" for run in runs) if figure else ""

    rows = []
    for title, model, ours, stage, figure in _PEER_CASES:
        here, there = details[model][ours], details[model]["llama.cpp"]
        ratio = here[f"{stage}_vs_llamacpp"]
        rows.append([title, _milliseconds(here[stage]), _milliseconds(there[stage]), _spread(ratio), every(figure)])
    seen, faster = details["vision"], details["vision"]["faster"]
    ours, theirs = (_milliseconds(seen[name]["vision"]) for name in ("ours, int8", faster))
    return [*rows, ["a picture, tower of Qwen2.5-VL", ours, theirs, _spread(seen["ratio"]), every("vision")]]


def _milliseconds(times: dict[str, float]) -> str:
    return number(times["median"])


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q25']:.2f} to {ratio['q75']:.2f})"
