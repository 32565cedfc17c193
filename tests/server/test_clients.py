"""Client libraries that are installed, against a running server: what of the protocol reaches their users.

`make clients-test` installs them all and writes the table of docs/server.md (pytest --clients-table docs/server.md).
"""

import asyncio
import base64
import importlib
import importlib.metadata
import json
import re

import pytest
from pydantic import BaseModel, Field

from support.served import PICTURE, WAIT_S

CAPTION, WHERE = "Describe the picture.", "Where is the red mug?"
URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
TOOLS = "does not support tools"
FEATURES = ("picture", "words_first", "stream", "turns", "schema", "tools", "overflow", "four_at_once")
MARKS = ("<!-- clients -->", "<!-- end of clients -->")


class Count(BaseModel):
    """A form as users write it: pydantic leaves its object open."""

    n: int = Field(ge=0, le=9)


def parts(words, *, first="picture"):
    picture, text = {"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": words}
    return [picture, text] if first == "picture" else [text, picture]


def conversation(answer):
    user = {"role": "user", "content": parts(WHERE)}
    return [user, {"role": "assistant", "content": answer}, {"role": "user", "content": "What colour is it?"}]


class OpenAi:
    """The published client, chat completions."""

    package = "openai"

    def __init__(self, base):
        import openai

        options = {"base_url": base, "api_key": "none", "max_retries": 0, "timeout": WAIT_S}
        self.client, self.later = openai.OpenAI(**options), openai.AsyncOpenAI(**options)

    def ask(self, messages, **options):
        found = self.client.chat.completions.create(model="nano", messages=messages, temperature=0, **options)
        return found.choices[0].message.content

    def picture(self, words, first):
        return self.ask([{"role": "user", "content": parts(words, first=first)}])

    def stream(self, words):
        messages = [{"role": "user", "content": parts(words)}]
        chunks = self.client.chat.completions.create(model="nano", messages=messages, temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def turns(self, answer):
        return self.ask(conversation(answer))

    def schema(self, words):
        messages = [{"role": "user", "content": parts(words)}]
        found = self.client.chat.completions.parse(
            model="nano", messages=messages, response_format=Count, temperature=0
        )
        return found.choices[0].message.parsed

    def tools(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        self.ask([{"role": "user", "content": "hi"}], tools=[tool])

    def overflow(self, words):
        self.ask([{"role": "user", "content": words}])

    async def four(self, words):
        messages = [{"role": "user", "content": parts(words)}]
        calls = [self.later.chat.completions.create(model="nano", messages=messages, temperature=0) for _ in range(4)]
        return [found.choices[0].message.content for found in await asyncio.gather(*calls)]


class LangChain:
    """langchain-openai."""

    package = "langchain-openai"

    def __init__(self, base):
        from langchain_openai import ChatOpenAI

        self.model = ChatOpenAI(
            base_url=base, api_key="none", model="nano", temperature=0, max_retries=0, timeout=WAIT_S
        )

    def picture(self, words, first):
        return self.model.invoke([{"role": "user", "content": parts(words, first=first)}]).content

    def stream(self, words):
        return "".join(piece.content for piece in self.model.stream([{"role": "user", "content": parts(words)}]))

    def turns(self, answer):
        return self.model.invoke(conversation(answer)).content

    def schema(self, words):
        model = self.model.with_structured_output(Count, method="json_schema")
        return model.invoke([{"role": "user", "content": parts(words)}])

    def tools(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        self.model.bind_tools([tool]).invoke("hi")

    def overflow(self, words):
        self.model.invoke(words)

    async def four(self, words):
        messages = [{"role": "user", "content": parts(words)}]
        return [found.content for found in await self.model.abatch([messages] * 4)]


class Instructor(OpenAi):
    """instructor in its mode JSON_SCHEMA; what is no form goes through the client that it wraps."""

    package = "instructor"

    def schema(self, words):
        import instructor

        client = instructor.from_openai(self.client, mode=instructor.Mode.JSON_SCHEMA)
        messages = [{"role": "user", "content": parts(words)}]
        return client.chat.completions.create(
            model="nano", messages=messages, response_model=Count, temperature=0, max_retries=0
        )


class PydanticAi:
    """pydantic-ai with NativeOutput."""

    package = "pydantic-ai-slim"

    def __init__(self, base):
        from pydantic_ai import Agent, BinaryContent, NativeOutput
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        self.model = OpenAIChatModel("nano", provider=OpenAIProvider(base_url=base, api_key="none"))
        self.agent = Agent(self.model, model_settings={"temperature": 0})
        self.typed = Agent(self.model, output_type=NativeOutput(Count), retries=0, model_settings={"temperature": 0})
        self.tooled = Agent(self.model, tools=[conversation])
        self.image = BinaryContent(PICTURE.read_bytes(), media_type="image/png")

    def picture(self, words, first):
        return self.agent.run_sync([self.image, words] if first == "picture" else [words, self.image]).output

    def stream(self, words):
        async def read():
            async with self.agent.run_stream([self.image, words]) as found:
                return "".join([piece async for piece in found.stream_text(delta=True)])

        return asyncio.run(read())

    def turns(self, answer):
        before = self.agent.run_sync([self.image, WHERE])
        return self.agent.run_sync("What colour is it?", message_history=before.all_messages()).output

    def schema(self, words):
        return self.typed.run_sync([self.image, words]).output

    def tools(self):
        self.tooled.run_sync("hi")

    def overflow(self, words):
        self.agent.run_sync(words)

    async def four(self, words):
        found = await asyncio.gather(*(self.agent.run([self.image, words]) for _ in range(4)))
        return [each.output for each in found]


MODULES = {OpenAi: "openai", LangChain: "langchain_openai", Instructor: "instructor", PydanticAi: "pydantic_ai"}


def missing(client):
    try:
        importlib.import_module(MODULES[client])
    except ImportError:
        return True
    return False


@pytest.fixture(scope="module")
def seen(request):
    """(client, feature) -> whether it works; becomes the table at the end, if one is asked for."""
    found = {}
    yield found
    target = request.config.getoption("--clients-table")
    if target is not None:
        page = target.read_text(encoding="utf-8")
        inner = re.compile(f"(?<={MARKS[0]}\n).*?(?={MARKS[1]})", re.DOTALL)
        target.write_text(inner.sub(lambda _: table(found), page), encoding="utf-8")


def table(found):
    names = [name.replace("_", " ") for name in FEATURES]
    lines = ["| client | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for client in MODULES:
        if any(each is client for each, _ in found):
            version = importlib.metadata.version(client.package)
            cells = ["yes" if found.get((client, name)) else "no" for name in FEATURES]
            cells[FEATURES.index("tools")] = "refused, known" if found.get((client, "tools")) else "no"
            lines.append(f"| {client.package} {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", list(MODULES), ids=lambda kind: kind.package)
def test_a_feature_reaches_the_users_of(kind, feature, address, http, seen):
    if missing(kind):
        pytest.skip(f"{kind.package} is not installed")
    seen[kind, feature] = False
    client = kind(f"{address}/v1")
    plain = OpenAi(f"{address}/v1").picture
    if feature == "picture":
        assert client.picture(WHERE, "picture") == plain(WHERE, "picture") == "the red mug"
    elif feature == "words_first":
        assert client.picture(WHERE, "words") == "the red mug"
    elif feature == "stream":
        assert client.stream(CAPTION) == plain(CAPTION, "picture")
    elif feature == "turns":
        assert client.turns("the red mug") == OpenAi(f"{address}/v1").turns("the red mug")
    elif feature == "schema":
        assert isinstance(client.schema("How many objects are there?"), Count)
    elif feature == "tools":
        with pytest.raises(Exception, match=TOOLS):
            client.tools()
    elif feature == "overflow":
        with pytest.raises(Exception, match="maximum context length is"):
            client.overflow("word " * 9000)
    else:
        assert asyncio.run(client.four(WHERE)) == ["the red mug"] * 4
    seen[kind, feature] = True


def test_a_table_has_a_row_per_client():
    found = {(OpenAi, "picture"): True, (OpenAi, "tools"): True}
    rows = table(found).splitlines()
    assert len(rows) == 3 and rows[2].count("|") == len(FEATURES) + 2
    assert "yes" in rows[2] and "refused, known" in rows[2] and json.dumps(rows)
