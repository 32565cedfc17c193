"""Decoders that no family has yet: fewer key heads than heads, norms of queries and keys, a tied head."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from qwenvl_edge import _core
from qwenvl_edge.bundle.contract import NATIVE, STANDARD
from qwenvl_edge.bundle.engines import PLUGIN_OP
from qwenvl_edge.bundle.manifest import FLOAT_CACHE
from qwenvl_edge_export.graphs.data_file import DataFile
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.weight_layout import decoder_layout
from qwenvl_edge_export.options import FP32, ExportPrecision
from qwenvl_edge_export.quantization.activations import Spool
from qwenvl_edge_export.quantization.layer_calibration import LayerCalibration
from qwenvl_edge_export.tensorrt.plugin_lowering import PluginLowering
from qwenvl_edge_export.weight_formats import Blocks
from support.dialects import DIALECTS, OF_BLOCKS, cache_dtype
from support.grouped_decoder import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Grouped, query_scale, rope_tables

CAPACITY = 24
INT8 = ExportPrecision.choose("int8", block=32).decoder
VARIANTS = {
    "plain": {},
    "bias": {"bias": True},
    "norms": {"norms": True},
    "all": {"bias": True, "norms": True, "scale_length": 4},
}


class Run:
    """A decoder graph in ONNX Runtime, with its cache."""

    def __init__(self, subject, folder, dialect, precision, *, int8_cache=False):
        layout = decoder_layout(subject.decoder, precision)
        DataFile(folder, layout).write(subject.read, lambda _: None)
        graph = build_decoder(subject.decoder, layout, dialect, int8_cache=int8_cache)
        ir.save(graph, folder / "decoder.onnx")
        options = ort.SessionOptions()
        if dialect == NATIVE:
            options.register_custom_ops_library(_core.__file__)
        self.session = ort.InferenceSession(folder / "decoder.onnx", options, providers=["CPUExecutionProvider"])
        self._scale = query_scale(CAPACITY, subject.scale_length)
        self._past = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                dtype = cache_dtype(value)
                assert value.shape[1] == KV_HEADS
                self._past[value.name] = np.zeros([1, KV_HEADS, CAPACITY, *value.shape[3:]], dtype)

    def __call__(self, embeds, start):
        """Logits [T, V] of embeddings [T, H] from position `start` on."""
        count = len(embeds)
        cos, sin = (table[None, start : start + count] for table in rope_tables(CAPACITY))
        feed = {
            "inputs_embeds": embeds[None],
            "write_indices": np.array([start]),
            "last_indices": np.array([start + count - 1], np.int32),
            "logits_indices": np.arange(count)[None],
            "rope_cos": cos,
            "rope_sin": sin,
            "query_scale": self._scale[None, start : start + count],
            "total_sequence_length": np.array([start + count], np.int32),
        }
        known = {value.name for value in self.session.get_inputs()}
        logits, *present = self.session.run(None, {k: v for k, v in (feed | self._past).items() if k in known})
        self._past = dict(zip(self._past, present, strict=True))
        return logits[0]


def embeddings(count=14):
    return np.random.default_rng(1).normal(size=(count, HIDDEN)).astype(np.float32)


def in_calls(run, embeds, bounds=(0, 6, 7, 8, 14)):
    return np.concatenate([run(embeds[start:end], start) for start, end in itertools.pairwise(bounds)])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_grouped_heads_compute_what_numpy_does(tmp_path, dialect, variant):
    subject, embeds = Grouped(**VARIANTS[variant]), embeddings()
    found = in_calls(Run(subject, tmp_path, dialect, FP32), embeds)
    np.testing.assert_allclose(found, subject.logits(embeds), rtol=0, atol=1e-5)


def test_variants_differ():
    """Otherwise the test above could not tell them apart."""
    results = [Grouped(**options).logits(embeddings()) for options in VARIANTS.values()]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(results, 2))


@pytest.mark.parametrize("dialect", OF_BLOCKS)
def test_grouped_heads_over_blocks(tmp_path, dialect):
    """Against the weights that the blocks stand for; these operators round activations to 8 bits."""
    subject, embeds = Grouped(bias=True), embeddings()
    found = in_calls(Run(subject, tmp_path, dialect, INT8), embeds)
    blocks = Blocks(8, 32)
    for name, tensor in subject.tensors.items():
        if tensor.ndim == 2:
            scales = blocks.scales(tensor)
            subject.tensors[name] = blocks.floats(blocks.integers(tensor, scales), scales)
    expected = subject.logits(embeds)
    tolerance = 1e-5 if dialect == STANDARD else 3e-2
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dialect", DIALECTS[:1])
def test_grouped_heads_over_an_int8_cache(tmp_path, dialect):
    subject, embeds = Grouped(), embeddings()
    found = in_calls(Run(subject, tmp_path, dialect, FP32, int8_cache=True), embeds)
    expected = subject.logits(embeds)
    assert 1e-5 < np.abs(found - expected).max() < 3e-2 * np.abs(expected).max()


def test_the_tied_head_is_the_embedding():
    subject = Grouped()
    layout = decoder_layout(subject.decoder, FP32)
    assert torch.equal(subject.decoder.head.weight.read(subject.read), subject.read("embed.weight"))
    assert layout.entry("head.weight").slot.shape == tuple(subject.read("embed.weight").shape)
    with pytest.raises(KeyError):
        layout.entry("embed.weight")  # it lies in embedding.bin


class Projections(nn.Module):
    """Stands in for a reference layer: what reaches q, k and v is what they make of it, one after another."""

    def __init__(self, tensors):
        super().__init__()
        self.parts = {part: tensors(f"layers.0.{part}.weight") for part in "qkv"}
        self.q, self.out, self.up, self.down = (nn.Identity() for _ in range(4))

    def forward(self, rows, prompt):
        rows = self.q(rows)
        self.out(rows.repeat(1, 2)[:, :96])
        self.up(rows)
        self.down(rows.repeat(1, 2)[:, :96])
        return mixed(*(rows @ weight.T for weight in self.parts.values()))


def mixed(q, k, v):
    """Something of all three, [T, H]."""
    return q[:, :HIDDEN] + torch.cat([k, v], dim=1)


def test_calibration_gives_each_projection_its_own_rows(tmp_path):
    """The integers of a joined weight, taken apart again where the reference has three tensors."""
    subject, rows = Grouped(), torch.from_numpy(embeddings())
    family = SimpleNamespace(decoder=subject.decoder, reference_layer=lambda index, tensors: Projections(tensors))
    checkpoint = SimpleNamespace(family=family, tensor=subject.read, shape=lambda name: tuple(subject.read(name).shape))
    spool = Spool(tmp_path, [len(rows)], HIDDEN)
    with spool.written(0) as written:
        next(written).copy_(rows)
    case = SimpleNamespace(prompt=None)
    found, losses = LayerCalibration(checkpoint, INT8, [case], spool, 0).gptq()
    assert set(found) == set(losses) == {f"layers.0.{name}.weight" for name in ("qkv", "out", "up", "gate", "down")}
    floats = found["layers.0.qkv.weight"].floats()
    parts = [subject.read(f"layers.0.{part}.weight") for part in "qkv"]
    assert [len(part) for part in parts] == [96, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    torch.testing.assert_close(floats, torch.cat(parts), rtol=0, atol=2e-2)
    expected = mixed(*(rows @ floats.T).split([len(part) for part in parts], dim=1))
    torch.testing.assert_close(next(iter(spool.read(1))), expected, rtol=0, atol=1e-5)


def lowered(subject, folder):
    """The graph in float16 with the plugin's op."""
    half = ExportPrecision.choose("fp16", target="gpu").decoder
    layout = decoder_layout(subject.decoder, half)
    DataFile(folder, layout).write(subject.read, lambda _: None)
    ir.save(build_decoder(subject.decoder, layout, STANDARD), folder / "decoder.onnx")
    model = SimpleNamespace(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    manifest = SimpleNamespace(model=model, precision=SimpleNamespace(kv_cache=FLOAT_CACHE))
    bundle = SimpleNamespace(file=lambda name: folder / name, manifest=manifest)
    (folder / "lowered").mkdir()
    return onnx.load_model_from_string(PluginLowering(bundle, "decoder.onnx", folder / "lowered").decoder(CAPACITY))


def test_the_plugin_takes_grouped_heads_as_they_are(tmp_path):
    graph = lowered(Grouped(bias=True), tmp_path).graph
    nodes = [node for node in graph.node if node.op_type == PLUGIN_OP]
    assert len(nodes) == LAYERS
    for node in nodes:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        assert (numbers["num_heads"], numbers["num_kv_heads"], numbers["head_dim"]) == (HEADS, KV_HEADS, HEAD_DIM)
    assert not {"Split", "Attention", "RotaryEmbedding"} & {node.op_type for node in graph.node}


def test_the_plugin_gets_queries_and_keys_normalised(tmp_path):
    graph = lowered(Grouped(norms=True), tmp_path).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type == PLUGIN_OP]
    assert [made_by[node.input[0]] for node in nodes] == ["Concat"] * LAYERS
    assert not {"Attention", "RotaryEmbedding", "RMSNormalization"} & {node.op_type for node in graph.node}
