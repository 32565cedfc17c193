"""What float16 cannot hold on the picture side is found before a GPU computes it, in pictures of several sizes."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the reference needs transformers")

from qwenvl_edge.errors import BundleError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.dynamic_vl.tensors import canonical
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.float_range import MOST, STAGE, RangeProbe, range_pictures
from qwenvl_edge_export.verification.streamed_reference import StreamedReference
from support.golden_graphs import FAMILIES, golden

FP16 = ExportPrecision.choose("fp16", target="gpu")


@pytest.fixture
def scaled(tmp_path):
    """Makes a copy of a golden checkpoint with some tensors multiplied, by the ends of their names."""

    def copy(family, factors):
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(golden(family), folder, ignore=shutil.ignore_patterns("*.npz", "images"))
        tensors = load_file(folder / "model.safetensors")
        for name in tensors:
            for end, factor in factors.items():
                if canonical(name).endswith(end):
                    tensors[name] = tensors[name] * factor
        save_file(tensors, folder / "model.safetensors")
        return folder

    return copy


def row_of(folder, precision=FP16):
    checkpoint = Checkpoint.open(folder)
    reference = StreamedReference(checkpoint)
    probe = RangeProbe(reference.vision, precision.describe("rtn"))
    for size, picture in range_pictures(checkpoint.family.runtime_family()):
        probe.watch(size)
        reference.encode(picture)
    probe.close()
    return probe.row(), probe.sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_weights_are_far_from_the_limit(family):
    row, sizes = row_of(golden(family))
    assert row.passed and 0 < row.max_abs < row.limit / 100
    assert len(set(sizes)) >= 5  # a narrow and a wide one among them
    shapes = [tuple(map(int, size.split("x"))) for size in sizes]
    assert (
        shapes[0][0] == shapes[0][1] and shapes[-1][0] * shapes[-1][1] == 64 * (32 if family == "qwen3_vl" else 28) ** 2
    )
    assert min(w / h for w, h in shapes) < 0.5 and max(w / h for w, h in shapes) > 2


@pytest.mark.parametrize(
    ("family", "up", "down"),
    [
        ("qwen2_vl", "mlp.fc1.weight", "mlp.fc2.weight"),
        ("qwen2_5_vl", "mlp.up_proj.weight", "mlp.down_proj.weight"),
        ("qwen3_vl", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"),
    ],
)
def test_products_beyond_the_range(scaled, family, up, down):
    """The bundle divides by 64 what it multiplies in float16, so some is spared, but not everything."""
    near = {f"visual.blocks.1.{up}": 3e5, f"visual.blocks.1.{down}": 1e-5}
    row, _ = row_of(scaled(family, near))
    assert row.passed and row.max_abs > MOST and "blocks.1.mlp" in row.case
    beyond = {f"visual.blocks.1.{up}": 3e8, f"visual.blocks.1.{down}": 1e-8}
    row, _ = row_of(scaled(family, beyond))
    assert not row.passed and "blocks.1.mlp." in row.broken and "for a picture of" in row.broken


def test_scores_of_attention_beyond_the_range(scaled):
    row, _ = row_of(scaled("qwen2_vl", {"visual.blocks.0.attn.qkv.weight": 2e3}))
    assert not row.passed and "a score of model.visual.blocks.0.attn.qkv" in row.broken


def test_products_of_integers_leave_as_float16(scaled):
    """W8A8 has no headroom: what float16 just bears is too much for it."""
    near = {"visual.blocks.1.mlp.linear_fc1.weight": 3e5, "visual.blocks.1.mlp.linear_fc2.weight": 1e-5}
    row, _ = row_of(scaled("qwen3_vl", near), ExportPrecision.choose("fp16", vision="int8", target="gpu"))
    assert not row.passed and "the product of" in row.broken and "linear_fc1" in row.broken


def test_an_export_says_what_overflows(scaled, tmp_path):
    factors = {"visual.blocks.0.norm2.weight": 1e4, "visual.blocks.0.mlp.linear_fc1.weight": 1e4}
    folder = scaled("qwen3_vl", factors)
    with pytest.raises(BundleError, match=rf"{STAGE} .*reaches .* for a picture of .*--vision-precision bf16"):
        export(folder, tmp_path / "bundle", precision=FP16)
    assert not (tmp_path / "bundle").exists()
