"""Bundles of the newer families behind a server: answers about pictures of different sizes at once, as if alone."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.decoding import scheduler
from support.families import FAMILIES, picture_file
from support.served import WAIT_S, data_uri, serving

ROWS = 4
QUESTIONS = [
    ("abcdef"[number % 6], words) for number, words in enumerate(["What is this?", "Where?", "描述图片。"] * 3)
]


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request, family_exports):
    return request.param, QwenVLEngine(family_exports(request.param)(), threads=1)


def body(name, letter, words, **options):
    picture = {"type": "image_url", "image_url": {"url": data_uri(picture_file(name, letter))}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": words}]}]
    return {"model": "nano", "messages": messages, "temperature": 0, "max_tokens": 12, **options}


@pytest.fixture
def together(monkeypatch):
    """How many answers each step computed."""
    found, step = [], scheduler.Rows.step

    def counted(rows):
        found.append(len(rows))
        return step(rows)

    monkeypatch.setattr(scheduler.Rows, "step", counted)
    return found


def test_rows_of_different_pictures_are_as_if_alone(engine, together):
    name, qwen = engine
    expected = [
        qwen.chat(words, images=[picture_file(name, letter)], do_sample=False, max_new_tokens=12).raw_text
        for letter, words in QUESTIONS
    ]
    qwen.forget()
    with serving(qwen, limits={"rows": ROWS}) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:

        def ask(question):
            response = client.post("/v1/chat/completions", json=body(name, *question))
            assert response.status_code == 200, response.text
            return response.json()["choices"][0]["message"]["qwenvl"]["raw_text"]

        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            assert list(pool.map(ask, QUESTIONS)) == expected
    assert 1 < max(together) <= ROWS


def test_rows_keep_to_forms_of_their_own(engine):
    name, qwen = engine
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    choices = ["red", "blue", "green", "white"]
    with serving(qwen, limits={"rows": ROWS}) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:

        def ask(number):
            asked = body(name, "ab"[number % 2], "Which colour?", guided_choice=[choices[number], choices[number] * 2])
            return client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(ROWS) as pool:
            answers = list(pool.map(ask, range(ROWS)))
        assert all(answer in (each, each * 2) for answer, each in zip(answers, choices, strict=True))
