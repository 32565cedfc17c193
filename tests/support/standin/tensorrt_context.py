"""IExecutionContext of the stand-in: it checks shapes, addresses and captures, and puts its work on a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.standin.machine import Operation, Range, UndefinedBehaviorError
from support.standin.tensorrt_types import Severity

if TYPE_CHECKING:
    from support.standin.tensorrt_api import ICudaEngine, IRuntimeCache


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, kernels: IRuntimeCache | None = None):
        self.engine = engine
        self._kernels = kernels
        self._profile: int | None = None
        self._scratch: Range | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changes = 0  # of what a captured graph depends on
        self._settled = -1  # the change after which it was last enqueued

    def set_device_memory(self, memory, size):
        if memory % 256 or size < self.engine.device_memory_size_v2:
            self._error(f"Parameter check failed, condition: size >= {self.engine.device_memory_size_v2}")
            return
        self._scratch = Range(memory, size)
        self._changes += 1

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if not 0 <= profile_index < len(self.engine.profiles):
            self._error(f"Parameter check failed, condition: profileIndex < {len(self.engine.profiles)}")
            raise RuntimeError("Failed to set the optimization profile")  # as TensorRT's Python package does
        self._profile = profile_index
        self._shapes.clear()
        self._changes += 1
        return True

    def set_input_shape(self, name, shape):
        tensor = self.engine.graph.tensors.get(name)
        if tensor is None or not tensor.is_input or self._profile is None:
            return self._error(f"setInputShape: {name} is no input, or no profile is set")
        ranges = self.engine.profiles[self._profile].get(name)
        least, most = (ranges[0], ranges[2]) if ranges else (tensor.shape, tensor.shape)
        if len(shape) != len(least) or not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
            return self._error(
                f"Parameter check failed, condition: satisfyProfile. Set dimension {list(shape)} for tensor {name} "
                f"does not satisfy any optimization profiles ({list(least)} to {list(most)})"
            )
        self._shapes[name] = tuple(shape)
        self._changes += 1
        return True

    def set_tensor_address(self, name, memory):
        if name not in self.engine.graph.tensors:
            return self._error(f"setTensorAddress: unknown tensor {name}")
        if memory % 256:
            raise UndefinedBehaviorError(f"the address of {name} is not a multiple of 256")
        self._addresses[name] = memory
        self._changes += 1
        return True

    def execute_async_v3(self, stream_handle):
        machine = self.engine.machine
        if (why := self._incomplete()) is not None:
            return self._error(f"Error Code 3: API Usage Error (Parameter check failed, condition: {why})")
        capturing = machine.streams[stream_handle].captured is not None
        if capturing and self._settled != self._changes:
            return self._error("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
        self._settled = change = self._changes
        machine.counts["enqueues"] += 1
        if self._kernels is not None and (name := f"kernels of profile {self._profile}") not in self._kernels.kernels:
            machine.counts["compilations"] += 1
            self._kernels.kernels.add(name)
        places = self._places()
        self._check_aliases(places)

        def check():
            if self._changes != change:
                raise UndefinedBehaviorError("an execution context was changed after its work had been captured")

        shapes = dict(self._shapes)
        tensors = self.engine.graph.tensors
        reads = [place for name, place in places.items() if tensors[name].is_input]
        writes = [place for name, place in places.items() if not tensors[name].is_input]

        def run() -> None:
            self.engine.graph.run({name: machine.view(place) for name, place in places.items()}, shapes)

        machine.put(stream_handle, Operation("execute_async_v3", reads, [*writes, self._scratch], run, check))
        return True

    def _incomplete(self) -> str | None:
        """The first condition that is not met, because something is not set; None if all are met."""
        tensors = self.engine.graph.tensors
        if self._profile is None:
            return "a profile is set"
        if self._scratch is None and self.engine.device_memory_size_v2:
            return "device memory is set"
        for name, tensor in tensors.items():
            if tensor.is_input and -1 in tensor.shape and name not in self._shapes:
                return f"the shape of {name} is set"
            if name not in self._addresses:
                return f"the address of {name} is set"
        return None

    def _places(self) -> dict[str, Range]:
        sizes = self.engine.graph.sizes(self._shapes)
        return {name: Range(address, sizes[name]) for name, address in self._addresses.items()}

    def _check_aliases(self, places: dict[str, Range]) -> None:
        """An output lies on the input that it is aliased with, and on nothing else."""
        for name, place in places.items():
            if self.engine.graph.tensors[name].is_input:
                continue
            partner = self.engine.aliases.get(name)
            if partner is not None and places[partner] != place:
                raise UndefinedBehaviorError(f"{name} must be bound to the address of {partner}")
            for other, elsewhere in places.items():
                apart = place.address + place.nbytes <= elsewhere.address
                apart = apart or elsewhere.address + elsewhere.nbytes <= place.address
                if other not in (name, partner) and not apart:
                    raise UndefinedBehaviorError(f"{name} overlaps {other}")

    def _error(self, message: str) -> bool:
        self.engine.logger.log(Severity.ERROR, f"IExecutionContext::{message}")
        return False
