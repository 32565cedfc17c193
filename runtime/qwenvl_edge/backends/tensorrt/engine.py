"""A deserialised plan and its execution contexts; the result of every TensorRT call is checked."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.backends.tensorrt.kernel_cache import KernelCache
from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import DeviceMemory, Stream

ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}


@dataclass(frozen=True)
class Tensor:
    """An input or output. dtype: TensorRT's name of the type. shape: -1 for sizes that each call chooses."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Refit:
    """The source of an engine's weights: the graph from which it was built, and the folder with the graph's weights."""

    graph: Path
    weights: Path


class TensorRTEngine:
    """A plan in the GPU's memory. tensors: inputs and outputs by name. scratch_bytes: scratch memory of a context.

    Args:
        library: the TensorRT that built it.
        path: the plan.
        refit: the weights of a plan that was built without them.

    Raises:
        BackendError: TensorRT refuses the file or the weights; the message holds its log lines.
    """

    def __init__(self, library: Library, path: Path, refit: Refit | None = None):
        self.library = library
        self.path = path
        module = library.module
        self._runtime = module.Runtime(library.log)
        # The file is mapped, so that the process needs no copy of it while TensorRT uploads it.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise library.failed(f'load the plan "{path}"')
        if refit is not None:
            self._refit(refit)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._describe(name) for name in names}
        self._kernels = KernelCache.open(self._engine, library, path)
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def context(self, profile: int, stream: Stream, scratch: DeviceMemory) -> Context:
        """Make an execution context for one optimisation profile, with `scratch` as its scratch memory.

        Contexts that share scratch memory must run on the same stream.

        Raises:
            BackendError: TensorRT cannot make it.
        """
        managed = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        given = managed if self._kernels is None else self._kernels.config(managed)
        context = self._engine.create_execution_context(given)
        if context is None:
            raise self.library.failed(f'prepare "{self.path.name}"')
        context.set_device_memory(scratch.address, scratch.nbytes)
        try:
            chosen = context.set_optimization_profile_async(profile, stream.handle)
        except RuntimeError:  # TensorRT's Python package raises instead of returning False
            chosen = False
        if not chosen:
            raise self.library.failed(f'choose profile {profile} of "{self.path.name}"')
        stream.synchronize()
        return Context(self, context, stream)

    def keep_kernels(self) -> None:
        """After a run: keep what TensorRT-RTX compiled for this GPU, so that the next process need not."""
        if self._kernels is not None:
            self._kernels.keep()

    def largest(self, name: str, profile: int = 0) -> tuple[int, ...]:
        """The largest shape of an input in an optimisation profile."""
        return tuple(self._engine.get_tensor_profile_shape(name, profile)[2])

    def check_tensors(self, wanted: Mapping[str, str]) -> None:
        """Check that the engine has the tensors in `wanted`, name -> type.

        Raises:
            BackendError: a tensor is missing or has another type.
        """
        for name, dtype in wanted.items():
            found = self.tensors[name].dtype if name in self.tensors else "missing"
            if found != dtype:
                raise BackendError(f'"{self.path}" does not fit the bundle: its tensor {name} is {found}, not {dtype}.')

    def check_in_place(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Check that each output of (input, output) is written into its input's memory; TensorRT tells from 10.15 on.

        Raises:
            BackendError: TensorRT would write a copy, which must not have the input's address.
        """
        if not hasattr(self._engine, "get_aliased_input_tensor"):
            return
        for past, present in pairs:
            if self._engine.get_aliased_input_tensor(present) != past:
                raise BackendError(f'"{self.path}" copies the KV cache instead of writing {present} in place.')

    def _refit(self, refit: Refit) -> None:
        """Read the weights with the parser that built the engine, which knows its names and layouts."""
        module, library = self.library.module, self.library
        refitter = module.Refitter(self._engine, library.log)
        parser = module.OnnxParserRefitter(refitter, library.log)
        # The parser takes only the folder of this path, for external weights; the file need not exist.
        if not parser.refit_from_bytes(refit.graph.read_bytes(), str(refit.weights / refit.graph.name)):
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise library.failed(f'read the weights of "{self.path.name}" ({errors or "no error of the parser"})')
        if missing := refitter.get_missing_weights():
            raise BackendError(f'"{self.path}" lacks weights that the bundle does not give: {", ".join(missing[:3])}.')
        if not refitter.refit_cuda_engine():
            raise library.failed(f'put the weights into "{self.path.name}"')

    def _describe(self, name: str) -> Tensor:
        engine, module = self._engine, self.library.module
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        return Tensor(name, is_input, engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))


class Context:
    """One execution context; keeps shapes and addresses, so that only changes reach TensorRT."""

    def __init__(self, engine: TensorRTEngine, context: Any, stream: Stream):
        self._engine = engine
        self._context = context
        self._stream = stream
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Set inputs' shapes and tensors' addresses.

        Raises:
            BackendError: a shape lies outside the profile, or a tensor is unknown.
        """
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    raise self._engine.library.failed(f"take {name} of shape {list(shape)}")
                self._shapes[name] = shape
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._engine.library.failed(f"bind {name}")
                self._addresses[name] = address

    @property
    def capturable(self) -> bool:
        """True if its work may be captured, as far as TensorRT tells; TensorRT-RTX compiles some kernels late."""
        test = getattr(self._context, "is_stream_capturable", None)
        return test is None or bool(test(self._stream.handle))

    def enqueue(self) -> None:
        """Queue one run on the stream.

        Raises:
            BackendError: something is not bound, or TensorRT failed; the message holds its log lines.
        """
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.library.failed(f'run "{self._engine.path.name}"')
