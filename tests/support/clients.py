"""Client libraries as their users call them: one class each, over a server at `base`.

A method asks for one feature and returns what reaches the user; one that a library does not offer is missing. `ask` and
its like are given words; the picture is models/nano/demo.png.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import BaseModel, Field

from support.served import PICTURE, WAIT_S

URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
WHERE, MORE = "Where is the red mug?", "What colour is it?"


class Count(BaseModel):
    """A form as users write it: pydantic leaves its object open."""

    n: int = Field(ge=0, le=9)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"12 degrees in {city}"


def leave(read: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run what reads a stream, and cancel it as soon as it sets the event: a user who leaves."""

    async def run() -> None:
        begun = asyncio.Event()
        reading = asyncio.ensure_future(read(begun))
        await begun.wait()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading

    asyncio.run(run())


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def parts(words, *, first="picture"):
    picture, text = {"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": words}
    return [picture, text] if first == "picture" else [text, picture]


def user(words, **options):
    return [{"role": "user", "content": parts(words, **options)}]


def conversation(answer):
    return [*user(WHERE), {"role": "assistant", "content": answer}, {"role": "user", "content": MORE}]


class Client:
    """package: its name on the index. module: what is imported."""

    package = module = ""

    @classmethod
    def missing(cls) -> bool:
        """Whether it is not installed, or not in a version that goes with the others."""
        try:
            importlib.import_module(cls.module)
        except ImportError:
            return True
        return False

    @classmethod
    def offers(cls, method: str) -> bool:
        """Whether it has a feature, and that is tried here."""
        return hasattr(cls, method)

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version(cls.package)


class OpenAi(Client):
    """The published client, chat completions."""

    package = module = "openai"

    def __init__(self, base):
        import openai

        options = {"base_url": base, "api_key": "none", "max_retries": 0, "timeout": WAIT_S}
        self.client, self.later = openai.OpenAI(**options), openai.AsyncOpenAI(**options)

    def _ask(self, messages, **options):
        found = self.client.chat.completions.create(model="nano", messages=messages, temperature=0, **options)
        return found.choices[0].message

    def picture(self, words, first):
        return self._ask(user(words, first=first)).content

    def stream(self, words):
        chunks = self.client.chat.completions.create(model="nano", messages=user(words), temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def turns(self, answer):
        return self._ask(conversation(answer)).content

    def schema(self, words):
        found = self.client.chat.completions.parse(
            model="nano", messages=user(words), response_format=Count, temperature=0
        )
        return found.choices[0].message.parsed

    def tools(self):
        self._ask([{"role": "user", "content": "hi"}], tools=[TOOL])

    def call(self):
        """Have a tool called and its result read; return its city and the answer."""
        asked = [{"role": "user", "content": "How warm is it in Bern?"}]
        message = self._ask(asked, tools=[TOOL])
        (call,) = message.tool_calls
        city = json.loads(call.function.arguments)["city"]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(city)}
        said = {"role": "assistant", "content": message.content, "tool_calls": [call.model_dump()]}
        return city, self._ask([*asked, said, result], tools=[TOOL]).content

    def overflow(self, words):
        self._ask([{"role": "user", "content": words}])

    async def four(self, words):
        calls = [
            self.later.chat.completions.create(model="nano", messages=user(words), temperature=0) for _ in range(4)
        ]
        return [found.choices[0].message.content for found in await asyncio.gather(*calls)]

    def cancel(self, words):
        """Leave a stream after its first words."""
        chunks = self.client.chat.completions.create(model="nano", messages=user(words), temperature=0, stream=True)
        next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
        chunks.close()


class Responses(OpenAi):
    """The published client, responses."""

    def _ask(self, given, **options):
        return self.client.responses.create(model="nano", input=given, temperature=0, **options)

    def _user(self, words, first="picture"):
        content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": words}]
        return [{"role": "user", "content": content if first == "picture" else content[::-1]}]

    def picture(self, words, first):
        return self._ask(self._user(words, first)).output_text

    def stream(self, words):
        events = self._ask(self._user(words), stream=True)
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")

    def turns(self, answer):
        first = self._ask(self._user(WHERE))
        return self._ask(MORE, previous_response_id=first.id).output_text

    def schema(self, words):
        return self.client.responses.parse(
            model="nano", input=self._user(words), text_format=Count, temperature=0
        ).output_parsed

    def tools(self):
        self._ask("hi", tools=[{"type": "function", **TOOL["function"]}])

    def call(self):
        tools = [{"type": "function", **TOOL["function"]}]
        first = self._ask("How warm is it in Bern?", tools=tools)
        (call,) = (item for item in first.output if item.type == "function_call")
        city = json.loads(call.arguments)["city"]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": weather(city)}
        return city, self._ask([result], tools=tools, previous_response_id=first.id).output_text

    async def four(self, words):
        calls = [self.later.responses.create(model="nano", input=self._user(words), temperature=0) for _ in range(4)]
        return [found.output_text for found in await asyncio.gather(*calls)]

    def cancel(self, words):
        events = self._ask(self._user(words), stream=True)
        next(event for event in events if event.type == "response.output_text.delta")
        events.close()


class Instructor(OpenAi):
    """instructor in its mode JSON_SCHEMA; what is no form goes through the client that it wraps."""

    package = module = "instructor"

    def schema(self, words):
        import instructor

        client = instructor.from_openai(self.client, mode=instructor.Mode.JSON_SCHEMA)
        return client.chat.completions.create(
            model="nano", messages=user(words), response_model=Count, temperature=0, max_retries=0
        )

    def tools(self):
        import instructor

        client = instructor.from_openai(self.client, mode=instructor.Mode.TOOLS)
        client.chat.completions.create(
            model="nano", messages=user(WHERE), response_model=Count, temperature=0, max_retries=0
        )
