"""The TensorRT driver on the stand-in: what it computes, what a token costs, what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from decoding import decode, embeds, pictured
from dialects import RUNNABLE
from standin import plans
from standin.machine import Machine

from qwenvl_edge.backends.base import Placed
from qwenvl_edge.backends.cuda_device import Cuda
from qwenvl_edge.backends.onnxruntime import STANDARD, OnnxRuntimeBackend
from qwenvl_edge.backends.plans import Plan
from qwenvl_edge.backends.tensorrt import TensorRTBackend
from qwenvl_edge.backends.tensorrt_library import installed_libraries
from qwenvl_edge.bundle import Bundle, FileInfo, sha256
from qwenvl_edge.cli import main
from qwenvl_edge.errors import BackendError, BundleError

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
HIDDEN, SIZE, IMAGE_TOKENS = 256, 56, 256
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory) -> Bundle:
    """A bundle with a plan; tests that change it take `own_bundle`."""
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    bundle = Bundle.open(folder)
    plans.write_plan(bundle)
    return bundle


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Bundle:
    shutil.copytree(bundle.path, tmp_path / "own")
    return Bundle.open(tmp_path / "own")


@pytest.fixture(scope="module")
def reference(bundle) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(bundle, threads=1, dialect=STANDARD)


@pytest.fixture
def open_backend(monkeypatch):
    """Opens the plan of a bundle on a new stand-in machine; returns the backend and the machine."""

    def open_it(bundle: Bundle, **options):
        machine = Machine(**options)
        plans.install(monkeypatch, machine)
        return TensorRTBackend(bundle, Plan.open(bundle, "local"), installed_libraries()[0], Cuda.open()), machine

    return open_it


@pytest.fixture
def backend(bundle, open_backend):
    return open_backend(bundle)[0]


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def both(backend, reference, batch=1, capacity=64):
    return [(side, side.new_cache(batch, capacity)) for side in (backend, reference)]


def test_prefill_steps_and_verification(backend, reference):
    logits = []
    for side, cache in both(backend, reference):
        found = [decode(side, cache, 20)]
        found += [decode(side, cache, 1, seed=seed) for seed in range(1, 5)]
        found.append(decode(side, cache, 7, seed=5, wanted=range(7)))
        found.append(decode(side, cache, 1, seed=6, write=22))  # back to an earlier place
        found += [decode(side, cache, tokens, seed=tokens) for tokens in (2, 1, 2, 1)]
        assert cache.length == 29
        logits.append(np.concatenate(found, axis=1))
    assert_same(*logits)


@pytest.mark.parametrize("wanted", [[], [99], list(range(80, 100)), list(range(100)), [70, 3, 3]])
def test_calls_larger_than_the_plan_are_made_in_pieces(backend, reference, wanted):
    assert_same(*(decode(side, cache, 100, wanted=wanted) for side, cache in both(backend, reference, 1, 128)))


def test_rows_of_different_length(backend, reference):
    logits = []
    for side, cache in both(backend, reference, batch=3):
        decode(side, cache, 9)
        steps = [decode(side, cache, 1, seed=seed, write=[2 + seed, 5 + seed, 8 + seed]) for seed in range(4)]
        logits.append(np.concatenate(steps, axis=1))
    assert_same(*logits)


def test_caches_in_turns_do_not_disturb_each_other(backend, reference):
    logits = []
    for side in (backend, reference):
        caches = [side.new_cache(1, 32) for _ in range(2)]
        for seed, cache in enumerate(caches):
            decode(side, cache, 5, seed=seed)
        logits.append(np.concatenate([decode(side, caches[i % 2], 1, seed=i) for i in range(8)], axis=1))
    assert_same(*logits)


def test_the_tables_follow_the_cache(backend, reference):
    logits = []
    for side, cache in both(backend, reference, capacity=512):
        cache.ntk_alpha = 7.0  # what a longer prompt would have chosen
        cache.rope_cos, cache.rope_sin = cache.rope_cos * 0.5, cache.rope_sin * 0.5
        logits.append(decode(side, cache, 6))
    assert_same(*logits)


def test_a_copied_prefix_and_rows_of_a_batch(backend, reference):
    logits = []
    for side in (backend, reference):
        source, batch = side.new_cache(1, 32), side.new_cache(3, 32)
        decode(side, source, 6)
        for row, tokens in ((0, 6), (2, 4)):
            side.copy_cache(source, batch, tokens, row=row)
        last = side.rows(batch, 2, 1)
        last.length = 4
        steps = [decode(side, last, 1, seed=seed) for seed in range(3)]
        first = side.rows(batch, 0, 1)
        logits.append(np.concatenate([*steps, decode(side, first, 1, write=6)], axis=1))
    assert_same(*logits)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pictures_go_through_in_as_many_runs_as_the_plan_needs(backend, reference, count):
    pixels = np.random.default_rng(0).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)
    assert_same(backend.encode_images(pixels), reference.encode_images(pixels))


@pytest.mark.parametrize("integrated", [False, True])
def test_features_stay_on_the_gpu(bundle, open_backend, reference, integrated):
    """Kept features, whole and in parts, behind a prefix, over a call's tokens, also where a call is made in pieces."""
    backend, _ = open_backend(bundle, integrated=integrated)
    pixels = np.random.default_rng(3).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    logits = []
    for side in (backend, reference):
        features = side.keep_images(pixels)
        assert [len(each) for each in features] == [IMAGE_TOKENS] * 2
        side.keep_images(pixels[::-1])  # is not written over what was kept
        cache = side.new_cache(1, 200)
        calls = [(9, [Placed(features[0], 2, 0, 7)]), (1, [Placed(features[0], 0, 7, 1)])]
        calls += [(150, [Placed(features[0], 0, 8, 8), Placed(features[1], 50, 0, 90)]), (1, [])]
        for tokens, pictures in calls:
            rows, start = embeds(side, tokens), cache.length
            wanted = np.array([[tokens - 1]])
            places = start + np.arange(tokens)[None]
            logits.append(side.decode(cache, rows, places, np.array([start]), wanted, pictures))
    assert_same(np.concatenate(logits[:4]), np.concatenate(logits[4:]))


def test_a_picture_in_two_calls(backend, reference):
    assert_same(pictured(backend), pictured(reference))


def test_kept_features_are_copied_within_the_gpu_only(bundle, open_backend):
    backend, machine = open_backend(bundle)
    features = backend.keep_images(np.zeros((1, 3, SIZE, SIZE), np.float32))
    cache, used = backend.new_cache(1, 128), machine.used_bytes
    decode(backend, cache, 20)
    machine.counts.clear()
    pictures = [Placed(features[0], 0, 5, 40)]
    call = (cache, embeds(backend, 40), 20 + np.arange(40)[None], np.array([20]), np.array([[0]]))
    backend.decode(*call, pictures)
    assert machine.counts == {"enqueues": 1, "copies": 3, "synchronizations": 1}  # inputs, features, logits
    for at, first, count in ((1, 0, 40), (0, 250, 7), (-1, 0, 2), (0, 0, 0)):
        with pytest.raises(BackendError, match=r"do not fit 40 tokens and 256 rows"):
            backend.decode(*call, [Placed(features[0], at, first, count)])
    with pytest.raises(BackendError, match="features of another backend"):
        backend.decode(*call, [Placed(np.zeros((256, HIDDEN), np.float32), 0, 0, 1)])
    del features, pictures
    assert machine.used_bytes < used


def test_results_are_not_overwritten_by_the_next_call(backend):
    cache = backend.new_cache(1, 32)
    first = decode(backend, cache, 3)
    kept = first.copy()
    decode(backend, cache, 3, seed=1)
    np.testing.assert_array_equal(first, kept)


def test_a_token_is_one_launch_and_one_wait(bundle, open_backend):
    backend, machine = open_backend(bundle)
    cache = backend.new_cache(1, 64)
    decode(backend, cache, 5)
    for _ in range(2):
        decode(backend, cache, 1)
    machine.counts.clear()
    for _ in range(10):
        decode(backend, cache, 1)
    assert machine.counts == {"launches": 10, "synchronizations": 10}


def test_nothing_is_reserved_after_the_first_conversation(bundle, open_backend):
    backend, machine = open_backend(bundle)
    cache = backend.new_cache(1, 64)

    def converse():
        backend.encode_images(np.zeros((1, 3, SIZE, SIZE), np.float32))
        for tokens in (40, 1, 1, 7, 1):
            decode(backend, cache, tokens, wanted=range(min(tokens, 7)))
        cache.truncate(0)

    converse()
    used = machine.counts["allocations"]
    for _ in range(3):
        converse()
    assert machine.counts["allocations"] == used


def test_memory_goes_back_with_its_cache(bundle, open_backend):
    backend, machine = open_backend(bundle)
    used = machine.used_bytes
    for _ in range(3):
        cache = backend.new_cache(2, 64)
        for _ in range(3):
            decode(backend, cache, 1)
        del cache
    assert machine.used_bytes == used


def test_a_shared_memory_is_not_copied(bundle, open_backend, reference):
    backend, machine = open_backend(bundle, integrated=True)
    (_, cache), other = both(backend, reference)
    expected = [decode(*other, tokens) for tokens in (5, 1, 1, 1)]
    found = [decode(backend, cache, 5)]  # brings the rotary tables along
    machine.counts.clear()
    found += [decode(backend, cache, 1) for _ in range(3)]
    assert machine.counts["copies"] == 0
    assert_same(np.concatenate(found, axis=1), np.concatenate(expected, axis=1))


def test_what_cannot_be_captured_is_enqueued(bundle, open_backend, reference):
    backend, machine = open_backend(bundle)
    machine.capturable = False
    (_, cache), other = both(backend, reference)
    for _ in range(4):
        assert_same(decode(backend, cache, 1), decode(*other, 1))
    assert machine.counts["launches"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cache_works_again_after_nan(backend, reference, value):
    (_, cache), other = both(backend, reference)
    with pytest.raises(BackendError, match="the logits hold NaN or infinity"):
        decode(backend, cache, np.full((1, 8, HIDDEN), value, np.float32))
    assert cache.length == 0
    assert_same(decode(backend, cache, 3), decode(*other, 3))
    with pytest.raises(BackendError, match="the image features hold NaN or infinity"):
        backend.encode_images(np.full((1, 3, SIZE, SIZE), value, np.float32))


def test_the_description(backend):
    assert backend.description == ('TensorRT 10.3.0.30 on Stand-in (sm_87), plan "local": vision fp32, decoder fp32')


@pytest.mark.parametrize(
    ("batch", "capacity", "match"),
    [
        (4, 64, r"max-batch of 3, not 4; build it again with `qwenvl build .* --target local --force --max-batch 4`"),
        (1, 513, "max-context of 512, not 513; build it again with .*--max-context 513"),
        (0, 64, "at least 1"),
        (1, 0, "at least 1"),
    ],
)
def test_caches_beyond_the_plan(backend, batch, capacity, match):
    with pytest.raises(BackendError, match=match):
        backend.new_cache(batch, capacity)


def test_several_rows_are_not_made_in_pieces(backend):
    with pytest.raises(BackendError, match="70 tokens of 2 rows with 1 logits each fit no profile"):
        decode(backend, backend.new_cache(2, 128), 70)


def test_no_memory_for_a_cache(bundle, open_backend):
    backend, machine = open_backend(bundle)
    machine.total_bytes = machine.used_bytes + 1000
    used = machine.used_bytes
    with pytest.raises(BackendError, match=r"no memory for a KV cache of 512 tokens.*cudaErrorMemoryAllocation"):
        backend.new_cache(1, 64)
    assert machine.used_bytes == used


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"compute_capabilities": (86, 89)}, "was built for sm_86, sm_89, but this GPU is sm_87; build one here with"),
        ({"builder": {"version": "10.13.0.35"}}, "built by tensorrt 10.13.0.35, but tensorrt 10.3.0.30 is installed"),
        ({"builder": {"platform": "linux-riscv64"}}, "was built for linux-riscv64, but this machine is"),
    ],
)
def test_a_plan_for_another_machine_is_not_deserialised(own_bundle, open_backend, changes, match):
    path = own_bundle.path / "plans" / "local" / "plan.json"
    raw = json.loads(path.read_text())
    raw["builder"] |= changes.pop("builder", {})
    path.write_text(json.dumps(raw | changes))
    for name in ("vision.plan", "decoder.plan"):
        rewrite(own_bundle, name, b"not read")
    with pytest.raises(BackendError, match=match):
        open_backend(own_bundle)


def rewrite(bundle, name, data: bytes):
    """Replace a plan file, with its hash in the manifest."""
    folder = bundle.path / "plans" / "local"
    (folder / name).write_bytes(data)
    files = {p.name: FileInfo(p.stat().st_size, sha256(p)) for p in folder.iterdir() if p.suffix != ".json"}
    plans.change_manifest(folder, files=files)


def edit_engine(bundle, name, **changes):
    data = (bundle.path / "plans" / "local" / name).read_bytes()
    head, plan = data.split(b"\n", 1)
    rewrite(bundle, name, head + b"\n" + json.dumps(json.loads(plan) | changes).encode())


def test_a_damaged_plan_is_found_before_it_is_deserialised(own_bundle, open_backend):
    path = own_bundle.path / "plans" / "local" / "decoder.plan"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"truncated or altered; build it again with `qwenvl build"):
        open_backend(own_bundle)


def test_errors_carry_the_lines_of_tensorrt(own_bundle, open_backend):
    rewrite(own_bundle, "decoder.plan", b"something else")
    with pytest.raises(BackendError, match=r"TensorRT 10.3.0.30 could not load the plan .*the header is not that of a"):
        open_backend(own_bundle)


def test_a_profile_that_the_engine_does_not_have(own_bundle, open_backend):
    folder = own_bundle.path / "plans" / "local"
    profiles = Plan.open(own_bundle, "local").manifest.profiles
    wider = {**profiles, "prefill": type(profiles["prefill"])(1, (1, 64, 100), (1, 1, 16))}
    plans.change_manifest(folder, profiles=wider)
    backend, _ = open_backend(own_bundle)
    with pytest.raises(BackendError, match=r"could not take inputs_embeds of shape \[1, 100, 256\]: .*satisfyProfile"):
        decode(backend, backend.new_cache(1, 128), 100)
    assert decode(backend, backend.new_cache(1, 128), 64).shape[1] == 1


def test_an_engine_that_copies_the_cache(own_bundle, open_backend):
    edit_engine(own_bundle, "decoder.plan", aliases={})
    with pytest.raises(BackendError, match=r"copies the KV cache instead of writing present.0.key in place"):
        open_backend(own_bundle)


def test_the_engine_of_something_else(own_bundle, open_backend):
    vision = (own_bundle.path / "plans" / "local" / "vision.plan").read_bytes()
    rewrite(own_bundle, "decoder.plan", vision)
    with pytest.raises(BackendError, match="does not fit the bundle: its tensor inputs_embeds is missing, not FLOAT"):
        open_backend(own_bundle)


def test_the_plugin_is_registered_once_before_the_engines_are_loaded(tiny_bundle, tmp_path, open_backend):
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    folder = plans.write_plan(bundle, plugin="libkvcache.so 1")
    edit_engine(bundle, "decoder.plan", aliases={})  # a plugin's aliases are not TensorRT's
    backend, _ = open_backend(bundle)
    library = installed_libraries()[0]
    assert library.module.get_plugin_registry().loaded == [str(folder / "libkvcache.so")]
    again = TensorRTBackend(bundle, Plan.open(bundle, "local"), library, Cuda.open())
    assert again.description == backend.description
    with pytest.raises(BackendError, match=r'the plan needs the plugin ".*liblost.so", which is not there'):
        library.load_plugin("liblost.so 1", folder)


def test_a_plan_without_weights_takes_them_from_the_bundle(tiny_bundle, tmp_path, open_backend, reference):
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    folder = plans.write_plan(bundle, stripped=True)
    backend, _ = open_backend(bundle)
    found = [decode(side, cache, 9) for side, cache in both(backend, reference)]
    assert_same(*found)
    rewrite(bundle, "decoder.refit.onnx", (folder / "vision.refit.onnx").read_bytes())
    with pytest.raises(BackendError, match=r"lacks weights that the bundle does not give: "):
        open_backend(bundle)
    rewrite(bundle, "decoder.refit.onnx", b"no graph")
    with pytest.raises(BackendError, match=r'could not read the weights of "decoder.plan"'):
        open_backend(bundle)
    for name in ("vision.refit.onnx", "decoder.refit.onnx"):
        (folder / name).unlink()
    rewrite(bundle, "vision.plan", (folder / "vision.plan").read_bytes())
    with pytest.raises(BackendError, match="stripped, and not refitted"):
        open_backend(bundle)


def test_limits_are_the_plans(backend):
    assert (backend.limits.max_context, backend.limits.max_batch) == (plans.LIMITS.max_context, plans.LIMITS.max_batch)


def test_a_plan_is_verified_like_a_bundle(own_bundle, tiny_checkpoint, monkeypatch, capsys):
    plans.install(monkeypatch, Machine())
    shutil.rmtree(own_bundle.path / "plans")
    plans.write_plan(own_bundle, limits=dataclasses.replace(plans.LIMITS, max_context=1024))
    verify = ["verify", str(own_bundle.path), "--checkpoint", str(tiny_checkpoint)]
    assert main([*verify, "--backend", "tensorrt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("logits")} == {"tensorrt"}
    assert any(line.endswith("ok") for line in lines) and not any(line.endswith("FAILED") for line in lines)
    assert main([*verify, "--backend", "torch"]) == 2
    assert '"torch"' in capsys.readouterr().err
