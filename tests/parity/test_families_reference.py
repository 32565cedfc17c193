"""The reference of verification, transformers' modules layer by layer, against recorded tensors of whole models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.families.pieces import PictureLayout, Span
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import PictureInputs
from qwenvl_edge_export.families.dynamic_vl.reference import positions_of
from support.golden_graphs import FAMILIES, PICTURES, golden

pytest.importorskip("transformers", reason="the reference needs transformers")

MERGE = 2
FRAME_SECONDS = {"video2": 1.0, "video5": 2 / 3, "mixed": 1.0}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request) -> Checkpoint:
    return Checkpoint.open(golden(request.param))


def layout_of(grid, seconds=0.0):
    frames, rows, columns = (int(n) for n in grid)
    grid = frames, rows // MERGE, columns // MERGE
    return PictureLayout(grid[0] * grid[1] * grid[2], grid, seconds)


def spans_of(checkpoint, text, prompt):
    """Spans of a golden prompt: runs of placeholders; in Qwen3-VL every frame of a clip is one."""
    kinds, spans = text[f"{prompt}.mm_token_type_ids"], []
    for kind, name in ((1, "image_grid_thw"), (2, "video_grid_thw")):
        places = np.flatnonzero(kinds == kind)
        for grid in text.get(f"{prompt}.{name}", ()):
            layout = layout_of(grid, FRAME_SECONDS[prompt] if kind == 2 else 0.0)
            parts = layout.grid[0] if checkpoint.family.name == "qwen3_vl" else 1
            for part in range(parts):
                count = layout.tokens // parts
                spans.append(Span(int(places[0]), count, len(spans), layout, part * count))
                places = places[count:]
    return sorted(spans, key=lambda span: span.start)


@torch.no_grad()
def test_the_tower(checkpoint):
    arrays = dict(np.load(golden(checkpoint.family.name) / "golden_vision.npz"))
    tower = checkpoint.family.reference_vision(checkpoint.tensor)
    for picture in PICTURES:
        grid = arrays[f"{picture}.grid_thw"]
        pixels = arrays[f"{picture}.pixel_values"][None]
        found = tower(PictureInputs({PIXEL_VALUES: pixels}, layout_of(grid)))
        np.testing.assert_allclose(found.rows, arrays[f"{picture}.features"], rtol=0, atol=1e-5)
        if checkpoint.family.name == "qwen3_vl":
            np.testing.assert_allclose(found.deepstack, arrays[f"{picture}.deepstack"], rtol=0, atol=1e-5)
    assert all(parameter.is_meta for parameter in tower.parameters())  # nothing was kept


@pytest.mark.parametrize("prompt", ["one", "two", "text", "video2", "video5", "mixed"])
def test_positions(checkpoint, prompt):
    text = dict(np.load(golden(checkpoint.family.name) / "golden_text.npz"))
    ids = text[f"{prompt}.input_ids"]
    asked = SimpleNamespace(ids=ids, spans=spans_of(checkpoint, text, prompt))
    seconds = checkpoint.family.config.vision.tokens_per_second
    found = positions_of(asked, torch.arange(len(ids) + 3), seconds)
    np.testing.assert_array_equal(found[:, : len(ids)], text[f"{prompt}.position_ids"])
    after = np.arange(len(ids), len(ids) + 3) + text[f"{prompt}.rope_delta"]
    np.testing.assert_array_equal(found[:, len(ids) :], np.tile(after, (3, 1)))


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["one", "text", "video2"])
def test_the_layers(checkpoint, prompt):
    family = checkpoint.family

    def read(name):
        return checkpoint.tensor(name).float()

    text = dict(np.load(golden(family.name) / "golden_text.npz"))
    asked = SimpleNamespace(ids=text[f"{prompt}.input_ids"], spans=spans_of(checkpoint, text, prompt))
    rows = torch.from_numpy(text[f"{prompt}.inputs_embeds"])
    layers = len(family.decoder.layers)
    assert {name for name, _ in family.reference_layer(0, read).named_modules()} >= {
        group.module for group in family.decoder.layers[0].groups
    }
    if prompt == "one":
        for i in range(layers if not family.decoder.deepstack_layers else 1):
            rows = family.reference_layer(i, read)(rows, asked)
            np.testing.assert_allclose(rows, text[f"one.layer{i}"], rtol=0, atol=2e-4)
        return
    if family.decoder.deepstack_layers and prompt != "text":
        return  # its rows are added between the layers, which is compared as a whole elsewhere
    answer = rows[-3:]  # two answers that begin after the prompt do not see each other
    both = torch.cat([rows, answer, answer])
    for i in range(layers):
        layer = family.reference_layer(i, read)
        rows, both = layer(rows, asked), layer(both, asked, (3, 3))
    normed = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + family.decoder.norm_eps)
    normed = normed * family.decoder.final_norm.read(read)
    logits = normed @ family.decoder.head.weight.read(read).T
    np.testing.assert_allclose(logits, text[f"{prompt}.logits"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(both[: len(rows)], rows, rtol=0, atol=1e-5)
    np.testing.assert_allclose(both[-3:], both[-6:-3], rtol=0, atol=1e-5)
