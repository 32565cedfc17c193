from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from qwenvl_edge.backends.base import check_finite
from qwenvl_edge.backends.onnxruntime import session as session_module
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.errors import BackendError, ContextError
from qwenvl_edge.families.base import RotaryRows
from support.decoding import rotary
from support.dialects import DIALECTS

HIDDEN, VOCAB = 256, 2304


@pytest.fixture(scope="module")
def backend(tiny_bundle) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(tiny_bundle, threads=1)


def rows(start=0, tokens=3, dtype=np.float32):
    """Rotary rows of the tiny checkpoint's family, at batch 1."""
    angles = np.outer(np.arange(start, start + tokens), 1e4 ** -(np.arange(32) / 32))[None]
    return RotaryRows(np.cos(angles).astype(dtype), np.sin(angles).astype(dtype), np.ones((1, tokens), dtype))


def call(**changes):
    """Arguments of a decode of three tokens at batch 1, with changes."""
    return {
        "inputs_embeds": np.ones((1, 3, HIDDEN), np.float32),
        "rotary": rows(),
        "write_indices": np.zeros(1, np.int64),
        "logits_indices": np.array([[2]]),
    } | changes


def test_decode_sets_the_length(backend):
    cache = backend.new_cache(1, 8)
    assert backend.decode(cache, **call()).shape == (1, 1, VOCAB)
    assert cache.length == 3


def test_results_are_not_overwritten_by_the_next_call(backend):
    cache = backend.new_cache(1, 8)
    first = backend.decode(cache, **call())
    kept = first.copy()
    backend.decode(cache, **call(inputs_embeds=np.full((1, 3, HIDDEN), -2, np.float32)))
    np.testing.assert_array_equal(first, kept)


def test_caches_do_not_share_memory(backend):
    first, second = backend.new_cache(1, 8), backend.new_cache(1, 8)
    backend.decode(first, **call())
    assert all(array.any() for array in first.buffers.arrays.values())
    assert not any(array.any() for array in second.buffers.arrays.values())


def test_the_cache_is_written_in_place(backend):
    cache = backend.new_cache(1, 8)
    before = {name: array.__array_interface__["data"] for name, array in cache.buffers.arrays.items()}
    backend.decode(cache, **call())
    key = cache.buffers.arrays["past_key_values.0.key"]
    assert key[:, :, :3].any()
    assert not key[:, :, 3:].any()
    assert before == {name: array.__array_interface__["data"] for name, array in cache.buffers.arrays.items()}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"inputs_embeds": np.ones((1, 3, HIDDEN), np.float64)},
            r"must be float32 \[1, \*, 256\], not float64 \[1, 3, 256\]",
        ),
        ({"inputs_embeds": np.ones((1, 3, 7), np.float32)}, r"not float32 \[1, 3, 7\]"),
        ({"inputs_embeds": np.ones((2, 3, HIDDEN), np.float32)}, r"inputs_embeds must be float32 \[1"),
        ({"inputs_embeds": np.ones((3, HIDDEN), np.float32)}, "inputs_embeds must be"),
        ({"inputs_embeds": np.ones((1, 0, HIDDEN), np.float32)}, "holds no token"),
        ({"rotary": rows(dtype=np.float64)}, r"rope_cos must be float32 \[1, 3, 32\], not float64"),
        ({"rotary": rows(tokens=4)}, r"rope_cos must be float32 \[1, 3, 32\], not float32 \[1, 4, 32\]"),
        ({"rotary": rows()._replace(sin=rows().sin[..., :16])}, r"rope_sin must be float32 \[1, 3, 32\]"),
        ({"rotary": rows()._replace(query_scale=np.ones(3, np.float32))}, r"query_scale must be float32 \[1, 3\]"),
        ({"write_indices": np.zeros(2, np.int64)}, "write_indices must be"),
        ({"write_indices": np.array([1])}, r"write_indices must lie in 0..0 \(the tokens in the cache\); found 1..1"),
        ({"write_indices": np.array([-1])}, "write_indices must lie in"),
        ({"logits_indices": np.array([[3]])}, r"logits_indices must lie in 0..2"),
        ({"logits_indices": np.array([0])}, "logits_indices must be"),
    ],
)
def test_wrong_decode_arguments(backend, changes, match):
    cache = backend.new_cache(1, 8)
    with pytest.raises(BackendError, match=match):
        backend.decode(cache, **call(**changes))
    assert cache.length == 0


def test_a_full_cache_says_by_how_much(backend):
    cache = backend.new_cache(1, 4)
    backend.decode(cache, **call())
    with pytest.raises(ContextError, match="6 tokens do not fit into a KV cache of 4: 2 too many"):
        backend.decode(cache, **call(write_indices=np.array([3]), rotary=rows(1)))
    assert cache.length == 3


@pytest.mark.parametrize("shape", [(1, 3, 56, 57), (3, 56, 56), (1, 1, 56, 56)])
def test_wrong_pixels(backend, shape):
    with pytest.raises(BackendError, match=r"pixel_values must be float32 \[\*, 3, 56, 56\]"):
        backend.encode_pixels(np.zeros(shape, np.float32))


def test_no_picture(backend):
    with pytest.raises(BackendError, match="holds no picture"):
        backend.encode_pixels(np.zeros((0, 3, 56, 56), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_the_stage(backend, value):
    with pytest.raises(BackendError, match="the image features hold NaN or infinity"):
        backend.encode_pixels(np.full((1, 3, 56, 56), value, np.float32))
    cache = backend.new_cache(1, 8)
    with pytest.raises(BackendError, match="the logits hold NaN or infinity"):
        backend.decode(cache, **call(inputs_embeds=np.full((1, 3, HIDDEN), value, np.float32)))
    check_finite(np.zeros(3, np.float32), "logits")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cache_works_again_after_nan(tiny_bundle, dialect):
    backend = OnnxRuntimeBackend(tiny_bundle, threads=1, dialect=dialect)
    expected = backend.decode(backend.new_cache(1, 8), **call())
    cache = backend.new_cache(1, 8)
    with pytest.raises(BackendError):
        backend.decode(
            cache,
            **call(inputs_embeds=np.full((1, 8, HIDDEN), np.nan, np.float32), rotary=rows(tokens=8)),
        )
    np.testing.assert_array_equal(backend.decode(cache, **call()), expected)


@pytest.mark.parametrize(("batch", "capacity"), [(0, 8), (1, 0), (-1, 8)])
def test_empty_caches_are_refused(backend, batch, capacity):
    with pytest.raises(BackendError, match="at least 1"):
        backend.new_cache(batch, capacity)


def test_the_memory_of_a_cache_is_that_of_its_buffers(backend):
    buffers = backend.new_cache(1, 8).buffers.arrays.values()
    assert backend.cache_bytes(8) == sum(array.nbytes for array in buffers)


def test_a_cache_larger_than_memory(backend):
    with pytest.raises(BackendError, match=r"no memory for a KV cache of .* GB"):
        backend.new_cache(1 << 20, 1 << 28)


def test_unknown_dialect(tiny_bundle):
    with pytest.raises(BackendError, match='no decoder graph "tensorrt"; it has standard, onnxruntime'):
        OnnxRuntimeBackend(tiny_bundle, dialect="tensorrt")


def test_the_standard_dialect_needs_a_new_onnx_runtime(tiny_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(BackendError, match='"standard" decoder needs ONNX Runtime'):
        OnnxRuntimeBackend(tiny_bundle, dialect="standard")
    OnnxRuntimeBackend(tiny_bundle, dialect="onnxruntime")


def test_a_pinned_process_takes_no_more_threads_than_it_may_run(monkeypatch):
    monkeypatch.setattr(session_module.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(session_module.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert session_module._threads(None) == 3
    monkeypatch.setattr(session_module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert session_module._threads(None) == 0


def test_no_threads(tiny_bundle):
    with pytest.raises(BackendError, match="threads is 0"):
        OnnxRuntimeBackend(tiny_bundle, threads=0)


def test_a_graph_that_cannot_be_loaded(tiny_bundle, tmp_path):
    model = onnx.load(tiny_bundle.file("vision.ort.onnx"), load_external_data=False)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "vision.ort.onnx")
    path = tmp_path / "vision.ort.onnx"
    files = tiny_bundle.manifest.files | {"vision.ort.onnx": FileInfo(path.stat().st_size, sha256(path))}
    bundle = Bundle(tmp_path, dataclasses.replace(tiny_bundle.manifest, files=files))
    with pytest.raises(BackendError, match=r"could not load .*vision.ort.onnx.*Unheard"):
        OnnxRuntimeBackend(bundle)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("lacking", "lacks the input total_sequence_length: the bundle was exported by another version .*export it "),
        ("unknown", "has the unknown input something: the bundle was exported by another version"),
    ],
)
def test_a_bundle_of_another_version(tiny_bundle, tmp_path, change, match):
    """Its graph is whole, but what is bound to it is not what it takes."""
    shutil.copytree(tiny_bundle.path, tmp_path / "older")
    path = tmp_path / "older" / "decoder.ort.onnx"
    model = onnx.load(path, load_external_data=False)
    total = next(value for value in model.graph.input if value.name == "total_sequence_length")
    if change == "lacking":
        model.graph.input.remove(total)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3], np.int32), total.name))
    else:
        model.graph.input.append(onnx.helper.make_tensor_value_info("something", onnx.TensorProto.INT64, [1]))
    onnx.save(model, path)
    files = tiny_bundle.manifest.files | {path.name: FileInfo(path.stat().st_size, sha256(path))}
    older = Bundle(path.parent, dataclasses.replace(tiny_bundle.manifest, files=files))
    with pytest.raises(BackendError, match=rf'decoder\.ort\.onnx" {match}'):
        OnnxRuntimeBackend(older, threads=1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_layers": 4}, "has 2 layers, but bundle.json says 4"),
        (
            {"num_kv_heads": 2},
            r"has past_key_values.0.key of shape \[B, 4, C, 64\], but bundle.json says \[\?, 2, \?, 64\]",
        ),
        ({"head_dim": 32}, r"has rope_cos of shape \[B, T, 32\], but bundle.json says \[\?, \?, 16\]"),
        ({"hidden_size": 128}, r"has image_features of shape .*, 256\], but bundle.json says .*, 128\]"),
        ({"vocab_size": 2305}, r"has logits of shape \[B, K, 2304\], but bundle.json says \[\?, \?, 2305\]"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bundle_json_of_another_model(tiny_bundle, dialect, changes, match):
    model = dataclasses.replace(tiny_bundle.manifest.model, **changes)
    bundle = Bundle(tiny_bundle.path, dataclasses.replace(tiny_bundle.manifest, model=model))
    with pytest.raises(BackendError, match=match):
        OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)


def test_a_copied_prefix_continues_like_the_original(backend):
    source, target = backend.new_cache(1, 16), backend.new_cache(2, 8)
    embeds = np.random.default_rng(0).normal(size=(1, 5, HIDDEN)).astype(np.float32)
    backend.decode(source, embeds, rotary(backend, [0], 5), np.zeros(1, np.int64), np.zeros((1, 0), np.int64))
    backend.copy_cache(source, target, 3, row=1)
    backend.copy_cache(source, target, 4, row=0)
    assert target.length == 4
    token = np.ones((1, 1, HIDDEN), np.float32)
    expected = [
        backend.decode(source, token, rotary(backend, [start], 1), np.array([start]), np.zeros((1, 1), np.int64))[0]
        for start in (4, 3)
    ]
    found = backend.decode(
        target, np.repeat(token, 2, 0), rotary(backend, [4, 3], 1), np.array([4, 3]), np.zeros((2, 1), np.int64)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_caches_that_do_not_fit_are_not_copied(backend):
    source, target = backend.new_cache(1, 8), backend.new_cache(1, 2)
    backend.decode(source, **call())
    with pytest.raises(BackendError, match="3 tokens of a cache that holds 3 into one of 2"):
        backend.copy_cache(source, target, 3)
    with pytest.raises(BackendError, match="into row 1"):
        backend.copy_cache(source, target, 1, row=1)
    with pytest.raises(BackendError, match="of batch 2"):
        backend.copy_cache(backend.new_cache(2, 8), target, 0)
