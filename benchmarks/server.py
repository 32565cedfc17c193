"""`qwenvl serve` under load: tokens per second by number of clients, and a check that every answer is the client's own.

    python benchmarks/server.py out/nano [--repeats 7] [--tokens 128] [--requests 10000] [--json FILE] [--plot FILE]

The server is a process of its own. Clients ask for answers of one length about one picture, one after another; rounds
with different numbers of clients alternate, and ratios are medians over rounds. Then 16 clients ask questions whose
answers are known, streamed and whole; one in eight leaves early. `--repeats 0` leaves out the first (`make
server-soak`), `--requests 0` the second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import arguments, conditions, finish, needed_bundle, spread

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.families import open_family

PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
QUESTIONS = (
    *("Describe the picture.", "How many objects are there?", "What does the sign say?", "Where is the red mug?"),
    *("What colour is the car?", "Is there a red mug?", "OCR with grounding:", "描述这张图片。"),
)
CLIENTS = (1, 4, 16)
ROUND = 32  # requests of a round, shared by its clients
ASKERS = 16
LEAVING = 8  # one in so many
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Served:
    """A server that runs: its address and its process."""

    address: str
    pid: int


@contextlib.contextmanager
def served(bundle: str, threads: int | None, *, limits: bool = False) -> Iterator[Served]:
    """`qwenvl serve` on a free port. limits: those that it has by default."""
    # A machine that stops for a while, as a laptop or a shared one does, must not cut answers.
    options = [] if limits else ["--max-seconds", "1e6", "--max-read-seconds", "1e6"]
    options += [] if threads is None else ["--threads", str(threads)]
    command = [sys.executable, "-m", "qwenvl_edge.cli", "serve", bundle, "--port", "0", "--model-name", "m", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log, address = iter(process.stderr or ()), ""
        for line in log:
            found = re.search(r'"url": "(http://\S+)/"', line)
            address = found.group(1) if found else address
            if "startup complete" in line:
                break
        try:
            drain = threading.Thread(target=lambda: [None for _ in log])  # a full pipe would block the server
            drain.start()
            yield Served(address, process.pid)
        finally:
            process.terminate()
            drain.join()


class Load:
    """Requests about one picture; answers of `tokens` tokens, or as long as the model makes them."""

    def __init__(self, bundle: str, address: str, tokens: int) -> None:
        family = open_family(Bundle.open(bundle).manifest)
        ends = [ids[0] for ids in family.stop_sequences("chatml", lambda text: [])]
        self.endless = {"max_tokens": tokens, "logit_bias": {str(id_): -100 for id_ in ends}}
        self._picture = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
        self._url = f"{address}/v1/chat/completions"

    def body(self, question: str, *, picture: bool = True, **options: Any) -> dict[str, Any]:
        """A greedy request."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture:
            content.insert(0, {"type": "image_url", "image_url": {"url": self._picture}})
        return {"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0, **options}

    async def whole(self, http: httpx.AsyncClient, request: dict[str, Any]) -> tuple[str, int]:
        """An answer and how many tokens it has."""
        response = await http.post(self._url, json=request)
        response.raise_for_status()
        content = response.json()
        return content["choices"][0]["message"]["content"], content["usage"]["completion_tokens"]

    async def stream(self, http: httpx.AsyncClient, request: dict[str, Any]) -> AsyncIterator[str]:
        """The pieces of an answer; the first one is empty."""
        async with http.stream("POST", self._url, json={**request, "stream": True}) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith('data: {"id"'):
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content", "")


async def throughput(load: Load, clients: int, *, streamed: bool) -> float:
    """Tokens a second of all clients together."""
    questions = iter([QUESTIONS[number % len(QUESTIONS)] for number in range(ROUND)])
    total = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal total
        for question in questions:
            request = load.body(question, **load.endless)
            if streamed:
                async for _ in load.stream(http, request):
                    pass
                total += load.endless["max_tokens"]
            else:
                _, tokens = await load.whole(http, request)
                total += tokens

    async with httpx.AsyncClient(timeout=600) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return total / (time.perf_counter() - started)


async def crossed(load: Load, requests: int) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Ask in random order from all sides; count answers, those cut by the client, and the wrong ones, which follow."""
    questions = [(f"{question} {number}", number % 3 > 0) for number in range(4) for question in QUESTIONS]
    counts = {"answers": 0, "left": 0, "wrong": 0}
    wrong: list[dict[str, Any]] = []
    order = iter(random.Random(1).choices(range(len(questions)), k=requests))

    async def ask(http: httpx.AsyncClient, request: dict[str, Any], expected: str, number: int) -> None:
        if number % 2:
            text, _ = await load.whole(http, request)
        else:
            text, limit = "", 3 if number % LEAVING == 0 else sys.maxsize
            async with contextlib.aclosing(load.stream(http, request)) as pieces:
                async for piece in pieces:
                    text, limit = text + piece, limit - 1
                    if not limit:
                        break
            if not limit:
                counts["left"] += 1
                expected = expected[: len(text)]
        counts["answers"] += 1
        if text != expected:
            counts["wrong"] += 1
            asked = request["messages"][0]["content"][-1]["text"]
            wrong.append({"question": asked, "streamed": number % 2 == 0, "text": text, "expected": expected})

    async def client(http: httpx.AsyncClient) -> None:
        for number in order:
            await ask(http, requested[number], answers[number], counts["answers"])

    async with httpx.AsyncClient(timeout=600) as http:
        requested = [load.body(question, picture=picture, max_tokens=64) for question, picture in questions]
        answers = [(await load.whole(http, request))[0] for request in requested]
        await asyncio.gather(*(client(http) for _ in range(ASKERS)))
    return {**counts, "different_answers": len(set(answers))}, wrong


def measure(load: Load, repeats: int) -> Samples:
    """Tokens a second of alternating rounds; the first round warms up."""
    samples: Samples = {}
    for round_ in range(repeats + 1):
        for streamed in (False, True):
            for clients in CLIENTS:
                speed = asyncio.run(throughput(load, clients, streamed=streamed))
                if round_:
                    samples.setdefault(_name(clients, streamed), []).append(speed)
    return samples


def _name(clients: int, streamed: bool) -> str:
    return f"{clients} client{'s' * (clients > 1)}, {'streamed' if streamed else 'whole'}"


def speedup(samples: Samples, clients: int, *, streamed: bool) -> dict[str, float]:
    """Tokens a second of so many clients over those of one, round by round."""
    one, many = samples[_name(1, streamed)], samples[_name(clients, streamed)]
    return spread([b / a for a, b in zip(one, many, strict=True)])


def table(samples: Samples) -> None:
    """Medians with quartiles, and times one client's."""
    print(f"{'tokens/s of all together':<26}{'median':>10}{'q25':>10}{'q75':>10}{'times one':>12}")
    for streamed in (False, True):
        for clients in CLIENTS:
            low, middle, high = np.percentile(samples[_name(clients, streamed)], [25, 50, 75])
            times = speedup(samples, clients, streamed=streamed)["median"]
            print(f"{_name(clients, streamed):<26}{middle:>10.0f}{low:>10.0f}{high:>10.0f}{times:>12.2f}")


def plot(path: Path, samples: Samples) -> None:
    """Tokens a second over clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for streamed, label in ((False, "whole answers"), (True, "streamed")):
        medians = [np.median(samples[_name(clients, streamed)]) for clients in CLIENTS]
        axes.plot(CLIENTS, medians, marker="o", label=label)
    axes.set_xticks(CLIENTS)
    axes.set_xlabel("clients at once")
    axes.set_ylabel("tokens/s of all together")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="length of the answers whose speed is measured")
    parser.add_argument("--requests", type=int, default=10_000, help="answers that are compared")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write what was asked for."""
    options = parse()
    needed_bundle(options.bundle)
    before = conditions()
    with served(options.bundle, options.threads) as server:
        load = Load(options.bundle, server.address, options.tokens)
        samples = measure(load, options.repeats) if options.repeats else {}
        counts, wrong = asyncio.run(crossed(load, options.requests)) if options.requests else ({}, [])
    headline: dict[str, Any] = dict(counts)
    if samples:
        table(samples)
        most = CLIENTS[-1]
        headline[f"clients{most}_speedup"] = speedup(samples, most, streamed=False)["median"]
        headline[f"clients{most}_speedup_streamed"] = speedup(samples, most, streamed=True)["median"]
        headline |= {f"{case}, tokens/s": spread(rates)["median"] for case, rates in samples.items()}
    if counts:
        print(f"{counts['answers']} answers compared, {counts['left']} of them left early: {counts['wrong']} wrong")
    if samples and options.plot:
        plot(options.plot, samples)
    details = {
        "threads": options.threads,
        "tokens": options.tokens,
        "cases": {k: spread(v) for k, v in samples.items()},
        "wrong": wrong,
    }
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
