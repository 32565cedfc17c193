"""Clients of a fleet: cameras with sessions of their own, others without, and the engine that answered each request."""

from __future__ import annotations

import base64
import collections
import contextlib
import io
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from common import running_threads
from PIL import Image

PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
QUESTION = "Where is the red mug?"
MODEL = "nano"
PICTURES = 8
OTHERS = 2  # clients without a session
PAUSE_S = 1.0  # between two requests of a client while engines start, which need the processor as well
WITHIN_S = 120.0
SETTLED_S = 0.03  # until an engine has a request that began


def pictures() -> list[bytes]:
    """PNG files that differ in a corner."""
    pixels = np.asarray(Image.open(PICTURE).convert("RGB"))
    files = []
    for number in range(PICTURES):
        changed, file = pixels.copy(), io.BytesIO()
        changed[:8, :8] = 30 * number
        Image.fromarray(changed).save(file, "PNG")
        files.append(file.getvalue())
    return files


@dataclass(frozen=True)
class Answered:
    """A request, when it began and ended, and what came; replica: of the engine that answered."""

    client: str
    begun: float
    ended: float
    status: int
    code: str
    replica: str
    right: bool


class Load:
    """Clients that ask without a pause, and their answers."""

    def __init__(self, port: int, cameras: int, expected: dict[bytes, str]) -> None:
        self._url, self._expected = f"http://127.0.0.1:{port}/v1/chat/completions", expected
        self._done = threading.Event()
        self.answers: list[Answered] = []
        self.open: dict[str, float] = {}
        self.pause_s = PAUSE_S
        self.cameras = [f"camera{number}" for number in range(cameras)]
        names = [*self.cameras, *(f"other{number}" for number in range(OTHERS))]
        self._threads = [threading.Thread(target=self._run, args=[name]) for name in names]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Ask meanwhile; at the end the requests under way are waited for."""
        with running_threads(self._threads, self._done.set):
            yield

    def home(self, camera: str, before: float = float("inf")) -> str:
        """The engine that answered a camera last before a time; "" for none and for clients that are no cameras."""
        own = (each for each in reversed(list(self.answers)) if each.client == camera and each.ended <= before)
        return next((each.replica for each in own), "") if camera in self.cameras else ""

    def has_open(self, replica: str) -> bool:
        """Tell if a request of a camera is under way whose engine this is."""
        now = time.monotonic()
        return any(now - begun > SETTLED_S and self.home(name) == replica for name, begun in list(self.open.items()))

    def least_answers(self, since: float) -> int:
        """The answers to the camera that got the fewest, of requests that began after a time."""
        count = collections.Counter(each.client for each in list(self.answers) if each.begun >= since)
        return min(count[camera] for camera in self.cameras)

    def replicas(self, since: float) -> set[str]:
        """Engines that answered requests which began after a time."""
        return {each.replica for each in list(self.answers) if each.begun >= since and each.status == 200}

    def _run(self, name: str) -> None:
        headers = {"X-Session-ID": name} if name in self.cameras else {}
        with httpx.Client(timeout=WITHIN_S, headers=headers) as http:
            for picture, text in itertools.cycle(self._expected.items()):
                if self._done.is_set():
                    return
                self.open[name] = time.monotonic()
                self.answers.append(self._ask(http, name, picture, text))
                del self.open[name]
                self._done.wait(self.pause_s)

    def _ask(self, http: httpx.Client, name: str, picture: bytes, text: str) -> Answered:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
        begun = time.monotonic()
        try:
            response = http.post(self._url, json=body)
        except httpx.HTTPError as error:
            return Answered(name, begun, time.monotonic(), 0, type(error).__name__, "", False)
        ended, replica = time.monotonic(), response.headers.get("x-replica-id", "")
        if response.status_code != 200:
            return Answered(name, begun, ended, response.status_code, _code(response), replica, False)
        said = response.json()["choices"][0]["message"]["content"]
        return Answered(name, begun, ended, 200, "", replica, said == text)


def _code(response: httpx.Response) -> str:
    """The code of an error in the server's own form; "" for any other."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(response.json()["error"]["code"])
    return ""


def shares(answers: list[Answered], cameras: list[str], begun: float, ended: float) -> dict[str, float]:
    """The share of each camera's answers, of requests made and answered between two times, that one engine gave."""
    found: dict[str, float] = {}
    for camera in cameras:
        engines = collections.Counter(
            each.replica
            for each in answers
            if each.client == camera and begun <= each.begun and each.ended <= ended and each.status == 200
        )
        found[camera] = max(engines.values(), default=0) / max(engines.total(), 1)
    return found
