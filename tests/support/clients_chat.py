"""Client libraries that continue conversations: langchain-openai, litellm, pydantic-ai, llama-index. See clients.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

from support.clients import MORE, TOOL, WHERE, Client, Count, conversation, leave, user, weather
from support.served import PICTURE, WAIT_S


class LangChain(Client):
    """langchain-openai."""

    package, module = "langchain-openai", "langchain_openai"

    def __init__(self, base):
        from langchain_openai import ChatOpenAI

        self.model = ChatOpenAI(
            base_url=base, api_key="none", model="nano", temperature=0, max_retries=0, timeout=WAIT_S
        )

    def picture(self, words, first):
        return self.model.invoke(user(words, first=first)).content

    def stream(self, words):
        return "".join(piece.content for piece in self.model.stream(user(words)))

    def turns(self, answer):
        return self.model.invoke(conversation(answer)).content

    def schema(self, words):
        return self.model.with_structured_output(Count, method="json_schema").invoke(user(words))

    def tools(self):
        self.model.bind_tools([weather]).invoke("hi")

    def call(self):
        from langchain_core.messages import HumanMessage, ToolMessage

        model = self.model.bind_tools([weather])
        asked = HumanMessage("How warm is it in Bern?")
        said = model.invoke([asked])
        (call,) = said.tool_calls
        result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
        return call["args"]["city"], model.invoke([asked, said, result]).content

    def overflow(self, words):
        self.model.invoke(words)

    async def four(self, words):
        return [found.content for found in await self.model.abatch([user(words)] * 4)]

    def cancel(self, words):
        pieces = self.model.stream(user(words))
        next(piece for piece in pieces if piece.content)
        pieces.close()


class LiteLlm(Client):
    """litellm, with the prefix hosted_vllm."""

    package = module = "litellm"

    def __init__(self, base):
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches prices when it is imported
        self.options = {"model": "hosted_vllm/nano", "api_base": base, "api_key": "none", "timeout": WAIT_S}
        self.options |= {"temperature": 0, "max_retries": 0}

    def _ask(self, messages, **options):
        import litellm

        return litellm.completion(messages=messages, **self.options, **options)

    def picture(self, words, first):
        return self._ask(user(words, first=first)).choices[0].message.content

    def stream(self, words):
        return "".join(chunk.choices[0].delta.content or "" for chunk in self._ask(user(words), stream=True))

    def turns(self, answer):
        return self._ask(conversation(answer)).choices[0].message.content

    def schema(self, words):
        return Count.model_validate_json(self._ask(user(words), response_format=Count).choices[0].message.content)

    def tools(self):
        self._ask([{"role": "user", "content": "hi"}], tools=[TOOL])

    def call(self):
        asked = [{"role": "user", "content": "How warm is it in Bern?"}]
        message = self._ask(asked, tools=[TOOL]).choices[0].message
        (call,) = message.tool_calls
        city = json.loads(call.function.arguments)["city"]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(city)}
        return city, self._ask([*asked, message, result], tools=[TOOL]).choices[0].message.content

    def overflow(self, words):
        import litellm

        with contextlib.suppress(litellm.ContextWindowExceededError):
            self._ask([{"role": "user", "content": words}])
            return
        raise RuntimeError("maximum context length is: litellm's ContextWindowExceededError")

    async def four(self, words):
        import litellm

        calls = [litellm.acompletion(messages=user(words), **self.options) for _ in range(4)]
        return [found.choices[0].message.content for found in await asyncio.gather(*calls)]

    def cancel(self, words):
        import litellm

        async def read(begun):
            async for _ in await litellm.acompletion(messages=user(words), stream=True, **self.options):
                begun.set()

        leave(read)


class PydanticAi(Client):
    """pydantic-ai with NativeOutput."""

    package, module = "pydantic-ai-slim", "pydantic_ai.models.openai"

    def __init__(self, base):
        from pydantic_ai import Agent, BinaryContent, NativeOutput
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        self.model = OpenAIChatModel("nano", provider=OpenAIProvider(base_url=base, api_key="none"))
        self.agent = Agent(self.model, model_settings={"temperature": 0})
        self.typed = Agent(self.model, output_type=NativeOutput(Count), retries=0, model_settings={"temperature": 0})
        self.tooled = Agent(self.model, tools=[weather], model_settings={"temperature": 0})
        self.image = BinaryContent(PICTURE.read_bytes(), media_type="image/png")

    def _run(self, agent, *given, **options):
        return asyncio.run(agent.run(*given, **options))

    def picture(self, words, first):
        return self._run(self.agent, [self.image, words] if first == "picture" else [words, self.image]).output

    def stream(self, words):
        async def read():
            async with self.agent.run_stream([self.image, words]) as found:
                return "".join([piece async for piece in found.stream_text(delta=True)])

        return asyncio.run(read())

    def turns(self, answer):
        before = self._run(self.agent, [self.image, WHERE])
        return self._run(self.agent, MORE, message_history=before.all_messages()).output

    def schema(self, words):
        return self._run(self.typed, [self.image, words]).output

    def tools(self):
        self._run(self.tooled, "hi")

    def call(self):
        found = self._run(self.tooled, "How warm is it in Bern?")
        results = [
            part for message in found.all_messages() for part in message.parts if part.part_kind == "tool-return"
        ]
        return results[0].content.rpartition(" ")[2], found.output

    def overflow(self, words):
        self._run(self.agent, words)

    async def four(self, words):
        found = await asyncio.gather(*(self.agent.run([self.image, words]) for _ in range(4)))
        return [each.output for each in found]

    def cancel(self, words):
        async def read(begun):
            async with self.agent.run_stream([self.image, words]) as found:
                async for _ in found.stream_text(delta=True, debounce_by=None):
                    begun.set()

        leave(read)


class LlamaIndex(Client):
    """llama-index-llms-openai-like."""

    package, module = "llama-index-llms-openai-like", "llama_index.llms.openai_like"

    def __init__(self, base):
        from llama_index.llms.openai_like import OpenAILike

        options = {"model": "nano", "api_base": base, "api_key": "none", "max_retries": 0, "timeout": WAIT_S}
        options |= {"is_chat_model": True, "temperature": 0, "context_window": 8192}
        self.model = OpenAILike(**options, should_use_structured_outputs=True)
        self.tooled = OpenAILike(**options, is_function_calling_model=True)

    def _user(self, words, first="picture"):
        from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

        blocks = [ImageBlock(image=PICTURE.read_bytes(), image_mimetype="image/png"), TextBlock(text=words)]
        return ChatMessage(role="user", blocks=blocks if first == "picture" else blocks[::-1])

    def picture(self, words, first):
        return self.model.chat([self._user(words, first)]).message.content

    def stream(self, words):
        return "".join(piece.delta or "" for piece in self.model.stream_chat([self._user(words)]))

    def turns(self, answer):
        from llama_index.core.base.llms.types import ChatMessage

        said = [ChatMessage(role="assistant", content=answer), ChatMessage(role="user", content=MORE)]
        return self.model.chat([self._user(WHERE), *said]).message.content

    def schema(self, words):
        from llama_index.core.prompts import ChatPromptTemplate

        return self.model.structured_predict(Count, ChatPromptTemplate([self._user(words)]))

    def tools(self):
        from llama_index.core.tools import FunctionTool

        self.tooled.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="hi")

    def overflow(self, words):
        from llama_index.core.base.llms.types import ChatMessage

        self.model.chat([ChatMessage(role="user", content=words)])

    def cancel(self, words):
        async def read(begun):
            async for _ in await self.model.astream_chat([self._user(words)]):
                begun.set()

        leave(read)

    async def four(self, words):
        found = await asyncio.gather(*(self.model.achat([self._user(words)]) for _ in range(4)))
        return [each.message.content for each in found]
