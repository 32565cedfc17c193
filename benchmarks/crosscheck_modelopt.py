"""Our calibration next to nvidia-modelopt's, on the same samples: which way of choosing 4-bit integers loses least.

    pip install -e '.[modelopt]'          # in an environment of its own
    python benchmarks/crosscheck_modelopt.py [--json FILE]

Everything runs in PyTorch on the reference model: models/nano with samples of its own kind, and tests/data/tiny, whose
weights are untrained, with the built-in ones. All linear layers of the decoder become 4-bit blocks, lm_head 8-bit
blocks; the picture side stays fp32. Compared are the outputs of each layer, given what reaches it in the float model,
and the distributions of whole answers (teacher-forced): on the prompts of verification, and on nano also on questions
that calibration did not see. For W8A8 the sizes, factors and scales of SmoothQuant are compared at equal strengths.
"""

from __future__ import annotations

import copy
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the nano model's samples are made in tools/nano

import numpy as np
import torch
from common import arguments, conditions, finish
from torch import Tensor, nn

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork, prompt_alpha
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import smoothquant as smooth
from qwenvl_edge_export.quantization.calibration import Calibration
from qwenvl_edge_export.quantization.gptq import Rounding
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.calls import PROMPT_ROWS
from qwenvl_edge_export.verification.cases import Case, builtin_cases, source_case_builder
from qwenvl_edge_export.verification.limits import divergence
from qwenvl_edge_export.weight_formats import Blocks, StaticRows
from tools.nano.calibration import write

ROOT = Path(__file__).parent.parent
SAMPLES = 64
STRENGTHS = (0.5, 0.8, 1.0)
LAYER = "transformer.h.0.mlp.c_proj"
KINDS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")


@dataclass(frozen=True)
class Sample:
    """Embeddings [T, H] of a prompt and its answer; logits are compared from position `first` on."""

    embeds: Tensor
    alpha: float
    first: int


class Subject:
    """A checkpoint with the samples it is calibrated on, and those that the results are compared on."""

    def __init__(self, path: Path, folder: Path):
        self.checkpoint = Checkpoint.open(path)
        self.model = QwenVLNetwork.load(self.checkpoint.family.config, self.checkpoint.tensor)
        builder, layers = source_case_builder(self.checkpoint), self.checkpoint.family.config.num_layers
        self.names = [f"transformer.h.{i}.{kind}" for i in range(layers) for kind in KINDS]
        self.compared = {"verify": [self._sample(case, PROMPT_ROWS) for case in builtin_cases(builder)]}
        self.cases = read_samples(None, builder)
        if path.name == "nano":
            asked = read_samples(write(folder / "samples", 2 * SAMPLES), builder)
            self.cases = asked[:SAMPLES]
            self.compared["unseen"] = [self._sample(case, 1) for case in asked[SAMPLES:]]
        self.samples = [self._sample(case, 1) for case in self.cases]
        self.wanted = {name: [logits(self.model, each) for each in samples] for name, samples in self.compared.items()}

    def _sample(self, case: Case, rows: int) -> Sample:
        ids = torch.from_numpy(np.concatenate([case.prompt.ids, case.answer]))[None]
        pixels = [torch.from_numpy(picture.arrays[PIXEL_VALUES]) for picture in case.pictures]
        features = self.model.encode_images(torch.cat(pixels)) if pixels else None
        alpha = prompt_alpha(self.checkpoint.family.config, len(case.prompt.ids))
        return Sample(self.model.embed(ids, features)[0], alpha, max(len(case.prompt.ids) - rows, 0))

    def run(self, model: nn.Module) -> None:
        """All calibration samples through the decoder: modelopt's forward_loop."""
        for sample in self.samples:
            model.decode(sample.embeds[None], alpha=sample.alpha)

    def copy(self) -> QwenVLNetwork:
        """The float model with the head in 8-bit blocks."""
        model = copy.deepcopy(self.model)
        model.lm_head.weight.copy_(rounded(model.lm_head.weight, Blocks(8, 32)))
        return model


def logits(model: nn.Module, sample: Sample) -> Any:
    """[rows, V], the last position left out, which predicts nothing."""
    return model.decode(sample.embeds[None], alpha=sample.alpha)[0][0, sample.first : -1].numpy()


def rounded(weight: Tensor, blocks: Blocks) -> Tensor:
    """Rounded to nearest."""
    scales = blocks.scales(weight)
    return blocks.floats(blocks.integers(weight, scales), scales)


def inputs_of(subject: Subject, model: nn.Module, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Inputs of the layers of `names`: rows [T, in]."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def take(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, arguments: seen[name].append(arguments[0].flatten(0, -2))

    hooks = [model.get_submodule(name).register_forward_pre_hook(take(name)) for name in names]
    for sample in samples:
        model.decode(sample.embeds[None], alpha=sample.alpha)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


# --- The ways to 4 bits -----------------------------------------------------------------------------------------------


def by_rounding(subject: Subject, block: int) -> QwenVLNetwork:
    """Ours, rounded to nearest."""
    model = subject.copy()
    for name in subject.names:
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(rounded(weight, Blocks(4, block)))
    return model


def by_calibration(subject: Subject, block: int) -> QwenVLNetwork:
    """Ours, as `qwenvl export --calibrate` does it."""
    precision = ExportPrecision.choose("int4", vision="fp32", block=block)
    model = subject.copy()
    with tempfile.TemporaryDirectory() as folder:
        run = Calibration(subject.checkpoint, precision, subject.cases, Path(folder) / "work", lambda *_: None)
        run.run()
        for name in subject.names:
            model.get_parameter(f"{name}.weight").copy_(run.kept.integers(f"{name}.weight").floats())
    return model


def by_modelopt(algorithm: str | dict[str, Any]) -> Callable[[Subject, int], nn.Module]:
    """One of modelopt's algorithms."""
    import modelopt.torch.quantization as mtq

    def make(subject: Subject, block: int) -> nn.Module:
        integers = {"num_bits": 4, "block_sizes": {-1: block, "type": "static"}}
        chosen = [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "transformer.h.*weight_quantizer", "cfg": integers, "enable": True},
        ]
        return mtq.quantize(subject.copy(), {"quant_cfg": chosen, "algorithm": algorithm}, subject.run)

    return make


def by_both(subject: Subject, block: int) -> QwenVLNetwork:
    """AWQ's factors from modelopt, then our GPTQ on the scaled weights, layer after layer."""
    scaled = by_modelopt("awq_lite")(subject, block)
    model, blocks = subject.copy(), Blocks(4, block)
    for name in subject.names:
        factors = 1 / scaled.get_submodule(name).input_quantizer.pre_quant_scale.flatten()
        rows = inputs_of(subject, model, [name], subject.samples)[name] / factors
        weight = model.get_parameter(f"{name}.weight")
        rounding = Rounding(rows.T @ rows)
        weight.copy_(blocks.floats(*rounding.quantize(weight * factors, blocks, torch.float32)) / factors)
    return model


def ways() -> dict[str, Callable[[Subject, int], nn.Module]]:
    """Every way by its name."""
    return {
        "rounding": by_rounding,
        "rounding, modelopt": by_modelopt("max"),
        "AWQ, modelopt": by_modelopt("awq_lite"),
        "GPTQ, modelopt": by_modelopt({"method": "gptq"}),
        "GPTQ": by_calibration,
        "GPTQ after AWQ": by_both,
    }


def figures(subject: Subject, model: nn.Module) -> dict[str, Any]:
    """Losses of `model` against the float model."""
    samples = subject.compared["verify"]
    errors = {}
    for name, rows in inputs_of(subject, subject.model, subject.names, samples).items():
        wanted = subject.model.get_submodule(name)(rows)
        errors[name] = float((model.get_submodule(name)(rows) - wanted).norm() / wanted.norm())
    found: dict[str, Any] = {"layer": errors[LAYER], "layers_mean": float(np.mean(list(errors.values())))}
    for name, samples in subject.compared.items():
        ours = [logits(model, sample) for sample in samples]
        pairs = list(zip(ours, subject.wanted[name], strict=True))
        same = np.concatenate([mine.argmax(-1) == wanted.argmax(-1) for mine, wanted in pairs])
        kl = [divergence(*pair) for pair in pairs]
        found[name] = {"kl_mean": float(np.mean(kl)), "kl_worst": max(kl), "top1": float(same.mean())}
    return found


# --- SmoothQuant ------------------------------------------------------------------------------------------------------


def smoothquant(subject: Subject) -> dict[str, float]:
    """The largest relative difference between modelopt's SmoothQuant and ours, over all layers and STRENGTHS."""
    import modelopt.torch.quantization as mtq

    eight = {"num_bits": 8, "axis": None}
    chosen = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "transformer.h.*weight_quantizer", "cfg": eight | {"axis": 0}, "enable": True},
        {"quantizer_name": "transformer.h.*input_quantizer", "cfg": eight, "enable": True},
    ]
    seen = inputs_of(subject, subject.model, subject.names, subject.samples)
    worst = dict.fromkeys(("input_sizes", "factors", "input_scale", "weight_scales"), 0.0)
    for strength in STRENGTHS:
        algorithm = {"method": "smoothquant", "alpha": strength}
        theirs = mtq.quantize(copy.deepcopy(subject.model), {"quant_cfg": chosen, "algorithm": algorithm}, subject.run)
        for name in subject.names:
            layer, weight = theirs.get_submodule(name), subject.model.get_parameter(f"{name}.weight")
            sample = smooth.InputSample(1)
            sample.add(seen[name])
            given = smooth.input_scales(smooth.column_sizes([weight]), sample, strength)
            pairs = {
                "input_sizes": (layer.input_quantizer._amax_for_smoothing, sample.largest),
                "factors": (1 / layer.input_quantizer.pre_quant_scale, given.factors),
                "input_scale": (layer.input_quantizer.amax / StaticRows.steps, torch.tensor(given.scale)),
                "weight_scales": (
                    layer.weight_quantizer.amax / StaticRows.steps,
                    StaticRows().scales(weight * given.factors),
                ),
            }
            for what, (their, our) in pairs.items():
                difference = float(((their.flatten() - our.flatten()).abs() / our.flatten().abs()).max())
                worst[what] = max(worst[what], difference)
    return worst


@torch.no_grad()
def main() -> None:
    """Compare, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=(32,))
    options = parser.parse_args()
    before = conditions()
    before["versions"]["nvidia-modelopt"] = importlib.metadata.version("nvidia-modelopt")
    details: dict[str, Any] = {"samples": SAMPLES, "layer": LAYER, "head": "lm_head.weight", "smoothquant": {}}
    with tempfile.TemporaryDirectory() as folder:
        for path in (ROOT / "models" / "nano", ROOT / "tests" / "data" / "tiny"):
            subject = Subject(path, Path(folder))
            details["smoothquant"][path.name] = smoothquant(subject)
            for block in options.blocks:
                for way, make in ways().items():
                    found = figures(subject, make(subject, block))
                    details.setdefault(path.name, {}).setdefault(str(block), {})[way] = found
                    told = "  ".join(
                        f"{name} KL {each['kl_mean']:.4f} worst {each['kl_worst']:.4f} top-1 {each['top1']:.3f}"
                        for name, each in found.items()
                        if isinstance(each, dict)
                    )
                    print(f"{path.name} {block:>3} {way:<28} layers {found['layers_mean']:.2%}  {told}", flush=True)
    nano = details["nano"]["32"]
    headline = {way: found["unseen"]["kl_mean"] for way, found in nano.items()}
    smoothed = max(max(each.values()) for each in details["smoothquant"].values())
    finish(options, before, {"nano_kl_unseen": headline, "smoothquant_largest_difference": smoothed}, details)


if __name__ == "__main__":
    main()
