"""TensorRT's Python API for the stand-in: ILogger, Runtime, ICudaEngine, IExecutionContext, the plugin registry.

A plan is a small JSON file that names an ONNX graph (plans.py); running it runs that graph on the bound addresses.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

from support.standin.graph import OnnxGraph
from support.standin.machine import Machine
from support.standin.tensorrt_context import IExecutionContext
from support.standin.tensorrt_refit import OnnxParserRefitter, Refitter
from support.standin.tensorrt_types import (
    DataType,
    ExecutionContextAllocationStrategy,
    ILogger,
    Severity,
    TensorIOMode,
)

PLUGIN = b"the library of KVCacheAttention, version 1"
MAGIC = b"stand-in plan\n"


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
