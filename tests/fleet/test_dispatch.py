"""Routing and what happens to the requests of a lost replica, without a cluster."""

import asyncio
import collections
import contextlib
import json
import types

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray Serve is not installed")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from qwenvl_edge.constraints import ending  # noqa: E402
from qwenvl_edge.constraints.constraint import Constraint  # noqa: E402
from qwenvl_edge.errors import ContextError, QwenVLError  # noqa: E402
from qwenvl_edge.fleet import dispatch, ray_serve, routing, session  # noqa: E402
from qwenvl_edge.inputs.cancel import CancelToken  # noqa: E402
from qwenvl_edge.inputs.clips import Clip  # noqa: E402
from qwenvl_edge.inputs.pictures import load_picture  # noqa: E402
from qwenvl_edge.replies.reply import Reply, TokenLogprob  # noqa: E402
from qwenvl_edge.server.errors import ApiError  # noqa: E402

REPLY = Reply("red", "red", (), (), (), (), (), (), "stop", None)
TAKEN = dispatch.Taken("first")
LOST = ray.exceptions.ActorDiedError()


def test_pictures_are_spread_and_stay_when_replicas_come_and_go():
    names = ["a", "b", "c", "d"]
    keys = [f"{number:064x}" for number in range(2000)]
    before = {key: routing.preferred(key, names) for key in keys}
    counts = collections.Counter(before.values())
    assert min(counts.values()) > 400
    fewer = {key: routing.preferred(key, ["d", "b", "a"]) for key in keys}  # in another order, too
    assert all(fewer[key] == before[key] for key in keys if before[key] != "c")
    assert {fewer[key] for key in keys if before[key] == "c"} == {"a", "b", "d"}


def test_the_key_is_the_first_picture_or_clip_of_the_conversation():
    first, second = (load_picture(np.full((4, 4, 3), shade, np.uint8)) for shade in (1, 2))
    clip, other = (Clip((first, each), (0.0, 0.5), "a clip") for each in (second, first))
    words, about = [{"text": "?"}], [{"text": "This:"}, {"image": first}, {"image": second}]
    assert routing.picture_key({"history": [], "message": about}) == first.digest
    assert routing.picture_key({"history": [(about, "red")], "message": [{"image": second}]}) == first.digest
    assert routing.picture_key({"history": [(words, "yes")], "message": words}) == ""
    assert routing.picture_key({"history": [(None, "Hello!")], "message": about}) == first.digest
    assert routing.picture_key({"history": [], "message": [{"video": clip}, *about]}) == clip.digest
    assert routing.picture_key({"history": [([{"video": other}], "red")], "message": about}) == other.digest
    assert len({first.digest, clip.digest, other.digest}) == 3


def test_a_session_has_one_key_whatever_its_pictures():
    """Through the application and the thread in which a request is submitted; others go by their pictures.

    The answer's headers name the replica that gave it, not one that was lost before.
    """
    handle = Handle([TAKEN, LOST], [dispatch.Taken("second"), REPLY], [TAKEN, REPLY], [TAKEN, REPLY])
    sent = []

    async def run():
        dispatcher = dispatch.Dispatcher(handle)

        async def app(scope, receive, send):
            picture = load_picture(np.full((4, 4, 3), scope["shade"], np.uint8))
            arguments = {"history": [], "message": [{"image": picture}], "deadline_ms": 30_000}
            future = await asyncio.to_thread(dispatcher.submit, cancel=CancelToken(), **arguments)
            await asyncio.wrap_future(future)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b""})

        async def keep(message):
            sent.append(message)

        sessions = session.Sessions(app)
        for shade, headers in ((1, [(b"X-Session-ID", b"left")]), (2, [(b"x-session-id", b"left")]), (1, [])):
            await sessions({"type": "http", "headers": headers, "shade": shade}, None, keep)

    asyncio.run(run())
    first, _, second, other = handle.keys
    assert first == second == "session left" and len(other) == 64
    names = [dict(message["headers"]) for message in sent if message["type"] == "http.response.start"]
    assert names == [{b"a": b"b", b"x-replica-id": name} for name in (b"second", b"first", b"first")]


def test_what_no_replica_answers_names_none():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def keep(message):
        sent.append(message)

    asyncio.run(session.Sessions(app)({"type": "http"}, None, keep))
    assert sent == [{"type": "http.response.start", "status": 200}]


@pytest.mark.parametrize(
    ("autoscaling", "match"),
    [
        ({"upscale_delay": 1}, "known are"),
        ({"min_replicas": 1}, "known are"),
        ({"upscale_delay_s": -1}, "cannot be used"),
    ],
)
def test_bad_autoscaling_is_one_sentence(autoscaling, match):
    options = ray_serve.Options(bundle="none", max_replicas=4, autoscaling=autoscaling)
    with pytest.raises(QwenVLError, match=match) as caught:
        options.autoscaling_config()
    assert "\n" not in str(caught.value)


class Handle:
    """Stands for a handle: each call gets the next script, items to send or errors to raise."""

    def __init__(self, *scripts):
        self.scripts, self.calls, self.cancelled, self.keys = list(scripts), [], 0, []
        self.answer = self

    def options(self, **_):
        return self

    def remote(self, key, arguments, stream):
        self.calls.append(arguments)
        self.keys.append(key)
        return Items(self, self.scripts.pop(0) if self.scripts else [LOST])


class Items:
    def __init__(self, handle, script):
        self._handle, self._script = handle, list(script)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._script:
            raise StopAsyncIteration
        item = self._script.pop(0)
        if item == "hang":
            await asyncio.sleep(60)
        if isinstance(item, Exception) and not isinstance(item, QwenVLError):
            raise item
        return item

    def cancel(self):
        self._handle.cancelled += 1


def ask(handle, *, token=None, deadline_ms=30_000, stream=False):
    """The reply, and the pieces that came before it."""
    pieces = []

    async def run():
        dispatcher = dispatch.Dispatcher(handle)
        future = dispatcher.submit(
            cancel=token or CancelToken(),
            deadline_ms=deadline_ms,
            on_text=pieces.append if stream else None,
            on_logprobs=pieces.append if stream else None,
            message=[{"text": "?"}],
            history=[],
        )
        with contextlib.suppress(Exception):
            await asyncio.wrap_future(future)
        assert dispatcher.waiting == dispatcher.running == 0
        return future

    return asyncio.run(run()), pieces


def test_a_request_is_asked_again_until_its_first_words():
    handle = Handle([LOST], [LOST], [LOST], [LOST], [TAKEN, LOST], [TAKEN, LOST], [TAKEN, "r", "ed", REPLY])
    future, pieces = ask(handle, stream=True)
    assert future.result() is REPLY and pieces == ["r", "ed"] and len(handle.calls) == 7
    assert handle.calls[-1]["deadline_ms"] < handle.calls[0]["deadline_ms"] <= 30_000
    future, pieces = ask(Handle([TAKEN, "r", LOST], [TAKEN, REPLY]), stream=True)
    assert future.exception().status == 503 and pieces == ["r"]
    assert future.exception().body["error"]["code"] == "replica_lost"


def test_log_probabilities_are_passed_on_and_count_as_words():
    some = [TokenLogprob(1, b"r", -0.5)]
    future, pieces = ask(Handle([TAKEN, some, "red", REPLY]), stream=True)
    assert future.result() is REPLY and pieces == [some, "red"]
    future, pieces = ask(Handle([TAKEN, some, LOST], [TAKEN, REPLY]), stream=True)
    assert future.exception().body["error"]["code"] == "replica_lost" and pieces == [some]


def test_a_request_that_ends_replicas_is_given_up():
    handle = Handle(*[[TAKEN, LOST]] * 9)
    future, _ = ask(handle)
    assert "3 replicas ended while they had this request" in str(future.exception()) and len(handle.calls) == 3


def test_no_replica_in_time_and_an_answer_without_an_end():
    future, _ = ask(Handle(["hang"]), deadline_ms=50)
    assert future.exception().body["error"]["code"] == "no_replica"
    assert future.exception().headers == {"Retry-After": "1"}
    future, _ = ask(Handle([TAKEN]))
    assert isinstance(future.exception(), ApiError)


def test_what_is_wrong_with_a_request_is_raised_and_not_asked_again():
    error = ContextError("it is too long.")
    handle = Handle([TAKEN, error])
    future, _ = ask(handle)
    assert future.exception() is error and len(handle.calls) == 1


def test_a_client_that_leaves_ends_the_call():
    token = CancelToken()
    token.cancel()
    handle = Handle([TAKEN, "hang", REPLY])
    future, _ = ask(handle, token=token)
    assert future.exception().body["error"]["code"] == "cancelled"


def test_the_options(nano, tmp_path):
    options = ray_serve.Options(bundle=nano, replicas="2", max_replicas="5", limits={"rows": 4, "queue": "9"})
    assert options.settings().limits.rows == 20 and options.settings().limits.queue == 9
    scaling = ray_serve._engines(options)._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 2)
    with pytest.raises(ValueError, match="replica"):
        ray_serve.Options(bundle=nano, replica=2)
    with pytest.raises(QwenVLError, match="there is no limit 'row'; known are rows"):
        ray_serve.app(ray_serve.Options(bundle=nano, limits={"row": 4}))
    with pytest.raises(QwenVLError, match="there is no bundle"):
        ray_serve.app(ray_serve.Options(bundle=tmp_path / "none"))


def test_the_end_of_a_form_is_sought_in_another_process_than_the_replicas(nano, monkeypatch):
    def here(*_, **__):
        raise AssertionError("it was sought here")

    context = types.SimpleNamespace(replica_id=types.SimpleNamespace(unique_id="first"))
    monkeypatch.setattr(ray_serve.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(ending, "shortest_end", here)
    form = Constraint.json({"type": "array", "minItems": 3, "items": {"type": "null"}})
    arguments = {"message": "x", "history": (), "constraint": form, "max_new_tokens": 2, "do_sample": False}

    async def answered():
        replica = ray_serve.Engine(ray_serve.Options(bundle=nano))
        try:
            return [item async for item in replica.answer("", arguments, stream=False)]
        finally:
            await replica._trials.close()
            await asyncio.to_thread(replica._batcher.close)

    taken, reply = asyncio.run(answered())
    assert taken == TAKEN and reply.finish_reason == "length"
    assert reply.complete and json.loads(reply.raw_text) == [None] * 3
