"""A Ray cluster of this machine as users start one, and pictures to ask it about."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from benchmarks.processes import end_users_of
from PIL import Image

from support.served import PICTURE, until

BIN = Path(sys.executable).parent
PATIENT = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
PROBES = ("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S")
PROBE_S = 5  # a router passes over an engine that does not tell its queue in time; without this in 0.1 s
TRIES = 4  # Ray waits a minute for its own proxy, which goes on starting; a busy machine needs longer
START_S = 240  # a busy machine takes long to start a dozen processes


def png(number):
    """A picture of its own for each number."""
    pixels = np.asarray(Image.open(PICTURE).convert("RGB")).copy()
    pixels[:8, :8] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def uri(picture):
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


class Cluster:
    """A Ray cluster of this machine only; its workers are known by their HOME, all of it by the files in its folder."""

    def __init__(self, folder):
        self.folder, self.home = Path(folder), f"{folder}/home"
        self.environment = {**os.environ, "HOME": self.home, "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment.pop("RAY_ADDRESS", None)
        # Else Ray ends its own proxy again and again where starting one takes longer than 15 seconds.
        self.environment |= dict.fromkeys(PATIENT, str(START_S)) | dict.fromkeys(PROBES, str(PROBE_S))
        self.log = (self.folder / "ray.log").open("wb")
        command = ["ray", "start", "--head", "--block", "--include-dashboard=false", "--num-cpus=4", "--port=0"]
        self.process = subprocess.Popen(
            [BIN / command[0], *command[1:], f"--temp-dir={folder}/ray", "--node-ip-address=127.0.0.1"],
            env=self.environment,
            stdout=self.log,
            stderr=self.log,
        )

    def run(self, port, **arguments):
        """`serve run` with a configuration file, as docs/fleets.md has it."""
        config = self.folder / "fleet.yml"
        application = {"name": "vlm", "route_prefix": "/", "import_path": "qwenvl_edge.fleet.ray_serve:app"}
        config.write_text(  # JSON is YAML
            json.dumps({"http_options": {"port": port}, "applications": [{**application, "args": arguments}]})
        )
        address = until(lambda: self.address, START_S)
        command = [BIN / "serve", "run", "--non-blocking", "--address", address, config]
        for _ in range(TRIES):
            run = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=START_S, check=False
            )
            if "GetTimeoutError" not in run.stderr:
                break
        assert run.returncode == 0, run.stderr

    @property
    def address(self):
        """Where the cluster listens, once it does."""
        found = self.folder / "ray" / "ray_current_cluster"
        return found.read_text().strip() if found.is_file() else None

    def replicas(self, name):
        """Process ids of the replicas of a deployment."""
        return {number for number, command in self.processes() if f"ServeReplica:vlm:{name}".encode() in command}

    def processes(self):
        """Process id and command of what the cluster runs; agents have overwritten their HOME with a title."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"HOME={self.home}\0".encode() in (process / "environ").read_bytes():
                    yield int(process.name), (process / "cmdline").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue

    def stop(self):
        """End all processes at once; Ray's own way takes half a minute."""
        end_users_of(self.folder)
        self.process.wait()
        self.log.close()
