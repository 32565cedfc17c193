"""Load tools, out of the box: locust, guidellm, and the form in which `vllm bench serve` asks."""

import importlib.util
import json
import subprocess
import sys

import pytest

from support.served import PICTURE, WAIT_S, data_uri

LOCUST = """
import json
from locust import HttpUser, task

class Asking(HttpUser):
    @task
    def ask(self):
        body = json.load(open({body!r}))
        with self.client.post("/v1/chat/completions", json=body, stream=True, catch_response=True) as answer:
            if not answer.text.rstrip().endswith("[DONE]"):
                answer.failure("the stream has no end")
"""


def question(**options):
    parts = [{"type": "text", "text": "Where is the red mug?"}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    return {"model": "nano", "messages": [{"role": "user", "content": parts}], "stream": True, **options}


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed; make clients-test")
def test_locust(address, tmp_path):
    body, file = tmp_path / "body.json", tmp_path / "locustfile.py"
    body.write_text(json.dumps(question(temperature=0)))
    file.write_text(LOCUST.format(body=str(body)))
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "-u", "4", "-r", "4", "-t", "4s"]
    run = subprocess.run(
        [*command, "--host", address, "--json"], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert run.returncode == 0, run.stderr[:3000]
    (figures,) = json.loads(run.stdout)
    assert figures["num_requests"] > 4 and figures["num_failures"] == 0


@pytest.mark.skipif(importlib.util.find_spec("guidellm") is None, reason="guidellm is not installed; make clients-test")
def test_guidellm(address, tmp_path):
    """With its check of the server at the start, which asks for /health."""
    asked, report = tmp_path / "asked.jsonl", tmp_path / "report.json"
    asked.write_text(
        "".join(json.dumps({"prompt": f"Is there a {what}?"}) + "\n" for what in ("mug", "car", "tree", "star"))
    )
    command = [
        *(sys.executable, "-m", "guidellm", "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={address}", "--profile", "kind=concurrent,streams=2"),
        *("--data", f"kind=json_file,path={asked}", "--output", f"kind=json,path={report}"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    (figures,) = json.loads(report.read_text())["benchmarks"]
    counts = figures["metrics"]["request_totals"]
    assert (counts["successful"], counts["errored"], counts["incomplete"]) == (4, 0, 0)
    assert all(each["output"] and each["output_tokens"] for each in figures["requests"]["successful"])


def events(answer):
    """The chunks of a stream as vLLM's benchmark cuts it: lines that begin with "data: "."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_vllm_bench_serve_over_chat(http, engine):
    """As its backend openai-chat sends it: a length that is kept, the counts in a chunk without choices."""
    options = {"temperature": 0.0, "max_completion_tokens": 12, "ignore_eos": True}
    body = {**question(**options), "stream_options": {"include_usage": True}}
    *chunks, last = events(http.post("/v1/chat/completions", json=body))
    expected = engine.chat("Where is the red mug?", images=[PICTURE], do_sample=False).stats.prompt_tokens
    assert (last["usage"]["completion_tokens"], last["usage"]["prompt_tokens"]) == (12, expected)
    assert all(chunk["choices"] for chunk in chunks) and last["choices"] == []


def test_vllm_bench_serve_over_completions(http):
    """As its backend openai sends it."""
    body = {"model": "nano", "prompt": "A red mug", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 8}
    body |= {"logprobs": None, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    *chunks, last = events(http.post("/v1/completions", json=body))
    assert last["usage"]["completion_tokens"] == 8 and "".join(each["choices"][0]["text"] for each in chunks)
