"""Which plans the TensorRT driver loads, with a plugin and without weights too, and why it refuses others."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.backends.tensorrt.library import installed_libraries
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import Builder, Plan, plan_targets, platform_name
from qwenvl_edge.errors import BackendError, BundleError
from qwenvl_edge.machine.cuda import Cuda
from support.decoding import assert_same, both, decode
from support.dialects import RUNNABLE
from support.standin import plans
from support.standin.machine import Machine

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")


def test_the_description(backend):
    assert backend.description == ('TensorRT 10.3.0.30 on Stand-in (sm_87), plan "local": vision fp32, decoder fp32')


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
        plans.rewrite(own_bundle, name, b"not read")
    with pytest.raises(BackendError, match=match):
        open_backend(own_bundle)


def test_a_damaged_plan_is_found_before_it_is_deserialised(own_bundle, open_backend):
    path = own_bundle.path / "plans" / "local" / "decoder.plan"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"truncated or altered; build it again with `qwenvl build"):
        open_backend(own_bundle)


def test_errors_carry_the_lines_of_tensorrt(own_bundle, open_backend):
    plans.rewrite(own_bundle, "decoder.plan", b"something else")
    with pytest.raises(BackendError, match=r"TensorRT 10.3.0.30 could not load the plan .*the header is not that of a"):
        open_backend(own_bundle)


def test_an_engine_that_copies_the_cache(own_bundle, open_backend):
    plans.edit_engine(own_bundle, "decoder.plan", aliases={})
    with pytest.raises(BackendError, match=r"copies the KV cache instead of writing present.0.key in place"):
        open_backend(own_bundle)


def test_a_profile_that_the_engine_lacks(own_bundle, open_backend):
    plans.edit_engine(own_bundle, "decoder.plan", profiles=[])
    backend, _ = open_backend(own_bundle)
    with pytest.raises(BackendError, match=r'could not choose profile 0 of "decoder.plan": .*profileIndex < 0'):
        decode(backend, backend.new_cache(1, 64), 1)


def test_kernels_of_tensorrt_rtx_are_compiled_once(own_bundle, monkeypatch):
    """In a file beside the plan; one of another GPU, or damaged, is replaced; one that cannot be written is none."""
    folder = own_bundle.path / "plans" / "local"
    plans.change_manifest(folder, builder=Builder("tensorrt_rtx", "1.7.1", platform_name()))

    def compiled(**options):
        machine = Machine(**options)
        plans.install(monkeypatch, machine, version="1.7.1", api="tensorrt_rtx")
        backend = TensorRTBackend(own_bundle, Plan.open(own_bundle, "local"), installed_libraries()[0], Cuda.open())
        backend.encode_pixels(np.zeros((1, 3, 56, 56), np.float32))
        cache = backend.new_cache(1, 64)
        for tokens in (5, 1, 1, 1):
            decode(backend, cache, tokens)
        return machine.counts["compilations"]

    assert compiled() == 3  # pictures, prompts, tokens
    kept = [own_bundle.path / "plans" / f"local.{name}.kernels" for name in ("decoder", "vision")]
    assert sorted(path for path in folder.parent.iterdir() if path != folder) == kept
    assert compiled() == 0
    assert compiled(name="Another") == 3
    kept[0].write_bytes(b"damaged")
    assert compiled(name="Another") == 2
    for path in kept:
        path.unlink()
        path.mkdir()
    assert compiled() == 3
    assert plan_targets(own_bundle.path) == ["local"]


def test_the_engine_of_something_else(own_bundle, open_backend):
    vision = (own_bundle.path / "plans" / "local" / "vision.plan").read_bytes()
    plans.rewrite(own_bundle, "decoder.plan", vision)
    with pytest.raises(BackendError, match="does not fit the bundle: its tensor inputs_embeds is missing, not FLOAT"):
        open_backend(own_bundle)


def test_the_plugin_is_registered_once_before_the_engines_are_loaded(tiny_bundle, tmp_path, open_backend):
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    folder = plans.write_plan(bundle, plugin="libkvcache.so 2")
    plans.edit_engine(bundle, "decoder.plan", aliases={})  # a plugin's aliases are not TensorRT's
    backend, _ = open_backend(bundle)
    library = installed_libraries()[0]
    assert library.module.get_plugin_registry().loaded == [str(folder / "libkvcache.so")]
    again = TensorRTBackend(bundle, Plan.open(bundle, "local"), library, Cuda.open())
    assert again.description == backend.description
    with pytest.raises(BackendError, match=r'the plan needs the plugin ".*liblost.so", which is not there'):
        library.load_plugin("liblost.so 1", folder)


def test_another_version_of_the_plugins_op(tiny_bundle, tmp_path, open_backend):
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    plans.write_plan(bundle, plugin="libnewer.so 3")
    with pytest.raises(BackendError, match=r'libnewer\.so" has no KVCacheAttention of version 3; compile this version'):
        open_backend(bundle)


def test_a_plan_without_weights_takes_them_from_the_bundle(tiny_bundle, tmp_path, open_backend, reference):
    shutil.copytree(tiny_bundle.path, tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    folder = plans.write_plan(bundle, stripped=True)
    backend, _ = open_backend(bundle)
    found = [decode(side, cache, 9) for side, cache in both(backend, reference)]
    assert_same(*found)
    plans.rewrite(bundle, "decoder.refit.onnx", (folder / "vision.refit.onnx").read_bytes())
    with pytest.raises(BackendError, match=r"lacks weights that the bundle does not give: "):
        open_backend(bundle)
    plans.rewrite(bundle, "decoder.refit.onnx", b"no graph")
    with pytest.raises(BackendError, match=r'could not read the weights of "decoder.plan"'):
        open_backend(bundle)
    for name in ("vision.refit.onnx", "decoder.refit.onnx"):
        (folder / name).unlink()
    plans.rewrite(bundle, "vision.plan", (folder / "vision.plan").read_bytes())
    with pytest.raises(BackendError, match="stripped, and not refitted"):
        open_backend(bundle)
