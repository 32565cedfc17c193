"""Requests as programs of robotics make them: lerobot's annotator and Live VLM WebUI, through the `openai` client."""

import asyncio
import base64
import concurrent.futures
import io
import json

import numpy as np
import pytest
from PIL import Image

from support.served import PICTURE, WAIT_S, serving
from support.served_families import ONE, scripted

openai = pytest.importorskip("openai")


def data_url(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_live_vlm_webui(address, engine):
    """Text before a JPEG, a model name of the user's, temperature 0.7; its list of models comes first."""

    async def describe():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY", timeout=WAIT_S) as client:
            models = [model.id async for model in await client.models.list()]
            with Image.open(PICTURE) as picture:
                url = data_url(picture.convert("RGB"), "JPEG")
            words = {"type": "text", "text": "What does the sign say?"}
            messages = [{"role": "user", "content": [words, {"type": "image_url", "image_url": {"url": url}}]}]
            return await client.chat.completions.create(
                model=models[0], messages=messages, max_tokens=512, temperature=0.7
            )

    answer = asyncio.run(describe())  # drawn, since the temperature is not 0
    assert answer.choices[0].message.content.strip() and answer.choices[0].finish_reason == "stop"
    assert answer.model == "nano" and answer.usage.prompt_tokens > engine.count_tokens("What does the sign say?")


@pytest.fixture
def annotator(tmp_path):
    """A client as the annotator makes it, of a server with two answers: prose, then JSON."""
    answers = ["I see a cube.<|im_end|>", '{"subtasks": ["reach", "grasp"]}<|im_end|>']
    engine, _, _ = scripted(tmp_path, "qwen2_5_vl", *answers)
    with serving(engine, limits=ONE) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="EMPTY") as client:
        yield client


def test_lerobot_s_annotator_asks_again_for_json(annotator):
    """Frames of an episode as PNG, its options of the template, and a second turn after an answer that is no JSON."""
    frames = [Image.fromarray(np.full((64, 96, 3), level, np.uint8)) for level in (20, 120, 220)]
    content = [{"type": "image_url", "image_url": {"url": data_url(frame, "PNG")}} for frame in frames]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Name the subtasks as JSON."}]}]
    options = {"model": "nano", "max_tokens": 64, "temperature": 0.0}
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    first = annotator.chat.completions.create(messages=messages, **options, extra_body=extra)
    text = first.choices[0].message.content
    assert text == "I see a cube."
    again = {"role": "user", "content": "Your previous reply was not valid JSON."}
    messages += [{"role": "assistant", "content": text}, again]
    second = annotator.chat.completions.create(messages=messages, **options, extra_body=extra)
    assert json.loads(second.choices[0].message.content) == {"subtasks": ["reach", "grasp"]}
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_lerobot_s_annotator_sends_an_episode_as_video(annotator):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for level in range(20, 220, 20):
            frame = np.full((64, 96, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    url = f"data:video/mp4;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What happens?"}]
    sampling = {"chat_template_kwargs": {"enable_thinking": False}}
    sampling["mm_processor_kwargs"] = {"fps": 1.0, "do_sample_frames": True}
    answer = annotator.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0.0,
        extra_body=sampling,
    )
    assert answer.choices[0].message.content == "I see a cube."


def test_lerobot_s_annotator_asks_from_several_threads(annotator):
    """Its client_concurrency: two at once, of which each gets an answer of its own."""

    def one(level):
        url = data_url(Image.new("RGB", (96, 64), (level, 0, 0)), "PNG")
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        answer = annotator.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": content}], max_tokens=64, temperature=0.0
        )
        return answer.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(one, (40, 200)))
    assert sorted(texts) == ["I see a cube.", '{"subtasks": ["reach", "grasp"]}']
