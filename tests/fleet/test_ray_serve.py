"""The Ray Serve application as its users start it: a cluster of this machine, two replicas, HTTP."""

import json
import os
import random
import shutil
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")


from qwenvl_edge import QwenVLEngine
from support.ray_cluster import START_S, Cluster, png, uri
from support.served import ask, endless_bias, free_port, is_up, metric, post, until

ROWS = 4
QUESTIONS = ("Where is the red mug?", "Describe the picture.", "How many objects are there?", "What does the sign say?")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="Ray keeps its objects in /dev/shm"),
]


@pytest.fixture(scope="module")
def options(nano):
    limits = {"rows": ROWS, "queue": 200}
    return {"bundle": str(nano), "model_name": "nano", "replicas": 2, "cpus": 1, "limits": limits}


@pytest.fixture(scope="module")
def cluster(options):
    folder = tempfile.mkdtemp(prefix="fleet")  # short: Ray's sockets lie in it
    cluster = Cluster(folder)
    try:
        cluster.port = free_port()
        cluster.run(cluster.port, **options)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def http(cluster):
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}", timeout=START_S, limits=limits) as http:
        until(lambda: is_up(f"{http.base_url}/readyz"), START_S)
        # Whose engine a picture is follows from which engines there are.
        sessions = [{"x-session-id": str(i)} for i in range(8)]
        until(
            lambda: len({post(http, ask("Hi"), headers=each).headers["x-replica-id"] for each in sessions}) == 2,
            START_S,
        )
        yield http


@pytest.fixture(scope="module")
def engine(nano):
    return QwenVLEngine(nano, threads=1)


def test_the_answers_are_those_of_one_engine_and_pictures_are_encoded_once(http, engine):
    pictures = [png(number) for number in range(6)]
    asked = [(picture, question) for picture in pictures for question in QUESTIONS] * 2
    random.Random(0).shuffle(asked)
    with ThreadPoolExecutor(ROWS) as threads:
        answers = list(threads.map(lambda each: post(http, ask(each[1], url=uri(each[0]))), asked))
    for (picture, question), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        expected = engine.chat(question, images=[picture], do_sample=False)
        assert message["content"] == expected.text and message["qwenvl"]["raw_text"] == expected.raw_text
        assert [box["x1"] for box in message["qwenvl"]["boxes"]] == [box.x1 for box in expected.boxes]
    assert metric(http, "qwenvl_pictures_encoded_total") == len(pictures)


def test_a_stream_comes_in_pieces_and_errors_keep_their_words(http, engine):
    with http.stream("POST", "/v1/chat/completions", json=ask(QUESTIONS[1], url=uri(png(0)), stream=True)) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == engine.chat(QUESTIONS[1], images=[png(0)], do_sample=False).text
    assert len(pieces) > 5
    too_long = post(http, ask("long " * 9000))
    assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"
    assert http.get("/healthz", headers={"host": "example.org"}).status_code == 403


def test_a_killed_replica_loses_no_request(http, cluster, engine):
    long = {"max_tokens": 400, "logit_bias": endless_bias(engine.bundle)}
    asked = [(png(number), question) for number in range(6) for question in QUESTIONS]
    bias = {int(id_): value for id_, value in long["logit_bias"].items()}
    expected = {
        each: engine.chat(each[1], images=[each[0]], do_sample=False, max_new_tokens=400, logit_bias=bias).text
        for each in asked[:: len(QUESTIONS) + 1]
    }
    before = cluster.replicas("Engine")
    assert len(before) == 2
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = [threads.submit(post, http, ask(words, url=uri(picture), **long)) for picture, words in asked]
        # More than one replica takes: both have some.
        until(lambda: metric(http, "qwenvl_answers_running") > ROWS + 1)
        os.kill(min(before), signal.SIGKILL)
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * len(asked)
    assert all(answer.json()["usage"]["completion_tokens"] == 400 for answer in found)
    for each, answer in zip(asked, found, strict=True):
        if each in expected:
            assert answer.json()["choices"][0]["message"]["content"] == expected[each]
    until(lambda: len(cluster.replicas("Engine") - {min(before)}) == 2, START_S)  # Ray starts another


def test_an_update_fails_no_request(http, cluster, options, nano):
    copy = shutil.copytree(nano, nano.with_name("copy") / nano.name)  # the same name, another folder
    before = cluster.replicas("Engine") | cluster.replicas("Front")
    done, codes = threading.Event(), []

    def client(number):
        while not done.is_set():
            codes.append(post(http, ask(QUESTIONS[0], url=uri(png(number)))).status_code)

    def updated():
        now = cluster.replicas("Engine") | cluster.replicas("Front")
        return len(now) == 3 and not before & now

    with ThreadPoolExecutor(3) as threads:
        clients = [threads.submit(client, number) for number in range(3)]
        try:
            cluster.run(cluster.port, **{**options, "bundle": str(copy)})
            until(updated, START_S)
        finally:
            done.set()
        for each in clients:
            each.result()
    assert len(codes) > 10 and set(codes) == {200}
