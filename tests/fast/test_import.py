import subprocess
import sys
from pathlib import Path

import pytest

import qwenvl_edge
from support.paths import ROOT

PACKAGE = Path(qwenvl_edge.__file__).parent
MODULES = sorted(
    ".".join(("qwenvl_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# Refuses the named packages wherever they are imported from.
BLOCK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
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


def run(code, blocked):
    code = BLOCK.format(blocked=blocked) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_block_works():
    assert "No module named 'torch'" in run("import torch", {"torch"}).stderr


@pytest.mark.parametrize("module", MODULES)
def test_every_runtime_module_works_without_torch(module):
    if module == "qwenvl_edge.fleet.triton":
        pytest.skip("it is imported by Triton's Python backend; tests/fleet has a stand-in")
    if module.startswith("qwenvl_edge.fleet."):
        pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    on_server = module.startswith(("qwenvl_edge.server", "qwenvl_edge.fleet"))
    blocked = EXPORT_ONLY - SERVER if on_server else EXPORT_ONLY
    result = run(f"import {module}\nprint('fine')", blocked)
    assert (result.stdout, result.stderr) == ("fine\n", "")


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "transformers", "onnxruntime", "PIL", "numpy"}
    result = run("import qwenvl_edge, qwenvl_edge.cli; print('fine')", heavy)
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
    result = run(code, EXPORT_ONLY)
    assert (result.stdout, result.stderr) == ("fine\n", "")
