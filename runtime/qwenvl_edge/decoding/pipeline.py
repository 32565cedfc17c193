"""A request becomes a reply: callers take turns, pictures are encoded, the prompt prefilled, tokens generated."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qwenvl_edge.backends.base import Backend, Features, check_features
from qwenvl_edge.backends.kept import FEATURES_BYTES, FEATURES_KEPT, feature_row_bytes
from qwenvl_edge.bundle.hashing import BackgroundCheck, LargeFile
from qwenvl_edge.decoding.decode_loop import Generation, Work
from qwenvl_edge.decoding.prompt_lookup import Lookup
from qwenvl_edge.decoding.sequence_decoder import SequenceDecoder
from qwenvl_edge.decoding.thinking import Guide, ThinkingGuide
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.request import Control, Request
from qwenvl_edge.inputs.tokenizer import Tokenizer
from qwenvl_edge.machine.forks import Owner
from qwenvl_edge.replies.answer_writer import AnswerWriter
from qwenvl_edge.replies.reply import Reply

FloatArray = npt.NDArray[np.float32]
_POLL_S = 0.02  # how often a waiting caller looks whether it was cancelled, which may come from a signal


class Turns:
    """A fair lock: first come, first served; waiting can be given up.

    Any thread may release it, even the garbage collector in the middle of `take`: it ends a forgotten stream in
    whichever thread it runs.
    """

    def __init__(self) -> None:
        self._process = Owner("the engine")
        self._state = threading.RLock()
        self._waiting: deque[threading.Event] = deque()
        self._busy = False
        self._owner: int | None = None

    @contextlib.contextmanager
    def take(self, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for the turn, hold it for the `with` block and yield True; yield False if `give_up` came true before.

        Raises:
            QwenVLError: this thread holds the turn already, or this process was forked from the engine's.
        """
        self.check()
        if self._owner == threading.get_ident():
            raise QwenVLError("a stream of this engine is still open in this thread; read it to its end or close it.")
        if not self._acquire(give_up):
            yield False
            return
        self._owner = threading.get_ident()
        try:
            yield True
        finally:
            self._owner = None
            if self._is_here():  # in a forked child another thread may have left the lock taken
                self._release()

    def check(self) -> None:
        """Raise BackendError in a process that was forked from the engine's."""
        if not self._is_here():
            self._process.check()

    def _is_here(self) -> bool:
        return os.getpid() == self._process.pid

    @property
    def busy(self) -> bool:
        """True while somebody holds the turn."""
        return self._busy

    def _acquire(self, give_up: Callable[[], bool]) -> bool:
        mine = threading.Event()
        with self._state:
            self._waiting.append(mine)
            self._pass_on()
        try:
            while not mine.wait(_POLL_S):
                if give_up():
                    return self._leave(mine)
                with self._state:
                    self._pass_on()
        except BaseException:  # KeyboardInterrupt
            if self._leave(mine):
                self._release()
            raise
        return True

    def _leave(self, mine: threading.Event) -> bool:
        """Stop waiting; return whether the turn came nevertheless."""
        with self._state:
            if not mine.is_set():
                self._waiting.remove(mine)
            return mine.is_set()

    def _release(self) -> None:
        with self._state:
            self._busy = False
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            self._waiting.popleft().set()


class FeatureCache:
    """Encodes pictures and clips; the features of those used last stay where the backend wants them.

    They are found again by content and layout. FEATURES_KEPT of them are kept, and fewer if they take more than
    FEATURES_BYTES, but always the last.
    """

    def __init__(self, backend: Backend, family: Family) -> None:
        self._backend = backend
        self._family = family
        self._kept: OrderedDict[Hashable, Features] = OrderedDict()
        self._most_rows = FEATURES_BYTES // feature_row_bytes(backend.model)

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()

    def key(self, picture: Visual, salt: str = "") -> Hashable:
        """Return what identifies the features of a picture; they are found again under the same salt only."""
        return salt, picture.digest, picture.layout(self._family)

    def get(self, picture: Visual, salt: str = "") -> tuple[Features, bool]:
        """Return the features [Q, H] of a picture and whether it had to be encoded for it; salt: as in `key`."""
        key = self.key(picture, salt)
        missing = key not in self._kept
        if missing:
            # One at a time: a picture is work enough for every core, and a cancellation waits for one picture at most.
            features = self._backend.encode(picture)
            check_features(features, picture.layout(self._family).tokens, self._backend.features_type)
            self._kept[key] = features
        self._kept.move_to_end(key)
        while len(self._kept) > FEATURES_KEPT or (len(self._kept) > 1 and self._rows() > self._most_rows):
            self._kept.popitem(last=False)
        return self._kept[key], missing

    def _rows(self) -> int:
        return sum(map(len, self._kept.values()))


class Answerer:
    """Answers requests, one call after another in the order in which they came.

    Args:
        stop: id sequences that end an answer.
        files: what is not hashed yet; it is hashed in the background, slowly while an answer is computed.

    turns: the lock that a thread holds while it computes. decoder: prefills all prompts.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: Tokenizer,
        features: FeatureCache,
        decoder: SequenceDecoder,
        *,
        stop: Sequence[tuple[int, ...]],
        files: Sequence[LargeFile] = (),
    ) -> None:
        self._family = family
        self._tokenizer = tokenizer
        self._features = features
        self._stop = stop
        self._ends = [ids[0] for ids in stop if len(ids) == 1]
        self._lookup = Lookup(set(self._ends))
        self.decoder = decoder
        self.turns = turns = Turns()
        self._files = BackgroundCheck(files, lambda: turns.busy)
        weakref.finalize(self, self._files.stop).atexit = False

    def check(self) -> None:
        """Check that there may be answers.

        Raises:
            BackendError: this process was forked from the one that opened the engine.
            BundleError: a file was altered.
        """
        self.turns.check()
        if self._files.failure is not None:
            self._files.check()

    def check_files(self) -> None:
        """Wait until all files are hashed. Raises as check."""
        self.turns.check()
        self._files.wait()

    def work(self, request: Request, control: Control) -> Work:
        """Take a request on; nothing is computed yet. Raises as check."""
        self.check()
        return Work(request, control, self._writer(request))

    def stream(self, request: Request, control: Control) -> Generator[str, None, Reply]:
        """Compute an answer, yielding its text as it comes."""
        work = self.work(request, control)
        with self.turns.take(lambda: control.reason is not None) as granted:
            if granted:
                for _ in self.starting(work, self._lookup):
                    pass
            if work.run is not None:
                yield from work.told(work.run.piece)
                while not work.ended:
                    yield from work.told(work.run.step(self.decoder))
                work.run.score_rest(self.decoder)
            yield from work.told(work.finish())
        return self.reply(work)

    def answer(self, request: Request, control: Control) -> Reply:
        """Compute an answer."""
        pieces = self.stream(request, control)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply

    def forget(self) -> None:
        """Drop computed prefixes and features, when it is this caller's turn."""
        with self.turns.take():
            self.decoder.forget()
            self._features.forget()
            self._lookup.forget()

    def starting(self, work: Work, lookup: Lookup | None) -> Generator[None, None, None]:
        """Compute the prompt and take the first token, with a pause after each picture and chunk.

        `work.run` is there at the end, unless the answer must end before. No other prompt may begin meanwhile.
        """
        request = work.request
        logits = yield from self._prefill(work)
        if logits is not None:
            work.run = Generation(
                self.decoder.sequence,
                lookup,
                work.writer,
                request.options,
                self._guide(request),
                logits,
                self._tokenizer.decode_bytes,
                ends=self._ends,
            )
            work.ttft_s = time.perf_counter() - request.started

    def reply(self, work: Work) -> Reply:
        """Return the reply of a finished work; its matcher is given back."""
        return work.reply(self._family)

    def _prefill(self, work: Work) -> Generator[None, None, FloatArray | None]:
        """Encode pictures and compute the prompt; return the logits after it, or None if the answer must end."""
        clock = time.perf_counter()
        prompt, control = work.request.prompt, work.control
        if control.reason is not None:
            return None
        wanted = self.decoder.begin(prompt)
        if not work.prefill_s:  # else it was interrupted, and finds what it computed itself
            work.reused_tokens = self.decoder.reused
        found: dict[Hashable, Features] = {}
        keys = {number: self._features.key(prompt.pictures[number], prompt.salt) for number in wanted}
        for number, key in keys.items():
            if control.reason is not None:
                return None
            if key not in found:
                found[key], encoded = self._features.get(prompt.pictures[number], prompt.salt)
                work.images_encoded += encoded
            work.image_s += time.perf_counter() - clock
            yield
            clock = time.perf_counter()
        self.decoder.load(prompt, {number: found[key] for number, key in keys.items()})
        logits = None
        while logits is None and control.reason is None:
            logits = self.decoder.prefill()
            work.prefill_s += time.perf_counter() - clock
            if logits is None:
                yield
            clock = time.perf_counter()
        work.prefill_tokens = self.decoder.computed - work.reused_tokens
        return logits

    def _guide(self, request: Request) -> Guide | None:
        """Return what the tokens of an answer keep to, its reasoning included."""
        end, budget = self._family.thinking_end, request.options.thinking_budget
        if end is None or (request.matcher is None and budget is None) or not request.is_chat:
            return request.matcher
        gap = self._tokenizer.encode("\n\n")
        return ThinkingGuide(request.matcher, end=end, gap=gap, budget=budget, decodable=self._family.decodable)

    def _writer(self, request: Request) -> AnswerWriter:
        family = self._family
        # Under a constraint, stop strings are ordinary text: only control tokens end the answer.
        stop = self._stop if request.matcher is None else [(end,) for end in self._ends]
        return AnswerWriter(
            self._tokenizer,
            family.reader(),
            stop=stop,
            stop_strings=request.options.stop,
            hidden=family.hidden_ids,
            lead=request.lead,
            thinking_end=family.thinking_end if request.is_chat else None,
        )
