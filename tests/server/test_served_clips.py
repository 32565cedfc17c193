"""Clips and limits of pixels over the server, in the families whose pictures keep their shape."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.inputs.clips import Video
from support.families import FAMILIES
from support.served import WAIT_S, serving
from support.served_families import ONE, scripted

OK = "ok<|im_end|>"


def png(width, height, level=90):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level, 40, 200 - level)).save(file, "PNG")
    return file.getvalue()


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


def picture(data, **options):
    return {"type": "image_url", "image_url": {"url": uri(data)}, **options}


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_have_limits_of_pixels(tmp_path, name):
    data = png(112, 84)
    engine, _, _ = scripted(tmp_path, name, *[OK] * 9)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    counts = [engine.count_tokens("?", images=[pixels], max_pixels=most) for most in (None, 4096)]
    assert counts[0] > counts[1]
    with serving(engine, limits=ONE) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:

        def tokens(part, **options):
            body = {"model": "nano", "messages": user(part), **options}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["usage"]["prompt_tokens"]

        assert tokens(picture(data)) == counts[0]
        assert tokens(picture(data, max_pixels=4096)) == counts[1]
        assert tokens(picture(data), mm_processor_kwargs={"max_pixels": 4096}) == counts[1]
        assert tokens(picture(data, max_pixels=50_000), mm_processor_kwargs={"max_pixels": 4096}) == counts[0]
        large = picture(png(1000, 1000))
        assert tokens(large, mm_processor_kwargs={"max_pixels": 512 * 512}) == tokens(
            {**large, "image_url": {**large["image_url"], "detail": "low"}}
        )
        refused = http.post(
            "/v1/chat/completions", json={"model": "nano", "messages": user(picture(data, max_pixels=9))}
        )
        assert refused.status_code == 400 and "leaves no token" in refused.json()["error"]["message"]


def video(frames):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


FRAMES = [np.full((64, 96, 3), level, np.uint8) for level in (10, 60, 110, 160, 210, 250, 20, 70)]


@pytest.mark.parametrize("name", FAMILIES)
def test_clips(tmp_path, name):
    engine, backend, _ = scripted(tmp_path, name, *[OK] * 9)
    stills = [png(96, 64, level) for level in (10, 60, 110)]
    decoded = [np.asarray(Image.open(io.BytesIO(still))) for still in stills]
    joined = "data:video/jpeg;base64," + ",".join(base64.b64encode(still).decode() for still in stills)
    listed = [uri(still) for still in stills]
    with (
        serving(engine, limits={**ONE, "frames": 6}) as address,
        httpx.Client(base_url=address, timeout=WAIT_S) as http,
    ):

        def answered(part, status=200, **options):
            body = {"model": "nano", "messages": user(part), "temperature": 0, **options}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text
            return answer.json()

        expected = engine.count_tokens("?", video=Video(decoded, fps=2))
        for part in ({"type": "video_url", "video_url": {"url": joined}}, {"type": "video", "video": listed}):
            assert answered(part)["usage"]["prompt_tokens"] == expected
        assert backend.encoded == 1  # the same clip
        file = {"type": "video_url", "video_url": {"url": uri(video(FRAMES), "video/mp4")}}
        assert answered(file)["usage"]["prompt_tokens"] == expected  # four frames are two steps in time, as three are
        most = answered(file, mm_processor_kwargs={"fps": 4})["usage"]["prompt_tokens"]
        few = answered(file, media_io_kwargs={"video": {"num_frames": 2}})["usage"]["prompt_tokens"]
        assert few < answered(file)["usage"]["prompt_tokens"] < most
        lerobot = {"fps": 4.0, "do_sample_frames": True}
        assert answered(file, mm_processor_kwargs=lerobot)["usage"]["prompt_tokens"] == most
        pace = {"fps": 2, "do_sample_frames": False}  # of frames that were sampled already
        assert (
            answered({"type": "video", "video": listed}, mm_processor_kwargs=pace)["usage"]["prompt_tokens"] == expected
        )
        many = {"type": "video", "video": [listed[0]] * 7}
        assert "more than 6 frames" in answered(many, 400)["error"]["message"]
        broken = {"type": "video_url", "video_url": {"url": uri(b"no video", "video/mp4")}}
        assert "cannot be decoded as a video" in answered(broken, 400)["error"]["message"]
        unlike = {"type": "video", "video": [listed[0], uri(png(64, 64))]}
        assert "frames of one size" in answered(unlike, 400)["error"]["message"]
        (model,) = http.get("/v1/models").json()["data"]
        assert model["input_modalities"] == ["text", "image", "video"]


def test_clips_are_bounded(tmp_path):
    engine, _, _ = scripted(tmp_path, "qwen2_vl")
    part = {"type": "video_url", "video_url": {"url": uri(video(FRAMES), "video/mp4")}}
    frames = {"type": "video", "video": [uri(png(96, 64))] * 5}
    with serving(engine, limits={**ONE, "clip_pixels": 20_000}) as address:
        for each in (part, frames):
            body = {"model": "nano", "messages": user(each)}
            answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=WAIT_S)
            assert answer.status_code == 400 and "20,000 pixels in all its frames" in answer.json()["error"]["message"]


def test_which_frames_of_a_file_are_taken(tmp_path):
    """vLLM's options and those of the published preprocessing: all frames, a pace, a most, and what excludes what."""
    engine, _, _ = scripted(tmp_path, "qwen2_5_vl", *[OK] * 9)
    part = {"type": "video_url", "video_url": {"url": uri(video(FRAMES), "video/mp4")}}
    with serving(engine, limits=ONE) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:

        def answer(given, **options):
            body = {"model": "nano", "messages": user({**part, **given}), "temperature": 0, **options}
            return http.post("/v1/chat/completions", json=body)

        def tokens(given, **options):
            return answer(given, **options).json()["usage"]["prompt_tokens"]

        every = tokens({"do_sample_frames": False})
        assert every == tokens({"num_frames": -1}) == tokens({}, media_io_kwargs={"video": {"num_frames": -1}})
        assert every == tokens({"fps": 4}) > tokens({"fps": 4, "max_frames": 4}) == tokens({"num_frames": 4})
        for given in ({"do_sample_frames": False, "fps": 2}, {"num_frames": -1, "max_frames": 4}):
            refused = answer(given)
            assert refused.status_code == 400 and "send one of them" in refused.json()["error"]["message"]
        for wrong in ({"num_frames": 0}, {"max_frames": 0}, {"do_sample_frames": 2}, {"min_frames": 4}):
            refused = answer({}, mm_processor_kwargs=wrong)
            assert refused.status_code == 400 and next(iter(wrong)) in refused.json()["error"]["message"]
