"""A model of Triton's Python backend: pieces of an answer as they come, then the whole of it with its boxes.

Triton hands over requests one after another and this model answers them together (Batcher), so its policy is decoupled
and Triton batches nothing. examples/triton/models is the model repository.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # there inside Triton only

from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.inputs.clips import Video
from qwenvl_edge.replies.reply import Reply

_NUMBER = (int, float)
_OPTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("max_new_tokens", "top_k", "seed", "logprobs"), (int,)),
    **dict.fromkeys(("deadline_ms", "temperature", "top_p"), _NUMBER),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), _NUMBER),
    "do_sample": (bool,),
    "stop": (str, list),
    "fps": _NUMBER,
    "system": (str,),
    "history": (list,),
    "json_schema": (dict,),
}
_ENGINE = {"threads": int, "max_context": int, "backend": str, "device": str}


class TritonPythonModel:
    """The class that Triton loads; the tensors are described in docs/fleets.md."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the bundle that config.pbtxt names, relative to the version's folder.

        Raises:
            QwenVLError: a parameter of config.pbtxt is unknown or malformed, or what QwenVLEngine raises.
        """
        given = {name: each["string_value"] for name, each in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], given.pop("bundle", "bundle"))
        rows = _parameter("rows", int, given.pop("rows", "16"))
        if unknown := sorted(given.keys() - _ENGINE.keys()):
            known = ", ".join(("bundle", "rows", *_ENGINE))
            raise QwenVLError(f"config.pbtxt has a parameter {unknown[0]!r}; known are {known}.")
        options: dict[str, Any] = {name: _parameter(name, _ENGINE[name], text) for name, text in given.items()}
        self._engine = QwenVLEngine(folder, **options)
        self._batcher = self._engine.batcher(rows=rows)

    def execute(self, requests: list[Any]) -> None:
        """Queue requests; their responses are sent as they come, by the batcher's thread."""
        for request in requests:
            self._begin(request, request.get_response_sender())

    def finalize(self) -> None:
        """Finish the answers that run."""
        self._batcher.close()

    def _begin(self, request: Any, sender: Any) -> None:
        token = CancelToken()
        try:
            arguments = _arguments(request)
            future = self._batcher.submit(**arguments, cancel=token, on_text=functools.partial(_say, sender, token))
        except QwenVLError as error:
            _end(sender, triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG)))
        except Exception as error:  # one request's, which the requests after it must not meet
            _end(sender, triton.InferenceResponse(error=triton.TritonError(f"{type(error).__name__}: {error}")))
        else:
            future.add_done_callback(functools.partial(_finish, sender))


def _parameter(name: str, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise QwenVLError(f"the parameter {name} in config.pbtxt is {text!r}; give a whole number.") from None


def _arguments(request: Any) -> dict[str, Any]:
    """Return the arguments of Batcher.submit."""
    tensors = {
        tensor.name(): tensor.as_numpy()
        for name in ("QUESTION", "IMAGE", "PIXELS", "FRAMES", "CLIP", "OPTIONS")
        if (tensor := triton.get_input_tensor_by_name(request, name)) is not None
    }
    options = _options(_only(tensors, "OPTIONS") if "OPTIONS" in tensors else b"{}")
    images = _pictures(tensors, "IMAGE")
    if "PIXELS" in tensors:
        images.append(tensors["PIXELS"])
    video = _clip(tensors, options.pop("fps", None))
    return {"message": _text(_only(tensors, "QUESTION"), "QUESTION"), "images": images, "video": video, **options}


def _only(tensors: dict[str, Any], name: str) -> bytes:
    if name not in tensors or tensors[name].size != 1:
        raise PromptError(f"{name} has {tensors[name].size if name in tensors else 'no'} values; give one.")
    return bytes(tensors[name].flat[0])


def _pictures(tensors: dict[str, Any], name: str) -> list[Any]:
    return [_picture(bytes(each), name) for each in tensors[name].flat] if name in tensors else []


def _clip(tensors: dict[str, Any], fps: float | None) -> Video | None:
    """Return the clip of a request: image files in FRAMES, or decoded frames in CLIP [N, H, W, 3]."""
    given = [name for name in ("FRAMES", "CLIP") if name in tensors]
    if len(given) > 1:
        raise PromptError("the request has both FRAMES and CLIP; give the clip once.")
    if not given:
        if fps is not None:
            raise PromptError("OPTIONS has fps, but there is no clip; give FRAMES or CLIP.")
        return None
    frames = _pictures(tensors, "FRAMES") if given == ["FRAMES"] else list(tensors["CLIP"])
    return Video(frames, fps=fps)


def _options(data: bytes) -> dict[str, Any]:
    text = _text(data, "OPTIONS")
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"OPTIONS is not JSON: {error}.") from None
    if not isinstance(options, dict):
        raise PromptError("OPTIONS is not a JSON object; give {} for none.")
    if unknown := sorted(options.keys() - _OPTIONS.keys()):
        raise PromptError(f"OPTIONS has {unknown[0]!r}; known are {', '.join(sorted(_OPTIONS))}.")
    for name, value in options.items():
        kinds = _OPTIONS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise PromptError(f"{name} in OPTIONS is {value!r}; give {' or '.join(kind.__name__ for kind in kinds)}.")
    if "json_schema" in options:
        options["constraint"] = Constraint.json(options.pop("json_schema"))
    return options


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PromptError(f"{name} is not UTF-8.") from None


def _picture(data: bytes, name: str) -> bytes:
    """Return an image file as it came, or out of a base64 data: URI, as JSON carries one."""
    if not data.startswith(b"data:"):
        return data
    try:
        return base64.b64decode(data.partition(b",")[2], validate=True)
    except binascii.Error:
        raise PromptError(f"{name} is a data: URI that is not valid base64.") from None


def _say(sender: Any, token: CancelToken, piece: str) -> None:
    if sender.is_cancelled():
        token.cancel()
    else:
        sender.send(_response(TEXT=piece))


def _finish(sender: Any, answered: Future[Reply]) -> None:
    error = answered.exception()
    if error is None:
        _end(sender, _response(TEXT="", ANSWER=json.dumps(_answer(answered.result()), ensure_ascii=False)))
    else:
        _end(sender, triton.InferenceResponse(error=triton.TritonError(str(error))))


def _end(sender: Any, response: Any) -> None:
    sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(**texts: str) -> Any:
    tensors = [triton.Tensor(name, np.array([text.encode()], np.object_)) for name, text in texts.items()]
    return triton.InferenceResponse(output_tensors=tensors)


def _answer(reply: Reply) -> dict[str, Any]:
    answer = reply.to_dict()
    if reply.logprobs is not None:
        answer["logprobs"] = [token.to_dict() for token in reply.logprobs]
    return answer
