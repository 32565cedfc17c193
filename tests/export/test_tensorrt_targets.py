"""What `qwenvl build` can build for, with which library, and the limits and profiles that it builds."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX comes for Linux on x86-64 only")

from qwenvl_edge.bundle.engines import PlanLimits, Profile
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.tensorrt.profiles import choose_limits, decoder_profiles
from qwenvl_edge_export.tensorrt.targets import NAMES, Target, check_precision, choose
from support.tensorrt import installed_rtx, release


@pytest.fixture(scope="module")
def rtx():
    return installed_rtx()


@pytest.mark.parametrize(("name", "capability"), [("sm_86", 86), ("SM_120", 120), ("t4", 75), ("rtx40", 89)])
def test_a_target_without_its_gpu(rtx, name, capability):
    assert choose(name, [rtx], None) == Target(name.lower(), capability, rtx)


def test_tensorrt_is_taken_on_its_own_gpu(rtx):
    installed = [release(), rtx]
    assert choose("local", installed, 87) == Target("local", 87, installed[0])
    assert choose("orin", installed, 87).library is installed[0]
    assert choose("sm_89", installed, 87).library is rtx
    assert choose("local", [rtx], 86).library is rtx


@pytest.mark.parametrize(
    ("name", "gpu", "message"),
    [
        ("local", None, "there is none that a driver shows; name the GPU instead"),
        (
            "orin",
            None,
            r"sm_87\): TensorRT 10.14.1.48 builds for the GPU of its own machine only.*TensorRT-RTX .* sm_75",
        ),
        ("h100", 87, r"\(sm_90\): TensorRT 10.14.1.48 builds for sm_87; .*--target local"),
        ("sm_61", None, "is not one of local, sm_75, .* orin"),
    ],
)
def test_what_nothing_builds_for(rtx, name, gpu, message):
    with pytest.raises(BackendError, match=message):
        choose(name, [release(), rtx], gpu)


def test_an_old_release():
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.2 is too old; 10\.3 .* or newer is needed"):
        choose("local", [release("8.6.2")], 87)


def test_no_release():
    with pytest.raises(BackendError, match=r"no TensorRT is installed; install .*qwenvl-edge\[tensorrt-rtx\]"):
        choose("sm_86", [], None)


def test_every_name_has_a_capability():
    assert set(NAMES.values()) <= {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_what_a_processor_lacks(rtx, precision):
    check_precision(Target("sm_80", 80, rtx), ["fp16", precision])
    with pytest.raises(BackendError, match=f"sm_75 has no {precision}"):
        check_precision(Target("sm_75", 75, rtx), ["fp16", precision])


def test_limits(tiny_bundle):
    limits = choose_limits(tiny_bundle)
    trained = tiny_bundle.manifest.family.config["seq_length"]
    assert (limits.max_context, limits.max_batch, limits.max_images) == (trained, 1, 1)
    assert choose_limits(tiny_bundle, max_context=3).chunk == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_context": 10**6}, "--max-context is 1,000,000; the model takes 1 to"),
        ({"max_context": 0}, "--max-context is 0"),
        ({"max_batch": 0}, "--max-batch is 0; it must be at least 1"),
        ({"max_images": 0}, "--max-images is 0"),
        ({"chunk": 0}, "--chunk is 0"),
        ({"max_context": 8, "chunk": 9}, "--chunk is 9, more than the 8 tokens of --max-context"),
    ],
)
def test_limits_that_are_refused(tiny_bundle, options, message):
    with pytest.raises(BackendError, match=message):
        choose_limits(tiny_bundle, **options)


def test_profiles_follow_the_limits():
    assert decoder_profiles(PlanLimits(2048, 1, 1, 256)) == {
        "decode": Profile(0, (1, 1, 1), (1, 1, 1)),
        "prefill": Profile(1, (1, 256, 256), (1, 1, 16)),
        "verify": Profile(2, (1, 8, 16), (1, 8, 16)),
    }
    assert decoder_profiles(PlanLimits(8, 1, 1, 1))["verify"] == Profile(2, (1, 1, 1), (1, 1, 1))
