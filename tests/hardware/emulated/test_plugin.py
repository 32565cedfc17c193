"""The TensorRT plugin without a GPU: it compiles, its interfaces hold, and its kernels, run thread by thread by a CPU,
compute what the op is defined to be."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import kv_cache_attention_onnx
from support.kv_cache_attention import Arguments, Case, Library, check, random_call
from support.paths import ROOT
from tools import plugin_code

SOURCE = ROOT / "cpp_ext" / "tensorrt_plugin"
HEADERS = ROOT / ".cache" / "tensorrt"
BUILD = ROOT / "build" / "plugin-tests"

# From sm_80 on, what runs machine code of its own (cmake/architectures.cmake); older compilers know fewer. All of them
# are for the largest head, which takes the most registers; the others have those of SAMPLED, or it would take minutes.
ARCHITECTURES = ["80", "87", "89", "90", "100", "110", "120"]
SAMPLED = ["87", "90"]
LARGEST = 128
BOTH = [torch.float16, torch.bfloat16]


def need(condition: object, what: str) -> None:
    if not condition:
        pytest.skip(f"the plugin is not compiled here: {what}")


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def configured() -> Path:
    """The build folder; what is compiled already stays."""
    need(shutil.which("nvcc"), "there is no nvcc")
    need(shutil.which("cmake"), "there is no cmake")
    need((HEADERS / "NvInfer.h").exists(), "run tools/fetch_tensorrt_headers.py .cache/tensorrt")
    on = ("QWENVL_PLUGIN_TESTS", "QWENVL_PLUGIN_SAMPLE", "CMAKE_EXPORT_COMPILE_COMMANDS")
    options = {"TENSORRT_INCLUDE_DIR": HEADERS, **dict.fromkeys(on, "ON")}
    unset = ("-U", "CMAKE_CUDA_ARCHITECTURES")  # which an earlier configuration may have left
    run("cmake", "-S", SOURCE, "-B", BUILD, *unset, *(f"-D{name}={value}" for name, value in options.items()))
    return BUILD


@pytest.fixture(scope="session")
def plugin(configured) -> Path:
    run("cmake", "--build", configured, "-j", "2", "--target", "qwenvl_tensorrt_plugin")
    return configured / "libqwenvl_tensorrt_plugin.so"


@pytest.fixture(scope="session")
def emulated(configured) -> Library:
    run("cmake", "--build", configured, "-j", "2", "--target", "qwenvl_attention_cpu")
    return Library(configured / "tests" / "libqwenvl_attention_cpu.so")


@pytest.fixture(scope="session")
def reference(emulated):
    function = emulated.library.qwenvl_reference_attention
    function.argtypes, function.restype = [ctypes.POINTER(Arguments)], None
    return lambda call: emulated(call, lambda arguments, stream: function(arguments))


@pytest.fixture(scope="session")
def known() -> list[str]:
    """The names of ARCHITECTURES that this compiler knows."""
    return [f"sm_{a}" for a in ARCHITECTURES if f"sm_{a}\n" in run("nvcc", "--list-gpu-code")]


def test_every_architecture_is_compiled_with_warnings_as_errors(plugin, known):
    commands = json.loads((plugin.parent / "compile_commands.json").read_text())
    kernels = [each["command"] for each in commands if each["file"].endswith("attention.cu")]
    assert len(kernels) == 6
    for command in kernels:
        made = re.findall(r"(?:sm|compute)_\d+(?=[\],])", "".join(re.findall(r"code=\[.*?\]", command)))
        everywhere = f"QWENVL_HEAD_DIM={LARGEST} " in command
        assert set(made) == {"compute_90", *(known if everywhere else (f"sm_{a}" for a in SAMPLED))}
        assert {"-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-Xcompiler=-Werror"} <= set(command.split())


def test_a_whole_build_has_every_architecture_for_every_head(configured, known, tmp_path):
    """What `make plugin` compiles; it is configured only."""
    exported = "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    run("cmake", "-S", SOURCE, "-B", tmp_path, f"-DTENSORRT_INCLUDE_DIR={HEADERS}", exported)
    commands = (tmp_path / "compile_commands.json").read_text()
    named = re.findall(r"code=\[(sm_80.*?)\].*?code=\[(sm_90.*?)\]", commands)
    assert len(named) == 6
    assert {",".join(parts) for parts in named} == {",".join([*known, "compute_90"])}


def test_interfaces(configured):
    run("cmake", "--build", configured, "-j", "2", "--target", "plugin_test", "gpu_test")
    run("ctest", "--test-dir", configured, "--output-on-failure", "--no-tests=error")


@pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf")
def test_the_library_stands_alone(plugin):
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "--dynamic", plugin))
    assert needed and not [name for name in needed if "nvinfer" in name or "cuda" in name]
    exported = set(re.findall(r"GLOBAL DEFAULT +\d+ (\w+)$", run("readelf", "--dyn-syms", "--wide", plugin), re.M))
    assert {"getCreators", "setLoggerFinder", "qwenvl_kv_cache_attention"} <= exported
    assert not [name for name in exported if not name.startswith(("qwenvl_", "getCreators", "setLoggerFinder"))]


def test_machine_code_is_within_its_limits(plugin, known):
    """Registers and spills; and that a decode kernel has all its loads on their way before it waits for the first."""
    for name in ("cuobjdump", "nvdisasm"):
        need(plugin_code.tool(name), f"there is no {name}; pip install nvidia-cuda-{name}")
    # PTX for 9.0 alone: a GPU that needs older PTX would run code that does not wait for the kernel before.
    assert plugin_code.architectures(plugin) == (known, ["sm_90"])
    sampled = [f"sm_{a}" for a in SAMPLED]
    found = plugin_code.kernels(plugin, disassembled=tuple(sampled))
    heads = {kernel.head_dim for kernel in found}
    expected = {(kind, LARGEST, a) for kind in plugin_code.LIMITS for a in known}
    expected |= {(kind, head, a) for kind in plugin_code.LIMITS for head in heads for a in sampled}
    assert len(heads) == 6 and {(kernel.kind, kernel.head_dim, kernel.architecture) for kernel in found} == expected
    assert not [(kernel, why) for kernel in found if (why := plugin_code.excess(kernel))]
    decoding = [kernel for kernel in found if kernel.loads]
    assert len(decoding) == 2 * 6 * 2 * 2 * 3  # architectures, head sizes, floats, caches, rows


LOAD = """
import sys
import tensorrt_rtx_bindings as trt
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
creator = registry.get_creator("KVCacheAttention", "2", "")
fields = [trt.PluginField(name, __import__("numpy").array([value], dtype="int32"), trt.PluginFieldType.INT32)
          for name, value in (("num_heads", 4), ("num_kv_heads", 2), ("head_dim", 64), ("int8_cache", 1))]
plugin = creator.create_plugin("attention", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
print(plugin.get_capability_interface(trt.PluginCapabilityType.BUILD).num_outputs)
"""


def test_a_registry_loads_it(plugin):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError)
    assert run(sys.executable, "-c", LOAD, plugin).split()[-1] == "5"


DEFINED = [
    Case(1, (0, 9)),
    Case(3, (5, 130), heads=4, dtype=torch.bfloat16, head_dim=80),
    Case(7, (0, 200), head_dim=104),
    Case(1, (77,), int8=True, head_dim=104),
    Case(5, (3, 60), heads=4, int8=True, head_dim=128),
    Case(2, (31, 0, 64), heads=8, kv_heads=1, dtype=torch.bfloat16, head_dim=96),
]


@pytest.mark.parametrize("case", DEFINED, ids=str)
def test_the_reference_agrees_with_the_graph_of_standard_ops(reference, case):
    call = random_call(case)
    out, caches = reference(call)
    expected, expected_caches = kv_cache_attention_onnx.attend(call)
    # ONNX Runtime may fuse a product with a sum: the last digit of what is rounded can differ.
    digit = torch.finfo(case.dtype).eps
    torch.testing.assert_close(out.float(), expected, rtol=digit, atol=digit / 10)
    for name, cache in caches.items():
        limits = {"rtol": 0, "atol": 1} if cache.dtype == torch.int8 else {"rtol": digit, "atol": 0}
        for row, length in enumerate(case.lengths):
            used, wanted = (x[row, :, : length + case.tokens].float() for x in (cache, expected_caches[name]))
            torch.testing.assert_close(used, wanted, **limits)


INT8_WRITES = [
    Case(1, (77,), int8=True, heads=2, head_dim=104),
    Case(6, (0, 60), int8=True, heads=4, kv_heads=4, head_dim=64),
]


@pytest.mark.parametrize("case", INT8_WRITES, ids=str)
def test_the_standard_decoder_attends_like_the_reference(reference, case):
    """The exporter's attention over an int8 cache, in fp16, against the plugin's plain C++ on the same numbers."""
    exported_attention = pytest.importorskip("support.exported_attention", reason="the exporter is not installed")
    call = random_call(case)
    call.query_scale.fill_(1.0)
    call.qkv[0, 0, -case.head_dim :] = 0  # a vector of zeros has a scale of zero
    out, caches = reference(call)
    found, found_caches = exported_attention.attend(call)
    torch.testing.assert_close(found.float(), out.float(), rtol=0, atol=2e-3 * float(out.float().abs().max()))
    for row, length in enumerate(case.lengths):
        new = slice(length, length + case.tokens)
        for name, cache in caches.items():
            ours, theirs = (x[row, :, : length + case.tokens] for x in (found_caches[name], cache))
            torch.testing.assert_close(ours[:, :length], theirs[:, :length], rtol=0, atol=0)
            if name.startswith("value"):  # nothing is computed before it is quantized
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            elif name == "key":
                assert (ours[:, new].int() - theirs[:, new].int()).abs().max() <= 1
                assert (ours[:, new] != theirs[:, new]).float().mean() < 5e-3
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


EMULATED = [
    *(
        Case(1, (0, 130), head_dim=dim, dtype=BOTH[i % 2], int8=i % 2 == 1)
        for i, dim in enumerate((64, 72, 80, 96, 104, 128))
    ),
    *(
        Case(3, (100,), head_dim=dim, dtype=BOTH[i % 2], int8=i % 2 == 0)
        for i, dim in enumerate((64, 72, 80, 96, 104, 128))
    ),
    *(
        Case(17, (0, 60), head_dim=dim, dtype=BOTH[i % 2], int8=i % 2 == 1)
        for i, dim in enumerate((64, 72, 80, 96, 104, 128))
    ),
    Case(2, (7, 250), heads=4, kv_heads=2),
    Case(2, (70,), heads=8, kv_heads=1, dtype=torch.bfloat16),
    Case(1, (0, 65), heads=8, kv_heads=2, head_dim=96, int8=True),
    # As Qwen3-VL-2B, Qwen2.5-VL-7B and Qwen2.5-VL-3B group their heads.
    *(
        Case(1, (5, 190), heads=2 * group, kv_heads=2, head_dim=128, dtype=BOTH[i % 2], int8=int8)
        for i, group in enumerate((2, 7, 8))
        for int8 in (False, True)
    ),
    Case(
        3, (90,), heads=2, kv_heads=2, head_dim=128, capacity=250, int8=True
    ),  # scales that cannot be read four at once
    Case(6, (33, 2), heads=8, kv_heads=2, head_dim=128, dtype=torch.bfloat16, int8=True),
    Case(70, (20,), heads=1, kv_heads=1, head_dim=104, int8=True),
    Case(70, (0, 31), heads=1, kv_heads=1, head_dim=80),
]


@pytest.mark.parametrize("case", EMULATED, ids=str)
def test_kernels_compute_the_definition(emulated, case):
    call = random_call(case)
    check(call, *emulated(call))


# Query rows of a block, pieces of the keys: every kernel, in one piece and in more than there are tiles.
PLANS = [
    (Case(1, (150,), int8=True), 1, (1, 2, 5, 8)),
    (Case(1, (33, 150), heads=4, kv_heads=2, head_dim=128), 2, (1, 3, 6)),
    (Case(2, (150,), head_dim=72, int8=True), 2, (1, 6)),
    (Case(4, (0, 150)), 4, (1, 3)),
    (Case(4, (0, 150), dtype=torch.bfloat16), 64, (1, 3)),
    (Case(9, (90,), head_dim=104, int8=True), 64, (1, 2)),
    (Case(150, (40,), heads=1, kv_heads=1, head_dim=64), 128, (1,)),
    (Case(60, (90,), heads=2, kv_heads=1, head_dim=128, dtype=torch.bfloat16), 128, (1,)),
]


def planned(emulated, rows, splits, *, count=True):
    """Runs a plan of the caller's; without counters the pieces are combined by a kernel of its own."""
    function = emulated.library.qwenvl_kv_cache_attention_planned
    function.argtypes = [ctypes.POINTER(Arguments), ctypes.c_int, ctypes.c_int, ctypes.c_void_p]

    def run(arguments, stream):
        if not count:
            arguments._obj.counters = None
        return function(arguments, rows, splits, stream)

    return run


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize(("case", "rows", "splits"), PLANS, ids=str)
def test_every_plan_computes_the_same(emulated, case, rows, splits, descending):
    call = random_call(case, seed=1)
    emulated.library.qwenvl_emulate_descending(descending)
    try:
        for split in splits:
            out, caches = emulated(call, planned(emulated, rows, split))
            check(call, out, caches)
            again, _ = emulated(call, planned(emulated, rows, split, count=False))
            torch.testing.assert_close(again, out, rtol=0, atol=0)
    finally:
        emulated.library.qwenvl_emulate_descending(False)


def test_a_decoded_token_is_one_kernel(emulated):
    """Writing the cache, attention and the combination of pieces; a prompt takes a kernel more."""
    launches = emulated.library.qwenvl_emulated_launches
    for case, expected in ((Case(1, (200,)), 1), (Case(4, (200,), int8=True), 1), (Case(300, (0,), capacity=512), 2)):
        launches()
        emulated(random_call(case))
        assert launches() == expected


def test_tiles_in_shared_memory_are_read_without_bank_conflicts(emulated):
    conflicts = emulated.library.qwenvl_emulated_conflicts
    conflicts.restype = ctypes.c_long
    conflicts()
    for dim in (64, 72, 80, 96, 104, 128):
        for tokens, plan in ((20, (64, 1)), (70, (128, 1))):
            call = random_call(Case(tokens, (30,), heads=1, kv_heads=1, head_dim=dim))
            emulated(call, planned(emulated, *plan))
        emulated(random_call(Case(20, (30,), heads=1, kv_heads=1, head_dim=dim, int8=True)))
        assert conflicts() == 0, dim


def test_padding_and_full_caches(emulated):
    call = random_call(Case(9, (0, 80, 247), capacity=256), padded={0: 2, 1: 5})
    check(call, *emulated(call))
    call = random_call(Case(4, (254,), capacity=256), padded={0: 2})
    check(call, *emulated(call))


@pytest.mark.parametrize("write", [-(2**40), -3, 256, 2**40])
def test_indices_outside_the_cache_touch_nothing_else(emulated, write):
    call = random_call(Case(2, (0,), capacity=256))
    call.write_indices[:] = write
    for name in ("key", "value"):
        call.past[name].fill_(1.0)
    out, caches = emulated(call)
    assert all((caches[name] == 1.0).all() for name in ("key", "value"))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"), [("head_dim", 88), ("kv_heads", 3), ("tokens", 0), ("batch", 2**30), ("capacity", 2**31 - 1)]
)
def test_sizes_that_no_kernel_knows_are_refused(emulated, name, value):
    call = random_call(Case(1, (0,)))
    arguments, _kept = emulated.arguments(call, call.past)
    setattr(arguments, name, value)
    assert emulated.attend(ctypes.byref(arguments), None) != 0


def test_impossible_plans_are_refused(emulated):
    call = random_call(Case(5, (0,), int8=True))
    arguments, _kept = emulated.arguments(call, call.past)
    for rows, splits in ((4, 1), (3, 1), (128, 1), (64, 0), (64, 10**6)):
        assert planned(emulated, rows, splits)(ctypes.byref(arguments), None) != 0
