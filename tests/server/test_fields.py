"""Every field of a request is obeyed, or refused with its place and a remedy."""

import codecs
import json

import httpx
import pytest

from qwenvl_edge.server.schema import NEUTRAL
from support.served import PICTURE, WAIT_S, ask, data_uri, post, serving

HELLO = {"type": "text", "text": "hi"}


def said(http, **change):
    """The message and param of the error that a request gets."""
    response = post(http, {**ask(), **change})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["message"], error["param"]


def answer(http, **options):
    response = post(http, ask(url=data_uri(), **options))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("messages", "where", "words"),
    [
        (user(HELLO, {"type": "input_image", "image_url": "x"}), "messages.0.content.1", "image_url"),
        (user({"type": "image", "image": "x"}), "messages.0.content.0", '"type": "image_url"'),
        (user({"type": "video_url", "video_url": {"url": "x"}}), "messages.0.content.0", "single frames"),
        (user({"type": "input_audio", "input_audio": {}}), "messages.0.content.0", "no audio"),
        (user({"text": "hello"}), "messages.0.content.0", "without a type"),
        (user("hello"), "messages.0.content.0", "a string"),
        (user({"type": "text", "text": 5}), "messages.0.content.0.text", "string"),
        (user({"type": "text"}), "messages.0.content.0.text", "missing"),
        (user({"type": "image_url", "image_url": {"uri": "x"}}), "messages.0.content.0.image_url.uri", "does not know"),
        (user({"type": "image_url", "image_url": 7}), "messages.0.content.0.image_url", "7"),
        ([{"role": "user", "content": None}], "messages.0.content", "missing"),
        ([{"role": "user", "content": {"text": "x"}}], "messages.0.content", "an object"),
        ([{"role": "system", "content": [{"type": "image_url"}]}], "messages.0.content.0", "message of the user"),
        ([*user(HELLO), {"role": "narrator", "content": "x"}], "messages.1", "'narrator'"),
        ([*user(HELLO), {"content": "x"}], "messages.1", "no role"),
        ([*user(HELLO), {"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.1", "does not support tools"),
        (["x"], "messages.0", "a string"),
        ("x", "messages", "a list"),
        (None, "messages", "missing"),
    ],
)
def test_errors_name_message_and_part(http, messages, where, words):
    message, param = said(http, messages=messages)
    assert param == where and message.startswith(where) and words in message


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"max_token": 3}, "max_token", "did you mean max_tokens?"),
        ({"min_pp": 3}, "min_pp", "did you mean min_p?"),
        ({"stop": ["a"] * 5}, "stop", "5 items, more than 4"),
        ({"n": 2}, "n", "give 1"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"top_p": 7}, "top_p", "7"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "does not know"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support tools"),
        ({"tool_choice": "required"}, "tool_choice", "does not support tools"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, "functions", "does not support tools"),
        ({"grammar": "root ::= ("}, "grammar", "Expected ')'"),
        ({"grammar": "rule ::= [a-z]"}, "grammar", "No 'root' rule"),
        ({"guided_grammar": "root ::= " + "(" * 9000}, "guided_grammar", "nested too deeply"),
        ({"structured_outputs": {"grammar": " "}}, "structured_outputs.grammar", "root ::="),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
        ({"guided_json": "[1]"}, "guided_json", "no JSON object"),
        ({"guided_choice": []}, "guided_choice", "choices"),
        ({"guided_regex": "(("}, "guided_regex", "unclosed group"),
        ({"guided_json": {"$ref": "#"}}, "guided_json", "keeps to it."),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "70,000"),
        ({"best_of": 2}, "best_of", "leave it out, or send 1."),
        ({"echo": True}, "echo", "leave it out, or send false."),
        ({"use_beam_search": True}, "use_beam_search", "not supported"),
        ({"max_tokens": True}, "max_tokens", "give a whole number"),
        ({"temperature": False}, "temperature", "give a number"),
        ({"stop": ""}, "stop", "is empty"),
        ({"stream": "perhaps"}, "stream", "true or false"),
        ({"response_format": "json"}, "response_format", "give an object"),
        ({"response_format": {}}, "response_format.type", "missing"),
        ({"cache_salt": "x" * 2000}, "cache_salt", "2,000 characters"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content", "is empty"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": []}]}, "messages.1", "is empty"),
    ],
)
def test_errors_name_the_field_and_what_it_may_be(http, change, where, words):
    message, param = said(http, **change)
    assert (where is None or param.startswith(where)) and words in message and "should" not in message


def test_null_is_the_same_as_nothing(http):
    nulls = dict.fromkeys(
        (
            *("stream", "stream_options", "max_tokens", "top_p", "stop", "seed", "tools", "tool_choice", "functions"),
            *("response_format", "logprobs", "top_logprobs", "logit_bias", "n", "user", "guided_json", "min_tokens"),
            *("modalities", "metadata", "boxes", "skip_special_tokens", "a_field_of_tomorrow"),
        )
    )
    body = {**ask(url=data_uri()), **nulls, "stream_options": {"include_usage": None}}
    body["messages"][0] |= {"name": None, "tool_calls": None}
    body["messages"][0]["content"][0]["image_url"]["detail"] = None
    response = post(http, body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == answer(http)["message"]["content"]


def test_fields_that_only_label_do_nothing(http):
    labels = {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "tool_choice": "none"}
    offered = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    assert answer(http, **labels, **offered)["message"]["content"] == answer(http)["message"]["content"]


def test_fields_at_the_value_that_changes_nothing_are_taken(http):
    assert answer(http, **NEUTRAL)["message"]["content"] == answer(http)["message"]["content"]
    body = {"model": "nano", "prompt": "A red mug", "max_tokens": 4}
    assert http.post("/v1/completions", json={**body, "echo": False, "best_of": 1}).status_code == 200


def test_a_byte_order_mark_is_no_mistake(http):
    body = codecs.BOM_UTF8 + json.dumps(ask(max_tokens=2)).encode()
    headers = {"Content-Type": "application/json"}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_options_of_sampling_have_an_effect(http):
    hot = {"temperature": 1.9, "top_p": 1, "seed": 7, "max_tokens": 40}
    plain, greedy = answer(http, **hot)["message"]["content"], answer(http)["message"]["content"]
    assert plain != greedy
    assert answer(http, **hot, top_k=1)["message"]["content"] == greedy
    assert answer(http, **hot, min_p=1.0)["message"]["content"] == greedy
    assert answer(http, **hot, top_k=-1)["message"]["content"] == plain
    assert answer(http, **hot, repetition_penalty=5.0)["message"]["content"] != plain
    assert answer(http, **hot, typical_p=0.1)["message"]["content"] != plain


def test_answers_of_a_least_length(http):
    short = post(http, ask("What colour is the car?", url=data_uri())).json()["usage"]["completion_tokens"]
    for wanted in ({"min_tokens": short + 5}, {"ignore_eos": True, "max_tokens": short + 9}):
        found = post(http, ask("What colour is the car?", url=data_uri(), **wanted)).json()
        assert found["usage"]["completion_tokens"] >= short + 5
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "form",
    [
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "yes|no"}},
        {"grammar": 'root ::= "yes" | "no"'},
        {"guided_grammar": 'root ::= answer\nanswer ::= "yes" | "no"'},
        {"structured_outputs": {"grammar": 'root ::= ("yes" | "no")'}},
    ],
)
def test_forms_by_other_names(http, form):
    assert answer(http, **form)["message"]["content"] in ("yes", "no")


OPEN = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}


@pytest.mark.parametrize(
    "form",
    [
        {"guided_json": OPEN},
        {"guided_json": json.dumps(OPEN)},
        {"structured_outputs": {"json": OPEN}},
        {"json_schema": OPEN},
        {"response_format": {"type": "json_object", "schema": OPEN}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": OPEN}}},
    ],
)
def test_open_objects_are_closed(http, form):
    found = answer(http, **form)
    assert set(json.loads(found["message"]["content"])) == {"n"} and found["finish_reason"] == "stop"


def test_the_assistant_may_speak_first(http, engine):
    question = ask("Where is the red mug?", url=data_uri())["messages"]
    greeting = {"role": "assistant", "content": "Hello! How can I help?"}
    expected = engine.chat(
        "Where is the red mug?", images=[PICTURE], history=[(None, greeting["content"])], do_sample=False
    )
    system = {"role": "system", "content": "You are a helpful assistant."}
    for before in ([greeting], [system, greeting]):
        found = post(http, {**ask(), "messages": [*before, *question]}).json()
        assert found["choices"][0]["message"]["content"] == expected.text
        assert found["usage"]["prompt_tokens"] == expected.stats.prompt_tokens


def test_boxes_in_the_text(http):
    question = "Where is the red mug?"
    plain = post(http, ask(question, url=data_uri())).json()["choices"][0]["message"]
    (box,) = plain["qwenvl"]["boxes"]
    body = ask(question, url=data_uri(), boxes="text")
    text = post(http, body).json()["choices"][0]["message"]["content"]
    corners = tuple(round(box[name]) for name in ("x1", "y1", "x2", "y2"))
    assert text == "<ref>the red mug</ref><box>({},{}),({},{})</box>".format(*corners)
    streamed = [json.loads(line[6:]) for line in post(http, {**body, "stream": True}).text.split("\n\n")[:-2]]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in streamed) == text
    raw = post(http, ask(question, url=data_uri(), skip_special_tokens=False)).json()["choices"][0]["message"][
        "content"
    ]
    assert raw == plain["qwenvl"]["raw_text"] != text


def test_pictures_go_before_the_words_unless_the_operator_says_no(engine):
    picture, words = ask("Where is the red mug?", url=data_uri())["messages"][0]["content"]

    def answered(http, *parts):
        return post(http, {**ask(), "messages": user(*parts)}).json()["choices"][0]["message"]["content"]

    def expected(*items):
        return engine.chat(list(items), do_sample=False).text

    image, text = {"image": PICTURE}, {"text": words["text"]}
    with serving(engine) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        assert answered(http, words, picture) == expected(image, text) == "the red mug"
        assert answered(http, HELLO, picture, words) == expected({"text": "hi"}, image, text)  # nothing is moved
    with serving(engine, keep_order=True) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        assert answered(http, words, picture) == expected(text, image)


def test_a_prompt_that_does_not_fit_is_told_as_clients_know_it(http, engine):
    for words in ("word " * 9000, "x" * 15_000_000):
        message, param = said(http, messages=user({"type": "text", "text": words}))
        assert message.startswith(f"This model's maximum context length is {engine.max_context} tokens.")
        assert "context_length_exceeded" in message and param == "messages"


def test_the_model_tells_its_context(http, engine):
    (model,) = http.get("/v1/models").json()["data"]
    assert model["context_length"] == engine.max_context and model["input_modalities"] == ["text", "image"]
    assert http.get("/health").json() == {"status": "ok"}


def test_routes_of_other_protocols_name_those_that_there_are(http):
    for path in ("/api/chat", "/v1/messages", "/nothing"):
        response = http.post(path, json={})
        assert response.status_code == 404 and "POST /v1/chat/completions" in response.json()["error"]["message"]
