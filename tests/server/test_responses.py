"""The Responses protocol and the completions of base models, through the published client."""

import json
import shutil

import httpx
import pytest

from qwenvl_edge import QwenVLEngine
from support.served import PICTURE, WAIT_S, data_uri, post, serving

openai = pytest.importorskip("openai")
QUESTION = "Where is the red mug?"


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        yield client


def asked(words=QUESTION):
    parts = [{"type": "input_text", "text": words}, {"type": "input_image", "image_url": data_uri(), "detail": "auto"}]
    return [{"role": "user", "content": parts}]


def test_a_picture_and_a_second_question(client, engine):
    response = client.responses.create(model="nano", input=asked(), temperature=0)
    expected = engine.chat(QUESTION, images=[PICTURE], do_sample=False)
    assert (response.output_text, response.status) == (expected.text, "completed")
    assert response.usage.input_tokens == expected.stats.prompt_tokens
    assert response.output[0].qwenvl["boxes"][0]["label"] == "the red mug"
    history = [*asked(), *(item.model_dump() for item in response.output), {"role": "user", "content": "Where is it?"}]
    second = client.responses.create(model="nano", input=history, temperature=0)
    assert second.output_text == engine.chat("Where is it?", history=expected.history, do_sample=False).text


def test_instructions_are_the_system_text(client, engine):
    response = client.responses.create(model="nano", input="Describe.", instructions="用中文回答。", temperature=0)
    assert response.output_text == engine.chat("Describe.", system="用中文回答。", do_sample=False).text


def test_a_stream_has_the_protocols_events(client):
    whole = client.responses.create(model="nano", input=asked("Describe the picture."), temperature=0)
    events = list(
        client.responses.create(model="nano", input=asked("Describe the picture."), temperature=0, stream=True)
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
    ]
    assert kinds[-4:] == [
        *("response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"),
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text == events[-1].response.output_text
    with client.responses.stream(model="nano", input=asked("Describe the picture."), temperature=0) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_a_cut_answer_says_so(client):
    response = client.responses.create(
        model="nano", input=asked("Describe the picture."), max_output_tokens=2, temperature=0
    )
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"


def test_structured_output_and_logprobs(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    response = client.responses.create(model="nano", input=asked(), text=form, temperature=0)
    assert set(json.loads(response.output_text)) == {"n"}
    scored = client.responses.create(
        model="nano", input=asked(), include=["message.output_text.logprobs"], top_logprobs=2, temperature=0
    )
    assert len(scored.output[0].content[0].logprobs) == scored.usage.output_tokens


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"background": True}, "background", "stream"),
        ({"tools": [{"type": "web_search"}]}, "tools", "does not support tools"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input.0", "support tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0", "input_image"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0",
            "URI",
        ),
        ({"input": [{"role": "user", "content": "x"}, {"role": "clown", "content": "x"}]}, "input.1", "clown"),
        ({"input": [{"role": "user", "content": "x", "weight": 1}]}, "input.0.weight", "does not know"),
        ({"temperature": 9}, "temperature", "9"),
        ({"max_outputtokens": 9}, "max_outputtokens", "max_output_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused(http, change, where, words):
    response = http.post("/v1/responses", json={"model": "nano", "input": "hi", **change})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == where and words in error["message"]


def test_a_text_is_continued(client, engine):
    prompt = "<ref>the red mug</ref><box>"
    found = client.completions.create(
        model="nano", prompt=prompt, temperature=0, max_tokens=30, extra_body={"images": [data_uri()]}
    )
    expected = engine.complete([{"image": PICTURE}, {"text": prompt}], do_sample=False, max_new_tokens=30)
    assert found.choices[0].text == expected.text and found.usage.completion_tokens == expected.stats.new_tokens
    assert found.choices[0].qwenvl["boxes"]
    pieces = client.completions.create(model="nano", prompt=["A red"], temperature=0, max_tokens=9, stream=True)
    whole = client.completions.create(model="nano", prompt="A red", temperature=0, max_tokens=9, logprobs=2)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert (
        len(whole.choices[0].logprobs.tokens)
        == len(whole.choices[0].logprobs.token_logprobs)
        == whole.usage.completion_tokens
    )


def test_several_texts_are_refused(http):
    for prompt in (["a", "b"], [1, 2], [[1]], None, 5):
        assert http.post("/v1/completions", json={"model": "nano", "prompt": prompt}).status_code == 400


def test_a_base_model_says_where_it_can_be_asked(nano_exports, tmp_path):
    folder = shutil.copytree(nano_exports().path, tmp_path / "base")
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["generation"]["chat_format"] = "raw"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    engine = QwenVLEngine(folder, threads=1)
    with serving(engine) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        refused = post(http, {"model": "nano", "messages": [{"role": "user", "content": "hi"}]})
        assert refused.status_code == 400 and "POST /v1/completions" in refused.json()["error"]["message"]
        found = http.post("/v1/completions", json={"model": "nano", "prompt": "A red", "max_tokens": 3})
        assert found.status_code == 200
