"""What a server tells of itself: metrics and logs."""

import json

import httpx
import pytest

from support.served import WAIT_S, ask, data_uri, metric, post, serving


def test_metrics(http):
    before = {
        name: metric(http, name) for name in ('qwenvl_tokens_total{kind="prompt_cached"}', "qwenvl_answers_total")
    }
    post(http, ask(url=data_uri()))
    post(http, ask(url=data_uri()))
    assert metric(http, "qwenvl_answers_total") == before["qwenvl_answers_total"] + 2
    assert (
        metric(http, 'qwenvl_tokens_total{kind="prompt_cached"}') > before['qwenvl_tokens_total{kind="prompt_cached"}']
    )
    for name in ("time_to_first_token_seconds_count", "tokens_per_second_count", "queue_length", "responses_total"):
        assert f"qwenvl_{name}" in http.get("/metrics").text


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_hold_no_words_unless_asked(engine, monkeypatch, prompts):
    lines = []
    for module in ("exchange", "guard"):
        monkeypatch.setattr(
            f"qwenvl_edge.server.{module}.log", lambda event, **fields: lines.append({"event": event, **fields})
        )
    with serving(engine, log_prompts=prompts) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        response = post(client, ask("Something private?", url=data_uri()))
    text = json.dumps(lines)
    answer = next(line for line in lines if line["event"] == "answer")
    assert answer["id"] == response.headers["x-request-id"] and answer["new_tokens"] > 0
    assert ("private" in text) == prompts and "base64" not in text
