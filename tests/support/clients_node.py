"""The AI SDK, by node: see clients.py. `make clients` installs it where node and npm are."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

from support.clients import MORE, WHERE, Client, Count
from support.paths import ROOT
from support.served import PICTURE, WAIT_S

INSTALLED = ROOT / ".cache" / "clients-node"
SCRIPT = Path(__file__).with_suffix(".mjs")


class AiSdk(Client):
    """Its provider for servers that speak OpenAI's protocol."""

    package, provider = "@ai-sdk/openai-compatible", "compatible"

    def __init__(self, base):
        self.base = base

    @classmethod
    def _manifest(cls):
        return INSTALLED / "node_modules" / cls.package / "package.json"

    @classmethod
    def missing(cls):
        return shutil.which("node") is None or not cls._manifest().exists()

    @classmethod
    def version(cls):
        return json.loads(cls._manifest().read_text(encoding="utf-8"))["version"]

    def _ask(self, feature, words="", **task):
        task |= {"feature": feature, "words": words, "base": self.base, "provider": self.provider}
        run = subprocess.run(
            ["node", str(SCRIPT), str(INSTALLED)],
            input=json.dumps({**task, "picture": str(PICTURE)}),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert run.stdout, run.stderr[-2000:]
        answer = json.loads(run.stdout.splitlines()[-1])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def picture(self, words, first):
        return self._ask("picture", words, first=first)

    def stream(self, words):
        return self._ask("stream", words)

    def turns(self, answer):
        return self._ask("turns", WHERE, answer=answer, more=MORE)

    def schema(self, words):
        return Count.model_validate(self._ask("schema", words))

    def tools(self):
        self._ask("tools")

    def call(self):
        found = self._ask("call", "How warm is it in Bern?")
        assert found["pieces"] > 1
        return found["city"], found["text"]

    def overflow(self, words):
        self._ask("overflow", words)

    async def four(self, words):
        return await asyncio.to_thread(self._ask, "four", words)

    def cancel(self, words):
        self._ask("cancel", words)


class AiSdkOpenAi(AiSdk):
    """Its provider for OpenAI, which speaks the Responses protocol."""

    package, provider = "@ai-sdk/openai", "openai"
