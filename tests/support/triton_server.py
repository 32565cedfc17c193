"""The Triton Inference Server that `make triton-test` installs, on the model repository of the examples."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.patience import PATIENCE_S, until
from support.served import free_port, is_up

REPOSITORY = ROOT / "examples" / "triton" / "models"
ASK = ROOT / "examples" / "triton" / "ask.py"
_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
_ENVIRONMENT = ROOT / ".cache" / "triton"
PYTHON = _ENVIRONMENT / "bin" / "python"


def packages():
    """The folder of the packages that the server came with, or skip."""
    found = _ENVIRONMENT / "lib" / f"python{_VERSION}" / "site-packages"
    if not (found / "pytriton").is_dir():
        pytest.skip("there is no Triton Inference Server; `make triton-test` installs the one of nvidia-pytriton")
    return found


@contextlib.contextmanager
def triton_server(bundle, folder):
    """Run a server on the model repository with a bundle in it; yields its ports by protocol."""
    installed = packages()
    stub = installed / "pytriton" / "tritonserver" / "python_backend_stubs" / _VERSION
    ignored = shutil.ignore_patterns("python_backend_stubs")
    server = shutil.copytree(stub.parents[1], folder / "server", ignore=ignored)
    backend = server / "backends" / "python"
    shutil.copy(stub / "triton_python_backend_stub", backend)
    # The backend runs the system's Python, isolated, with its own folder on the path: what it needs is linked there.
    for package in (ROOT / "runtime" / "qwenvl_edge", *installed.iterdir()):
        if not (backend / package.name).exists():
            (backend / package.name).symlink_to(package)
    models = shutil.copytree(REPOSITORY, folder / "models")
    shutil.copytree(bundle, models / "qwenvl" / "1" / "bundle")
    ports = {name: free_port() for name in ("http", "grpc")}
    command = [server / "bin" / "tritonserver", f"--model-repository={models}", f"--backend-directory={backend.parent}"]
    command += ["--allow-metrics=false", "--exit-timeout-secs=5", *(f"--{k}-port={v}" for k, v in ports.items())]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(installed / "nvidia_pytriton.libs")}
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:

        def ready():
            assert process.poll() is None, log.read_text()[-3000:]
            return is_up(f"http://127.0.0.1:{ports['http']}/v2/health/ready")

        try:
            until(ready)
            yield ports
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
