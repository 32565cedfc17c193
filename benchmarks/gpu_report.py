"""The report of benchmarks/gpu.py: headline figures of the parts that were measured, and their plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Details = dict[str, dict[str, Any]]


def headline(details: Details) -> dict[str, Any]:
    """The figures of the last line; None where a part that it is made of is missing.

    Kernel figures are the worst over all sizes. A share of the roofline is the time in which the copy's bandwidth would
    read the decoder's weights, by the time of a token.
    """
    return {name: _or_none(figure, details) for name, figure in FIGURES.items()}


def _kernels(details: Details, part: str, *path: str) -> float:
    return min(_median(row, *path) for row in details["kernels"][part])


def _decode_ms(details: Details, part: str) -> float:
    return _median(details[part], "ms", "decode")


def _fp16_share(details: Details) -> float:
    roofline_ms = details["fp16"]["decoder_bytes"] / _median(details["device"], "copy_gbps") / 1e6
    return roofline_ms / _decode_ms(details, "fp16")


def _vision_share(details: Details) -> float:
    tflops = details["torch"]["vision_flops"] / _median(details["fp16"], "ms", "vision") / 1e9
    return tflops / _median(details["device"], "matmul_tflops")


FIGURES: dict[str, Callable[[Details], Any]] = {
    "device": lambda d: d["device"]["device"],
    "copy_gbps": lambda d: _median(d["device"], "copy_gbps"),
    "matmul_tflops": lambda d: _median(d["device"], "matmul_tflops"),
    "kernel_decode_share": lambda d: _kernels(d, "decode", "share_of_copy", "fp16"),
    "kernel_prefill_vs_sdpa": lambda d: _kernels(d, "prefill", "vs_flash"),
    "kernel_int8_vs_fp16": lambda d: _kernels(d, "decode", "int8_vs_fp16"),
    "token_ms": lambda d: _median(d["token"], "ms"),
    "token_share": lambda d: _median(d["token"], "share_of_copy"),
    "decode_fp16_share": _fp16_share,
    "decode_int4_vs_fp16": lambda d: _decode_ms(d, "fp16") / _decode_ms(d, "int4"),
    "vision_share": _vision_share,
    "decode_vs_torch_compile": lambda d: _median(d["torch"], "compiled", "ms", "decode") / _decode_ms(d, "fp16"),
}


def _median(value: Any, *path: str) -> float:
    for name in (*path, "median"):
        value = value[name]
    return float(value)


def _or_none(figure: Callable[[Details], Any], details: Details) -> Any:
    try:
        return figure(details)
    except KeyError:  # a part that was skipped, failed or not asked for
        return None


def draw(path: Path, details: Details) -> None:
    """Kernels beside a copy and beside flash attention; tokens per second and picture time of each subject."""
    from matplotlib import pyplot as plt

    figure, ((share, prefill), (tokens, picture)) = plt.subplots(2, 2, figsize=(9, 7))
    kernels = details.get("kernels", {})
    for name in ("fp16", "int8"):
        rows = kernels.get("decode", [])
        values = [_median(row, "share_of_copy", name) for row in rows]
        share.plot([row["context"] for row in rows], values, marker="o", label=name)
    share.set(title="decode attention", xlabel="tokens in the cache", ylabel="share of a copy's bandwidth")
    rows = kernels.get("prefill", [])
    prefill.plot([row["tokens"] for row in rows], [_median(row, "vs_flash") for row in rows], marker="o")
    prefill.axhline(1.0, color="gray", linewidth=0.8)
    prefill.set(title="prefill attention", xlabel="tokens of the prompt", ylabel="speed, flash attention = 1")
    torch = details.get("torch", {})
    subjects = {"PyTorch eager": torch.get("eager", {}), "PyTorch compiled": torch.get("compiled", {})}
    subjects |= {part: details.get(part, {}) for part in ("fp16", "int4")}
    measured = {name: found for name, found in subjects.items() if "ms" in found}
    tokens.bar(list(measured), [1e3 / _median(found, "ms", "decode") for found in measured.values()])
    if (bound := _or_none(_fp16_share, details)) is not None:
        tokens.axhline(1e3 / _decode_ms(details, "fp16") / bound, color="gray", linewidth=0.8, label="fp16 roofline")
    tokens.set(title="tokens a second")
    picture.bar(list(measured), [_median(found, "ms", "vision") for found in measured.values()])
    picture.set(title="a picture, ms")
    for axes in (share, tokens):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    for axes in (tokens, picture):
        axes.tick_params(axis="x", labelrotation=20)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
