"""Autoscaling in motion on two nodes of one machine, and a node that is killed while it answers."""

import contextlib
import os
import shutil
import tempfile
import threading

import httpx
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from support.ray_cluster import START_S, Cluster, png, uri
from support.served import ask, free_port, is_up, post, until

CLIENTS = 4
QUESTION = "Where is the red mug?"
SOON = {"upscale_delay_s": 1, "downscale_delay_s": 3, "look_back_period_s": 2, "metrics_interval_s": 0.5}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="Ray keeps its objects in /dev/shm"),
]


@contextlib.contextmanager
def asking(port):
    """Clients that ask without a pause; yields their answers."""
    done, answers = threading.Event(), []

    def client(number):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as http:
            while not done.is_set():
                answers.append(post(http, ask(QUESTION, url=uri(png(number)))))

    threads = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_engines_follow_the_load_and_a_killed_node_loses_no_request(nano):
    folder = tempfile.mkdtemp(prefix="fleet")  # short: Ray's sockets lie in it
    cluster, port = Cluster(folder, cpus=1), free_port()
    try:
        limits = {"rows": 2, "queue": 100}
        scale = {"replicas": 1, "max_replicas": 2, "requests_per_replica": 1, "autoscaling": SOON}
        cluster.run(port, bundle=str(nano), cpus=1, limits=limits, **scale)
        until(lambda: is_up(f"http://127.0.0.1:{port}/readyz"), START_S)
        assert len(cluster.replicas("Engine")) == 1
        cluster.add_node("second")  # a node has room for one engine
        with asking(port) as answers:
            until(lambda: cluster.replicas("Engine", "second"), START_S)
            before = len(answers)
            until(lambda: len(answers) > before + 2 * CLIENTS, START_S)
            cluster.kill_node("second")
            before = len(answers)
            until(lambda: len(answers) > before + 2 * CLIENTS, START_S)
            cluster.add_node("third")
            until(lambda: cluster.replicas("Engine", "third"), START_S)
        assert {answer.status_code for answer in answers} == {200}
        texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
        assert texts == {"the red mug"}
        until(lambda: len(cluster.replicas("Engine")) == 1, START_S)  # nobody asks any more
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
