"""A checkpoint's own quantization, as its configuration names it, and the part that can be imported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_optional
from qwenvl_edge_export.checkpoint.listing import shortened

GPTQ, AWQ = "GPTQ", "AWQ"
OWN_FILES = ("quantize_config.json", "quantization_config.json", "quant_config.json", "hf_quant_config.json")
# quant_method in lower case -> as people call it; what is neither GPTQ nor AWQ is refused by name.
_METHODS = {
    "gptq": GPTQ,
    "awq": AWQ,
    "bitsandbytes": "bitsandbytes",
    "exl2": "EXL2 (ExLlamaV2)",
    "exl3": "EXL3 (ExLlamaV3)",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "compressed-tensors": "compressed-tensors (llm-compressor)",
    "modelopt": "NVIDIA Model Optimizer",
    "aqlm": "AQLM",
    "quip": "QuIP#",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "mxfp4": "MXFP4",
    "marlin": "Marlin",
    "bitnet": "BitNet",
}
# The last parts of tensors' names that only one method writes.
_TRACES = (
    (("absmax", "quant_map", "nested_absmax", "SCB", "bitsandbytes__nf4", "bitsandbytes__fp4"), "bitsandbytes"),
    (("q_weight", "q_scale", "q_scale_max", "q_perm", "q_invperm"), "exl2"),
    (("trellis", "suh", "svh"), "exl3"),
    (("weight_packed", "weight_shape", "weight_zero_point"), "compressed-tensors"),
    (("weight_scale_inv", "weight_scale", "input_scale"), "fp8"),
    (("W_q",), "hqq"),
    (("codebooks",), "aqlm"),
    (("Qidxs",), "quip"),
)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Quantization:
    """A checkpoint's record of its quantization; what it leaves open is None.

    method: GPTQ, AWQ, or the name of another one. bits: of a weight. group: inputs that share a scale, -1 for all.
    symmetric: zero points are the middle. plain_zeros: GPTQ's zero points are stored as they are (gptq_v2), not less
    one. reordered: inputs may be sorted into groups (desc_act). refusal: a sentence, if it cannot be imported.
    """

    method: str
    bits: int | None = None
    group: int | None = None
    symmetric: bool | None = None
    plain_zeros: bool = False
    reordered: bool | None = None
    refusal: str = ""


UNKNOWN = Quantization("quantized")


def read_quantization(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """The record in config.json, or in a file of its own where the program wrote one; None if there is none.

    Raises:
        CheckpointError: the record is malformed.
    """
    for place, raw in _records(folder, config):
        if raw is None:
            continue
        if not isinstance(raw, Mapping):
            raise CheckpointError(f'{place} in the checkpoint "{folder}" is not an object; download it again.')
        return _read(folder, raw)
    return None


def trace_quantization(folder: Path, described: Mapping[str, torch.dtype]) -> Quantization | None:
    """A method that cannot be imported, recognised by its tensors' names and types, where no record tells."""
    last = {name.rpartition(".")[2] for name in described}
    for traces, method in _TRACES:
        if last & set(traces):
            return _refused(folder, _METHODS[method], None)
    if any(dtype in _FLOAT8 for dtype in described.values()):
        return _refused(folder, _METHODS["fp8"], 8)
    return None


def _records(folder: Path, config: Mapping[str, Any]) -> Collection[tuple[str, Any]]:
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, Mapping) else None
    own = ((name, read_optional(folder / name) or None) for name in OWN_FILES)
    return [
        ("config.json's quantization_config", config.get("quantization_config")),
        ("config.json's text_config.quantization_config", nested),
        ("config.json's compression_config", config.get("compression_config")),
        *own,
    ]


def _read(folder: Path, raw: Mapping[str, Any]) -> Quantization:
    method = _method(raw)
    bits = _whole(raw, "bits", "w_bit")
    if method not in (GPTQ, AWQ):
        return _refused(folder, method, bits)
    layout = str(raw.get("version") or raw.get("backend") or "gemm").lower()
    if method == AWQ and "gemv" in layout:
        return _refused(folder, "AWQ in its GEMV layout", bits)
    stored = str(raw.get("checkpoint_format") or "").lower()
    if stored in ("marlin", "bitblas", "exl2", "exl3", "ipex"):
        return _refused(folder, f"{method} in the layout of {stored}", bits)
    flags = {key: raw[key] for key in ("sym", "desc_act", "zero_point") if isinstance(raw.get(key), bool)}
    symmetric = flags.get("sym", not flags["zero_point"] if "zero_point" in flags else None)
    return Quantization(
        method,
        bits,
        _whole(raw, "group_size", "q_group_size"),
        symmetric,
        plain_zeros=stored == "gptq_v2",
        reordered=flags.get("desc_act"),
    )


def _method(raw: Mapping[str, Any]) -> str:
    named = raw.get("quant_method") or raw.get("quant_algo") or raw.get("quant_type")
    producer = raw.get("producer")
    if isinstance(producer, Mapping) and producer.get("name") == "modelopt":
        return _METHODS["modelopt"]
    if not isinstance(named, str):
        if raw.get("load_in_4bit") or raw.get("load_in_8bit"):
            return _METHODS["bitsandbytes"]
        return AWQ if "w_bit" in raw or "zero_point" in raw else GPTQ  # AutoAWQ's and AutoGPTQ's own files
    lower = named.lower()
    if lower in ("auto-round", "intel/auto-round", "auto_round", "inc"):
        packing = str(raw.get("packing_format") or raw.get("backend") or "auto_round:auto_gptq").lower()
        if any(kind in packing for kind in ("fp", "llm_compressor", "gguf")):
            return f"AutoRound ({shortened(packing)})"
        return AWQ if "awq" in packing else GPTQ
    return _METHODS.get(lower, shortened(named))


def _whole(raw: Mapping[str, Any], *keys: str) -> int | None:
    value = next((raw[key] for key in keys if type(raw.get(key)) is int), None)
    return value if value is None or abs(value) < 1 << 24 else None


def _refused(folder: Path, method: str, bits: int | None) -> Quantization:
    width = f" to {bits} bits" if bits else ""
    return Quantization(
        method,
        bits,
        refusal=f'the checkpoint "{folder}" is quantized{width} by {method}, which cannot be imported (GPTQ and AWQ '
        "can); export the float checkpoint that it was made from.",
    )
