"""qwenvl build: what it refuses and says, and that it leaves nothing half-written."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX comes for Linux on x86-64 only")

from qwenvl_edge import cli
from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import REFIT_GRAPHS, TENSORRT, Plan, PlanLimits
from qwenvl_edge.errors import BackendError, BundleError
from qwenvl_edge_export.tensorrt import build as build_module
from qwenvl_edge_export.tensorrt import memory
from qwenvl_edge_export.tensorrt.build import build, write_engine
from qwenvl_edge_export.tensorrt.network import Network
from qwenvl_edge_export.tensorrt.progress import STEPS, Phases
from qwenvl_edge_export.tensorrt.targets import Target, local_gpu
from support.bundles import copy_of
from support.tensorrt import installed_rtx, release

LIMITS = PlanLimits(max_context=64, max_batch=2, max_images=2, chunk=16)


@pytest.fixture(scope="module")
def rtx():
    return installed_rtx()


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle", ignore=shutil.ignore_patterns("plans"))
    return Bundle.open(tmp_path / "bundle")


def test_nested_phases_fill_the_steps_of_the_outer_one():
    phases = Phases()
    phases.start("build", None, 4)
    assert phases.step("build", 0) == STEPS // 4
    phases.start("time", "build", 2)
    assert phases.step("time", 0) == STEPS * 3 // 8
    phases.start("unheard of", "nothing", 1)
    assert phases.step("time", 1) == STEPS // 2
    phases.finish("time")
    assert phases.step("build", 1) == STEPS // 2
    assert phases.step("build", 3) == STEPS
    assert phases.step("build", 2) == STEPS  # never back


def test_too_little_memory(bundle, rtx, monkeypatch):
    target = Target("sm_86", 86, rtx)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(memory, "swap_bytes", lambda: 20_000_000)
    with pytest.raises(BackendError, match=r"takes about 0\.\d\d GB of memory .* 0\.01 GB are free, a quarter of the "):
        memory.check_resources(bundle, target, bundle.path)
    monkeypatch.setattr(memory, "swap_bytes", lambda: 10**10)
    memory.check_resources(bundle, target, bundle.path)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)  # where the system does not tell
    memory.check_resources(bundle, target, bundle.path)


def test_the_estimate_follows_the_weights(bundle, rtx):
    target = Target("sm_86", 86, rtx)
    largest = max(bundle.manifest.files[name].size for name in ("vision.data", "decoder.data"))
    assert memory.build_bytes(bundle, target) - (300 << 20) == pytest.approx(1.5 * largest, rel=0.1)  # fp32
    needed = [memory.build_bytes(bundle, Target("local", 87, release(version))) for version in ("10.13.0", "10.3.0")]
    assert memory.build_bytes(bundle, target) < needed[0] < needed[1]


def test_too_little_disk(bundle, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BackendError, match=r"takes about [\d.]+ MB of disk, but .*bundle.* has 0\.001 MB free"):
        build(bundle, "sm_86", LIMITS)
    assert not (bundle.path / "plans").exists()


def test_an_int8_cache_is_refused(bundle):
    precision = dataclasses.replace(bundle.manifest.precision, kv_cache="int8")
    int8 = Bundle(bundle.path, dataclasses.replace(bundle.manifest, precision=precision))
    with pytest.raises(
        BackendError, match=r"cache is int8, but the cache layers of TensorRT-RTX .* --kv-cache float, or"
    ):
        build(int8, "sm_86", LIMITS)
    assert not (bundle.path / "plans").exists()


CACHE_UPDATE = """
<ir_version: 10, opset_import: ["": 24]>
update ({type}[B,2,64,64] past, {type}[B,2,T,64] rows, int64[B] write_indices) => ({type}[B,2,64,64] present)
{{ present = TensorScatter <axis = 2> (past, rows, write_indices) }}
"""


def test_tensorrts_own_cache_layer_takes_floats_only(rtx):
    """Why an int8 cache is refused; once this fails, it need not be."""
    models = {name: onnx.parser.parse_model(CACHE_UPDATE.format(type=name)) for name in ("float16", "int8")}
    networks = {name: model.SerializeToString() for name, model in models.items()}
    assert Network(rtx, networks["float16"], Path("model.onnx")).native_layers()["KV_CACHE_UPDATE"] == 1
    with pytest.raises(BackendError, match="cache has type Int8 but must have type Float, Half, or BFloat16"):
        Network(rtx, networks["int8"], Path("model.onnx"))


def test_a_failed_build_leaves_what_was_there(bundle, monkeypatch):
    old = bundle.path / "plans" / "sm_86"
    old.mkdir(parents=True)
    (old / "plan.json").write_text("old")
    with pytest.raises(BundleError, match="exists already; replace it with --force"):
        build(bundle, "sm_86", LIMITS)
    monkeypatch.setattr(build_module, "write_engine", lambda *_: False)
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* could not build vision.plan for sm_86: "):
        build(bundle, "sm_86", LIMITS, force=True)
    assert [path.relative_to(old.parent) for path in sorted(old.parent.rglob("*"))] == [
        Path("sm_86"),
        Path("sm_86/plan.json"),
    ]


def test_plans_that_cannot_be_written(bundle):
    (bundle.path / "plans").write_text("in the way")
    with pytest.raises(BundleError, match=r"cannot write .*plans/sm_86.*is not a folder; nothing was left behind"):
        build(bundle, "sm_86", LIMITS)


def test_ctrl_c_ends_the_build(bundle):
    seen = []

    def press(done, total, what):
        seen.append(done)
        if len(seen) == 20:
            signal.raise_signal(signal.SIGINT)

    # A process that a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(bundle, "sm_86", LIMITS, progress=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(seen) < STEPS  # the decoder was not begun
    assert list((bundle.path / "plans").iterdir()) == []


def square(op_type):
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in "xy")
    node = onnx.helper.make_node(op_type, ["x"], ["y"], name="the_node")
    graph = onnx.helper.make_graph([node], "graph", [x], [y])
    opset = onnx.helper.make_opsetid("", 22)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def test_a_graph_that_tensorrt_refuses(rtx):
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* does not take model.onnx: Det the_node: "):
        Network(rtx, square("Det"), Path("model.onnx"))


def test_a_decoder_without_native_layers_is_refused(rtx):
    with pytest.raises(BackendError, match=r"KV_CACHE_UPDATE 0 instead of 4, .*TensorRT 10\.15 or newer"):
        Network(rtx, square("Abs"), Path("model.onnx")).check_native(2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(rtx):
    network = Network(rtx, square("Abs"), Path("model.onnx"))
    with pytest.raises(OSError) as raised:
        write_engine(network, network.builder.create_builder_config(), Path("/dev/full"))
    assert raised.value.errno == errno.ENOSPC


class OlderModule:
    """TensorRT-RTX with the face of TensorRT: engines come in one piece, and for its own GPU only."""

    __version__ = "10.15.1.29"

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        if name == "ComputeCapability":
            raise AttributeError(name)
        return getattr(self._module, name)

    def Builder(self, log):  # noqa: N802
        builder = self._module.Builder(log)
        names = ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network")
        return SimpleNamespace(**{name: getattr(builder, name) for name in names})


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_tensorrts_own_way(rtx, small_checkpoint, tmp_path, monkeypatch, capsys):
    """What is done otherwise with TensorRT: its own GPU, a timing cache, the plan in memory; run by TensorRT-RTX."""
    from qwenvl_edge_export.export import export
    from qwenvl_edge_export.options import ExportPrecision

    fp16 = ExportPrecision.choose("fp16", target="gpu")
    bundle = export(small_checkpoint(), tmp_path / "bundle", precision=fp16, check=False)
    library = Library(TENSORRT, OlderModule(rtx.module), rtx.log)
    monkeypatch.setattr(build_module, "installed_libraries", lambda: [library])
    monkeypatch.setattr(build_module, "local_gpu", lambda: 86)
    for more in ([], ["--force"], ["--force"]):
        assert cli.main(["build", str(bundle.path), "--max-context", "32", *more]) == 0
        plan = Plan.open(bundle, "local")
        assert (plan.manifest.builder.api, plan.manifest.compute_capabilities) == (TENSORRT, (86,))
        timing = bundle.path / "plans" / "local.timing"
        assert timing.stat().st_size > 0 and timing.read_bytes() != b"damaged"
        timing.write_bytes(b"damaged" if more else timing.read_bytes())
    assert sorted(path.name for path in (bundle.path / "plans").iterdir()) == ["local", "local.timing"]
    assert capsys.readouterr().out.count("is written: vision.plan") == 3


def test_plans_without_weights(rtx, bundle, monkeypatch):
    """The builder is told to strip, and the graphs for refitting find their weights in the bundle."""
    flags = []

    def engine(network, config, path):
        asked = rtx.module.BuilderFlag.STRIP_PLAN, rtx.module.BuilderFlag.REFIT_IDENTICAL
        flags.append(all(config.get_flag(flag) for flag in asked))
        path.write_bytes(b"an engine")
        return True

    monkeypatch.setattr(build_module, "write_engine", engine)
    options = ["build", str(bundle.path), "--target", "sm_86", "--max-context", "32", "--strip-weights"]
    assert cli.main(options) == 0
    plan = Plan.open(bundle, "sm_86")
    assert plan.is_stripped and flags == [True, True]
    for name in REFIT_GRAPHS.values():
        graph = (plan.path / name).read_bytes()
        assert len(graph) < 100_000
        assert Network(rtx, graph, bundle.path / name).network.num_layers > 10
    raw = json.loads((plan.path / "plan.json").read_text())
    del raw["files"]["vision.refit.onnx"]
    (plan.path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="must list"):
        Plan.open(bundle, "sm_86")


def test_unsigned_weights_cannot_be_refitted(tiny_exports, tmp_path):
    int4 = copy_of(tiny_exports("int4", target="gpu"), tmp_path / "bundle")
    with pytest.raises(BackendError, match="but int4 ones are unsigned there"):
        build(int4, "sm_86", LIMITS, strip=True)


@pytest.mark.skipif(local_gpu() is not None, reason="there is a GPU, which TensorRT-RTX needs to strip weights")
def test_tensorrt_rtx_says_itself_that_it_strips_on_gpus_only(bundle):
    with pytest.raises(BackendError, match=r"could not build vision\.plan for sm_86: .*CUDA"):
        build(bundle, "sm_86", LIMITS, strip=True)
    assert not list((bundle.path / "plans").glob("sm_86*"))


def test_building_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import qwenvl_edge_export.tensorrt.build; print('fine')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout == "fine\n"
