"""Client libraries that carry out tasks: agents, pipelines, programs. See clients.py."""

from __future__ import annotations

import asyncio

from support.clients import MORE, TOOL, URL, WHERE, Client, Count, conversation, user, weather
from support.served import PICTURE, WAIT_S


class Agents(Client):
    """openai-agents with its default, the Responses protocol."""

    package, module = "openai-agents", "agents"

    def __init__(self, base):
        import agents
        import openai

        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=WAIT_S)
        model = agents.OpenAIResponsesModel("nano", client)
        settings = agents.ModelSettings(temperature=0)
        self.agent = agents.Agent(name="a", model=model, model_settings=settings)
        self.typed = agents.Agent(name="b", model=model, model_settings=settings, output_type=Count)
        self.tooled = agents.Agent(
            name="c", model=model, model_settings=settings, tools=[agents.function_tool(weather)]
        )

    def _input(self, words, first="picture"):
        content = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": words}]
        return [{"role": "user", "content": content if first == "picture" else content[::-1]}]

    def _run(self, agent, given):
        import agents

        return asyncio.run(agents.Runner.run(agent, given))

    def picture(self, words, first):
        return self._run(self.agent, self._input(words, first)).final_output

    def stream(self, words):
        import agents

        async def read():
            found = agents.Runner.run_streamed(self.agent, self._input(words))
            events = [event.data async for event in found.stream_events() if event.type == "raw_response_event"]
            return "".join(event.delta for event in events if event.type == "response.output_text.delta")

        return asyncio.run(read())

    def turns(self, answer):
        import agents

        async def talk():
            first = await agents.Runner.run(self.agent, self._input(WHERE))
            said = [*first.to_input_list(), {"role": "user", "content": MORE}]
            return (await agents.Runner.run(self.agent, said)).final_output

        return asyncio.run(talk())

    def schema(self, words):
        return self._run(self.typed, self._input(words)).final_output

    def tools(self):
        self._run(self.tooled, "hi")

    def call(self):
        found = self._run(self.tooled, "How warm is it in Bern?")
        (result,) = (item for item in found.new_items if item.type == "tool_call_output_item")
        return result.output.rpartition(" ")[2], found.final_output

    def overflow(self, words):
        self._run(self.agent, words)

    def cancel(self, words):
        """Cancel a run, as its users do, at its first words."""
        import agents

        async def run():
            found = agents.Runner.run_streamed(self.agent, self._input(words))
            async for event in found.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    found.cancel()

        asyncio.run(run())

    async def four(self, words):
        import agents

        found = await asyncio.gather(*(agents.Runner.run(self.agent, self._input(words)) for _ in range(4)))
        return [each.final_output for each in found]


class Haystack(Client):
    """haystack's OpenAIChatGenerator."""

    package, module = "haystack-ai", "haystack"

    def __init__(self, base):
        from haystack.components.generators.chat import OpenAIChatGenerator
        from haystack.utils import Secret

        self.options = {"model": "nano", "api_base_url": base, "api_key": Secret.from_token("none")}
        self.options |= {"max_retries": 0, "timeout": WAIT_S}
        self.generator = OpenAIChatGenerator(**self.options, generation_kwargs={"temperature": 0})

    def _user(self, words, first="picture"):
        from haystack.dataclasses import ChatMessage, ImageContent

        content = [ImageContent.from_file_path(PICTURE), words]
        return ChatMessage.from_user(content_parts=content if first == "picture" else content[::-1])

    def picture(self, words, first):
        return self.generator.run([self._user(words, first)])["replies"][0].text

    def stream(self, words):
        pieces = []
        self.generator.run([self._user(words)], streaming_callback=lambda chunk: pieces.append(chunk.content))
        return "".join(pieces)

    def turns(self, answer):
        from haystack.dataclasses import ChatMessage

        said = [self._user(WHERE), ChatMessage.from_assistant(answer), ChatMessage.from_user(MORE)]
        return self.generator.run(said)["replies"][0].text

    def schema(self, words):
        form = {"temperature": 0, "response_format": Count}
        return Count.model_validate_json(
            self.generator.run([self._user(words)], generation_kwargs=form)["replies"][0].text
        )

    def _tools(self):
        from haystack.tools import Tool

        function = TOOL["function"]
        return [Tool(function["name"], function["description"], function["parameters"], weather)]

    def tools(self):
        self.generator.run([self._user("hi")], tools=self._tools())

    def call(self):
        from haystack.dataclasses import ChatMessage

        asked = ChatMessage.from_user("How warm is it in Bern?")
        said = self.generator.run([asked], tools=self._tools())["replies"][0]
        call = said.tool_call
        result = ChatMessage.from_tool(weather(**call.arguments), origin=call)
        found = self.generator.run([asked, said, result], tools=self._tools())["replies"][0]
        return call.arguments["city"], found.text

    def overflow(self, words):
        from haystack.dataclasses import ChatMessage

        self.generator.run([ChatMessage.from_user(words)])

    async def four(self, words):
        found = await asyncio.gather(*(self.generator.run_async([self._user(words)]) for _ in range(4)))
        return [each["replies"][0].text for each in found]


class Smolagents(Client):
    """smolagents' OpenAIServerModel."""

    package = module = "smolagents"

    def __init__(self, base):
        from smolagents import OpenAIServerModel

        self.model = OpenAIServerModel("nano", api_base=base, api_key="none", temperature=0)

    def picture(self, words, first):
        return self.model.generate(user(words, first=first)).content

    def stream(self, words):
        return "".join(piece.content or "" for piece in self.model.generate_stream(user(words)))

    def turns(self, answer):
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        asked = {"role": "user", "content": [{"type": "text", "text": MORE}]}
        return self.model.generate([*user(WHERE), said, asked]).content

    def schema(self, words):
        form = {"type": "json_schema", "json_schema": {"name": "Count", "schema": Count.model_json_schema()}}
        return Count.model_validate_json(self.model.generate(user(words), response_format=form).content)

    def overflow(self, words):
        self.model.generate([{"role": "user", "content": [{"type": "text", "text": words}]}])


class Outlines(Client):
    """outlines' from_openai."""

    package = module = "outlines"

    def __init__(self, base):
        import openai
        import outlines
        from PIL import Image

        client = openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=WAIT_S)
        self.model = outlines.from_openai(client, "nano")
        self.image = outlines.inputs.Image(Image.open(PICTURE))

    def picture(self, words, first):
        return self.model([words, self.image], temperature=0)  # it knows one order only

    def stream(self, words):
        return "".join(self.model.stream([words, self.image], temperature=0))

    def schema(self, words):
        return Count.model_validate_json(self.model([words, self.image], Count, temperature=0))

    def overflow(self, words):
        self.model(words)


class Dspy(Client):
    """dspy's LM."""

    package = module = "dspy"

    def __init__(self, base):
        import dspy

        self.model = dspy.LM("openai/nano", api_base=base, api_key="none", temperature=0, cache=False, num_retries=0)

    def picture(self, words, first):
        return _text(self.model(messages=user(words, first=first))[0])

    def turns(self, answer):
        return _text(self.model(messages=conversation(answer))[0])

    def overflow(self, words):
        self.model(words)


def _text(found):
    return found["text"] if isinstance(found, dict) else found
