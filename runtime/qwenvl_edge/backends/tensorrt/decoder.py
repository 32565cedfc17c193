"""decoder.plan: calls through one staging block, caches that stay on the GPU, decoding as a captured graph.

    host                         GPU, one stream
    inputs_embeds, ... --1 copy--> inputs, cache (past = present), tables -> engine -> logits --1 copy--> host; 1 wait

A captured graph holds addresses and is valid only while its execution context does not change. So every cache has its
own context for decoding one token per row, taken from those of caches that are gone: making one takes tens of
milliseconds. Prefill and verification have one context each, which is bound again when the cache or the number of
tokens changes. All contexts work in the same scratch memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwenvl_edge.backends.base import FloatArray, Inputs, KVCache, Placed
from qwenvl_edge.backends.cuda.cache import CacheMemory, CacheTensor, row_bytes
from qwenvl_edge.backends.cuda.features import Splice
from qwenvl_edge.backends.cuda.pixel_values import DeviceArray
from qwenvl_edge.backends.tensorrt.engine import Context, TensorRTEngine
from qwenvl_edge.bundle.contract import (
    DEEPSTACK,
    INPUTS_EMBEDS,
    LOGITS,
    LOGITS_INDICES,
    PAST,
    QUERY_SCALE,
    ROPE_COS,
    ROPE_SIN,
    STANDARD,
    WRITE_INDICES,
    present_of,
)
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.errors import BackendError
from qwenvl_edge.machine.cuda import ALIGNMENT, Cuda, DeviceMemory, Graph, Staging, Stream

_PER_TOKEN = (INPUTS_EMBEDS, ROPE_COS, ROPE_SIN, QUERY_SCALE)
# The order of the inputs in the staging block. A captured step holds their addresses, so it is the same in every call.
_STAGED = (*_PER_TOKEN, WRITE_INDICES, LOGITS_INDICES, DEEPSTACK)


@dataclass(frozen=True)
class Call:
    """One call on a context where everything is bound: inputs up, features over them, the engine, logits down.

    embeds: address of inputs_embeds. splice: pictures' features that replace rows of the inputs.
    """

    context: Context
    stream: Stream
    inputs: Staging
    input_bytes: int
    logits: Staging
    logits_bytes: int
    embeds: int
    splice: Splice | None = None

    def enqueue(self) -> None:
        """Queue the call on the stream."""
        self.inputs.upload(self.stream, self.input_bytes)
        if self.splice is not None:
            self.splice.enqueue(self.stream, self.embeds)
        self.context.enqueue()
        self.logits.download(self.stream, self.logits_bytes)


class Step:
    """A call that repeats: enqueued once, which lets TensorRT settle on its buffers, then captured and replayed.

    refused: called with the reason if it cannot be captured; it is then enqueued every time.
    """

    def __init__(self, call: Call, refused: Callable[[str], None]):
        self._call = call
        self._refused = refused
        self._runs = 0
        self._graph: Graph | None = None

    def run(self) -> None:
        """Queue the call on the stream."""
        self._runs += 1
        if self._runs == 2:
            self._capture()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._call.enqueue()

    def _capture(self) -> None:
        if not self._call.context.capturable:
            self._refused("TensorRT says that it cannot be captured")
            return
        try:
            self._graph = self._call.stream.capture(self._call.enqueue)
        except BackendError as error:
            self._refused(str(error).rstrip("."))


@dataclass
class CacheBuffers:
    """One cache: its memory and, from its first decoded token on, its step."""

    memory: CacheMemory
    step: Step | None = None


class PlanDecoder:
    """Runs decoder.plan. B rows, T tokens of a call, K rows of logits, V vocabulary.

    Raises:
        BackendError: the engine is not that of the manifest, or there is not enough memory for its buffers.
    """

    def __init__(
        self,
        engine: TensorRTEngine,
        plan: Plan,
        model: ModelInfo,
        cuda: Cuda,
        stream: Stream,
        scratch: DeviceMemory,
    ):
        self._engine = engine
        self._plan = plan
        self._model = model
        self._cuda = cuda
        self._stream = stream
        self._scratch = scratch
        past = [tensor for name, tensor in engine.tensors.items() if tensor.is_input and name.startswith(PAST)]
        self._check_engine({tensor.name: tensor.dtype for tensor in past})
        self._past = [CacheTensor(t.name, t.shape[1], t.shape[3:], t.item_bytes) for t in past]
        limits = plan.manifest.limits
        self._profiles = sorted(plan.manifest.profiles.items(), key=lambda item: item[1].tokens[2])
        most_tokens = max(profile.tokens[2] for _, profile in self._profiles)
        most_rows = max(profile.rows[2] for _, profile in self._profiles)
        token_bytes = 4 * (model.hidden_size + model.head_dim + 1)  # embeddings, rotary rows, query scale
        space = limits.max_batch * (most_tokens * token_bytes + 8 * most_rows + 8)
        deepstack = 4 * model.deepstack_layers * model.hidden_size  # of one token; zeros in calls without pictures
        self._inputs = Staging(cuda, space + deepstack + len(_STAGED) * ALIGNMENT)
        self._deepstack = DeviceMemory(cuda, limits.max_batch * most_tokens * deepstack) if deepstack else None
        self._logits = Staging(cuda, 4 * limits.max_batch * most_rows * model.vocab_size)
        self._shared: dict[str, Context] = {}
        self._free: dict[str, list[Context]] = {}  # of caches that are gone, by profile
        self._uncaptured = ""

    def note(self) -> str:
        """Note for describe() if tokens are not replayed as CUDA graphs, else ""."""
        return f"; tokens run without CUDA graphs ({self._uncaptured})" if self._uncaptured else ""

    @property
    def cache_bytes(self) -> int:
        """Bytes of one row of a cache, which always has room for the plan's whole context."""
        return row_bytes(self._past, self._plan.manifest.limits.max_context)

    def new_memory(self, batch: int, capacity: int) -> CacheMemory:
        """Memory for a cache of `batch` rows, each with room for the plan's whole context.

        Raises:
            BackendError: the plan takes fewer rows or tokens, or there is not enough memory.
        """
        limits = self._plan.manifest.limits
        for name, wanted, most in (
            ("max-batch", batch, limits.max_batch),
            ("max-context", capacity, limits.max_context),
        ):
            if wanted > most:
                raise BackendError(
                    f"the plan was built for a {name} of {most:,}, not {wanted:,}; "
                    f"build it again with `{self._plan.rebuild} --{name} {wanted}`."
                )
        return CacheMemory(self._cuda, self._stream, self._past, batch=batch, capacity=limits.max_context)

    def run(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed] = ()) -> FloatArray:
        """See Backend._decode. A call of one row that no profile takes is split into several.

        Raises:
            BackendError: several rows fit no profile, or TensorRT or CUDA failed.
        """
        (batch, tokens, _), rows = inputs[INPUTS_EMBEDS].shape, inputs[LOGITS_INDICES].shape[1]
        profile = self._profile(tokens, max(rows, 1))
        if profile is not None:
            return self._run(cache, inputs, pictures, profile)
        if batch > 1:
            known = ", ".join(f"{p.tokens[2]} with {p.rows[2]}" for p in self._plan.manifest.profiles.values())
            raise BackendError(
                f"{tokens} tokens of {batch} rows with {rows} logits each fit no profile of the plan, which take up to "
                f"{known}; compute the rows one at a time."
            )
        return self._run_pieces(cache, inputs, pictures)

    def _run_pieces(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed]) -> FloatArray:
        """Run one row's call in pieces that fit the profile with the most tokens."""
        largest = self._profiles[-1][1]
        wanted, order = np.unique(inputs[LOGITS_INDICES][0], return_inverse=True)
        logits, start, tokens = [], 0, inputs[INPUTS_EMBEDS].shape[1]
        while start < tokens:
            inside = wanted[(wanted >= start) & (wanted < start + largest.tokens[2])]
            end = min(start + largest.tokens[2], tokens, *inside[largest.rows[2] :].tolist())
            piece = {name: array[:, start:end] if name in _PER_TOKEN else array for name, array in inputs.items()}
            piece[WRITE_INDICES] = inputs[WRITE_INDICES] + start
            piece[LOGITS_INDICES] = inside[None, inside < end] - start
            logits.append(self.run(cache, piece, list(_within(pictures, start, end))))
            start = end
        whole: FloatArray = np.concatenate(logits, axis=1)[:, order]
        return whole

    def _run(self, cache: KVCache, inputs: Inputs, pictures: Sequence[Placed], profile: str) -> FloatArray:
        (batch, tokens, _), rows = inputs[INPUTS_EMBEDS].shape, inputs[LOGITS_INDICES].shape[1]
        if not rows:  # the plan has no profile without logits
            inputs = {**inputs, LOGITS_INDICES: np.zeros((batch, 1), np.int64)}
        buffers: CacheBuffers = cache.buffers
        splice = self._splice(inputs, pictures) if pictures else None
        aside = {} if splice is None or splice.deepstack is None else {DEEPSTACK: splice.deepstack}
        inputs = {name: inputs[name] for name in _STAGED if name in inputs and name not in aside}
        addresses, used = self._inputs.write(inputs)
        given = inputs, aside, addresses, used
        if tokens > 1 or rows > 1 or pictures:
            if profile not in self._shared:
                self._shared[profile] = self._context(profile)
            run = replace(self._call(self._shared[profile], buffers.memory, *given), splice=splice).enqueue
        else:
            if buffers.step is None:
                buffers.step = self._step(profile, buffers.memory, given)
            run = buffers.step.run
        with self._stream.waited_for():
            run()
        self._engine.keep_kernels()
        logits: FloatArray = self._logits.view((batch, max(rows, 1), self._model.vocab_size))[:, :rows].copy()
        return logits

    def _step(
        self,
        profile: str,
        memory: CacheMemory,
        given: tuple[Inputs, Mapping[str, DeviceArray], Mapping[str, int], int],
    ) -> Step:
        """A cache's step on a context that nobody uses; the context is free again when the cache is gone."""
        free = self._free.setdefault(profile, [])
        context = free.pop() if free else self._context(profile)
        step = Step(self._call(context, memory, *given), self._not_captured)
        weakref.finalize(step, free.append, context).atexit = False
        return step

    def _not_captured(self, reason: str) -> None:
        self._uncaptured = reason

    def _splice(self, inputs: Inputs, pictures: Sequence[Placed]) -> Splice:
        if self._deepstack is None:
            return Splice(pictures)
        shape = (self._model.deepstack_layers, *inputs[INPUTS_EMBEDS].shape)
        return Splice(pictures, DeviceArray(self._deepstack.address, shape))

    def _call(
        self,
        context: Context,
        memory: CacheMemory,
        inputs: Inputs,
        aside: Mapping[str, DeviceArray],
        addresses: Mapping[str, int],
        used: int,
    ) -> Call:
        """Bind everything; aside: inputs that lie elsewhere than in the staging block."""
        shapes = {name: array.shape for name, array in inputs.items()} | memory.shapes
        shapes |= {name: array.shape for name, array in aside.items()}
        places = {**addresses, **{name: array.address for name, array in aside.items()}, **memory.addresses}
        context.bind(shapes, {**places, LOGITS: self._logits.address})
        logits_bytes = 4 * inputs[LOGITS_INDICES].size * self._model.vocab_size
        embeds = addresses[INPUTS_EMBEDS]
        return Call(context, self._stream, self._inputs, used, self._logits, logits_bytes, embeds)

    def _context(self, profile: str) -> Context:
        index = self._plan.manifest.profiles[profile].index
        return self._engine.context(index, self._stream, self._scratch)

    def _profile(self, tokens: int, rows: int) -> str | None:
        """The smallest profile that takes T tokens and K rows of logits; None if none does."""
        for name, profile in self._profiles:
            if profile.tokens[0] <= tokens <= profile.tokens[2] and profile.rows[0] <= rows <= profile.rows[2]:
                return name
        return None

    def _check_engine(self, past: Mapping[str, str]) -> None:
        """Check the tensors' names and types; `past` maps the cache's inputs to their types."""
        presents = {present_of(name): dtype for name, dtype in past.items()}
        per_token = [name for name in _PER_TOKEN if name != QUERY_SCALE or name in self._engine.tensors]
        deepstack = [DEEPSTACK] if self._model.deepstack_layers else []
        floats = dict.fromkeys([*per_token, *deepstack, LOGITS], "FLOAT")
        indices = dict.fromkeys([WRITE_INDICES, LOGITS_INDICES], "INT64")
        self._engine.check_tensors(floats | indices | presents)
        if self._plan.manifest.dialect == STANDARD:  # TensorRT does not know which outputs a plugin writes in place
            self._engine.check_in_place(zip(past, presents, strict=True))
        if len(past) < 2 * self._model.num_layers:
            raise BackendError(f'"{self._engine.path}" has the caches of other layers than the bundle.')


def _within(pictures: Sequence[Placed], start: int, end: int) -> Iterator[Placed]:
    """The parts of the pictures within the tokens start..end - 1, with `at` counted from `start`."""
    for picture in pictures:
        low, high = max(picture.at, start), min(picture.at + picture.count, end)
        if low < high:
            yield Placed(picture.features, low - start, picture.first + low - picture.at, high - low)
