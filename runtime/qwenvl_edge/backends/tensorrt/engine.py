"""A deserialised plan and its execution contexts, every call of which is checked."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.backends.cuda.device import DeviceMemory, Stream
from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.errors import BackendError

ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1, "INT32": 4, "INT64": 8}


@dataclass(frozen=True)
class Tensor:
    """An input or output: TensorRT's name of its type, and its shape, -1 where a call decides."""

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
    """Where an engine's weights come from: the graph that it was built from, and the folder of the graph's weights."""

    graph: Path
    weights: Path


class Engine:
    """A plan in the GPU's memory. tensors: its inputs and outputs by name; scratch_bytes: what a context works in.

    Args:
        library: the TensorRT that built it.
        path: the plan.
        refit: for a plan without weights.

    Raises:
        BackendError: TensorRT refuses the file or the weights; carries its log lines.
    """

    def __init__(self, library: Library, path: Path, refit: Refit | None = None):
        self.library = library
        self.path = path
        module = library.module
        self._runtime = module.Runtime(library.log)
        # Mapped, so that the plan's bytes need not lie in memory twice while they go to the GPU.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise library.failed(f'load the plan "{path}"')
        if refit is not None:
            self._refit(refit)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._describe(name) for name in names}
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def context(self, profile: int, stream: Stream, scratch: DeviceMemory) -> Context:
        """An execution context with one optimisation profile, working in `scratch`, which contexts may share.

        What shares a scratch must run on the same stream.

        Raises:
            BackendError: TensorRT cannot make it.
        """
        managed = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(managed)
        if context is None:
            raise self.library.failed(f'prepare "{self.path.name}"')
        context.set_device_memory(scratch.address, scratch.nbytes)
        if not context.set_optimization_profile_async(profile, stream.handle):
            raise self.library.failed(f'choose profile {profile} of "{self.path.name}"')
        stream.synchronize()
        return Context(self, context, stream)

    def check_tensors(self, wanted: Mapping[str, str]) -> None:
        """Check that the tensors in `wanted`, name -> type, are there.

        Raises:
            BackendError: one is missing or has another type.
        """
        for name, dtype in wanted.items():
            found = self.tensors[name].dtype if name in self.tensors else "missing"
            if found != dtype:
                raise BackendError(f'"{self.path}" does not fit the bundle: its tensor {name} is {found}, not {dtype}.')

    def check_in_place(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Check that each output of (input, output) is written into its input's memory, where TensorRT tells (10.15).

        Raises:
            BackendError: TensorRT would write a copy, which must not lie on the input.
        """
        if not hasattr(self._engine, "get_aliased_input_tensor"):
            return
        for past, present in pairs:
            if self._engine.get_aliased_input_tensor(present) != past:
                raise BackendError(f'"{self.path}" copies the KV cache instead of writing {present} in place.')

    def _refit(self, refit: Refit) -> None:
        """Read the weights anew, by the parser that built the engine, so that names and layouts are its own."""
        module, library = self.library.module, self.library
        refitter = module.Refitter(self._engine, library.log)
        parser = module.OnnxParserRefitter(refitter, library.log)
        # The path says where external weights lie; there need be no file of that name.
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
    """One execution context; remembers shapes and addresses, so that only changes are passed on."""

    def __init__(self, engine: Engine, context: Any, stream: Stream):
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
        """Whether its work may be captured, as far as TensorRT tells (TensorRT-RTX compiles some kernels late)."""
        test = getattr(self._context, "is_stream_capturable", None)
        return test is None or bool(test(self._stream.handle))

    def enqueue(self) -> None:
        """Put one run on the stream.

        Raises:
            BackendError: something is not bound, or TensorRT failed; carries its log lines.
        """
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._engine.library.failed(f'run "{self._engine.path.name}"')
