from pathlib import Path

import pytest

import qwenvl_edge
from support.imports import import_each, run_without
from support.paths import ROOT

PACKAGE = Path(qwenvl_edge.__file__).parent
MODULES = sorted(
    ".".join(("qwenvl_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

EXPORT_ONLY = {
    "torch",
    "transformers",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "safetensors",
    "typing_extensions",
}


SERVER = {"typing_extensions"}  # FastAPI's models need it, and the extra "server" brings it


LIGHT = ["numpy", "PIL.Image", "onnxruntime", "llguidance"]
WEB = ["fastapi", "pydantic", "prometheus_client", "uvicorn", "ray.serve"]


@pytest.fixture(scope="module")
def imported():
    """The modules of the runtime and what the import of each said in a process without the exporter's packages."""
    groups = {True: [], False: []}
    for module in MODULES:
        if module != "qwenvl_edge.fleet.triton":
            groups[module.startswith(("qwenvl_edge.server", "qwenvl_edge.fleet"))].append(module)
    found = {}
    for on_server, modules in groups.items():
        blocked = EXPORT_ONLY - SERVER if on_server else EXPORT_ONLY
        found |= import_each(modules, blocked, [*LIGHT, *WEB] if on_server else LIGHT)
    return found


def test_the_block_works():
    assert "No module named 'torch'" in run_without({"torch"}, "import torch").stderr
    found = import_each(["torch.nn", "json"], {"torch"}, ["numpy"])
    assert "No module named 'torch" in found["torch.nn"] and found["json"] == ""


@pytest.mark.parametrize("module", MODULES)
def test_every_runtime_module_works_without_torch(imported, module):
    if module == "qwenvl_edge.fleet.triton":
        pytest.skip("it is imported by Triton's Python backend; tests/fleet has a stand-in")
    if module.startswith("qwenvl_edge.fleet."):
        pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    assert imported[module] == ""


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "transformers", "onnxruntime", "PIL", "numpy"}
    result = run_without(heavy, "import qwenvl_edge, qwenvl_edge.cli; print('fine')")
    assert (result.stdout, result.stderr) == ("fine\n", "")


def test_every_public_name_is_there():
    for name in qwenvl_edge.__all__:
        assert getattr(qwenvl_edge, name).__name__ == name
    assert set(qwenvl_edge.__all__) == set(qwenvl_edge._HOMES)
    assert set(qwenvl_edge.__all__) <= set(dir(qwenvl_edge))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = qwenvl_edge.Nothing


def test_an_answer_needs_no_torch(tmp_path):
    """A whole answer, on the scripted backend, in a process that cannot import torch."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import pathlib
from support.scripted import engine
qwen, _ = engine(pathlib.Path({str(tmp_path)!r}), "fine<|im_end|>")
print(qwen.chat("hi").text)
"""
    result = run_without(EXPORT_ONLY, code)
    assert (result.stdout, result.stderr) == ("fine\n", "")
