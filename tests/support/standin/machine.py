"""The GPU: memory, streams, captured graphs. Work runs only when somebody waits for it, which shows missing waits."""

from __future__ import annotations

import ctypes
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 256
_PAGE = 4096  # what pinned memory is aligned to
LEGACY_STREAM = 1  # CUDA's default stream; the driver's own streams do not wait for it
_FIRST_ADDRESS = 1 << 52  # outside a process's addresses: a host that reads there crashes, as with a real GPU
_GARBAGE = 0xFF  # NaN in every float format


class UndefinedBehaviorError(AssertionError):
    """A call that the documentation forbids without promising an error."""


class CaptureError(Exception):
    """A call that is forbidden while a stream is captured."""


@dataclass(eq=False)
class Block:
    """One allocation. Only the stand-in's own calls understand addresses of device memory."""

    address: int
    data: np.ndarray
    pinned: bool = False
    freed: bool = False

    @property
    def end(self) -> int:
        return self.address + self.data.nbytes


@dataclass(frozen=True)
class Range:
    """Bytes that an operation reads or writes."""

    address: int
    nbytes: int


@dataclass(eq=False)
class Operation:
    """Work on a stream. check: raises an error if a captured operation may not be replayed any more."""

    name: str
    reads: list[Range]
    writes: list[Range]
    run: Callable[[], None]
    check: Callable[[], None] = lambda: None


@dataclass(eq=False)
class Launched:
    """A queued operation. sums: checksums of the pinned memory that it reads, when it was queued. after: its waits."""

    operation: Operation
    sums: list[int]
    after: list[Launched]


@dataclass(eq=False)
class Stream:
    """A queue of work. waits: work of other streams that must be done before work that is queued here later."""

    pending: list[Launched] = field(default_factory=list)
    waits: list[Launched] = field(default_factory=list)
    captured: list[Operation] | None = None
    broken: bool = False


class Machine:
    """A GPU with `total_bytes` of memory.

    counts: allocations, synchronizations, launches, enqueues, copies. downloads: the ranges that were copied to the
    host. architectures: GPUs for which NVRTC compiles, None if it is not installed. descending: order of threads.
    """

    def __init__(self, *, name="Stand-in", capability=(8, 7), integrated=False, total_bytes=1 << 32, driver=12060):
        self.name = name
        self.capability = capability
        self.integrated = integrated
        self.total_bytes = total_bytes
        self.driver = driver
        self.counts: Counter[str] = Counter()
        self.streams: dict[int, Stream] = {LEGACY_STREAM: Stream()}
        self.blocks: list[Block] = []
        self.capturable = True
        self.instantiable = True  # captured work becomes a graph that can be launched
        self.downloads: list[Range] = []
        self.architectures: list[int] | None = [75, 80, 86, 87, 89, 90]
        self.descending = False
        self._next = _FIRST_ADDRESS
        self._handles = 1

    @property
    def used_bytes(self) -> int:
        return sum(block.data.nbytes for block in self.blocks if not block.pinned and not block.freed)

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    def allocate(self, nbytes: int) -> int | None:
        """Device memory full of garbage; None if there is not enough."""
        self._refuse_in_capture("cudaMalloc")
        if self.used_bytes + nbytes > self.total_bytes:
            return None
        self.counts["allocations"] += 1
        self.blocks.append(Block(self._next, np.full(nbytes, _GARBAGE, np.uint8)))
        address = self._next
        self._next += (nbytes // ALIGNMENT + 2) * ALIGNMENT  # a gap after every block, which nothing may touch
        return address

    def allocate_pinned(self, nbytes: int) -> int:
        self._refuse_in_capture("cudaHostAlloc")
        self.counts["allocations"] += 1
        room = np.full(nbytes + _PAGE, _GARBAGE, np.uint8)
        data = room[-room.ctypes.data % _PAGE :][:nbytes]
        self.blocks.append(Block(data.ctypes.data, data, pinned=True))
        return data.ctypes.data

    def free(self, address: int) -> None:
        block = next((block for block in self.blocks if block.address == address and not block.freed), None)
        if block is None:
            raise UndefinedBehaviorError(f"{address:#x} is freed, which is no allocation")
        for stream in self.streams.values():
            for launched in stream.pending:
                if any(self._block(r) is block for r in launched.operation.reads + launched.operation.writes):
                    raise UndefinedBehaviorError(f"memory is freed that {launched.operation.name} under way still uses")
        block.freed = True
        if not block.pinned:
            block.data = np.empty(0, np.uint8)

    def view(self, place: Range) -> np.ndarray:
        """The bytes of device or pinned memory."""
        block = self._block(place)
        if block is None:
            raise UndefinedBehaviorError(f"{place.nbytes} bytes at {place.address:#x} are not inside an allocation")
        return block.data[place.address - block.address :][: place.nbytes]

    def is_known(self, place: Range) -> bool:
        return self._block(place) is not None

    def is_pinned(self, place: Range) -> bool:
        block = self._block(place)
        return block is not None and block.pinned

    def new_stream(self) -> int:
        self._handles += 16
        self.streams[self._handles] = Stream()
        return self._handles

    def put(self, handle: int, operation: Operation) -> None:
        """Queue an operation on a stream, or record it if the stream is captured."""
        stream = self.streams[handle]
        for place in operation.reads + operation.writes:
            self.view(place)
        if stream.captured is not None:
            stream.captured.append(operation)
            return
        self._launch(stream, operation)

    def launch(self, handle: int, operations: Iterable[Operation]) -> None:
        """Replay a captured graph."""
        self.counts["launches"] += 1
        for operation in operations:
            operation.check()
            self._launch(self.streams[handle], operation)

    def synchronize(self, handle: int) -> None:
        """Run the work queued on a stream."""
        self._refuse_in_capture("cudaStreamSynchronize")
        self.counts["synchronizations"] += 1
        stream = self.streams[handle]
        while stream.pending:
            self._run_next(stream)
        stream.waits.clear()

    def mark(self, handle: int) -> list[Launched]:
        """The work that is queued on a stream now."""
        return list(self.streams[handle].pending)

    def wait_for(self, handle: int, marked: list[Launched]) -> None:
        """Make later work on a stream wait for marked work."""
        self.streams[handle].waits += marked

    def block_range(self, address: int) -> Range:
        """From an address to the end of its allocation: the bytes that a kernel may touch through the address."""
        block = self._block(Range(address, 1))
        if block is None:
            raise UndefinedBehaviorError(f"a kernel gets {address:#x}, which is not inside an allocation")
        return Range(address, block.end - address)

    def _run_next(self, stream: Stream) -> None:
        launched = stream.pending[0]
        for other in self.streams.values():
            while any(earlier in launched.after for earlier in other.pending):
                self._run_next(other)
        operation = launched.operation
        if launched.sums != self._sums(operation):
            raise UndefinedBehaviorError(f"pinned memory changed before {operation.name} had read it")
        operation.run()
        del stream.pending[0]
        for later in stream.pending:  # later work may read what the GPU itself writes into pinned memory
            if any(self._overlap(a, b) for a in operation.writes for b in later.operation.reads):
                later.sums = self._sums(later.operation)

    def host_bytes(self, address: int, nbytes: int) -> np.ndarray:
        """Memory of the host at any address, pinned or not."""
        if address >= _FIRST_ADDRESS:
            raise UndefinedBehaviorError(f"{address:#x} is device memory, used as memory of the host")
        place = Range(address, nbytes)
        if self.is_known(place):
            return self.view(place)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def _launch(self, stream: Stream, operation: Operation) -> None:
        touched = {self._block(place) for place in operation.reads + operation.writes}
        for other in self.streams.values():
            if other is stream:
                continue
            for launched in (each for each in other.pending if each not in stream.waits):
                if touched & {self._block(place) for place in launched.operation.reads + launched.operation.writes}:
                    raise UndefinedBehaviorError(
                        f"{operation.name} and {launched.operation.name} use one memory on two streams"
                    )
        sums = self._sums(operation)
        for place in operation.writes:
            if self.is_pinned(place) and not any(self._block(place) is self._block(read) for read in operation.reads):
                self.view(place)[:] = _GARBAGE  # the host reads this if it does not wait
        stream.pending.append(Launched(operation, sums, list(stream.waits)))

    @staticmethod
    def _overlap(a: Range, b: Range) -> bool:
        return a.address < b.address + b.nbytes and b.address < a.address + a.nbytes

    def _sums(self, operation: Operation) -> list[int]:
        return [zlib.crc32(self.view(place)) for place in operation.reads if self.is_pinned(place)]

    def _block(self, place: Range) -> Block | None:
        for block in self.blocks:
            if block.address <= place.address and place.address + place.nbytes <= block.end and not block.freed:
                return block
        return None

    def _refuse_in_capture(self, what: str) -> None:
        for stream in self.streams.values():
            if stream.captured is not None:
                stream.broken = True
                raise CaptureError(what)
