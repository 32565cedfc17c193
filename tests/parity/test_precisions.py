"""Bundles of every precision: they compute what their stored numbers say, and lose what their limits allow."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch

from qwenvl_edge import QwenVLEngine, _core
from qwenvl_edge.backends.memory_estimate import estimate_memory
from qwenvl_edge.backends.onnxruntime import session as session_module
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.products import Comparison
from qwenvl_edge.bundle.contract import NATIVE, ONNXRUNTIME
from qwenvl_edge.cli import main
from qwenvl_edge.errors import BackendError, BundleError, CheckpointError
from qwenvl_edge.machine import cpu as processor
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.verify import verify
from support.decoding import rotary
from support.dialects import OF_BLOCKS, run_by_default
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint
from support.reference import load_model

VISUAL = "transformer.visual."


@pytest.fixture(scope="module")
def exports(tiny_exports):
    """The tiny checkpoint in several precisions: bundles that were compared with it, and their ExportPrecision."""

    def export(precision, **options):
        target = {"target": "gpu"} if precision == "bf16" else {}  # no CPU computes it
        chosen = ExportPrecision.choose(precision, **target | options)
        return tiny_exports(chosen, check=True), chosen

    return export


def rounded_model(path, chosen):
    """The reference with the decoder's linear weights replaced by what integers and scales stand for."""
    model = load_model(Checkpoint.open(path))
    for name, parameter in model.named_parameters():
        blocks = None
        if name.endswith("weight") and parameter.ndim == 2 and VISUAL not in name and "wte" not in name:
            blocks = chosen.decoder.format(name, head=name == "lm_head.weight")
        if blocks is not None:
            scales = blocks.scales(parameter)
            parameter.data = blocks.floats(blocks.integers(parameter, scales), scales)
    return model


def decode(bundle, dialect, embeds):
    backend = OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)
    length = embeds.shape[1]
    cache = backend.new_cache(1, length)
    every = np.arange(length)[None]
    start = np.zeros(1, np.int64)
    return backend.decode(cache, embeds, rotary(backend, start, length, prompt=length), start, every)


@pytest.mark.parametrize("dialect", OF_BLOCKS)
@pytest.mark.parametrize("head", [None, "int4"])
@pytest.mark.parametrize(("precision", "block"), [("int4", 32), ("int4", 128), ("int8", 32), ("int8", 64)])
def test_the_graph_computes_with_the_rounded_weights(exports, tiny_checkpoint, precision, block, head, dialect):
    if precision == "int8" and head:
        pytest.skip("a head of 4 bits under layers of 8 is built like the other way round")
    bundle, chosen = exports(precision, block=block, head=head)
    embeds = bundle.embedding[np.random.default_rng(0).integers(0, 2000, (1, 40))]
    with torch.no_grad():
        expected = rounded_model(tiny_checkpoint, chosen).decode(torch.from_numpy(embeds))[0].numpy()
    # MatMulNBits also rounds the activations to 8 bits.
    tolerance = 1e-4 if dialect == "standard" else 5e-2
    assert np.abs(decode(bundle, dialect, embeds) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("precision", "options", "share"),
    [("fp16", {}, 0.5), ("bf16", {}, 0.5), ("int8", {}, 0.29), ("int4", {"head": "int4"}, 0.17)],
)
def test_sizes(exports, tiny_bundle, precision, options, share):
    bundle = exports(precision, **options)[0]
    found, floats = (each.manifest.files["decoder.data"].size for each in (bundle, tiny_bundle))
    assert found < share * floats + 100_000  # norms and biases stay floats


@pytest.mark.parametrize(
    ("precision", "target"),
    [*itertools.product(("fp16", "int4"), ("cpu", "gpu")), ("int8", "cpu"), ("bf16", "gpu")],
)
def test_graphs_are_valid_and_share_their_weights(exports, precision, target):
    bundle = exports(precision, target=target)[0]
    places = {}
    decoders = bundle.manifest.graphs.decoder
    assert (NATIVE in decoders) == (target == "cpu" and precision in ("int8", "int4"))
    for name in ("vision.onnx", *decoders.values()):
        onnx.checker.check_model(str(bundle.file(name)), full_check=name in ("vision.onnx", "decoder.onnx"))
        graph = onnx.load(bundle.file(name), load_external_data=False).graph
        places[name] = {
            tensor.name: [each.value for each in tensor.external_data if each.key != "checksum"]
            for tensor in graph.initializer
            if tensor.external_data
        }
    ours = places["decoder.ort.onnx"]
    assert places.get("decoder.native.onnx", ours) == ours
    assert ours == {name: place for name, place in places["decoder.onnx"].items() if not name.startswith("zeros")}


@pytest.mark.parametrize(("precision", "options"), [("fp16", {}), ("int8", {}), ("int8", {"vision": "fp32"})])
def test_losses_are_within_the_limits(exports, precision, options):
    bundle, chosen = exports(precision, **options)
    parity = bundle.manifest.parity
    assert parity["passed"]
    ran = {row["graph"] for row in parity["stages"]}
    assert ran == {"vision", *run_by_default(bundle.manifest.graphs.decoder)}
    assert all(row["tokens"] == 24 and 0 <= row["agreed"] <= 24 for row in parity["stages"] if "kl" in row)
    assert bundle.manifest.precision == chosen.describe("rtn")


def test_a_loss_beyond_the_limits_is_an_error_unless_allowed(exports, tiny_checkpoint, tmp_path):
    """Four bits are too few for weights that no training has shaped."""
    bundle, chosen = exports("int4")
    assert not bundle.manifest.parity["passed"]
    assert not verify(bundle, tiny_checkpoint).passed
    with pytest.raises(BundleError, match=r"\(--calibrate .*, --allow-loss .*\): logits .* KL .* \(limit .*\), top-1 "):
        export(tiny_checkpoint, tmp_path / "bundle", precision=chosen)
    assert list(tmp_path.iterdir()) == []


def test_the_programs_say_so_and_fail(exports, tiny_checkpoint, tmp_path, capsys):
    kept = exports("int4")[0]
    assert main(["verify", str(kept.path), "--checkpoint", str(tiny_checkpoint)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "failed"
    assert main(["export", str(tiny_checkpoint), str(tmp_path / "bundle"), "--precision", "int4"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "do not compute what the checkpoint computes" in line] == lines[-1:]
    assert list(tmp_path.iterdir()) == []


def test_kept_layers_are_floats(exports, tiny_checkpoint):
    bundle = exports("int4", keep=("*.c_proj.weight", "*.h.0.*"))[0]
    graph = onnx.load(bundle.file("decoder.ort.onnx"), load_external_data=False).graph
    integers = {tensor.name for tensor in graph.initializer if tensor.name.endswith(".int4")}
    assert integers == {f"transformer.h.1.{name}.weight.int4" for name in ("attn.c_attn", "mlp.w1", "mlp.w2")}


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_bundles_answer(exports, precision):
    engine = QwenVLEngine(exports(precision)[0], threads=1, max_context=512)
    picture = np.zeros((30, 40, 3), np.uint8)
    reply = engine.chat("What is this?", images=[picture], do_sample=False, max_new_tokens=3)
    assert reply.stats.new_tokens == 3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_caches(exports, precision):
    bundle = exports(precision)[0]
    if precision == "bf16":
        assert [note.split(":")[0] for note in bundle.manifest.parity["skipped"]] == ["bfloat16 arithmetic"]
        with pytest.raises(BackendError, match="computes bfloat16 on GPUs only"):
            OnnxRuntimeBackend(bundle)
    else:
        cache = OnnxRuntimeBackend(bundle, threads=1).new_cache(1, 8)
        assert {array.dtype for array in cache.buffers.arrays.values()} == {np.dtype(np.float16)}


def test_embedding_rows_are_widened(exports, tiny_bundle):
    expected = tiny_bundle.embedding[[1, 2000]]
    for precision, bits in (("fp16", 11), ("bf16", 8), ("int4", 11)):
        table = exports(precision)[0].embedding
        np.testing.assert_allclose(table[[1, 2000]], expected, rtol=2.0**-bits, atol=1e-7)
        assert table[[1]].dtype == np.float32


def test_a_block_size_that_does_not_divide_leaves_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "checkpoint")
    fitted = export(source, tmp_path / "fitted", precision=ExportPrecision.choose("int4"), check=False)
    assert fitted.manifest.precision.block_size == 32
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp\.c_proj\.weight has 96 inputs, .* blocks of 64"):
        export(source, tmp_path / "bundle", precision=ExportPrecision.choose("int4", block=64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "fitted"]


@pytest.mark.parametrize(
    ("precision", "value", "match"),
    [("int4", float("nan"), "h.1.mlp.w2.weight holds NaN"), ("fp16", 1e6, r"h.1.mlp.w2.weight .* beyond .*float16")],
)
def test_values_that_cannot_be_stored_name_the_tensor(tmp_path, precision, value, match):
    tensors = random_tensors(config_dict())
    tensors["transformer.h.1.mlp.w2.weight"][3, 4] = value
    source = write_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    with pytest.raises(CheckpointError, match=match):
        export(source, tmp_path / "bundle", precision=ExportPrecision.choose(precision))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_pictures_are_the_same_where_signed_weights_are_made_unsigned(exports, monkeypatch):
    bundle = exports("int8")[0]
    size = bundle.manifest.family.config["image_size"]
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    found = {}
    for unsigned in (False, True):
        monkeypatch.setattr(session_module, "signed_products_saturate", lambda unsigned=unsigned: unsigned)
        found[unsigned] = OnnxRuntimeBackend(bundle, threads=1).encode_pixels(pixels)
    if processor.signed_products_saturate():
        assert not np.allclose(found[True], found[False], rtol=0, atol=0.01)
    else:  # the same integers; only the order of float operations differs
        np.testing.assert_allclose(found[True], found[False], rtol=0, atol=1e-4 * np.abs(found[False]).max())


def take_native(monkeypatch, onnxruntime_s=2.0):
    """The native products as if they were measured to take a second; the portable kernels serve too."""
    monkeypatch.setattr(_core, "multiply_variant", lambda: "avx2")
    compared = Comparison("avx2", 1.0, onnxruntime_s)
    monkeypatch.setattr(session_module, "compare_products", lambda bits, block, threads: compared)


def test_onnxruntime_is_taken_where_its_products_are_faster(exports, monkeypatch):
    bundle = exports("int8")[0]
    take_native(monkeypatch, onnxruntime_s=0.5)
    backend = OnnxRuntimeBackend(bundle)
    assert backend.dialect == ONNXRUNTIME
    assert "its own matrix products, 2.0 times as fast here as the native core's (avx2)" in backend.description
    assert OnnxRuntimeBackend(bundle, dialect=NATIVE).dialect == NATIVE


def test_the_native_dialect_is_taken_where_the_processor_is_for_it(exports, tiny_checkpoint, monkeypatch):
    """Elsewhere ONNX Runtime's is, and asking for the native one is one sentence."""
    bundle, chosen = exports("int8")
    monkeypatch.setattr(_core, "multiply_variant", lambda: "portable")
    backend = OnnxRuntimeBackend(bundle)
    assert backend.dialect == ONNXRUNTIME
    assert "native core" not in backend.description
    with pytest.raises(BackendError, match='the "native" decoder needs a processor with AVX2, or Arm'):
        OnnxRuntimeBackend(bundle, dialect=NATIVE)
    prepacked = estimate_memory(bundle, max_context=64).weights
    take_native(monkeypatch)
    native = OnnxRuntimeBackend(bundle)
    assert native.dialect == NATIVE
    assert "matrix products by the native core (avx2)" in native.description
    assert prepacked - estimate_memory(bundle, max_context=64).weights > bundle.manifest.files["decoder.data"].size
    embeds = bundle.embedding[np.arange(40)[None]].astype(np.float32)
    with torch.no_grad():
        wanted = rounded_model(tiny_checkpoint, chosen).decode(torch.from_numpy(embeds))[0].numpy()
    # Both round activations to 8 bits; a cache in float16 makes other integers of some, and no larger error.
    native_error, error = (
        np.sqrt(np.mean((decode(bundle, name, embeds) - wanted) ** 2)) for name in (NATIVE, ONNXRUNTIME)
    )
    assert native_error < 1.3 * error


def test_rows_of_a_batch_are_computed_natively_as_alone(exports, monkeypatch):
    take_native(monkeypatch)
    backend = OnnxRuntimeBackend(exports("int8")[0], threads=1, dialect=NATIVE)
    embeds = np.random.default_rng(0).normal(size=(5, 1, backend.model.hidden_size)).astype(np.float32)
    zeros = np.zeros((5, 1), np.int64)
    together = backend.new_cache(5, 4)
    rows = rotary(backend, zeros[:, 0], 1)
    logits = backend.decode(together, embeds, rows, zeros[:, 0], zeros)
    for row in range(5):
        alone = backend.new_cache(1, 4)
        single = backend.decode(alone, embeds[row : row + 1], rows.first(1), zeros[:1, 0], zeros[:1])
        np.testing.assert_allclose(logits[row], single[0], rtol=0, atol=1e-5 * np.abs(single).max())
