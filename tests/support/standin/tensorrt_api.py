"""TensorRT's Python API for the stand-in: ILogger, Runtime, ICudaEngine, IExecutionContext, the plugin registry.

A plan is a small JSON file that names an ONNX graph (plans.py); running it runs that graph on the bound addresses.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import onnx

from support.standin.graph import OnnxGraph
from support.standin.machine import Machine, Operation, Range, UndefinedBehaviorError

PLUGIN = b"the library of KVCacheAttention, version 1"
MAGIC = b"stand-in plan\n"


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ILogger:
    Severity = Severity

    def log(self, severity, msg):
        raise NotImplementedError


class IPluginRegistry:
    def __init__(self):
        self.loaded: list[str] = []
        self.creators: set[tuple[str, str, str]] = set()

    def load_library(self, plugin_path):
        if plugin_path in self.loaded:
            return None
        self.loaded.append(plugin_path)
        if Path(plugin_path).read_bytes() == PLUGIN:
            self.creators.add(("KVCacheAttention", "2", ""))
        return object()

    def get_creator(self, type, version, plugin_namespace=""):
        return object() if (type, version, plugin_namespace) in self.creators else None


class Runtime:
    machine: Machine

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        data = bytes(memoryview(serialized_engine))
        if not data.startswith(MAGIC):
            return self._refuse("Error Code 1: Serialization (the header is not that of a plan)")
        plan = json.loads(data.removeprefix(MAGIC))
        major, minor = self.machine.capability
        if plan["compute_capability"] != 10 * major + minor:
            return self._refuse("Error Code 6: API Usage Error (the plan was made for an incompatible device)")
        return ICudaEngine(self.machine, self.logger, plan)

    def _refuse(self, why: str) -> None:
        self.logger.log(Severity.ERROR, why)


class ICudaEngine:
    """profiles: for each, {input: (minimum, optimum, maximum shape)}."""

    def __init__(self, machine: Machine, logger: ILogger, plan: dict):
        self.machine = machine
        self.logger = logger
        self.source = plan["onnx"]
        self.graph = OnnxGraph(plan["onnx"], plan["dimensions"])
        self.profiles = plan["profiles"]
        self.aliases = plan["aliases"]
        self.num_io_tensors = len(self.graph.tensors)
        self.device_memory_size_v2 = plan["scratch_bytes"]
        self.lacks_weights = plan.get("stripped", False)

    def get_tensor_name(self, index):
        return list(self.graph.tensors)[index]

    def get_tensor_mode(self, name):
        tensor = self.graph.tensors.get(name)
        return TensorIOMode.NONE if tensor is None else TensorIOMode.INPUT if tensor.is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[self.graph.tensors[name].dtype]

    def get_tensor_shape(self, name):
        return self.graph.tensors[name].shape

    def get_tensor_profile_shape(self, name, profile_index):
        shape = self.graph.tensors[name].shape
        return self.profiles[profile_index].get(name, [shape] * 3)

    def get_aliased_input_tensor(self, name):
        return self.aliases.get(name)

    def create_runtime_config(self):
        return IRuntimeConfig(self)

    def create_execution_context(self, strategy):
        """strategy: an allocation strategy or, with TensorRT-RTX, a runtime config that has one."""
        if self.lacks_weights:
            self.logger.log(Severity.ERROR, "Error Code 4: Internal Error (stripped, and not refitted)")
            return None
        config = strategy if isinstance(strategy, IRuntimeConfig) else None
        if (config.strategy if config else strategy) != ExecutionContextAllocationStrategy.USER_MANAGED:
            self.machine.counts["allocations"] += 1  # the context reserves memory of its own
        self.machine.counts["contexts"] += 1
        return IExecutionContext(self, config.cache if config else None)


class IRuntimeConfig:
    """TensorRT-RTX's alone, like the cache."""

    def __init__(self, engine: ICudaEngine):
        self.engine = engine
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: IRuntimeCache | None = None

    def create_runtime_cache(self):
        return IRuntimeCache(self.engine.machine)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class IRuntimeCache:
    """Names of the kernels that were compiled."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.kernels: set[str] = set()

    def serialize(self):
        return json.dumps({"gpu": self.machine.name, "kernels": sorted(self.kernels)}).encode()

    def deserialize(self, blob):
        try:
            stored = json.loads(blob)
        except ValueError:
            return False
        if stored["gpu"] != self.machine.name:
            return False
        self.kernels = set(stored["kernels"])
        return True


class Refitter:
    """Weights of a stripped engine; the graph that it runs tells their names."""

    def __init__(self, engine, logger):
        self.engine, self.logger = engine, logger
        self.given: dict[str, bytes] = {}

    def get_missing_weights(self):
        return sorted(set(stored_weights(onnx.load(self.engine.source))) - set(self.given))

    def refit_cuda_engine(self):
        if self.given != stored_weights(onnx.load(self.engine.source)):
            self.logger.log(Severity.ERROR, "IRefitter::refitCudaEngine: Error Code 3: wrong weights")
            return False
        self.engine.lacks_weights = False
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.refitter, self.logger = refitter, logger
        self.num_errors = 0

    def refit_from_bytes(self, model, path=None):
        try:
            graph = onnx.load_from_string(model)
            onnx.load_external_data_for_model(graph, str(Path(path).parent))
        except Exception as error:  # of protobuf, of the file system, of onnx
            self.logger.log(Severity.ERROR, f"Failed to read the external weights: {error}")
            return False
        self.refitter.given = stored_weights(graph)
        return True


def stored_weights(model: onnx.ModelProto) -> dict[str, bytes]:
    """The large weights by name."""
    return {t.name: t.raw_data for t in model.graph.initializer if len(t.raw_data) > 64}


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
        run = lambda: self.engine.graph.run({n: machine.view(p) for n, p in places.items()}, shapes)  # noqa: E731
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


def make_module(machine: Machine, *, name: str = "tensorrt", version: str = "10.3.0.30") -> ModuleType:
    """The module for one machine."""
    module = ModuleType(name)
    module.__version__ = version
    registry = IPluginRegistry()
    module.get_plugin_registry = lambda: registry
    module.Runtime = type("Runtime", (Runtime,), {"machine": machine})
    enums = (DataType, TensorIOMode, ExecutionContextAllocationStrategy)
    classes = (ILogger, ICudaEngine, IExecutionContext, Refitter, OnnxParserRefitter)
    if name != "tensorrt":
        classes += (IRuntimeConfig, IRuntimeCache)
    for thing in (*enums, *classes):
        setattr(module, thing.__name__, thing)
    return module
