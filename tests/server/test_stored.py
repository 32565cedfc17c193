"""Conversations that the next request names by their response's id: bounded in time and size, and per key."""

import httpx
import pytest

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.stored import StoredConversations
from support.served import PICTURE, WAIT_S, data_uri, serving

KEYS = ("k" * 32, "l" * 32)


def user(words):
    return {"role": "user", "content": words}


def missing(stored, name, salt=""):
    with pytest.raises(ApiError, match="previous_response_id is not kept"):
        stored.find(name, salt)


def test_they_end_after_a_time():
    now = [0.0]
    stored = StoredConversations(seconds=10, clock=lambda: now[0])
    stored.keep("a", "", [user("x")])
    now[0] = 9.0
    stored.keep("b", "", [user("y")])
    assert stored.find("a", "") == [user("x")]
    now[0] = 11.0
    missing(stored, "a")
    assert stored.find("b", "") == [user("y")]


def test_they_belong_to_a_key():
    stored = StoredConversations()
    stored.keep("a", "mine", [user("x")])
    missing(stored, "a", "yours")
    assert stored.find("a", "mine")


def test_a_key_drives_out_its_own_and_no_more_than_fits_is_kept():
    stored = StoredConversations(most_bytes=1 << 20)
    stored.keep("other", "theirs", [user("x" * 50_000)])
    for number in range(20):
        stored.keep(f"r{number}", "mine", [user("x" * 50_000)])  # 100 kB each, of 256
    missing(stored, "r17", "mine")
    assert stored.find("r18", "mine") and stored.find("r19", "mine") and stored.find("other", "theirs")
    stored.keep("huge", "mine", [user("x" * 200_000)])
    missing(stored, "huge", "mine")
    for number in range(30):
        stored.keep(f"s{number}", f"key {number}", [user("x" * 50_000)])
    missing(stored, "other", "theirs")
    assert stored.find("s29", "key 29")


def asked(http, key=KEYS[0], **body):
    headers = {"Authorization": f"Bearer {key}"}
    answer = http.post("/v1/responses", json={"model": "nano", "temperature": 0, **body}, headers=headers)
    return answer.status_code, answer.json()


def test_a_conversation_goes_on(engine):
    picture = {"type": "input_image", "image_url": data_uri()}
    first = [{"role": "user", "content": [picture, {"type": "input_text", "text": "Where is the red mug?"}]}]
    lone = engine.chat("Where is the red mug?", images=[PICTURE], do_sample=False)
    expected = engine.chat("Where is it?", history=lone.history, do_sample=False)
    again = engine.chat("Where is it?", history=expected.history, do_sample=False)
    with serving(engine, api_keys=KEYS) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        _, begun = asked(http, input=first, instructions=None)
        status, second = asked(http, input="Where is it?", previous_response_id=begun["id"])
        assert (status, second["previous_response_id"]) == (200, begun["id"])
        assert second["usage"]["input_tokens"] == expected.stats.prompt_tokens
        assert second["output"][0]["content"][0]["text"] == expected.text
        _, third = asked(http, input="Where is it?", previous_response_id=second["id"])
        assert third["usage"]["input_tokens"] == again.stats.prompt_tokens
        for change in ({"key": KEYS[1]}, {"previous_response_id": "resp_of_nobody"}):
            status, body = asked(http, **{"input": "Where is it?", "previous_response_id": begun["id"], **change})
            assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
            assert body["error"]["param"] == "previous_response_id"
        _, lost = asked(http, input=first, store=False)
        assert lost["store"] is False
        assert asked(http, input="?", previous_response_id=lost["id"])[0] == 400
        # Errors count in what this request sent.
        status, body = asked(http, input=[user("x"), user(7)], previous_response_id=begun["id"])
        assert (status, body["error"]["param"]) == (400, "input.1.content")
