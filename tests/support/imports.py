"""Imports of modules in processes that lack some packages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

# Refuses the named packages wherever they are imported from.
_BLOCK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""

# Every module in a child of its own, made from a process that has loaded the large packages already: a fiftieth of
# the time of a new interpreter each. A child writes nothing where its import went well.
_EACH = """
import contextlib, importlib, json, os, tempfile, traceback

for name in {shared!r}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
found = {{}}
for module in {modules!r}:
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            try:
                importlib.import_module(module)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        found[module] = said.read().decode() + (f"status {{status}}" if status else "")
print(json.dumps(found))
"""


def run_without(blocked: Iterable[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run the code in a new interpreter in which the blocked packages cannot be imported."""
    code = _BLOCK.format(blocked=set(blocked)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def import_each(modules: list[str], blocked: Iterable[str], shared: Iterable[str]) -> dict[str, str]:
    """Import every module alone, without the blocked packages; return what each said, which is nothing if it is fine.

    Packages of `shared` are loaded beforehand where they are installed; they must not be the project's own.
    """
    done = run_without(blocked, _EACH.format(modules=modules, shared=list(shared)))
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found
