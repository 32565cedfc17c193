"""Forms of answers that would compile or be completed for ever cost little, and others are answered meanwhile."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from qwenvl_edge.constraints import ending
from qwenvl_edge.constraints.matcher import Matcher
from qwenvl_edge.server.trials import Trials, not_now
from support.hostile import QUICK, plain
from support.served import WAIT_S, ask, post


def form(schema, **options):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return ask("x", response_format=wanted, **options)


def crossed(count, title=""):
    patterns = [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(count)]
    each = [{"properties": {"a": pattern}} for pattern in patterns]
    return {"type": "object", "allOf": each, "required": ["a"], "title": title}


def test_a_form_that_cannot_be_completed_costs_little(http, address):
    schema = {"type": "null"}
    for _ in range(3):
        schema = {"type": "array", "minItems": 1000, "items": schema}
    found = post(http, form(schema, max_tokens=8), timeout=WAIT_S).json()["choices"][0]
    assert found["finish_reason"] == "length" and found["message"]["qwenvl"]["complete"] is False
    plain(address)


def test_others_are_answered_while_the_end_of_a_form_is_sought(http, address, monkeypatch):
    sought, found, closing = threading.Event(), threading.Event(), Matcher.closing

    def slow(matcher, *rest):
        sought.set()
        assert found.wait(WAIT_S)
        return closing(matcher, *rest)

    monkeypatch.setattr(Matcher, "closing", slow)
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(post, http, form({"type": "array", "minItems": 3}, max_tokens=2), timeout=WAIT_S)
        try:
            assert sought.wait(WAIT_S)
            plain(address)
            assert not cut.done()
        finally:
            found.set()
        choice = cut.result().json()["choices"][0]
        assert choice["finish_reason"] == "length" and len(json.loads(choice["message"]["content"])) == 3


def test_the_end_of_a_form_is_sought_in_another_process(http, monkeypatch):
    def here(*_, **__):
        raise AssertionError("it was sought here")

    monkeypatch.setattr(ending, "shortest_end", here)
    for most in (2, 3):
        choice = post(http, form({"type": "array", "minItems": 3}, max_tokens=most), timeout=WAIT_S).json()["choices"][
            0
        ]
        assert choice["finish_reason"] == "length" and choice["message"]["qwenvl"]["complete"] is True
        assert len(json.loads(choice["message"]["content"])) == 3


def test_a_form_is_left_open_where_no_process_can_look_for_its_end(http, address, monkeypatch):
    async def none(*_):
        raise not_now()

    asked = form({"type": "array", "minItems": 3, "items": {"type": "null"}}, max_tokens=2)
    assert post(http, asked, timeout=WAIT_S).status_code == 200  # the form is known
    monkeypatch.setattr(Trials, "_answer", none)
    choice = post(http, asked, timeout=WAIT_S).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["qwenvl"]["complete"] is False
    plain(address)


def test_a_form_that_compiles_for_ever_is_refused_and_remembered(http):
    first = post(http, form(crossed(24)), timeout=WAIT_S)
    while first.status_code == 503:  # the machine has other work, so there was no verdict
        first = post(http, form(crossed(24)), timeout=WAIT_S)
    assert first.status_code == 400 and first.json()["error"]["code"] == "constraint_too_complex"
    started = time.monotonic()
    assert post(http, form(crossed(24)), timeout=WAIT_S).status_code == 400
    assert time.monotonic() - started < QUICK / 4
    assert post(http, form({"type": "array"}, max_tokens=4)).status_code == 200  # a new process was started


def test_others_are_answered_while_forms_are_tried(address):
    def send(number):
        with contextlib.suppress(httpx.TransportError):
            body = form(crossed(24, str(number)))
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=3)  # leaves before it is answered

    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(send, number) for number in range(6)]
        plain(address)
        for each in sent:
            each.result()
    plain(address)
