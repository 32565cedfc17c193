"""The reference read layer by layer against the published code's figures, and against the network in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.families.pieces import PictureLayout, Span
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ImageFeatures, PictureInputs
from qwenvl_edge_export.families.qwen_vl.reference import prompt_alpha
from qwenvl_edge_export.verification.cases import builtin_box_case, builtin_cases, source_case_builder
from qwenvl_edge_export.verification.streamed_reference import Asked, StreamedReference, add_deepstack, picture_rows
from support.random_checkpoint import write_checkpoint
from support.reference import load_model, pixels_of

ONE_TOKEN = PictureLayout(1, (1, 1, 1))


def test_features_are_the_published_codes(tiny_checkpoint):
    golden = np.load(tiny_checkpoint / "golden_vision.npz")
    reference = StreamedReference(Checkpoint.open(tiny_checkpoint))
    for pixels, expected in zip(golden["pixel_values"], golden["features_every_4th"], strict=True):
        found = reference.encode(PictureInputs({PIXEL_VALUES: pixels[None]}, PictureLayout(256, (1, 16, 16))))
        np.testing.assert_allclose(found.rows[::4], expected, rtol=0, atol=3e-5)
    assert all(parameter.is_meta for parameter in reference.vision.parameters())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint on which dynamic NTK and log-n act."""
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("reference") / "checkpoint", dtype=torch.bfloat16))


@torch.no_grad()
def test_answers_that_share_a_prompt_are_each_computed_alone(source):
    """Several texts at once and several answers after one prompt, against whole passes of the network in memory."""
    model, reference = load_model(source), StreamedReference(source)
    cases = builtin_cases(source_case_builder(source))
    answers = [[5, 6, 7, 8], [9], [400, 5, 400, 5, 400, 5]]
    texts = [Asked(case.prompt, [reference.encode(each) for each in case.pictures], answers) for case in cases]
    done = []
    found = reference.logits(texts, 3, done.append)
    assert done == [1, 2]
    for case, logits in zip(cases, found, strict=True):
        features = model.encode_images(torch.from_numpy(pixels_of(case))) if case.pictures else None
        start = len(case.prompt.ids)
        alpha = prompt_alpha(source.family.config, start)
        assert alpha > 1
        for answer, rows in zip(answers, logits, strict=True):
            ids = torch.from_numpy(np.concatenate([case.prompt.ids, np.array(answer)]))[None]
            prefix, cache = model.decode(model.embed(ids[:, :start], features))
            rest, _ = model.decode(model.embed(ids[:, start:]), cache, alpha=alpha)
            expected = torch.cat([prefix[0, -3:], rest[0]])
            np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


def test_logits_of_a_prompt_alone(source):
    reference = StreamedReference(source)
    (text, *_) = builtin_cases(source_case_builder(source))
    ((alone,),) = reference.logits([Asked(text.prompt, ())], 5)
    ((followed,),) = reference.logits([Asked(text.prompt, (), [[3, 4]])], 5)
    assert alone.shape == (5, 480) and followed.shape == (7, 480)
    np.testing.assert_allclose(alone, followed[:5], rtol=0, atol=1e-5)


def test_a_clips_spans_show_its_rows_in_order():
    spans = [Span(2, 2, 0, ONE_TOKEN), Span(6, 3, 1, ONE_TOKEN), Span(10, 2, 0, ONE_TOKEN, first=2)]
    assert list(picture_rows(spans)) == [
        (slice(2, 4), 0, slice(0, 2)),
        (slice(6, 9), 1, slice(0, 3)),
        (slice(10, 12), 0, slice(2, 4)),
    ]


def test_deepstack_is_added_after_the_first_layers_only(source):
    one = builtin_box_case(source_case_builder(source))
    (span,) = one.prompt.spans
    deepstack = torch.arange(2.0 * span.length * 128).reshape(2, span.length, 128)
    features = [ImageFeatures(torch.zeros(span.length, 128), deepstack)]
    for layer, added in enumerate([*deepstack, torch.zeros(span.length, 128)]):
        rows = torch.ones(len(one.prompt.ids), 128)
        add_deepstack(rows, one.prompt, features, layer)
        torch.testing.assert_close(rows[span.start : span.start + span.length], 1 + added)
        rows[span.start : span.start + span.length] = 1
        assert (rows == 1).all()
