"""A fleet in motion: engines follow the load over two nodes of this machine, and a node dies while it answers.

    python benchmarks/fleet.py out/nano [--cameras 4] [--seconds 20] [--json FILE]      # needs the extra `ray`

Two nodes of Ray (ray.cluster_utils), each with room for one engine. Cameras ask about one picture after another, each
under a session of its own; two clients ask without a session. Then, in turns: a second engine starts, because of the
load; both answer, without a pause between requests; the second node is killed while it has requests; a third one joins;
nobody asks any more. The last line has the seconds until a second engine answered, after the load began and after a
node joined; the share of each camera's requests that one engine answered while there were two; requests that were lost
or wrong; those that were under way when the node died, and how many of them had been asked of its engine; and `broken`,
the promises that did not hold. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import itertools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from common import arguments, conditions, finish, needed_bundle
from fleet_load import MODEL, PAUSE_S, QUESTION, Load, pictures, shares
from processes import end_users_of

from qwenvl_edge import QwenVLEngine

PATIENCE_S = 600.0  # a busy machine takes long to start an engine
# The front tells its load late on a busy machine: an engine must not end because of that.
SOON = {"upscale_delay_s": 1.0, "downscale_delay_s": 30.0, "look_back_period_s": 10.0, "metrics_interval_s": 0.5}
ROWS = 8
ENOUGH = 3  # answers of each camera, to tell of its share
STORE_BYTES = 100 << 20
APPLICATION = "vlm"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something and return it; end the program with a sentence if it does not come."""
    ends = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > ends:
            raise SystemExit(f"{what} within {PATIENCE_S:.0f} seconds.")
        time.sleep(0.05)
    return found


class Fleet:
    """A cluster of nodes on this machine with the application on it, for the `with` block."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._folder = tempfile.mkdtemp(prefix="fleet")  # short: sockets lie in it
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def __enter__(self) -> Fleet:
        with contextlib.ExitStack() as started:
            started.callback(shutil.rmtree, self._folder, ignore_errors=True)
            started.callback(end_users_of, self._folder)
            self._start_ray(started)
            self._start_application()
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def _start_ray(self, started: contextlib.ExitStack) -> None:
        """Start the first node and connect to it."""
        patient = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S")
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": self._folder}
        os.environ |= dict.fromkeys(patient, str(int(PATIENCE_S)))
        os.environ.pop("RAY_ADDRESS", None)
        import ray  # it reads the environment
        from ray import cluster_utils, serve

        self._serve = serve
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        started.callback(self._cluster.shutdown)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        started.callback(ray.shutdown)

    def _start_application(self) -> None:
        """Deploy, and wait until it answers. Ray waits a minute for its own proxy, which goes on starting meanwhile."""
        from qwenvl_edge.fleet.ray_serve import Options, app

        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
                break
            except TimeoutError:
                if time.monotonic() > ends:
                    raise SystemExit(f"Ray Serve did not start within {PATIENCE_S:.0f} seconds.") from None
        scale = {"replicas": 1, "max_replicas": 2, "requests_per_replica": 0.5, "autoscaling": SOON}
        limits = {"rows": ROWS, "queue": 100}
        options = Options.model_validate({"bundle": self._bundle, "model_name": MODEL, "limits": limits, **scale})
        self._serve.run(app(options), name=APPLICATION, route_prefix="/")
        until(self._ready, "the application was not ready")

    def add_node(self) -> Any:
        """Add a node with room for one engine."""
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill(self, node: Any) -> None:
        """End a node's processes, as if it lost its power."""
        self._cluster.remove_node(node, allow_graceful=False)

    def engines(self) -> int:
        """Engines that run."""
        application = self._serve.status().applications[APPLICATION]
        return int(application.deployments["Engine"].replica_states.get("RUNNING", 0))

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        return False


def measured(fleet: Fleet, load: Load, seconds: float) -> dict[str, Any]:
    """Go through all turns; return times, counts and shares."""
    node = fleet.add_node()
    begun = time.monotonic()
    with load.running():
        until(lambda: len(load.replicas(begun)) == 2, "no second engine answered")
        second, second_s = _second(load, begun)
        load.pause_s = 0.0
        steady = time.monotonic()
        time.sleep(seconds)
        until(lambda: load.least_answers(steady) >= ENOUGH, "a camera had no answers from two engines")
        until(lambda: load.has_open(second), "no camera asked the second engine")
        both, killed = load.replicas(steady), time.monotonic()
        fleet.kill(node)
        time.sleep(seconds)
        alone = time.monotonic()
        load.pause_s = PAUSE_S
        fleet.add_node()
        joined = time.monotonic()
        until(lambda: len(load.replicas(joined)) == 2, "no second engine answered after a node had joined")
        joined_s = _second(load, joined)[1]
    quiet = time.monotonic()
    until(lambda: fleet.engines() == 1, "the second engine did not end")
    share = shares(load.answers, load.cameras, steady, killed)
    failed = [each for each in load.answers if each.status != 200]
    under_way = [each for each in load.answers if each.begun < killed < each.ended]
    after = sorted(each.ended for each in load.answers if killed <= each.ended < alone and each.status == 200)
    return {
        "requests": len(load.answers),
        "requests_while_steady": sum(steady <= each.begun and each.ended <= killed for each in load.answers),
        "second_engine_s": second_s,
        "second_engine_after_join_s": joined_s,
        "one_engine_again_s": time.monotonic() - quiet,
        "camera_share_least": min(share.values()),
        "engines_while_steady": len(both),
        "lost": len(failed),
        "lost_unclear": sum(not each.code or each.status != 503 for each in failed),
        "wrong": sum(each.status == 200 and not each.right for each in load.answers),
        "under_way_at_death": len(under_way),
        "asked_of_the_dead": sum(load.home(each.client, killed) == second for each in under_way),
        "longest_at_death_s": max((each.ended - each.begun for each in under_way), default=0.0),
        "silence_after_death_s": max(late - early for early, late in itertools.pairwise([killed, *after, alone])),
        "share": share,
        "errors": collections.Counter(f"{each.status} {each.code}" for each in failed),
    }


def _second(load: Load, begun: float) -> tuple[str, float]:
    """The engine that came after a time, and the seconds until its first answer."""
    first: dict[str, float] = {}
    for each in load.answers:
        if each.begun >= begun and each.status == 200:
            first.setdefault(each.replica, each.ended)
    replica = max(first, key=lambda name: first[name])
    return replica, first[replica] - begun


def broken_promises(found: dict[str, Any]) -> list[str]:
    """Sentences about what should not have been."""
    checks = {
        "an answer was wrong": not found["wrong"],
        "a request was lost": not found["lost"],
        "an error was not clear": not found["lost_unclear"],
        "two engines did not share the load": found["engines_while_steady"] == 2,
        "no request was under way on the node that died": found["asked_of_the_dead"] > 0,
        "a camera's requests went to several engines": found["camera_share_least"] == 1.0,
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def main(options: argparse.Namespace) -> int:
    """Measure, and print the figures."""
    before = conditions()
    bundle = needed_bundle(options.bundle)
    if importlib.util.find_spec("ray") is None:
        raise SystemExit("Ray is not installed; install it with `pip install 'qwenvl-edge[ray]'`.")
    engine = QwenVLEngine(bundle, threads=1)
    expected = {each: engine.chat(QUESTION, images=[each], do_sample=False).text for each in pictures()}
    with Fleet(bundle) as fleet:
        found = measured(fleet, Load(fleet.port, options.cameras, expected), options.seconds)
    details = {"cameras": options.cameras, "seconds": options.seconds, "autoscaling": SOON}
    details |= {name: found.pop(name) for name in ("share", "errors")}
    found["broken"] = broken_promises(found)
    finish(options, before, found, details)
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--cameras", type=int, default=4, metavar="N", help="that ask beside each other (4)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="N", help="with two engines, and after a death (20)"
    )
    raise SystemExit(main(parser.parse_args()))
