"""What fleet.triton uses of `triton_python_backend_utils`, which exists inside Triton only."""

import threading

from support.patience import PATIENCE_S

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    UNKNOWN, INVALID_ARG = 0, 2

    def __init__(self, message, code=UNKNOWN):
        self.text, self.kind = message, code

    def message(self):
        return self.text

    def code(self):
        return self.kind


class Tensor:
    def __init__(self, name, values):
        self._name, self._values = name, values

    def name(self):
        return self._name

    def as_numpy(self):
        return self._values


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Sender:
    """Collects the responses to a request; `leave_after` of them its client goes away."""

    def __init__(self, leave_after=None):
        self.responses, self._ended, self._leave_after = [], threading.Event(), leave_after

    def send(self, response=None, flags=0):
        assert not self._ended.is_set(), "nothing may come behind the final response"
        self.responses.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._ended.set()

    def is_cancelled(self):
        return self._leave_after is not None and len(self.responses) >= self._leave_after

    def wait(self):
        assert self._ended.wait(PATIENCE_S), "no final response came"
        return self.responses


class Request:
    def __init__(self, tensors, leave_after=None):
        self.tensors, self.sender = tensors, Sender(leave_after)

    def get_response_sender(self):
        return self.sender


def get_input_tensor_by_name(request, name):
    return Tensor(name, request.tensors[name]) if name in request.tensors else None
