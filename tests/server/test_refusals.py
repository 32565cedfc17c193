"""Requests that are none, and what cannot be done."""

import json

import pytest

from qwenvl_edge import BackendError
from support.served import PICTURE, ask, post


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[1]", None),
        (b"{", None),
        (b'{"model": "nano", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b'{"model": "nano", "messages": []}', "messages"),
        (b'{"model": "nano", "messages": [{"role": "tool", "content": "x"}]}', "messages.0"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_bodies_that_are_no_request(http, body, param):
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"tools": [{}]},
        {"logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"top_logprobs": 1},
        {"temperature": -1},
        {"top_p": 0},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"max_tokens": 0},
        {"logit_bias": {"99999": 1}},
        {"logit_bias": {"-1": 1}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "grammar"}},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "texts": "?"}]}]},
        {"response_format": {"type": "json_object", "strict": True}},
        {"stream": True, "stream_options": {"include_usages": True}},
        {"max_token": 3},
        {"min_tokens": 9, "max_tokens": 8},
        {"guided_json": "{", "guided_regex": "a"},
        {"guided_json": {"type": "object"}, "guided_choice": ["a"]},
        {"grammar": "root ::= x"},
        {"structured_outputs": {}},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"top_k": -2},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "system", "content": "only"}]},
    ],
)
def test_what_cannot_be_done_is_refused(http, change):
    response = post(http, {**ask(), **change})
    assert response.status_code == 400 and response.json()["error"]["message"].endswith(".")


def test_methods_types_and_routes_that_are_not_there(http):
    refused = http.get("/v1/chat/completions")
    assert refused.status_code == 405 and "does not take GET; it takes POST." in refused.json()["error"]["message"]
    for path in ("/health", "/healthz", "/readyz"):
        assert http.head(path).status_code == 200 and http.head(path).content == b""
    assert http.get("/v1/models/someone/nano").json()["error"]["code"] == "model_not_found"
    assert http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert http.get("/static/../settings.py").status_code == 404
    assert http.get("/docs").status_code == 404


def test_pictures_as_parts_of_the_request(http):
    body = ask("Where is the red mug?", url="attachment:photo")
    files = {"photo": ("demo.png", PICTURE.read_bytes(), "image/png")}
    response = http.post("/v1/chat/completions", data={"request": json.dumps(body)}, files=files)
    assert response.json()["choices"][0]["message"]["qwenvl"]["boxes"][0]["label"] == "the red mug"
    missing = http.post("/v1/chat/completions", data={"other": "x"}, files=files)
    assert missing.status_code == 400 and "'request'" in missing.json()["error"]["message"]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/chat/completions", content=b"nonsense", headers=headers).status_code == 400
    headers = {"Content-Type": "multipart/form-data"}
    assert http.post("/v1/chat/completions", content=b"nonsense", headers=headers).status_code == 400


def test_a_failure_of_the_backend_keeps_its_words_to_itself(backend, http, monkeypatch, caplog):
    def decode(*_):
        raise BackendError("secret path")

    monkeypatch.setattr(backend, "decode_unchecked", decode)
    response = post(http, ask())
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    events = post(http, ask(stream=True)).text
    assert '"server_error"' in events and "[DONE]" not in events
    monkeypatch.undo()
    assert post(http, ask(max_tokens=2)).status_code == 200
