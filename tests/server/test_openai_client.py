"""The published `openai` client against a running server."""

import asyncio
import json

import pytest

from support.served import PICTURE, WAIT_S, ask, data_uri, metric, until

openai = pytest.importorskip("openai")


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").owned_by == "qwenvl-edge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_conversation_about_a_picture(client, engine):
    question = "Where is the red mug?"
    messages = ask(question, url=data_uri())["messages"]
    first = client.chat.completions.create(model="nano", messages=messages, temperature=0)
    message, expected = first.choices[0].message, engine.chat(question, images=[PICTURE], do_sample=False)
    assert message.content == expected.text and first.choices[0].finish_reason == "stop"
    assert message.qwenvl["raw_text"] == expected.raw_text
    (box,) = message.qwenvl["boxes"]
    assert box["label"] == "the red mug" and box["image"] == 0
    assert (box["x1"], box["y1"], box["x2"], box["y2"]) == vars_of(expected.boxes[0])
    assert first.usage.prompt_tokens == expected.stats.prompt_tokens
    assert first.usage.completion_tokens == expected.stats.new_tokens
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens

    question = "What colour is the car?"
    messages += [message, {"role": "user", "content": question}]
    second = client.chat.completions.create(model="nano", messages=messages, temperature=0)
    expected = engine.chat(question, history=expected.history, do_sample=False)
    assert second.choices[0].message.content == expected.text
    assert second.usage.prompt_tokens == expected.stats.prompt_tokens  # the earlier answer went in with its markup
    assert second.usage.prompt_tokens_details.cached_tokens > 64


def vars_of(box):
    return box.x1, box.y1, box.x2, box.y2


def test_a_stream_is_the_whole_answer(client, endless):
    body = ask(url=data_uri(), max_tokens=100, logit_bias=endless)
    whole = client.chat.completions.create(**body)
    stream = client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert deltas[-1].qwenvl["raw_text"] == whole.choices[0].message.qwenvl["raw_text"]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 100
    assert len({chunk.id for chunk in chunks}) == 1


def test_log_probabilities(client, engine):
    question = "Where is the red mug?"
    body = ask(question, url=data_uri(), logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**body).choices[0]
    expected = engine.chat(question, images=[PICTURE], do_sample=False, logprobs=3)
    chunks = list(client.chat.completions.create(**body, stream=True))
    streamed = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs is not None]
    assert len(streamed) > 3
    for found in (choice.logprobs.content, [entry for content in streamed for entry in content]):
        assert len(found) == len(expected.logprobs) == expected.stats.new_tokens
        for entry, wanted in zip(found, expected.logprobs, strict=True):
            assert (entry.token, bytes(entry.bytes)) == (wanted.data.decode(errors="replace"), wanted.data)
            assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-3)
            assert [bytes(each.bytes) for each in entry.top_logprobs] == [each.data for each in wanted.top]
            assert entry.top_logprobs[0].logprob == pytest.approx(wanted.top[0].logprob, abs=1e-3)
    assert choice.logprobs.content[-1].token == "<|im_end|>"
    alone = client.chat.completions.create(**{**body, "top_logprobs": None}).choices[0].logprobs.content
    assert [entry.token for entry in alone] == [entry.token for entry in choice.logprobs.content]
    assert all(entry.top_logprobs == [] for entry in alone)
    assert client.chat.completions.create(**ask()).choices[0].logprobs is None


SCHEMA = {
    "type": "object",
    "properties": {"thing": {"enum": ["mug", "car"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["thing", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output(client, stream):
    structure = {"type": "json_schema", "json_schema": {"name": "things", "schema": SCHEMA, "strict": True}}
    body = ask("What is there?", url=data_uri(), response_format=structure)
    if stream:
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)
        )
    else:
        text = client.chat.completions.create(**body).choices[0].message.content
    answer = json.loads(text)
    assert set(answer) == {"thing", "count"} and answer["thing"] in ("mug", "car") and 0 <= answer["count"] <= 9


def test_the_answer_tells_whether_its_structure_is_whole(client):
    structure = {"type": "json_schema", "json_schema": {"name": "things", "schema": SCHEMA, "strict": True}}

    def complete(**options):
        choice = client.chat.completions.create(**ask("What is there?", url=data_uri(), **options)).choices[0]
        return choice.finish_reason, choice.message.qwenvl["complete"]

    assert complete(response_format=structure) == ("stop", True)
    assert complete(response_format=structure, max_tokens=2) == ("length", True)
    assert complete(response_format=structure, stop=["thing"]) == ("stop", False)
    assert complete(max_tokens=2) == ("length", None)


def test_any_json_object(client):
    body = ask("Tell me.", response_format={"type": "json_object"}, max_tokens=60)
    assert isinstance(json.loads(client.chat.completions.create(**body).choices[0].message.content), dict)


def test_the_options_of_an_answer(client, engine, endless):
    def text(**options):
        return client.chat.completions.create(**{**ask(logit_bias=endless, max_tokens=24), **options}).choices[0]

    seeds = [text(temperature=1.5, seed=seed).message.content for seed in (1, 1, 2, -1)]
    assert seeds[0] == seeds[1] and len(set(seeds)) > 1
    assert text(temperature=1.5, top_p=1e-6, seed=3).message.content == text().message.content
    free = text().message.content
    stopped = text(stop=[free[4:7]])
    assert stopped.message.content == free[: free.index(free[4:7])].strip() and stopped.finish_reason == "stop"
    assert text(max_completion_tokens=3).finish_reason == "length"
    system = client.chat.completions.create(
        **{**ask(), "messages": [{"role": "system", "content": "用中文回答。"}, *ask()["messages"]]}
    )
    expected = engine.chat("Describe the picture.", system="用中文回答。", do_sample=False)
    assert system.choices[0].message.content == expected.text


def test_leaving_a_stream_frees_the_row(client, http, endless, slow):
    before = metric(http, 'qwenvl_answers_total{reason="cancelled"}')
    stream = client.chat.completions.create(**ask(max_tokens=1024, logit_bias=endless), stream=True)
    next(stream)
    stream.close()
    until(lambda: metric(http, "qwenvl_answers_running") == 0)
    until(lambda: metric(http, 'qwenvl_answers_total{reason="cancelled"}') > before)  # counted after it has ended
    assert metric(http, 'qwenvl_answers_total{reason="cancelled"}') == before + 1


def test_cancelling_a_call_frees_the_row(address, http, endless, slow):
    before = metric(http, 'qwenvl_answers_total{reason="cancelled"}')

    async def call():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            body = ask(max_tokens=1024, logit_bias=endless)
            task = asyncio.create_task(client.chat.completions.create(**body))
            while not await asyncio.to_thread(metric, http, "qwenvl_answers_running"):
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(call(), WAIT_S))
    until(lambda: metric(http, "qwenvl_answers_running") == 0)
    until(lambda: metric(http, 'qwenvl_answers_total{reason="cancelled"}') > before)  # counted after it has ended
    assert metric(http, 'qwenvl_answers_total{reason="cancelled"}') == before + 1


def test_errors_have_the_protocols_shape(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(**{**ask(), "model": "gpt"})
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ask("word " * 9000))
    assert error.value.code == "context_length_exceeded" and "tokens" in error.value.message
